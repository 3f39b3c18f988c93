"""Pillow plugin: after ``import gic.pillow``, ``Image.open`` and ``Image.save`` know ``.gic`` files.

    >>> import gic.pillow
    >>> Image.open("photo.gic").convert("L")  # doctest: +SKIP
    >>> image.save("photo.gic", bpp=0.3)  # doctest: +SKIP

``save`` takes what :meth:`gic.codec.image_codec.ImageCodec.compress` takes (``q``, ``bpp``, ``max_bytes``, ``quality``,
...). The weights are those of :func:`gic.load`, or of the codec given to :func:`use`.
"""

from __future__ import annotations

from typing import IO, Any

from PIL import Image, ImageFile

from gic.bitstream.container import MAGIC, SUFFIX, unpack
from gic.errors import FormatError

_OPTIONS = ("q", "bpp", "max_bytes", "quality", "quantizer", "seed", "tile", "keep_metadata")
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

    def _open(self) -> None:
        assert self.fp is not None
        self._data = self.fp.read()
        try:
            file = unpack(self._data)
        except FormatError as error:
            raise SyntaxError(str(error)) from error  # what Pillow expects of a plugin
        self._size = (file.width, file.height)
        self._mode = "RGB"
        if file.metadata.icc:
            self.info["icc_profile"] = file.metadata.icc
        if file.metadata.exif:
            self.info["exif"] = file.metadata.exif

    def load(self) -> Any:
        """Decode the pixels, once."""
        if self._data:
            self.im = _current().decompress(self._data).im
            self._data = b""
        return Image.Image.load(self)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    options = {name: image.encoderinfo[name] for name in _OPTIONS if name in image.encoderinfo}
    file.write(_current().compress(image, **options))


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


Image.register_open(GicImageFile.format, GicImageFile, _accept)
Image.register_save(GicImageFile.format, _save)
Image.register_extension(GicImageFile.format, SUFFIX)
Image.register_mime(GicImageFile.format, "image/x-gic")
