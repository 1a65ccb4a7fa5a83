"""Plans for GPUs: topologies, what is told of a GPU, and the kernels of programs for them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.devices.chips import find_chip
from imagen_jax.devices.gpus import GPUS, description
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.planning import plan as planning
from imagen_jax.planning import targets
from imagen_jax.planning.costs import estimate
from imagen_jax.planning.summary import memory_lines, summary
from imagen_jax.training import flops
from imagen_jax.training.run_config import read_config
from tests.training.test_config import tiny

H100 = find_chip("H100")
Shape = jax.ShapeDtypeStruct


@pytest.mark.parametrize(
    ("name", "shape"),
    [("h100", (1, 1)), ("h200:4", (1, 4)), ("a100:2x8", (2, 8)), ("b200:16x1", (16, 1))],
)
def test_a_topology_is_hosts_and_gpus_on_each(name, shape):
    assert targets.gpu_shape(name) == shape


@pytest.mark.parametrize("name", ["h100:", "h100:0", "h100:x8", "h100:2x0", "h100:2x2x8", "h900:8"])
def test_a_topology_that_there_is_not_is_named(name):
    with pytest.raises(ValueError, match=rf"no topology '{name}'; known forms are .* h100:2x8"):
        targets.find_target(name)


def test_an_older_jax_and_a_missing_compiler_are_told_first(monkeypatch):
    def none(**_):
        raise NotImplementedError("topology not implemented for cuda")

    config = read_config(tiny(data__source="memory"))
    monkeypatch.setattr(targets.topologies, "get_topology_desc", none)
    for version, message in (
        (
            (0, 10, 2),
            r"needs jax 0.11, this is .*: in Python 3.12, pip install 'imagen_jax\[cuda-plan\]'",
        ),
        ((0, 11, 0), r"needs jax's CUDA compiler, .*: in Python 3.12, pip install"),
    ):
        monkeypatch.setattr(jax, "__version_info__", version)
        with pytest.raises(ValueError, match=message) as told:
            planning.plan(config, "h100:8")
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", GPUS)
def test_a_description_is_that_of_its_chip(kind):
    """The two tables agree: memory is what is sold, peaks are whole products a cycle."""
    gpu, text = GPUS[kind], description(GPUS[kind])
    fields = dict(re.findall(r"(\w+): (\S+)", text))
    assert kind.upper() == gpu.chip.name
    assert float(fields["memory_bandwidth"]) == gpu.chip.bandwidth
    assert int(fields["device_memory_size"]) == pytest.approx(gpu.chip.hbm, rel=0.08)
    assert (
        int(fields["shared_memory_per_core"]) - int(fields["shared_memory_per_block_optin"]) == 1024
    )
    assert text.count("{") == text.count("}")
    a_cycle = gpu.chip.flops / (gpu.multiprocessors * gpu.clock * 1e9)
    assert a_cycle == pytest.approx(2 ** round(np.log2(a_cycle)), rel=0.1)


# name -> how XLA calls it, and which of [image, kernel, result] are given and made
PASSES = {"Forward": (0, 1, 2), "BackwardInput": (2, 1, 0), "BackwardFilter": (0, 2, 1)}


@pytest.mark.parametrize("kind", PASSES)
def test_a_convolution_of_cudnn_has_the_flops_of_its_forward_pass(kind):
    random = np.random.default_rng()
    rows, side, inputs, outputs = random.integers(2, 9, 4)
    stride = int(random.integers(1, 3))

    def forward(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (stride,) * 2, [(1, 1)] * 2, dimension_numbers=("NHWC", "OHWI", "NHWC")
        )

    given = [Shape((rows, side, side, inputs), "f4"), Shape((outputs, 3, 3, inputs), "f4")]
    shapes = [*given, jax.eval_shape(forward, *given)]
    first, second, made = (f"[{','.join(map(str, shapes[i].shape))}]" for i in PASSES[kind])
    text = f"""
ENTRY %main (a: f32{first}, b: f32{second}) -> f32{made} {{
  %a = f32{first}{{3,2,1,0}} parameter(0)
  %b = f32{second}{{3,2,1,0}} parameter(1)
  ROOT %c = (f32{made}{{3,2,1,0}}, u8[4096]{{0}}) custom-call(%a, %b), window={{size=3x3 \
stride={stride}x{stride} pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, custom_call_target=\
"__cudnn$conv{kind}"
}}
"""
    (found,) = estimate(text, H100, 1).kernels
    assert found.operation == "convolution"
    assert found.flops == flops.total(forward, *given)
    assert found.bytes == 4 * sum(shape.size for shape in shapes)  # without the scratch space


WEIGHTS = '"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"dimensions": ["2", "4"'
PROGRAM = f"""HloModule jit_step, is_scheduled=true

%product (p: bf16[32,64], q: bf16[64,16]) -> f32[32,16] {{
  %p = bf16[32,64]{{1,0}} parameter(0)
  %q = bf16[64,16]{{1,0}} parameter(1)
  ROOT %d = f32[32,16]{{1,0}} dot(%p, %q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

%sum (r: f32[32,16], s: s32[]) -> f32[32,16] {{
  %r = f32[32,16]{{1,0}} parameter(0)
  %s = s32[] parameter(1)
  ROOT %t = f32[32,16]{{1,0}} negate(%r)
}}

%body (x: (f32[32,16], s32[])) -> (f32[32,16], s32[]) {{
  %x = (f32[32,16]{{1,0}}, s32[]) parameter(0)
  %y = f32[32,16]{{1,0}} get-tuple-element(%x), index=0
  %i = s32[] get-tuple-element(%x), index=1
  %ahead = ((f32[32,16]{{1,0}}, s32[]), f32[32,16]{{1,0}}, u32[]) fusion-start(%y, %i), calls=%sum
  %there = f32[32,16]{{1,0}} fusion-done(%ahead)
  ROOT %z = (f32[32,16]{{1,0}}, s32[]) tuple(%there, %i)
}}

%until (w: (f32[32,16], s32[])) -> pred[] {{
  %w = (f32[32,16]{{1,0}}, s32[]) parameter(0)
  ROOT %go = pred[] constant(true)
}}

ENTRY %main (a: bf16[32,64], b: bf16[64,16], k: bf16[2,128,4,8], v: bf16[2,6,4,8]) -> s32[] {{
  %a = bf16[32,64]{{1,0}} parameter(0)
  %b = bf16[64,16]{{1,0}} parameter(1)
  %k = bf16[2,128,4,8]{{3,2,1,0}} parameter(2)
  %v = bf16[2,6,4,8]{{3,2,1,0}} parameter(3)
  %gemm = f32[32,16]{{1,0}} fusion(%a, %b), kind=kCustom, calls=%product
  %call = (f32[32,16]{{1,0}}, s8[4096]{{0}}) custom-call(%a, %b), custom_call_target=\
"__cublas$lt$matmul", backend_config={{"gemm_backend_config":{{"dot_dimension_numbers":\
{{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}}}}
  %kept = f32[32,16]{{1,0}} get-tuple-element(%call), index=0
  %seen = (bf16[2,4,128,8]{{3,1,2,0}}, f32[2,4,128]{{2,1,0}}, u8[0]{{0}}) custom-call(%k, %v, %v), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={{{WEIGHTS}, "128", "6"]}}}}}}
  %o = bf16[2,4,128,8]{{3,1,2,0}} get-tuple-element(%seen), index=0
  %l = f32[2,4,128]{{2,1,0}} get-tuple-element(%seen), index=1
  %back = (bf16[2,4,128,8]{{3,1,2,0}}, bf16[2,4,6,8]{{3,1,2,0}}, bf16[2,4,6,8]{{3,1,2,0}}, u8[64]) \
custom-call(%k, %v, %v, %l, %o, /*index=5*/%o), custom_call_target="__cudnn$fmhaSoftmaxBackward", \
backend_config={{{WEIGHTS}, "128", "6"]}}}}}}
  %copy = f32[32,16]{{0,1}} copy(%kept)
  %zero = s32[] constant(0)
  %first = (f32[32,16]{{1,0}}, s32[]) tuple(%copy, %zero)
  %loop = (f32[32,16]{{1,0}}, s32[]) while(%first), condition=%until, body=%body, \
backend_config={{"known_trip_count":{{"n":"3"}}}}
  ROOT %end = s32[] get-tuple-element(%loop), index=1
}}
"""


def test_kernels_of_a_program_by_hand():
    """A product of a fusion and one of cuBLAS, attention, a copy, and a fusion in a loop of 3."""
    a, b, result, queries, keys = 2 * 32 * 64, 2 * 64 * 16, 4 * 32 * 16, 2 * 8192, 2 * 2 * 4 * 6 * 8
    product, attention, lengths = 2 * 32 * 64 * 16, 2 * 2 * 4 * 128 * 6 * 8, 4 * 2 * 4 * 128
    forward = queries + 2 * keys + queries + lengths
    backward = 3 * queries + 2 * keys + lengths + queries + 2 * keys
    costs = estimate(PROGRAM, H100, 1)
    assert costs.by_kind == {
        "attention": {"count": 2, "flops": 7 * attention, "bytes": forward + backward},
        "GEMM": {"count": 2, "flops": 2 * product, "bytes": 2 * (a + b + result)},
        "fusion": {"count": 3, "flops": 0, "bytes": 3 * 2 * result},
        "copy": {"count": 1, "flops": 0, "bytes": 2 * result},
    }
    assert costs.hbm_bytes == sum(kind["bytes"] for kind in costs.by_kind.values())
    assert costs.seconds == pytest.approx(sum(part.seconds * part.times for part in costs.kernels))


def figures_of(config, target, monkeypatch):
    monkeypatch.setattr(planning, "find_target", lambda name: target)
    return planning.plan(config, target.name)


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (1.0, "does not fit"),
        (1.2, "fits if XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 is set (jax takes 75%)"),
        (1.4, "fits"),
    ],
)
def test_a_plan_says_what_fits(memory, said):
    memory = {"arguments": 6e9, "temporaries": 4e9, "total": 10e9, "hbm": memory * 10e9}
    fits = memory["total"] <= targets.GPU_USABLE * memory["hbm"]
    assert memory_lines({**memory, "fits": fits}, "GPU")[1].endswith(f"GB: {said}")


def test_a_plan_for_a_gpu_gives_a_floor(monkeypatch):
    """Compiled for this CPU in a GPU's place: what is said of a program for GPUs."""
    reached = targets.slower(H100)
    target = targets.Target("h100", "GPU", jax.devices()[:1], H100, reached, 10**9, 0.95)
    figures = figures_of(read_config(tiny(data__source="memory")), target, monkeypatch)
    json.dumps(figures)
    assert "by_compiler" not in figures
    floor, kernels = figures["floor"], figures["kernels"]
    size = figures["roofline"]["bytes"]
    assert size == sum(kind["bytes"] for kind in kernels.values())
    assert floor["seconds"] >= max(
        figures["flops"]["compiled"] / reached.flops, size / H100.bandwidth
    )
    assert 0 < floor["mfu"] < 0.8
    said = summary(figures)
    assert "floor (not an estimate): at least" in said
    assert "memory a GPU: parameters" in said
    assert f"kernels: {sum(kind['count'] for kind in kernels.values()):,}" in said


@pytest.fixture(scope="module")
def cuda():
    if jax.__version_info__ < (0, 11):
        pytest.skip("planning for GPUs needs jax 0.11")
    pytest.importorskip("jax_plugins.xla_cuda13", reason="needs imagen_jax[cuda-plan]")


@pytest.mark.slow
@pytest.mark.parametrize("kind", GPUS)
def test_the_compiler_takes_every_description(cuda, kind):
    """A strided convolution and its gradients, and a matrix product."""

    def loss(image, kernel, weights):
        image = jax.lax.conv_general_dilated(
            image, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.square(jnp.tanh(image) @ weights).sum()

    target = targets.find_target(kind)
    mesh = make_mesh(MeshConfig(), target.devices)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = [(8, 32, 32, 64), (3, 3, 64, 128), (128, 64)]
    given = [Shape(shape, jnp.bfloat16, sharding=whole) for shape in shapes]
    gradient = jax.grad(loss, argnums=(0, 1, 2))
    text = planning.compile_with_text(jax.jit(gradient).lower(*given), target)[1]
    costs = estimate(text, target.reached, 1)
    assert costs.by_kind["convolution"]["count"] == 3
    assert costs.flops == flops.total(gradient, *given)


@pytest.mark.slow
def test_attention_of_cudnn_has_the_flops_of_its_products(cuda):
    """In the jaxpr and compiled: two forward and, with the weights made again, five backward."""
    queries, keys = Shape((2, 256, 4, 64), jnp.bfloat16), Shape((2, 78, 4, 64), jnp.bfloat16)

    def loss(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn").sum()

    target = targets.find_target("h100")
    whole = jax.sharding.SingleDeviceSharding(target.devices[0])
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), in_shardings=whole)
    text = planning.compile_with_text(gradient.lower(queries, keys, keys), target)[1]
    product = 2 * 2 * 4 * 256 * 78 * 64
    assert estimate(text, target.reached, 1).by_kind["attention"]["flops"] == 7 * product
    assert flops.total(gradient, queries, keys, keys) == 7 * product


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "hosts", "mesh"),
    [("h100", 1, {}), ("h100:8", 1, {"mesh__fsdp": "4"}), ("h100:2x8", 2, {"mesh__tensor": "2"})],
)
def test_a_plan_of_the_train_step(cuda, topology, hosts, mesh):
    config = read_config(tiny(data__source="memory", batch_size="16", **mesh))
    figures = planning.plan(config, topology)
    devices = targets.find_target(topology).devices
    assert len({device.process_index for device in devices}) == hosts
    memory = figures["memory"]
    assert memory["fits"]
    assert memory["arguments"] >= memory["parameters"] + memory["ema"] + memory["optimizer"]
    assert figures["flops"]["compiled_over_counted"] == pytest.approx(1, abs=0.15)
    assert {"fusion", "convolution", "GEMM"} <= figures["kernels"].keys()
    assert bool(figures["roofline"]["collectives"]) == (len(devices) > 1)
    assert f"on {len(devices)} H100 GPUs" in summary(figures)


@pytest.mark.slow
def test_a_plan_of_the_sampler(cuda):
    sample = "{'steps': 5, 'prompts': ['a'], 'guidance': 2.0}"
    config = read_config(tiny(data__source="memory", sample=sample))
    figures = planning.plan(config, "h200:2", sample=True)
    assert (figures["what"], figures["batch_size"]) == ("sampling", 2)
    assert figures["flops"]["compiled_over_counted"] == pytest.approx(1, abs=0.15)
    assert "sampling of tiny: batch 2" in summary(figures)
