"""imagen-jax push: models to a stand-in of the hub, read back by load_model; refusals in a line."""

import socket

import jax
import numpy as np
import pytest
from tiny_cascade import ENCODER, random_params, tiny_pipeline

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.commands.push import main
from imagen_jax.convert.hub_upload import check_name, model_files
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.model_directory import Stored, write_model
from imagen_jax.pipeline.pipeline import Pipeline
from tests.commands.hub_stand_in import TOKEN, Repository, hub
from tests.commands.test_convert import ENCODER as T5
from tests.commands.test_convert import SETTINGS, STAGE

pytest.importorskip("huggingface_hub", reason="the hub is reached through it")


@pytest.fixture
def server(tmp_path, monkeypatch):
    from huggingface_hub import constants

    account = {"name": "me", "orgs": [{"name": "team"}]}
    with hub(account) as running:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        use(monkeypatch, running.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.chdir(tmp_path)
        yield running


def use(monkeypatch, url):
    from huggingface_hub import constants

    path = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + path)


@pytest.fixture
def model(tmp_path):
    """In several files, with their index."""
    pipeline = tiny_pipeline()
    stored = Stored("float32", max_shard_bytes=20_000)
    write_model(tmp_path / "tiny", pipeline.cascade, pipeline.params, stored)
    return tmp_path / "tiny"


def refused(arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert "\n" not in str(ended.value)
    return str(ended.value)


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_is_pushed_is_read_back(server, model, capsys):
    main([str(model), "me/mine", "--license", "mit", "--private", "--message", "First"])
    assert server.url + "/me/mine" in capsys.readouterr().out
    repository = server.repositories["me/mine"]
    assert (repository.private, repository.commits) == (True, ["First"])
    assert "base.safetensors.index.json" in repository.branches["main"]
    sent = repository.branches["main"]
    own = {path.name: path.read_bytes() for path in model.iterdir()}
    card = sent.pop("README.md").decode()
    assert sent == own
    assert not (model / "README.md").exists()
    assert {"license: mit", "library_name: imagen_jax", "pipeline_tag: text-to-image"} <= set(
        card.splitlines()
    )
    assert 'load_model("me/mine")' in card
    read = load_model("me/mine")
    assert read.cascade == load_model(model).cascade
    equal(random_params(read.cascade), dict(read.params))


def test_a_card_of_ones_own_is_sent_and_changes_replace_old_weights(server, model):
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    old = {"main": {"old.safetensors": b"old", "other.txt": b"other"}}
    server.repositories["team/mine"] = Repository(False, old)
    main([str(model), "team/mine", "--branch", "trial"])
    branches = server.repositories["team/mine"].branches
    assert branches["main"] == {"old.safetensors": b"old", "other.txt": b"other"}
    assert branches["trial"]["README.md"] == (model / "README.md").read_bytes()
    assert "other.txt" in branches["trial"]
    assert "old.safetensors" not in branches["trial"]
    equal(dict(load_model(model).params), dict(load_model("team/mine", revision="trial").params))
    assert "--license is for a card that is written" in refused(
        [model, "team/mine", "--license", "mit"]
    )


def test_another_layout_takes_the_place_of_the_first_and_the_authors_card_stays(server, tmp_path):
    cascade = Cascade((STAGE,), (SETTINGS,), T5)
    Pipeline(cascade, random_params(cascade)).save_pretrained(tmp_path / "if", dtype="float32")
    main([str(tmp_path / "if"), "me/if"])
    sent = server.repositories["me/if"].branches["main"]
    sent["README.md"] = b"# Edited on its page\n"
    params = load_model(tmp_path / "if").params["mine"]
    for layout in ("diffusers", "imagen_jax"):
        main([str(tmp_path / "if"), "me/if", "--to", layout])
        sent = server.repositories["me/if"].branches["main"]
        assert sent["README.md"] == b"# Edited on its page\n"
        assert ("model.json" in sent) == (layout == "imagen_jax")
        assert ("model_index.json" in sent) == (layout == "diffusers")
        read = load_model("me/if")
        equal(read.params[read.cascade.stages[0].name], params)


def test_chained_models_are_written_anew(server, tmp_path):
    cascade = tiny_pipeline().cascade
    for name, index in (("one", 0), ("two", 1)):
        alone = Cascade(
            cascade.stages[index : index + 1], cascade.sampling[index : index + 1], ENCODER
        )
        Pipeline(alone, random_params(cascade), name=name).save_pretrained(tmp_path / name)
    main([f"{tmp_path}/one,{tmp_path}/two", "me/both", "--dtype", "float32"])
    read, parts = load_model("me/both"), [load_model(tmp_path / name) for name in ("one", "two")]
    assert (read.name, read.sizes) == ("both", (4, 8))
    for part, source in {"base": 0, "text_encoder": 0, "sr": 1}.items():
        equal(parts[source].params[part], read.params[part])
    card = server.repositories["me/both"].branches["main"]["README.md"].decode()
    assert "license" not in card


def test_diffusers_layout(server, model, tmp_path):
    cascade = Cascade((STAGE,), (SETTINGS,), T5)
    Pipeline(cascade, random_params(cascade)).save_pretrained(tmp_path / "if", dtype="float32")
    main([str(tmp_path / "if"), "me/if", "--to", "diffusers", "--license", "mit"])
    sent = server.repositories["me/if"].branches["main"]
    assert {"model_index.json", "unet/config.json", "tokenizer/spiece.model"} <= sent.keys()
    card = sent["README.md"].decode()
    assert "library_name: diffusers" in card
    assert 'IFPipeline.from_pretrained("me/if")' in card
    assert "num_inference_steps=20, guidance_scale=5.0" in card
    read = load_model("me/if")
    equal(read.params[read.cascade.stages[0].name], load_model(tmp_path / "if").params["mine"])
    reason = refused([model, "me/tiny", "--to", "diffusers", "--stage", "base"])
    assert "network" in reason
    assert "me/tiny" not in server.repositories


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--license", "MIT: free"], "--license is 'MIT: free'"),
        (["--stage", "base"], "--stage is for --to diffusers"),
        (["--to", "diffusers", "--quantize", "int8"], "--quantize is for --to imagen_jax"),
        (["--message", " "], "--message must not be empty"),
    ],
)
def test_options_that_do_not_fit_are_refused(option, said, server, model):
    assert said in refused([model, "me/mine", *option])
    assert server.asked == []


def test_shared_parts_are_read_from_the_shipped_model(server):
    main(["icons-fast", "me/fast"])
    sent = server.repositories["me/fast"].branches["main"]
    assert "text_encoder.safetensors" not in sent
    own, read = load_model("icons-fast"), load_model("me/fast")
    assert own.fingerprint == read.fingerprint
    equal(own.params["text_encoder"], read.params["text_encoder"])


def test_what_is_no_part_of_a_model_is_refused(server, model):
    (model / "notes.bin").write_bytes(b"x")
    assert "notes.bin is a pickle" in refused([model, "me/mine"])
    (model / "notes.bin").rename(model / "video.mp4")
    (model / ".hidden").write_bytes(b"x")
    assert not {"video.mp4", ".hidden"} & model_files(model).keys()
    (model / "video.mp4").write_bytes(bytes(2**20 + 1))
    assert "video.mp4 (1.0 MB) is no part of a model" in refused([model, "me/mine"])
    assert not server.repositories


def test_a_dry_run_lists_and_asks_nobody(server, model, capsys):
    main([str(model), "me/mine", "--dry_run"])
    said = capsys.readouterr().out
    assert all(file.name in said for file in model.iterdir())
    assert "README.md" in said
    assert server.asked == []


NAMES = [
    "mine",
    "me/",
    "/mine",
    "a/b/c",
    "me/my model",
    "me/..",
    "../mine",
    "me/a--b",
    "me/模型",
    "me/x.git",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_name_is_refused_before_anything_is_read(name, server):
    assert "NAME is" in refused(["no-such-model", name])
    assert server.asked == []
    check_name("me/My_model-1.0")


def test_who_may_not_write_is_told_before_the_model_is_read(server, monkeypatch):
    missing = "no-such-model"
    assert "me cannot write to you/mine" in refused([missing, "you/mine"])
    server.account["auth"] = {"accessToken": {"role": "read"}}
    assert "may only read" in refused([missing, "me/mine"])
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept the token" in refused([missing, "me/mine"])
    monkeypatch.delenv("HF_TOKEN")
    assert "Nobody is logged in" in refused([missing, "me/mine"])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and listens to nobody
        use(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert "refused" in refused([missing, "me/mine"]).lower()


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("GET /api/whoami", 500, "answers 500 for me/mine"),
        ("POST /api/repos/create", 403, "refuses to write me/mine: refused by the stand-in"),
        ("POST /api/models/me/mine/preupload", 404, "answers 404 for me/mine"),
        ("POST /api/models/me/mine/commit", 403, "refuses to write me/mine"),
        ("PUT /lfs", 400, "could not be uploaded"),
    ],
)
def test_answers_of_the_hub_are_told_in_a_line(where, status, said, server, model):
    server.refuse[where] = status
    assert said in refused([model, "me/mine"])
    server.refuse.clear()
    main([str(model), "me/mine"])  # the same command, repeated
    assert "model.json" in server.repositories["me/mine"].branches["main"]


def test_what_an_interrupted_upload_brought_is_not_sent_again(server, model):
    server.refuse["POST /api/models/me/mine/commit"] = 403
    refused([model, "me/mine"])
    first = [each for each in server.asked if each.startswith("PUT")]
    server.refuse.clear()
    main([str(model), "me/mine"])
    assert len(first) > 1
    assert [each for each in server.asked if each.startswith("PUT")] == first


def test_private_is_not_promised_of_a_public_repository(server, model):
    server.repositories["me/mine"] = Repository(False)
    assert "everybody can see it" in refused([model, "me/mine", "--private"])
    assert server.repositories["me/mine"].branches["main"] == {}
