"""The page in Chromium: text, edit, a brush, stop; and that it asks no other host for anything."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed (extra app)")

from imagen_jax.app.limits import Limits
from tests.app.serving import Held, Site, load_held, serving
from tests.web.browser import Browser, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
NOTE = "document.querySelector('#note').innerText"
SEED = f"({NOTE}.match(/seed [0-9]+/) || [''])[0]"
SHOWN = "document.querySelectorAll('#results img').length"
SETTINGS = "document.querySelector('#settings_text textarea')"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    Held.let.set()
    with serving(["icons-fast", "other"], load_held, Limits(images=3)) as served:
        yield served


@pytest.fixture(scope="module")
def page(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        size = {"width": 1200, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.open(site.url)
        browser.wait("document.querySelector('#settings button')", 60)
        yield browser


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((160, 160), Image.Resampling.NEAREST).save(path)
    return path


def open_tab(page: Browser, name: str) -> None:
    tab = f"[...document.querySelectorAll('[role=tab]')].find(x => x.innerText.trim() === '{name}')"
    page.evaluate(f"{tab}.click()")


def made(page: Browser, button: str) -> dict:
    """The settings of the first image that a button makes, as the page shows them."""
    seed, settings = page.evaluate(SEED), page.evaluate(f"{SETTINGS}.value")
    page.evaluate(f"document.querySelector('#{button}').click()")
    page.wait(f"{SEED} && {SEED} !== {seed!r}", 60)
    page.wait(f"{SHOWN} >= 3", 30)
    page.evaluate(f"""new Promise((resolve, reject) => {{
        const late = performance.now() + 20000;
        const look = () => {SETTINGS}.value !== {settings!r} ? resolve()
            : performance.now() > late ? reject(Error("no settings")) : setTimeout(look, 50);
        look();
    }})""")
    return json.loads(page.evaluate(f"{SETTINGS}.value"))


def test_text(page: Browser):
    page.evaluate("document.querySelector('#settings button').click()")
    page.wait(SETTINGS, 30)
    page.type("#prompt textarea", "red heart")
    settings = made(page, "generate")
    assert (settings["prompt"], settings["model"], settings["index"]) == (
        "red heart",
        "icons-fast",
        0,
    )


def test_an_error_leaves_the_images_and_says_what_is_wrong(page: Browser):
    shown = page.evaluate(SHOWN)
    page.evaluate("document.querySelector('#prompt textarea').focus()")
    page.type("#prompt textarea", "")
    page.evaluate("document.querySelector('#generate').click()")
    page.wait("document.body.innerText.includes('Write a prompt first.')", 30)
    page.wait(f"!{NOTE}.includes('Waiting')", 30)
    assert (page.evaluate(SHOWN), page.evaluate(f"{NOTE}.trim()")) == (shown, "")
    page.type("#prompt textarea", "red heart")


@pytest.mark.slow
def test_edit_and_a_brush(page: Browser, photo: Path):
    if page.evaluate(f"{SETTINGS} === null"):
        page.evaluate("document.querySelector('#settings button').click()")
        page.wait(SETTINGS, 30)
    page.type("#prompt textarea", "red heart")
    open_tab(page, "Edit")
    page.wait("document.querySelector('#edited input[type=file]')", 30)
    page.choose_file("#edited input[type=file]", photo)
    page.wait("document.querySelector('#edited img')", 30)
    assert made(page, "edit")["edit"] == {"strength": [0.7]}

    open_tab(page, "Inpaint")
    text = "document.querySelector('#drawing').innerText"
    page.wait("document.querySelector('#drawing canvas')", 30)
    page.wait(f"/[0-9]%/.test({text})", 30)  # its canvas is ready
    page.choose_file("#drawing input[type=file]", photo)
    page.wait(f"!{text}.includes('Upload')", 30)
    left, top, width, height = page.evaluate(
        "(({x, y, width, height}) => [x, y, width, height])"
        "(document.querySelector('#drawing canvas').getBoundingClientRect())"
    )
    middle = top + height / 2
    page.drag([(left + width * share, middle) for share in np.linspace(0.4, 0.6, 12)])
    settings = made(page, "inpaint")
    assert settings["inpaint"]["strength"] == 1


def test_stop_stops_what_runs(page: Browser):
    open_tab(page, "Text")
    Held.let.clear()
    Held.began.clear()
    page.evaluate("document.querySelector('#prompt textarea').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                  windowsVirtualKeyCode=13)  # fmt: skip
    assert Held.began.wait(30)
    stop = "document.querySelector('#stop')"
    page.wait(f"{stop}?.offsetParent && {NOTE}.includes(': 2 s')", 30)
    page.evaluate(f"{stop}.click()")
    page.wait(f"{NOTE}.includes('Stopping')", 30)
    Held.let.set()
    stopped = page.wait(f"{NOTE}.includes('Stopped') && {NOTE}", 60)
    assert stopped.strip() == "Stopped; 0 images finished."
    page.wait(f"!{stop}?.offsetParent", 30)


def test_nothing_leaves_the_host(page: Browser, site: Site):
    asked = page.requests()
    assert len(asked) > 50
    assert [url for url in asked if not url.startswith((site.url, "data:", "blob:"))] == []
    refused = page.evaluate(
        "fetch('http://127.0.0.1:9/').then(() => 'sent', error => error.message)"
    )
    assert refused == "Failed to fetch"
    assert "Content Security Policy" in json.dumps(page.events)
