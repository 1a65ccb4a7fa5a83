"""Where images come from, and whether that still holds: marks of a model's work (IPTC), the
settings that make an image again, a signature (C2PA) and who signed it.

    imagen-jax verify samples/*.png
    imagen-jax verify samples/ --roots company.pem --json

Ends with status 1 where something is damaged, changed or no image. An image without marks is not
wrong: they are easily lost. Needs no network.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imagen_jax.commands.command_line import make_parser, path, run_parsed

LONGEST = 300  # characters of a line
SHOWN = ("model", "prompt", "label", "seed", "index")  # of the settings


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("files", nargs="+", type=path, metavar="FILE", help="an image, or a folder of images")
    add("--roots", type=path, metavar="FILE",
        help="certificates (PEM) of those you trust to sign, or to say who may")  # fmt: skip
    add("--json", action="store_true", help="all that is found, as JSON")
    return parse


def verify(options: argparse.Namespace) -> None:
    from imagen_jax.images.signing import read_roots
    from imagen_jax.images.verification import inspect

    roots = None if options.roots is None else read_roots(options.roots)
    found, wrong = [], 0
    for file in files(options.files):
        try:
            finding = inspect(file, roots)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            entry, lines = {"error": reason}, [f"{file}: {reason}"]
            wrong += 1
        else:
            entry, lines = asdict(finding), [f"{file}: {described(finding)}"]
            lines += [f"  {line}" for line in told(finding)]
            wrong += bool(finding.faults)
        found.append({"file": str(file), **entry})
        if not options.json:
            print("\n".join(map(printable, lines)), flush=True)
    if options.json:
        print(json.dumps(found, indent=1))
    if wrong:
        sys.exit(1)


def files(given: list[Path]) -> Iterator[Path]:
    """The files, and those of the folders that are images by their names."""
    from imagen_jax.images.decoding import SUFFIXES

    for entry in given:
        inside = sorted(entry.iterdir()) if entry.is_dir() else [entry]
        found = [
            file
            for file in inside
            if file == entry or (file.suffix.lower() in SUFFIXES and not file.is_dir())
        ]
        if not found:
            raise ValueError(f"{entry} holds no images.")
        yield from found


def described(finding: Any) -> str:
    """What kind of file it is."""
    width, height = finding.size
    return f"{finding.format}, {width}x{height}{', a sheet of images' * finding.sheet}"


def told(finding: Any) -> Iterator[str]:
    """What the file says, line by line, and what is wrong with it."""
    xmp, settings, manifest = finding.xmp, finding.settings, finding.manifest
    if source := xmp.get("source"):
        by = ", ".join(xmp[key] for key in ("system", "tool") if key in xmp)
        yield f"source:    {source}{f', by {by}' * bool(by)} (IPTC, in XMP)"
    else:
        yield "source:    not told"
    if settings is not None:
        shown = {name: settings.get(name) for name in SHOWN if settings.get(name) is not None}
        listed = (f"{name} {json.dumps(each, ensure_ascii=False)}" for name, each in shown.items())
        yield f"settings:  {', '.join(listed)}"
    else:
        yield "settings:  none that imagen_jax wrote"
    if manifest is None:
        yield "signature: none; whether it was changed cannot be told"
    else:
        by = f"by {manifest.signer or 'nobody named'}"
        vouched = {
            "trusted": f"valid, {by}, whom --roots trusts; unchanged since",
            "valid": f"valid, {by}, for whom nobody vouches (see --roots); unchanged since",
            "broken": f"broken, {by}",
        }
        yield f"signature: {vouched[manifest.state]}"
        if manifest.source:
            yield f"           says {manifest.source}, by {manifest.generator or 'unnamed'} (C2PA)"
    for fault in finding.faults:
        yield f"WRONG:     {fault}"


def printable(line: str) -> str:
    """What a file says, as one line that moves no cursor."""
    plain = "".join(sign if sign.isprintable() else "\ufffd" for sign in line)
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]} ..."


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), verify, arguments)
