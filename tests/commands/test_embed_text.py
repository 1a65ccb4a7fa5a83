"""scripts/embed_text.py: the same shards however often it is killed; training reads them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import jax
import ml_dtypes
import numpy as np
import pytest
from devices.test_hosts import ENVIRONMENT, finish, start
from training.test_config import tiny

from imagen_jax.commands import embed_text, train
from imagen_jax.data.embeddings import check_fingerprint
from imagen_jax.devices.sharding import make_mesh
from imagen_jax.models import t5
from imagen_jax.pipeline.encoder_files import text_fingerprint, write_encoder
from imagen_jax.text.encoder import encode_tokens
from imagen_jax.training import batches, build, step
from imagen_jax.training.config import apply_overrides
from imagen_jax.training.run_config import read_config
from imagen_jax.training.state import Frozen
from tests.commands.in_process import call

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 10


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> dict[str, str]:
    """Config keys of a run with a frozen encoder, and their values."""
    place = tmp_path_factory.mktemp("setting")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    captions = np.asarray([f"no {i}" if i % 7 else "a long one" for i in range(40)])
    np.savez(place / "set.npz", image=images, captions=captions)
    encoder = build.make_text_encoder(read_config(tiny()))
    write_encoder(place / "encoder", encoder.config, t5.init(encoder.config, jax.random.key(1)))
    return {
        "data.path": str(place / "set.npz"),
        "data.split": "all",
        "text.trainable": "False",
        "text.init_from": str(place / "encoder"),
    }


def command(setting: dict[str, str], out: Path) -> list[str]:
    return [
        str(ROOT / "scripts" / "embed_text.py"),
        f"--config={ROOT / 'tests' / 'training' / 'tiny_config.py'}",
        f"--out={out}",
        "--shard_size=4",
        "--batch_size=3",
        *(f"--config.{key}={value}" for key, value in setting.items()),
    ]


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("embeddings-*")}


@pytest.fixture(scope="module")
def whole(setting, tmp_path_factory) -> Path:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole")
    run = [sys.executable, *command(setting, out)]
    subprocess.run(run, check=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    assert len(shards(out)) == SHARDS
    return out


def test_five_kills_leave_the_same_bytes(setting, whole, tmp_path):
    for _ in range(5):
        before = len(shards(tmp_path))
        process = subprocess.Popen(
            [sys.executable, *command(setting, tmp_path)], cwd=ROOT, env=ENVIRONMENT
        )
        while process.poll() is None and len(shards(tmp_path)) == before:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL)
    (tmp_path / f".{min(shards(whole))}.half").write_bytes(b"half a shard")
    min(tmp_path.glob("embeddings-*")).unlink()
    run = [sys.executable, *command(setting, tmp_path)]
    subprocess.run(run, check=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    assert shards(tmp_path) == shards(whole)
    assert not list(tmp_path.glob(".*"))


def test_two_hosts_share_the_work(setting, whole, tmp_path):
    flags = ("--coordinator_address", "--num_processes", "--process_id")
    said = finish(start(command(setting, tmp_path), 2, flags))
    assert [text.count("wrote") for text in said] == [5, 5]
    assert shards(tmp_path) == shards(whole)


def test_captions_that_are_cut_are_told_once(setting, tmp_path):
    ended, said = call(embed_text, *command(setting, tmp_path)[1:], "--config.text.max_length=6")
    assert not ended
    told = "Warning: Cut to 5 tokens: 6 of 40 prompts (15.0%), the first 'a long one' of 10."
    assert said.count("Warning") == said.count(told) == 1


def read(setting: dict[str, str], **overrides: str):
    raw = tiny()
    apply_overrides(raw, {**setting, **{k.replace("__", "."): v for k, v in overrides.items()}})
    config = read_config(raw)
    return config, build.make_text_encoder(config)


def test_a_batch_holds_what_the_encoder_gives(setting, whole):
    config, encoder = read(setting, data__embeddings=str(whole))
    check_fingerprint(whole, text_fingerprint(encoder, config.text.init_from))
    batch = batches.make_loader(config, encoder).batch(3)
    plain = batches.make_loader(*read(setting)).batch(3)
    params = t5.init(encoder.config, jax.random.key(1))
    expected = encode_tokens(encoder.config, params, plain["ids"], plain["mask"]).values
    np.testing.assert_array_equal(batch["mask"], plain["mask"])
    np.testing.assert_allclose(
        batch["text"].astype(np.float32),
        np.asarray(expected.astype(ml_dtypes.bfloat16), np.float32),
        rtol=2**-7,  # the other batch size may round a number the other way
        atol=1e-6,
    )
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        name: (value.shape, value.dtype) for name, value in batches.abstract_batch(config).items()
    }


def test_a_step_needs_no_encoder(setting, whole):
    losses = []
    for overrides in ({"data__embeddings": str(whole)}, {}):
        config, encoder = read(setting, **overrides)
        _, init, shapes = build.make_training(config, encoder, make_mesh(config.mesh))
        assert (shapes == Frozen()) == bool(overrides)
        frozen = Frozen()
        if not overrides:
            frozen = Frozen(text_encoder=t5.init(encoder.config, jax.random.key(1)))
        params = init(jax.random.key(0)).params
        assert set(params) == {"network"}
        batch = batches.make_loader(config, encoder).batch(0)
        random = step.random_inputs(
            config.stage, jax.random.key(2), batch["image"].shape, 0.1, None
        )
        compute = jax.jit(step.make_losses(config.stage, encoder))
        losses.append(compute(params, batch, random, frozen))
    np.testing.assert_allclose(*losses, rtol=1e-3)


def fails(module: ModuleType, run: list[str]) -> str:
    error, _ = call(module, *run[1:])
    assert isinstance(error, str)
    return error


def test_another_tokenizer_is_refused(setting, whole, repository, tmp_path):
    """By training, and by who would go on embedding."""
    spiece = repository / "imagen_jax" / "pretrained" / "icons" / "spiece.model"
    size = {"text.encoder.vocab_size": "9000", "text.tokenizer": str(spiece)}
    changed = {**setting, **size}
    said = fails(embed_text, command(changed, whole))
    assert "made differently" in said
    assert "tokenizer 'bytes, 3 special' there, 'sentencepiece " in said
    again = [str(ROOT / "scripts" / "train.py"), *command(changed, tmp_path)[1:2]]
    keys = {**changed, "data.embeddings": str(whole)}
    again += [f"--config.{key}={value}" for key, value in keys.items()]
    assert "tokenizer 'bytes, 3 special' there" in fails(
        train, [*again, f"--workdir={tmp_path / 'run'}"]
    )
    assert not (tmp_path / "run").exists()


def test_other_weights_are_refused(setting, whole, tmp_path):
    config, encoder = read(setting)
    write_encoder(tmp_path / "other", encoder.config, t5.init(encoder.config, jax.random.key(2)))
    with pytest.raises(ValueError, match=r"weights '.*' there, '.*' here"):
        check_fingerprint(whole, text_fingerprint(encoder, tmp_path / "other"))
    assert os.path.isdir(config.text.init_from)
