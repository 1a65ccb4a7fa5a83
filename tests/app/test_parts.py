"""The page's parts without its server: fields, models, jobs, the address."""

import json
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen_jax.app.address import bind, is_loopback, url_of
from imagen_jax.app.fields import read_drawing, read_image, read_settings
from imagen_jax.app.jobs import STOPPING, WAITING, Jobs, Stopped
from imagen_jax.app.limits import Limits
from imagen_jax.app.making import Studio
from imagen_jax.app.models import Models
from imagen_jax.app.visitor_files import make_room
from imagen_jax.images.image_file import SETTINGS_KEY
from imagen_jax.pipeline.pipeline import Pipeline
from tests.tiny_cascade import CASCADE, random_params, tiny_pipeline

LIMITS = Limits(pixels=10_000)


# ------------------------------------------------------------------------------------- models


def tiny_models(names: list[Any], free: bool = False) -> Models:
    return Models(names, lambda source: tiny_pipeline(), free)


def test_one_model_is_in_memory_at_a_time():
    models = tiny_models(["one", "two"])
    with models.use("one") as first, models.use("one") as again:
        assert first is again
    with models.use("two"):
        assert models.held[0] == "two"
    with models.use("one") as later:
        assert later is not first


def test_models_are_shown_without_their_places(tmp_path: Path):
    for folder in ("a/base", "b/base", "sr"):
        (tmp_path / folder).mkdir(parents=True)
    a, b, sr = (str(tmp_path / folder) for folder in ("a/base", "b/base", "sr"))
    models = tiny_models(["icons", a, b, [a, sr], "user/model"])
    assert models.names == ["icons", "base", "base (2)", "base,sr", "user/model"]
    assert models.sources["base (2)"] == b


def test_only_this_machines_user_names_others():
    fixed, free = tiny_models(["icons"]), tiny_models(["icons"], free=True)
    with pytest.raises(ValueError, match=r"There is no such model here. There are: icons"):
        fixed.traits("/etc")
    assert free.traits("other").name == "other"


def test_a_name_that_cannot_be_loaded_leaves_the_model_in_memory():
    def load(source: Any) -> Any:
        if source == "icnos":
            raise ValueError("there is none")
        return tiny_pipeline()

    models = Models(["icons"], load, free=True)
    with models.use("icons") as first:
        pass
    with pytest.raises(ValueError, match="icnos cannot be loaded"):
        models.traits("icnos")
    assert models.held == ("icons", first)


def test_a_known_model_is_described_while_another_request_runs():
    models = tiny_models(["icons", "other"])
    for name in models.names:
        models.traits(name)
    models.traits("icons")
    found: list[Any] = []

    def ask() -> None:
        found.append(models.traits("other"))
        try:
            models.traits("none")
        except ValueError as error:
            found.append(str(error))

    with models.use("icons"):
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(20)
        assert found[0].name == "other"
        assert found[1].startswith("There is no such model here")


@pytest.mark.parametrize("free", [False, True])
def test_where_a_model_lies_is_told_to_its_owner_alone(free: bool):
    def load(source: Any) -> Any:
        raise ValueError("/home/me/models is damaged")

    models = Models(["icons"], load, free)
    with pytest.raises(ValueError, match="The model icons cannot be loaded") as error:
        models.traits("icons")
    assert ("/home/me" in str(error.value)) is free


def test_traits_are_the_pipelines():
    traits = tiny_models(["icons"]).traits("icons")
    assert (traits.reads, traits.sizes, traits.steps, traits.guidance) == ("text", (4, 8), 4, 3.0)
    assert traits.upsamples
    assert traits.styles
    assert not traits.distilled


# --------------------------------------------------------------------------------------- jobs


def test_reports_come_out_in_order_and_errors_after_them():
    def work(report: Any) -> None:
        for number in range(3):
            report(number)
        raise ValueError("no more")

    jobs = Jobs()
    running = jobs.run("me", work)
    assert [next(running) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(running)
    assert not jobs.running


def test_a_session_stops_its_own_jobs_alone():
    jobs, go = Jobs(), threading.Event()

    def work(report: Any) -> None:
        report("begun")
        go.wait(20)
        report("late")

    mine, other = jobs.run("me", work), jobs.run("you", work)
    assert (next(mine), next(other)) == ("begun", "begun")
    assert (jobs.stop("me"), jobs.stop("nobody")) == (1, 0)
    go.set()
    with pytest.raises(Stopped):
        next(mine)
    assert list(other) == ["late"]


def test_work_ends_with_who_watches_it():
    jobs, ended = Jobs(), threading.Event()

    def work(report: Any) -> None:
        try:
            while True:
                report(0)
        finally:
            ended.set()

    watched = jobs.run("me", work)
    next(watched)
    watched.close()
    assert not jobs.running
    assert ended.wait(20)


def test_what_waits_is_stopped_until_the_session_begins_again():
    jobs = Jobs()
    jobs.stop("me")
    assert list(jobs.run("me", lambda report: report(1))) == [1]
    jobs.stop("me", waiting=True)
    with pytest.raises(Stopped):
        next(jobs.run("me", lambda report: report(1)))
    assert list(jobs.run("you", lambda report: report(1))) == [1]
    jobs.begin("me")
    assert list(jobs.run("me", lambda report: report(1))) == [1]


def test_silence_is_reported_and_that_it_is_to_stop():
    jobs, go = Jobs(), threading.Event()
    running = jobs.run("me", lambda report: go.wait(20) and report(1))
    assert next(running) == WAITING
    assert jobs.is_running("me")
    jobs.stop("me")
    assert next(running) == STOPPING
    go.set()
    with pytest.raises(Stopped):
        next(running)


# ------------------------------------------------------------------------------------- fields


def field(path: Path) -> dict[str, Any]:
    return {"path": str(path)}


def test_painted_is_what_a_layer_covers(tmp_path: Path, rng: np.random.Generator):
    photo, layer, mask = (tmp_path / f"{name}.png" for name in ("photo", "layer", "mask"))
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(photo)
    painted = rng.integers(0, 256, (20, 30, 4), np.uint8)
    painted[..., 3] = 0
    painted[5:10, :7, 3] = 190  # of any color
    Image.fromarray(painted).save(layer)
    black = np.zeros((20, 30), np.uint8)
    black[15:, 20:] = 255  # a mask as other programs have it
    Image.fromarray(black).save(mask)
    drawing = {"background": field(photo), "layers": [field(layer), None, field(mask)]}
    image, found = read_drawing(drawing, tmp_path, LIMITS)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(photo)))
    np.testing.assert_array_equal(np.asarray(found) > 0, (painted[..., 3] > 0) | (black > 0))


def test_only_what_was_uploaded_is_read(tmp_path: Path):
    inside, outside = tmp_path / "in", tmp_path / "out.png"
    inside.mkdir()
    Image.new("RGB", (4, 4)).save(outside)
    (inside / "link.png").symlink_to(outside)
    for path in (outside, inside / "link.png", inside / "../out.png", inside, inside / "no.png"):
        with pytest.raises(ValueError, match="not uploaded here"):
            read_image(field(path), inside, LIMITS)


def test_settings_ask_for_no_more_than_fields_may():
    made = tiny_pipeline().generate_images("red heart", 1, 4, seed=3, progress=False)[0]
    settings = made.info[SETTINGS_KEY]
    traits = tiny_models(["icons"]).traits("icons")
    assert read_settings(json.dumps(settings), traits, LIMITS) == settings
    more = [dict(entry, steps=5000) for entry in settings["sampling"]]
    with pytest.raises(ValueError, match="steps is 5000; 250 is the most here"):
        read_settings(json.dumps(settings | {"sampling": more}), traits, LIMITS)
    listed = [dict(entry, spacing=list(range(2000))) for entry in settings["sampling"]]
    with pytest.raises(ValueError, match="2,000 times"):
        read_settings(json.dumps(settings | {"sampling": listed}), traits, LIMITS)
    for more in ({"edit": {"strength": [0.7]}}, {"guide": {"base": {"model": "other"}}}):
        with pytest.raises(ValueError, match="It was"):
            read_settings(json.dumps(settings | more), traits, LIMITS)


def test_settings_are_read_back_from_a_png(tmp_path: Path):
    studio = Studio(tiny_models(["icons"]), LIMITS, tmp_path)
    made = tiny_pipeline().generate_images("red heart", 1, 4, seed=3, progress=False)[0]
    made.save(tmp_path / "made.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    assert json.loads(studio.settings(field(tmp_path / "made.png"))) == made.info[SETTINGS_KEY]
    with pytest.raises(ValueError, match="holds no settings") as error:
        studio.settings(field(tmp_path / "other.png"))
    assert str(tmp_path) not in str(error.value)
    few = replace(studio, limits=Limits(pixels=made.width * made.height - 1))
    with pytest.raises(ValueError, match="holds no settings"):
        few.settings(field(tmp_path / "made.png"))


def test_an_image_is_made_again_by_its_own_model_alone(tmp_path: Path):
    def load(source: Any) -> Pipeline:
        seed = ["one", "two"].index(source)
        return Pipeline(CASCADE, random_params(CASCADE, seed), name=source, fingerprint=f"f{seed}")

    studio = Studio(Models(["one", "two"], load), LIMITS, tmp_path)
    made = load("one").generate_images("red heart", 1, 4, seed=3, progress=False)[0]
    text = json.dumps(made.info[SETTINGS_KEY])
    *_, last = studio.make("again", {"settings": text, "model": "one"})
    np.testing.assert_array_equal(np.asarray(Image.open(last.files[0])), np.asarray(made))
    previews = list(tmp_path.glob("*/unfinished_*"))
    assert previews
    os.utime(previews[0], (0, 0))
    list(studio.make("again", {"settings": text, "model": "one"}))
    assert [preview.exists() for preview in previews] == [False] + [True] * (len(previews) - 1)
    with pytest.raises(ValueError, match=r"of the model one: choose it above"):
        list(studio.make("again", {"settings": text, "model": "two"}))
    other = json.dumps(made.info[SETTINGS_KEY] | {"fingerprint": "f9"})
    with pytest.raises(ValueError, match=r"of other weights of one"):
        list(studio.make("again", {"settings": other, "model": "one"}))


def test_what_a_model_does_not_do_is_told(tmp_path: Path):
    studio = Studio(tiny_models(["icons"]), LIMITS, tmp_path)
    traits = studio.models.traits("icons")
    studio.models.known["icons"] = replace(traits, only_upscales=True)
    with pytest.raises(ValueError, match="icons only upscales: use the tab Upscale"):
        next(studio.make("generate", {"model": "icons", "prompt": "red heart"}))
    studio.models.known["icons"] = replace(traits, promptless=True)
    with pytest.raises(ValueError, match="The prompt is empty"):  # the pipeline's own word
        next(studio.make("generate", {"model": "icons", "prompt": ""}))


def test_a_distilled_model_takes_no_negative_prompt(tmp_path: Path):
    studio = Studio(tiny_models(["icons"]), LIMITS, tmp_path)
    traits = studio.models.traits("icons")
    studio.models.known["icons"] = replace(traits, distilled=True)
    given = {"model": "icons", "prompt": "red heart", "negative_prompt": "blue"}
    with pytest.raises(ValueError, match="it takes no negative prompt"):
        next(studio.make("generate", given))


def test_a_model_may_have_its_own_steps(tmp_path: Path):
    studio = Studio(tiny_models(["icons"]), Limits(steps=2), tmp_path)
    given = {"model": "icons", "prompt": "red heart", "size": 4, "num_images": 1}
    with pytest.raises(ValueError, match="steps is 5; 4 is the most here"):
        next(studio.make("generate", given | {"steps": 5}))
    *_, last = studio.make("generate", given | {"steps": 4})
    assert last.note.startswith("1 image of 4 pixels")


def test_old_files_go_and_more_than_there_is_room_for_is_refused(tmp_path: Path):
    old, new = tmp_path / "a/b/old.png", tmp_path / "a/new.png"
    for file in (old, new):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"0" * 100)
    for path in (old, old.parent):
        os.utime(path, (0, 0))
    make_room(tmp_path, 100)
    assert (old.exists(), new.exists()) == (False, True)
    os.utime(old.parent, (0, 0))  # it was new for what was deleted in it
    make_room(tmp_path, 100)
    assert not old.parent.exists()
    with pytest.raises(ValueError, match="There is no room now: files are deleted after 60 min"):
        make_room(tmp_path, 99)
    studio = Studio(tiny_models(["icons"]), Limits(kept_bytes=99), tmp_path)
    with pytest.raises(ValueError, match="There is no room now"):
        next(studio.make("generate", {"model": "icons", "prompt": "red heart"}))


# ------------------------------------------------------------------------------------ address


def test_a_port_in_use_is_named_with_what_to_give():
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert url_of(bound) == f"http://127.0.0.1:{port}/"
        other = port + 1 if port < 65535 else port - 1
        with pytest.raises(ValueError, match=f"--port {port} is in use.*--port {other}"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 65536, "--port is 65536; it must be 1 to 65535"),
        ("127.0.0.1", -1, "--port is -1"),
        ("192.0.2.1", 0, "--host 192.0.2.1 is no address of this machine"),
        ("no such host", 0, "--host no such host is no name or address of this machine"),
    ],
)
def test_what_cannot_be_bound_is_told(host: str, port: int, words: str):
    with pytest.raises(ValueError, match=words):
        bind(host, port)


def test_loopback_is_known_by_any_of_its_names():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org", "")))
    with bind("0.0.0.0", 0) as bound:
        assert url_of(bound).startswith("http://127.0.0.1:")
        with socket.create_connection(bound.getsockname()):
            pass
