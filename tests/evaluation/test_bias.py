"""The report on bias, on models whose leanings are known: they return images of the set."""

import csv
import itertools
import json

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import ENCODER, WIDTH, network

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import Stage
from imagen_jax.commands.bias import main
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation import bias_report
from imagen_jax.evaluation.bias import Asked, Survey, clip_survey, spread_of
from imagen_jax.evaluation.bias_lists import DEFAULT, BiasLists, read_lists
from imagen_jax.evaluation.features import FeatureExtractor
from imagen_jax.evaluation.icon_people import ATTRIBUTES, icon_survey, people, shown_by
from imagen_jax.evaluation.icon_set import read_icons
from imagen_jax.evaluation.inputs import EvaluatedModel
from imagen_jax.pipeline.pipeline import Pipeline

GENDERS, TONES = ATTRIBUTES["gender"], ATTRIBUTES["skin tone"]
THINGS = ("cook", "judge", "<b>pilot</b>")
STYLES = ("noto", "flat")


def name_of(thing, gender, tone):
    name = thing if gender == "person" else f"{gender} {thing}"
    return name if tone == "yellow" else f"{name}: {tone} skin tone"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three people in every gender and tone in two styles, one who is only a woman, and a tree."""
    rng = np.random.default_rng(0)
    whole = itertools.product(STYLES, THINGS, GENDERS, TONES)
    rows = [(style, thing, name_of(thing, *shown)) for style, thing, *shown in whole]
    rows += [("flat", "queen", name_of("queen", "woman", tone)) for tone in TONES]
    rows += [("noto", "tree", "tree")]
    style, family, name = map(np.array, zip(*rows, strict=True))
    place = tmp_path_factory.mktemp("people")
    captions = [[[f"{name}, {style} style", 1.0]] for style, _, name in rows]
    np.savez(
        place / "icons64.npz",
        image=rng.integers(0, 256, (len(rows), 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2),
        captions=np.frombuffer(json.dumps(captions).encode(), np.uint8),
        key=np.array([f"{style}/{i}" for i, (style, *_) in enumerate(rows)]),
        split=np.full(len(rows), "train"),
        style=style,
        family=family,
        variant=np.array([name != thing for _, thing, name in rows]),
        name_en=name,
        name_zh=np.array([f"物{name}" for name in name]),
    )
    return place


class Leaning(Pipeline):
    """Shows people whose gender and tone the prompt names; else those that `choose` gives."""

    def __init__(self, folder, choose):
        stage, own = Stage("base", 64, network(), text_width=WIDTH), Sampling("ddim", steps=2)
        super().__init__(Cascade((stage,), (own,), ENCODER), {}, name="leaning")
        icons = read_icons(folder)
        self.choose, self.calls, self.icons = choose, 0, {}
        for key, shown in people(icons).items():
            for one, icon in shown.items():
                self.icons[icons.prompt(icon, "en")] = key, one
        self.images = {key: {one: icons.source.images[i] for one, i in shown.items()}
                       for key, shown in people(icons).items()}  # fmt: skip

    def generate_images(self, prompt, first_index, **options):
        self.calls += 1
        shown = []
        for index, text in enumerate(prompt, first_index):
            key, asked = self.icons[text]
            gender, tone = self.choose(key, index)
            shown.append(self.images[key][asked[0] or gender, asked[1] or tone])
        return [Image.fromarray(image) for image in shown]


@pytest.fixture
def report(folder, monkeypatch, tmp_path):
    """A function that runs the command with a model of these leanings; gives bias.json."""

    def report(choose, *more):
        pipeline = Leaning(folder, choose)
        about = {"name": pipeline.name, "fingerprint": "0", "dtype": "float32"}
        model = EvaluatedModel(pipeline, pipeline.cascade.sampling, about)
        monkeypatch.setattr(bias_report, "read_model", lambda request: model)
        main(["--data", str(folder), "--out", str(tmp_path / "out"), *map(str, more)])
        report.calls = pipeline.calls
        return json.loads((tmp_path / "out" / "bias.json").read_text(encoding="utf-8"))

    return report


def test_leanings_are_found_and_what_is_asked_for_is_recognized(report, tmp_path, capsys):
    """A cook is a dark woman, a judge a light man, a pilot one or the other in turn."""
    woman, man, light, dark = 1, 2, TONES.index("light"), TONES.index("dark")

    def choose(key, index):
        _style, thing = key
        first = thing == "cook" or (thing != "judge" and index % 2)
        return (woman, dark) if first else (man, light)

    found = report(choose, "--num", 8)["attributes"]
    gender, tone = found["gender"], found["skin tone"]
    assert gender["subjects"]["cook"]["woman"] == {
        "share": 1.0, "low": pytest.approx(0.676, abs=1e-3), "high": 1.0, "hits": 8, "n": 8,
    }  # fmt: skip
    shares = {name: own["man"]["share"] for name, own in gender["subjects"].items()}
    assert shares == {"cook": 0, "judge": 1, "<b>pilot</b>": 0.5}
    assert gender["all"]["woman"]["share"] == gender["all"]["man"]["share"] == pytest.approx(0.5)
    assert gender["all"]["person"]["share"] == 0
    # Of three subjects, whose shares are 0, 1/2 and 1, the mean is anything from 0 to 1.
    assert (gender["all"]["man"]["low"], gender["all"]["man"]["high"]) == (0, 1)
    assert {v: s["share"] for v, s in gender["recognized"].items()} == {"woman": 1, "man": 1}
    assert {v: s["share"] for v, s in tone["recognized"].items()} == dict.fromkeys(TONES[1:], 1)
    far = (2 / 3 + 2 / 3 + 1 / 3) / 3
    assert gender["distance"]["mean"] == pytest.approx(far)
    assert 0.1 < gender["distance"]["of_an_even_model"] < 0.3
    out = tmp_path / "out"
    page = (out / "bias.html").read_text(encoding="utf-8")
    assert "<b>pilot" not in page
    assert "&lt;b&gt;pilot" in page
    assert "http" not in page.replace("data:image/png", "")
    with open(out / "bias.csv", encoding="utf-8", newline="") as stream:
        rows = {tuple(row[:3]): row[3:] for row in csv.reader(stream)}
    assert rows["gender", "judge", "man"] == ["8", "1.0000", "0.6756", "1.0000"]
    assert rows["skin tone", "asked for: dark", "dark"][1] == "1.0000"
    assert "| gender | woman | 50.0% (0.0-100.0) | 100.0% (" in capsys.readouterr().out


def test_images_that_are_there_are_kept(report):
    report(lambda key, index: (0, 0), "--num", 2)
    first = report.calls
    again = report(lambda key, index: (1, 1), "--num", 2)["attributes"]["gender"]["all"]
    assert first > 0
    assert report.calls == 0
    assert again["person"]["share"] == 1
    with pytest.raises(SystemExit, match="num = 2, not 3"):
        report(lambda key, index: (0, 0), "--num", 3)


def test_a_model_of_classes_is_refused(folder, monkeypatch, tmp_path):
    stage = Stage("base", 64, network(num_classes=3), conditioning="label")
    pipeline = Pipeline(Cascade((stage,), (Sampling("ddim"),)), {}, name="classes")
    model = EvaluatedModel(pipeline, pipeline.cascade.sampling, {})
    monkeypatch.setattr(bias_report, "read_model", lambda request: model)
    with pytest.raises(SystemExit, match="'classes' reads no text"):
        main(["--data", str(folder), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_even_model_is_as_far_from_even_as_chance():
    """Of two values and two images: 1/2 with probability 1/2, else 0."""
    rng = np.random.default_rng(1)
    asked = tuple(Asked("", f"{i}") for i in range(1000) for _ in range(2))
    survey = Survey(asked, {"side": ("heads", "tails")}, spread_of, "")
    found = spread_of(survey, {"side": rng.integers(0, 2, len(asked))})["side"]
    assert found["distance"]["of_an_even_model"] == pytest.approx(0.25, abs=0.02)
    assert found["distance"]["mean"] == pytest.approx(0.25, abs=0.02)
    low, high = (found["all"]["heads"][end] for end in ("low", "high"))
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.1)


def test_names_of_unicode():
    assert shown_by("artist") == (0, 0)
    assert shown_by("woman artist: medium-dark skin tone") == (1, 5 - 1)
    assert shown_by("man: light skin tone, bald") == (2, 1)
    assert shown_by("merman: dark skin tone") == (2, 5)
    assert shown_by("mermaid") == (1, 0)
    assert shown_by("merperson") == (0, 0)
    assert shown_by("woman in manual wheelchair") == (1, 0)
    assert shown_by("German shepherd") == (0, 0)


def test_only_whole_families_are_asked_for(folder):
    icons = read_icons(folder)
    assert set(people(icons)) == set(itertools.product(STYLES, THINGS))
    survey = icon_survey(read_icons(folder, ["flat"]), 2, "zh")
    neutral = [one for one in survey.asked if one.attribute is None]
    assert len(neutral) == 2 * len(THINGS)
    assert {one.text for one in neutral} == {f"物{thing}，扁平风格" for thing in THINGS}


def test_clip_takes_the_text_of_the_largest_cosine():
    """Texts of very different lengths, which must not matter."""
    rng = np.random.default_rng(2)
    texts = {"w": [100.0, 0, 0], "m": [0, 1.0, 0], "a": [0.0, 0, 3], "b": [1.0, 1.0, 0]}
    images = rng.normal(size=(6, 3))

    class Fixed(FeatureExtractor):
        """Gives features that are known."""

        def __init__(self):
            pass

        name = "tiny"

        def texts(self, given):
            return np.array([texts[one] for one in given])

        def images(self, given):
            return images[given]

    lists = BiasLists(
        "{} {in braces}",
        ("x",),
        {"gender": {"woman": "w", "man": "m"}, "age": {"a": "a", "b": "b"}},
    )
    survey = clip_survey(lists, Fixed(), 2)
    assert survey.asked[0].text == "x {in braces}"
    assert [one.subject for one in survey.asked[::2]] == ["x", "woman", "man", "a", "b"]
    found = survey.classify(survey.asked[:6], np.arange(6))
    np.testing.assert_array_equal(found["gender"], images[:, 1] > images[:, 0])
    cosines = images @ np.array([[0.0, 0, 1], [0.5**0.5, 0.5**0.5, 0]]).T
    np.testing.assert_array_equal(found["age"], cosines.argmax(axis=1))


GOOD = {"template": "a {}", "subjects": ["x", "y"], "attributes": {"g": {"w": "a w", "m": "a m"}}}


def test_lists_from_a_file(tmp_path):
    file = tmp_path / "lists.json"
    file.write_text(json.dumps(GOOD))
    assert read_lists(file) == BiasLists("a {}", ("x", "y"), GOOD["attributes"])
    file.write_text(json.dumps(vars(DEFAULT)))
    assert read_lists(file) == DEFAULT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": "a {}"}, "'templates'; did you mean 'template'"),
        ({"template": "a doctor"}, "with one {}"),
        ({"template": None}, "template is None"),
        ({"subjects": ["x"]}, "two different texts"),
        ({"subjects": ["x", "x"]}, "two different texts"),
        ({"subjects": "doctors"}, "list of two"),
        ({"attributes": {}}, "attributes must be an object"),
        ({"attributes": {"g": {"w": "a w"}}}, "attribute 'g'"),
        ({"attributes": {"g": {"w": "same", "m": "same"}}}, "attribute 'g'"),
        ({"attributes": {"g": ["w", "m"]}}, "attribute 'g'"),
    ],
)
def test_wrong_lists(tmp_path, changes, message):
    file = tmp_path / "lists.json"
    file.write_text(json.dumps(GOOD | changes))
    with pytest.raises(ValueError, match=message):
        read_lists(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "needs --clip DIR"),
        ("--clip nowhere", "nowhere"),
        ("--data {folder} --clip models/clip", "exclude each other"),
        ("--styles flat", "give --data"),
        ("--data {folder} --styles outline", "no style 'outline'"),
        ("--data nowhere", "prepare_icons"),
        ("--lists nowhere.json", "nowhere.json"),
        ("--num 0 --data {folder}", "--num"),
    ],
)
def test_refused_before_the_model_is_read(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bias_report, "read_model", None)
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "out"), *arguments.format(folder=folder).split()])
    assert message in f"{ended.value}{capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()
