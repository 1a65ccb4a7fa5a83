"""From a plan that was compiled for one topology to what other chips and counts would take.

What is derived here is an estimate: the same operations on as many more or fewer pictures a chip,
each at the other chip's peaks. Another compiler would fuse and lay out otherwise.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from imagen_jax.training.chips import CHIPS, Chip

Figures = Mapping[str, Any]
# The runs of the table: chip and how many. Eight H100 are one server.
RUNS = (("v4", 128), ("v5e", 256), ("v5p", 64), ("v6e", 256), ("H100", 8))
GROWTH = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Row:
    """One line of a table: a stage's training on some chips. source: compiled or derived. memory:
    bytes a chip. mfu, hfu: as of `plan.speeds`.
    """

    stage: str
    chip: str
    chips: int
    source: str
    memory: float
    seconds: float
    images_per_second: float
    mfu: float
    hfu: float
    days: float

    @property
    def chip_days(self) -> float:
        return self.days * self.chips


def find(name: str) -> Chip:
    return next(chip for chip in CHIPS if chip.name == name)


def compiled_row(figures: Figures) -> Row:
    """A plan as it was compiled."""
    speed = figures["by_roofline"]
    return Row(
        figures["stage"],
        figures["chip"],
        figures["chips"],
        "compiled",
        figures["memory"]["total"],
        *(speed[name] for name in ("seconds", "images_per_second", "mfu", "hfu", "days")),
    )


def derived_row(figures: Figures, chip: Chip, chips: int) -> Row:
    """The same batch on other chips.

    Work a chip grows with its pictures; parameters that are gathered and gradients that are reduced
    stay as many, so the links' time does not shrink with the pictures. As large a part of it is
    waited for as in the compiled plan, or all that is longer than the work.
    """
    roofline, growth = figures["roofline"], figures["chips"] / chips
    work = growth * sum(
        max(flops / chip.flops, size / chip.bandwidth)
        for flops, size in roofline["by_intensity"].values()
    )
    traffic = sum(kind["bytes"] for kind in roofline["collectives"].values())
    measured = sum(kind["seconds"] for kind in roofline["collectives"].values())
    links = traffic / chip.link
    waited = roofline["exposed_collectives"] / measured if measured else 0.0
    seconds = work + max(waited * links, links - work)
    peak = seconds * chips * chip.flops
    return Row(
        figures["stage"],
        chip.name,
        chips,
        "derived",
        derived_memory(figures, growth),
        seconds,
        figures["batch_size"] / seconds,
        figures["flops"]["analytic"] / peak,
        figures["flops"]["compiled"] / peak,
        figures["num_steps"] * seconds / 86400,
    )


def derived_memory(figures: Figures, growth: float) -> float:
    """Bytes a chip with `growth` times as many pictures and as large a share of the state.

    All of the temporaries are taken for activations but the gathered kernels.
    """
    memory, chips = figures["memory"], figures["chips"]
    shares = figures["mesh"]["fsdp"] * figures["mesh"]["tensor"]
    gathered = memory["parameters"] * shares / 2 if shares > 1 else 0.0  # bfloat16 of float32
    gathered = min(gathered, memory["temporaries"])
    state = memory["arguments"] * (growth if shares == chips else 1.0)
    return state + memory["program"] + gathered + (memory["temporaries"] - gathered) * growth


def rows(plans: Iterable[Figures]) -> list[Row]:
    """Every run of RUNS for every stage: as compiled where it was, else derived from the plan that
    was compiled for the most chips' FLOPs.
    """
    result, stages = [], {}
    for figures in plans:
        stages.setdefault(figures["stage"], []).append(figures)
    for of_stage in stages.values():
        base = max(of_stage, key=lambda f: find(f["chip"]).flops * f["chips"])
        for name, chips in RUNS:
            same = [f for f in of_stage if (f["chip"], f["chips"]) == (name, chips)]
            made = compiled_row(same[0]) if same else derived_row(base, find(name), chips)
            result.append(made)
    return result


def growth_rows(figures: Figures) -> list[Row]:
    """The plan's own chip, in other numbers."""
    return [
        compiled_row(figures)
        if chips == figures["chips"]
        else derived_row(figures, find(figures["chip"]), chips)
        for chips in GROWTH
        if figures["batch_size"] % chips == 0
    ]


def table(lines: Iterable[Row]) -> str:
    """Rows as a Markdown table."""
    names = (
        *("stage", "chips", "source", "memory a chip", "of", "step", "images/s"),
        *("MFU", "HFU", "days", "chip-days"),
    )
    parts = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    for row in lines:
        room = find(row.chip).hbm
        memory = f"{row.memory / 1e9:.1f} GB" + ("" if row.memory <= room else " (too much)")
        parts.append(
            f"| {row.stage} | {row.chips} {row.chip} | {row.source} | {memory} | "
            f"{room / 1e9:.0f} GB | {row.seconds:.3f} s | {row.images_per_second:,.0f} | "
            f"{row.mfu:.0%} | {row.hfu:.0%} | {row.days:.1f} | {row.chip_days:,.0f} |"
        )
    return "\n".join(parts)
