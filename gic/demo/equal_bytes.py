"""Other codecs at the size of a ``.gic`` file: those that Pillow has and browsers know."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from PIL import Image

from gic.benchmark.codecs import BenchmarkCodec
from gic.benchmark.picture_codecs import Avif, Jpeg, WebP
from gic.demo.turns import Check
from gic.errors import ImageError, words_of

NEAR_ENOUGH = 0.005
"""A search ends at a file that differs from the size that is asked for by this part of it."""
BESIDE = 3
"""Settings on either side of the last one that are tried where no file came near enough."""
FILES = 4
"""Files of each codec that are kept for a picture."""
LABELS = {"avif": "AVIF", "jpeg": "JPEG", "webp": "WebP"}


@cache
def other_codecs() -> dict[str, BenchmarkCodec]:
    """The codecs by name, each with all its qualities as settings, for WebP the finer the smaller files are.

    AVIF's quality 100 is lossless and takes no tuning.
    """
    webp = [n / 20 for n in range(20)] + [n / 4 for n in range(4, 401)]
    return {codec.name: codec for codec in (Avif(range(100)), Jpeg(range(1, 101)), WebP(webp))}


def nearest_setting(size: Callable[[int], float], count: int, target: float) -> int:
    """That of ``count`` settings whose file is nearest to the target, above or below, by a search over rising sizes.

    Args:
        size: Of the file of a setting, in bytes; infinite where there is none.
        count: Number of settings.
        target: In bytes. A setting that comes near to it ends the search.

    Returns:
        The number of the setting; 0 where even the smallest file is larger.
    """

    def distance(setting: int) -> float:
        return abs(size(setting) - target)

    low, high = 0, count - 1
    if size(low) >= target:
        return low
    if size(high) <= target:
        return high
    best = min(low, high, key=distance)
    halve = False
    while high - low > 1 and distance(best) > NEAR_ENOUGH * target:
        # Sizes rise about exponentially with the setting; every second step halves what is left, whatever they do.
        share = 0.5 if halve else math.log(target / size(low)) / math.log(size(high) / size(low))
        middle = min(high - 1, max(low + 1, round(low + share * (high - low))))
        halve = not halve
        best = min(best, middle, key=distance)
        if size(middle) <= target:
            low = middle
        else:
            high = middle
    # WebP's sizes do not always rise with its quality: a neighbour may be nearer.
    around = range(max(0, best - BESIDE), min(count, best + BESIDE + 1))
    return best if distance(best) <= NEAR_ENOUGH * target else min(around, key=distance)


class OtherFile(NamedTuple):
    """A file of another codec.

    Attributes:
        setting: Its label, for example ``quality=30``.
        data: The file.
        seconds: How long it took to make.
    """

    setting: str
    data: bytes
    seconds: float


class EqualBytes:
    """The files of other codecs for one picture.

    Args:
        image: Mode "RGB".
    """

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._sizes: dict[tuple[str, int], float] = {}
        self._files: OrderedDict[tuple[str, int], OtherFile] = OrderedDict()

    def near(self, name: str, target: int, check: Check) -> OtherFile:
        """The file of a codec that is nearest to ``target`` bytes, or differs by less than :data:`NEAR_ENOUGH`.

        Where even its smallest file is larger, it is that.

        Raises:
            ImageError: If the codec cannot hold the picture.
            SupersededError: From ``check``, which is called before each file.
        """
        codec = other_codecs()[name]

        def size(setting: int) -> float:
            if (name, setting) not in self._sizes:
                check()
                try:
                    self._sizes[name, setting] = len(self._file(codec, setting).data)
                except ImageError:  # Pillow's buffer is too small for noise at a high quality
                    if not setting:
                        raise
                    self._sizes[name, setting] = math.inf
            return self._sizes[name, setting]

        return self._file(codec, nearest_setting(size, len(codec.settings), target))

    def _file(self, codec: BenchmarkCodec, setting: int) -> OtherFile:
        key = codec.name, setting
        if key not in self._files:
            label, started = codec.settings[setting], time.perf_counter()
            try:
                data = codec.encode(self.image, label)
            except (OSError, ValueError, RuntimeError) as error:
                size = f"{self.image.width} x {self.image.height} pixels"
                raise ImageError(
                    f"{LABELS[codec.name]} cannot hold a picture of {size} ({words_of(error)}): choose another codec"
                ) from error
            self._files[key] = OtherFile(label, data, time.perf_counter() - started)
            while len(self._files) > FILES * len(LABELS):
                self._files.popitem(last=False)
        self._files.move_to_end(key)
        return self._files[key]
