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
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gic.bitstream.coder import EntropyCoder, Prior, level_value
from gic.bitstream.tables import LEVELS_PER_OCTAVE, SKIP_DITHER, SKIP_ROUND
from gic.models.compressor import Compressor

LIMITS = {"round": 4.0, "dither": 8.0}
"""Largest error of what is left out at one place of y, in steps: 73 sigma under either quantiser. Ordinary photographs
stay below and keep the z of the hyper-analysis."""
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


def left_out(y: Tensor, prior: Prior, finest: int, coarsest: int, quantizer: Literal["round", "dither"]) -> Tensor:
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
    code = (prior.log2_sigma - (SKIP_DITHER if quantizer == "dither" else SKIP_ROUND)).clamp_min(finest)
    error = (y - prior.mu).abs() * torch.exp2(code.float() * (-1 / LEVELS_PER_OCTAVE))
    error = torch.where((code <= coarsest) & (error > 0.5), error, 0.0)
    return error.square().sum(1, keepdim=True).sqrt()


def settle(
    compressor: Compressor,
    coder: EntropyCoder,
    y: Tensor,
    z: Tensor,
    finest: int,
    coarsest: int,
    quantizer: Literal["round", "dither"],
) -> tuple[Tensor, Prior]:
    """Keep z or, where the error of left-out elements is too large, replace it.

    Args:
        compressor: Holds h_s.
        coder: Coder of the same weights.
        y: Latent of one image, (1, M, h, w), on the CPU.
        z: Its hyper-latent in integers, float32 (1, N, h/4, w/4), on the CPU.
        finest: Code of the finest level of the model.
        coarsest: Code of the coarsest.
        quantizer: ``round`` or ``dither``.

    Returns:
        z and its exact prior. After :data:`ROUNDS` searches the best z that was found, even if it exceeds the limit.
    """
    prior = coder.prior(z)
    errors = left_out(y, prior, finest, coarsest, quantizer)
    best = z, prior
    worst = float(errors.max())
    for _ in range(ROUNDS):
        bad = F.max_pool2d(errors, compressor.hyper_downsampling) > LIMITS[quantizer]
        if not bool(bad.any()):
            break
        with torch.inference_mode(False), torch.autocast(y.device.type, enabled=False):
            z = z.clone()
            for window in _windows(_dilate(bad)[0, 0].numpy()):
                search = _Search(compressor, coder, y, z, window, finest, coarsest, quantizer)
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
    active: Tensor


def _windows(active: NDArray[np.bool_]) -> Iterator[_Window]:
    """A window for each group of neighbouring cells, with the cells they reach and the cells that reach those."""
    rest = active.copy()
    while rest.any():
        group = np.zeros_like(rest)
        group.flat[int(np.flatnonzero(rest)[0])] = True
        while True:
            grown = _dilate(torch.from_numpy(group)[None, None])[0, 0].numpy() & rest
            if (grown == group).all():
                break
            group = grown
        rest &= ~group
        sides = []
        for axis, length in enumerate(group.shape):
            at = np.flatnonzero(group.any(1 - axis))
            sides.append(slice(max(0, int(at[0]) - 2 * _REACH), min(length, int(at[-1]) + 2 * _REACH + 1)))
        yield _Window(sides[0], sides[1], torch.from_numpy(group[sides[0], sides[1]])[None, None])


def _dilate(cells: Tensor, by: int = 1) -> Tensor:
    return F.max_pool2d(cells.float(), 2 * by + 1, 1, by) > 0


class _State(NamedTuple):
    """A candidate z: its bits for each symbol, the cost of each cell including them, and the errors left out."""

    z: Tensor
    bits: Tensor
    cost: Tensor
    errors: Tensor
    gradient: Tensor | None


class _Search:
    """Search of z in a window, one picture's."""

    def __init__(
        self,
        compressor: Compressor,
        coder: EntropyCoder,
        y: Tensor,
        z: Tensor,
        window: _Window,
        finest: int,
        coarsest: int,
        quantizer: Literal["round", "dither"],
    ) -> None:
        self.compressor = compressor
        self.coder = coder
        self.stride = compressor.hyper_downsampling
        self.device = next(compressor.parameters()).device
        self.active = window.active
        self.z = z[..., window.rows, window.columns].clone()
        rows, columns = (slice(self.stride * s.start, self.stride * s.stop) for s in (window.rows, window.columns))
        self.y = y[..., rows, columns].clone().to(self.device)
        self.counts = _dilate(self.active, _REACH).float()
        self.levels = [level_value(round(code)) for code in np.linspace(finest, coarsest, LEVELS)]
        self.q_min, self.q_max = self.levels[0], self.levels[-1]
        self.skip = 2.0 ** ((SKIP_DITHER if quantizer == "dither" else SKIP_ROUND) / LEVELS_PER_OCTAVE)
        self.limit = _MARGIN * LIMITS[quantizer]
        self.weight = torch.zeros(1, 1, *self.y.shape[-2:])

    def run(self) -> Tensor:
        """The z found for the window, float32 (1, N, rows, columns)."""
        starts = [self.z]
        starts += [torch.where(self.active, self.z.clamp(-limit, limit), self.z) for limit in _CLAMPS]
        self.weight += BITS_PER_STEP2
        state = min((self._examine(z) for z in starts), key=lambda s: float(s.cost.sum()))
        self.weight = BITS_PER_STEP2 * (state.errors > self.limit)
        state = self._examine(state.z, gradient=True)
        best = state
        at_once = torch.full(self.active.shape, _AT_ONCE)
        history: list[float] = []
        found = 0
        for number in range(STEPS):
            moved = self._examine(self._step(state, at_once))
            better = _around(moved.cost) < _around(state.cost)
            at_once = torch.where(better, (1.5 * at_once).clamp_max(_AT_ONCE_MAX), 0.5 * at_once)
            moved = self._examine(torch.where(better, moved.z, state.z), gradient=True)
            if float(moved.cost.sum()) < float(state.cost.sum()):
                state = moved
            bad = state.errors > self.limit
            if self._rank(state) < self._rank(best):
                best, found = state, number
            if bool(bad.any()):
                if number - found >= _HOPE:
                    break
                # Increase the weight where the error is still too large.
                self.weight = torch.where(bad, (1.5 * self.weight).clamp(BITS_PER_STEP2, 2.0**20), self.weight)
                state = self._examine(state.z, gradient=True)
                at_once = torch.where(self.active & (at_once < 1), 1.0, at_once)
                history.clear()
                continue
            history.append(float(state.cost.sum()))
            if len(history) > _PATIENCE and history[-1] > (1 - _GAIN) * history[-1 - _PATIENCE]:
                break
        return best.z

    def _rank(self, state: _State) -> tuple[float, float]:
        return max(float(state.errors.max()), self.limit), float(state.cost.sum())

    def _step(self, state: _State, at_once: Tensor) -> Tensor:
        """Move the most promising coordinates of each cell by one, in the direction of descent."""
        assert state.gradient is not None
        moved = state.z - state.gradient.sign()
        gain = (state.gradient.abs() - (self._bits(moved) - state.bits)) * self.active
        rank = gain.argsort(1, descending=True).argsort(1)
        return torch.where((rank < at_once.round().clamp_min(1)) & (gain > 0), moved, state.z)

    def _examine(self, z: Tensor, gradient: bool = False) -> _State:
        bits = self._bits(z)
        with torch.set_grad_enabled(gradient):
            variable = z.to(self.device, copy=True).requires_grad_(gradient)
            mu, sigma = self.compressor.hyper_synthesis(variable)
            cost, errors = self._cost(mu, sigma)
            total = cost.sum(1, keepdim=True)
            cells = self.stride**2 * F.avg_pool2d(total, self.stride) * self.counts.to(self.device)
            slope = torch.autograd.grad(cells.sum(), variable)[0].cpu() if gradient else None
        return _State(z, bits, cells.detach().cpu() + bits.sum(1, keepdim=True), errors, slope)

    def _cost(self, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Cost of each element of y, and the errors as :func:`left_out` measures them."""
        distance, variance = (self.y - mu).square(), sigma.square()
        cost = torch.zeros_like(variance)
        for q in self.levels:
            cell = q * q / 12
            far = distance / (variance + cell) / (2 * math.log(2))
            far = torch.where(sigma >= self.skip * q, _ESCAPE * torch.log1p(far / _ESCAPE), far)
            cost = cost + (far + torch.log1p(variance / cell) / (2 * math.log(2))) / len(self.levels)
        q = (sigma / self.skip).clamp_min(self.q_min)
        error = torch.where((q <= self.q_max) & (distance > 0.25 * q * q), distance / (q * q), 0.0)
        # A smooth form, whose gradient leads away from the lower end of sigma.
        smooth = distance / (variance / self.skip**2 + self.q_min**2) * (q <= self.q_max)
        cost = cost + self.weight.to(self.device) * smooth
        inside = F.interpolate(self.counts, scale_factor=self.stride)
        return cost, error.detach().sum(1, keepdim=True).sqrt().cpu() * inside

    def _bits(self, z: Tensor) -> Tensor:
        return torch.from_numpy(self.coder.lengths_z(z.numpy().astype(np.int32))).float()


def _around(cells: Tensor) -> Tensor:
    """Sums over the 3 x 3 cells around each."""
    return 9 * F.avg_pool2d(cells, 3, 1, 1)
