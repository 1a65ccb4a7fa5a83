"""The one writer of image files: whole or not at all, with what makes an image again, and with
where it comes from: IPTC's source type, and a C2PA manifest where a key is given.
"""

import io
import json
import os
import warnings
import zlib
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from imagen_jax.images import signing
from imagen_jax.images.decoding import FORMATS
from imagen_jax.images.provenance import PNG_XMP, SETTINGS_KEY, XMP_FORMATS, packet, source_of
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.json_file import parse

# As SETTINGS_KEY, of what is not one image; matplotlib takes it as `metadata`, too.
SHEET = {"imagen_jax_sheet": "a grid, page or plot: no image of a set"}
START = 512  # bytes of a PNG, among which the chunks of text lie that we write
HEADER = 33  # bytes of a PNG: its signature and the first chunk
EXIF_FORMATS = ("JPEG", "WEBP", "AVIF", "TIFF")
ASCII = b"ASCII\0\0\0"  # begins a UserComment
EXIF_BYTES = 65_000  # a JPEG's at most, and a little less


class GeneratedImage(Image.Image):
    """A Pillow image that `save` writes with its settings (`info["imagen_jax"]`) and marked as
    made by a model; what Pillow's methods make of it (resize, crop, convert) is of this kind, too.
    """

    @classmethod
    def of(cls, image: Image.Image) -> "GeneratedImage":
        """The same pixels and settings, as an image of this kind."""
        made = cls()
        made.__dict__.update(image.__dict__)
        return made

    def _new(self, core: Any) -> "GeneratedImage":  # by which Pillow makes one image of another
        return self.of(super()._new(core))

    def transform(self, *arguments: Any, **options: Any) -> "GeneratedImage":
        """As Pillow's."""
        return self.of(super().transform(*arguments, **options))

    def save(
        self, fp: str | os.PathLike | io.IOBase, format: str | None = None, **params: Any
    ) -> None:
        """As Pillow's, and `save_image`: with the settings, whole or not at all."""
        save_image(self, fp, format, **params)


def save_image(
    image: Image.Image,
    file: str | os.PathLike | io.IOBase,
    format: str | None = None,
    **options: Any,
) -> None:
    """Writes an image with its settings, or the mark of a grid: in PNG's text, in the EXIF of JPEG,
    WebP, AVIF and TIFF; and with IPTC's source type in XMP, where a model made it. Other formats
    have no place for them. Where a key is given (`signing`), the whole is signed last.

    Args:
        file: a path, whose folder is made where it is missing, or a file open for writing.
        format, options: Pillow's; an `exif`, `xmp` or `pnginfo` among them replaces ours.

    Raises:
        ValueError: no format that Pillow writes; it is to be signed, and cannot be.
        OSError: the file cannot be written; there is none then, or the one that was there.
    """
    format = format and format.upper()
    is_path = isinstance(file, str | os.PathLike)
    path = user_path(file if is_path else str(getattr(file, "name", "")))
    suffix = path.suffix.lower()
    # To look through all that Pillow knows takes a tenth of a second.
    format = format or Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix)
    if not is_path:
        return _write(image, file, format, options)
    if format is None:
        ending = (
            f"no format of images has the ending {path.suffix!r}" if path.suffix else "no ending"
        )
        raise ValueError(f"{path}: {ending}; try {path.with_suffix('.png').name}.")
    encoded = io.BytesIO()
    _write(image, encoded, format, options)
    try:
        with written_whole(path) as temporary:
            # A copy: Python 3.12.1 crashes when it collects the buffer from the frames of an error.
            temporary.write_bytes(encoded.getvalue())
    except OSError as error:  # that of a full disk does not say where
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write(
    image: Image.Image, file: io.IOBase, format: str | None, options: dict[str, Any]
) -> None:
    kept = {key: image.info[key] for key in (SETTINGS_KEY, *SHEET) if key in image.info}
    if isinstance(kept.get(SETTINGS_KEY), dict):  # not read from a file
        kept[SETTINGS_KEY] = json.dumps(kept[SETTINGS_KEY], ensure_ascii=format != "PNG")
    xmp = packet(image)
    if xmp is not None and format in XMP_FORMATS:
        options = {"xmp": xmp.encode(), **options}
    if format == "PNG":
        text = PngInfo()
        for key, value in kept.items():
            text.add_itxt(key, value)
        if xmp is not None:
            text.add_itxt(PNG_XMP, xmp)  # after the settings, which are looked for at the start
        # Samples repeat no patterns: runs alone give smaller files in a sixth of the time.
        options = {"pnginfo": text, "compress_type": zlib.Z_RLE, **options}
    elif format in EXIF_FORMATS:
        exif = _exif(image, format, kept.get(SETTINGS_KEY), xmp)
        options = ({} if exif is None else {"exif": exif}) | options
    credentials = None if xmp is None else signing.credentials()
    if credentials is None:
        return Image.Image.save(image, file, format, **options)
    encoded = io.BytesIO()
    Image.Image.save(image, encoded, format, **options)
    file.write(signing.signed(encoded.getvalue(), format, source_of(image), credentials))


def _exif(image: Image.Image, format: str, settings: str | None, xmp: str | None) -> bytes | None:
    """With the settings of a pipeline's image, and a TIFF's XMP; None where there is neither."""
    exif = Image.Exif()
    if isinstance(image.info.get(SETTINGS_KEY), dict):
        comment = ASCII + settings.encode("ascii")
        if len(comment) > EXIF_BYTES:
            warnings.warn(
                f"The settings are too long for a {format}'s EXIF and are left out: "
                "save the image as PNG.",
                stacklevel=5,
            )
        else:
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    if xmp is not None and format == "TIFF":  # Pillow writes it nowhere else
        exif[ExifTags.Base.XMLPacket] = xmp.encode()
    content = exif.tobytes()
    return content if len(content) > len(Image.Exif().tobytes()) else None


def is_sheet(path: str | os.PathLike) -> bool:
    """Whether a PNG says in its first bytes that it is a sheet of ours; False if unreadable."""
    return any(key.encode() in _start(path) for key in SHEET)


def has_settings(path: str | os.PathLike) -> bool:
    """Whether a PNG begins as those that `save_image` writes; False if it cannot be read."""
    return b"iTXt" + SETTINGS_KEY.encode() + b"\0" in _start(path)


def _start(path: str | os.PathLike) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(START)
            if start[HEADER + 4 : HEADER + 8] == b"caBX":  # C2PA's manifest comes first
                file.seek(HEADER + 12 + int.from_bytes(start[HEADER : HEADER + 4], "big"))
                start += file.read(START)
            return start
    except OSError:
        return b""


def settings_text(image: Image.Image) -> str | bytes | None:
    """The JSON of the settings in an image that was opened and loaded; None where there is none."""
    text = image.info.get(SETTINGS_KEY)
    if text is None and image.format in EXIF_FORMATS:
        exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
        text = exif.get(ExifTags.Base.UserComment, b"").removeprefix(ASCII)
    return text


def read_settings(path: str | os.PathLike, max_pixels: int | None = None) -> dict[str, Any]:
    """The settings in a file that `save_image` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, holds no settings, or has more than `max_pixels`.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            image.load()  # text may come after the pixels
            settings = parse(settings_text(image) or "null", lenient=True)
            sheet = SHEET.keys() <= image.info.keys()
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image: it has no settings.") from None
    except Exception as error:  # Pillow's readers raise as many kinds as there are
        reason = str(error) or type(error).__name__
        raise ValueError(f"The settings in {path} cannot be read: {reason}.") from None
    if sheet:
        raise ValueError(f"{path} is a grid of several images; give one of the images themselves.")
    if not isinstance(settings, dict):
        raise ValueError(
            f"{path} holds no imagen_jax settings; give an image that imagen-jax generate wrote "
            "(copies that other programs made lose them)."
        )
    return settings
