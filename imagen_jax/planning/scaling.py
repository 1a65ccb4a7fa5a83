"""The tables of docs/scaling.md: what the compiler says of each plan."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

COLUMNS = (
    *("plan", "state", "encoder", "temporaries", "in all", "compiled / counted", "links", "waits"),
    *("step", "at 60 %", "images/s", "MFU", "HFU", "days", "chip-days", "made in"),
)
GPU_COLUMNS = (
    *("plan", "state", "encoder", "temporaries", "in all", "kernels", "HBM traffic", "links"),
    *("floor", "images/s at most", "made in"),
)
Plans = Iterable[Mapping[str, Any]]


def compiled_table(plans: Plans) -> str:
    """A line of Markdown a plan, of the figures that `plan` gives for training on TPUs."""
    return _table(COLUMNS, _cells, plans)


def gpu_table(plans: Plans) -> str:
    """A line of Markdown a plan, of the figures that `plan` gives for GPUs."""
    return _table(GPU_COLUMNS, _gpu_cells, plans)


def _table(columns: tuple[str, ...], cells: Callable[..., list[str]], plans: Plans) -> str:
    lines = [columns, ("---",) * len(columns), *map(cells, plans)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _first_cells(figures: Mapping[str, Any]) -> list[str]:
    """What is planned, and its memory."""
    memory = figures["memory"]
    state = sum(memory.get(name, 0) for name in ("parameters", "optimizer", "ema"))
    return [
        f"{figures['what']} {figures['stage']}, {figures['topology']}, batch "
        f"{figures['batch_size']}" + (", embeddings given" if figures["embedded"] else ""),
        f"{state / 1e9:.2f} GB",
        f"{memory.get('frozen', 0) / 1e9:.2f} GB",
        f"{memory['temporaries'] / 1e9:.2f} GB",
        f"{memory['total'] / 1e9:.1f} of {memory['hbm'] / 1e9:.0f} GB",
    ]


def _links(figures: Mapping[str, Any]) -> str:
    received = sum(kind["bytes"] for kind in figures["roofline"]["collectives"].values())
    return f"{received / 1e9:.1f} GB"


def _gpu_cells(figures: Mapping[str, Any]) -> list[str]:
    floor, compiler = figures["floor"], figures["compiler"]
    return [
        *_first_cells(figures),
        f"{sum(kind['count'] for kind in figures['kernels'].values()):,}",
        f"{figures['roofline']['bytes'] / 1e9:,.0f} GB",
        _links(figures),
        f"{floor['seconds']:.3f} s",
        f"{floor['images_per_second']:,.0f}",
        f"{compiler['processor_seconds']} s, {compiler['peak_memory'] / 1e9:.1f} GB",
    ]


def _cells(figures: Mapping[str, Any]) -> list[str]:
    times, compiler, speed = figures["roofline"], figures["compiler"], figures["by_compiler"]
    days = speed.get("days")
    return [
        *_first_cells(figures),
        f"{figures['flops']['compiled_over_counted']:.3f}",
        _links(figures),
        f"{times['exposed_collectives'] * 1e3:.0f} ms",
        f"{speed['seconds']:.3f} s",
        f"{figures['reached']['seconds']:.3f} s" if "reached" in figures else "-",
        f"{speed['images_per_second']:,.0f}",
        f"{speed['mfu']:.1%}",
        f"{speed['hfu']:.1%}",
        "-" if days is None else f"{days:.1f}",
        "-" if days is None else f"{days * figures['chips']:,.0f}",
        f"{compiler['seconds'] / 60:.0f} min, {compiler['peak_memory'] / 1e9:.1f} GB",
    ]
