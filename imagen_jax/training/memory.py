"""What to change where a run does not fit into memory."""

import jax

from imagen_jax.devices.sharding import batch_parts
from imagen_jax.training.run_config import RunConfig


def training_advice(config: RunConfig, mesh: jax.sharding.Mesh) -> str:
    """What decides a train step's memory, with its present values, and what to change: first what
    leaves the result as it is.
    """
    network, size = config.stage.network, config.batch_size
    accumulation, parts = config.optimizer.accumulation, batch_parts(mesh)
    shares = f"mesh.fsdp {mesh.shape['fsdp']} of {mesh.size} device{'s' * (mesh.size > 1)}"
    now = [
        f"batch_size {size}",
        f"optimizer.accumulation {accumulation}",
        f"stage.network.remat {network.remat}",
        shares,
        f"stage.network.dtype {network.dtype}",
    ]
    changes = ["data.on_device=False"] if config.data.on_device else []
    more = range(accumulation + 1, size + 1)
    if splits := [n for n in more if size % n == 0 and size // n % parts == 0]:
        changes.append(f"optimizer.accumulation={splits[0]}")
    if network.remat is not True:
        changes.append("stage.network.remat=True")
    if mesh.shape["data"] > 1:
        changes.append(f"mesh.data=1 --config.mesh.fsdp={parts}")
    if network.dtype != "bfloat16":
        changes.append("stage.network.dtype=bfloat16")
    if size > parts:
        changes.append(f"batch_size={max(size // 2 // parts, 1) * parts}")
    tries = ", ".join(f"--config.{change}" for change in changes) or "a smaller network"
    advice = f"Now: {', '.join(now)}. Try one after the other: {tries}."
    if jax.default_backend() == "gpu":
        advice += " nvidia-smi shows whether another program holds the memory."
    return advice
