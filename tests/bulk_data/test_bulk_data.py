"""imagen-jax dataset: which images, their shards, kills, full disks, and that train reads them."""

import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import tiny_pipeline

from imagen_jax import data
from imagen_jax.bulk_data.examples import Examples, Row, follows, read_examples, shards
from imagen_jax.commands import dataset, train
from imagen_jax.data.records import array_records, parse_example
from imagen_jax.evaluation import inputs
from imagen_jax.images.image_file import read_settings
from imagen_jax.pipeline.loading import load_model
from imagen_jax.training.batches import make_source
from imagen_jax.training.run_config import read_config
from imagen_jax.training.start import read_raw
from tests.commands.in_process import call

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ROOT / "tests" / "training" / "tiny_config.py"
WORDS = ("red", "green", "small", "large", "cat", "heart", "rocket", "apple")
FORMATS = ("tar", "array_record")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tiny_pipeline().save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(inputs, "all_devices", lambda: None)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Thirty lines, of which two are there twice."""
    rng = np.random.default_rng()
    lines = [f"{' '.join(rng.choice(WORDS, 2))} {number}" for number in range(28)]
    path = tmp_path_factory.mktemp("lists") / "prompts.txt"
    path.write_text("\n".join([*lines, lines[3], lines[0]]) + "\n")
    return path


def options(model: Path, prompts: Path, out: Path, *more: str) -> list[str]:
    """Of 56 images in shards of ten."""
    given = {"model": model, "prompts": prompts, "out": out, "num_images": 2, "shard_size": 10}
    few = ("--batch_size=4", "--size=4")
    return [*(f"--{name}={value}" for name, value in given.items()), *few, *more]


def make(*arguments: str) -> str:
    end, said = call(dataset, *arguments)
    assert end is None, end
    return said


def digests(folder: Path) -> dict[str, str]:
    """Of all files of a data set; half-written ones are none of it."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------- which images


def test_batches_have_every_image_once(rng):
    for _ in range(30):
        seeds = [None, None, 3, 4]
        rows = tuple(
            Row(f"{i}", seeds[rng.integers(4)], [None, "dull"][rng.integers(2)])
            for i in range(rng.integers(1, 9))
        )
        examples = Examples(rows, int(rng.integers(1, 6)), 7)
        size, found = int(rng.integers(1, 5)), []
        for numbers in shards(len(examples), int(rng.integers(1, 12))):
            for batch in examples.batches(numbers, size):
                assert 1 <= len(batch) <= size
                assert all(follows(one, other) for one, other in zip(batch, batch[1:]))  # noqa: B905, RUF007
                found += batch
        assert [example.number for example in found] == list(range(len(examples)))
        noise = {(e.row, e.seed, e.index) for e in found}
        assert len(noise) == len(examples)


def test_prompts_with_the_same_seed_count_once(tmp_path):
    path = tmp_path / "list.jsonl"
    lines = [
        {"prompt": "a", "seed": 1},
        {"prompt": "a"},
        {"prompt": "a", "seed": 0},  # the run's
        {"prompt": "a", "seed": "1"},
        {"caption": "a", "seed": 1, "negative_prompt": "b"},
        {"prompt": "b", "negative_prompt": " "},
    ]
    lines[4]["prompt"] = lines[4].pop("caption")
    path.write_text("\n".join(map(json.dumps, lines)))
    examples = read_examples(str(path), None, 3, 0, None)
    assert examples.rows == (Row("a", 1), Row("a"), Row("a", 1, "b"), Row("b"))
    assert examples.duplicates == 2
    # A seed of one's own counts the images of its row, the run's those of the data set.
    assert [(e.seed, e.index) for e in map(examples.__getitem__, range(5))] == [
        *((1, 0), (1, 1), (1, 2)),
        *((0, 3), (0, 4)),
    ]
    path.write_text('{"prompt": "a", "seed": -1}')
    with pytest.raises(ValueError, match="the seed of 'a' is '-1'"):
        read_examples(str(path), None, 1, 0, None)


def test_images_are_those_of_generate(model, tmp_path):
    """Of the same seed, index and negative prompt, to a step of 8 bits."""
    path = tmp_path / "list.csv"
    path.write_text("prompt,seed,negative_prompt\ncat,,\nred heart,5,green\napple,,dull\n")
    make(*options(model, path, tmp_path / "out"))
    source = data.read_tar(tmp_path / "out", index_dir=tmp_path / "index")
    pipeline = load_model(model)

    def expected(prompt: str, seed: int, first: int, negative: str | None) -> list[np.ndarray]:
        images = pipeline.generate_images(
            prompt, 2, 4, seed=seed, first_index=first, negative_prompt=negative, batch_size=4,
            progress=False,
        )  # fmt: skip
        return list(map(np.asarray, images))

    wanted = expected("cat", 0, 0, None) + expected("red heart", 5, 0, "green")
    wanted += expected("apple", 0, 4, "dull")
    assert len(source) == 6
    for number, image in enumerate(wanted):
        found = np.asarray(source[number]["image"], int)
        assert np.abs(found - image).max() <= 1
        assert source[number]["captions"][0][0] == ("cat", "red heart", "apple")[number // 2]


@pytest.mark.parametrize("form", FORMATS)
def test_train_reads_both_formats_with_settings(form, model, prompts, tmp_path):
    said = make(*options(model, prompts, tmp_path / "out", f"--format={form}", "--num=12"))
    assert "24 images of 12 prompts, 3 shards; 24 images to be made here" in said
    folder, pipeline = tmp_path / "out", load_model(model)
    if form == "tar":
        with tarfile.open(folder / "00001.tar") as tar:
            assert all((m.mtime, m.uid, m.gid, m.uname) == (0, 0, 0, "") for m in tar)
            tar.extract("000000013.png", tmp_path, filter="data")
            settings = json.load(tar.extractfile("000000013.json"))
    else:
        found = parse_example(array_records(str(folder / "00001.array_record"))[3])
        (tmp_path / "000000013.png").write_bytes(found["image"][0])
        settings = json.loads(found["settings"][0])
    kept = read_settings(tmp_path / "000000013.png")
    assert settings == kept | {"width": 4, "height": 4}
    assert settings["prompt"] == prompts.read_text().splitlines()[6]
    again = np.asarray(pipeline.generate_again(kept, progress=False)[0], int)
    with Image.open(tmp_path / "000000013.png") as image:
        assert np.abs(np.asarray(image, int) - again).max() <= 1
    given = {"source": form, "path": str(folder), "index_dir": str(tmp_path / "index")}
    overrides = {f"data.{key}": value for key, value in given.items()} | {"data.split": "all"}
    source = make_source(read_config(read_raw(TRAINED, overrides)))
    assert len(source) == 24
    assert source[13]["captions"] == [(settings["prompt"], 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_a_model_is_trained_on_a_data_set(form, model, prompts, tmp_path):
    make(*options(model, prompts, tmp_path / "out", f"--format={form}"))
    keys = [f"--config.data.source={form}", f"--config.data.path={tmp_path / 'out'}"]
    end, said = call(train, f"--config={TRAINED}", f"--workdir={tmp_path / 'run'}", *keys)
    assert end is None
    assert "step 12/12" in said


@pytest.mark.slow
def test_the_hosts_of_a_run_make_what_one_process_makes(model, prompts, tmp_path):
    make(*options(model, prompts, tmp_path / "one"))
    arguments = options(model, prompts, tmp_path / "two", f"--coordinator_address={free_address()}")
    hosts = [start([*arguments, "--num_processes=2", f"--process_id={i}"]) for i in range(2)]
    assert [host.wait() for host in hosts] == [0, 0]
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def free_address() -> str:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return f"localhost:{listening.getsockname()[1]}"


# -------------------------------------------------------------------------------- the folder


def test_shares_make_what_one_process_makes(model, prompts, tmp_path):
    make(*options(model, prompts, tmp_path / "one"))
    make(*options(model, prompts, tmp_path / "two", "--share=2/2"))
    assert not (tmp_path / "two" / "00000.tar").exists()
    make(*options(model, prompts, tmp_path / "two", "--share=1/2"))
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert len(digests(tmp_path / "one")) == 7
    # The list's name and a line more that repeats another decide nothing.
    again = tmp_path / "again.txt"
    again.write_text(prompts.read_text() + prompts.read_text().splitlines()[0])
    assert "; 0 images to be made here" in make(*options(model, again, tmp_path / "two"))


def test_other_settings_and_other_files_are_refused(model, prompts, tmp_path):
    make(*options(model, prompts, tmp_path / "out", "--num=3"))
    before = digests(tmp_path / "out")
    for more, difference in (
        (["--num=3", "--seed=4"], "settings.seed = 0, not 4"),
        (["--num=3", "--steps=2"], "settings.sampling.base.steps = 4, not 2"),
        (["--num=4"], "examples = 6, not 8"),
        (["--num=3", "--format=array_record"], "format = 'tar', not 'array_record'"),
    ):
        end, _ = call(dataset, *options(model, prompts, tmp_path / "out", *more))
        assert difference in end
        assert "\n" not in end
    assert digests(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    end, _ = call(dataset, *options(model, prompts, tmp_path / "other"))
    assert "holds no data set of this command, but notes.txt" in end


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format=zip"], "--format is 'zip'; it must be one of tar, array_record"),
        (["--share=3/2"], "--share is '3/2'"),
        (["--steps=0"], "steps"),
        (["--size=9"], "No stage of"),
        (["--prompts=/nowhere.txt"], "There is no file /nowhere.txt"),
    ],
)
def test_a_mistake_is_one_line(more, message, model, prompts, tmp_path):
    end, _ = call(dataset, *options(model, prompts, tmp_path / "out", *more))
    assert message in end
    assert "\n" not in end
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_one_line_and_loses_nothing(form, model, prompts, tmp_path):
    """Files may grow to less than a shard; those before were made with room."""
    arguments = options(model, prompts, tmp_path / "out", f"--format={form}")
    make(*arguments, "--share=1/6")
    before = digests(tmp_path / "out")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
    try:
        end, _ = call(dataset, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert f"00001.{form}: File too large" in end
    assert "\n" not in end
    assert digests(tmp_path / "out") == before
    assert not list((tmp_path / "out").glob(".*"))


# ------------------------------------------------------------------------------------- kills


def start(arguments: list[str]) -> subprocess.Popen:
    """The command in a process of its own, whose images are to equal those of this one."""
    more = {"PYTHONPATH": str(ROOT), "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "dataset.py"), *arguments],
        env=os.environ | more,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def check_kills(arguments: list[str], whole: Path, out: Path, kills: int) -> None:
    """Kills a run at random moments, each after one more shard, and ends it."""
    rng, count = random.Random(), len(digests(whole)) - 1
    killed = 0
    for done in sorted(rng.choices(range(count), k=kills)):
        process = start(arguments)
        while process.poll() is None:
            if len(list(out.glob("0*"))) >= done and list(out.glob(".0*.half")):
                time.sleep(rng.uniform(0, 0.02))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        killed += process.wait() == -signal.SIGKILL
    assert killed == kills
    make(*arguments)
    assert digests(out) == digests(whole)
    assert not list(out.glob(".*"))


def test_a_run_that_was_killed_ends_as_an_uninterrupted_one(model, prompts, tmp_path):
    make(*options(model, prompts, tmp_path / "whole"))
    arguments = options(model, prompts, tmp_path / "killed")
    check_kills(arguments, tmp_path / "whole", tmp_path / "killed", kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_a_run_that_was_killed_ten_times_ends_the_same(form, model, prompts, tmp_path):
    more = [f"--format={form}", "--shard_size=4"]
    make(*options(model, prompts, tmp_path / "whole", *more))
    arguments = options(model, prompts, tmp_path / "killed", *more)
    check_kills(arguments, tmp_path / "whole", tmp_path / "killed", kills=10)


# --------------------------------------------------------------------------------- moderation


def test_moderation_flags_in_the_settings_and_refuses_a_list(model, tmp_path):
    file, lines = tmp_path / "moderation.json", tmp_path / "prompts.txt"
    lines.write_text("red heart\ngreen apple\n")
    (tmp_path / "words.txt").write_text("apple\n")
    file.write_text(json.dumps({"prompts": {"list": "words.txt"}}))
    given = options(model, lines, tmp_path / "flagged", f"--moderation={file}")
    make(*given)
    with tarfile.open(tmp_path / "flagged" / "00000.tar") as tar:
        settings = [json.load(tar.extractfile(name)) for name in tar.getnames() if "json" in name]
    found = [entry["moderation"]["prompt"]["found"] for entry in settings]
    assert found == [[], [], ["apple"], ["apple"]]
    file.write_text(json.dumps({"prompts": {"list": "words.txt", "action": "blank"}}))
    assert "moderation = " in call(dataset, *given)[0]
    file.write_text(json.dumps({"prompts": {"list": "words.txt", "action": "refuse"}}))
    given = options(model, lines, tmp_path / "refused", f"--moderation={file}")
    assert "'green apple' is refused" in call(dataset, *given)[0]
    assert not (tmp_path / "refused").exists()
