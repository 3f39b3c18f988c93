"""What the codec asks of the networks of one set of weights, on NumPy's arrays.

Everything above this is arithmetic on arrays and bytes. Two makers implement it: :mod:`gic.runtime.onnx`, for CPUs, and
:mod:`gic.runtime.pytorch`, for GPUs and for networks of one's own. Files do not depend on which is used: the symbols
are exact integers in both. Pixels may differ by rounding.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.bitstream.coder import EntropyModel
from gic.bitstream.exact import Product
from gic.method.samplers import Sampler

FloatArray = NDArray[np.float32]


class About(NamedTuple):
    """Settings of a codec, and what identifies its weights.

    Attributes:
        q_min: Finest level, in units of y.
        q_max: Coarsest level.
        quantizer: ``round`` or ``dither``, the default.
        sampler: Default sampler of the reverse flow.
        steps: Default number of its steps.
        rho: Exponent of the step schedule.
        stride: Pixels for each element of y, along each side.
        hyper_stride: Elements of y for each element of z, along each side.
        parameters: Number of parameters.
        entropy_model: What encoder and decoder must share.
        digest: SHA-256 over names, shapes and values of all weights.
    """

    q_min: float
    q_max: float
    quantizer: str
    sampler: Sampler
    steps: int
    rho: float
    stride: int
    hyper_stride: int
    parameters: int
    entropy_model: EntropyModel
    digest: bytes


class Latent(NamedTuple):
    """What the reverse flow starts from.

    Attributes:
        y_q: Latent at level q, float32 (1, M, h, w).
        mu: Mean of its prior, like ``y_q``.
        sigma: Standard deviation of its prior, like ``y_q``.
        q: The level, (1, 1, 1, 1), or a field like ``y_q``.
    """

    y_q: FloatArray
    mu: FloatArray
    sigma: FloatArray
    q: FloatArray


class WayBack(NamedTuple):
    """How the reverse flow runs: realism r in [0, 1], sampler, number of steps, and the bits of its noise."""

    realism: float
    sampler: Sampler
    steps: int
    noise: np.random.BitGenerator


class Networks(ABC):
    """The networks of one set of weights, ready to run.

    Attributes:
        runtime: What runs them: ``onnx`` or ``torch``.
        about: Their settings.
        device: Where they run: ``cpu``, ``cuda:0``, ...
    """

    runtime: str
    about: About
    device: str

    product: Product = staticmethod(np.matmul)
    """A matrix product of float64, for the exact prior."""

    @abstractmethod
    def analysis(self, x: FloatArray) -> FloatArray:
        """Image (1, 3, H, W) in [0, 1], sides multiples of ``stride * hyper_stride``, to y (1, M, h, w), float32."""

    @abstractmethod
    def hyper_analysis(self, y: FloatArray) -> FloatArray:
        """Latent y to z (1, N, h/t, w/t), not yet rounded, float32."""

    @abstractmethod
    def reconstruct(self, latent: Latent, way: WayBack) -> FloatArray:
        """Undo the diffusion, and synthesise: to an image (1, 3, H, W), not clamped, float32 (DESIGN 3, 7)."""


def digest(tensors: Iterable[tuple[str, NDArray[Any]]]) -> bytes:
    """SHA-256 over names, shapes and float32 values, in the order of the names."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        total.update(f"{name} {tuple(tensor.shape)}\n".encode())
        total.update(np.ascontiguousarray(tensor, "<f4").data)
    return total.digest()
