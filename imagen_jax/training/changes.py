"""What a resumed run does otherwise than it began, for a warning: checkpoints fit many configs."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from imagen_jax.cascade.stage import KINDS
from imagen_jax.data.sources import Source
from imagen_jax.storage.codec import to_dict
from imagen_jax.storage.trees import name_some
from imagen_jax.training.run_config import RunConfig, read_config

# What decides which images a batch has, as it is called in a warning.
ORDER = {"seed": "seed", "batch_size": "batch_size", "images": "the number of images"}
# What may change without making the run another one.
FREE = (
    *("num_steps", "log_every", "mesh.", "checkpoint.", "sample", "evaluate", "skip_batches"),
    *("ema.every", "ema.dtype"),
    *("data.num_threads", "data.prefetch", "data.index_dir"),
    *("stage.network.remat", "stage.network.scan_layers", "stage.network.fused"),
)


def say_changes(
    config: RunConfig,
    source: Source | None,
    saved: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Warns where the batches from here on are not those that the run would have had, and where its
    config is another.

    Args:
        source: its images; None for a stream.
        saved: what the checkpoint holds beside the arrays.
    """
    now, before = dict(_flat(to_dict(config, KINDS))), saved.get("config", {})
    try:
        before = dict(_flat(to_dict(read_config(before), KINDS)))
        names = [*before, *(name for name in now if name not in before)]
    except ValueError:  # of another version: what both have
        before = dict(_flat(before))
        names = [name for name in before if name in now]
    if source is not None and "images" in saved:
        before["images"], now["images"] = saved["images"], len(source)
        names.append("images")
    changed = {
        name: (before.get(name), now.get(name))
        for name in names
        if before.get(name) != now.get(name) and not name.startswith(FREE)
    }
    for name, called in ORDER.items():
        if name in changed:
            was, value = changed.pop(name)
            say(
                f"warning: {called} was {was} and is {value} now: the images come in "
                "another order, and some are repeated before others were used"
            )
    if changed:
        some = [f"{name} was {was!r} and is {value!r}" for name, (was, value) in changed.items()]
        say(f"warning: the run goes on with another config: {name_some(some)}")


def _flat(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """("optimizer.learning_rate", 0.001), ... of nested sections."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value
