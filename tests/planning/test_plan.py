"""Plans: text of compiled programs is read right, and what cannot be planned is said at once."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from imagen_jax.devices.chips import CHIPS, find_chip
from imagen_jax.devices.sharding import MeshConfig, check_batch, host_groups, host_rows, make_mesh
from imagen_jax.planning import plan as planning
from imagen_jax.planning.costs import estimate
from imagen_jax.planning.hlo import Instruction, group_size, parse_arrays
from imagen_jax.planning.summary import summary
from imagen_jax.planning.targets import find_target
from imagen_jax.training import flops
from imagen_jax.training.run_config import read_config
from tests.training.test_config import tiny

Shape = jax.ShapeDtypeStruct
V5E = next(chip for chip in CHIPS if chip.name == "v5e")
LAYERS, ROWS, WIDTH = 3, 512, 256


@pytest.fixture(scope="module")
def four_chips():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install '.[tpu]'")
    return find_target("v5e:2x2").devices


@pytest.fixture(scope="module")
def compiled(four_chips):
    """The gradient of three equal layers whose weights four chips share, and of a convolution."""
    mesh = make_mesh(MeshConfig(1, None, 1), four_chips)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    columns = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())

    def loss(x, weights, kernel, image):
        weights = jax.lax.with_sharding_constraint(weights, whole)
        y = jax.lax.scan(lambda y, _: (jnp.tanh(y @ weights), None), x, None, length=LAYERS)[0]
        image = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.square(y).sum() + jnp.square(image).sum()

    gradient = jax.grad(loss, argnums=(1, 2))
    shapes = [(ROWS, WIDTH), (WIDTH, WIDTH), (3, 3, 128, 128), (64, 32, 32, 128)]
    arguments = [Shape(shape, jnp.bfloat16) for shape in shapes]
    jitted = jax.jit(
        gradient, in_shardings=(rows, columns, whole, rows), out_shardings=(columns, whole)
    )
    return jitted.lower(*arguments).compile(), flops.count(gradient, *arguments)


def test_flops_of_a_tpu_program_are_those_of_its_shapes(compiled):
    program, counted = compiled
    costs = estimate(program.as_text(), V5E, 4)
    assert 4 * costs.flops == pytest.approx(sum(counted.values()), rel=0.02)
    assert costs.seconds > sum(costs.waits.values())


def test_collectives_of_shared_weights(compiled):
    """Weights are gathered and their gradient scattered, or reduced; the kernel's is reduced."""
    found = estimate(compiled[0].as_text(), V5E, 4).collectives
    share, weights, kernel = 3 / 4, 2 * WIDTH**2, 2 * 9 * 128**2
    assert found["all-gather"]["bytes"] == share * weights
    assert found["all-gather"]["count"] == 1
    reduced = found["all-reduce"]["bytes"]
    if "reduce-scatter" in found:
        assert found["reduce-scatter"]["bytes"] == share * weights
    else:
        reduced -= 2 * share * weights
    # In bfloat16, or in float32.
    assert reduced in (2 * share * kernel, 4 * share * kernel)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,2},{1,3}}", 2),
        ("[4,16]<=[4,16]T(1,0)", 16),
        ("mesh['a'=4,'b'=16] {'b'}", 16),
        ("mesh['a'=4,'b'=16] {'a','b'}", 64),
        ("mesh['a'=4,'b'=16] {'b':(2)4}", 4),
        ("{}", 64),
    ],
)
def test_a_collective_joins_the_devices_of_its_groups(groups, size):
    attributes = f", channel_id=1, replica_groups={groups}, dimensions={{0}}"
    collective = Instruction("a", "f32[8]{0}", "all-gather", "%b", attributes)
    assert group_size(collective, 64) == size


def test_a_gather_over_some_of_the_chips():
    """By hand: 16 of 64 chips hold 4 MB each, so a chip receives the other 15 parts."""
    words = 10**6
    groups = "replica_groups=mesh['a'=4,'b'=16] {'b'}, dimensions={0}"
    made = f"f32[{16 * words}]{{0}}"
    text = f"""HloModule m, is_scheduled=true

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[{words}]{{0}} parameter(0)
  %start = (f32[{words}]{{0}}, {made}) all-gather-start(%a), channel_id=1, {groups}
  ROOT %done = {made} all-gather-done(%start)
}}
"""
    traffic = estimate(text, V5E, 64).collectives["all-gather"]
    assert (traffic["count"], traffic["bytes"]) == (1, 15 * 4 * words)


def test_bytes_are_at_least_those_of_the_arguments(compiled):
    image = 64 * 32 * 32 * 128 * 2 / 4
    assert estimate(compiled[0].as_text(), V5E, 4).hbm_bytes >= image


def test_tiles_pad_arrays_and_vector_memory_is_no_hbm():
    (tiled,) = parse_arrays("bf16[3,100]{1,0:T(8,128)(2,1)}")
    assert tiled.bytes == tiled.hbm_bytes == 8 * 128 * 2
    (near,) = parse_arrays("f32[16,128]{1,0:T(8,128)S(1)}")
    assert (near.bytes, near.hbm_bytes) == (16 * 128 * 4, 0)
    (turned,) = parse_arrays("f32[128,3]{0,1:T(4,128)}")
    assert turned.bytes == 4 * 128 * 4
    assert [array.sides for array in parse_arrays("(s32[], pred[2,4]{1,0})")] == [(), (2, 4)]


def test_copies_and_collectives_run_beside_the_core():
    """By hand: 1 s of copying while 0.4 s of reading go on, so that the core waits for 0.6 s."""
    chip = V5E
    words = int(chip.bandwidth)
    text = f"""HloModule m, is_scheduled=true

ENTRY %main (a: f32[8], b: f32[8]) -> f32[8] {{
  %a = u8[{words // 2}]{{0}} parameter(0)
  %b = u8[{words // 5}]{{0}} parameter(1)
  %start = (u8[{words // 2}]{{0}}, u8[{words // 2}]{{0}}, u32[]{{:S(2)}}) copy-start(%a)
  %work = u8[{words // 5}]{{0}} negate(%b)
  %done = u8[{words // 2}]{{0}} copy-done(%start)
  ROOT %out = (u8[{words // 2}]{{0}}, u8[{words // 5}]{{0}}) tuple(%done, %work)
}}
"""
    costs = estimate(text, chip, 1)
    assert costs.seconds == pytest.approx(1.0, rel=1e-6)
    assert costs.waits["copies"] == pytest.approx(0.6, rel=1e-6)


def scheduled(body: str, parameters: str = "%a = bf16[1024,1024]{1,0} parameter(0)") -> str:
    return f"""HloModule m, is_scheduled=true

%inner (a: bf16[1024,1024]) -> bf16[1024,1024] {{
  %p = bf16[1024,1024]{{1,0}} parameter(0)
  ROOT %product = bf16[1024,1024]{{1,0}} dot(%p, %p), lhs_contracting_dims={{1}}
}}

ENTRY %main (a: bf16[1024,1024]) -> bf16[1024,1024] {{
  {parameters}
  {body}
}}
"""


def test_a_slice_that_is_started_ahead_moves_the_slice():
    """Named async-start by the compiler; the core waits until it is there."""
    row = "f32[8,1024]{1,0:T(8,128)S(1)}"
    text = f"""HloModule m, is_scheduled=true

%slicing (p: f32[1024,1024]) -> f32[8,1024] {{
  %p = f32[1024,1024]{{1,0}} parameter(0)
  ROOT %s = {row} slice(%p), slice={{[0:8], [0:1024]}}
}}

ENTRY %main (a: f32[1024,1024]) -> f32[8,1024] {{
  %a = f32[1024,1024]{{1,0}} parameter(0)
  %start = ((f32[1024,1024]{{1,0}}), {row}, s32[]{{:S(2)}}) async-start(%a), calls=%slicing
  ROOT %done = {row} async-done(%start)
}}
"""
    costs = estimate(text, V5E, 1)
    assert costs.hbm_bytes == 4 * 8 * 1024
    assert not costs.kernels
    assert costs.seconds == costs.waits["copies"] == 4 * 8 * 1024 / V5E.bandwidth


PRODUCT, MOVED = 2 * 1024**3, 2 * 2 * 1024**2
FUSION = "fusion(%a), kind=kOutput, calls=%inner"


def test_a_kernel_takes_the_cycles_that_the_compiler_expects():
    cycles = 'backend_config={"estimated_cycles":"3000000"}'
    costs = estimate(scheduled(f"ROOT %f = bf16[1024,1024]{{1,0}} {FUSION}, {cycles}"), V5E, 1)
    assert costs.seconds == pytest.approx(3e6 / V5E.clock)
    assert not costs.without_cycles


@pytest.mark.parametrize(
    ("operation", "flops", "size"),
    [
        (FUSION, PRODUCT, MOVED),
        ("negate(%a)", 0, MOVED),
        ('custom-call(%a), custom_call_target="mine"', 0, MOVED),
        (
            'custom-call(%a), custom_call_target="tpu_custom_call", backend_config='
            '{"custom_call_config":{"cost_estimate":{"flops":"9000000000000"}}}',
            9e12,
            MOVED,
        ),
    ],
)
def test_a_kernel_without_cycles_counts_by_its_flops_and_bytes(operation, flops, size):
    """The longer of both at the chip's peaks, and it is listed."""
    costs = estimate(scheduled(f"ROOT %k = bf16[1024,1024]{{1,0}} {operation}"), V5E, 1)
    (kernel,) = costs.without_cycles
    assert (kernel.flops, kernel.bytes) == (flops, size)
    expected = max(flops / V5E.flops, size / V5E.bandwidth)
    assert costs.seconds == pytest.approx(expected) == kernel.seconds
    (listed,) = planning.by_layer(costs.without_cycles)
    assert (listed["what"], listed["seconds"]) == ("k (forward)", kernel.seconds)


def test_a_kernel_that_states_no_flops_counts_by_those_of_its_name():
    call = 'custom-call(%a), custom_call_target="tpu_custom_call"'
    text = scheduled(f"ROOT %mine.3.clone = bf16[1024,1024]{{1,0}} {call}")
    for name, counted in (("mine", 9e12), ("other", 0.0)):
        (kernel,) = estimate(text, V5E, 1, kernels={name: 9e12}).without_cycles
        assert kernel.flops == counted
        assert kernel.seconds == max(counted / V5E.flops, MOVED / V5E.bandwidth)


def test_a_kernel_without_cycles_or_bytes_of_hbm_still_takes_time():
    near = "bf16[1024,1024]{1,0:T(8,128)S(1)}"
    text = scheduled(f"ROOT %k = {near} negate(%a)", f"%a = {near} parameter(0)")
    (kernel,) = estimate(text, V5E, 1).without_cycles
    assert kernel.bytes == 0
    assert kernel.seconds == MOVED / 2 / V5E.bandwidth


def test_a_chip_whose_clock_is_unknown_counts_by_flops_and_bytes():
    cycles = 'backend_config={"estimated_cycles":"3000000"}'
    chip = find_chip("NVIDIA H100")
    text = scheduled(f"ROOT %f = bf16[1024,1024]{{1,0}} {FUSION}, {cycles}")
    costs = estimate(text, chip, 1)
    assert costs.seconds == max(PRODUCT / chip.flops, MOVED / chip.bandwidth)
    assert costs.without_cycles == costs.kernels


def test_bytes_of_slices_and_of_updates_in_place():
    """A fusion reads one row of many, and writes one."""
    text = """HloModule m, is_scheduled=true

%inner (all: f32[64,1024], i: s32[]) -> f32[64,1024] {
  %all = f32[64,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,1024]{1,0} dynamic-slice(%all, %i, %zero), dynamic_slice_sizes={1,1024}
  ROOT %new = f32[64,1024]{1,0} dynamic-update-slice(%all, %row, %i, %zero)
}

ENTRY %main (a: f32[64,1024], i: s32[]) -> f32[64,1024] {
  %a = f32[64,1024]{1,0} parameter(0)
  %i = s32[]{:S(2)} parameter(1)
  ROOT %f = f32[64,1024]{1,0} fusion(%a, %i), kind=kLoop, calls=%inner
}
"""
    assert estimate(text, V5E, 1).hbm_bytes == 2 * 4 * 1024


def test_loops_without_a_known_length_run_as_often_as_said():
    def function(x, count):
        return jax.lax.fori_loop(0, count, lambda _, y: y @ y, x)

    text = jax.jit(function).lower(Shape((8, 8), "f4"), 3).compile().as_text()
    assert estimate(text, V5E, 1, loops=5).flops == 5 * 2 * 8**3


def test_of_two_branches_the_longer_counts():
    def function(x, which):
        return jax.lax.cond(which, lambda x: x, lambda x: jnp.tanh(x @ x) @ x, x)

    text = jax.jit(function).lower(Shape((8, 8), "f4"), True).compile().as_text()
    assert estimate(text, V5E, 1).flops == 2 * 2 * 8**3


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB", "H100"),
    ],
)
def test_chips_are_known_by_their_names(kind, name):
    assert find_chip(kind).name == name


def test_an_unknown_chip_is_none():
    assert find_chip("cpu") is None


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9z:4x4", "no topology 'v9z:4x4'; known forms are v5p:4x4x4"),
        ("v5e", "no topology 'v5e'"),
        ("v4:2x2x1", "v4 cannot be compiled for"),
    ],
)
def test_a_topology_that_cannot_be_planned_is_named(four_chips, topology, message):
    with pytest.raises(ValueError, match=message):
        find_target(topology)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mesh__fsdp": "3"}, "fsdp 3 .* does not divide the 4 devices"),
        ({"batch_size": "6"}, "batch_size 6 does not split"),
    ],
)
def test_sizes_that_do_not_divide_are_told_before_compiling(four_chips, overrides, message):
    with pytest.raises(ValueError, match=message):
        planning.plan(read_config(tiny(data__source="memory", **overrides)), "v5e:2x2")


def test_a_plan_of_the_train_step(four_chips):
    config = read_config(tiny(data__source="memory", mesh__fsdp="2"))
    figures = planning.plan(config, "v5e:2x2")
    json.dumps(figures)
    memory = figures["memory"]
    assert memory["fits"]
    assert memory["arguments"] >= memory["parameters"] + memory["ema"] + memory["optimizer"]
    assert figures["flops"]["compiled_over_counted"] == pytest.approx(1, abs=0.15)
    speed = figures["by_compiler"]
    assert 0 < speed["mfu"] <= speed["hfu"] * 1.2
    assert speed["seconds"] > figures["roofline"]["exposed_collectives"]
    assert speed["seconds"] <= figures["reached"]["seconds"]
    assert "images/s" in summary(figures)
    assert "kernels without cycles take" in summary(figures)
    assert all(item["seconds"] > 0 for item in figures["without_cycles"])


def test_a_plan_of_the_sampler(four_chips):
    sample = "{'steps': 5, 'prompts': ['a'], 'guidance': 2.0}"
    config = read_config(tiny(data__source="memory", mesh__fsdp="2", sample=sample))
    figures = planning.plan(config, "v5e:2x2", sample=True)
    assert (figures["what"], figures["batch_size"]) == ("sampling", 4)
    assert figures["flops"]["compiled_over_counted"] == pytest.approx(1, abs=0.15)
    assert "days" not in figures["by_compiler"]
    assert "sampling of tiny: batch 4" in summary(figures)


@pytest.fixture(scope="module")
def pod(four_chips):
    """16 chips of four hosts, each with a square of four of them."""
    return find_target("v5e:4x4").devices


def test_a_host_reads_the_rows_that_lie_on_its_devices(pod):
    torus = make_mesh(MeshConfig(None, 4, 1), pod)
    hosts = [device.process_index for device in torus.devices.flat]
    rows = {host: host_rows(torus, 32, host) for host in set(hosts)}
    assert rows == {
        host: tuple(row for row in range(32) if hosts[row // 2] == host) for host in set(hosts)
    }
    assert any(own != tuple(range(own[0], own[0] + 8)) for own in rows.values())
    assert len(host_groups(torus)) == 4


def test_hosts_with_the_same_rows_are_one_group(pod):
    assert sorted(map(sorted, host_groups(make_mesh(MeshConfig(1, 1, None), pod)))) == [[*range(4)]]
    mixed = [pod[i] for i in (0, 4, 1, 2, 3, 5, *range(6, 16))]
    shared = jax.sharding.Mesh(np.reshape(mixed, (8, 1, 2)), ("data", "fsdp", "tensor"))
    with pytest.raises(ValueError, match=r"mesh.tensor 2 .* in common"):
        check_batch(shared, 8)
