"""Detail channels: plain lapped coefficients behind those of the networks, one sigma for each group of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bounds import rounding
from independent import decode, groups
from small import all_symbols, documented, formula, picture
from torch import Tensor

from gic.bitstream.coder import EntropyCoder, level_code
from gic.bitstream.tables import LEVELS_PER_OCTAVE
from gic.codec.image_codec import ImageCodec
from gic.errors import ConfigError
from gic.method.posterior import truncated_normal_mean
from gic.models.codec import Codec
from gic.models.compressor import ResidualCompressor
from gic.models.lapped import LappedTransform
from gic.models.lot import frequency_groups
from gic.models.reverse import ReverseUNet
from gic.pictures.tensors import as_float
from gic.runtime.pytorch import entropy_model
from gic.training.objective import Objective, psnr

M, T = 16, 48
TERMS = 3 * 256 + 64


def compressor(detail: int = T, trained: bool = True, **options: int) -> ResidualCompressor:
    """A small one; ``trained`` gives the layers that begin at zero some weights."""
    torch.manual_seed(0)
    sizes = {"latent_channels": M, "hyper_channels": 4, "realistic_stages": 1, **options}
    model = ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 1), lapped=True, detail_channels=detail, **sizes)  # type: ignore[arg-type]
    if trained:
        with torch.no_grad():
            for layer in (model.g_a.layers[-1], model.g_s.layers[-1][0]):  # type: ignore[index]
                layer.weight.copy_(0.1 * formula(tuple(layer.weight.shape), 3))
    return model.eval()


def codec(detail: int = T, trained: bool = True, q_min: float = 0.25, **options: int) -> Codec:
    model = compressor(detail, trained, **options)
    return Codec(model, ReverseUNet(model.latent_channels, widths=(8,), blocks=(1,)), q_min=q_min, q_max=16.0).eval()


def image(kind: str = "smooth") -> Tensor:
    return as_float(picture(128, 64, kind))[None]  # type: ignore[arg-type]


@torch.no_grad()
def test_they_are_the_coefficients_of_the_transform_as_they_are() -> None:
    x = image()
    y = compressor().analysis(x)
    assert y.shape[1] == M + T
    assert torch.equal(y[:, M:], (8 * LappedTransform(M + T)(x - 0.5))[:, M:])
    assert not torch.equal(y[:, :M], (8 * LappedTransform(M + T)(x - 0.5))[:, :M])


@torch.no_grad()
def test_the_transform_keeps_its_first_channels_when_more_are_asked_for() -> None:
    x = image()
    assert LappedTransform(M).kept == LappedTransform(M + T).kept[:M]
    more, less = compressor(), compressor(detail=0)
    less.g_a.load_state_dict(more.g_a.state_dict())
    y = less.analysis(x)
    assert float((more.analysis(x)[:, :M] - y).abs().max()) < rounding(TERMS, float(y.square().sum().sqrt()))


@torch.no_grad()
def test_they_pass_by_the_synthesis() -> None:
    model = compressor()
    y = model.analysis(image())
    without = torch.cat([y[:, :M], torch.zeros_like(y[:, M:])], 1)
    added = model.synthesise(y, 1.0) - model.synthesise(without, 1.0)
    assert model.lapped is not None
    expected = model.lapped.inverse((y - without) / 8)
    assert float((added - expected).abs().max()) < rounding(TERMS, float(y.square().sum().sqrt()))


@torch.no_grad()
def test_with_all_coefficients_a_fine_step_shows_every_picture_as_it_is() -> None:
    for kind in ("noise", "edges"):
        x = image(kind)
        fine = codec(detail=768 - M, trained=False, q_min=1e-3)
        assert float(psnr(fine(x, torch.tensor([1e-3]), realism=0.0).x_hat, x)) > 60
        less = codec(detail=0, trained=False, q_min=1e-3)
        assert float(psnr(less(x, torch.tensor([1e-3]), realism=0.0).x_hat, x)) < 35


@torch.no_grad()
def test_sigma_of_a_group_moves_as_one() -> None:
    model = compressor()
    mu, sigma = model.hyper_synthesis(torch.randint(-9, 10, (2, 4, 2, 3)).float())
    assert mu.shape == sigma.shape and not mu[:, M:].any()
    assert model.detail is not None
    shared = sigma[:, M:].log() - model.detail[:, None, None]
    bound = rounding(8, float(sigma.log().abs().max()) + float(model.detail.abs().max()))
    for group in set(model.groups):
        own = shared[:, [g == group for g in model.groups]]
        inside = (sigma[:, M:][:, [g == group for g in model.groups]] > 0.0501).all(1, keepdim=True)
        assert float(((own - own[:, :1]).abs() * inside).max()) < bound
    assert len({tuple(shared[0, i].flatten().tolist()) for i in range(T)}) > 1


@torch.no_grad()
def test_untrained_sigma_is_what_is_expected_of_each_coefficient() -> None:
    model = compressor()
    assert model.lapped is not None
    _, sigma = model.hyper_synthesis(torch.zeros(1, 4, 1, 1))
    expected = (8 * model.lapped.scale * model.lapped.deviation)[M:, None, None].expand(T, 4, 4)
    assert torch.allclose(sigma[0, M:], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("first", "count"), [(16, 48), (256, 256), (320, 192), (100, 668)])
def test_groups_are_those_of_the_documentation(first: int, count: int) -> None:
    assert frequency_groups(first + count, first) == groups(first, count)


def test_the_exact_prior_is_that_of_the_network() -> None:
    model = compressor()
    z = torch.randint(-9, 10, (1, 4, 2, 3))
    exact = EntropyCoder(entropy_model(model)).prior(z.numpy())
    with torch.no_grad():
        mu, sigma = model.hyper_synthesis(z.float())
    assert not exact.mu[:, M:].any() and float(np.abs(exact.mu - mu.numpy()).max()) < 2e-3
    assert float(np.abs(exact.log2_sigma / LEVELS_PER_OCTAVE - sigma.log2().numpy()).max()) < 2.5 / LEVELS_PER_OCTAVE


@pytest.mark.parametrize(
    "settings",
    [
        {"q": 0.3},
        {"q": 1.0, "quantizer": "dither", "seed": 5},
        {"q": 0.5, "tile": 64},
        {"q": 0.5, "progressive": True},
        {"q": 0.5, "tile": 64, "progressive": True},
    ],
)
def test_files_hold_them_and_a_decoder_written_from_the_documentation_finds_them(settings) -> None:
    small = ImageCodec(codec(), "cpu")
    data = small.compress(picture(100, 70, "edges"), **settings)
    assert any(y[:, M:].any() for _, y in all_symbols(small, small.open(data)))
    for cut in (data, data[: len(data) * 4 // 5]) if settings.get("progressive") else (data,):
        ours = documented(small, small.open(cut))
        assert decode(cut, small.model.state_dict(), highest=10240, lapped=True) == ours


def test_the_finer_the_level_the_nearer_the_picture_and_nearer_with_them() -> None:
    pixels = picture(128, 64, "edges")

    def error(model: Codec, q: float) -> float:
        small = ImageCodec(model, "cpu")
        decoded = small.decompress_tensor(small.compress(pixels, q=q), realism=0.0)
        return float((decoded.float() - pixels).square().mean())

    fine, middle, coarse = (error(codec(trained=False), q) for q in (0.25, 1.0, 8.0))
    assert fine < middle < coarse
    assert fine < 0.5 * error(codec(detail=0, trained=False), 0.25)


def test_coarse_levels_skip_what_is_expected_to_be_nothing() -> None:
    model = codec(latent_channels=256, hyper_channels=32)
    more = codec(detail=256, latent_channels=256, hyper_channels=32)
    small, large = ImageCodec(model, "cpu"), ImageCodec(more, "cpu")
    pixels = picture(128, 64, "smooth")
    prior = large.encoding(pixels).tiles[0].prior
    shares = [large.coder.coded_mask(prior, level_code(q), False)[:, 256:].mean() for q in (1.0, 4.0, 16.0)]
    assert shares[0] > 0.7 and shares[1] < 0.5 and shares[2] == 0
    z = [len(codec.encoding(pixels).tiles[0].z_data) for codec in (small, large)]
    sizes = [len(codec.compress(pixels, q=16.0)) - size for codec, size in zip((small, large), z, strict=True)]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sizes[0]  # z differs, and the prior of the others with it


def test_where_the_symbol_is_zero_nothing_is_denoised() -> None:
    model = codec()
    latents = model.compressor.analyse(image("edges"))
    q = torch.tensor([0.5])
    y_q = model.to_level(latents, q)
    d = model.denoiser(latents)(y_q, q.reshape(1, 1, 1, 1))
    detail = [t[:, M:] for t in (y_q, latents.mu, latents.sigma)]
    assert torch.equal(d[:, M:], truncated_normal_mean(detail[0], q, detail[1], detail[2]))
    zero = detail[0] == 0
    assert zero.any() and not zero.all() and not d[:, M:][zero].any()


def test_their_prior_learns_and_the_reverse_network_knows_nothing_of_them() -> None:
    model = codec().train()
    x = image("edges")
    Objective(reverse_weight=1.0)(model, x, torch.tensor([0.5]))["loss"].backward()
    learned = model.compressor
    assert learned.detail is not None and learned.detail.grad is not None and learned.detail.grad.all()
    last = learned.h_s[4].weight.grad
    assert isinstance(last, Tensor) and bool(last[2 * M :].flatten(1).any(1).all())
    latents = learned.analyse(x)
    y_q = model.to_level(latents, torch.tensor([0.5]))
    losses = []
    for factor in (1.0, 2.0):
        scaled = [t * torch.cat([torch.ones(M), torch.full((T,), factor)])[:, None, None] for t in (latents.y, y_q)]
        torch.manual_seed(0)
        losses.append(model.reverse_loss(latents._replace(y=scaled[0]), scaled[1], torch.tensor([0.5])))
    assert torch.equal(losses[0], losses[1])


def test_the_analysis_tells_the_hyper_latent_how_strong_they_are() -> None:
    model = compressor()
    y = model.analysis(image("noise"))
    weak, strong = (torch.cat([y[:, :M], factor * y[:, M:]], 1) for factor in (0.1, 1.0))
    assert not torch.allclose(model.hyper_analysis(weak), model.hyper_analysis(strong))
    outside = model._activity(y[:, M:])
    flat = model._activity(torch.zeros(1, T, 4, 4))
    assert torch.allclose(flat, torch.full_like(flat, math.log(0.101)), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model._activity(y[:, M:]), outside)


@pytest.mark.parametrize("options", [{"lapped": False}, {"latent_channels": 4}, {"detail_channels": 760}])
def test_what_cannot_be_is_refused(options) -> None:
    settings = {"latent_channels": M, "hyper_channels": 4, "lapped": True, "detail_channels": T, **options}
    with pytest.raises(ConfigError):
        ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 0), **settings)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scales_that_are_no_numbers_are_refused_by_the_coder(value: float) -> None:
    model = compressor()
    assert model.detail is not None
    with torch.no_grad():
        model.detail[3] = value
    with pytest.raises(ConfigError, match="detail channels"):
        EntropyCoder(entropy_model(model))
