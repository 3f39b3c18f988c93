"""Elements that the encoder leaves out, and the search of another z where they matter (DESIGN 5, 8).

Elements of y whose sigma is far below q are not coded: the decoder sets them to mu. This works while the prior is
right. For a picture unlike those in training, z can make it wrong by any amount: mu off by thousands of steps, sigma
at its lower end. So the encoder measures the error of all elements that it would leave out at any level,

    e = |y - mu| / q   at the finest level q of the model with  sigma < s q,     s = 0.055 (round) or 0.11 (dither),

and where the root of the sum of the squares over a place of y (16 x 16 pixels) exceeds :data:`LIMITS`, it searches
another z around that place. The decoder does not change: any z is valid.

The search minimises, over integers z, the mean over levels of the bits and of the squared error in steps, weighted by
:data:`BITS_PER_STEP2`. Coordinates move up or down by one, in the order of the gain that the gradient predicts; a move
is kept where the cost around it fell. The search uses the network in float; the prior in integers decides at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gic.bitstream.coder import EntropyCoder, EntropyModel, Prior, level_value
from gic.bitstream.container import LEVELS_PER_OCTAVE
from gic.bitstream.exact import Convolution, Layer, Relu, convolve, shuffled, windows_of
from gic.bitstream.tables import SKIP_DITHER, SKIP_ROUND, IntArray
from gic.models.ranges import SIGMA_MIN
from gic.runtime.networks import FloatArray

LIMITS = {"round": 4.0, "dither": 5.0}
"""Largest error of what is left out at one place of y, in steps: 73 and 45 sigma. Nearly all photographs stay below
and keep the z of the hyper-analysis."""
BITS_PER_STEP2 = 6 / math.log(2)
"""Weight of a squared error of q^2, in bits: the slope of D(R) of a uniform quantiser, 2 ln 2 q^2 / 12 per bit."""
LEVELS = 6
"""Number of levels in the search, from the finest to the coarsest."""
ROUNDS, STEPS = 4, 60
"""Maximum number of searches of an image, and of steps of a search."""

_REACH = 2  # z reaches the 5 x 5 cells of y around its own
_CLAMPS = (8, 4, 2, 1, 0)  # the search may also begin at z clamped to these
_MARGIN = 0.5  # the search aims well below the limit
_ESCAPE = 6.0  # bits; a costlier symbol costs about the logarithm of its distance, as an escape code does
_AT_ONCE, _AT_ONCE_MAX = 16.0, 64.0  # coordinates of a cell that move together: initial, maximum
_HOPE = 15  # steps after which a search ends that found no smaller error
_PATIENCE = 4  # steps over which a search must gain, once nothing is above its limit, ...
_GAIN = 0.005  # ... this share of its cost


def left_out(
    y: FloatArray, prior: Prior, finest: int, coarsest: int, quantizer: Literal["round", "dither"]
) -> FloatArray:
    """Errors of the elements that some level leaves out, at the finest such level, in steps.

    Args:
        y: Latent, (B, M, h, w).
        prior: Its exact prior.
        finest: Code of the finest level of the model.
        coarsest: Code of the coarsest.
        quantizer: ``round`` or ``dither``.

    Returns:
        Root of the sum of their squares over the channels, (B, 1, h, w). Errors within half a step, as
            coded elements have, do not count.
    """
    # Skipped from the level above this one.
    code = np.maximum(prior.log2_sigma - (SKIP_DITHER if quantizer == "dither" else SKIP_ROUND), finest)
    error = np.abs(y - prior.mu) * np.exp2(code.astype(np.float32) * np.float32(-1 / LEVELS_PER_OCTAVE))
    error[(code > coarsest) | (error <= 0.5)] = 0
    errors: FloatArray = np.sqrt((error * error).sum(1, keepdims=True))
    return errors


def settle(
    model: EntropyModel,
    coder: EntropyCoder,
    y: FloatArray,
    z: IntArray,
    finest: int,
    coarsest: int,
    quantizer: Literal["round", "dither"],
) -> tuple[IntArray, Prior]:
    """Keep z or, where the error of left-out elements is too large, replace it.

    Args:
        model: Holds h_s.
        coder: Coder of the same weights.
        y: Latent of one image, (1, M, h, w).
        z: Its hyper-latent, int32 (1, N, h/4, w/4).
        finest: Code of the finest level of the model.
        coarsest: Code of the coarsest.
        quantizer: ``round`` or ``dither``.

    Returns:
        z and its exact prior. After :data:`ROUNDS` searches the best z that was found, even if it exceeds the limit.
    """
    prior = coder.prior(z)
    errors = left_out(y, prior, finest, coarsest, quantizer)
    best, worst = (z, prior), float(errors.max())
    stride = y.shape[-1] // z.shape[-1]
    for _ in range(ROUNDS):
        bad = _cells(errors, stride).max((3, 5)) > LIMITS[quantizer]
        if not bad.any():
            break
        z = z.copy()
        for window in _windows(_dilate(bad)[0, 0]):
            search = _Search(model, coder, y, z, window, finest, coarsest, quantizer)
            z[..., window.rows, window.columns] = search.run()
        prior = coder.prior(z)
        errors = left_out(y, prior, finest, coarsest, quantizer)
        if float(errors.max()) >= worst:
            break
        best, worst = (z, prior), float(errors.max())
    return best


class _Window(NamedTuple):
    """A rectangle of cells of z around those that may change, which ``active`` marks, (1, 1, rows, columns)."""

    rows: slice
    columns: slice
    active: NDArray[np.bool_]


def _windows(active: NDArray[np.bool_]) -> Iterator[_Window]:
    """A window for each group of neighbouring cells, with the cells they reach and the cells that reach those."""
    rest = active.copy()
    while rest.any():
        group = np.zeros_like(rest)
        group.flat[int(np.flatnonzero(rest)[0])] = True
        while True:
            grown = _dilate(group[None, None])[0, 0] & rest
            if (grown == group).all():
                break
            group = grown
        rest &= ~group
        sides = []
        for axis, length in enumerate(group.shape):
            at = np.flatnonzero(group.any(1 - axis))
            sides.append(slice(max(0, int(at[0]) - 2 * _REACH), min(length, int(at[-1]) + 2 * _REACH + 1)))
        yield _Window(sides[0], sides[1], group[sides[0], sides[1]][None, None])


def _neighbours(cells: NDArray[Any], by: int) -> NDArray[Any]:
    """The square of cells around each, 0 beyond the image, (..., h, w, 2 by + 1, 2 by + 1)."""
    padded = np.pad(cells, ((0, 0), (0, 0), (by, by), (by, by)))
    return windows_of(padded, 2 * by + 1)


def _dilate(cells: NDArray[np.bool_], by: int = 1) -> NDArray[np.bool_]:
    grown: NDArray[np.bool_] = _neighbours(cells, by).any((-1, -2))
    return grown


def _cells(x: NDArray[Any], stride: int) -> NDArray[Any]:
    """Elements of y by cells of z: (B, C, rows, stride, columns, stride)."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // stride, stride, w // stride, stride)


def _spread(cells: NDArray[Any], stride: int) -> NDArray[Any]:
    """The value of its cell for each element of y."""
    return cells.repeat(stride, -2).repeat(stride, -1)


class _FloatNetwork:
    """h_s in float32, and the gradient with respect to its input."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = [
            Convolution(layer.weight.astype(np.float32), None if layer.bias is None else layer.bias.astype(np.float32))
            if isinstance(layer, Convolution)
            else layer
            for layer in layers
        ]

    def __call__(self, z: FloatArray) -> tuple[FloatArray, list[NDArray[np.bool_]]]:
        """The output, and where each ReLU is open."""
        x: FloatArray = z
        opened: list[NDArray[np.bool_]] = []
        for layer in self.layers:
            if isinstance(layer, Convolution):
                x = convolve(x, layer.weight.reshape(len(layer.weight), -1), layer.weight.shape[-1])
                if layer.bias is not None:
                    x += layer.bias[:, None, None]
            elif isinstance(layer, Relu):
                opened.append(x > 0)
                x = np.where(opened[-1], x, np.float32(0))
            else:
                x = shuffled(x, layer.factor)
        return x, opened

    def back(self, gradient: FloatArray, opened: list[NDArray[np.bool_]]) -> FloatArray:
        """Gradient of the input from that of the output."""
        opened = list(opened)
        for layer in reversed(self.layers):
            if isinstance(layer, Convolution):
                turned = layer.weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
                gradient = convolve(gradient, turned.reshape(len(turned), -1), layer.weight.shape[-1])
            elif isinstance(layer, Relu):
                gradient = np.where(opened.pop(), gradient, np.float32(0))
            else:
                f = layer.factor
                b, c, h, w = gradient.shape
                blocks = gradient.reshape(b, c, h // f, f, w // f, f).transpose(0, 1, 3, 5, 2, 4)
                gradient = blocks.reshape(b, c * f * f, h // f, w // f)
        return gradient


class _State(NamedTuple):
    """A candidate z: its bits for each symbol, the cost of each cell including them, and the errors left out."""

    z: FloatArray
    bits: FloatArray
    cost: FloatArray
    errors: FloatArray
    gradient: FloatArray | None


class _Search:
    """Search of z in a window, one picture's."""

    def __init__(
        self,
        model: EntropyModel,
        coder: EntropyCoder,
        y: FloatArray,
        z: IntArray,
        window: _Window,
        finest: int,
        coarsest: int,
        quantizer: Literal["round", "dither"],
    ) -> None:
        self.model, self.coder = model, coder
        self.network = _FloatNetwork(model.h_s)
        self.range = np.float32(math.log(SIGMA_MIN)), np.float32(math.log(model.sigma_max))
        self.stride = y.shape[-1] // z.shape[-1]
        self.active = window.active
        self.z = z[..., window.rows, window.columns].astype(np.float32)
        rows, columns = (slice(self.stride * s.start, self.stride * s.stop) for s in (window.rows, window.columns))
        self.y = y[..., rows, columns]
        self.counts = _dilate(self.active, _REACH).astype(np.float32)
        self.levels = [level_value(round(code)) for code in np.linspace(finest, coarsest, LEVELS)]
        self.q_min, self.q_max = self.levels[0], self.levels[-1]
        self.skip = 2.0 ** ((SKIP_DITHER if quantizer == "dither" else SKIP_ROUND) / LEVELS_PER_OCTAVE)
        self.limit = _MARGIN * LIMITS[quantizer]
        self.weight = np.zeros((1, 1, *self.y.shape[-2:]), np.float32)

    def run(self) -> FloatArray:
        """The z found for the window, float32 (1, N, rows, columns)."""
        starts = [self.z]
        starts += [np.where(self.active, self.z.clip(-limit, limit), self.z) for limit in _CLAMPS]
        self.weight += np.float32(BITS_PER_STEP2)
        state = min((self._examine(z) for z in starts), key=lambda s: float(s.cost.sum()))
        self.weight = np.float32(BITS_PER_STEP2) * (state.errors > self.limit)
        state = self._examine(state.z, gradient=True)
        best = state
        at_once = np.full(self.active.shape, _AT_ONCE, np.float32)
        history: list[float] = []
        found = 0
        for number in range(STEPS):
            moved = self._examine(self._step(state, at_once))
            better = _around(moved.cost) < _around(state.cost)
            at_once = np.where(better, np.minimum(1.5 * at_once, _AT_ONCE_MAX), 0.5 * at_once)
            moved = self._examine(np.where(better, moved.z, state.z), gradient=True)
            if float(moved.cost.sum()) < float(state.cost.sum()):
                state = moved
            bad = state.errors > self.limit
            if self._rank(state) < self._rank(best):
                best, found = state, number
            if bad.any():
                if number - found >= _HOPE:
                    break
                # Increase the weight where the error is still too large.
                heavier = (1.5 * self.weight).clip(BITS_PER_STEP2, 2.0**20).astype(np.float32)
                self.weight = np.where(bad, heavier, self.weight)
                state = self._examine(state.z, gradient=True)
                at_once = np.where(self.active & (at_once < 1), np.float32(1), at_once)
                history.clear()
                continue
            history.append(float(state.cost.sum()))
            if len(history) > _PATIENCE and history[-1] > (1 - _GAIN) * history[-1 - _PATIENCE]:
                break
        return best.z

    def _rank(self, state: _State) -> tuple[float, float]:
        return max(float(state.errors.max()), self.limit), float(state.cost.sum())

    def _step(self, state: _State, at_once: FloatArray) -> FloatArray:
        """Move the most promising coordinates of each cell by one, in the direction of descent."""
        assert state.gradient is not None
        moved = state.z - np.sign(state.gradient)
        gain = (np.abs(state.gradient) - (self._bits(moved) - state.bits)) * self.active
        rank = np.argsort(np.argsort(-gain, 1, kind="stable"), 1, kind="stable")
        return np.where((rank < np.maximum(np.round(at_once), 1)) & (gain > 0), moved, state.z)

    def _examine(self, z: FloatArray, gradient: bool = False) -> _State:
        bits = self._bits(z)
        out, opened = self.network(z)
        m = self.model.latent_channels
        mu, log_sigma = out[:, :m], out[:, m : 2 * m]
        groups = np.array(self.model.groups, int)
        if len(groups):
            detail = out[:, 2 * m + groups] + self.model.detail.astype(np.float32)[:, None, None]
            mu = np.pad(mu, ((0, 0), (0, len(groups)), (0, 0), (0, 0)))
            log_sigma = np.concatenate([log_sigma, detail], 1)
        sigma = np.exp(log_sigma.clip(*self.range))
        total, errors, slopes = self._cost(mu, sigma, gradient)
        cells = _cells(total.sum(1, keepdims=True), self.stride).sum((3, 5)) * self.counts
        slope = None
        if slopes is not None:
            of_mu, of_sigma = (each * _spread(self.counts, self.stride) for each in slopes)
            # Beyond the range of log sigma only slopes that lead back into it count.
            low, high = self.range
            of_sigma[((log_sigma < low) & (of_sigma >= 0)) | ((log_sigma > high) & (of_sigma <= 0))] = 0
            back = np.zeros_like(out)
            back[:, :m], back[:, m : 2 * m] = of_mu[:, :m], of_sigma[:, :m]
            for group in range(out.shape[1] - 2 * m):
                back[:, 2 * m + group] = of_sigma[:, m:][:, groups == group].sum(1)
            slope = self.network.back(back, opened)
        return _State(z, bits, cells + bits.sum(1, keepdims=True), errors, slope)

    def _cost(
        self, mu: FloatArray, sigma: FloatArray, gradient: bool
    ) -> tuple[FloatArray, FloatArray, tuple[FloatArray, FloatArray] | None]:
        """Cost of each element of y, the errors as :func:`left_out` measures them, the slopes in mu and log sigma."""
        difference, variance = self.y - mu, sigma * sigma
        distance = difference * difference
        cost, half = np.zeros_like(variance), np.float32(1 / (2 * math.log(2)))
        in_distance, in_variance = np.zeros_like(variance), np.zeros_like(variance)
        for q in self.levels:
            cell = np.float32(q * q / 12)
            per = half / (variance + cell)
            far = distance * per
            coded = sigma >= np.float32(self.skip * q)
            logarithm = np.log1p(far / np.float32(_ESCAPE))
            cost += np.where(coded, np.float32(_ESCAPE) * logarithm, far) + np.log1p(variance / cell) * half
            if gradient:
                slope = np.where(coded, 1 / (1 + far / np.float32(_ESCAPE)), np.float32(1)) * per
                in_distance += slope
                in_variance += per - slope * far / half
        share = np.float32(1 / len(self.levels))
        finest = np.maximum(sigma / np.float32(self.skip), np.float32(self.q_min))
        counted = finest <= self.q_max
        error = np.where(counted & (distance > 0.25 * finest**2), distance / finest**2, np.float32(0))
        # A smooth form, whose gradient leads away from the lower end of sigma.
        wide = variance / np.float32(self.skip**2) + np.float32(self.q_min**2)
        weight = self.weight * counted / wide
        cost = cost * share + weight * distance
        errors: FloatArray = np.sqrt(error.sum(1, keepdims=True)) * _spread(self.counts, self.stride)
        if not gradient:
            return cost, errors, None
        in_distance = in_distance * share + weight
        in_variance = in_variance * share - weight * distance / wide / np.float32(self.skip**2)
        return cost, errors, (-2 * difference * in_distance, 2 * variance * in_variance)

    def _bits(self, z: FloatArray) -> FloatArray:
        return self.coder.lengths_z(z.astype(np.int32)).astype(np.float32)


def _around(cells: FloatArray) -> FloatArray:
    """Sums over the 3 x 3 cells around each."""
    sums: FloatArray = _neighbours(cells, 1).sum((-1, -2))
    return sums
