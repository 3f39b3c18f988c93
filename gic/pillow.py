"""After ``import gic.pillow``, Pillow opens and saves ``.gic`` files; see :mod:`gic.codec.pillow`."""

from gic.codec.pillow import GicImageFile, use

__all__ = ["GicImageFile", "use"]
