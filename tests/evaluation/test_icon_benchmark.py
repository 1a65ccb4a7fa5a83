"""The benchmark of icons, on models whose score is known: they return images of the set."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import ENCODER, WIDTH, network

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import Stage
from imagen_jax.commands.benchmark_icons import main
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation import icon_benchmark
from imagen_jax.evaluation.icon_set import ROWS, make_prompts, ranges, read_icons
from imagen_jax.evaluation.inputs import EvaluatedModel
from imagen_jax.evaluation.matching_test import make_matching_prompts
from imagen_jax.pipeline.pipeline import Pipeline

OWN = Sampling("ddim", steps=3, guidance=7.0)


class Perfect(Pipeline):
    """Returns the true image of each prompt, in another style where it is asked."""

    def __init__(self, icons, turn=0):
        stage = Stage("base", 64, network(), text_width=WIDTH)
        super().__init__(Cascade((stage,), (OWN,), ENCODER), {}, name="perfect")
        style, thing = icons.column("style"), icons.column("name_en")
        self.images, self.calls, self.sampling = {}, [], None
        for icon in range(len(icons.source)):
            wanted = icons.styles[(icons.styles.index(style[icon]) + turn) % len(icons.styles)]
            (shown,) = np.flatnonzero((style == wanted) & (thing == thing[icon]))
            for language in ("en", "zh"):
                self.images[icons.prompt(icon, language)] = icons.source.images[shown]

    def generate_images(self, prompt, first_index, sampling, **options):
        self.calls.append((first_index, len(prompt)))
        self.sampling = sampling
        return [Image.fromarray(self.images[text]) for text in prompt]


@pytest.fixture
def use(icons, monkeypatch):
    """Puts a pipeline in the place of the one that --model names."""

    def use(pipeline):
        about = {"name": pipeline.name, "fingerprint": "0", "dtype": "float32"}
        model = EvaluatedModel(pipeline, (OWN,), about)
        monkeypatch.setattr(icon_benchmark, "read_model", lambda request: model)
        return pipeline

    return use


def run(icons, out, *more):
    main(["--data", str(icons), "--out", str(out), "--parts", "retrieval", *map(str, more)])
    return json.loads((out / "benchmark.json").read_text())


def test_true_images_are_all_found_in_their_style(icons, use, tmp_path, capsys):
    use(Perfect(read_icons(icons)))
    report = run(icons, tmp_path / "out")
    split, variant, chinese = map(read_icons(icons).column, ("split", "variant", "name_zh"))
    for name, found in report["retrieval"].items():
        for language in ("en", "zh"):
            assert found[language]["top1"]["share"] == found[language]["style"]["share"] == 1
        assert set(found["difference"].values()) == {0}
        asked = (split == ROWS[name].split) & (variant == ROWS[name].variant)
        assert found["en"]["top1"]["n"] == asked.sum()
        assert found["zh"]["top1"]["n"] == (asked & (chinese != "")).sum()
        by_style = found["by_style"].values()
        assert sum(scores["top1"]["n"] for scores in by_style) == found["en"]["top1"]["n"]
    assert set(report["retrieval"]) == set(ROWS)
    # The first two of flat look the same, and count once.
    chance = {k: v["chance"]["top5"] for k, v in report["retrieval"]["trained"]["by_style"].items()}
    assert chance == pytest.approx({"noto": 5 / 60, "flat": 5 / 59, "outline": 5 / 60})
    table = (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out
    assert re.search(r"held-out pairs \| English \| \d+ \| 100.0% \(", table)


def test_the_right_thing_in_the_wrong_style_is_seen(icons, use, tmp_path):
    """Styles of a thing look nothing alike here, so that retrieval fails, too."""
    use(Perfect(read_icons(icons), turn=1))
    for found in run(icons, tmp_path, "--num", 5)["retrieval"].values():
        assert found["en"]["style"]["hits"] == 0
        assert found["en"]["top1"]["share"] < 0.5


def test_one_language_that_fails_is_seen_on_the_same_icons(icons, use, tmp_path):
    pipeline = use(Perfect(read_icons(icons)))
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    for text in filter(None, pipeline.images):
        if "风格" in text:
            pipeline.images[text] = noise
    found = run(icons, tmp_path, "--num", 20)["retrieval"]["trained"]
    assert found["en"]["top1"]["share"] == 1
    missing = found["zh"]["top1"]
    assert found["difference"]["top1"] == pytest.approx(100 * missing["share"] - 100)
    assert missing["share"] < 0.2


def test_the_protocol_does_not_take_the_models_settings(icons, use, tmp_path):
    pipeline = use(Perfect(read_icons(icons)))
    report = run(icons, tmp_path / "a", "--num", 1)
    assert pipeline.sampling == (icon_benchmark.BASE,)
    assert report["protocol"]["sampling"]["base"]["steps"] == 16
    assert report["protocol"]["sampling"]["base"]["guidance"] == 3
    report = run(icons, tmp_path / "b", "--num", 1, "--own_sampling")
    assert pipeline.sampling == (OWN,)
    assert report["protocol"]["sampling"]["base"]["steps"] == 3
    report = run(icons, tmp_path / "c", "--num", 1, "--steps", 2)
    assert report["protocol"]["sampling"]["base"]["steps"] == 2
    with pytest.raises(SystemExit, match="images with sampling"):
        run(icons, tmp_path / "a", "--own_sampling")


def test_a_quick_look_is_the_beginning_of_the_whole(icons, use, tmp_path):
    """The same prompts with the same noise, and its images are kept."""
    pipeline = use(Perfect(read_icons(icons)))
    out = tmp_path / "out"
    few = run(icons, out, "--num", 2, "--batch_size", 1)
    assert {found["en"]["top1"]["n"] for found in few["retrieval"].values()} == {2}
    quick = set(pipeline.calls)
    pipeline.calls.clear()
    run(icons, out, "--batch_size", 1, "--num", 3)
    assert not quick & set(pipeline.calls)
    places = make_prompts(read_icons(icons))[1]
    two, three = ranges(places, 2), ranges(places, 3)
    assert all(set(two[name]) < set(three[name]) for name in two)


def test_held_out_icons_that_were_trained_on_under_another_name_are_not_asked(icons, tmp_path):
    """In their own style, that is: the look of another style is what composition may go by."""
    with np.load(icons / "icons64.npz") as arrays:
        arrays = dict(arrays)
    keys, image = arrays["key"].tolist(), arrays["image"] // 2 + 50
    again, other, far = (keys.index(f"flat/thing-{i}") for i in (55, 56, 57))
    image[again] = image[keys.index("flat/thing-5")] + 1
    image[other] = image[keys.index("noto/thing-5")]
    image[far] = image[keys.index("flat/thing-6")] + 3
    np.savez(tmp_path / "icons64.npz", **arrays | {"image": image})
    found = read_icons(tmp_path)
    assert np.flatnonzero(found.seen).tolist() == [again]
    asked, before = ({p.icon for p in make_prompts(x)[0]} for x in (found, read_icons(icons)))
    assert before - asked == {again}


def test_prompts_do_not_depend_on_the_order_of_the_file(icons, tmp_path, rng):
    with np.load(icons / "icons64.npz") as arrays:
        order = rng.permutation(len(arrays["key"]))
        mixed = {k: v if k == "captions" else v[order] for k, v in arrays.items()}
    np.savez(tmp_path / "icons64.npz", **mixed)
    one, other = read_icons(icons), read_icons(tmp_path)
    assert [p.text for p in make_prompts(one)[0]] == [p.text for p in make_prompts(other)[0]]
    chosen = [make_matching_prompts(each) for each in (one, other)]
    assert [p.text for p in chosen[0]] == [p.text for p in chosen[1]]


def test_a_killed_run_goes_on(icons, use, tmp_path):
    pipeline = use(Perfect(read_icons(icons)))
    common = ["--batch_size", 4, "--num", 5]
    whole = run(icons, tmp_path / "whole", *common)["retrieval"]
    total, real = len(pipeline.calls), pipeline.generate_images
    pipeline.calls.clear()

    def killed(**options):
        if len(pipeline.calls) == 3:
            raise KeyboardInterrupt
        return real(**options)

    pipeline.generate_images = killed
    with pytest.raises(SystemExit, match="130"):
        run(icons, tmp_path / "out", *common)
    pipeline.generate_images = real
    assert run(icons, tmp_path / "out", *common)["retrieval"] == whole
    assert len(pipeline.calls) == len(set(pipeline.calls)) == total


def test_a_model_of_one_style(icons, use, tmp_path):
    """Prompts are names alone; candidates of the other styles still count for the style."""
    plain = read_icons(icons, ["flat"], plain=True)
    prompts = make_prompts(plain)[0]
    assert {prompt.text[:5] for prompt in prompts if prompt.language == "en"} == {"thing"}
    assert not any("style" in prompt.text or "风格" in prompt.text for prompt in prompts)
    pipeline = use(Perfect(read_icons(icons)))
    style = plain.column("style")
    pipeline.images = {
        plain.prompt(icon, language): plain.source.images[icon]
        for icon in np.flatnonzero(style == "flat").tolist()
        for language in ("en", "zh")
    }
    found = run(icons, tmp_path, "--styles", "flat", "--plain_prompts")["retrieval"]["pairs"]
    assert list(found["by_style"]) == ["flat"]
    assert found["en"]["top1"]["share"] == found["en"]["style"]["share"] == 1


def test_the_matching_test(icons, use, tmp_path):
    pipeline = use(Perfect(read_icons(icons)))
    main(["--data", str(icons), "--out", str(tmp_path), "--parts", "matching"])
    everything = read_icons(icons)
    prompts = make_matching_prompts(everything)
    rows = [prompt.icon for prompt in prompts]
    column = everything.column
    assert len(set(column("family")[rows])) == 32
    assert set(column("split")[rows]) == {"train"}
    assert not column("variant")[rows].any()
    for name in (lambda p: p.language, lambda p: column("style")[p.icon]):
        assert [name(p) for p in prompts[:16]] == [name(p) for p in prompts[16:]]
    assert [p.language for p in prompts].count("zh") == 16
    lines = (tmp_path / "match.md").read_text(encoding="utf-8").splitlines()
    captions = dict(line[2:].split(": ", 1) for line in lines if line.startswith("- "))
    assert set(captions.values()) == {prompt.text for prompt in prompts}
    key = json.loads((tmp_path / "match_key.json").read_text())
    shown = [captions[key[str(i)]] for i in range(1, 17)]
    asked = [prompt.text for prompt in prompts[:16]]
    assert sorted(shown) == sorted(asked)
    # Neither order tells anything of the other, nor of the styles and languages in turn.
    assert asked != shown != [text for text in captions.values() if text in shown]
    assert list(captions.values()) != [prompt.text for prompt in prompts]
    # The grid's cells, in its order, are the images of the key's captions.
    with Image.open(tmp_path / "match.png") as grid:
        width, height = grid.width // 4, grid.height // 4
        for place, text in enumerate(shown):
            image = np.asarray(pipeline.images[text])
            x, y = place % 4 * width + width // 2, place // 4 * height
            column = np.asarray(grid)[y : y + height, x]
            middle = image[:, 32].repeat(3, 0)
            assert any(np.array_equal(column[i : i + 192], middle) for i in range(height - 191))
    assert sorted(path.name for path in (tmp_path / "matching").glob("*.png")) == [
        f"{i:06d}.png" for i in range(16)
    ]


def test_what_it_refuses(icons, use, tmp_path):
    use(Perfect(read_icons(icons)))

    def refused(*arguments):
        with pytest.raises(SystemExit) as error:
            main([*map(str, arguments), "--out", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "imagen-jax prepare_icons --out" in refused("--data", tmp_path)
    assert "known are retrieval" in refused("--data", icons, "--parts", "psnr")
    sharp = refused("--data", icons, "--parts", "retrieval,super_resolution")
    assert "cannot be measured: 'perfect' has no such stage" in sharp
    assert "its styles are noto, flat, outline" in refused("--data", icons, "--styles", "3d")
    with np.load(icons / "icons64.npz") as arrays:
        lacking = {k: v for k, v in arrays.items() if k not in ("style", "name_zh")}
    np.savez(tmp_path / "icons64.npz", **lacking)
    assert "has no style, name_zh" in refused("--data", tmp_path)
