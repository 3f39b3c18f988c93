"""Pillow plugin: after ``import gic.pillow``, ``Image.open`` and ``Image.save`` know ``.gic`` files.

    >>> import gic.pillow
    >>> Image.open("photo.gic").convert("L")  # doctest: +SKIP
    >>> image.save("photo.gic", bpp=0.3)  # doctest: +SKIP

``save`` takes what :meth:`gic.codec.image_codec.ImageCodec.compress` takes (``q``, ``bpp``, ``max_bytes``, ``quality``,
...), and ``exif`` and ``icc_profile``, which go into the file; an orientation in ``exif`` is applied to the pixels. Any
other option is ignored, as Pillow's own formats do. The weights are those of :func:`gic.load`, or of the codec given
to :func:`use`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from PIL import Image, ImageFile

from gic.bitstream.container import MAGIC, SUFFIX, unpack
from gic.errors import FormatError, ImageError
from gic.pictures.load import load_rgb

_OPTIONS = (
    "q",
    "bpp",
    "max_bytes",
    "quality",
    "strict_rate",
    "quantizer",
    "seed",
    "tile",
    "keep_metadata",
    "progressive",
    "roi",
    "roi_strength",
)
_codec: Any = None


def use(codec: Any) -> None:
    """Open and save with this :class:`gic.codec.image_codec.ImageCodec`; None goes back to the default weights."""
    global _codec
    _codec = codec


def _current() -> Any:
    global _codec
    if _codec is None:
        from gic.codec.weights import load

        _codec = load()
    return _codec


class GicImageFile(ImageFile.ImageFile):
    """A ``.gic`` file: size and metadata are known at once, pixels are decoded when they are needed."""

    format = "GIC"
    format_description = "gic generative image codec"

    _data = b""  # of copies, which have pixels

    def _open(self) -> None:
        assert self.fp is not None
        self._data = self.fp.read()
        try:
            file = unpack(self._data)
        except FormatError as error:
            raise SyntaxError(str(error)) from error  # what Pillow expects of a plugin
        self._size = (file.width, file.height)
        self._mode = "L" if file.channels == 1 else "RGB"
        if file.metadata.icc:
            self.info["icc_profile"] = file.metadata.icc
        if file.metadata.exif:
            self.info["exif"] = file.metadata.exif
        if file.part:
            self.info["gic"] = file.part
        if self.filename:  # Pillow has opened the file, and would leave it open until the pixels are asked for
            self.fp.close()

    def load(self) -> Any:
        """Decode the pixels, once."""
        if self._data:
            self.im = _current().decompress(self._data).im
            self._data = b""
        return Image.Image.load(self)

    def close(self) -> None:
        """Release the memory; the pixels are gone."""
        self._data = b""
        super().close()


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    given = image.encoderinfo
    options = {name: given[name] for name in _OPTIONS if name in given}
    if "exif" in given or "icc_profile" in given:
        image = _described(image, given, bool(options.pop("keep_metadata", False)))
        options["keep_metadata"] = True
    file.write(_current().compress(image, **options))


def _described(image: Image.Image, given: Mapping[str, Any], keep: bool) -> Image.Image:
    """A picture with the EXIF block and ICC profile given to ``save``; with ``keep``, its own where none is given.

    Raises:
        ImageError: If what was given is damaged, or the profile is not one of this picture's space.
    """
    exif, profile = given.get("exif") or None, given.get("icc_profile") or None
    if exif is not None:
        exif = exif.tobytes() if isinstance(exif, Image.Exif) else exif
        try:
            Image.Exif().load(exif)
        except Exception as error:  # damaged blocks make Pillow raise nearly anything
            raise ImageError(f"the EXIF block to be saved is damaged: {error}") from error
    keep_profile = profile is not None or (keep and "icc_profile" not in given)
    loaded = load_rgb(image, keep_profile=keep_profile, exif=exif, profile=profile)
    ignored = [note for note in loaded.notes if "ICC profile" in note and "ignored" in note]
    if profile is not None and ignored:
        raise ImageError(f"the ICC profile to be saved cannot be used: {ignored[0]}")
    result = loaded.image
    result.info = {"icc_profile": loaded.icc, "exif": loaded.exif if exif or (keep and "exif" not in given) else b""}
    return result


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


Image.register_open(GicImageFile.format, GicImageFile, _accept)
Image.register_save(GicImageFile.format, _save)
Image.register_extension(GicImageFile.format, SUFFIX)
Image.register_mime(GicImageFile.format, "image/x-gic")
