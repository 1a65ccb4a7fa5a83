"""That an image is made by a model, as IPTC's metadata say it: a packet of XMP in the file."""

import codecs
import re
from collections.abc import Mapping
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from PIL import Image

from imagen_jax import __version__
from imagen_jax.storage.json_file import parse

SETTINGS_KEY = "imagen_jax"  # the PNG text chunk, and the key in `image.info`
# In `image.info`: a name of IPTC's, where the settings do not tell it (`source_of`).
SOURCE_KEY = "digital_source_type"
TRAINED = "trainedAlgorithmicMedia"
COMPOSITE = "compositeWithTrainedAlgorithmicMedia"
OF_OTHER_IMAGES = ("edit", "inpaint", "upscale")  # methods of a pipeline; their notes' names
VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
PNG_XMP = "XML:com.adobe.xmp"  # the text chunk that XMP's standard names
XMP_FORMATS = ("JPEG", "WEBP", "AVIF")  # that Pillow writes it to, as `xmp=`
MOST_BYTES, DEEPEST = 2**20, 100  # of a packet from outside; ours has 500 bytes
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
IPTC, XMP = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "http://ns.adobe.com/xap/1.0/"
# What is read: by the name in XML, that in the result of `read_xmp`.
PROPERTIES = {
    f"{IPTC} DigitalSourceType": "source",
    f"{IPTC} AISystemUsed": "system",
    f"{XMP} CreatorTool": "tool",
}
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def source_of(image: Image.Image) -> str | None:
    """IPTC's name for how an image came to be; None for one that no model had a part in.

    Of a pipeline's own images, their settings tell it; of sheets of such images, `info`.
    """
    settings = image.info.get(SETTINGS_KEY)
    if SOURCE_KEY in image.info or settings is None:
        return image.info.get(SOURCE_KEY)
    return COMPOSITE if any(kind in _object(settings) for kind in OF_OTHER_IMAGES) else TRAINED


def marked(image: Image.Image, source: str = TRAINED) -> Image.Image:
    """The image itself, from now on of this source: for one without settings of its own."""
    image.info[SOURCE_KEY] = source
    return image


def common_source(sources: list[str | None]) -> str | None:
    """That of several images in one."""
    if not any(sources):
        return None
    return TRAINED if set(sources) == {TRAINED} else COMPOSITE


def packet(image: Image.Image) -> str | None:
    """The XMP of an image: its digital source type, the model and this package; None for one that
    `source_of` has no name for.
    """
    if (source := source_of(image)) is None:
        return None
    properties = {
        "Iptc4xmpExt:DigitalSourceType": VOCABULARY + source,
        "xmp:CreatorTool": f"imagen_jax {__version__}",
    }
    if model := _object(image.info.get(SETTINGS_KEY)).get("model"):
        properties["Iptc4xmpExt:AISystemUsed"] = NO_XML.sub("\ufffd", str(model))
    listed = " ".join(f"{name}={quoteattr(value)}" for name, value in properties.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{IPTC}" xmlns:xmp="{XMP}" {listed}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _object(settings: Any) -> Mapping[str, Any]:
    """The settings of an image, which one that is read from a file has as text."""
    if isinstance(settings, str):
        try:
            settings = parse(settings, lenient=True)
        except ValueError:
            settings = None
    return settings if isinstance(settings, Mapping) else {}


def read_xmp(packet: bytes) -> dict[str, str]:
    """What a packet of XMP says of PROPERTIES, the source type without its vocabulary.

    Anybody may have written it: one with a document type, in which entities are declared, is
    refused unread.

    Raises:
        ValueError: it is too large, or no XML that XMP may be.
    """
    if len(packet) > MOST_BYTES:
        raise ValueError(f"it has {len(packet):,} bytes, more than {MOST_BYTES:,}")
    found, inside = {}, []

    def start(name: str, attributes: dict[str, str]) -> None:
        for key, value in attributes.items():
            if key in PROPERTIES:
                found.setdefault(PROPERTIES[key], value)
            elif key == f"{RDF} resource" and name in PROPERTIES:
                found.setdefault(PROPERTIES[name], value)
        inside.append(name)
        if len(inside) > DEEPEST:
            raise ValueError("it is nested too deeply")

    def text(characters: str) -> None:
        # The text of a property, or of the list (rdf:Bag, rdf:li) in it.
        name = next((name for name in reversed(inside) if name in PROPERTIES), None)
        if name is not None and characters.strip():
            texts[name] = texts.get(name, "") + characters

    def refuse(*_: Any) -> None:
        raise ValueError("it has a document type, which XMP does not")

    texts: dict[str, str] = {}
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda name: inside.pop()
    parser.StartDoctypeDeclHandler = refuse
    try:
        utf16 = packet.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        parser.Parse(packet if utf16 else packet.rstrip(b"\0"), True)
    except expat.ExpatError as error:
        raise ValueError(f"it is no XML ({error})") from None
    for name, value in texts.items():
        found.setdefault(PROPERTIES[name], value.strip())
    if "source" in found:
        found["source"] = found["source"].rpartition("/")[2]
    return found
