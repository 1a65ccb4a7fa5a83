"""Docstrings of classes say of each field what it is, as `name: text`: a list on the site."""

import re

import griffe

NAMES = re.compile(r"(?:(?<=\. )|(?<=\n)|(?<=\) ))((?:\w+, )*\w+):(?=\s)")


class Fields(griffe.Extension):
    def on_class(self, *, cls, **rest):
        if cls.docstring is None:
            return
        fields = {*cls.members, *(parameter.name for parameter in cls.parameters)}

        def entry(found):
            if not fields.issuperset(found[1].split(", ")):
                return found[0]
            return f"\n\n- `{found[1].replace(', ', '`, `')}`:"

        cls.docstring.value = NAMES.sub(entry, cls.docstring.value)
