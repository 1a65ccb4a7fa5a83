"""From a plan that was compiled for one topology to what other chips and counts would take.

What is derived here is an estimate: the same operations on as many more or fewer images a chip,
each at the other chip's peaks. Another compiler would fuse and lay out otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.devices.chips import CHIPS, Chip

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
        float(figures["memory"]["total"]),
        *(speed[name] for name in ("seconds", "images_per_second", "mfu", "hfu", "days")),
    )


def derived_row(figures: Figures, chip: Chip, chips: int) -> Row:
    """The same batch on other chips.

    Work a chip grows with its images; parameters that are gathered and gradients that are reduced
    stay as many, so the links' time does not shrink with the images. As large a part of it is
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
    """Bytes a chip with `growth` times as many images and as large a share of the state.

    All of the temporaries are taken for activations but the gathered kernels.
    """
    memory, chips = figures["memory"], figures["chips"]
    shares = figures["mesh"]["fsdp"] * figures["mesh"]["tensor"]
    gathered = memory["parameters"] * shares / 2 if shares > 1 else 0.0  # bfloat16 of float32
    gathered = min(gathered, memory["temporaries"])
    # Fewer chips than shares hold several each; more hold less only where the mesh grows with them.
    state = memory["arguments"] * (growth if shares == chips else max(1.0, shares * growth / chips))
    return state + memory["program"] + gathered + (memory["temporaries"] - gathered) * growth


def base_of(plans: Iterable[Figures]) -> dict[str, Figures]:
    """For each stage the training plan that others are derived from: that of the fewest chips."""
    result: dict[str, Figures] = {}
    for figures in plans:
        known = result.get(figures["stage"])
        fewest = known is None or figures["chips"] < known["chips"]
        if _with_encoder(figures) and fewest:
            result[figures["stage"]] = figures
    return result


def _with_encoder(figures: Figures) -> bool:
    """Whether a plan is of training as the configs have it, with the text encoder in the step."""
    return figures["what"] == "training" and not figures["embedded"]


def runs_table(plans: Sequence[Figures]) -> str:
    """Every run of RUNS for every stage: as compiled where it was, else derived."""
    rows = []
    for stage, base in base_of(plans).items():
        compiled = {
            (f["chip"], f["chips"]): f for f in plans if f["stage"] == stage and _with_encoder(f)
        }
        for name, chips in RUNS:
            same = compiled.get((name, chips))
            rows.append(compiled_row(same) if same else derived_row(base, find(name), chips))
    return _table(rows)


def growth_table(plans: Sequence[Figures]) -> str:
    """Each stage on other numbers of the chips that it was compiled for."""
    rows = []
    for base in base_of(plans).values():
        chip = find(base["chip"])
        rows += [
            compiled_row(base) if chips == base["chips"] else derived_row(base, chip, chips)
            for chips in GROWTH
        ]
    return _table(rows)


def _table(rows: Iterable[Row]) -> str:
    names = (
        *("stage", "chips", "source", "memory a chip", "of", "step", "images/s"),
        *("MFU", "HFU", "days", "chip-days"),
    )
    lines = []
    for row in rows:
        room = find(row.chip).hbm
        memory = f"{row.memory / 1e9:.1f} GB" + ("" if row.memory <= room else ", too much")
        lines.append(
            [
                row.stage,
                f"{row.chips} {row.chip}",
                row.source,
                memory,
                f"{room / 1e9:.0f} GB",
                f"{row.seconds:.3f} s",
                f"{row.images_per_second:,.0f}",
                f"{row.mfu:.0%}",
                f"{row.hfu:.0%}",
                f"{row.days:.1f}",
                f"{row.chip_days:,.0f}",
            ]
        )
    return _markdown(names, lines)


def compiled_table(plans: Sequence[Figures]) -> str:
    """What was compiled: memory, counts, times by the roofline and by the compiler."""
    names = (
        *("plan", "state", "encoder", "temporaries", "in all", "compiled / counted", "links"),
        *("waits", "roofline", "MFU", "HFU", "compiler's", "MFU", "HFU", "made in"),
    )
    lines = []
    for figures in plans:
        memory, roofline = figures["memory"], figures["roofline"]
        state = sum(memory.get(name, 0) for name in ("parameters", "optimizer", "ema"))
        links = sum(kind["bytes"] for kind in roofline["collectives"].values())
        cells = [
            f"{figures['what']} {figures['stage']}, {figures['topology']}, batch "
            f"{figures['batch_size']}" + (", embeddings given" if figures["embedded"] else ""),
            *(
                f"{size / 1e9:.2f} GB"
                for size in (state, memory.get("frozen", 0), memory["temporaries"])
            ),
            f"{memory['total'] / 1e9:.1f} of {memory['hbm'] / 1e9:.0f} GB",
            f"{figures['flops']['compiled_over_counted']:.3f}",
            f"{links / 1e9:.1f} GB",
            f"{roofline['exposed_collectives'] * 1e3:.0f} ms",
        ]
        for name in ("by_roofline", "by_compiler"):
            speed = figures.get(name)
            if speed is None:
                cells += ["not given"] * 3
                continue
            cells += [f"{speed['seconds']:.3f} s", f"{speed['mfu']:.1%}", f"{speed['hfu']:.1%}"]
        compiler = figures["compiler"]
        cells.append(f"{compiler['seconds'] / 60:.0f} min, {compiler['peak_memory'] / 1e9:.1f} GB")
        lines.append(cells)
    return _markdown(names, lines)


def _markdown(names: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    names = list(names)
    rows = [names, ["---"] * len(names), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
