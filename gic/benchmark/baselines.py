"""Codecs that gic is held against: those of Pillow and its plugins, and CompressAI's pretrained models.

Each makes whole files and decodes from their bytes alone. Pictures are handed over without metadata, so that no file
carries a profile or Exif data. Plugins are imported when they are needed; one that is missing is a reason
(:meth:`~gic.benchmark.codecs.BenchmarkCodec.unavailable`), not an error. The default points of each codec lie between
about 0.05 and 1.7 bits per pixel on photographs like Kodak's, as far down as the codec goes.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
import socket
import struct
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image, features
from torch import Tensor, nn
from torch.nn import functional as F

from gic.benchmark.codecs import BenchmarkCodec
from gic.errors import ConfigError, MissingExtraError, require
from gic.images import to_image, to_tensor

Subsampling = Literal["4:2:0", "4:2:2", "4:4:4"]

DOWNLOAD_SECONDS = 20.0
"""How long a server may keep silent before its weights count as not to be had."""

SIDE = 64
"""CompressAI's networks take images whose sides are multiples of this, in pixels."""

HEADER, LENGTH = struct.Struct("<B4H"), struct.Struct("<I")
"""What :class:`CompressAIZoo` writes before the strings, and before each."""


class Baseline(BenchmarkCodec):
    """A codec with one knob, whose values are the points of its curve.

    Args:
        name: Unique in a run; another than the default tells variants apart.
        knob: Name of the knob, for the labels.
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
    """Module to import, which registers the format, and the package that brings it."""

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Any]:
        """Options of Pillow's ``save`` that all points share."""

    @abstractmethod
    def point(self, value: float) -> Mapping[str, Any]:
        """Options of Pillow's ``save`` that make one point."""

    def unavailable(self) -> str | None:
        """What is missing: the library, or one of its options, found by coding a small picture."""
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
        qualities: From 0 to 100.
        method: Effort, from 0 to 6.
        name: Unique in a run.
    """

    format, suffix, mime, module = "WEBP", ".webp", "image/webp", "webp"

    def __init__(
        self, qualities: Sequence[int] = (0, 2, 7, 20, 40, 60, 75, 82, 88), method: int = 6, name: str = "webp"
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

    What aom is tuned for decides much, and libavif's own default has changed with time; so it is always passed on by
    name. ``iq`` is libavif's default since 1.3 and gives the same bytes. aom makes other files with one thread than
    with two or more, and libavif cuts large pictures into tiles for its threads; so two threads and no tiles are set.

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
        """Of the plugin, which brings its own libjxl and does not say which."""
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


class CompressAIZoo(Baseline):
    """A pretrained model of CompressAI's zoo, one network for each quality, with real files.

    A file is a byte for the quality, four 16 bit numbers (width and height of the image, height and width of the last
    latent) and CompressAI's strings, each after its length in 32 bits: 13 bytes around the string of a factorised
    prior, 17 around the two of a hyperprior. Images are padded to multiples of 64 by repeating their edge, decoded
    ones cropped. CompressAI comes with the extra ``baselines``.

    Args:
        model: Name in the zoo, for example ``mbt2018-mean`` or ``cheng2020-anchor``.
        qualities: From 1 to the zoo's highest, 8 or 6; all if left out.
        metric: What the models were trained for.
        checkpoints: State dicts to use instead of the zoo's, by quality. The others are downloaded once, into
            PyTorch's own cache.
        name: Unique in a run; the model's if left out.

    Raises:
        ConfigError: If the zoo has no such model or quality, or a checkpoint is missing.
    """

    suffix = ".bin"

    def __init__(
        self,
        model: str = "mbt2018-mean",
        qualities: Sequence[int] | None = None,
        metric: Literal["mse", "ms-ssim"] = "mse",
        checkpoints: Mapping[int, str] | None = None,
        name: str | None = None,
    ) -> None:
        self._missing: str | None = None
        architectures: Mapping[str, Any] = {}
        try:
            zoo: Any = require("compressai.zoo.image", "baselines")
        except MissingExtraError as error:
            self._missing = str(error)
            if sys.version_info >= (3, 13):
                self._missing = f"CompressAI takes numpy below 2, which Python 3.12 is the last to have: {error}"
            urls: Mapping[int, str] = dict.fromkeys(range(1, 9), "")
        else:
            if model not in zoo.model_urls:
                raise ConfigError(f"CompressAI's zoo has no model {model!r}; it has {', '.join(zoo.model_urls)}")
            urls, architectures = zoo.model_urls[model][metric], zoo.model_architectures
        super().__init__(name or model, "quality", list(urls) if qualities is None else qualities, min(urls), max(urls))
        self.model, self.metric = model, metric
        self.checkpoints = {quality: Path(path) for quality, path in (checkpoints or {}).items()}
        for path in self.checkpoints.values():
            if not path.is_file():
                raise ConfigError(f"no file {path}: it should hold weights of {model}")
        self._architecture: Any = architectures.get(model)
        self._urls = urls
        self._networks: dict[str, Any] = {}

    @property
    def version(self) -> str:
        """Of CompressAI."""
        return f"CompressAI {metadata.version('compressai')}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the points share, and the weights of each."""
        weights = {label: self._weights_name(int(quality)) for label, quality in self._values.items()}
        return {"model": self.model, "metric": self.metric, "weights": weights}

    def _weights_name(self, quality: int) -> str:
        if quality in self.checkpoints:
            path = self.checkpoints[quality]
            return f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"
        return self._urls[quality].rsplit("/", 1)[-1]  # the zoo's names carry a hash

    def unavailable(self) -> str | None:
        """That CompressAI is not installed, or which weights cannot be had."""
        if self._missing is not None:
            return self._missing
        try:
            for setting in self.settings:
                self._network(setting)
        except (OSError, RuntimeError) as error:
            return f"weights of {self.model} cannot be downloaded ({error}): name local files as `checkpoints`"
        return None

    def start(self, device: str) -> None:
        """Move the networks to the device, but for those that code one position after the other."""
        for setting in self.settings:
            network = self._network(setting)
            if not hasattr(network, "context_prediction"):
                network.to(device)

    def _network(self, setting: str) -> Any:
        """The network of a point, loaded once.

        Raises:
            ConfigError: If a checkpoint does not hold it.
            OSError: If it cannot be downloaded.
            RuntimeError: If what was downloaded is something else.
        """
        if setting not in self._networks:
            quality = int(self._values[setting])
            path = self.checkpoints.get(quality)
            if path is None:
                network = self._build(_download(self._urls[quality]))
            else:
                try:
                    state = torch.load(path, map_location="cpu", weights_only=True)
                    network = self._build(state.get("state_dict", state))
                except (pickle.UnpicklingError, EOFError, KeyError, RuntimeError, AttributeError) as error:
                    raise ConfigError(f"{path} does not hold weights of {self.model}: {error}") from error
            self._networks[setting] = network
        return self._networks[setting]

    def _build(self, state: Mapping[str, Tensor]) -> Any:
        from compressai.zoo.pretrained import load_pretrained

        network = self._architecture.from_state_dict(load_pretrained(dict(state))).eval()
        network.update()  # entropy tables, where the file has none
        return network

    @torch.no_grad()
    def encode(self, image: Image.Image, setting: str) -> bytes:
        """Turn an RGB image into a whole file."""
        network = self._network(setting)
        x = to_tensor(image)[None].to(_device(network)) / 255
        height, width = x.shape[-2:]
        coded = network.compress(F.pad(x, (0, -width % SIDE, 0, -height % SIDE), mode="replicate"))
        header = HEADER.pack(int(self._values[setting]), width, height, *coded["shape"])
        strings = [batch[0] for batch in coded["strings"]]
        return header + b"".join(LENGTH.pack(len(string)) + string for string in strings)

    @torch.no_grad()
    def decode(self, data: bytes, decoding: str = "") -> Image.Image:
        """Turn a whole file into an RGB image."""
        quality, width, height, *shape = HEADER.unpack_from(data)
        strings, start = [], HEADER.size
        while start < len(data):
            (length,) = LENGTH.unpack_from(data, start)
            start += LENGTH.size + length
            strings.append([data[start - length : start]])
        x_hat = self._network(f"quality={quality}").decompress(strings, shape)["x_hat"]
        return to_image(x_hat[0, :, :height, :width])


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _download(url: str) -> Mapping[str, Tensor]:
    """A state dict from the zoo or from PyTorch's cache of it; gives up where torch.hub would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_SECONDS)
    try:
        state: Mapping[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
        return state
    finally:
        socket.setdefaulttimeout(before)
