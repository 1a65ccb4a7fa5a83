"""A plan as lines to read."""

from typing import Any

SHOWN = 12  # of the kernels without cycles, by layer
ALLOCATED = 0.75  # the share of a GPU's memory that jax takes unless it is told another


def summary(figures: dict[str, Any]) -> str:
    """What `plan` found, as lines to read."""
    counted, traffic, compiler = figures["flops"], figures["roofline"], figures["compiler"]
    shape = " x ".join(f"{name} {size}" for name, size in figures["mesh"].items())
    unit = figures["unit"]
    return "\n".join(
        [
            f"{figures['what']} of {figures['stage']}: batch {figures['batch_size']} on "
            f"{figures['chips']} {figures['chip']} {unit}{'s' * (figures['chips'] > 1)} "
            f"({figures['topology']}; {shape}; remat "
            f"{figures['remat']}, accumulation {figures['accumulation']})",
            *memory_lines(figures["memory"], unit),
            f"FLOPs: by the jaxpr {counted['with_recomputation'] / 1e12:,.0f} T, of which the "
            f"model needs {counted['analytic'] / 1e12:,.0f} T; compiled "
            f"{counted['compiled'] / 1e12:,.0f} T",
            f"HBM traffic a {unit}: {traffic['bytes'] / 1e9:.1f} GB",
            *(_kernel_lines(figures["kernels"]) if unit == "GPU" else ()),
            *(
                f"{kind}: {sent['count']} times, {sent['bytes'] / 1e9:.2f} GB a {unit}, "
                f"{sent['seconds'] * 1e3:.0f} ms of the links"
                for kind, sent in traffic["collectives"].items()
            ),
            *(_floor_lines(figures) if unit == "GPU" else _time_lines(figures)),
            f"what takes longest, on one {unit}:",
            *map(_layer_line, figures["heaviest"]),
            f"compiled in {compiler['seconds']} s ({compiler['processor_seconds']} s of processor "
            f"time) with {compiler['peak_memory'] / 1e9:.1f} GB here",
        ]
    )


def memory_lines(memory: dict[str, Any], unit: str) -> list[str]:
    """What a device keeps, and whether it fits."""
    parts = [name for name in memory if name not in ("total", "hbm", "fits")]
    fits = "fits" if memory["fits"] else "does not fit"
    if unit == "GPU" and memory["fits"] and memory["total"] > ALLOCATED * memory["hbm"]:
        fits += f" if XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 is set (jax takes {ALLOCATED:.0%})"
    return [
        f"memory a {unit}: " + ", ".join(f"{name} {memory[name] / 1e9:.2f} GB" for name in parts),
        f"  in all {memory['total'] / 1e9:.1f} of {memory['hbm'] / 1e9:.0f} GB: {fits}",
    ]


def _kernel_lines(kernels: dict[str, Any]) -> list[str]:
    count = sum(kind["count"] for kind in kernels.values())
    return [
        f"kernels: {count:,}",
        *(
            f"  {sums['count']:7,} {kind}, {sums['bytes'] / 1e9:.1f} GB, "
            f"{sums['flops'] / 1e12:.2f} TFLOP"
            for kind, sums in kernels.items()
        ),
    ]


def _floor_lines(figures: dict[str, Any]) -> list[str]:
    floor = figures["floor"]
    return [
        f"floor (not an estimate): at least {floor['seconds']:.3f} s, so at most "
        f"{floor['images_per_second']:,.0f} images/s and {floor['mfu']:.1%} MFU; each kernel at "
        f"{figures['share_of_peak']:.0%} of the peak or at the memory's bandwidth, the slower",
    ]


def _time_lines(figures: dict[str, Any]) -> list[str]:
    times, speed, rough = figures["roofline"], figures["by_compiler"], figures["without_cycles"]
    steps, days = figures["num_steps"], speed.get("days")
    lines = [
        f"the cores wait {times['exposed_collectives'] * 1e3:.0f} ms for collectives, "
        f"{times['exposed_copies'] * 1e3:.0f} ms for copies",
        f"by the compiler's cycles: {speed['seconds']:.3f} s, "
        f"{speed['images_per_second']:,.0f} images/s, MFU {speed['mfu']:.1%} (diffusion network "
        f"only {speed['mfu_network']:.1%}), HFU {speed['hfu']:.1%}"
        + ("" if days is None else f", {days:.1f} days for {steps:,} steps"),
    ]
    if rough:
        lines += [
            f"{sum(item['count'] for item in rough)} kernels without cycles take "
            f"{sum(item['seconds'] for item in rough) * 1e3:.1f} ms by their FLOPs and bytes; at "
            f"{figures['share_of_peak']:.0%} of the peak a step takes "
            f"{figures['reached']['seconds']:.3f} s, MFU {figures['reached']['mfu']:.1%}:",
            *map(_layer_line, rough[:SHOWN]),
        ]
    return lines


def _layer_line(item: dict[str, Any]) -> str:
    return (
        f"  {item['seconds'] * 1e3:7.1f} ms {item['flops'] / 1e12:7.2f} TFLOP "
        f"{item['bytes'] / 1e9:7.1f} GB  {item['what']}"
    )
