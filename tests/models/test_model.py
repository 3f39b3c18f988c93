"""The whole codec: levels, quantisers, rate, realism and independence of the batch; its size; what may learn."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from bounds import rounding
from scipy import stats
from tiny_models import images, tiny
from torch import Tensor, nn

from gic.errors import ConfigError
from gic.method import samplers, sde
from gic.method.posterior import truncated_normal_mean
from gic.models.codec import Codec, macs_per_pixel, parameter_counts, trainable_parameters
from gic.models.compressor import Latents, ResidualCompressor
from gic.models.ranges import SKIP_BELOW
from gic.models.reverse import ReverseUNet

Q = torch.tensor([0.5, 2.0, 8.0])


def generators(count: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(20 + i) for i in range(count)]


# --- the pass through the codec ---------------------------------------------------------------------------


def test_the_pass_is_made_of_its_documented_parts() -> None:
    codec = tiny()
    with torch.no_grad():
        out = codec(images(), Q, realism=0.7, sampler="euler", steps=3)
        latents = codec.compressor.analyse(images())
        y_q = sde.forward(latents.y, Q, quantizer="round", mu=latents.mu)
        y_hat = samplers.reverse(codec.denoiser(latents), y_q, Q, steps=3, sampler="euler", realism=0.7)
        assert torch.equal(out.y_q, y_q)
        assert torch.equal(out.y_hat, y_hat)
        assert torch.equal(out.x_hat, codec.compressor.synthesise(y_hat))
        p = codec.compressor.likelihoods(latents, Q, y_q)
        assert torch.equal(out.bits, sum(-torch.log2(v).flatten(1).sum(1) for v in p.values()))


@pytest.mark.parametrize("quantizer", ["round", "dither"])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_a_field_of_equal_levels_is_the_level_bit_for_bit(quantizer: Literal["round", "dither"], sampler: str) -> None:
    codec = tiny()
    codec.quantizer = quantizer
    with torch.no_grad():
        latents = codec.compressor.analyse(images())
        field = sde.level(Q, latents.y).expand_as(latents.y)
        found = []
        for q in (Q, field):
            y_q = codec.to_level(latents, q, generators())
            restored = codec.restore(latents, y_q, q, realism=0.7, sampler=sampler, generator=generators())
            p = codec.compressor.likelihoods(latents, q, y_q)
            found.append((y_q, restored, codec.bits(latents, q, y_q), p["y"], p["z"]))
    for number, own in zip(*found, strict=True):
        assert torch.equal(number, own)


def test_the_untrained_codec_decodes_to_the_exact_posterior_mean() -> None:
    codec = tiny()
    codec.reverse.leave.weight.data.zero_()
    codec.reverse.leave.bias.data.zero_()
    with torch.no_grad():
        out = codec(images(), Q, realism=0.0)
    latents = out.latents
    assert torch.equal(out.y_hat, truncated_normal_mean(out.y_q, sde.level(Q, out.y_q), latents.mu, latents.sigma))


@pytest.mark.parametrize("quantizer", ["round", "dither"])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(quantizer: str, sampler: str) -> None:
    codec = tiny(quantizer=quantizer, q_max=16.0)
    x, r = images(), torch.tensor([0.3, 0.6, 1.0])

    def run(rows: list[int]) -> dict[str, Tensor]:
        noise = generators()
        options = {"sampler": sampler, "steps": 3, "generator": [noise[i] for i in rows]}
        with torch.no_grad():
            out = codec(x[rows], Q[rows], realism=r[rows], **options)
        return {"x_hat": out.x_hat, "y_hat": out.y_hat, "y_q": out.y_q, "bits": out.bits}

    together = run([0, 1, 2])
    for rows in ([0], [1], [2], [2, 0]):
        for name, value in run(rows).items():
            assert torch.allclose(value, together[name][rows], rtol=1e-4, atol=1e-3), name


@pytest.mark.parametrize("quantizer", ["round", "dither"])
def test_the_rate_does_not_depend_on_realism_sampler_or_steps(quantizer: str) -> None:
    codec = tiny(quantizer=quantizer)
    with torch.no_grad():
        first = codec(images(), Q, realism=0.0, generator=generators())
        for r, sampler, steps in itertools.product((0.0, 0.5, 1.0), ("euler", "sde"), (1, 3)):
            out = codec(images(), Q, realism=r, sampler=sampler, steps=steps, generator=generators())
            assert torch.equal(out.bits, first.bits) and torch.equal(out.y_q, first.y_q)
        assert not torch.equal(out.x_hat, first.x_hat)


@pytest.mark.parametrize("quantizer", ["round", "dither"])
def test_bits_fall_as_q_grows(quantizer: str) -> None:
    codec = tiny(quantizer=quantizer)
    x = images(1)
    with torch.no_grad():
        bits = [float(codec(x, torch.tensor([q]), generator=generators(1)).bits) for q in (0.5, 1.0, 2.0, 4.0, 8.0)]
    assert all(fine > coarse for fine, coarse in itertools.pairwise(bits))


def test_the_rate_of_training_is_differentiable_and_that_of_dither_in_the_mean() -> None:
    codec = tiny(gain=100.0, quantizer="dither").train()
    q = torch.full((3,), 0.5)
    latents = codec.compressor.analyse(images())
    latents = latents._replace(sigma=latents.sigma.clamp_min(2 * SKIP_BELOW * 0.5))  # none is skipped
    (gradient,) = torch.autograd.grad(codec.bits(latents, q, latents.y).sum(), latents.y, retain_graph=True)
    assert bool(torch.isfinite(gradient).all()) and bool(gradient.any())
    rounds = 40
    with torch.no_grad():
        z_noise = [-torch.log2(codec.compressor.prior_z(latents.z)[1]).flatten(1).sum(1) for _ in range(rounds)]
        noisy = [codec.bits(latents, q, latents.y) for _ in range(rounds)]
        codec.eval()
        z = -torch.log2(codec.compressor.prior_z(latents.z)[1]).flatten(1).sum(1)
        dithered = [codec.bits(latents, q, codec.to_level(latents, q)) for _ in range(rounds)]
    training = torch.stack(noisy).mean(0) - torch.stack(z_noise).mean(0)
    evaluation = torch.stack(dithered).mean(0) - z
    assert torch.allclose(training, evaluation, rtol=0.01)


@pytest.mark.parametrize("quantizer", ["round", "dither"])
def test_the_rate_of_training_is_the_mean_over_the_cell_of_what_noise_may_give(quantizer: str) -> None:
    """And not the rate of y or of y_q, from which it is far where sigma is small beside q."""
    codec = tiny(quantizer=quantizer).double().train()
    codec.compressor.prior_z.eval()  # the noise of z is not what is looked at
    count = 4000
    generator = torch.Generator().manual_seed(0)
    offset, sigma = (torch.rand(2, 8, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    z = torch.zeros(2, 4, 1, 1, dtype=torch.float64)
    q = torch.tensor([0.7, 3.0], dtype=torch.float64)
    unit = sde.level(q, z)
    mu = torch.full_like(offset, 0.4)
    one = Latents(mu + unit * (offset - 0.5), z, z, mu, unit * (0.2 + 0.3 * sigma))
    many = Latents(*(t.repeat_interleave(count, 0) for t in one))
    torch.manual_seed(1)
    drawn = codec.bits(many, q.repeat_interleave(count), many.y).reshape(2, count)
    nodes, weights = (torch.from_numpy(t) for t in np.polynomial.legendre.leggauss(60))
    likelihoods = [codec.compressor.likelihoods(one, q, one.y + unit * u / 2) for u in nodes]
    rates = torch.stack([sum(-torch.log2(v).flatten(1).sum(1) for v in p.values()) for p in likelihoods], 1)
    expected = rates @ weights / 2
    error = drawn.std(1) / math.sqrt(count)
    assert bool(((drawn.mean(1) - expected).abs() < 4.5 * error).all())
    codec.eval()
    codec.quantizer = "round"  # which codes everything
    for y_q in (one.y, sde.forward(one.y, q, quantizer="round", mu=mu)):
        assert bool(((codec.bits(one, q, y_q) - expected).abs() > 20 * error).all())


def test_under_dither_what_is_skipped_costs_nothing_and_rounding_codes_it() -> None:
    codec = tiny(quantizer="dither")
    with torch.no_grad():
        latents = Latents(*(t.double() for t in codec.compressor.analyse(images())))
        codec.double()
        q = torch.tensor([1.0, 4.0, 8.0], dtype=torch.float64)
        latents = latents._replace(sigma=(0.99 * SKIP_BELOW * sde.level(q, latents.y)).expand_as(latents.y))
        z = -torch.log2(codec.compressor.prior_z(latents.z)[1]).flatten(1).sum(1)
        bound = rounding(latents.z[0].numel(), float(z.max()), torch.float64)
        for y_q in (latents.mu, latents.y):  # the decoder's and any other
            assert bool(((codec.bits(latents, q, y_q) - z).abs() <= bound).all())
        codec.quantizer = "round"
        for y_q in (latents.mu, latents.y):
            assert bool((codec.bits(latents, q, y_q) > z + bound).all())


def test_dither_skips_what_the_prior_knows_and_rounding_codes_everything() -> None:
    codec = tiny(quantizer="dither", q_max=64.0)
    with torch.no_grad():
        latents = codec.compressor.analyse(images())
    narrow = torch.rand(latents.y.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    latents = latents._replace(sigma=torch.where(narrow, 0.05, 20.0))
    q = torch.tensor([1.0, 4.0, 16.0])
    y_q = codec.to_level(latents, q, generators())
    assert torch.equal(y_q[narrow], latents.mu[narrow])
    assert bool((y_q[~narrow] != latents.mu[~narrow]).all())
    with torch.no_grad():
        bits = codec.bits(latents, q, y_q)
        p = codec.compressor.likelihoods(latents, q, y_q)
        expected = -(torch.log2(p["y"]) * ~narrow).flatten(1).sum(1) - torch.log2(p["z"]).flatten(1).sum(1)
        assert torch.allclose(bits, expected)
        codec.quantizer = "round"
        y_q = codec.to_level(latents, q)
        p = codec.compressor.likelihoods(latents, q, y_q)
        expected = -torch.log2(p["y"]).flatten(1).sum(1) - torch.log2(p["z"]).flatten(1).sum(1)
        assert torch.allclose(codec.bits(latents, q, y_q), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("quantizer", ["round", "dither"])
def test_the_transmitted_latent_lies_within_half_a_step(quantizer: str, training: bool) -> None:
    codec = tiny(quantizer=quantizer).train(training)
    with torch.no_grad():
        latents = codec.compressor.analyse(images())
        y_q = codec.to_level(latents, Q, generators())
    skipped = (latents.sigma < SKIP_BELOW * sde.level(Q, y_q)) & (quantizer == "dither") & (not training)
    bound = rounding(6, float(latents.y.abs().max() + latents.mu.abs().max()))  # to the symbol and back
    assert bool((((y_q - latents.y).abs() <= sde.level(Q, y_q) / 2 + bound) | skipped).all())


def test_realism_zero_has_the_least_error_in_the_latent_when_the_prior_is_right() -> None:
    codec = tiny()
    codec.reverse.leave.weight.data.zero_()
    codec.reverse.leave.bias.data.zero_()
    with torch.no_grad():
        latents = codec.compressor.analyse(images())
        generator = torch.Generator().manual_seed(0)
        y = latents.mu + latents.sigma * torch.randn(latents.y.shape, generator=generator)
        q = torch.full((3,), 8.0) * latents.sigma.mean()
        y_q = sde.forward(y, q, generator=generator)
        errors = [float(((codec.restore(latents, y_q, q, realism=r) - y) ** 2).mean()) for r in (0.0, 0.5, 1.0)]
    assert errors[0] < errors[1] < errors[2]


def test_restore_uses_the_codecs_sampler_and_steps_unless_told_otherwise() -> None:
    codec = tiny(sampler="euler", steps=3, rho=2.0)
    with torch.no_grad():
        out = codec(images(), Q)
        latents, y_q = out.latents, out.y_q
        expected = samplers.reverse(codec.denoiser(latents), y_q, Q, steps=3, sampler="euler", rho=2.0)
        assert torch.equal(out.y_hat, expected)
        other = samplers.reverse(codec.denoiser(latents), y_q, Q, steps=1, sampler="heun", rho=2.0)
        assert torch.equal(codec.restore(latents, y_q, Q, sampler="heun", steps=1), other)


def test_no_steps_are_an_error_and_not_the_default() -> None:
    codec = tiny()
    out = codec(images(), Q)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        codec.restore(out.latents, out.y_q, Q, steps=0)


def test_one_step_is_enough_by_default_too() -> None:
    codec, other = tiny(steps=1), tiny(steps=3)
    with torch.no_grad():
        assert torch.equal(codec(images(), Q).x_hat, other(images(), Q, steps=1).x_hat)


@pytest.mark.parametrize("kind", ["nll", "mse"])
def test_the_reverse_loss_has_one_number_for_each_sample(kind: Literal["nll", "mse"]) -> None:
    codec = tiny()
    latents = codec.compressor.analyse(images())
    loss = codec.reverse_loss(latents, codec.to_level(latents, Q), Q, kind)
    assert loss.shape == (3,) and bool(torch.isfinite(loss).all())


def test_restore_needs_nothing_of_the_encoder_but_mu_and_sigma() -> None:
    codec = tiny()
    with torch.no_grad():
        out = codec(images(), Q)
        nothing = torch.full_like(out.latents.y, float("nan"))
        decoder = out.latents._replace(y=nothing, z=nothing, z_hat=nothing)
        assert torch.equal(codec.restore(decoder, out.y_q, Q), out.y_hat)


# --- levels -----------------------------------------------------------------------------------------------


def test_levels_are_drawn_log_uniformly_from_the_range() -> None:
    codec = tiny(q_min=0.3, q_max=40.0)
    torch.manual_seed(0)
    q = codec.sample_levels(20_000)
    assert q.dtype == torch.float32 and q.shape == (20_000,)
    bound = rounding(3, 1 + math.log(40 / 0.3))  # of the logarithm, and so of q in proportion
    assert float(q.min()) >= 0.3 * (1 - bound) and float(q.max()) <= 40.0 * (1 + bound)
    law = stats.loguniform(0.3, 40.0)
    assert stats.kstest(q.double().numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("q", [0.5, 1.234, 8.0])
def test_a_level_within_the_range_is_accepted(q: float) -> None:
    assert tiny().check_level(q) == q


@pytest.mark.parametrize("q", [0.49, 8.1, 0.0, -1.0, math.inf, math.nan])
def test_a_level_outside_the_range_is_refused_with_the_range(q: float) -> None:
    with pytest.raises(ConfigError, match=r"outside the range of this model, \[0.5, 8\]"):
        tiny().check_level(q)


@pytest.mark.parametrize(
    ("q_min", "q_max"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (1.0, math.nan)]
)
def test_an_impossible_range_of_levels_is_refused(q_min: float, q_max: float) -> None:
    with pytest.raises(ConfigError, match="0 < q_min < q_max"):
        tiny(q_min=q_min, q_max=q_max)


def test_an_endless_range_of_levels_is_refused() -> None:
    with pytest.raises(ConfigError, match="q_min and q_max"):
        tiny(q_max=math.inf)


def test_networks_of_different_latents_are_refused() -> None:
    compressor = ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 0), latent_channels=8, hyper_channels=4)
    with pytest.raises(ConfigError, match="made for 12 latent channels, the compressor has 8"):
        Codec(compressor, ReverseUNet(12, widths=(8,), blocks=(1,)))


@pytest.mark.parametrize(
    "options",
    [{"quantizer": "floor"}, {"quantizer": "noise"}, {"sampler": "ddpm"}, {"steps": 0}, {"rho": 0.0}],
    ids=str,
)
def test_unknown_settings_are_refused_when_the_codec_is_made(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        tiny(**options)


# --- images of any size -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(1, 1), (63, 65), (64, 128), (100, 7), (130, 64)])
def test_padding_repeats_the_border_to_the_next_multiple(height: int, width: int) -> None:
    codec = tiny()
    x = images(2, height, width)
    padded = codec.pad(x)
    assert padded.shape[-2] % 64 == padded.shape[-1] % 64 == 0
    assert 0 <= padded.shape[-2] - height < 64 and 0 <= padded.shape[-1] - width < 64
    assert torch.equal(padded[..., :height, :width], x)
    below, right = padded[..., height:, :width], padded[..., :height, width:]
    assert torch.equal(below, x[..., -1:, :].expand_as(below))
    assert torch.equal(right, x[..., -1:].expand_as(right))
    with torch.no_grad():
        out = codec(padded, Q[:2])
    assert out.x_hat.shape == padded.shape and bool(torch.isfinite(out.x_hat).all())


# --- what learns ------------------------------------------------------------------------------------------


def test_prefixes_part_the_parameters_without_overlap_or_remainder() -> None:
    codec = tiny()
    owned = [name for name, module in codec.compressor.named_children() if list(module.parameters())]
    parts = ["reverse", *(f"compressor.{name}" for name in owned)]
    groups = [{name for name, learns in trainable_parameters(codec, [part]).items() if learns} for part in parts]
    everything = {name for name, _ in codec.named_parameters()}
    assert all(groups)
    assert set.union(*groups) == everything
    assert sum(map(len, groups)) == len(everything)
    assert trainable_parameters(codec, [""]) == dict.fromkeys(everything, True)
    assert trainable_parameters(codec, []) == dict.fromkeys(everything, False)
    assert trainable_parameters(codec, parts) == dict.fromkeys(everything, True)


def test_a_prefix_names_whole_modules_and_single_parameters() -> None:
    codec = tiny()
    learns = trainable_parameters(codec, ["compressor.g_s", "reverse.leave.bias"])
    assert {n for n, v in learns.items() if v} == {
        name for name in learns if name.startswith("compressor.g_s.") or name == "reverse.leave.bias"
    }
    up = trainable_parameters(codec, ["reverse.up"])  # and not reverse.up_blocks
    assert {n for n, v in up.items() if v} == {n for n in up if n.startswith("reverse.up.")}


@pytest.mark.parametrize("prefix", ["compressor.g", "revers", "compressor.g_s.", "reverse.leave.bias.x"])
def test_a_prefix_that_names_nothing_is_refused_with_the_names_there_are(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"no module .* in the codec; there are compressor\.g_a, compressor\.g_s"):
        trainable_parameters(tiny(), ["reverse", prefix])


# --- state and size ---------------------------------------------------------------------------------------


def test_a_state_goes_into_a_fresh_codec_strictly_and_reproduces_it() -> None:
    codec, fresh = tiny(seed=0), tiny(seed=1)
    with torch.no_grad():
        expected = codec(images(), Q)
        assert not torch.allclose(fresh(images(), Q).x_hat, expected.x_hat)
        fresh.load_state_dict(codec.state_dict(), strict=True)
        out = fresh(images(), Q)
    assert torch.equal(out.x_hat, expected.x_hat) and torch.equal(out.bits, expected.bits)


def test_the_multiply_accumulates_of_a_convolution_are_counted_exactly() -> None:
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    assert macs_per_pixel(lambda: convolution(images(1, 16, 16)), 16 * 16) == 3 * 5 * 9


def test_the_default_codec_is_small() -> None:
    codec = Codec(ResidualCompressor(), ReverseUNet()).eval()
    counts = parameter_counts(codec)
    assert counts["all"] == sum(p.numel() for p in codec.parameters()) <= 12_000_000
    assert all(0 < n < counts["all"] for name, n in counts.items() if name != "all")
    q = torch.ones(1)
    with torch.no_grad():
        latents = codec.compressor.analyse(images(1, 256, 256))

    def decode() -> Tensor:
        mu, sigma = codec.compressor.hyper_synthesis(latents.z_hat)
        known = latents._replace(mu=mu, sigma=sigma)
        return codec.compressor.synthesise(codec.restore(known, latents.y, q, sampler="heun", steps=2))

    assert 1_000 < macs_per_pixel(decode, 256 * 256) <= 60_000
