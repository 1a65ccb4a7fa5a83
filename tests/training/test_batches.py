"""The config's section `data`: shards, mixtures, crops and buckets, down to the train step."""

import itertools

import jax
import numpy as np
import pytest

from imagen_jax.data import MixtureSource
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.training import batches, build
from imagen_jax.training.run_config import read_config
from tests.data.shard_files import write_tar
from tests.training import toy
from tests.training.test_config import tiny


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """32 images of 20x12 to 51x12 in two tars, with captions."""
    folder = tmp_path_factory.mktemp("shards")
    write_tar(folder / "00000.tar", range(20))
    write_tar(folder / "00001.tar", range(20, 32))
    return f"{folder}/{{00000..00001}}.tar"


def settings(shards, **more):
    data = {"source": "tar", "path": shards, "split": "all", "num_threads": 1}
    return tiny(data=repr({**data, **more}))


def loader_of(raw):
    config = read_config(raw)
    return config, batches.make_loader(config, build.make_text_encoder(config))


def shapes(batch):
    return {name: (value.shape, value.dtype) for name, value in batch.items()}


def test_options_of_a_sharded_source_go_to_its_reader(shards, tmp_path):
    filters = {"min_size": 8, "scores": {"rank": [0.5, 9]}}
    options = {"filters": filters, "text": "json.caption", "index_dir": str(tmp_path)}
    config, loader = loader_of(settings(shards, **options))
    assert config.data.options == options
    assert len(loader.source) == 27
    assert shapes(loader.batch(2)) == shapes(batches.abstract_batch(config))
    with pytest.raises(
        ValueError,
        match=r"config\.data: unknown key 'filter' for source 'tar'; did you mean 'filters'",
    ):
        read_config(settings(shards, filter={}))


def test_a_mixture_is_made_of_named_sets(shards):
    sets = {
        "a": {"source": "tar", "path": shards, "split": "all", "rate": 3},
        "b": {"source": "tar", "path": shards, "split": "all", "text": "json.caption"},
    }
    raw = tiny(data=repr({"source": "mixture", "sets": sets}))
    config, loader = loader_of(raw)
    assert isinstance(loader.source, MixtureSource)
    assert [part.rate for part in config.data.sets.values()] == [3.0, 1.0]
    assert config.data.sets["b"].options == {"text": "json.caption"}
    drawn = [loader.order[number] // 32 for number in range(80)]
    assert np.bincount(drawn).tolist() == [60, 20]
    assert shapes(loader.batch(0)) == shapes(batches.abstract_batch(config))
    for wrong, match in [
        ({"source": "mixture"}, "needs them"),
        ({"source": "tar", "path": shards, "sets": sets}, "what source 'mixture' mixes"),
        (
            {"source": "mixture", "sets": {"a": {"source": "tarr"}}},
            r"sets\.a: source is 'tarr'",
        ),
        (
            {"source": "mixture", "sets": {"a": {"source": "tar", "pth": 1}}},
            r"config\.data\.sets\.a: unknown key 'pth'",
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            read_config(tiny(data=repr(wrong)))


def test_a_stage_that_trains_on_crops_gets_random_ones(shards):
    raw = settings(shards)
    raw.stage.resolution, raw.stage.crop = 12, 4
    config, loader = loader_of(raw)
    assert (loader.crop, loader.crop_size) == ("random", 4)
    assert shapes(loader.batch(1)) == shapes(batches.abstract_batch(config))
    raw.data.crop = "centre"
    assert loader_of(raw)[1].crop == "centre"


@pytest.mark.parametrize(
    ("buckets", "match"),
    [
        ([[9, 8]], r"data\.buckets has \[9, 8\]; sides must be multiples of 2"),
        ([[8]], r"data\.buckets\.0' has 1 entries, not 2"),
        ([["8", 8]], "must be of type int"),
    ],
)
def test_bad_buckets_are_named(shards, buckets, match):
    with pytest.raises(ValueError, match=match):
        read_config(settings(shards, buckets=buckets))


def test_a_base_stage_trains_on_images_that_are_not_square(shards):
    config, loader = loader_of(settings(shards, buckets=[[8, 4], [16, 4]]))
    encoder, mesh = build.make_text_encoder(config), make_mesh(MeshConfig(1), jax.devices()[:1])
    step, init, _ = build.make_training(config, encoder, mesh)
    state = jax.eval_shape(init, jax.random.key(0))
    seen = set()
    for number in range(6):
        batch = loader.batch(number)
        seen.add(batch["image"].shape)
        jax.eval_shape(step, state, batch, jax.random.key(0))
    assert seen == {(8, 4, 8, 3), (8, 4, 16, 3)}


def test_the_loop_runs_a_program_for_each_shape(tmp_path, monkeypatch):
    make_step, flat = toy.make_step, (toy.BATCH, toy.WIDTH)

    def step_of_any_shape(*arguments):
        step = make_step(*arguments)
        return lambda state, batch, *rest: step(
            state, {"image": batch["image"].reshape(flat)}, *rest
        )

    def of_two_shapes(start, state):
        for number, batch in enumerate(toy.batches()(start, state), start):
            shape = (toy.BATCH, toy.WIDTH) if number % 3 else (toy.BATCH, 2, toy.WIDTH // 2)
            yield {"image": batch["image"].reshape(shape)}

    plain = toy.run(tmp_path / "plain", steps=7)
    monkeypatch.setattr(toy, "make_step", step_of_any_shape)
    several = toy.run(tmp_path / "several", steps=7, batches=of_two_shapes)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (plain, several)))


def test_batches_of_a_config_are_the_same_from_any_step(shards):
    config = read_config(settings(shards))
    start = batches.make_batches(config, build.make_text_encoder(config))
    whole = list(itertools.islice(start(0, None), 6))
    for batch, again in zip(whole[4:], start(4, None), strict=False):
        for name, rows in batch.items():
            np.testing.assert_array_equal(rows, again[name])


def test_a_run_draws_by_the_weights_of_its_images(tmp_path):
    for number, weight in enumerate((1, 3)):
        write_tar(tmp_path / f"{number}.tar", range(4 * number, 4 * number + 4), weight=weight)
    data = {"source": "tar", "path": str(tmp_path), "split": "all", "num_threads": 1}
    config, loader = loader_of(tiny(data=repr({**data, "weights": True})))
    drawn = [loader.order[number] // 4 for number in range(8)]
    assert np.bincount(drawn).tolist() == [2, 6]
    assert shapes(loader.batch(0)) == shapes(batches.abstract_batch(config))
    _, plain = loader_of(tiny(data=repr(data)))
    assert np.bincount([plain.order[number] // 4 for number in range(8)]).tolist() == [4, 4]


@pytest.mark.parametrize(
    "more",
    [
        {"buckets": [[8, 8]]},
        {"prior": {"source": "npz", "path": "x.npz"}},
        {"source": "seqio"},
        {"source": "mixture", "path": None, "sets": {"a": {"source": "npz", "path": "x.npz"}}},
    ],
)
def test_weights_are_for_one_set_alone(shards, more):
    with pytest.raises(ValueError, match="weights are for one set with random access"):
        read_config(settings(shards, weights=True, **more))
