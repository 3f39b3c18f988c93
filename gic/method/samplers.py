"""Samplers that carry the transmitted latent from level q down to 0 (DESIGN 3, 7).

All integrate the flow whose velocity is the gradient of the rate-variable feature distribution,

    v(y_q, q) = d y_q / d q = (y_q - D(y_q, q)) / q                            (DESIGN 3 (1))

along the levels q * t, t from 1 down to 0. q may be a field: each element then runs along its own levels, dy/dt = q * v
(DESIGN 11). A sampler is a frozen dataclass: its fields are its parameters, and its
method ``run`` is the algorithm.

=========== ========================================================================= ================
name        step from q_i to q_{i+1} < q_i                                            evaluations of D
=========== ========================================================================= ================
``mean``    y = D(y_q, q), least distortion                                           1
``euler``   y <- D + (q_{i+1} / q_i) (y - D)                                          N
``heun``    second order of (1), plain Euler for the last step to 0                   2 N - 1
``sde``     y <- D + q_{i+1} (sqrt(1 - a^2) eps_hat + a eps_new), the paper's         N
``restart`` Heun to q/2, a coin back up to q, again; then Heun to 0: exact marginals  about 4 N
=========== ========================================================================= ================

To add one, write the class and give it a name in :data:`SAMPLERS`; wherever a sampler can be named (``Codec``, configs,
``gic decompress --sampler``, ``gic test``), ``name`` and ``name(parameter=value)`` then stand for it.

Source: arXiv 2505.20984 (``sde``); the velocity form (1) and the restarts go beyond it.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from gic.errors import ConfigError
from gic.method.arrays import AnyArray, Array, at_least_float32, cast, namespace
from gic.method.sde import Generator, Level, coarsen, level, uniform, velocity

Denoiser = Callable[[AnyArray, AnyArray], AnyArray]
"""``denoiser(y_q, q) -> E[y | y_q]``; ``y_q`` (B, ...), ``q`` (B, 1, ..., 1) or a field, float32 or float64."""
Realism = float | Sequence[float] | AnyArray
"""r in [0, 1] (DESIGN 7): a number, or one for each sample. Give Python floats: reading a tensor waits for the GPU."""


class Flow(NamedTuple):
    """What a sampler receives: the latent at level q, the denoiser and the levels; tensors, or NumPy's arrays.

    Attributes:
        denoiser: Estimate of ``E[y | y_q]``.
        y_q: Latent at level q, (B, ...), float32 or float64.
        q: The level, (B, 1, ..., 1) or (1, ..., 1), or a field like ``y_q``.
        times: Levels relative to q, from 1 down to 0, see :func:`schedule`.
        mean: ``D(y_q, q)``, like ``y_q``: the first evaluation, which every sampler shares.
        generator: Source of noise for stochastic samplers.
    """

    denoiser: Denoiser
    y_q: AnyArray
    q: AnyArray
    times: Sequence[float]
    mean: AnyArray
    generator: Generator = None

    def denoise(self, y: AnyArray, t: float) -> AnyArray:
        """``D(y, q t)``, like ``y``: one evaluation."""
        q = self.q * t
        return cast(self.denoiser(y, namespace(q).broadcast_to(q, (y.shape[0], *q.shape[1:]))), y.dtype)


class Sampler(ABC):
    """A way to carry a latent from level q down to 0."""

    @abstractmethod
    def run(self, flow: Flow) -> AnyArray:
        """End of the flow, like ``flow.y_q``."""

    def evaluations(self, steps: int) -> int:
        """Number of evaluations of D in ``steps`` steps, including the first; counted in a run on one element."""
        calls = 1

        import torch  # a user's own sampler may know tensors alone

        def counted(y: AnyArray, q: AnyArray) -> AnyArray:
            nonlocal calls
            calls += 1
            return y

        y = torch.zeros(1, 1)
        self.run(Flow(counted, y, torch.ones(1, 1), schedule(steps), y, torch.Generator().manual_seed(0)))
        return calls

    def __str__(self) -> str:
        """As :func:`sampler_of` reads it: the name, and the parameters that are not the default."""
        name = next((name for name, kind in SAMPLERS.items() if kind is type(self)), type(self).__name__)
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        given = [f"{field.name}={value}" for field in fields if (value := getattr(self, field.name)) != field.default]
        return f"{name}({', '.join(given)})" if given else name


@dataclass(frozen=True)
class Mean(Sampler):
    """The posterior mean itself: one evaluation, least distortion."""

    def run(self, flow: Flow) -> AnyArray:
        """``D(y_q, q)``."""
        return flow.mean


@dataclass(frozen=True)
class Euler(Sampler):
    """First order: ``y <- D + (q_{i+1} / q_i) (y - D)``, the twin of DDIM (arXiv 2010.02502)."""

    def run(self, flow: Flow) -> AnyArray:
        """End of the flow."""
        y, denoised = flow.y_q, flow.mean
        for i, (t, t_next) in enumerate(pairwise(flow.times)):
            if i > 0:
                denoised = flow.denoise(y, t)
            y = denoised + (t_next / t) * (y - denoised)
        return y


@dataclass(frozen=True)
class Heun(Sampler):
    """Second order: the mean of the velocities at both ends of a step; plain Euler for the last step to 0."""

    def run(self, flow: Flow) -> AnyArray:
        """End of the flow."""
        return _heun(flow, flow.y_q, flow.times, flow.mean)


def _heun(flow: Flow, y: AnyArray, times: Sequence[float], denoised: AnyArray | None = None) -> AnyArray:
    """Heun's steps through ``times``, from y at ``times[0]``, where D may be known."""
    for t, t_next in pairwise(times):
        denoised = flow.denoise(y, t) if denoised is None else denoised
        v = velocity(y, flow.q * t, denoised)
        predicted = y + flow.q * (t_next - t) * v
        if t_next > 0:
            v_next = velocity(predicted, flow.q * t_next, flow.denoise(predicted, t_next))
            predicted = y + flow.q * (t_next - t) * (v + v_next) / 2
        y, denoised = predicted, None
    return y


@dataclass(frozen=True)
class SDE(Sampler):
    """The paper's stochastic sampler: ``y <- D + q_{i+1} (sqrt(1 - a^2) eps_hat + a eps_new)``.

    Args:
        alpha: a, share of new noise in [0, 1]; in Python also a function of t = q_{i+1} / q. 0 is ``euler``.

    Raises:
        ConfigError: If ``alpha`` lies outside its range.
    """

    alpha: float | Callable[[float], float] = 0.5

    def __post_init__(self) -> None:
        """Check the range, where it is known."""
        if not callable(self.alpha):
            self._checked(self.alpha)

    @staticmethod
    def _checked(a: float) -> float:
        if not 0 <= a <= 1:
            raise ConfigError(f"alpha must lie in [0, 1], not {a}")
        return a

    def run(self, flow: Flow) -> AnyArray:
        """End of the flow."""
        y, denoised = flow.y_q, flow.mean
        for i, (t, t_next) in enumerate(pairwise(flow.times)):
            if i > 0:
                denoised = flow.denoise(y, t)
            a = self._checked(self.alpha(t_next)) if callable(self.alpha) else self.alpha
            eps = velocity(y, flow.q * t, denoised)
            if a > 0 and t_next > 0:
                eps = math.sqrt(1 - a * a) * eps + a * uniform(y, flow.generator)
            y = denoised + flow.q * t_next * eps
        return y


@dataclass(frozen=True)
class Restart(Sampler):
    """Heun to q/2, a fair coin of +-q/4 back up to level q, again, then Heun to 0: stochastic, with exact marginals.

    Args:
        restarts: Number of coin flips, at least 0.

    Raises:
        ConfigError: If ``restarts`` is negative, or no integer.
    """

    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the range."""
        if not isinstance(self.restarts, int) or self.restarts < 0:
            raise ConfigError(f"restarts must be 0 or more, an integer, not {self.restarts!r}")

    def run(self, flow: Flow) -> AnyArray:
        """End of the flow."""
        leg = max(1, math.ceil((len(flow.times) - 1) / 2))  # steps between q and q/2
        to_half = [1 - i / (2 * leg) for i in range(leg + 1)]
        y = _heun(flow, flow.y_q, to_half, flow.mean)
        for _ in range(self.restarts):
            y = _heun(flow, coarsen(y, flow.q / 2, flow.generator), to_half)
        return _heun(flow._replace(q=flow.q / 2), y, flow.times)


SAMPLERS: dict[str, type[Sampler]] = {"mean": Mean, "euler": Euler, "heun": Heun, "sde": SDE, "restart": Restart}
"""Samplers by name."""


# --- naming one ---------------------------------------------------------------------------------------------


def spelled(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name and parameters in a text such as ``sde(alpha=0.3)``; parameters are numbers, texts, True, False or None.

    Raises:
        ConfigError: If the text has another form.

    >>> spelled("sde(alpha=0.3)"), spelled("heun")
    (('sde', [], {'alpha': 0.3}), ('heun', [], {}))
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        names = {k.arg for k in call.keywords}
        if not isinstance(call.func, (ast.Name, ast.Attribute)) or None in names or len(names) < len(call.keywords):
            raise ValueError
        parameters = [ast.literal_eval(value) for value in call.args]
        return ast.unparse(call.func), parameters, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"a sampler is a name, optionally with parameters, such as sde(alpha=0.3): not {text!r}"
        ) from error


def sampler_of(sampler: str | Sampler) -> Sampler:
    """The sampler that a text such as ``sde(alpha=0.3)`` names.

    Raises:
        ConfigError: If there is no such sampler, or it has no such parameter.

    >>> sampler_of("restart(restarts=2)"), str(sampler_of("sde(0.3)")), str(sampler_of("sde"))
    (Restart(restarts=2), 'sde(alpha=0.3)', 'sde')
    """
    if isinstance(sampler, Sampler):
        return sampler
    name, values, named = spelled(sampler)
    if name not in SAMPLERS:
        raise ConfigError(f"there is no sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
    return made(SAMPLERS[name], values, named)


def made(kind: type[Sampler], values: Sequence[Any], named: dict[str, Any]) -> Sampler:
    """A sampler with the given parameters.

    Raises:
        ConfigError: If the sampler does not take them.
    """
    try:
        return kind(*values, **named)
    except TypeError as error:
        raise ConfigError(f"the sampler {kind.__name__} does not take these parameters: {error}") from error


# --- running one --------------------------------------------------------------------------------------------


def numbers(realism: Realism) -> list[float]:
    """The numbers of r, one for all samples or one for each.

    >>> numbers(0.5), numbers((0.0, 1.0))
    ([0.5], [0.0, 1.0])
    """
    if isinstance(realism, (int, float)):
        return [float(realism)]
    return [float(r) for r in realism] if isinstance(realism, Sequence) else realism.reshape(-1).tolist()


def schedule(steps: int, rho: float = 1.0) -> list[float]:
    """Levels relative to the first: ``(1 - i / N) ** rho`` for i = 0 ... N, from 1 down to 0 (DESIGN 3).

    Raises:
        ValueError: If ``steps`` < 1 or ``rho`` <= 0.
    """
    if steps < 1 or rho <= 0:
        raise ValueError(f"steps must be at least 1 and rho positive, not {steps} and {rho}")
    return [(1 - i / steps) ** rho for i in range(steps + 1)]


def reverse(
    denoiser: Denoiser,
    y_q: Array,
    q: Level,
    *,
    steps: int = 2,
    sampler: str | Sampler = "heun",
    realism: Realism = 1.0,
    rho: float = 1.0,
    generator: Generator = None,
) -> Array:
    """Undo the diffusion: from the transmitted latent at level ``q`` down to level 0 (DESIGN 3, 7).

    Args:
        denoiser: Estimate of ``E[y | y_q]``, called with ``y_q`` (B, ...) and ``q`` (B, 1, ..., 1) or a field.
        y_q: Latent at level ``q``, (B, ...).
        q: Quantisation step > 0, a number, (B,) or a field.
        steps: Number N of steps, at least 1.
        sampler: A sampler, or what :func:`sampler_of` reads as one.
        realism: r in [0, 1], a number or one for each sample: ``(1 - r) * D(y_q, q) + r * y_0`` with ``y_0`` the end of
            the flow; 0 is the estimate of least distortion (DESIGN 7).
        rho: Exponent of :func:`schedule`.
        generator: Noise source of stochastic samplers.

    Returns:
        Estimate of y, like ``y_q``, in float32 or better.

    Raises:
        ConfigError: If there is no such sampler.
        ValueError: If a number lies outside its range.

    Example:
        >>> import numpy as np
        >>> y_q = np.array([[3.0, -1.0]])
        >>> reverse(lambda y, q: y / (1 + q**2 / 12), y_q, 2.0, steps=8).shape
        (1, 2)
    """
    sampler = sampler_of(sampler)
    y = cast(y_q, at_least_float32(y_q))
    given = numbers(realism)
    if not all(0 <= value <= 1 for value in given):
        raise ValueError("realism must lie in [0, 1]")
    flow = Flow(denoiser, y, level(q, y), schedule(steps, rho), y, generator)
    mean: Array = flow.denoise(y, 1.0)
    if type(sampler) is Mean or not any(given):
        return mean
    end = sampler.run(flow._replace(mean=mean))
    result: Array = mean + level(given, y) * (end - mean)
    return result
