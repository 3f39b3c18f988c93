"""Convolutions in integers: the same result on every device and for every order of summation (DESIGN 8).

A trained network of 3x3 convolutions, ReLU and pixel shuffles is converted to integers. Activations are multiples of
``2^-FRACTION_BITS``, clamped to ``+-2^MAGNITUDE_BITS`` of these; the weights of each output channel are multiples of a
power of two chosen so fine that

    max |input| * sum |w| + |b| < 2^53                                                    for every channel,

which is checked when the network is made. Then every partial sum of the products, in any order, is an integer that
float64 represents, with or without fused multiply-add: a float64 matrix product is exact. Convolution routines are
avoided since they may transform their operands (Winograd, FFT); scaling by powers of two, floor and clamp are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.errors import ConfigError

FRACTION_BITS = 12
"""Activations between layers are multiples of 2^-FRACTION_BITS ..."""
MAGNITUDE_BITS = 26
"""... and at most 2^MAGNITUDE_BITS of these: +-16384."""
INPUT_MAX = 2**15
"""Inputs are integers, clamped to +-INPUT_MAX; outputs likewise to +-OUTPUT_MAX."""
OUTPUT_MAX = 2**24
WEIGHT_BITS = 20
"""Most bits of a weight. The largest weight of a channel has at least WEIGHT_BITS_MIN bits, unless it is too
small to change an output."""
WEIGHT_BITS_MIN = 10
SHIFT_BITS = 40
"""Sums are no finer than 2^-SHIFT_BITS units of the output: weights too small to change an output become 0."""
EXACT_SUM = 2**53
"""Integers up to here are float64 numbers."""

_BAND_ELEMENTS = 2**20  # of the unfolded input: 8 MiB


Product = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""A matrix product, (O, K) and (..., K, n) to (..., O, n). Where all sums are exact any will do, in any order."""


class Convolution(NamedTuple):
    """A convolution with stride 1 and "same" zero padding: weight (O, C, k, k), k odd, and bias (O,) or None."""

    weight: NDArray[Any]
    bias: NDArray[Any] | None


class Relu(NamedTuple):
    """``max(x, 0)``."""


class Shuffle(NamedTuple):
    """A pixel shuffle, which multiplies the size by ``factor``."""

    factor: int


Layer = Convolution | Relu | Shuffle
"""What a network that is run exactly may consist of."""


class IntegerConv(NamedTuple):
    """One convolution in integers.

    Attributes:
        weight: Integers in float64, (O, C * k * k).
        bias: Integers in float64, (O, 1), with the half added that turns floor into rounding.
        scale: Powers of two, (O, 1), that bring the sums to units of the output.
        limit: Clamp of the output.
        kernel: Kernel size k, odd; stride 1, "same" padding.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    scale: NDArray[np.float64]
    limit: int
    kernel: int


def integer_conv(layer: Convolution, gain: NDArray[np.float64], in_bits: int, in_limit: int, limit: int) -> IntegerConv:
    """Quantise a convolution so that its sums are exact in float64.

    Args:
        layer: The convolution.
        gain: (O,), units of the output per unit of the real-valued output.
        in_bits: Inputs are multiples of 2^-in_bits.
        in_limit: Largest magnitude of the inputs, in units of 2^-in_bits.
        limit: Clamp of the output, in units of the output.

    Returns:
        The integer convolution; its output is ``gain`` times the real one, rounded.

    Raises:
        ConfigError: If weights are not finite, or the bound cannot be met with WEIGHT_BITS_MIN bits.
    """
    weight = layer.weight.astype(np.float64)
    w = weight.reshape(len(weight), -1) * gain[:, None]
    b = np.zeros(len(w)) if layer.bias is None else layer.bias.astype(np.float64) * gain
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        raise ConfigError("the hyper-synthesis has weights that are not finite numbers: the model cannot code files")
    # Sums are in units of 2^-(exponent + in_bits). The first try makes the largest weight WEIGHT_BITS long.
    largest = np.abs(w).max(1)
    exponent = np.minimum(WEIGHT_BITS - np.frexp(largest)[1], SHIFT_BITS - in_bits)
    for _ in range(WEIGHT_BITS - WEIGHT_BITS_MIN + 1):
        shift = exponent + in_bits
        whole = np.floor(np.ldexp(w, exponent[:, None]) + 0.5)
        with np.errstate(over="ignore"):
            whole_bias = np.floor(np.ldexp(b, shift) + 0.5) + np.where(shift > 0, np.ldexp(0.5, shift), 0.0)
        # Integers below 2^53 here, or large enough for rounding not to matter.
        exact = in_limit * np.abs(whole).sum(1) + np.abs(whole_bias) < EXACT_SUM
        if exact.all():
            return IntegerConv(whole, whole_bias[:, None], np.ldexp(1.0, -shift)[:, None], limit, weight.shape[-1])
        exponent = np.where(exact, exponent, exponent - 1)
    raise ConfigError(
        "the hyper-synthesis cannot be computed exactly: a channel's bias or sum of weights is too large for its "
        "largest weight; train with weight decay, or clip the weights"
    )


class IntegerNetwork:
    """A network of convolutions, ReLU and pixel shuffles in integers, from and to integers.

    Args:
        layers: The network; a convolution comes last.
        gain: Units of the output per unit of the network's output, one for each output channel.
        product: A matrix product of float64.

    Raises:
        ConfigError: If exactness cannot be proven from the weights.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> first, last = rng.normal(size=(4, 2, 3, 3)), np.ones((1, 4, 1, 1))
        >>> layers = [Convolution(first, None), Relu(), Convolution(last, None)]
        >>> z = rng.integers(-9, 9, (1, 2, 5, 5))
        >>> exact = IntegerNetwork(layers, np.array([1024.0]))
        >>> x = np.maximum(convolve(z.astype(float), first.reshape(4, -1), 3), 0).sum(1, keepdims=True)
        >>> bool((abs(exact(z) / 1024 - x) < 0.01).all())
        True
    """

    def __init__(self, layers: Sequence[Layer], gain: NDArray[np.float64], product: Product = np.matmul) -> None:
        self.product = product
        if not layers or not isinstance(layers[-1], Convolution):
            raise ConfigError("the hyper-synthesis must end in a convolution to be computed exactly")
        self.steps: list[IntegerConv | Relu | Shuffle] = []
        bits, in_limit = 0, INPUT_MAX
        for layer in layers:
            if isinstance(layer, Convolution):
                last, outputs = layer is layers[-1], len(layer.weight)
                layer_gain = gain if last else np.full(outputs, 2.0**FRACTION_BITS)
                if layer_gain.shape != (outputs,):
                    raise ConfigError(f"{len(layer_gain)} gains for {outputs} output channels")
                out_limit = OUTPUT_MAX if last else 2**MAGNITUDE_BITS
                self.steps.append(integer_conv(layer, layer_gain, bits, in_limit, out_limit))
                bits, in_limit = FRACTION_BITS, out_limit
            else:
                self.steps.append(layer)

    @property
    def convolutions(self) -> list[IntegerConv]:
        """The convolutions in order."""
        return [step for step in self.steps if isinstance(step, IntegerConv)]

    def __call__(self, z: NDArray[Any]) -> NDArray[np.float64]:
        """Integers (B, C, h, w) of any dtype to integers in float64.

        Raises:
            ValueError: If ``z`` does not consist of integers.
        """
        x = z.astype(np.float64)
        if not np.array_equal(x, np.floor(x)):  # also refuses nan
            raise ValueError("the hyper-latent must be made of integers")
        x = x.clip(-INPUT_MAX, INPUT_MAX)
        for step in self.steps:
            if isinstance(step, Relu):
                x = np.maximum(x, 0)
            elif isinstance(step, Shuffle):
                x = shuffled(x, step.factor)
            else:
                sums = convolve(x, step.weight, step.kernel, self.product)
                sums += step.bias[:, None]
                sums *= step.scale[:, None]
                x = np.floor(sums, out=sums).clip(-step.limit, step.limit, out=sums)
        return x


def shuffled(x: NDArray[Any], factor: int) -> NDArray[Any]:
    """Pixel shuffle: (B, C f^2, h, w) to (B, C, f h, f w).

    >>> shuffled(np.arange(4).reshape(1, 4, 1, 1), 2)[0, 0].tolist()
    [[0, 1], [2, 3]]
    """
    b, c, h, w = x.shape
    blocks = x.reshape(b, c // factor**2, factor, factor, h, w).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(b, c // factor**2, factor * h, factor * w)


def convolve(x: NDArray[Any], weight: NDArray[Any], kernel: int, product: Product = np.matmul) -> NDArray[Any]:
    """Convolution with stride 1 and zero padding, as matrix products over bands of rows of at most about 8 MiB.

    Args:
        x: (B, C, h, w).
        weight: (O, C * kernel * kernel).
        kernel: Side of the kernel, odd.
        product: The matrix product.

    Returns:
        (B, O, h, w), in the dtype of both.
    """
    batch, channels, height, width = x.shape
    halo = kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (halo, halo), (halo, halo)))
    windows = windows_of(padded, kernel).transpose(0, 1, 4, 5, 2, 3)
    rows = max(1, _BAND_ELEMENTS // max(1, batch * channels * kernel**2 * width))
    out = np.empty((batch, len(weight), height, width), x.dtype)
    for top, end in _bands(height, rows):
        columns = windows[..., top:end, :].reshape(batch, channels * kernel**2, (end - top) * width)
        out[:, :, top:end] = product(weight, columns).reshape(batch, -1, end - top, width)
    return out


def windows_of(x: NDArray[Any], side: int) -> NDArray[Any]:
    """All squares of (B, C, h, w), a view of (B, C, h - side + 1, w - side + 1, side, side)."""
    views: NDArray[Any] = np.lib.stride_tricks.sliding_window_view(x, (side, side), (2, 3))  # type: ignore[call-overload]
    return views


def _bands(height: int, rows: int) -> Iterator[tuple[int, int]]:
    for top in range(0, height, rows):
        yield top, min(height, top + rows)
