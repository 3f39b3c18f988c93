"""Baselines: the codecs of Pillow and its plugins.

Each writes whole files and decodes from their bytes alone. Pictures are passed without metadata, so that no file
holds a profile or Exif data. Plugins are imported when they are needed; a missing one is reported
(:meth:`~gic.benchmark.codecs.BenchmarkCodec.unavailable`), not an error. The default points of each codec lie between
about 0.05 and 1.7 bits per pixel on photographs like Kodak's, if the codec goes that low.
"""

from __future__ import annotations

import importlib
import io
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, ClassVar, Literal

from PIL import Image, features

from gic.benchmark.codecs import BenchmarkCodec
from gic.errors import ConfigError

Subsampling = Literal["4:2:0", "4:2:2", "4:4:4"]


class Baseline(BenchmarkCodec):
    """A codec with one setting, whose values are the points of its curve.

    Args:
        name: Unique in a run; give variants different names.
        knob: Name of the setting, for the labels.
        values: Points, in any order.
        lowest: Smallest value that the codec takes.
        highest: Largest value that it takes.

    Raises:
        ConfigError: If there is no point, or one lies outside the codec's range.
    """

    def __init__(self, name: str, knob: str, values: Sequence[float], lowest: float, highest: float) -> None:
        if not values:
            raise ConfigError(f"{name} needs at least one {knob}")
        for value in values:
            if not lowest <= value <= highest:
                raise ConfigError(f"{name} takes a {knob} from {lowest:g} to {highest:g}, not {value:g}")
        self.name = name
        self._values = {f"{knob}={value:g}": value for value in sorted(values)}

    @property
    def settings(self) -> Sequence[str]:
        """Labels of the points, from the smallest files to the largest."""
        return list(self._values)


class PillowBaseline(Baseline):
    """A codec of Pillow or of a plugin of Pillow."""

    format: ClassVar[str]
    """Pillow's name of the format."""
    module: ClassVar[str | None] = None
    """Feature of Pillow that must have been compiled in."""
    plugin: ClassVar[tuple[str, str] | None] = None
    """Module to import, which registers the format, and its package."""

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Any]:
        """Options of Pillow's ``save`` that all points share."""

    @abstractmethod
    def point(self, value: float) -> Mapping[str, Any]:
        """Options of Pillow's ``save`` that make one point."""

    def unavailable(self) -> str | None:
        """The missing library or option, found by coding a small picture."""
        if self.module is not None and not features.check(self.module):
            return f"Pillow {Image.__version__} was built without {self.format}"
        try:
            self._register()
            self.decode(self.encode(Image.new("RGB", (64, 64), (200, 120, 40)), self.settings[0]))
        except ModuleNotFoundError as error:
            package = self.plugin[1] if self.plugin else error.name
            return f"the package {package} is not installed: pip install {package}"
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            return f"{self.format} does not work here with {dict(self.parameters)}: {error}"
        return None

    def _register(self) -> None:
        if self.plugin is not None:
            importlib.import_module(self.plugin[0])

    def encode(self, image: Image.Image, setting: str) -> bytes:
        """Turn an RGB image into a whole file."""
        self._register()
        bare = Image.frombytes("RGB", image.size, image.tobytes())  # no profile, no Exif data, no comment
        buffer = io.BytesIO()
        bare.save(buffer, self.format, **self.parameters, **self.point(self._values[setting]))
        return buffer.getvalue()

    def decode(self, data: bytes, decoding: str = "") -> Image.Image:
        """Turn a whole file into an RGB image."""
        self._register()
        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            picture: Image.Image = image.convert("RGB")
        return picture


class _Quality(PillowBaseline):
    def point(self, value: float) -> Mapping[str, Any]:
        """The codec's quality."""
        return {"quality": value}


class Jpeg(_Quality):
    """JPEG by libjpeg-turbo, with Huffman tables made for each picture.

    Args:
        qualities: From 1 to 100.
        subsampling: Of the chroma.
        progressive: Progressive files are smaller above about quality 60, larger below.
        name: Unique in a run.
    """

    format, suffix, mime, module = "JPEG", ".jpg", "image/jpeg", "jpg"

    def __init__(
        self,
        qualities: Sequence[int] = (1, 5, 10, 20, 35, 50, 65, 75, 82),
        subsampling: Subsampling = "4:2:0",
        progressive: bool = False,
        name: str = "jpeg",
    ) -> None:
        super().__init__(name, "quality", qualities, 1, 100)
        self.subsampling, self.progressive = subsampling, progressive

    @property
    def version(self) -> str:
        """Of Pillow and libjpeg."""
        if features.check("libjpeg_turbo"):
            return f"Pillow {Image.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
        return f"Pillow {Image.__version__}, libjpeg {features.version('jpg')}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What all points share."""
        return {"subsampling": self.subsampling, "progressive": self.progressive, "optimize": True}


class WebP(_Quality):
    """Lossy WebP by libwebp.

    Args:
        qualities: From 0 to 100, also between integers: a file at 1 may be half as large again as at 0.
        method: Effort, from 0 to 6.
        name: Unique in a run.
    """

    format, suffix, mime, module = "WEBP", ".webp", "image/webp", "webp"

    def __init__(
        self, qualities: Sequence[float] = (0, 2, 7, 20, 40, 60, 75, 82, 88), method: int = 6, name: str = "webp"
    ) -> None:
        super().__init__(name, "quality", qualities, 0, 100)
        self.method = method

    @property
    def version(self) -> str:
        """Of Pillow and libwebp."""
        return f"Pillow {Image.__version__}, libwebp {features.version('webp')}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What all points share."""
        return {"method": self.method}


class Avif(_Quality):
    """AVIF by libavif and aom.

    The tuning of aom has a large effect, and libavif's default has changed between versions; so it is always set
    explicitly. ``iq`` is libavif's default since 1.3 and gives the same bytes. aom writes different files with one
    thread than with more, and libavif cuts large pictures into tiles for its threads; so two threads and no tiles are
    set.

    Args:
        qualities: From 0 to 100.
        tune: What aom optimises; ``iq`` (image quality as people see it) and ``ssimulacra2`` need aom 3.12 or later.
        subsampling: Of the chroma.
        speed: From 0 (slowest) to 10. Pillow's default is 6; 4 takes some six times as long for 5 % fewer bits.
        name: Unique in a run.
    """

    format, suffix, mime, module = "AVIF", ".avif", "image/avif", "avif"

    def __init__(
        self,
        qualities: Sequence[int] = (1, 10, 20, 30, 40, 50, 60, 70, 80),
        tune: Literal["iq", "psnr", "ssim", "ssimulacra2"] = "iq",
        subsampling: Subsampling = "4:2:0",
        speed: int = 6,
        name: str = "avif",
    ) -> None:
        super().__init__(name, "quality", qualities, 0, 100)
        self.tune, self.subsampling, self.speed = tune, subsampling, speed

    @property
    def version(self) -> str:
        """Of Pillow, libavif and the AV1 coders."""
        from PIL import _avif

        return f"Pillow {Image.__version__}, libavif {features.version('avif')} ({_avif.codec_versions()})"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What all points share."""
        return {
            "codec": "aom",
            "advanced": {"tune": self.tune},
            "subsampling": self.subsampling,
            "speed": self.speed,
            "max_threads": 2,
            "autotiling": False,
        }


class JpegXL(_Quality):
    """Lossy JPEG XL by libjxl, through pillow-jxl-plugin.

    Args:
        qualities: From 0 to 99, as of ``cjxl``: 90 is a Butteraugli distance of 1, 0 one of 25. Up to 18 (a distance
            above 10) libjxl halves the picture: 18 gives larger and worse files than 19.
        effort: From 1 to 10.
        name: Unique in a run.
    """

    format, suffix = "JXL", ".jxl"
    plugin = ("pillow_jxl", "pillow-jxl-plugin")

    def __init__(
        self, qualities: Sequence[float] = (0, 8, 19, 27, 35, 55, 68, 79, 86), effort: int = 7, name: str = "jpeg-xl"
    ) -> None:
        super().__init__(name, "quality", qualities, 0, 99)
        self.effort = effort

    @property
    def version(self) -> str:
        """Of the plugin, which contains a libjxl of unknown version."""
        return f"pillow-jxl-plugin {metadata.version('pillow-jxl-plugin')} (its own libjxl)"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What all points share."""
        return {"effort": self.effort}


class Heic(_Quality):
    """HEVC intra frames in HEIF, by x265, through pillow-heif.

    Args:
        qualities: From 0 to 100.
        tune: What x265 optimises; ``ssim`` is libheif's default.
        preset: Of x265, from ``ultrafast`` to ``placebo``; ``slow`` is libheif's default.
        subsampling: Of the chroma.
        name: Unique in a run.
    """

    format, suffix = "HEIF", ".heic"
    plugin = ("pillow_heif.HeifImagePlugin", "pillow-heif")

    def __init__(
        self,
        qualities: Sequence[int] = (2, 8, 15, 20, 25, 30, 38, 45, 50, 55),
        tune: Literal["ssim", "psnr", "grain"] = "ssim",
        preset: str = "slow",
        subsampling: Subsampling = "4:2:0",
        name: str = "heic",
    ) -> None:
        super().__init__(name, "quality", qualities, 0, 100)
        self.tune, self.preset, self.subsampling = tune, preset, subsampling

    @property
    def version(self) -> str:
        """Of pillow-heif, libheif and x265."""
        heif = importlib.import_module("pillow_heif")
        info = heif.libheif_info()
        return f"pillow-heif {heif.__version__}, libheif {info['libheif']}, {info['HEIF']}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What all points share."""
        return {
            "subsampling": self.subsampling,
            "enc_params": {"tune": self.tune, "preset": self.preset},
            "tile_size": 0,
        }


class Jpeg2000(PillowBaseline):
    """JPEG 2000 by OpenJPEG: the 9/7 wavelet, the irreversible colour transform, a bare codestream.

    Args:
        bits_per_pixel: Targets that the rate control brings each file to.
        name: Unique in a run.
    """

    format, suffix, module = "JPEG2000", ".j2k", "jpg_2000"

    def __init__(
        self,
        bits_per_pixel: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5),
        name: str = "jpeg-2000",
    ) -> None:
        super().__init__(name, "bpp", bits_per_pixel, 0.01, 24)

    @property
    def version(self) -> str:
        """Of Pillow and OpenJPEG."""
        return f"Pillow {Image.__version__}, OpenJPEG {features.version('jpg_2000')}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What all points share; without ``mct`` the three colours would be coded apart."""
        return {"irreversible": True, "mct": 1, "no_jp2": True, "quality_mode": "rates"}

    def point(self, value: float) -> Mapping[str, Any]:
        """One layer, by its ratio of compression."""
        return {"quality_layers": [24 / value]}
