"""FLOPs counted from shapes are those of the arithmetic, and of XLA's own count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.cascade.stage import apply_network, init_params
from imagen_jax.devices.chips import find_chip
from imagen_jax.models import t5
from imagen_jax.planning.costs import estimate
from imagen_jax.training import flops
from imagen_jax.training.state import init_state
from imagen_jax.training.step import make_train_step
from imagen_jax.typing import TextEmbeddings
from tests.tiny_cascade import BASE, ENCODER, SR

Shape = jax.ShapeDtypeStruct


def test_products_of_known_size():
    def function(x, weights, kernel):
        y = x @ weights  # 2 x 4 x 5 x 6
        scores = jnp.einsum("bij,bkj->bik", y, y)  # 2 x 4 x 6 x 5 x 5
        image = jax.lax.conv_general_dilated(  # one pixel sees 4 of the 9 taps, the others 6 or 9
            scores[..., None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return image

    counted = flops.count(
        function, Shape((4, 5, 5), "f4"), Shape((5, 6), "f4"), Shape((3, 3, 1, 2), "f4")
    )
    taps = (3 * 5 - 2) ** 2
    assert counted == {
        "dense": 2 * 4 * 5 * 5 * 6,
        "attention": 2 * 4 * 5 * 5 * 6,
        "convolution": 2 * 4 * 2 * taps,
    }


def test_a_scan_counts_each_time():
    def function(x, weights):
        return jax.lax.scan(lambda y, _: (y @ weights, None), x, None, length=7)[0]

    shapes = Shape((3, 8), "f4"), Shape((8, 8), "f4")
    assert flops.count(function, *shapes)["dense"] == 7 * 2 * 3 * 8 * 8
    text = jax.jit(function).lower(*shapes).compile().as_text()
    assert estimate(text, find_chip("TPU v5e"), 1).flops == 7 * 2 * 3 * 8 * 8


def test_parts_of_a_batch_cost_what_the_batch_costs():
    """What a run's logged MFU rests on: accumulation is a scan."""
    optimizer = optax.sgd(0.1)
    state = jax.eval_shape(
        lambda key: init_state(BASE, ENCODER, optimizer, key, with_ema=False), jax.random.key(0)
    )
    length = ENCODER.max_length
    batch = {
        "image": Shape((8, BASE.resolution, BASE.resolution, 3), "u1"),
        "ids": Shape((8, length), "i4"),
        "mask": Shape((8, length), bool),
    }
    whole, parts = (
        flops.total(
            make_train_step(BASE, ENCODER, optimizer, ema_decay=None, accumulation=number),
            state,
            batch,
            jax.random.key(0),
        )
        for number in (1, 4)
    )
    assert parts == pytest.approx(whole, rel=0.01)


def test_overlaps_of_padded_strided_and_dilated_windows():
    for image, kernel, stride, before, dilation in [
        (5, 3, 1, 1, 1),
        (8, 3, 2, 0, 1),
        (4, 3, 1, 2, 2),
    ]:
        spread = np.zeros((image - 1) * dilation + 1)
        spread[::dilation] = 1
        padded = np.pad(spread, (before, kernel + stride * 9))
        output = 6
        expected = sum(padded[o * stride : o * stride + kernel].sum() for o in range(output))
        counted = flops.overlaps(
            image, kernel, output, stride=stride, before=before, image_dilation=dilation
        )
        assert counted == expected


@pytest.mark.parametrize("stage", [BASE, SR], ids=lambda stage: stage.name)
def test_networks_are_counted_as_xla_counts_them(stage):
    """XLA also counts what is no product."""
    params = jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0))
    side = stage.resolution
    image, row = Shape((2, side, side, 3), "f4"), Shape((2,), "f4")
    text = TextEmbeddings(Shape((2, 5, stage.text_width), "f4"), Shape((2, 5), bool))
    low_res = {"low_res": image, "aug_level": row} if stage.low_resolution else {}

    def gradient(params, x, time, text, low_res):
        def loss(params):
            return jnp.square(apply_network(stage, params, x, time, text=text, **low_res)).mean()

        return jax.grad(loss)(params)

    arguments = params, image, row, text, low_res
    counted = sum(flops.count(gradient, *arguments).values())
    lowered = jax.jit(gradient).lower(*arguments)
    assert counted < lowered.cost_analysis()["flops"] < 2 * counted


def test_a_text_encoder_by_its_formula():
    config = t5.T5Config(d_model=16, num_heads=2, head_dim=8, num_layers=3, d_ff=24)
    params = jax.eval_shape(lambda key: t5.init(config, key), jax.random.key(0))
    length = 10
    counted = flops.count(
        lambda params, ids, mask: t5.encode(config, params, ids, mask),
        params,
        Shape((1, length), "i4"),
        Shape((1, length), bool),
    )
    assert counted["dense"] == 3 * 2 * length * (4 * 16 * 16 + 3 * 16 * 24)
    assert counted["attention"] == 3 * 2 * 2 * length * length * 16
