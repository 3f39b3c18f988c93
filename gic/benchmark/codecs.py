"""Codecs under measurement: classes that turn images into bytes and back, and gic as one of them."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from gic.errors import ConfigError
from gic.method.samplers import Sampler, sampler_of
from gic.version import __version__

if TYPE_CHECKING:
    from gic.codec.image_codec import ImageCodec

DEFAULT_POINTS = 8
"""Number of levels, evenly spaced in log q over the model's range, if none are given."""


class BenchmarkCodec(ABC):
    """A codec under measurement.

    Attributes:
        name: Unique in a run, for example ``avif``.
        suffix: Of its files, for example ``.avif``.
        mime: MIME type of its files if browsers show them, else empty.
    """

    name: str
    suffix: str
    mime: str = ""

    def start(self, device: str) -> None:  # noqa: B027
        """Load weights, import libraries. Called once, if :meth:`unavailable` returned None."""

    def unavailable(self) -> str | None:
        """Why this codec cannot run here, for the report; None if it can."""
        return None

    @property
    @abstractmethod
    def version(self) -> str:
        """Library or model, and its version."""

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Any]:
        """Settings that all points share."""

    @property
    @abstractmethod
    def settings(self) -> Sequence[str]:
        """Labels of the points, from the smallest files to the largest, for example ``quality=30``."""

    @property
    def decodings(self) -> Sequence[str]:
        """Labels of the ways to decode a file, for example ``r=1``; one empty label if there is one way."""
        return ("",)

    @property
    def fingerprint(self) -> str:
        """Everything else that files and pictures depend on; cached results are used only if it is equal."""
        return ""

    @abstractmethod
    def encode(self, image: Image.Image, setting: str) -> bytes:
        """Turn an RGB image into a whole file."""

    @abstractmethod
    def decode(self, data: bytes, decoding: str = "") -> Image.Image:
        """Turn a whole file, and nothing else, into an image, RGB or grey."""


@dataclass(frozen=True)
class Decoding:
    """A way to decode a ``.gic`` file.

    Attributes:
        realism: r in [0, 1].
        sampler: Sampler of the reverse flow, for example ``sde(alpha=0.3)``; the model's default if left out.
        steps: Its steps, the model's default if left out.
    """

    realism: float = 1.0
    sampler: str | Sampler | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        """Reject a wrong sampler before anything is measured."""
        if self.sampler is not None:
            sampler_of(self.sampler)

    @property
    def label(self) -> str:
        """For people and keys.

        >>> Decoding(0.5).label, Decoding(1, "euler", 4).label
        ('r=0.5', 'r=1, euler, 4 steps')
        """
        steps = [] if self.steps is None else [f"{self.steps} step{'' if self.steps == 1 else 's'}"]
        return ", ".join([f"r={self.realism:g}", *([str(self.sampler)] if self.sampler else []), *steps])


class Gic(BenchmarkCodec):
    """gic with one set of weights, at several levels, each file decoded in several ways.

    Args:
        q: Quantisation steps; 8 over the model's range if neither these nor ``bpp`` are given.
        bpp: Or targets in bits per pixel for every image.
        decodings: Ways to decode.
        checkpoint: Weights; those of the command line (``--ckpt_path``) or of the package if left out.
        quantizer: ``round`` or ``dither``, the model's default if left out.
        name: For tables and files, to distinguish several sets of weights.
        runtime: What runs the networks, see :func:`gic.load`.

    Attributes:
        trust: Packages of the user's own whose classes the weights may name.

    Raises:
        ConfigError: If both ``q`` and ``bpp`` are given, or no decoding.
    """

    suffix = ".gic"

    def __init__(
        self,
        q: Sequence[float] | None = None,
        bpp: Sequence[float] | None = None,
        decodings: Sequence[Decoding] = (Decoding(0.0), Decoding(1.0)),
        checkpoint: str | None = None,
        quantizer: Literal["round", "dither"] | None = None,
        name: str = "gic",
        runtime: Literal["auto", "onnx", "torch"] = "auto",
    ) -> None:
        if q is not None and bpp is not None:
            raise ConfigError(f"the rate points of {name} are levels q or targets bpp, not both")
        if not decodings:
            raise ConfigError(f"{name} needs at least one decoding")
        self.name = name
        self.checkpoint = checkpoint
        self.quantizer = quantizer
        self.runtime = runtime
        self.trust: Sequence[str] = ()
        self._q, self._bpp = q, bpp
        self._decodings = {decoding.label: decoding for decoding in decodings}
        self._codec: ImageCodec | None = None
        self._code = _code_hash()
        self._points: dict[str, dict[str, float]] = {}

    def start(self, device: str) -> None:
        """Load the weights and check the points against them."""
        from gic.codec.weights import load

        codec = load(self.checkpoint, device, self.trust, runtime=self.runtime)
        about = codec.about
        if self._bpp is not None:
            points = [{"bpp": target} for target in sorted(self._bpp)]
        elif self._q is not None:
            points = [{"q": codec.check_level(q)} for q in sorted(self._q, reverse=True)]
        else:
            ratio = about.q_min / about.q_max
            points = [{"q": about.q_max * ratio ** (i / (DEFAULT_POINTS - 1))} for i in range(DEFAULT_POINTS)]
            points[-1]["q"] = about.q_min
        self._points = {f"{kind}={value:.4g}": {kind: value} for point in points for kind, value in point.items()}
        self._codec = codec

    @property
    def codec(self) -> ImageCodec:
        """The codec, once started."""
        assert self._codec is not None, "start() comes first"
        return self._codec

    @property
    def version(self) -> str:
        """Version of gic and id of the model."""
        return f"gic {__version__}, model {self.codec.model_id.hex()}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What all files share."""
        about = self.codec.about
        return {
            "quantizer": self.quantizer or about.quantizer,
            "default_sampler": str(about.sampler),
            "default_steps": about.steps,
            "parameters": about.parameters,
            "runtime": self.codec.networks.runtime,
        }

    @property
    def settings(self) -> Sequence[str]:
        """``q=...`` from coarse to fine, or ``bpp=...`` from small to large."""
        return list(self._points)

    @property
    def decodings(self) -> Sequence[str]:
        """Labels of the decodings."""
        return list(self._decodings)

    @property
    def fingerprint(self) -> str:
        """Hash of the code behind files and pictures, and the device: after a change they are measured again."""
        where = f"{self.codec.networks.runtime} {self.codec.device}"
        return f"{self._code} {where} {sorted(self._points.items())} {self._decodings}"

    def encode(self, image: Image.Image, setting: str) -> bytes:
        """A whole ``.gic`` file."""
        return self.codec.compress(image, quantizer=self.quantizer, **self._points[setting])  # type: ignore[arg-type]

    def decode(self, data: bytes, decoding: str = "") -> Image.Image:
        """Decode a file."""
        way = self._decodings[decoding]
        return self.codec.decompress(data, realism=way.realism, sampler=way.sampler, steps=way.steps)


WITHOUT_INFLUENCE = ("__main__", "commands", "configs", "pillow", "benchmark", "training", "data", "quality")
"""Modules and folders of gic that its files and pictures cannot depend on: training, its data and metrics.

Everything else counts, including new modules."""


def sources(package: Path = Path(__file__).parent.parent) -> list[Path]:
    """Sources of gic, Python and C, that its files and pictures may depend on."""
    found = (path for suffix in ("py", "c") for path in package.rglob(f"*.{suffix}"))
    return sorted(p for p in found if p.relative_to(package).parts[0].split(".")[0] not in WITHOUT_INFLUENCE)


def _code_hash(package: Path = Path(__file__).parent.parent) -> str:
    """Hash of those sources."""
    digest = hashlib.sha256()
    for path in sources(package):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:16]


def check_names(codecs: Sequence[BenchmarkCodec]) -> None:
    """Refuse two codecs with the same name.

    Raises:
        ConfigError: If there are any.
    """
    names = [codec.name for codec in codecs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two codecs are called {twice[0]!r}: give each its own name")


def curve_name(codec: str, decoding: str) -> str:
    """Name of the curve of a codec and a decoding.

    >>> curve_name("gic", "r=1"), curve_name("avif", "")
    ('gic r=1', 'avif')
    """
    return f"{codec} {decoding}".strip()


def bits_per_pixel(size: int, width: int, height: int) -> float:
    """Bits of a file over the pixels of the original, never of a padded image (DESIGN 10)."""
    value = size * 8 / (width * height)
    assert math.isfinite(value)
    return value
