r"""Lists as people write them: what is read, and which line is named where it is not."""

import pytest

from imagen_jax.storage.list_file import read_rows, read_text, text_of

COLUMNS = {"prompt": ("text",)}
INSIDE = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"  # none of them ends a line


def texts(path, content: str | bytes) -> list[str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [text_of(path, row, "prompt") for row in read_rows(path, COLUMNS)]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.txt", "{}\n"),
        ("a.csv", "prompt,n\n{},1\n"),
        ("a.tsv", "prompt\tn\n{}\t1\n"),
        ("a.jsonl", '{{"prompt": "{}"}}\n'),
        ("A.CSV", 'n,Text \n1,"{}"\n'),
    ],
)
def test_only_line_feeds_end_a_line(tmp_path, name, form):
    text = INSIDE if "json" not in name else "e\x85f\u2028g"  # JSON escapes control characters
    content = form.format(text)
    for ends in ("\n", "\r\n", "\r\r\n"):
        for mark in ("", "\ufeff"):
            assert texts(tmp_path / name, mark + content.replace("\n", ends)) == [text]
    assert texts(tmp_path / name, content.rstrip()) == [text]  # no end of the last line


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("a.txt", "a\n\n  b \n\ufeffc\n", ["a", "b", "c"]),  # two files put together
        ("a.csv", ',text\n0,a\n\n1, "b, c"\n,\n', ["a", "b, c"]),  # as pandas and Excel write it
        ("a.csv", 'text\n"two\nlines"\n"a ""red"" cat"\n', ["two\nlines", 'a "red" cat']),
        ("a.tsv", 'Text\tx\na "red" cat, asleep\t\n\t\n"G" on a wall\tx\n\n',
         ['a "red" cat, asleep', '"G" on a wall']),
        ("a.jsonl", '{"Text": "a", "score": NaN}\n\n{"prompt": "b"}', ["a", "b"]),
        ("a.md", "a, b\tc\n", ["a, b\tc"]),
        ("a.txt", "", []),
        ("a.csv", "text\n", []),
        ("a.txt", "e\u0301 \u212b\n", ["e\u0301 \u212b"]),  # as it is, in no normal form
    ],
)  # fmt: skip
def test_odd_but_sound_lists(tmp_path, name, content, read):
    assert texts(tmp_path / name, content) == read


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,n\na,1\na, b,2\n", 'line 3: it has 3 columns, .* has 2; .*quotes: "a cat'),
        ("a.csv", "text,n\na\n", "line 2: it has 1 columns, and the first line has 2$"),
        ("a.tsv", "text\tn\na\tb\t\n", "line 2: it has 3 columns"),
        ("a.csv", 'text,n\n\n"a,1\nb,2\nc,3\n', "line 3: unexpected end of data; see its quotes"),
        ("a.csv", 'text,n\n"a" b,1\n', "line 2: .* see its quotes"),
        ("a.csv", 'text\n"' + "a\n" * 70_000, "line 2: .*see its quotes"),
        ("a.csv", "text;n\na;1\n", "line 1: .* separated by semicolons, as Excel .* with commas"),
        ("a.csv", "text\tn\na\t1\n", r"line 1: .* separated by tabs: name it \.tsv"),
        ("a.tsv", "text,n\na,1\n", r"line 1: .* separated by commas: name it \.csv"),
        ("a.csv", "a cat\na dog\n", r"line 1: .* needs 'prompt' \(or text\) and has 'a cat'"),
        ("a.csv", "Text,n,text\na,1,b\n", "line 1: .* has 'text' twice"),
        ("a.csv", "\n,\n", "is empty; its first line must name prompt"),
        ("a.csv", 'text\n""\n', "line 2: the prompt is empty"),
        ("a.tsv", 'text\tn\n"a ""red"" cat"\t1\n', r"line 2: .* save it as \.csv"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', r'line 2: it holds \["b"\]; it must be an object'),
        ("a.jsonl", '[\n{"text": "a"}\n]', "line 1: it is not JSON"),
        ("a.jsonl", '{"text": "a", "text": "b"}', "line 1: it has 'text' twice"),
        ("a.jsonl", '{"text": "a", "Text": "b"}', "line 1: it has 'text' twice"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', "line 2: it needs 'prompt' .* has 'txt'"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "line 1: it is nested too deeply"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", "line 1: .*digits"),
        ("a.jsonl", '{"text": ["a"]}', "line 1: the prompt is empty or no text"),
        ("a.jsonl", '{"text": " "}', "line 1: the prompt is empty"),
        ("a.jsonl", r'{"text": "a\ud83d"}', r"line 1: the prompt has half a character, '\\ud83d'"),
        ("a.txt", "a\nb\rc\n", r"line 2: a carriage return .* old Macs"),
        ("a.csv", "text\ra\rb\r", r"line 1: a carriage return .* old Macs"),
        ("a.txt", "a\nb\0c\n", "has a zero byte in line 2"),
        ("a.txt", "a b\n".encode("utf-16-le"), "has a zero byte in line 1"),
        ("a.txt", "a\n".encode("utf-16"), "is in UTF-16, not in UTF-8"),
        ("a.csv", "\ufefftext\n".encode("utf-16-be"), "is in UTF-16, not in UTF-8"),
        ("a.csv", "text\ncafé\n".encode("cp1252"), r"not in UTF-8 \(line 2, byte 0xe9\)"),
        ("a.txt", b"PK\x03\x04\x14\xff", "is a zip archive"),  # a spreadsheet under another name
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said) as caught:
        texts(tmp_path / name, content)
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none.txt")
