"""The table of docs/scaling.md: what the compiler says of each plan."""

from collections.abc import Iterable, Mapping
from typing import Any

COLUMNS = (
    *("plan", "state", "encoder", "temporaries", "in all", "compiled / counted", "links", "waits"),
    *("step", "images/s", "MFU", "HFU", "days", "chip-days", "made in"),
)


def compiled_table(plans: Iterable[Mapping[str, Any]]) -> str:
    """A line of Markdown a plan, of the figures that `plan` gives for training."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells, plans)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(figures: Mapping[str, Any]) -> list[str]:
    memory, times, compiler = figures["memory"], figures["roofline"], figures["compiler"]
    speed = figures["by_compiler"]
    state = sum(memory.get(name, 0) for name in ("parameters", "optimizer", "ema"))
    links = sum(kind["bytes"] for kind in times["collectives"].values())
    days = speed.get("days")
    return [
        f"{figures['what']} {figures['stage']}, {figures['topology']}, batch "
        f"{figures['batch_size']}" + (", embeddings given" if figures["embedded"] else ""),
        f"{state / 1e9:.2f} GB",
        f"{memory.get('frozen', 0) / 1e9:.2f} GB",
        f"{memory['temporaries'] / 1e9:.2f} GB",
        f"{memory['total'] / 1e9:.1f} of {memory['hbm'] / 1e9:.0f} GB",
        f"{figures['flops']['compiled_over_counted']:.3f}",
        f"{links / 1e9:.1f} GB",
        f"{times['exposed_collectives'] * 1e3:.0f} ms",
        f"{speed['seconds']:.3f} s",
        f"{speed['images_per_second']:,.0f}",
        f"{speed['mfu']:.1%}",
        f"{speed['hfu']:.1%}",
        "-" if days is None else f"{days:.1f}",
        "-" if days is None else f"{days * figures['chips']:,.0f}",
        f"{compiler['seconds'] / 60:.0f} min, {compiler['peak_memory'] / 1e9:.1f} GB",
    ]
