"""C2PA: images are signed where a key is given; changes are found; errors come early."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image
from signing_keys import Keys, make_keys

from imagen_jax.commands import app, generate, verify
from imagen_jax.images import signing
from imagen_jax.images.grid import image_grid
from imagen_jax.images.image_file import (
    GeneratedImage,
    has_settings,
    is_sheet,
    read_settings,
    save_image,
)
from imagen_jax.images.provenance import COMPOSITE, TRAINED
from imagen_jax.images.verification import inspect
from tests.commands.in_process import call
from tests.tiny_cascade import tiny_pipeline

ENDINGS = ("png", "jpg", "webp", "avif", "tif", "gif")


@pytest.fixture(scope="module")
def keys() -> Keys:
    return make_keys()


@pytest.fixture
def signing_by(monkeypatch, tmp_path):
    """Makes keys those of the environment."""

    def use(keys: Keys) -> None:
        key, chain = keys.write(tmp_path)
        monkeypatch.setenv(signing.KEY, key)
        monkeypatch.setenv(signing.CERTIFICATES, chain)

    return use


@pytest.fixture
def image(rng) -> GeneratedImage:
    made = Image.fromarray(rng.integers(0, 256, (32, 24, 3), np.uint8))
    made.info["imagen_jax"] = {"model": "m", "prompt": "红", "index": 3, "seed": 5, "sampling": []}
    return GeneratedImage.of(made)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_signed_image_tells_who_and_what(image, keys, signing_by, tmp_path, ending):
    signing_by(keys)
    path = tmp_path / f"x.{ending}"
    image.save(path)
    found = inspect(path)
    assert found.faults == ()
    assert (found.manifest.state, found.manifest.source) == ("valid", TRAINED)
    assert found.manifest.signer == "Signer of Test Company"
    assert found.manifest.generator.startswith("imagen_jax ")
    assert inspect(path, keys.root).manifest.state == "trusted"
    assert inspect(path, make_keys().root).manifest.state == "valid"  # one whom nobody trusts
    if ending != "gif":  # no place for them
        assert found.xmp["source"] == TRAINED
        assert read_settings(path) == image.info["imagen_jax"]


@pytest.mark.parametrize("kind", ["P-384", "RSA", "Ed25519"])
def test_other_keys(image, signing_by, tmp_path, kind):
    signing_by(make_keys(kind))
    image.save(tmp_path / "x.png")
    assert inspect(tmp_path / "x.png").manifest.state == "valid"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_changed_byte_is_found(image, keys, signing_by, tmp_path, rng, ending):
    """Any outside the manifest, but for the first box of an AVIF."""
    image.save(tmp_path / f"plain.{ending}")
    signing_by(keys)
    path = tmp_path / f"x.{ending}"
    image.save(path)
    content = path.read_bytes()
    added = len(content) - (tmp_path / f"plain.{ending}").stat().st_size
    start = content.index(b"jumb")
    manifest = range(start - 40, start + added + 40)
    first = int.from_bytes(content[:4], "big") if ending == "avif" else 0
    outside = [n for n in range(first, len(content)) if n not in manifest]
    assert 2_000 < added < 5_000
    assert len(outside) > 1_000
    for place in rng.choice(outside, 30):
        changed = bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        ended, said = call(verify, str(path))
        assert ended == 1, (place, said)
        assert "WRONG:" in said or "damaged: " in said or "not an image" in said
    path.write_bytes(content)
    assert call(verify, str(path))[0] is None


def test_what_no_signature_covers_in_an_avif(image, keys, signing_by, tmp_path):
    """As docs/provenance.md says: its first box (ftyp), and empty boxes at its end."""
    signing_by(keys)
    path = tmp_path / "x.avif"
    image.save(path)
    content = path.read_bytes()
    changed = bytearray(content)
    assert changed[4:8] == b"ftyp"
    changed[12] ^= 1
    free = (11).to_bytes(4, "big") + b"freeabc"
    for unseen in (bytes(changed), content + free):
        path.write_bytes(unseen)
        assert inspect(path).manifest.state == "valid"
    path.write_bytes(content + free.replace(b"free", b"more"))
    assert inspect(path).manifest.state == "broken"


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_what_an_editor_changes_breaks_the_signature(image, keys, signing_by, tmp_path, ending):
    """The manifest of one image put into another of the same size: by its pixels alone."""
    signing_by(keys)
    path = tmp_path / f"x.{ending}"
    image.save(path)
    signed = path.read_bytes()
    flipped = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    flipped.save(path)
    other = path.read_bytes()
    if ending == "png":  # whose chunk with the manifest comes second
        size = 45 + int.from_bytes(signed[33:37], "big")
        other_size = 45 + int.from_bytes(other[33:37], "big")
        path.write_bytes(signed[:size] + other[other_size:])
    else:
        path.write_bytes(signed[:-40] + other[-40:] if ending == "jpg" else _swapped(signed))
    ended, said = call(verify, str(path))
    assert ended == 1
    assert "signature: broken, by Signer of Test Company" in said
    assert "its signature does not hold" in said


def _swapped(webp: bytes) -> bytes:
    """Two bytes of its pixels exchanged."""
    start = webp.index(b"VP8 ") + 60
    pair = webp[start : start + 2]
    assert pair[::-1] != pair or webp[start : start + 4] != pair * 2
    changed = bytearray(webp)
    changed[start] ^= 0x55
    return bytes(changed)


def test_pillow_loses_the_signature_with_the_rest(image, keys, signing_by, tmp_path):
    signing_by(keys)
    image.save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as opened:
        opened.save(tmp_path / "y.png")
    assert inspect(tmp_path / "y.png").manifest is None


def test_files_are_told_apart_by_their_starts_as_before(image, keys, signing_by, tmp_path):
    signing_by(keys)
    image.save(tmp_path / "x.png")
    image_grid([image, image]).save(tmp_path / "grid.png")
    assert has_settings(tmp_path / "x.png")
    assert not is_sheet(tmp_path / "x.png")
    assert is_sheet(tmp_path / "grid.png")
    assert inspect(tmp_path / "grid.png").manifest.source == TRAINED


def test_real_images_are_not_signed_and_edits_are_as_such(image, keys, signing_by, tmp_path):
    signing_by(keys)
    save_image(Image.new("RGB", (8, 8)), tmp_path / "real.png")
    assert inspect(tmp_path / "real.png").manifest is None
    image.info["imagen_jax"] = {**image.info["imagen_jax"], "inpaint": {}}
    buffer = io.BytesIO()
    image.save(buffer, "jpeg")
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    assert inspect(tmp_path / "x.jpg").manifest.source == COMPOSITE
    with pytest.raises(ValueError, match="BMP cannot be signed; PNG, JPEG"):
        image.save(tmp_path / "x.bmp")
    assert not (tmp_path / "x.bmp").exists()


def converted(keys: Keys, form: PrivateFormat, password: bytes | None = None) -> Keys:
    lock = BestAvailableEncryption(password) if password else NoEncryption()
    key = load_pem_private_key(keys.key, None).private_bytes(Encoding.PEM, form, lock)
    return Keys(key, keys.chain, keys.root)


WRONG = {
    "another kind": (lambda k: Keys(make_keys("RSA").key, k.chain, k.root), "do not belong"),
    "another certificate": (lambda k: Keys(make_keys().key, k.chain, k.root), "do not belong"),
    "no usage": (lambda k: make_keys(usage=None), "extended key usage"),
    "another curve": (lambda k: make_keys("secp256k1"), r"EC \(P-256, P-384 or P-521\)"),
    "for servers": (lambda k: make_keys(usage=ExtendedKeyUsageOID.SERVER_AUTH), "extended key"),
    "void": (lambda k: make_keys(days=-1), "valid today"),
    "the root first": (lambda k: Keys(k.key, k.root + k.chain, k.root), "comes first"),
    "no key": (lambda k: Keys(b"secret words", k.chain, k.root), "has no line -----BEGIN PRIVATE"),
    "no certificate": (lambda k: Keys(k.key, b"", k.root), "no line -----BEGIN CERTIFICATE"),
    "damaged key": (lambda k: Keys(k.key[:60] + k.key[90:], k.chain, k.root), "cannot be used"),
    "another form": (
        lambda k: converted(k, PrivateFormat.TraditionalOpenSSL),
        "openssl pkcs8 -topk8 -nocrypt",
    ),
    "a password": (lambda k: converted(k, PrivateFormat.PKCS8, b"abc"), "pkcs8 -topk8 -nocrypt"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_keys_are_told_before_anything_is_sampled(
    keys, signing_by, kind, monkeypatch, capsys
):
    make, message = WRONG[kind]
    given = make(keys)
    signing_by(given)
    pipeline = tiny_pipeline()
    sampled = []
    monkeypatch.setattr("imagen_jax.pipeline.pipeline.sample_cascade", sampled.append)
    with pytest.raises(ValueError, match=message) as caught:
        pipeline.generate_images("a", 1, progress=False)
    assert sampled == []
    told = str(caught.value)
    assert "\n" not in told
    secret = [line for line in given.key.decode().splitlines() if "-----" not in line and line]
    assert not any(line in told for line in secret)


def test_files_of_keys_that_are_not_there(image, keys, signing_by, tmp_path, monkeypatch):
    signing_by(keys)
    monkeypatch.setenv(signing.KEY, str(tmp_path / "none.pem"))
    with pytest.raises(ValueError, match=r"C2PA_KEY: .*none.pem cannot be read: No such file"):
        image.save(tmp_path / "x.png")
    monkeypatch.setenv(signing.KEY, "/dev/zero")
    with pytest.raises(ValueError, match=r"C2PA_KEY: /dev/zero is too large"):
        image.save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"--roots: .*none.pem cannot be read: No such file"):
        signing.read_roots(tmp_path / "none.pem")
    monkeypatch.delenv(signing.KEY)
    with pytest.raises(ValueError, match=r"CERTIFICATES is set and IMAGEN_JAX_C2PA_KEY is not"):
        image.save(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_without_the_library(image, keys, signing_by, tmp_path, monkeypatch):
    signing_by(keys)
    image.save(tmp_path / "x.png")
    signing._tried.cache_clear()
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ModuleNotFoundError):
        image.save(tmp_path / "y.png")
    ended, _ = call(verify, str(tmp_path / "x.png"))
    assert "pip install 'imagen_jax[c2pa]'" in ended
    monkeypatch.delenv(signing.KEY)
    monkeypatch.delenv(signing.CERTIFICATES)
    image.save(tmp_path / "z.png")
    assert call(verify, str(tmp_path / "z.png"))[0] is None  # unsigned ones need none


def test_the_key_is_nowhere(image, keys, signing_by, tmp_path):
    signing_by(keys)
    image.save(tmp_path / "x.png")
    credentials = signing.credentials()
    secret = keys.key.decode().splitlines()[1]
    assert secret not in repr(credentials)
    assert secret.encode() not in (tmp_path / "x.png").read_bytes()
    assert secret not in json.dumps(read_settings(tmp_path / "x.png"))


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: generate.load(generate.parser().parse_args(["a"]), None),
        lambda folder: app.make_studio(app.parser().parse_args([]), folder, True),
    ],
    ids=["generate", "app"],
)
def test_wrong_keys_are_told_before_a_model_is_loaded(signing_by, monkeypatch, tmp_path, load):
    signing_by(make_keys(usage=None))
    monkeypatch.setattr("imagen_jax.pipeline.loading.load_model", None)
    with pytest.raises(ValueError, match="cannot sign an image"):
        load(tmp_path)


def test_the_command_signs_all_that_it_writes(keys, signing_by, tmp_path):
    signing_by(keys)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    out, roots = tmp_path / "out", tmp_path / "root.pem"
    roots.write_bytes(keys.root)
    model = ("--model", str(tmp_path / "model"), "--out", str(out), "--quiet", "--size", "4")
    ended, _ = call(generate, "a", "b", "--num_images", "1", *model)
    assert ended is None
    ended, said = call(verify, str(out), "--roots", str(roots))
    assert ended is None
    assert said.count("valid, by Signer of Test Company, whom --roots trusts") == 3  # and the grid
    ended, _ = call(verify, str(out), "--roots", str(out / "grid.png"))
    assert "has no certificates in PEM" in ended


def test_a_broken_manifest_is_a_line(image, keys, signing_by, tmp_path):
    signing_by(keys)
    image.save(tmp_path / "x.jpg")
    content = bytearray((tmp_path / "x.jpg").read_bytes())
    place = content.index(b"jumb")
    content[place + 4 : place + 40] = bytes(36)
    (tmp_path / "x.jpg").write_bytes(content)
    ended, said = call(verify, str(tmp_path / "x.jpg"))
    assert ended == 1
    assert "its manifest cannot be read" in said or "what is left of its manifest" in said
    assert Path(tmp_path / "x.jpg").name in said
