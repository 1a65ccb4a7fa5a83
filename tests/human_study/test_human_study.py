"""Studies with people: what raters may see, the web page on 127.0.0.1, and the analysis."""

import http.client
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from imagen_jax.commands.human_eval import main
from imagen_jax.data import coco
from imagen_jax.evaluation.prompts import plain_list, read_prompts, write_coco
from imagen_jax.human_study import study as human
from imagen_jax.human_study.server import AnswerFile, StudyServer
from imagen_jax.human_study.sheets import read_set

PROMPTS, COPIES = 20, 2


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two models' runs: a's images have the prompt's number in red, b's in green."""
    root = tmp_path_factory.mktemp("models")
    rows = "".join(f"prompt {i},{'even' if i % 2 == 0 else 'odd'}\n" for i in range(PROMPTS))
    (root / "prompts.csv").write_text("Prompts,Category\n" + rows)
    prompts = read_prompts(str(root / "prompts.csv"))
    settings = json.dumps({"prompts": prompts.fingerprint, "num_images": COPIES})
    for channel, name in enumerate("ab"):
        folder = root / name / "images"
        folder.mkdir(parents=True)
        for i in range(PROMPTS * COPIES):
            pixels = np.zeros((8, 8, 3), np.uint8)
            pixels[..., channel] = 100 + i // COPIES
            Image.fromarray(pixels).save(folder / f"{i:06d}.png")
        (folder / "settings.json").write_text(settings)
    return root


def make(images, out, *more):
    folders = f"--a {images / 'a'} --b {images / 'b'} --prompts {images / 'prompts.csv'}"
    main(["sheets", *folders.split(), "--out", str(out), *map(str, more)])
    return human.read_study(out)


@pytest.fixture(scope="module")
def study(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, make(images, out, "--num_images", COPIES, "--controls", 6, "--seed", 3)


def pixel(directory, name):
    with Image.open(directory / "sheets" / name) as sheet:
        return np.asarray(sheet)[5, 5]


def test_sheets_show_what_the_key_says(study):
    directory, study = study
    assert len(study.trials) == PROMPTS + 6
    sides = []
    for trial in study.trials.values():
        secret = study.key[trial.id]
        number = int(secret.prompt)
        assert trial.caption == f"prompt {number}"
        shown = [pixel(directory, name) for name in trial.sheets]
        for model, colour in zip(secret.models, shown, strict=True):
            assert colour["ab".index(model)] >= 100
        fitting = [colour.max() == 100 + number for colour in shown]
        if secret.control is None:
            assert fitting == [True, True]
            sides.append(secret.models)
        else:
            assert secret.control == {"alignment": ["left", "right"][fitting.index(True)]}
            assert fitting.count(True) == 1
    assert 4 <= sides.count(("a", "b")) <= 16


def shades(chosen):
    """Of each prompt's first image."""
    return [int(np.asarray(chosen.of(row)[0]).max()) for row in range(len(chosen.files))]


def test_a_runs_images_belong_to_its_prompts(images, tmp_path):
    """One image a prompt, of the first prompts, out of a run of more; none of other lists."""
    prompts = read_prompts(str(images / "prompts.csv"))
    assert shades(read_set(images / "a", prompts, 5, 1)) == [100, 101, 102, 103, 104]
    assert shades(read_set(images / "a", prompts, PROMPTS, COPIES))[-1] == 100 + PROMPTS - 1
    others = plain_list("others", prompts.texts)
    with pytest.raises(ValueError, match="not the first 20 of others"):
        read_set(images / "a", others, 5, 1)
    shutil.copytree(images / "a", tmp_path / "a")
    (tmp_path / "a" / "images" / "000003.png").unlink()
    with pytest.raises(ValueError, match="has not ended"):
        read_set(tmp_path / "a", prompts, 5, 1)
    for text, said in (
        ("{", "is not the settings of imagen-jax evaluate"),
        ("[]", "is not the settings of imagen-jax evaluate"),
        ("{}", "num_images = None"),
    ):
        (tmp_path / "a" / "images" / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_set(tmp_path / "a", prompts, 5, 1)


def test_a_folders_images_must_be_as_many_as_the_prompts(tmp_path):
    for i in range(12):
        Image.new("RGB", (8, 8), (100 + i, 0, 0)).save(tmp_path / f"img_{i + 1}.png")
    prompts = plain_list("some", [f"prompt {i}" for i in range(12)])
    assert shades(read_set(tmp_path, prompts, 12, 1)) == list(range(100, 112))
    assert shades(read_set(tmp_path, prompts, 3, 1)) == [100, 101, 102]
    assert shades(read_set(tmp_path, prompts.first(6), 6, 2)) == list(range(100, 112, 2))
    assert not read_set(tmp_path, prompts, 12, 1).named
    for num, each in ((4, 1), (6, 1), (6, 3)):
        with pytest.raises(ValueError, match=f"12 images; {num} prompts with {each} each"):
            read_set(tmp_path, prompts.first(num), num, each)


def test_true_images_of_coco_are_found_by_their_image_ids(tmp_path):
    for i in range(12):
        image = Image.new("RGB", (8, 8), (100 + i, 0, 0))
        image.save(tmp_path / f"COCO_val2014_{7 * i + 1:012d}.png")
    captions = [coco.Caption(50 + row, 7 * i + 1, f"a {i}") for row, i in enumerate((11, 2, 5, 2))]
    write_coco(tmp_path / "coco30k.json", captions, {})
    prompts = read_prompts("coco30k", tmp_path / "coco30k.json")
    found = read_set(tmp_path, prompts, 4, 1)
    assert (shades(found), found.named) == ([111, 102, 105, 102], True)
    assert shades(read_set(tmp_path, prompts, 2, 1)) == [111, 102]
    (tmp_path / "COCO_val2014_000000000036.png").unlink()  # of the third
    with pytest.raises(ValueError, match="11 images; 4 prompts"):
        read_set(tmp_path, prompts, 4, 1)


def test_nothing_that_raters_see_tells_the_models(study, images):
    directory, study = study
    public = (directory / human.TRIALS_FILE).read_text()
    assert set(json.loads(public)["trials"][0]) == {"id", "caption", "sheets"}
    assert str(images) not in public
    sheets = list((directory / "sheets").iterdir())
    assert len({len(sheet.name) for sheet in sheets}) == 1
    with Image.open(sheets[0]) as sheet:
        assert not sheet.info


def test_the_seed_decides_sides_and_order(images, study, tmp_path):
    same = make(images, tmp_path / "s", "--num_images", COPIES, "--controls", 6, "--seed", 3)
    other = make(images, tmp_path / "o", "--num_images", COPIES, "--controls", 6, "--seed", 4)
    assert same.key == study[1].key
    assert [secret.prompt for secret in other.key.values()] != [
        secret.prompt for secret in same.key.values()
    ]


@pytest.fixture
def server(study, tmp_path):
    directory, made = study
    answers = AnswerFile(tmp_path / "answers.jsonl", made)
    with StudyServer(directory, made, answers, 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running.server_address, answers.path
        finally:
            running.shutdown()
            thread.join()


def request(server, method, path, body=None, **headers):
    (address, port), _ = server
    assert address == "127.0.0.1"
    connection = http.client.HTTPConnection(address, port, timeout=20)
    if body is not None:
        headers = {"Content-Type": "application/json"} | headers
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, data


def test_a_rater_answers_all_trials(server, study):
    path = server[1]
    status, page = request(server, "GET", "/")
    assert status == 200
    assert b"/page.js" in page
    assert request(server, "GET", "/page.js")[0] == 200
    trials = json.loads(request(server, "GET", "/trials?rater=ann")[1])["trials"]
    assert {trial["id"] for trial in trials} == set(study[1].trials)
    others = json.loads(request(server, "GET", "/trials?rater=bob")[1])["trials"]
    assert [trial["id"] for trial in others] != [trial["id"] for trial in trials]
    status, sheet = request(server, "GET", f"/sheets/{trials[0]['sheets'][0]}")
    assert status == 200
    assert sheet.startswith(b"\x89PNG")
    for trial in trials[:3]:
        answers = {"quality": "left", "alignment": "neither"}
        body = json.dumps({"rater": "ann", "trial": trial["id"], "answers": answers})
        assert request(server, "POST", "/answers", body)[0] == 200
    left = json.loads(request(server, "GET", "/trials?rater=ann")[1])["trials"]
    assert left == trials[3:]
    assert [a.trial for a in human.read_answers(path, study[1])] == [t["id"] for t in trials[:3]]
    assert request(server, "POST", "/answers", body)[0] == 409


def test_what_the_server_refuses(server, study):
    path, trial = server[1], next(iter(study[1].trials))
    good = {"quality": "left", "alignment": "right"}
    bad = [
        "{",
        "[]",
        "[" * 5000,
        json.dumps({"rater": "ann", "trial": "none", "answers": good}),
        json.dumps({"rater": "ann", "trial": trial, "answers": {"quality": "left"}}),
        json.dumps({"rater": "ann", "trial": trial, "answers": {**good, "quality": "a"}}),
        json.dumps({"rater": "ann", "trial": trial, "answers": {**good, "quality": ["left"]}}),
        json.dumps({"rater": "<b>", "trial": trial, "answers": good}),
        json.dumps({"rater": "ann", "trial": [trial], "answers": good}),
        json.dumps({"rater": "ann", "trial": trial, "answers": good, "more": 1}),
    ]
    for body in bad:
        status, said = request(server, "POST", "/answers", body)
        assert (status, "error" in json.loads(said)) == (400, True), body
    assert request(server, "POST", "/answers", "x" * 10_001)[0] == 413
    body = json.dumps({"rater": "ann", "trial": trial, "answers": good})
    assert request(server, "POST", "/answers", body, **{"Content-Type": "text/plain"})[0] == 415
    assert request(server, "POST", "/answers", body, Origin="http://evil.example")[0] == 403
    assert request(server, "GET", "/", Host="evil.example")[0] == 403
    for path_ in (
        "/key.json",
        "/sheets/../key.json",
        "/sheets/%2e%2e/key.json",
        "/trials?rater=<",
        "//[x",
    ):
        assert request(server, "GET", path_)[0] in (400, 404)
    assert path.read_text() == ""


def answer(study, rater, right_controls=1.0, prefers="a"):
    """A rater who prefers one model throughout and gets this share of the controls right."""
    answers, controls = [], 0
    total = sum(secret.control is not None for secret in study.key.values())
    for trial, secret in study.key.items():
        if secret.control is None:
            side = ("left", "right")[secret.models.index(prefers)] if prefers else "neither"
            answers.append(human.Answer(rater, trial, {"quality": side, "alignment": "neither"}))
            continue
        controls += 1
        right = secret.control["alignment"]
        if controls > right_controls * total:
            right = {"left": "right", "right": "left"}[right]
        answers.append(human.Answer(rater, trial, {"quality": "neither", "alignment": right}))
    return answers


def test_preferences_and_dropped_raters(study):
    study = study[1]
    answers = [
        *answer(study, "ann"),
        *answer(study, "bob", prefers="b"),
        *answer(study, "cid", right_controls=0.84),  # five of six right
        *answer(study, "dan", right_controls=0.7),  # four of six: below the mark
        human.Answer(
            "eve", answer(study, "eve")[0].trial, {"quality": "left", "alignment": "left"}
        ),
    ]
    result = human.analyse(study, answers)
    assert [r for r, score in result["raters"].items() if score["passed"]] == ["ann", "bob", "cid"]
    assert result["answers_kept"] == 3 * PROMPTS
    quality = result["questions"]["quality"]
    assert quality["all"]["a"]["share"] == pytest.approx(2 / 3)
    assert quality["all"]["b"]["share"] == pytest.approx(1 / 3)
    assert quality["categories"]["even"]["answers"] == 3 * PROMPTS // 2
    low, high = quality["all"]["a"]["wilson"]
    assert low < 2 / 3 < high
    # Every prompt has the same answers: drawing prompts anew changes nothing.
    assert quality["all"]["a"]["bootstrap"] == pytest.approx((2 / 3, 2 / 3))
    assert result["questions"]["alignment"]["all"]["neither"]["share"] == 1
    assert "left out: dan, eve" in human.text_table(result)
    with pytest.raises(ValueError, match="No answer is left"):
        human.analyse(study, answer(study, "dan", right_controls=0.5))


def test_categories_of_any_name(study):
    """Those named as the analysis's own entries stay apart from them."""
    secrets = {
        name: replace(secret, category={"even": "all", "odd": "text"}[secret.category])
        for name, secret in study[1].key.items()
    }
    renamed = replace(study[1], key=secrets)
    quality = human.analyse(renamed, answer(renamed, "ann"))["questions"]["quality"]
    assert quality["all"]["answers"] == PROMPTS
    counts = {name: found["answers"] for name, found in quality["categories"].items()}
    assert counts == {"all": PROMPTS // 2, "text": PROMPTS // 2}


def test_an_image_that_cannot_be_read_leaves_no_half_study(images, tmp_path):
    shutil.copytree(images / "a", tmp_path / "a")
    broken = tmp_path / "a" / "images" / "000007.png"
    broken.write_bytes(broken.read_bytes()[:40])
    command = f"sheets --a {tmp_path / 'a'} --b {images / 'b'} --prompts {images / 'prompts.csv'}"
    command += f" --num_images {COPIES} --out {tmp_path / 'out'}"
    with pytest.raises(SystemExit, match=r"000007\.png cannot be read"):
        main(command.split())
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["../key.json", "/etc/passwd", "x.png", ""])
def test_sheets_of_other_names_are_refused(study, tmp_path, name):
    values = json.loads((study[0] / human.TRIALS_FILE).read_text())
    values["trials"][0]["sheets"][0] = name
    (tmp_path / human.TRIALS_FILE).write_text(json.dumps(values))
    shutil.copy(study[0] / human.KEY_FILE, tmp_path)
    with pytest.raises(ValueError, match="is not the name of a sheet"):
        human.read_study(tmp_path)


def test_wilson_is_the_root_of_its_equation():
    """Both ends p solve |share - p| = z sqrt(p (1 - p) / n)."""
    for successes, total in ((0, 5), (3, 10), (10, 10), (120, 400)):
        low, high = human.wilson(successes, total)
        assert 0 <= low <= successes / total <= high + 1e-12 <= 1 + 1e-12
        for end in (low, high):
            if 1e-9 < end < 1 - 1e-9:
                spread = human.Z * np.sqrt(end * (1 - end) / total)
                assert abs(successes / total - end) == pytest.approx(spread, rel=1e-6)


def test_the_bootstrap_covers_the_truth(rng):
    """Of 40 samples of 50 prompts, about 95 % of the intervals hold the true share."""
    covered = 0
    for _ in range(40):
        chosen = rng.choice(3, 50, p=(0.5, 0.2, 0.3)) == 0
        prompts = [str(prompt) for prompt in range(50) for _ in range(4)]
        low, high = human.bootstrap(prompts, chosen.repeat(4))
        covered += low <= 0.5 <= high
    assert covered >= 34


@pytest.mark.parametrize("kind", ["photorealism", "captions"])
def test_the_other_studies(kind, images, tmp_path, capsys):
    out = tmp_path / "study"
    study = make(images, out, "--study", kind, "--num", 10, "--controls", 4, "--name_b", "truth")
    controls = [secret for secret in study.key.values() if secret.control]
    assert len(controls) == 4
    question = next(iter(human.STUDIES[kind]))
    lines = []
    for trial, secret in study.key.items():
        if kind == "captions":
            choice = {"a": "somewhat", "b": "yes"}[secret.models[0]]
        else:
            choice = ("left", "right")[secret.models.index("b")]
        choice = (secret.control or {question: choice})[question]
        lines.append({"rater": "ann", "trial": trial, "answers": {question: choice}})
    (out / "answers.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    main(["analyse", str(out), "--out", str(tmp_path / "result.json")])
    found = json.loads((tmp_path / "result.json").read_text())["questions"][question]["all"]
    if kind == "photorealism":
        assert found["b"]["share"] == 1
    else:
        assert (found["a"]["score"], found["b"]["score"]) == (50, 100)
    assert "truth 100.0" in capsys.readouterr().out


def test_answers_that_were_edited_are_refused(study, tmp_path):
    good = {"quality": "left", "alignment": "right"}
    line = json.dumps({"rater": "ann", "trial": next(iter(study[1].trials)), "answers": good})
    for text, said in (
        (f"{line}\n{line}\n", "line 2: ann has answered"),
        (f"{line}\n{line[:30]}\n", "line 2: "),
        ("[" * 5000 + "\n", "line 1: "),
        ('{"rater": "ann"}\n', "line 1: An answer must be"),
    ):
        (tmp_path / "answers.jsonl").write_text(text)
        with pytest.raises(ValueError, match=said):
            human.read_answers(tmp_path / "answers.jsonl", study[1])


def test_what_cannot_be_a_study_is_refused(images, study, tmp_path):
    with pytest.raises(SystemExit, match="num_images = 2; 8 images a prompt are needed"):
        make(images, tmp_path / "x")
    with pytest.raises(SystemExit, match="is not empty"):
        make(images, study[0], "--num_images", COPIES)
    with pytest.raises(SystemExit, match="shows one image"):
        make(images, tmp_path / "x", "--study", "captions", "--num_images", 2)
    with pytest.raises(SystemExit, match="0 controls of 20 prompts cannot be made"):
        make(images, tmp_path / "x", "--num_images", COPIES, "--controls", 0)
    with pytest.raises(SystemExit, match="num_images must be a whole number, at least 1: 0"):
        make(images, tmp_path / "x", "--num_images", 0)
    with pytest.raises(SystemExit, match=r"no file .*answers\.jsonl of answers"):
        main(["analyse", str(study[0])])
    with pytest.raises(ValueError, match="no answers yet"):
        human.analyse(study[1], [])
    plain = {name: replace(secret, control=None) for name, secret in study[1].key.items()}
    with pytest.raises(ValueError, match="has no controls"):
        human.analyse(replace(study[1], key=plain), answer(study[1], "ann"))
    with pytest.raises(SystemExit, match=r"human_eval sheets makes"):
        main(["analyse", str(tmp_path)])
    (tmp_path / human.TRIALS_FILE).write_text('{"kind": "drawbench", "trials": []}')
    (tmp_path / human.KEY_FILE).write_text('{"key": {"x": 1}}')
    with pytest.raises(SystemExit, match="cannot be read"):
        main(["analyse", str(tmp_path)])
