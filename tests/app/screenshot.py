"""What the page looks like with the shipped model: text, edit and inpainting, as PNGs for the docs.

python -m tests.app.screenshot docs/images
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from imagen_jax.app.limits import Limits
from imagen_jax.app.models import DEFAULTS
from imagen_jax.pipeline.loading import load_model
from tests.app.serving import serving
from tests.web.browser import Browser

WIDE, PHONE_WIDTH = (1200, 860), 400
MARGIN, BACKGROUND = 20, (120, 124, 132)
NOTE = "document.querySelector('#note').innerText"
SECONDS = 300


def shoot(browser: Browser, file: Path, size: tuple[int, int]) -> Image.Image:
    browser.evaluate("document.activeElement.blur()")
    browser.screenshot(file, *size)
    return Image.open(file).convert("RGB").crop((0, 0, *size))


def choose_style(browser: Browser, name: str) -> None:
    field = "document.querySelector('input[aria-label=Style]')"
    option = (
        f"[...document.querySelectorAll('[role=option]')].find(x => x.innerText.includes('{name}'))"
    )
    browser.evaluate(f"{field}.focus()")
    browser.wait(option, 30)
    browser.evaluate(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    browser.wait(f"{field}.value === '{name}'", 30)


def make(browser: Browser, button: str) -> None:
    seed = f"({NOTE}.match(/seed [0-9]+/) || [''])[0]"
    before = browser.evaluate(seed)
    browser.evaluate(f"document.querySelector('#{button}').click()")
    browser.wait(f"{seed} && {seed} !== {before!r}", SECONDS)
    images = "[...document.querySelectorAll('#results img')]"
    browser.wait(f"{images}.length === 4", SECONDS)
    browser.evaluate(f"Promise.all({images}.map(image => image.decode()))")


def open_tab(browser: Browser, name: str) -> None:
    tab = f"[...document.querySelectorAll('[role=tab]')].find(x => x.innerText.trim() === '{name}')"
    browser.evaluate(f"{tab}.click()")


def draw_face(file: Path) -> None:
    """A face as somebody draws it in a minute."""
    image = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 30, 270, 270), fill="#ffc83d")
    for left in (95, 175):
        draw.ellipse((left, 105, left + 30, 150), fill="#402a10")
    draw.chord((90, 150, 210, 235), 0, 180, fill="#402a10")
    image.save(file)


def paint(browser: Browser, photo: Path) -> None:
    """Strokes over the upper half of an image that is shown in the editor."""
    text = "document.querySelector('#drawing').innerText"
    browser.wait(f"document.querySelector('#drawing canvas') && /[0-9]%/.test({text})", 60)
    browser.choose_file("#drawing input[type=file]", photo)
    browser.wait(f"!{text}.includes('Upload')", 60)
    browser.evaluate("new Promise(resolve => setTimeout(resolve, 1500))")  # it zooms in
    left, top, width, height = browser.evaluate(
        "(({x, y, width, height}) => [x, y, width, height])"
        "(document.querySelector('#drawing canvas').getBoundingClientRect())"
    )
    for row in (0.36, 0.42, 0.48):
        across = np.linspace(0.33, 0.67, 16)
        browser.drag([(left + width * x, top + height * row) for x in across])


def main(folder: str) -> None:
    shots: dict[str, list[Image.Image]] = {}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Browser(Path(profile)) as browser,
        serving(DEFAULTS, load_model, Limits(images=8)) as site,
    ):
        file, face, sketch = (Path(profile) / f"{name}.png" for name in ("shot", "face", "sketch"))
        draw_face(sketch)
        with site.studio.models.use("icons-fast") as model:
            made = model.generate_images("smiling face, noto style", 1, seed=3, progress=False)
            made[0].save(face)
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        screen = {"width": WIDE[0], "height": WIDE[1], "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **screen)
        browser.open(site.url)
        browser.wait("document.querySelector('#settings button')", 60)
        browser.type("#prompt textarea", "red heart")
        choose_style(browser, "3d")
        make(browser, "generate")
        browser.evaluate("document.querySelector('#settings button').click()")
        browser.wait("document.querySelector('#settings_text textarea').offsetParent", 30)
        tall = [(width, 1120) for width in (WIDE[0], PHONE_WIDTH)]
        shots["text"] = [shoot(browser, file, size) for size in tall]
        browser.evaluate("document.querySelector('#settings button').click()")
        browser.call("Emulation.setDeviceMetricsOverride", **screen)
        open_tab(browser, "Edit")
        browser.wait("document.querySelector('#edited input[type=file]')", 30)
        browser.choose_file("#edited input[type=file]", sketch)
        browser.wait("document.querySelector('#edited img')", 30)
        browser.type("#prompt textarea", "smiling face")
        make(browser, "edit")
        shots["edit"] = [shoot(browser, file, WIDE)]
        open_tab(browser, "Inpaint")
        paint(browser, face)
        browser.type("#prompt textarea", "smiling face with sunglasses")
        choose_style(browser, "noto")
        make(browser, "inpaint")  # it is compiled
        make(browser, "inpaint")
        shots["inpaint"] = [shoot(browser, file, WIDE)]
    for name, parts in shots.items():
        width = sum(part.width + MARGIN for part in parts) + MARGIN
        sheet = Image.new("RGB", (width, parts[0].height + 2 * MARGIN), BACKGROUND)
        left = MARGIN
        for part in parts:
            sheet.paste(part, (left, MARGIN))
            left += part.width + MARGIN
        sheet.thumbnail((1040, 1040), Image.Resampling.LANCZOS)
        small = sheet.quantize(128, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
        small.save(Path(folder) / f"app_{name}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
