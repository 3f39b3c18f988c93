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

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

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


class IntegerConv(NamedTuple):
    """One convolution in integers.

    Attributes:
        weight: Integers in float64, (O, C * k * k).
        bias: Integers in float64, (O, 1), with the half added that turns floor into rounding.
        scale: Powers of two, (O, 1), that bring the sums to units of the output.
        limit: Clamp of the output.
        kernel: Kernel size k, odd; stride 1, "same" padding.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    limit: int
    kernel: int


def integer_conv(
    weight: Tensor, bias: Tensor | None, gain: Tensor, in_bits: int, in_limit: int, limit: int
) -> IntegerConv:
    """Quantise a convolution so that its sums are exact in float64.

    Args:
        weight: (O, C, k, k).
        bias: (O,) or ``None``.
        gain: (O,), units of the output per unit of the real-valued output.
        in_bits: Inputs are multiples of 2^-in_bits.
        in_limit: Largest magnitude of the inputs, in units of 2^-in_bits.
        limit: Clamp of the output, in units of the output.

    Returns:
        The integer convolution; its output is ``gain`` times the real one, rounded.

    Raises:
        ConfigError: If weights are not finite, or the bound cannot be met with WEIGHT_BITS_MIN bits.
    """
    w = _numpy(weight).reshape(weight.shape[0], -1) * _numpy(gain)[:, None]
    b = np.zeros(len(w)) if bias is None else _numpy(bias) * _numpy(gain)
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
            columns = [torch.from_numpy(v)[:, None] for v in (whole_bias, np.ldexp(1.0, -shift))]
            return IntegerConv(torch.from_numpy(whole), columns[0], columns[1], limit, weight.shape[-1])
        exponent = np.where(exact, exponent, exponent - 1)
    raise ConfigError(
        "the hyper-synthesis cannot be computed exactly: a channel's bias or sum of weights is too large for its "
        "largest weight; train with weight decay, or clip the weights"
    )


def _numpy(x: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = x.detach().to("cpu", torch.float64).numpy()
    return array


class IntegerNetwork:
    """A network of convolutions, ReLU and pixel shuffles in integers, from and to integers.

    Args:
        network: ``nn.Sequential``, also nested, of ``nn.Conv2d`` (odd kernel, stride 1, "same" zero padding),
            ``nn.ReLU`` and ``nn.PixelShuffle``; a convolution comes last.
        gain: Units of the output per unit of the network's output, one for each output channel, float64.

    Raises:
        ConfigError: If the network holds anything else, or exactness cannot be proven from its weights.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
        >>> exact = IntegerNetwork(network, torch.tensor([1024.0], dtype=torch.float64))
        >>> z = torch.randint(-9, 9, (1, 2, 5, 5))
        >>> bool(((exact(z) / 1024 - network(z.float())).abs() < 0.01).all())
        True
    """

    def __init__(self, network: nn.Module, gain: Tensor) -> None:
        modules = list(_flatten(network))
        if not modules or not isinstance(modules[-1], nn.Conv2d):
            raise ConfigError("the hyper-synthesis must end in a convolution to be computed exactly")
        self.steps: list[IntegerConv | int | None] = []  # a convolution, a pixel shuffle's factor, or a ReLU
        bits, in_limit = 0, INPUT_MAX
        for module in modules:
            if isinstance(module, nn.Conv2d):
                last = module is modules[-1]
                module_gain = gain if last else torch.full((module.out_channels,), 2.0**FRACTION_BITS).double()
                if module_gain.shape != (module.out_channels,):
                    raise ConfigError(f"{len(module_gain)} gains for {module.out_channels} output channels")
                out_limit = OUTPUT_MAX if last else 2**MAGNITUDE_BITS
                self.steps.append(integer_conv(module.weight, module.bias, module_gain, bits, in_limit, out_limit))
                bits, in_limit = FRACTION_BITS, out_limit
            else:
                self.steps.append(module.upscale_factor if isinstance(module, nn.PixelShuffle) else None)

    @property
    def convolutions(self) -> list[IntegerConv]:
        """The convolutions in order."""
        return [step for step in self.steps if isinstance(step, IntegerConv)]

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Integers (B, C, h, w) of any dtype to integers in float64.

        Computed on the CPU, where the coder uses the result; ``z`` may lie on any device.

        Raises:
            ValueError: If ``z`` does not consist of integers.
        """
        x = z.detach().to("cpu", torch.float64).contiguous()
        if not torch.equal(x, torch.floor(x)):  # also refuses nan
            raise ValueError("the hyper-latent must be made of integers")
        x = x.clamp(-INPUT_MAX, INPUT_MAX)
        with torch.autocast(x.device.type, enabled=False):
            for step in self.steps:
                if step is None:
                    x = x.clamp_min(0)
                elif isinstance(step, int):
                    x = F.pixel_shuffle(x, step)
                else:
                    x = _convolve(x, step)
        return x


def _convolve(x: Tensor, conv: IntegerConv) -> Tensor:
    """Convolution as matrix products over bands of rows, each unfolded to at most about 8 MiB."""
    batch, _, height, width = x.shape
    halo = conv.kernel // 2
    padded = F.pad(x, (halo, halo, halo, halo))
    rows = max(1, _BAND_ELEMENTS // (batch * conv.weight.shape[1] * width))
    bands = []
    for top in range(0, height, rows):
        count = min(rows, height - top)
        columns = F.unfold(padded[:, :, top : top + count + 2 * halo], conv.kernel)
        sums = torch.matmul(conv.weight, columns) + conv.bias
        band = torch.floor(sums * conv.scale).clamp(-conv.limit, conv.limit)
        bands.append(band.reshape(batch, -1, count, width))
    return torch.cat(bands, 2)


def _flatten(module: nn.Module) -> Iterator[nn.Conv2d | nn.ReLU | nn.PixelShuffle]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _flatten(child)
    elif isinstance(module, nn.Conv2d):
        k = module.kernel_size[0]
        plain = module.stride == (1, 1) and module.dilation == (1, 1) and module.groups == 1
        same = module.kernel_size == (k, k) and k % 2 == 1 and module.padding in ((k // 2, k // 2), "same")
        if not (plain and same and module.padding_mode == "zeros"):
            raise ConfigError(f"the hyper-synthesis holds {module}: only plain 'same' convolutions can be made exact")
        yield module
    elif isinstance(module, (nn.ReLU, nn.PixelShuffle)):
        yield module
    else:
        raise ConfigError(
            f"the hyper-synthesis holds a {type(module).__name__}: only Conv2d, ReLU and PixelShuffle can be made exact"
        )
