"""C2PA manifests (the library c2pa-python): images signed with a key that the user gives, and what
a signature says of an image.

Two environment variables name the files, for every command alike: IMAGEN_JAX_C2PA_KEY, a private
key (PKCS#8, PEM), and IMAGEN_JAX_C2PA_CERTIFICATES, its certificate and those above it (PEM).
Nothing here needs a network: no time stamps, no manifests and no lists of revoked certificates from
elsewhere.
"""

import functools
import io
import json
import os
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from imagen_jax import __version__
from imagen_jax.images.provenance import TRAINED, VOCABULARY
from imagen_jax.storage.folders import user_path

KEY, CERTIFICATES = "IMAGEN_JAX_C2PA_KEY", "IMAGEN_JAX_C2PA_CERTIFICATES"
MIME = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
}
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ed25519")  # a key fits one of them
PEM_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
MOST_BYTES = 2**20  # of a file of keys or certificates
OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
UNTRUSTED = "signingCredential.untrusted"
USAGE = (
    "C2PA asks for a certificate that is valid today, not one for signing others, with the key "
    "usage digitalSignature and an extended key usage such as emailProtection; its own comes first "
    "in the file"
)


@dataclass(frozen=True)
class Credentials:
    """Who signs. The key is shown nowhere."""

    key: bytes = field(repr=False)
    certificates: bytes = field(repr=False)
    algorithm: str


@dataclass(frozen=True)
class Manifest:
    """What a signature says. state: "trusted", by a certificate that leads to a given root;
    "valid", by anybody; "broken". faults: why it is broken. signer, generator, source: what is
    signed.
    """

    state: str
    faults: tuple[str, ...]
    signer: str | None = None
    generator: str | None = None
    source: str | None = None


def credentials() -> Credentials | None:
    """The key and the certificates of the environment, tried once by signing a small image; None
    where none are set.

    Raises:
        ValueError: only one is set, a file cannot be read, or they do not fit each other or C2PA.
        ModuleNotFoundError: c2pa is not installed.
    """
    key, certificates = (os.environ.get(name) for name in (KEY, CERTIFICATES))
    if not key and not certificates:
        return None
    if not key or not certificates:
        given, lacks = (KEY, CERTIFICATES) if key else (CERTIFICATES, KEY)
        raise ValueError(f"{given} is set and {lacks} is not: both are needed to sign images.")
    return _tried(_read(KEY, key), _read(CERTIFICATES, certificates), key, certificates)


def _read(variable: str, name: str) -> bytes:
    try:
        with open(user_path(name), "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{variable}: {name} cannot be read: {error.strerror}.") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"{variable}: {name} is too large for a file of PEM.")
    return content


@functools.lru_cache(maxsize=1)
def _tried(key: bytes, certificates: bytes, key_file: str, certificate_file: str) -> Credentials:
    for content, kind, name, variable in (
        (key, b"-----BEGIN PRIVATE KEY-----", key_file, KEY),
        (certificates, PEM_CERTIFICATE, certificate_file, CERTIFICATES),
    ):
        if kind not in content:
            hint = "; openssl pkcs8 -topk8 -nocrypt makes it of other keys" * (variable == KEY)
            raise ValueError(f"{variable}: {name} has no line {kind.decode()}{hint}.")
    sample = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sample, "PNG")
    for algorithm in ALGORITHMS:
        found = Credentials(key, certificates, algorithm)
        try:
            signed(sample.getvalue(), "PNG", TRAINED, found)
            return found
        except ValueError as error:
            reason = str(error)
        if "signing credentials" not in reason:  # the key is of this kind; something else is wrong
            break
    else:
        raise ValueError(
            f"{KEY}: {key_file} cannot be used: it must be a key of EC (P-256, P-384 or "
            "P-521), RSA or Ed25519, without a password."
        )
    apart = "does not match" in reason or "invalid public key" in reason
    wrong = "they do not belong together" if apart else USAGE
    raise ValueError(f"{key_file} and {certificate_file} cannot sign an image: {wrong}.")


def signed(data: bytes, format: str, source: str, credentials: Credentials) -> bytes:
    """An encoded image with a manifest in it, which says that this package made it, and how.

    Args:
        format: Pillow's name of it, one of MIME.
        source: IPTC's name of how the image came to be.

    Raises:
        ValueError: another format, or the key or the certificates do not do.
    """
    import c2pa

    if format not in MIME:
        raise ValueError(f"{format} cannot be signed; {', '.join(MIME)} can. Or unset {KEY}.")
    generator = {"name": "imagen_jax", "version": __version__}
    action = {
        "action": "c2pa.created",
        "digitalSourceType": VOCABULARY + source,
        "softwareAgent": generator,
    }
    assertion = {"label": "c2pa.actions.v2", "data": {"actions": [action]}}
    manifest = {"claim_generator_info": [generator], "assertions": [assertion]}
    out = io.BytesIO()
    given = credentials.certificates, credentials.key
    try:
        info = c2pa.C2paSignerInfo(credentials.algorithm, *given, None)
        with (
            c2pa.Context.from_dict({**OFFLINE, "builder": {"thumbnail": {"enabled": False}}}) as by,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(manifest, by) as builder,
        ):
            builder.sign(signer, MIME[format], io.BytesIO(data), out)
    except c2pa.C2paError as error:
        raise ValueError(f"The image cannot be signed: {error}.") from None
    return out.getvalue()


def read_manifest(data: bytes, format: str, roots: bytes | None = None) -> Manifest | None:
    """What the manifest in an encoded image says; None where there is none.

    Args:
        format: Pillow's name of it.
        roots: certificates (PEM) of those whom the reader trusts.

    Raises:
        ValueError: no certificates in `roots`.
        ModuleNotFoundError: there is a manifest, and c2pa is not installed.
    """
    if format not in MIME or b"jumb" not in data:
        return None
    import c2pa

    if roots is not None and PEM_CERTIFICATE not in roots:
        raise ValueError("there is no certificate (PEM) in it")
    trust = {} if roots is None else {"trust": {"user_anchors": roots.decode("ascii", "replace")}}
    try:
        with (
            c2pa.Context.from_dict(OFFLINE | trust) as by,
            c2pa.Reader(MIME[format], io.BytesIO(data), context=by) as reader,
        ):
            state, content = reader.get_validation_state(), json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        broken = Manifest("broken", ("what is left of its manifest cannot be read",))
        return broken if b"c2pa.claim" in data else None  # else for another use of such boxes
    except c2pa.C2paError as error:
        return Manifest("broken", (f"its manifest cannot be read: {_first_line(error)}",))
    try:
        return _manifest(str(state), content)
    except (AttributeError, IndexError, KeyError, TypeError):  # anybody may have written it
        return Manifest("broken", ("its manifest has an unknown form",))


def _manifest(state: str, content: dict[str, Any]) -> Manifest:
    active = content.get("manifests", {}).get(content.get("active_manifest"), {})
    about, faults = active.get("signature_info", {}), []
    for entry in content.get("validation_status") or ():
        if entry.get("code") != UNTRUSTED:
            faults.append(f"{entry.get('explanation') or entry.get('code')} ({entry.get('code')})")
    names = [about.get(key) for key in ("common_name", "issuer") if about.get(key)]
    makers = active.get("claim_generator_info") or [{}]
    sources = [
        action["digitalSourceType"].rpartition("/")[2]
        for assertion in active.get("assertions", ())
        if assertion.get("label", "").startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", ())
        if isinstance(action.get("digitalSourceType"), str)
    ]
    return Manifest(
        state={"Valid": "valid", "Trusted": "trusted"}.get(state, "broken"),
        faults=tuple(faults) if state not in ("Valid", "Trusted") else (),
        signer=" of ".join(dict.fromkeys(names)) or None,
        generator=" ".join(filter(None, (makers[0].get("name"), makers[0].get("version")))) or None,
        source=sources[0] if sources else None,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].removesuffix(".")


def read_roots(file: str | os.PathLike) -> bytes:
    """The certificates in a file of PEM. Raises ValueError where it has none."""
    content = _read("--roots", os.fspath(file))
    if PEM_CERTIFICATE not in content:
        raise ValueError(f"{file} has no certificates in PEM.")
    return content
