"""The benchmark's results as lines and as Markdown, for docs/measurements.md."""

from typing import Any

PHASES = ("import", "trace", "lower", "compile", "run")
HEAD = (
    "| case | side | parameters | batch | images/s | to the first | GFLOP/s, MFU | first step | "
    "import, trace, lower, compile, run | with caches | memory |"
)


def line(result: dict[str, Any]) -> str:
    """One result, as it is printed when it is known."""
    speed, parts = result.get("images_per_second"), []
    if speed:
        rounds = result["rounds"]
        parts.append(f"{speed:,.2f} images/s ({min(rounds):,.2f} to {max(rounds):,.2f})")
    if work := _work(result):
        parts.append(work)
    if first := result.get("first"):
        spent = ", ".join(f"{name} {first[name]:.1f}" for name in PHASES if name in first)
        parts.append(f"first step {_first(result)}" + (f" ({spent})" if spent else ""))
    parts += [f"{title} {text}" for title, text in _last(result).items() if text]
    if "error" in result:
        parts.append(f"error: {result['error']}")
    return f"{result['case']}, {result['side']}: " + "; ".join(parts)


def _last(result: dict[str, Any]) -> dict[str, str]:
    return {"with caches": _warm(result), "memory": _memory(result)}


def markdown(report: dict[str, Any]) -> str:
    """The table of a report, and what it was measured on."""
    results = report["results"]
    first = {each["case"]: each for each in reversed(results)}
    rows = [HEAD, "| --- " * HEAD.count(" | ") + "| --- |"]
    for result in results:
        cells = [result["case"], result["side"]]
        if "error" in result and "images_per_second" not in result:
            rows.append(f"| {' | '.join(cells)} | {result['error'].replace('|', '/')} |" + " |" * 8)
            continue
        parameters, speed = result.get("parameters"), result.get("images_per_second")
        against = first[result["case"]].get("images_per_second")
        cells += [
            f"{parameters / 1e6:,.1f} M" if parameters else "",
            f"{result.get('batch', '')}",
            f"{speed:,.1f}" if speed else "",
            f"{speed / against:.2f}" if speed and against else "",
            *(_work(result), _first(result), _phases(result), *_last(result).values()),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    about = ", ".join(f"{name} {value}" for name, value in report["about"].items() if value)
    return f"{about}\n\n" + "\n".join(rows)


def _work(result: dict[str, Any]) -> str:
    done, share = result.get("flops_per_second"), result.get("mfu")
    return (f"{done / 1e9:,.0f} GFLOP/s" if done else "") + (f", {share:.1%} MFU" if share else "")


def _first(result: dict[str, Any]) -> str:
    """Of a whole command also what its networks take."""
    alone = result.get("networks_seconds")
    networks = f" (networks {alone:.1f} s)" if alone else ""
    return f"{result['first']['total']:.1f} s{networks}" if "first" in result else ""


def _phases(result: dict[str, Any]) -> str:
    first = result.get("first", {})
    spent = [f"{first[name]:.1f}" if name in first else "-" for name in PHASES]
    return ", ".join(spent) if "import" in first else ""


def _warm(result: dict[str, Any]) -> str:
    warm = result.get("warm", {})
    return f"{warm['total']:.1f} s" if "total" in warm else warm.get("error", "")


def _memory(result: dict[str, Any]) -> str:
    """Of the device where that counts it, else of the process."""
    used = result.get("device_bytes") or result.get("host_bytes")
    return f"{used / 1e9:.1f} GB" if used else ""


def profile(found: dict[str, Any]) -> str:
    """What `trace.top` found, in lines."""
    lines = [f"{found['seconds']:.3f} s of the devices"]
    for title in ("kinds", "operations"):
        lines.append(f"{title}:")
        lines += [f"  {share:6.1%}  {name}" for name, share in found[title].items()]
    return "\n".join(lines)
