"""Writes T5X checkpoints, as T5X lays them out, from the state dict of a Hugging Face encoder."""

from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import tensorstore

LAYER = {
    "attention/query/kernel": "layer.0.SelfAttention.q.weight",
    "attention/key/kernel": "layer.0.SelfAttention.k.weight",
    "attention/value/kernel": "layer.0.SelfAttention.v.weight",
    "attention/out/kernel": "layer.0.SelfAttention.o.weight",
    "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
    "mlp/wi_0/kernel": "layer.1.DenseReluDense.wi_0.weight",
    "mlp/wi_1/kernel": "layer.1.DenseReluDense.wi_1.weight",
    "mlp/wo/kernel": "layer.1.DenseReluDense.wo.weight",
    "pre_mlp_layer_norm/scale": "layer.1.layer_norm.weight",
}
BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


def _split_heads(name: str, kernel: np.ndarray, heads: int) -> np.ndarray:
    if name == "attention/out/kernel":
        return kernel.reshape(heads, -1, kernel.shape[-1])
    return kernel.reshape(kernel.shape[0], heads, -1)


def t5x_arrays(
    state: dict[str, np.ndarray], *, scanned: bool, heads_apart: bool = False
) -> dict[str, np.ndarray]:
    """T5X's names and arrays. `heads_apart`: attention kernels of three axes."""
    bias = state["encoder.block.0." + BIAS]  # [buckets, heads]
    layers = 1 + max(int(name.split(".")[2]) for name in state if ".block." in name)
    own_bias = f"encoder.block.{layers - 1}.{BIAS}" in state

    def layer(number: int) -> dict[str, np.ndarray]:
        found = {
            ours: state[f"encoder.block.{number}.{theirs}"].T for ours, theirs in LAYER.items()
        }
        if heads_apart:
            for name in found:
                if name.startswith("attention/"):
                    found[name] = _split_heads(name, found[name], bias.shape[1])
        if scanned or (own_bias and layers > 1):
            own = f"encoder.block.{number}.{BIAS}"
            found["relpos_bias/rel_embedding"] = state.get(own, bias).T
        return found

    arrays = {
        "token_embedder/embedding": state["shared.weight"],
        "encoder/encoder_norm/scale": state["encoder.final_layer_norm.weight"],
    }
    every = [layer(number) for number in range(layers)]
    if scanned:
        for name in every[0]:
            arrays[f"encoder/encoder/{name}"] = np.stack([one[name] for one in every], axis=1)
        return arrays
    for number, one in enumerate(every):
        arrays |= {f"encoder/layers_{number}/{name}": array for name, array in one.items()}
    if "encoder/layers_0/relpos_bias/rel_embedding" not in arrays:
        arrays["encoder/relpos_bias/rel_embedding"] = bias.T
    return arrays


def tree_of(arrays: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return tree


def _write_zarr(directory: Path, name: str, array: np.ndarray, driver: str) -> dict[str, Any]:
    """The array as a zarr directory, and the spec that T5X leaves in its place."""
    folder = f"target.{name.replace('/', '.')}"
    metadata = {
        "compressor": {"id": "gzip"},
        "shape": list(array.shape),
        "chunks": [max(1, -(-size // 2)) for size in array.shape],
    }
    kvstore = {"driver": "file", "path": str(directory / folder)}
    spec = {"driver": "zarr", "dtype": array.dtype.name, "kvstore": kvstore, "metadata": metadata}
    tensorstore.open(spec, create=True, open=False).result().write(array).result()
    kvstore = {"driver": driver, "path": folder + "/"}
    if driver == "gcs":
        kvstore["bucket"] = "t5x-dummy-bucket"
    return {**spec, "kvstore": kvstore}


def write_checkpoint(
    directory: Path, arrays: dict[str, np.ndarray], *, partitioned: bool, driver: str = "file"
) -> None:
    """A step's folder. `partitioned`: matrices become zarr directories, vectors stay inline."""
    directory.mkdir(parents=True)
    leaves = {
        name: _write_zarr(directory, name, np.ascontiguousarray(array), driver)
        if partitioned and array.ndim > 1
        else np.ascontiguousarray(array)
        for name, array in arrays.items()
    }
    # A decoder that nobody needs, its arrays not even downloaded.
    lost = {"driver": "zarr", "kvstore": {"driver": "file", "path": "target.decoder.lost"}}
    target = {**tree_of(leaves), "decoder": {"logits_dense": {"kernel": lost}}}
    state = {"step": np.int32(1_000_000), "param_states": {"v": np.zeros(3, np.float32)}}
    write_tree(directory, {"version": 3, "optimizer": {"target": target, "state": state}})


def write_tree(directory: Path, tree: dict[str, Any]) -> None:
    content = flax.serialization.msgpack_serialize(tree)
    (directory / "checkpoint").write_bytes(content)
