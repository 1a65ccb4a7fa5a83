"""The page in Chromium: words in, image out, as Python's ONNX Runtime makes it of the same files.

A tiny cascade with random parameters; the model that `make web` put there is for the slow test.
"""

import base64
import contextlib
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade, part_shapes, stage_keys
from imagen_jax.cascade.sample import AUGMENTATION_INDEX
from imagen_jax.cascade.stage import Stage
from imagen_jax.diffusion.samplers import noise_from_keys
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.images.pixels import to_uint8
from imagen_jax.models import EfficientLevel, EfficientUNetConfig
from imagen_jax.models.t5 import T5Config
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.pipeline.shipped import PRETRAINED
from imagen_jax.text.encoder import TextEncoder, tokenize
from imagen_jax.text.tokenizers import SentencePieceTokenizer
from tests.web.browser import WEBGPU, Browser, missing
from tests.web.node import WEB
from tests.web.server import Site, serving

pytest.importorskip("onnx", reason="onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(
        not (WEB / "ort/ort.wasm.min.mjs").is_file(), reason="make web brings ONNX Runtime"
    ),
]
STATUS = 'document.getElementById("status")'
READY = f'{STATUS}.textContent === "Ready."'
DONE = f"{STATUS}.textContent.startsWith('Done') && {STATUS}.textContent"
FAILED = f"{STATUS}.className === 'error' && {STATUS}.textContent"


@pytest.fixture
def serve() -> Iterator[Callable[..., Site]]:
    """Serves folders until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda *given: stack.enter_context(serving(*given))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def tiny() -> Pipeline:
    """Two stages that read text: one guided and with earlier estimates, one a flow map."""

    def network(low_res: int = 0) -> EfficientUNetConfig:
        level = EfficientLevel(16, num_res_blocks=1, stride=2, attention="cross")
        sizes = {"patch_size": 2, "num_heads": 1, "embedding_width": 16}
        sizes |= {"low_res_channels": low_res, "target_time": bool(low_res)}
        return EfficientUNetConfig((level,), **sizes)

    config = T5Config(6000, d_model=16, num_heads=1, head_dim=8, num_layers=1, d_ff=16)
    spiece = SentencePieceTokenizer(str(PRETRAINED / "icons/spiece.model"))
    stages = (
        Stage("base", 16, network(), text_width=16, prediction="v"),
        Stage("sr", 32, network(3), low_resolution=16, text_width=16, prediction="v"),
    )
    sampling = (
        Sampling("dpmpp_2m", 3, guidance=2.0, threshold="static"),
        Sampling("ddim", 2, threshold="static", aug_level=0.2),
    )
    cascade = Cascade(stages, sampling, TextEncoder(config, spiece, max_length=12))
    rng = np.random.default_rng()

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        """Of a size at which the network magnifies no difference by much."""
        inputs = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4.0
        return rng.normal(0.0, inputs**-0.5, leaf.shape).astype(np.float32)

    parts = [TEXT_ENCODER, *(stage.name for stage in stages)]
    return Pipeline(
        cascade, {name: jax.tree.map(draw, part_shapes(cascade, name)) for name in parts}
    )


def write_site(folder: Path, pipeline: Pipeline) -> Path:
    """The page with a model, as `make web` makes it, and `cascade.onnx` of the same weights."""
    from imagen_jax.export.onnx_file import export_onnx

    ignored = shutil.ignore_patterns("model")
    shutil.copytree(WEB, folder / "page", ignore=ignored)
    names = [f"{stage.name}_steps" for stage in pipeline.cascade.stages]
    export_onnx(pipeline, folder / "whole", ["cascade"], "int8")
    export_onnx(pipeline, folder / "page/model", ["text_encoder", *names], "int8")
    for file in list((folder / "page/model").iterdir()):
        packed = file.with_name(f"{file.name}.gz")
        packed.write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    return folder / "page"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline) -> Path:
    return write_site(tmp_path_factory.mktemp("site"), pipeline)


def made_in_python(file: Path, pipeline: Pipeline, prompt: str, seed: int) -> np.ndarray:
    """The image of a seed, uint8 [height, width, 3], by onnxruntime."""
    cascade, inputs = pipeline.cascade, {}
    session = runtime.InferenceSession(file)
    ids, mask = tokenize(cascade.encoder, [prompt])
    inputs |= {"ids": ids, "mask": mask, "negative_ids": 0 * ids, "negative_mask": mask & False}
    for position, (stage, sampling) in enumerate(
        zip(cascade.stages, cascade.sampling, strict=True)
    ):
        keys = stage_keys(np.uint32(seed), np.zeros(1, np.uint32), np.uint32(position))
        noise = noise_from_keys(keys, (stage.resolution, stage.resolution, 3))
        steps = int(sampling.steps)
        inputs |= {
            f"noise_{stage.name}": np.asarray(noise(0)),
            f"times_{stage.name}": np.linspace(1.0, 0.0, steps + 1, dtype=np.float32),
            f"guidance_{stage.name}": np.array(sampling.guidance, np.float32),
            f"augmentation_noise_{stage.name}": np.asarray(noise(AUGMENTATION_INDEX)),
        }
    names = {each.name for each in session.get_inputs()}
    (images,) = session.run(None, {name: inputs[name] for name in names})
    return to_uint8(images)[0]


def shown(browser: Browser) -> np.ndarray:
    """What the canvas shows, uint8 [height, width, 3]."""
    text = browser.evaluate("""(() => {
      const { width, height } = canvas;
      const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
      return [width, height, btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""))];
    })()""")
    width, height, data = text
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3]


def ask(browser: Browser, words: str, style: str, seed: int) -> str:
    """Fills in the form and presses Enter in it; what the page says at the end."""
    values = {"words": words, "style": style, "seed": str(seed)}
    for name, value in values.items():
        browser.evaluate(f"document.getElementById('{name}').value = {json.dumps(value)}")
    browser.evaluate('document.getElementById("words").focus()')
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                     windowsVirtualKeyCode=13)  # fmt: skip
    return browser.wait(f"({DONE}) || ({FAILED})", 120)


def assert_same(found: np.ndarray, wanted: np.ndarray):
    difference = np.abs(found.astype(int) - wanted)
    assert found.shape == wanted.shape
    assert difference.max() <= 1
    assert wanted.std() > 10  # an image, not one color


@pytest.mark.parametrize(
    ("words", "style", "prompt"),
    [
        (" red heart ", "3d style", "red heart, 3d style"),
        ("微笑的脸", "outline style", "微笑的脸，线条风格"),
    ],
    ids=["english", "chinese"],
)
def test_the_image_is_that_of_python(
    serve, browser: Browser, page: Path, pipeline: Pipeline, words: str, style: str, prompt: str
):
    site, seed = serve(page), int(np.random.default_rng().integers(2**32))
    browser.open(site.url)
    assert ask(browser, words, style, seed).startswith("Done")
    wanted = made_in_python(page.parent / "whole/cascade.onnx", pipeline, prompt, seed)
    assert_same(shown(browser), wanted)
    assert browser.evaluate("canvas.getAttribute('aria-label')") == f"Image made from: {prompt}"
    assert str(seed) in browser.evaluate("document.getElementById('caption').textContent")
    assert not browser.evaluate("crossOriginIsolated")


def test_threads_where_the_server_isolates_the_page(
    serve, browser: Browser, page: Path, pipeline: Pipeline
):
    isolated = {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
    }
    browser.open(serve(page, isolated).url)
    assert browser.evaluate("crossOriginIsolated")
    ask(browser, "a", "flat style", 3)
    whole = page.parent / "whole/cascade.onnx"
    assert_same(shown(browser), made_in_python(whole, pipeline, "a, flat style", 3))


def test_every_request_is_for_a_file_of_the_page(serve, browser: Browser, page: Path):
    site = serve(page)
    browser.open(site.url)
    ask(browser, "red heart", "3d style", 1)
    urls = [event["params"]["request"]["url"] for event in browser.events
            if event.get("method") == "Network.requestWillBeSent"]  # fmt: skip
    assert urls
    assert all(url.startswith((site.url, "blob:")) for url in urls)
    # The policy in the page refuses what lies elsewhere: here another port.
    refused = browser.evaluate(
        "fetch('http://127.0.0.1:9/').then(() => '', (error) => error.message)"
    )
    assert refused
    told = [event for event in browser.events if event.get("method") == "Log.entryAdded"]
    assert any("Content Security Policy" in event["params"]["entry"]["text"] for event in told)
    assert not [path for path in site.asked if "heart" in path]


def test_a_newer_request_takes_the_place_of_earlier_ones(
    serve, browser: Browser, page: Path, pipeline: Pipeline
):
    browser.open(serve(page).url)
    browser.wait(READY, 60)
    browser.evaluate("for (let i = 0; i < 9; i++) document.getElementById('another').click()")
    browser.wait(DONE, 60)
    prompt, seed = "red heart, 3d style", 9
    wanted = made_in_python(page.parent / "whole/cascade.onnx", pipeline, prompt, seed)
    assert_same(shown(browser), wanted)
    assert browser.evaluate("caption.textContent") == f"{prompt} (seed {seed})"


@pytest.mark.parametrize("file", ["model/export.json.gz", "ort/ort-wasm-simd-threaded.wasm.gz"])
def test_a_missing_file_is_told(serve, browser: Browser, page: Path, tmp_path: Path, file: str):
    shutil.copytree(page, tmp_path / "page")
    (tmp_path / "page" / file).unlink()
    browser.open(serve(tmp_path / "page").url)
    assert "make web" in browser.wait(FAILED, 30)


def test_a_wrong_seed_is_told_before_anything_is_made(serve, browser: Browser, page: Path):
    browser.open(serve(page).url)
    browser.wait(READY, 60)
    browser.evaluate("seed.value = '-3'; document.querySelector('button[type=submit]').click()")
    assert browser.evaluate("document.querySelector(':invalid').id") == "form"
    assert browser.evaluate(f"{STATUS}.textContent") == "Ready."


def test_it_can_be_used_with_a_screen_reader_and_on_a_phone(serve, browser: Browser, page: Path):
    browser.open(serve(page).url)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("textbox", "combobox", "spinbutton", "button", "image", "status", "heading", "main")
    named = {}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in roles and not node.get("ignored"):
            named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert set(named) == set(roles)
    for role in ("textbox", "combobox", "spinbutton", "button", "image", "heading"):
        assert all(named[role]), named
    size = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 320
    browser.call("Emulation.clearDeviceMetricsOverride")


CONTRAST = """(() => {
  const pen = document.createElement("canvas").getContext("2d");
  const light = (color) => {
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    const parts = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => byte / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const behind = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return /, 0\\)$/.test(color) ? behind(node.parentElement) : color;
  };
  const nodes = "h1, p, label, legend, input, select, button, a, figcaption";
  return [...document.querySelectorAll(nodes)].map((node) => {
    const both = [getComputedStyle(node).color, behind(node)].map(light);
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    return [node.id || node.textContent.trim(), ratio];
  });
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_to_read(serve, browser: Browser, page: Path, scheme: str):
    """WCAG 2.2, 1.4.3: at least 4.5."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", features=features)
    browser.open(serve(page).url)
    for name, ratio in browser.evaluate(CONTRAST):
        assert ratio >= 4.5, name
    browser.call("Emulation.setEmulatedMedia", features=[])


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """In dB, of uint8 images."""
    return float(10 * np.log10(255**2 / np.mean(np.square(found.astype(float) - wanted))))


@pytest.mark.slow
def test_webgpu(serve, page: Path, pipeline: Pipeline, tmp_path: Path):
    """By SwiftShader, which is WebGPU on the CPU."""
    with Browser(tmp_path, WEBGPU) as browser:
        browser.open(f"{serve(page).url}?webgpu")
        if not browser.evaluate("navigator.gpu.requestAdapter().then(Boolean)"):
            pytest.skip("this Chromium has no WebGPU")
        assert ask(browser, "a", "flat style", 3).startswith("Done")
        whole = page.parent / "whole/cascade.onnx"
        assert_same(shown(browser), made_in_python(whole, pipeline, "a, flat style", 3))


@pytest.mark.slow
def test_the_shipped_model(serve, browser: Browser, tmp_path: Path, record_property):
    """The one of `make web`: its image is that of Python's ONNX Runtime and, but for int8, of
    `generate_images`; a visit transfers less than 30 MB.
    """
    makefile = (WEB.parent / "Makefile").read_text(encoding="utf-8")
    pipeline = load_model(re.search(r"^WEB_MODEL \?= (\S+)", makefile, re.MULTILINE)[1])
    page = write_site(tmp_path, pipeline)
    site = serve(page)
    browser.open(site.url)
    said = ask(browser, "red heart", "3d style", 0)
    image, prompt = shown(browser), "red heart, 3d style"
    assert_same(image, made_in_python(tmp_path / "whole/cascade.onnx", pipeline, prompt, 0))
    direct = pipeline.generate_images(prompt, seed=0)[0]
    assert psnr(image, np.asarray(direct)) > 25
    sent = 0
    for path in set(site.asked):
        content = (page / (path.lstrip("/") or "index.html")).read_bytes()
        sent += len(content if path.endswith(".gz") else gzip.compress(content))
    assert sent < 30e6
    record_property(f"page of {pipeline.name}", f"{said} {sent / 1e6:.1f} MB transferred.")
    record_property("page against generate_images", f"{psnr(image, np.asarray(direct)):.1f} dB")
