"""The transformer's blocks against public modules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_references import relative_error

from imagen_jax.models import TransformerConfig
from imagen_jax.models.layers import RMSNorm
from imagen_jax.models.positions import (
    grid_positions,
    position_embedding,
    rotary_angles,
    rotate,
)
from imagen_jax.models.transformer import SelfAttention, SwiGLU

REASON = "the reference implementations are in the extra 'parity'"
torch = pytest.importorskip("torch", reason=REASON)
attention = pytest.importorskip("diffusers.models.attention_processor", reason=REASON)
embeddings = pytest.importorskip("diffusers.models.embeddings", reason=REASON)
llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason=REASON)
qwen2_vl = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl", reason=REASON)

TINY = TransformerConfig(width=32, depth=1, heads=2, mlp_multiple=8)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def random_torch(module, seed=0):
    """A torch module with random parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


def linear(module) -> dict:
    return {"kernel": module.weight.detach().numpy().T, "bias": module.bias.detach().numpy()}


def test_rope_is_that_of_qwen2_vl(rng):
    """transformers' axial RoPE: half of the angles by the row, half by the column."""
    heads, head = 3, 16
    positions = grid_positions(4, 5)
    module = qwen2_vl.Qwen2VLVisionRotaryEmbedding(
        qwen2_vl.Qwen2VLVisionConfig(embed_dim=heads * head, num_heads=heads)
    )
    query = rng.normal(size=(20, heads, head)).astype(np.float32)
    cos, sin = module(torch.zeros(1), torch.tensor(np.asarray(positions)))
    expected, _ = qwen2_vl.apply_rotary_pos_emb_vision(
        torch.tensor(query), torch.tensor(query), cos, sin
    )
    out = rotate(jnp.asarray(query)[None], rotary_angles(positions, head))[0]
    assert relative_error(out, expected.numpy()) < 1e-5


def test_fixed_positions_are_those_of_mae():
    expected = embeddings.get_2d_sincos_pos_embed(32, (3, 5), base_size=5, interpolation_scale=1.0)
    rows = np.asarray(expected).reshape(3, 5, 32)
    # diffusers divides the row's number by grid / base_size: here 3 / 5 and 5 / 5.
    positions = grid_positions(3, 5) * jnp.array([5 / 3, 1.0])
    assert relative_error(position_embedding(positions, 32), rows.reshape(15, 32)) < 1e-5


def test_rms_norm_is_that_of_llama(rng):
    x = rng.normal(size=(2, 7, 24)).astype(np.float32)
    module = random_torch(llama.LlamaRMSNorm(24, eps=1e-6))
    scale = module.weight.detach().numpy()
    out = RMSNorm(1e-6, "float32").apply({"params": {"scale": scale}}, jnp.asarray(x))
    assert relative_error(out, module(torch.tensor(x)).detach().numpy()) < 1e-5


def test_swiglu_is_that_of_llama(rng):
    x = rng.normal(size=(2, 7, TINY.width)).astype(np.float32)
    config = llama.LlamaConfig(
        hidden_size=TINY.width, intermediate_size=TINY.mlp_width, mlp_bias=True, hidden_act="silu"
    )
    module = random_torch(llama.LlamaMLP(config))
    names = {"gate": "gate_proj", "up": "up_proj", "out": "down_proj"}
    params = {ours: linear(getattr(module, theirs)) for ours, theirs in names.items()}
    swiglu = functools.partial(SwiGLU(TINY).apply, drop=lambda hidden: hidden)
    swiglu = jax.jit(swiglu, compiler_options=QUICK)
    out = swiglu({"params": params}, x)
    assert relative_error(out, module(torch.tensor(x)).detach().numpy()) < 1e-5


def test_attention_is_that_of_diffusers(rng):
    """With QK-norm and padded keys; RoPE has a test of its own."""
    x = rng.normal(size=(2, 7, TINY.width)).astype(np.float32)
    head = TINY.width // TINY.heads
    module = random_torch(
        attention.Attention(
            TINY.width, heads=TINY.heads, dim_head=head, bias=True, qk_norm="rms_norm", eps=1e-6
        )
    )
    names = {
        "query": module.to_q,
        "key": module.to_k,
        "value": module.to_v,
        "out": module.to_out[0],
    }
    params = {ours: linear(theirs) for ours, theirs in names.items()}
    for ours, theirs in (("query_norm", module.norm_q), ("key_norm", module.norm_k)):
        params[ours] = {"scale": theirs.weight.detach().numpy()}
    lengths = np.array([7, 4])
    mask = torch.tensor(np.arange(7) < lengths[:, None])
    ours = jax.jit(SelfAttention(TINY).apply, compiler_options=QUICK)
    out = ours({"params": params}, x, jnp.zeros((7, head // 2)), lengths)
    expected = module(torch.tensor(x), attention_mask=mask[:, None].float().log())
    assert relative_error(out, expected.detach().numpy()) < 1e-5
