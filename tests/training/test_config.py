"""Every key of a config is checked, and a wrong one is named with the nearest right one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_cascade import BASE_SETTINGS, ENCODER

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import Stage
from imagen_jax.devices.sharding import make_mesh
from imagen_jax.diffusion.schedules import DiscreteBeta, LinearBeta
from imagen_jax.models import UNetConfig, UNetLevel
from imagen_jax.storage.codec import to_dict
from imagen_jax.text import encoder as text
from imagen_jax.training import batches, build, inherit
from imagen_jax.training.config import (
    CONFIGS,
    apply_overrides,
    config_names,
    load_config,
    split_overrides,
)
from imagen_jax.training.run_config import read_config

IF_LIKE = Stage(
    "if",
    8,
    UNetConfig((UNetLevel(8, 1, "self"),), out_channels=6, head_channels=8, pooling_heads=1),
    text_width=8,
    schedule=DiscreteBeta(),
)
IF_CASCADE = Cascade((IF_LIKE,), (BASE_SETTINGS,), ENCODER)
TINY = Path(__file__).parent / "tiny_config.py"


def tiny(**overrides):
    config = load_config(TINY)
    apply_overrides(config, {key.replace("__", "."): value for key, value in overrides.items()})
    return config


def test_a_config_becomes_typed():
    config = read_config(tiny())
    assert config.stage.network.levels[1].channels == 16
    assert config.stage.network.levels[0].attention is None
    assert config.text.encoder.d_model == 8
    assert config.mesh.data is None
    assert hash(config.stage) == hash(read_config(tiny()).stage)


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("optimizer.learning_rate", "3e-4", lambda c: c.optimizer.learning_rate == 3e-4),
        ("num_steps", "1e3", lambda c: c.num_steps == 1000),
        ("mesh.data", "4", lambda c: c.mesh.data == 4),
        ("ema_decay", "None", lambda c: c.ema_decay is None),
        ("stage.network.levels.1.channels", "24", lambda c: _channels(c) == (8, 24)),
        ("stage.network.levels[0].channels", "24", lambda c: _channels(c) == (24, 16)),
        ("data.flip", "true", lambda c: c.data.flip is True),
        ("init_from", "runs/base", lambda c: c.init_from == "runs/base"),
        ("stage.schedule.kind", "linear_beta", lambda c: c.stage.schedule == LinearBeta()),
        ("ema", "{}", lambda c: (c.ema.widths, c.ema.interval(6400)) == ((0.05, 0.1), 200)),
        ("ema", "{'every': 7}", lambda c: c.ema.interval(6400) == 7),
        ("sample", "{'steps': 7, 'prompts': ['a', 'b']}", lambda c: c.sample.sampling.steps == 7),
    ],
)
def test_any_key_can_be_set_from_the_command_line(key, value, got):
    assert got(read_config(tiny(**{key: value})))


def _channels(config):
    return tuple(level.channels for level in config.stage.network.levels)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batchsize", "4", "unknown key 'config.batchsize'; did you mean 'batch_size'"),
        ("optimizer.lerning_rate", "1", "optimizer.lerning_rate'; did you mean 'learning_rate'"),
        ("optimiser.learning_rate", "1", "not a section of the config; did you mean 'optimizer'"),
        ("stage.network.levels.0.chanels", "1", "levels.0.chanels'; did you mean 'channels'"),
        ("stage.network.levels.5.channels", "1", "not a section"),
        ("stage.network.kind", "efficientunet", "did you mean 'efficient_unet'"),
        ("stage.loss.weight", "mse", "mse"),
        ("data.source", "fodler", "did you mean 'folder'"),
        ("data.data_dirs", "x", "config.data: unknown key 'data_dirs' for source 'npz'"),
        ("text.encoder.dmodel", "8", "did you mean 'd_model'"),
        ("optimizer.kind", "adamm", "adamm"),
        ("batch_size", "many", "'config.batch_size' is 'many'; it must be of type int"),
        ("batch_size", "2.5", "must be of type int"),
        ("batch_size", "100000000", "batch_size must be 1,048,576 or less: 100,000,000"),
        ("data.flip", "3", "must be of type bool"),
        ("sample", "{'stesp': 7}", "did you mean 'steps'"),
        ("text", "None", "no section 'text'"),
        ("text.dropout", "3", "text.dropout must be in [0, 1], not 3"),
        ("ema_decay", "2", "ema_decay must be in [0, 1) or None, not 2"),
        ("optimizer.decay_steps", "5", "num_steps 12 goes past optimizer.decay_steps 5"),
        ("checkpoint.keep", "0", "config.checkpoint: keep must be 1 or more, not 0"),
        (
            "data.path",
            "2024",
            """type str; on a command line, quote it twice: '"2024"\'""",
        ),
        ("data.path", "True", "type str"),
        ("sample", "{'steps': 'x'}", "'config.sample.steps' is 'x'"),
        ("sample", "{'sampler': 'eular'}", "config.sample: Unknown sampler 'eular'"),
        ("sample", "{'steps': 0}", "config.sample: steps must be"),
        ("ema", "{'widht': [0.05]}", "'config.ema.widht'; did you mean 'widths'"),
        ("ema", "{'widths': [0.1, 0.4]}", "config.ema: a relative width must be above 0 and below"),
        ("ema", "{'widths': [0.1, 0.1]}", "config.ema: ema.widths has one twice: 0.1, 0.1"),
        ("ema", "{'widths': []}", "config.ema: ema.widths is empty"),
        ("ema", "{'every': 0}", "config.ema: ema.every must be 1 or more"),
        ("ema", "{'dtype': 'int8'}", "'config.ema.dtype' is 'int8'"),
    ],
)
def test_a_wrong_key_or_value_is_named(key, value, message):
    with pytest.raises(ValueError, match=r"(?s).*") as caught:
        read_config(tiny(**{key: value}))
    assert message in str(caught.value)
    assert "sampling'" not in str(caught.value)
    assert "''" not in str(caught.value)


def test_a_number_quoted_twice_is_a_string():
    assert read_config(tiny(data__path='"2024"')).data.path == "2024"


def test_a_missing_key_is_named():
    config = tiny()
    del config["num_steps"]
    with pytest.raises(ValueError, match=r"'config\.num_steps', which is needed"):
        read_config(config)


def test_options_of_a_source_go_to_its_reader():
    config = read_config(tiny(data__source="folder", data__max_pixels="1000"))
    assert config.data.options == {"max_pixels": 1000}


def test_a_config_goes_through_json():
    raw = to_dict(tiny())
    assert read_config(json.loads(json.dumps(raw))) == read_config(tiny())


def test_overrides_are_split_from_the_command_line():
    arguments = ["train.py", "--config=a.py", "--config.a.b=1", "--config.c", "2", "--workdir", "w"]
    rest, overrides = split_overrides(arguments)
    assert rest == ["train.py", "--config=a.py", "--workdir", "w"]
    assert overrides == {"a.b": "1", "c": "2"}
    with pytest.raises(ValueError, match=r"--config\.a"):
        split_overrides(["--config.a"])


def test_a_config_file_that_is_not_there_names_those_that_are(tmp_path):
    (tmp_path / "base.py").write_text("")
    with pytest.raises(ValueError, match=r"base\.py"):
        load_config(tmp_path / "bse.py")
    with pytest.raises(ValueError, match="get_config"):
        load_config(tmp_path / "base.py")
    (tmp_path / "config.json").touch()  # as a workdir has one
    with pytest.raises(ValueError, match=r"config\.json is no config: .* Python file"):
        load_config(tmp_path / "config.json")


def test_a_config_is_found_by_its_name_and_a_file_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("icons_sr256_cpu").stage.crop == 128
    for wrong, said in (
        ("icons_sr256_cp", "did you mean 'icons_sr256_cpu'"),
        ("configs/icons_sr256_cpu.py", "--config icons_sr256_cpu"),
        ("zzz", "folder_64"),
        ("", "folder_64"),
    ):
        with pytest.raises(ValueError, match=f"^there is no config file .*{re.escape(said)}"):
            load_config(wrong)
    (tmp_path / "icons_sr256_cpu").write_text("")  # no Python file: as it is named
    with pytest.raises(ValueError, match="is no config"):
        load_config("icons_sr256_cpu")


def test_a_config_imports_its_neighbours_whatever_folder_was_read_before(tmp_path):
    text = "def get_config():\n    return {'of': %r}\n"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "first.py").write_text(text % folder)
        (tmp_path / folder / "my-second.py").write_text("from .first import get_config\n")
    assert [load_config(tmp_path / x / "my-second.py").of for x in "aba"] == ["a", "b", "a"]
    (tmp_path / "a" / "first.py").write_text(text % "a, edited")
    assert load_config(tmp_path / "a" / "my-second.py").of == "a, edited"


def test_a_config_of_ones_own_builds_on_one_of_the_package(tmp_path):
    own = "from . import folder_64\n\n\ndef get_config():\n    config = folder_64.get_config()\n"
    (tmp_path / "own.py").write_text(own + "    config.batch_size = 3\n    return config\n")
    own = to_dict(load_config(tmp_path / "own.py"))
    assert own == to_dict(load_config("folder_64")) | {"batch_size": 3}
    copied = (CONFIGS / "icons_sr256.py").read_text()
    (tmp_path / "copied.py").write_text(copied)
    assert load_config(tmp_path / "copied.py") == load_config("icons_sr256")


def test_every_config_of_the_repository_is_valid(repository):
    names = config_names()
    assert names == sorted(path.stem for path in (repository / "configs").glob("*.py"))
    for name in names:
        config = load_config(name)
        if inherit.is_open(config):
            config = to_dict(config) | {"init_from": "somewhere"}
        config = inherit.completed(config, lambda source: IF_CASCADE)
        assert read_config(config).stage.name


def test_a_plain_unet_is_chosen_by_its_kind():
    levels = [{"channels": 8}, {"channels": 16}]
    network = {"kind": "unet", "levels": levels, "pooling_heads": 4}
    config = read_config(tiny(stage__network=repr(network)))
    assert isinstance(config.stage.network, UNetConfig)


def test_a_frozen_encoder_needs_weights():
    config = read_config(tiny(text__trainable="False"))
    mesh = make_mesh(config.mesh)
    with pytest.raises(ValueError, match=r"text\.init_from"):
        build.make_training(config, build.make_text_encoder(config), mesh)


def test_the_loader_follows_the_config(tmp_path):
    path = tmp_path / "set.npz"
    images = np.zeros((20, 8, 8, 3), np.uint8)
    np.savez(path, image=images, captions=np.asarray([f"image {i}" for i in range(20)]))
    config = read_config(tiny(data__path=str(path)))
    loader = batches.make_loader(config, build.make_text_encoder(config))
    batch = next(loader.batches(5))
    shapes = batches.abstract_batch(config)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        name: (value.shape, value.dtype) for name, value in shapes.items()
    }


def labelled(path, labels) -> str:
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    np.savez(path, image=images, label=np.asarray(labels))
    return str(path)


def test_labels_without_a_class_are_refused(tmp_path):
    raw = tiny(
        stage__conditioning="label",
        stage__network__num_classes="3",
        data__path=repr(labelled(tmp_path / "set.npz", [0, 2, 3])),
        data__split="all",
    )
    config = read_config(raw)
    with pytest.raises(ValueError, match=r"from 0 to 3, but stage.network.num_classes is 3"):
        batches.make_loader(config, None)


def test_cut_captions_are_counted_once(caplog):
    tokenize = batches.Tokenizer(ENCODER)  # 12 tokens, bytes
    for _ in range(130):
        ids, mask = tokenize(["short"] * 7 + ["far too long a caption"])
    assert ids.shape == mask.shape == (8, 12)
    assert [record.getMessage() for record in caplog.records] == [
        "Cut to 11 tokens: 125 of 1000 prompts (12.5%), the first 'far too long a caption' of 22. "
        "See text.max_length."
    ]


@pytest.mark.parametrize("kept", [0, 2**23])
def test_captions_seen_before_have_the_same_tokens(kept, monkeypatch, rng):
    monkeypatch.setattr(batches.Tokenizer, "KEPT_TOKENS", kept)
    tokenize, calls = batches.Tokenizer(ENCODER), []
    plain = text.tokenize
    monkeypatch.setattr(text, "tokenize", lambda *args: calls.append(args[1]) or plain(*args))
    for _ in range(60):
        captions = ["".join(rng.choice(list("ab红"), rng.integers(1, 4))) for _ in range(40)]
        for found, wanted in zip(tokenize(captions), plain(ENCODER, captions), strict=True):
            np.testing.assert_array_equal(found, wanted)
            assert found.dtype == wanted.dtype
    later = [caption for call in calls[25:] for caption in call]
    assert (len(later) == len(set(later))) == (kept > 0)


def test_a_batch_must_split_into_its_parts():
    config = read_config(tiny(optimizer__accumulation="3"))
    encoder = build.make_text_encoder(config)
    with pytest.raises(ValueError, match=r"does not divide by optimizer.accumulation 3"):
        build.make_training(config, encoder, make_mesh(config.mesh))
