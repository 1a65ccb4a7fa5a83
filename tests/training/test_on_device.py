"""A set kept on the devices gives the very batches that are sent otherwise."""

import jax
import numpy as np
import pytest

from imagen_jax.benchmark.input import captioned_noise
from imagen_jax.data import ArraySource
from imagen_jax.devices.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from imagen_jax.training import batches, build
from imagen_jax.training.feed import Feed
from imagen_jax.training.on_device import check_room, take_images
from imagen_jax.training.run_config import read_config
from tests.data.test_loader import Damaged
from tests.devices.test_hosts import finish, start
from tests.training import hosts_on_device
from tests.training.test_config import tiny
from tests.training.test_meshes import MESHES

MEMORY = {"data__source": "memory", "data__flip": "True", "data__weights": "True"}
SKIPPED = ((2, 3),)


def feed(source, mesh, first=0, **overrides) -> Feed:
    config = read_config(tiny(**MEMORY | overrides))
    count = int(np.prod(MESHES[mesh]))
    mesh = make_mesh(MeshConfig(*MESHES[mesh]), jax.devices()[:count])
    encoder = None if config.stage.conditioning != "text" else build.make_text_encoder(config)
    return Feed(
        batches.make_batches(config, encoder, source, mesh=mesh), first, None, SKIPPED, mesh
    )


def taken(feed: Feed, count: int):
    yield feed.batch
    yield from (feed.next() for _ in range(count - 1))


@pytest.mark.parametrize("mesh", ["one", "data", "all"])
def test_batches_are_the_same_from_any_step(mesh, rng):
    source = captioned_noise(23, int(rng.integers(8, 12)))  # also such as are made smaller
    sent = list(taken(feed(source, mesh), 7))
    for first in (0, 4):
        kept = taken(feed(source, mesh, first, data__on_device="True"), 7 - first)
        for left, right in zip(sent[first:], kept, strict=True):
            assert left.keys() == right.keys()
            for name, values in left.items():
                assert values.dtype == right[name].dtype
                assert values.sharding == right[name].sharding
                np.testing.assert_array_equal(values, right[name])


@pytest.mark.parametrize("conditioning", ["label", None])
def test_images_with_classes_or_nothing_are_kept_too(conditioning, rng):
    images = rng.integers(0, 256, (9, 8, 8, 3), np.uint8)
    source = ArraySource(images, labels=np.arange(9), extra={"weight": np.ones(9)})
    options = {"stage__conditioning": repr(conditioning)}
    if conditioning == "label":
        options["stage__network__num_classes"] = "9"
    sent, kept = (feed(source, "data", data__on_device=on, **options) for on in ("False", "True"))
    for left, right in zip(taken(sent, 3), taken(kept, 3), strict=True):
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.slow  # two processes, for a quarter of a minute
def test_each_host_takes_its_own_rows():
    said = finish(start([hosts_on_device.__file__], 2))
    assert all("the same on 2 hosts" in text for text in said)


def test_taking_asks_no_other_device():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    take = jax.jit(take_images, static_argnums=3, out_shardings=batch_sharding(mesh))
    where = [replicated(mesh), batch_sharding(mesh), batch_sharding(mesh)]
    shapes = [((50, 48), np.uint8), ((16,), np.int32), ((16,), bool)]
    arguments = [
        jax.ShapeDtypeStruct(*shape, sharding=sharding)
        for shape, sharding in zip(shapes, where, strict=True)
    ]
    program = take.lower(*arguments, (4, 4)).compile().as_text()
    assert not [name for name in ("all-", "collective", "permute") if name in program]


@pytest.mark.parametrize(
    "section",
    [
        {"source": "folder", "path": "images"},
        {"source": "tar", "path": "images"},
        {"source": "seqio", "path": "images"},
        {"source": "mixture", "sets": {"a": {"source": "npz", "path": "x.npz"}}},
        {"source": "npz", "path": "x.npz", "prior": {"source": "npz", "path": "y.npz"}},
        {"source": "npz", "path": "x.npz", "buckets": [[8, 8]]},
    ],
)
def test_what_cannot_be_kept_is_refused_by_the_config(section):
    with pytest.raises(ValueError, match="on_device is for one set in memory"):
        read_config(tiny(data=repr({**section, "on_device": True})))


def test_what_cannot_be_kept_is_refused_by_the_loader():
    source = captioned_noise(5, 8)
    with pytest.raises(ValueError, match="whose images are taken whole"):
        feed(source, "one", data__on_device="True", data__crop="random")
    with pytest.raises(ValueError, match="on_device is for one set in memory"):
        feed(Damaged(source, set()), "one", data__on_device="True", data__weights="False")


def test_images_that_do_not_fit_are_refused_with_their_size():
    images = np.zeros((1000, 8, 8, 3), np.uint8)
    check_room(images, {}, "a CPU")
    check_room(images, {"bytes_limit": 300_000, "bytes_in_use": 100_000}, "H0")
    message = (
        r"1,000 images of 8x8 take 192\.0 kB on each device, and 100\.0 kB of 300\.0 kB are "
        r"free on H0: data\.on_device=False"
    )
    with pytest.raises(ValueError, match=message):
        check_room(images, {"bytes_limit": 300_000, "bytes_in_use": 200_000}, "H0")
