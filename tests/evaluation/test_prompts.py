"""Lists of prompts: COCO-30K drawn with a seed, DrawBench's CSV, and what is no list."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.commands.make_prompts import main
from imagen_jax.data import coco
from imagen_jax.evaluation.prompts import read_prompts


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    """40 images with two or three captions each, in no order."""
    rows = [
        {"id": 1000 - 7 * i, "image_id": i % 40, "caption": f"a caption {i}\n"} for i in range(100)
    ]
    path = tmp_path_factory.mktemp("coco") / "captions_val2014.json"
    path.write_text(json.dumps({"info": {}, "images": [], "annotations": rows}))
    return path


def drawn(annotations, out, *more):
    main(["--annotations", str(annotations), "--out", str(out), *map(str, more)])
    return read_prompts("coco30k", out)


def test_coco_prompts_are_drawn_with_a_seed(annotations, tmp_path, capsys):
    few = drawn(annotations, tmp_path / "few.json", "--num", 10)
    more = drawn(annotations, tmp_path / "more.json", "--num", 30)
    other = drawn(annotations, tmp_path / "other.json", "--num", 30, "--seed", 1)
    assert more.ids[:10] == few.ids
    assert set(other.ids) != set(more.ids)
    assert len(set(more.ids)) == 30
    assert more.origin["pictures"] == 40
    assert more.origin["captions"] == 100
    captions = {str(c.id): c.text for c in coco.read_annotations(annotations)}
    assert more.texts == tuple(captions[i] for i in more.ids)
    assert "not of the 40504" in capsys.readouterr().err


def test_tfds_records_give_the_same_captions(annotations):
    """Records as TFDS's coco_captions has them: an image's captions together, bytes."""
    by_image: dict = {}
    for caption in coco.read_annotations(annotations):
        by_image.setdefault(caption.image_id, []).append(caption)
    records = [
        {
            "image/id": np.int64(image),
            "captions": {
                "id": np.asarray([c.id for c in captions]),
                "text": np.asarray([c.text.encode() for c in captions], object),
            },
        }
        for image, captions in sorted(by_image.items(), reverse=True)
    ]
    assert coco.captions_of_records(records) == coco.read_annotations(annotations)


def test_drawbench_is_read_with_its_categories(tmp_path):
    path = tmp_path / "drawbench.csv"
    path.write_text('\ufeffPrompts,Category\n"A red, round car.",Colors\nOne cat.,Counting\n')
    prompts = read_prompts("drawbench", path)
    assert prompts.texts == ("A red, round car.", "One cat.")
    assert prompts.categories == ("Colors", "Counting")
    assert prompts.first(1).texts == prompts.texts[:1]
    assert prompts.first(1).fingerprint != prompts.fingerprint


def test_other_lists(tmp_path):
    (tmp_path / "mine.txt").write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "mine.txt")).texts == ("a cat", "a dog")
    (tmp_path / "mine.jsonl").write_text('{"id": 7, "caption": "红苹果"}\n', encoding="utf-8")
    prompts = read_prompts(str(tmp_path / "mine.jsonl"))
    assert (prompts.texts, prompts.ids) == (("红苹果",), ("7",))


def test_partiprompts_is_read_by_its_columns(tmp_path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text(
        "Prompt\tCategory\tChallenge\tNote\n"
        'a sign that says "Deep\tWorld Knowledge\tWriting\t\n'
        "bond\tAbstract\tBasic\tone word\n"
    )
    prompts = read_prompts(str(path))
    assert prompts.texts == ('a sign that says "Deep', "bond")
    assert prompts.categories == ("World Knowledge", "Abstract")


CASES = Path(__file__).resolve().parents[1] / "fixtures" / "cases" / "prompts"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unquoted_comma.csv", "line 2: it has 3 columns, .* has 2; .* in quotes"),
        ("unbalanced_quote.csv", "line 2: .* see its quotes"),
        ("list_row.jsonl", r'line 1: it holds \["a blue dog"\]; it must be an object'),
    ],
)
def test_lists_that_were_read_wrongly_name_their_line(name, said):
    with pytest.raises(ValueError, match=rf"{re.escape(name)}, {said}"):
        read_prompts(str(CASES / name))


def test_a_missing_file_says_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"imagen-jax make_prompts --annotations"):
        read_prompts("coco30k", tmp_path / "no.json")
    with pytest.raises(FileNotFoundError, match=r"https://imagen\.research\.google"):
        read_prompts("drawbench", tmp_path / "no.csv")
    with pytest.raises(FileNotFoundError, match="one prompt a line"):
        read_prompts(str(tmp_path / "no.txt"))
    with pytest.raises(FileNotFoundError, match=r"cocodataset\.org"):
        coco.read_annotations(tmp_path / "captions_val2014.json")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "Words\nred\n", "line 1: .* needs 'prompt' .* has 'words'"),
        ("a.txt", "\n", "holds no prompt"),
        ("a.csv", "prompt\n", "holds no prompt"),
        ("a.json", "[1]", "is not a list of prompts"),
        ("a.json", '{"prompts": ' + "[" * 100_000, "nested too deeply"),
        ("a.json", '{"prompts": ["a cat"]}', "cannot be read as a list"),
        ("a.json", '{"prompts": [{"id": 1, "text": 5}]}', "is empty or no text"),
        ("a.jsonl", '{"id": 1, "text": "x"}\n\n{"id": 1, "text": "y"}', "3: .* same id as line 1"),
        ("a.csv", "id,prompt\n1,a\n1", "line 3: it has 1 columns"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_prompts(str(tmp_path / name))


def test_what_is_no_annotation_file_is_refused(tmp_path, annotations, capsys):
    path = tmp_path / "captions.json"
    for content in ("{}", "[]", '{"annotations": [{"id": 1}]}', "{"):
        path.write_text(content)
        with pytest.raises(ValueError, match="is not COCO's caption file"):
            coco.read_annotations(path)
    rows = [{"id": 1, "image_id": 1, "caption": "x"}] * 2
    path.write_text(json.dumps({"annotations": rows}))
    with pytest.raises(ValueError, match="two captions with one id"):
        coco.read_annotations(path)
    with pytest.raises(SystemExit, match="Cannot sample 30000 of 100"):
        main(["--annotations", str(annotations), "--out", str(tmp_path / "x.json")])
