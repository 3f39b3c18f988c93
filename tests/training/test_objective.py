"""The objective is the stated sum, reaches what a stage trains and nothing else, and stays finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from terms import Roughness
from torch import Tensor, nn

from gic.errors import ConfigError
from gic.method import sde
from gic.models.codec import Codec, trainable_parameters
from gic.models.compressor import ResidualCompressor
from gic.models.reverse import ReverseUNet
from gic.quality.terms import PerceptualTerm
from gic.training.module import LitCodec
from gic.training.objective import Objective, mean_squared_error, psnr, rate_distortion_lambda

Q = torch.tensor([0.5, 2.0, 8.0])


def tiny(seed: int = 0, **options: Any) -> Codec:
    """A small codec in training mode, with nothing left at zero."""
    torch.manual_seed(seed)
    compressor = ResidualCompressor((8, 8, 8, 8), (0, 0, 1, 1), latent_channels=8, hyper_channels=4)
    codec = Codec(compressor, ReverseUNet(8, widths=(8, 16), blocks=(1, 1)), **options)
    for parameter in codec.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    return codec.train()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# --- parts ------------------------------------------------------------------------------------------------


def test_lambda_falls_with_the_square_of_the_level() -> None:
    q = torch.tensor([0.25, 1.0, 4.0, 10.0])
    assert torch.allclose(rate_distortion_lambda(q, 100.0), torch.tensor([1600.0, 100.0, 6.25, 1.0]))


def test_lambda_makes_step_q_the_best_one_at_high_rate() -> None:
    """Rate -log2(q) per latent and distortion c q^2 are in balance at q when lambda = lambda_0 / q^2, for one c."""
    steps = torch.linspace(-1, 1, 2001, dtype=torch.float64).exp()
    c, lambda_0 = 1 / 12, 6 / math.log(2)
    for q in (0.3, 1.0, 5.0):
        tried = q * steps
        cost = -torch.log2(tried) + rate_distortion_lambda(torch.tensor(q), lambda_0) * c * tried**2
        assert float(tried[cost.argmin()]) == pytest.approx(q, rel=2e-3)


def test_psnr_is_that_of_numpy_on_eight_bits() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (4, 3, 20, 30))
    x_hat = x / 255 + rng.normal(0, 1, x.shape) * np.array([0.001, 0.01, 0.1, 1.0])[:, None, None, None]
    rounded = np.clip(np.round(x_hat * 255), 0, 255)
    mse = ((rounded - x) ** 2).mean((1, 2, 3))
    expected = 10 * np.log10(255**2 / mse)
    assert np.allclose(psnr(torch.from_numpy(x_hat), torch.from_numpy(x / 255)).numpy(), expected)
    assert float(psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))) == math.inf


def test_the_mean_squared_error_is_one_number_for_each_image() -> None:
    x, x_hat = images(), images() + torch.tensor([0.0, 0.1, -0.5])[:, None, None, None]
    assert torch.allclose(mean_squared_error(x_hat, x), torch.tensor([0.0, 0.01, 0.25]), atol=1e-6)


# --- the sum ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level_balance", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("r", [0.0, 0.25, 1.0])
def test_the_loss_is_the_stated_sum_of_its_parts(level_balance: float, r: float) -> None:
    codec = tiny(q_min=0.5, q_max=8.0)
    options = {"lambda_0": 700.0, "rate_weight": 0.3, "reverse_weight": 0.2, "terms": {"roughness": Roughness(3.0)}}
    for q in (0.5, 3.0):
        loss = Objective(level_balance=level_balance, realism=(r,), **options)(codec, images(1), torch.tensor([q]))
        weight = (q / 2) ** level_balance  # the geometric mean of 0.5 and 8 is 2
        expected = weight * (0.3 * loss["bits_per_pixel"] + 700 / q**2 * loss["mse"])
        expected = expected + 0.2 * loss["reverse"] + (3 * r * loss["roughness"] if r else 0.0)
        assert loss["roughness"].isnan() == (r == 0)
        assert float(loss["loss"].detach()) == pytest.approx(float(expected), rel=1e-5)
        assert float(loss["psnr"]) == pytest.approx(-10 * math.log10(float(loss["mse"])), rel=1e-5)
        assert [name for name, part in loss.items() if part.requires_grad] == ["loss"]


def test_a_batch_costs_the_mean_of_its_samples() -> None:
    codec = tiny().eval()  # the rate is not noisy
    objective = Objective(realism=(0.5,), terms={"roughness": Roughness()})
    together = objective(codec, images(), Q)
    alone = [objective(codec, images()[i : i + 1], Q[i : i + 1]) for i in range(3)]
    for name, part in together.items():
        assert torch.allclose(part, torch.stack([one[name] for one in alone]).mean(), rtol=1e-4)


def test_the_loss_does_not_depend_on_the_order_of_the_batch() -> None:
    codec = tiny().eval()
    objective = Objective(realism=(0.5,), terms={"roughness": Roughness()})
    order = torch.tensor([2, 0, 1])
    a, b = objective(codec, images(), Q), objective(codec, images()[order], Q[order])
    assert all(torch.allclose(a[name], b[name], rtol=1e-4) for name in a)


def test_perceptual_terms_do_not_count_for_the_least_distortion() -> None:
    codec = tiny().eval()
    plain = Objective(realism=(0.0,))(codec, images(), Q)["loss"]
    judged = Objective(realism=(0.0,), terms={"roughness": Roughness(100.0)})(codec, images(), Q)["loss"]
    assert torch.equal(plain, judged)


def test_each_sample_draws_its_realism_from_the_values_given() -> None:
    codec = tiny()
    drawn: list[float] = []
    restore = codec.restore

    def watch(*arguments: Any, realism: list[float], **options: Any) -> Tensor:
        assert realism == sorted(realism)  # equal ones are decoded together
        drawn.extend(realism)
        return restore(*arguments, realism=realism, **options)

    codec.restore = watch  # type: ignore[method-assign]
    torch.manual_seed(0)
    objective = Objective(realism=(0.0, 0.25, 1.0))
    for _ in range(8):
        objective(codec, images(), Q)
    assert set(drawn) == {0.0, 0.25, 1.0} and len(drawn) == 24


def test_before_its_share_of_the_run_all_samples_are_of_least_distortion() -> None:
    codec = tiny().eval()

    def parts(progress: float, **options: Any) -> dict[str, Tensor]:
        objective = Objective(realism=(1.0,), terms={"roughness": Roughness()}, **options)
        objective.progress = progress
        return objective(codec, images(), Q)

    plain = Objective(realism=(0.0,))(codec, images(), Q)["loss"]
    for progress in (0.0, 0.3, 0.599):
        before = parts(progress, realism_from=0.6)
        assert torch.equal(before["loss"], plain)
        assert bool(before["roughness"].isnan())
    after = parts(0.6, realism_from=0.6)
    assert torch.equal(after["loss"], parts(0.0)["loss"])
    assert bool(after["roughness"].isfinite())


def test_levels_are_drawn_from_the_codecs_range_when_none_are_given() -> None:
    codec = tiny(q_min=1.0, q_max=1.0001)
    torch.manual_seed(0)
    drawn = Objective()(codec, images())
    torch.manual_seed(0)
    codec.sample_levels(3)  # so that the noise is the same
    given = Objective()(codec, images(), torch.ones(3))
    assert torch.allclose(drawn["loss"], given["loss"], rtol=1e-2)


def test_nothing_is_decoded_when_nothing_looks_at_the_reconstruction() -> None:
    codec = tiny()
    codec.compressor.g_s.forward = None  # type: ignore[assignment]
    objective = Objective(lambda_0=0.0, reverse_weight=1.0)
    assert not objective.decodes
    assert set(objective(codec, images(), Q)) == {"loss", "bits_per_pixel", "reverse"}


# --- what learns ------------------------------------------------------------------------------------------

STAGES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "compressor": (["compressor"], {"realism": (0.0,)}),
    "reverse": (["reverse"], {"lambda_0": 0.0, "rate_weight": 0.0, "reverse_weight": 1.0}),
    "reverse by mse": (
        ["reverse"],
        {"lambda_0": 0.0, "rate_weight": 0.0, "reverse_weight": 1.0, "reverse_loss": "mse"},
    ),
    "perceptual": (
        ["reverse", "compressor.g_s"],
        {"realism": (0.0, 1.0), "rate_weight": 0.0, "steps": 2, "terms": {"roughness": Roughness(5.0)}},
    ),
    "perception alone": (
        ["reverse", "compressor.g_s"],
        {"realism": (1.0,), "lambda_0": 0.0, "rate_weight": 0.0, "terms": {"roughness": Roughness(5.0)}},
    ),
    "joint": (["compressor", "reverse"], {"reverse_weight": 1.0, "realism": (0.0, 1.0)}),
}


def learn(codec: Codec, objective: Objective, prefixes: list[str], q: Tensor) -> dict[str, Tensor]:
    for name, learns in trainable_parameters(codec, prefixes).items():
        codec.get_parameter(name).requires_grad_(learns)
    losses = objective(codec, images(len(q)), q)
    losses["loss"].backward()
    return losses


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("quantizer", ["round", "dither"])
def test_a_stage_reaches_every_parameter_it_trains_and_no_other(stage: str, quantizer: str) -> None:
    prefixes, options = STAGES[stage]
    codec = tiny(quantizer=quantizer)
    torch.manual_seed(1)
    losses = learn(codec, Objective(**options), prefixes, torch.tensor([0.5, 1.0, 2.0, 8.0]))
    assert bool(torch.isfinite(losses["loss"]))
    for name, learns in trainable_parameters(codec, prefixes).items():
        gradient = codec.get_parameter(name).grad
        assert (gradient is not None) == learns, name
        if gradient is not None:
            assert bool(torch.isfinite(gradient).all()) and bool(gradient.any()), name


@pytest.mark.parametrize("kind", ["nll", "mse"])
def test_the_reverse_loss_is_no_business_of_the_compressor(kind: Any) -> None:
    codec = tiny()
    latents = codec.compressor.analyse(images())
    codec.reverse_loss(latents, codec.to_level(latents, Q), Q, kind).sum().backward()
    assert all(p.grad is None for p in codec.compressor.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in codec.reverse.parameters())


def test_the_networks_of_terms_are_neither_trained_nor_saved_with_the_codec() -> None:
    codec = tiny()
    names = set(codec.state_dict())
    objective = Objective(realism=(1.0,), terms={"roughness": Roughness()})
    objective(codec, images(), Q)["loss"].backward()
    assert set(codec.state_dict()) == names
    lit = LitCodec(codec, objective)
    assert lit.objective is objective
    assert set(lit.state_dict()) == {f"codec.{name}" for name in names}


def test_a_network_that_a_term_holds_moves_with_it_and_is_no_part_of_it() -> None:
    class Held(PerceptualTerm):
        def __init__(self) -> None:
            super().__init__()
            self.hold(nn.Conv2d(3, 1, 1))

        def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
            return self.network(x_hat - x).square().flatten(1).mean(1)  # type: ignore[no-any-return]

    objective = Objective(terms={"held": Held()})
    assert not list(objective.parameters()) and not objective.state_dict()
    objective.to(torch.float64)
    assert objective.terms["held"].network.weight.dtype == torch.float64


# --- the reverse loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nll", "mse"])
def test_the_reverse_loss_of_knowing_nothing_but_the_cell(kind: Any) -> None:
    """A prior much wider than the cell says nothing: nll 0, and an mse of one where the residual is uniform."""
    codec = tiny()
    codec.reverse.leave.weight.data.zero_()
    codec.reverse.leave.bias.data.zero_()
    torch.manual_seed(0)
    y = torch.rand(3, 8, 64, 64) * 50
    latents = codec.compressor.analyse(images())
    latents = latents._replace(y=y, mu=torch.zeros_like(y), sigma=torch.full_like(y, 1e4))
    loss = codec.reverse_loss(latents, sde.forward(y, Q), Q, kind)
    assert loss.shape == (3,)
    assert torch.allclose(loss, torch.full((3,), 0.0 if kind == "nll" else 1.0), atol=0.03)


@pytest.mark.parametrize("kind", ["nll", "mse"])
def test_the_reverse_loss_is_least_at_the_right_prior(kind: Any) -> None:
    codec = tiny()
    codec.reverse.leave.weight.data.zero_()
    codec.reverse.leave.bias.data.zero_()
    torch.manual_seed(0)
    y = torch.randn(3, 8, 64, 64)
    y_q = sde.forward(y, Q)
    latents = codec.compressor.analyse(images())

    def loss(mu: float, sigma: float) -> Tensor:
        torch.manual_seed(1)  # the same intermediate levels
        believed = latents._replace(y=y, mu=torch.full_like(y, mu), sigma=torch.full_like(y, sigma))
        return codec.reverse_loss(believed, y_q, Q, kind).mean()

    best = loss(0.0, 1.0)
    assert all(loss(*other) > best for other in ((0.0, 1.4), (0.0, 0.7), (0.4, 1.0), (-0.4, 1.0)))


def test_the_reverse_loss_judges_levels_up_to_that_of_the_file() -> None:
    codec = tiny()
    seen: list[Tensor] = []
    embed = codec.reverse.embed.forward
    codec.reverse.embed.forward = lambda log_q: (seen.append(log_q.exp()), embed(log_q))[1]  # type: ignore[method-assign]
    latents = codec.compressor.analyse(images())
    y_q = codec.to_level(latents, Q)
    torch.manual_seed(0)
    for _ in range(300):
        codec.reverse_loss(latents, y_q, Q)
    fraction = torch.stack(seen) / Q
    assert float(fraction.min()) > 0 and float(fraction.max()) <= 1 + 1e-5
    assert float(fraction.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(fraction.std()) == pytest.approx(math.sqrt(1 / 12), abs=0.03)
    assert bool((fraction.std(1) > 0).all())  # one for each sample


# --- extremes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", ["black", "white", "noise"])
@pytest.mark.parametrize("quantizer", ["round", "dither"])
@pytest.mark.parametrize("gain", [1e-3, 1.0, 1e3])
def test_extreme_images_and_levels_give_finite_losses_and_gradients(picture: str, quantizer: str, gain: float) -> None:
    codec = tiny(quantizer=quantizer, q_min=1e-2, q_max=1e3)
    codec.compressor.g_a.gain = codec.compressor.g_s.gain = gain
    x = {"black": torch.zeros(2, 3, 64, 64), "white": torch.ones(2, 3, 64, 64), "noise": images(2).round()}[picture]
    objective = Objective(reverse_weight=1.0, realism=(1.0,), steps=3, terms={"roughness": Roughness()})
    losses = objective(codec, x, torch.tensor([codec.q_min, codec.q_max]))
    losses["loss"].backward()
    assert all(bool(torch.isfinite(part)) for part in losses.values())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in codec.parameters())


def test_a_perfect_reconstruction_gives_a_finite_loss() -> None:
    codec = tiny()
    x = torch.full((2, 3, 64, 64), 0.5)
    for parameter in codec.compressor.g_s.parameters():
        parameter.data.zero_()
    losses = Objective(lambda_0=10.0)(codec, x, torch.tensor([0.5, 8.0]))
    losses["loss"].backward()
    assert float(losses["mse"]) == 0
    assert all(bool(torch.isfinite(part)) for part in losses.values())


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"realism": ()},
        {"realism": (0.0, 1.1)},
        {"realism": (-0.1,)},
        {"realism": (math.nan,)},
        {"realism_from": 1.0},
        {"realism_from": -0.1},
        {"lambda_0": -1.0},
        {"rate_weight": -1.0},
        {"reverse_weight": -0.5},
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Objective(**options)


@pytest.mark.parametrize(
    "options",
    [{"lambda_0": math.nan}, {"reverse_weight": math.nan}, {"reverse_loss": "l1"}, {"sampler": "ddpm"}, {"steps": 0}],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Objective(**options)
