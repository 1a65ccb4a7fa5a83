"""The page's named endpoints, through gradio_client, of a tiny cascade."""

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed (extra app)")
import httpx
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError

from imagen_jax.app.guard import Guard
from imagen_jax.app.limits import Limits
from imagen_jax.app.page import Page
from imagen_jax.images.image_file import read_settings
from imagen_jax.images.image_list import ImageList
from tests.app.serving import Held, Site, load_held, serving
from tests.tiny_cascade import tiny_pipeline

LIMITS = Limits(images=3, steps=20, characters=100, upload_bytes=2**20, pixels=10_000, waiting=2)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving(limits=LIMITS) as served:
        yield served


@pytest.fixture(scope="module")
def client(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(site.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(5).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def options(**more: Any) -> dict[str, Any]:
    return {"prompt": "red heart", "model": "other", "seed": "7", "num_images": 1, "steps": 4,
            "guidance": 3, "size": 8, "negative_prompt": ""} | more  # fmt: skip


def pixels(files: list[dict]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file["image"])) for file in files])


def arrays(images: ImageList) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_generate_is_the_pipelines(client: Client):
    files, note = client.predict(**options(), api_name="/generate")
    expected = tiny_pipeline().generate_images("red heart", 1, seed=7, progress=False)
    np.testing.assert_array_equal(pixels(files), arrays(expected))
    assert "seed 7" in note
    assert note.startswith("1 image of 8 pixels")


def test_downloads_carry_their_settings_and_are_made_again(client: Client):
    files, _ = client.predict(**options(seed=""), api_name="/generate")
    settings = read_settings(files[0]["image"])
    assert [settings[name] for name in ("prompt", "size", "index")] == ["red heart", 8, 0]
    again, _ = client.predict(json.dumps(settings), "other", api_name="/again")
    np.testing.assert_array_equal(pixels(again), pixels(files))
    other, _ = client.predict(json.dumps(settings | {"index": 1}), "other", api_name="/again")
    assert (pixels(other) != pixels(files)).any()


def test_a_style_is_words_of_the_prompt(client: Client):
    given = options(model="icons-fast", style="flat")
    for prompt, wanted in (("red heart", "red heart, flat style"), ("红心", "红心，扁平风格")):
        files, _ = client.predict(**given | {"prompt": prompt}, api_name="/generate")
        assert read_settings(files[0]["image"])["prompt"] == wanted
    with pytest.raises(AppError, match="other knows no style"):
        client.predict(**given | {"model": "other"}, api_name="/generate")


def test_images_appear_while_they_are_denoised(client: Client):
    job = client.submit(**options(), api_name="/generate")
    job.result(60)
    notes = [note for _, note in job.outputs()]
    assert "base: step 4 of 4" in notes
    assert "sr: step 3 of 3" in notes
    shown = [len(files) for files, _ in job.outputs()]
    assert len(shown) > 7
    assert shown[-1] == 1


def test_edit_inpaint_and_upscale_are_the_pipelines(client: Client, photo: Path):
    image, pipeline = Image.open(photo), tiny_pipeline()
    quiet = {"seed": 7, "progress": False}
    files, _ = client.predict(image=handle_file(photo), **options(), strength=0.5,
                              api_name="/edit")  # fmt: skip
    expected = pipeline.edit(image, "red heart", strength=0.5, **quiet)
    np.testing.assert_array_equal(pixels(files), arrays(expected))

    painted = np.zeros((16, 16, 4), np.uint8)
    painted[:, 8:, 3] = 255
    layer = photo.with_name("layer.png")
    Image.fromarray(painted).save(layer)
    drawing = {"background": handle_file(photo), "layers": [handle_file(layer)], "composite": None}
    files, _ = client.predict(image=drawing, **options(), api_name="/inpaint")
    expected = pipeline.inpaint(image, painted[..., 3], "red heart", **quiet)
    np.testing.assert_array_equal(pixels(files), arrays(expected))

    given = {name: options()[name] for name in ("prompt", "model", "seed", "size", "num_images")}
    files, _ = client.predict(image=handle_file(photo), **given, api_name="/upscale")
    expected = pipeline.upscale(image, "red heart", **quiet)
    np.testing.assert_array_equal(pixels(files), arrays(expected))


def test_explain_is_the_pipelines(client: Client):
    files, note = client.predict(**options(num_images=2), api_name="/explain")
    found = tiny_pipeline().explain("red heart", num_images=2, size=8, seed=7, progress=False)
    expected = [np.asarray(image) for each in found for image in (each.image, each.page())]
    assert len(files) == len(expected) == 4
    for file, image in zip(files, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file["image"])), image)
    assert note.startswith("2 images of 8 pixels")
    assert read_settings(files[0]["image"])["prompt"] == "red heart"
    for layers in ("../up", ["up"], {"up": 1}, 3, True):
        with pytest.raises(AppError, match="Layers are one of up, mid, down, all"):
            client.predict(**options(), layers=layers, api_name="/explain")
    with pytest.raises(
        AppError, match="No layer of stage 'base' has a name that begins with 'mid'"
    ):
        client.predict(**options(), layers="mid", api_name="/explain")


def test_models_says_what_each_can_do(client: Client):
    fast, other = client.predict(api_name="/models")
    assert (fast["name"], other["name"]) == ("icons-fast", "other")
    assert other["sizes"] == [4, 8]
    assert "flat" in fast["styles"]
    assert other["styles"] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "Write a prompt first."),
        ({"prompt": "x" * 101}, "100 are the most here"),
        ({"prompt": "a\x07b"}, "control characters"),
        ({"num_images": 4}, "num_images is 4; 3 is the most here"),
        ({"num_images": 0.5}, "num_images must be a whole number"),
        ({"steps": 21}, "steps is 21; 20 is the most here"),
        ({"guidance": "much"}, "guidance must be a number"),
        ({"seed": "-1"}, "seed is '-1': give a whole number from 0 to 4294967295, or leave"),
        ({"seed": str(2**32)}, "seed must be a whole number from 0 to 4294967295"),
        ({"size": 5}, "No stage of 'other' makes size 5; sizes: 4, 8"),
        ({"model": "/etc"}, "There is no such model here. There are: icons-fast, other"),
    ],
)
def test_errors_are_told_in_words(client: Client, changes: dict[str, Any], words: str):
    with pytest.raises(AppError) as error:
        client.predict(**options(**changes), api_name="/generate")
    assert words in str(error.value)


def test_images_that_cannot_be_are_told_in_words(client: Client, photo: Path):
    given, file = options(), photo.with_name("wrong.png")
    Image.new("L", (101, 100)).save(file)
    for content, words in (
        (file.read_bytes(), "101x100 pixels are more than the 10000 allowed"),
        (photo.read_bytes()[:300], "The image cannot be used"),
        (b"\x80\x04N.", "no image of a known format"),
    ):
        file.write_bytes(content)
        with pytest.raises(AppError, match=words):
            client.predict(image=handle_file(file), **given, strength=0.5, api_name="/edit")
    drawing = {"background": handle_file(photo), "layers": [], "composite": None}
    with pytest.raises(AppError, match="Paint over"):
        client.predict(image=drawing, **given, api_name="/inpaint")
    with pytest.raises(AppError, match="Choose an image first"):
        client.predict(image=None, **given, strength=0.5, api_name="/edit")


def test_uploads_are_limited(site: Site):
    sent = {"files": ("big.png", io.BytesIO(b"0" * (LIMITS.upload_bytes + 2**17)))}
    answer = httpx.post(f"{site.url}gradio_api/upload", files=sent)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "An upload may have 1 MB."


def test_only_named_events_are_endpoints(client: Client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/generate", "/edit", "/inpaint", "/upscale", "/explain", "/again",
                          "/models"}  # fmt: skip


def test_a_full_queue_is_told_and_stop_stops(tmp_path: Path):
    Held.let.clear()
    Held.began.clear()
    with serving(["other"], load_held, LIMITS) as site:
        client = Client(site.url, verbose=False, download_files=tmp_path)
        running = client.submit(**options(size=4), api_name="/generate")
        assert Held.began.wait(30)
        given = {"data": ["blue star", "other", "", "", 4, 3, "", 4, 1]}
        waiting = [httpx.post(f"{site.url}gradio_api/call/generate", json=given) for _ in range(3)]
        assert [answer.status_code for answer in waiting] == [200, 200, 503]
        assert waiting[2].json()["detail"] == "Queue is full. Max size is 2 and size is 2."
        with pytest.raises(QueueError, match="Queue is full"):
            client.predict(**options(size=4), api_name="/generate")
        assert site.studio.jobs.stop("another session") == 0
        assert site.studio.jobs.stop(client.session_hash) == 1
        Held.let.set()
        _, note = running.result(60)
        assert note == "Stopped; 0 images finished."
        event = waiting[1].json()["event_id"]
        told = httpx.get(f"{site.url}gradio_api/call/generate/{event}", timeout=60).text
        assert "event: complete" in told
        assert "1 image of 4 pixels" in told


def test_fields_are_as_the_model_has_them(site: Site):
    page = Page(site.studio)
    prompt, style, upscales, negative, steps, guidance, size = page._described("other")
    events = page.blocks.fns.values()
    (event,) = [event for event in events if event.fn == page._described]
    assert event.queue is False  # not behind others' images
    assert upscales["visible"]
    assert style["visible"] is False
    assert (steps["value"], guidance["value"], size["choices"]) == (4, 3.0, [4, 8])
    assert negative["interactive"]
    assert guidance["interactive"]
    assert page._described("icons-fast")[1]["visible"]
    student = replace(site.studio.models.traits("other"), name="student", distilled=True)
    site.studio.models.known["student"] = student
    prompt, style, _, negative, steps, guidance, size = page._described("student")
    assert not negative["interactive"]
    assert not guidance["interactive"]
    assert steps["maximum"] == 8
    assert (prompt["label"], prompt["placeholder"]) == ("Prompt", "red heart")
    classes = replace(student, name="classes", reads="label", class_names=tuple("abcdefg"))
    plain = replace(student, name="plain", reads=None, distilled=False, upsamples=False)
    site.studio.models.known.update(classes=classes, plain=plain)
    prompt, *_ = page._described("classes")
    assert (prompt["label"], prompt["info"]) == ("Class", "such as a, b, c, d, e")
    prompt, _, upscales, negative, _, guidance, _ = page._described("plain")
    assert (prompt["value"], upscales["visible"]) == ("", False)
    assert not any(field["interactive"] for field in (prompt, negative, guidance))


def test_a_page_for_this_machine_answers_to_its_own_names_alone(tmp_path: Path):
    async def answered(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def asked(local: bool, headers: dict[str, str]) -> httpx.Response:
        guard = Guard(answered, LIMITS, tmp_path, lambda event: None, local)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard)) as client:
            return await client.get("http://127.0.0.1/", headers=headers)

    def status(local: bool, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = asyncio.run(asked(local, named))
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert ("frame-ancestors 'none'" in policy) is local
        return answer.status_code

    assert [status(local, Host="icons.example") for local in (True, False)] == [403, 200]
    assert status(True, Host="localhost:7860", Origin="http://localhost:7860") == 200
    assert [status(True, Host=host) for host in ("127.0.0.2:7860", "[::1]:7860")] == [200, 200]
    proxied = {"Host": "127.0.0.1:7860", "Origin": "https://icons.example"}
    assert status(True, **proxied) == 403
    assert status(True, **proxied, X_Forwarded_Host="icons.example") == 200


@pytest.mark.slow
def test_the_documents_example_runs(site: Site, photo: Path, monkeypatch: pytest.MonkeyPatch):
    folder = photo.parent
    monkeypatch.chdir(folder)
    for name in ("mask.png", "small.png"):
        Image.new("L", (16, 16), 255).save(folder / name)
    made = tiny_pipeline().generate_images("red heart", 1, seed=3, progress=False)[0]
    (folder / "settings.json").write_text(json.dumps(made.info["imagen_jax"]))
    text = (Path(__file__).resolve().parents[2] / "docs/app.md").read_text()
    block = text.partition("```python\n")[2].partition("```")[0]
    assert "http://127.0.0.1:7860/" in block
    exec(block.replace("http://127.0.0.1:7860/", site.url), {})
