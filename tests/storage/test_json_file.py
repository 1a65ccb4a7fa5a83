"""JSON of others: what is refused, in words, and how fast."""

import json
import math
import time

import pytest

from imagen_jax.data.captions import read_captions
from imagen_jax.data.fields import parse_json
from imagen_jax.evaluation.prompts import read_prompts
from imagen_jax.storage.json_file import parse, parse_object, read_object

FAULTS = {
    "": "it is not JSON",
    "{": "it is not JSON (Expecting property name",
    "[1]": "it holds a list, not an object",
    '{"a": 1, "b": 2, "a": 3}': "it has 'a' twice",
    '{"a": {"b": 1, "b": 1}}': "it has 'b' twice",
    '{"a": NaN}': "it has NaN, which is not a JSON number",
    '{"a": Infinity}': "it has Infinity",
    '{"a": 1e999}': "it has the number 1e999, which is too large",
    '{"a": 1' + "0" * 308 + "}": "it has the number 100000000000... of 309 digits",
    '{"a": -1' + "0" * 9999 + "}": "it has the number -10000000000... of 10,001 digits",
    r'{"a": "x\ud83d"}': r"it has half a character, \ud83d, in a string",
    r'{"a": ["\uDE00\ud83d"]}': "it has half a character",
    r'{"\udfff": 1}': r"it has half a character, \udfff",
    "[" * 1000 + "]" * 1000: "it is nested too deeply",
    "[" * 100_000: "it is nested too deeply",
    '{"a":' * 100_000 + "1" + "}" * 100_000: "it is nested too deeply",
    '{"a": ' + "[" * 101 + "]" * 101 + "}": "it is nested too deeply",
}


@pytest.mark.parametrize("text", list(FAULTS), ids=lambda text: text[:20])
def test_faults_are_named(text, tmp_path):
    for content in (text, text.encode()):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            parse_object(content)
        assert FAULTS[text] in str(caught.value)
        assert len(str(caught.value)) < 200
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is not a config: "):
        read_object(tmp_path / "a.json", "a config")


def test_what_is_sound_is_read():
    text = '{"a": [1, 2.5, -Infinity, null, true], "b": {"c": "\\ud83d\\ude00 \\\\ud83d é"}}'
    values = {"a": [1, 2.5, -math.inf, None, True], "b": {"c": "😀 \\ud83d é"}}
    assert parse(text) == parse(b"\xef\xbb\xbf" + text.encode()) == values
    assert parse('{"a": ' + "[" * 90 + "]" * 90 + "}") is not None
    assert parse("1" + "0" * 307) == 10**307
    with pytest.raises(ValueError, match=r"it is not UTF-8 text \(byte 2\)"):
        parse(b'["\xff"]')


def test_a_crawlers_json_is_read_with_its_oddities():
    values = parse_json(rb'{"a": NaN, "b": "x\ud83d", "c": -1e999}')
    assert math.isnan(values.pop("a"))
    assert values == {"b": "x\ud83d", "c": -math.inf}
    with pytest.raises(ValueError, match=r"not a JSON object: it has the number .* of 5,000"):
        parse_json(b'{"a": ' + b"1" * 5000 + b"}")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" * 100_000)


def test_many_names_take_no_time():
    count = 60_000
    text = json.dumps({f"key{i}": i for i in range(count)})
    start = time.process_time()
    assert len(parse_object(text)) == count
    with pytest.raises(ValueError, match="it has 'key5' twice"):
        parse_object(text[:-1] + ', "key5": 0}')
    with pytest.raises(ValueError, match="twice"):
        parse_object(text[:-1] + "," + text[1:])
    assert time.process_time() - start < 10  # it was over 20 when each name was sought


@pytest.mark.parametrize("line", ["[" * 1000, "[" * 100_000, '{"a":' * 100_000, "1" * 5000])
def test_lists_of_captions_and_prompts_name_the_line(line, tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "a.png", "caption": "x"}\n' + line)
    with pytest.raises(ValueError, match=r"captions\.jsonl, line 2: "):
        read_captions(path)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n' + line)
    with pytest.raises(ValueError, match=r"prompts\.jsonl"):
        read_prompts(str(path))
