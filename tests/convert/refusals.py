"""What every refusal of a hostile file has in common."""

from pathlib import Path

import pytest

# What a user must not be left with.
LIBRARY_WORDS = ("SafetensorError", "HeaderTooLarge", "InvalidHeader", "Traceback", "KeyError(")
LIBRARY_WORDS += ("InvalidOffset", "MetadataIncomplete", "DecodeError", "ExtraData", "StackError")


def assert_refused(read, path: Path, kind: type[Exception], *said: str) -> None:
    with pytest.raises(kind) as caught:
        read(path)
    message = str(caught.value)
    for words in said:
        assert words in message
    assert not [word for word in LIBRARY_WORDS if word in message]
