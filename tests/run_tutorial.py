"""Runs the blocks of docs/tutorial.md that are marked sh or python, in order, in a new folder, and
measures how often the nearest of its forty images to a generated one is the prompted one.

    python tests/run_tutorial.py --folder /tmp/tutorial
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL, ICONS = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "forty_icons"
MODEL = "models/forty"  # what the tutorial saves
OF_TESTS = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
RUN = {"sh": ["bash", "-e", "-o", "pipefail", "-c"], "python": [sys.executable, "-c"]}


def blocks(languages: Sequence[str] = tuple(RUN), path: Path = TUTORIAL) -> list[tuple[str, str]]:
    """(language, text) of each block of code in one of these languages."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(language, block) for language, block in found if language in languages]


def environment() -> dict[str, str]:
    """Of a user who has installed the package: this Python's commands, and none of pytest's options
    for XLA, which make it slow.
    """
    kept = {name: value for name, value in os.environ.items() if name not in OF_TESTS}
    python = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    path = [str(Path(sys.executable).parent), kept["PATH"]]
    return kept | {
        "CLONE": str(ROOT),
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join(python),
    }


def run(folder: Path) -> float:
    """Runs all blocks in the folder; the seconds that they took. CalledProcessError where one
    fails.
    """
    total = 0.0
    for language, block in blocks():
        began = time.monotonic()
        subprocess.run([*RUN[language], block], cwd=folder, env=environment(), check=True)
        seconds = time.monotonic() - began
        total += seconds
        print(f"{seconds:7.1f} s  {block.splitlines()[0]}", flush=True)
    print(f"{total:7.1f} s  in all", flush=True)
    return total


def generate(model: Path, captions: Sequence[str]) -> np.ndarray:
    """An image for each caption, seed 0: uint8 [captions, side, side, 3]."""
    import imagen_jax

    images = imagen_jax.load_model(model).generate_images(
        list(captions), num_images=1, seed=0, progress=False
    )
    return np.stack([np.asarray(image) for image in images])


def share_nearest(images: np.ndarray, files: Sequence[Path]) -> float:
    """How often the nearest of the files' images to image i is that of file i, by the mean squared
    error of pixels at the images' size.
    """
    side = images.shape[1]
    wanted = [Image.open(file).convert("RGB").resize((side, side), Image.BOX) for file in files]
    wanted = np.stack([np.asarray(image, np.float64) for image in wanted])
    errors = np.square(images[:, None] - wanted[None]).mean((2, 3, 4))
    return float(np.mean(errors.argmin(1) == np.arange(len(files))))


def measure(folder: Path) -> float:
    """`share_nearest` of the tutorial's model; its images beside the forty are a figure in the
    folder.
    """
    from imagen_jax.images.grid import image_grid

    with open(ICONS / "captions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    files, captions = [ICONS / row["file"] for row in rows], [row["caption"] for row in rows]
    images = generate(folder / MODEL, captions)
    sheets = [
        image_grid([image.convert("RGB").resize((64, 64)) for image in each], columns=8)
        for each in (map(Image.open, files), map(Image.fromarray, images))
    ]
    image_grid(sheets, columns=2, gap=8).save(folder / "forty.png")
    share = share_nearest(images, files)
    print(f"the nearest of the {len(files)} images is the prompted one: {share:.0%}")
    return share


def main() -> None:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--folder", type=Path, required=True, help="is made; must not exist")
    folder = parse.parse_args().folder
    folder.mkdir(parents=True)
    run(folder)
    measure(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
