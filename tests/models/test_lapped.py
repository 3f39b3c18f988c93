"""The lapped transform: an orthonormal basis with the coding gain of the literature, and the shortcut made of it."""

from __future__ import annotations

import copy
import hashlib
import math

import pytest
import torch
from bounds import rounding, terms_of
from small import lapped_model, picture, small_model
from torch import Tensor

from gic.codec.image_codec import ImageCodec
from gic.errors import ConfigError
from gic.models.compressor import ResidualCompressor
from gic.models.lapped import LappedTransform
from gic.models.lot import BLOCK, dct, order, prefilter
from gic.models.ranges import LAPPED_SIGMA_MAX
from gic.pictures.tensors import as_float

TERMS = 3 * BLOCK**2 + 2 * BLOCK + 16
"""Products behind one coefficient: the block's, P's along both sides, and those of the means transformed again."""


def energy(x: Tensor) -> float:
    """Sum of squares, in float64: what it errs by is what ``x`` errs by."""
    return float(x.double().square().sum())


def lapped_basis(n: int) -> Tensor:
    """Basis functions of one block inside a long signal, (n, 2n)."""
    h = n // 2
    block = torch.zeros(n, 2 * n, dtype=torch.float64)
    block[:, h : h + n] = torch.from_numpy(dct(n))
    mixing = torch.from_numpy(prefilter(n))
    return block @ torch.block_diag(mixing, mixing)


def coding_gain(basis: Tensor, correlation: float = 0.95) -> float:
    """Gain over no transform for a first-order Markov signal, in dB."""
    place = torch.arange(basis.shape[1], dtype=torch.float64)
    covariance = correlation ** (place[:, None] - place).abs()
    variances = torch.diag(basis @ covariance @ basis.T)
    return float(-10 / math.log(10) * variances.log().mean())


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_basis_functions_are_orthonormal_within_and_across_blocks(n) -> None:
    basis = lapped_basis(n)
    assert torch.allclose(basis @ basis.T, torch.eye(n, dtype=torch.float64), atol=1e-12)
    assert float((basis[:, n:] @ basis[:, :n].T).abs().max()) < 1e-12


def test_the_coding_gain_is_the_published_one() -> None:
    """8 points at a correlation of 0.95: DCT 8.83 dB, LOT 9.22 dB (Tran, Liang and Tu 2003, table I)."""
    alone = torch.zeros(8, 16, dtype=torch.float64)
    alone[:, :8] = torch.from_numpy(dct(8))
    assert coding_gain(alone) == pytest.approx(8.83, abs=0.01)
    assert coding_gain(lapped_basis(8)) == pytest.approx(9.22, abs=0.01)


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (192, 64), (128, 320)])
def test_with_all_coefficients_the_way_back_is_exact_and_energy_is_kept(size) -> None:
    transform = LappedTransform(3 * BLOCK**2)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    y = transform(x)
    assert y.shape == (2, 768, size[0] // 16, size[1] // 16)
    assert float((transform.inverse(y) - x).abs().max()) < rounding(2 * TERMS, float(x.abs().max()))
    assert energy(transform.spread(y)) == pytest.approx(energy(x), rel=2 * rounding(TERMS, 1))


@pytest.mark.parametrize("channels", [1, 5, 256])
def test_the_last_steps_are_undone_by_spread_and_keep_energy_but_for_the_scales(channels) -> None:
    transform = LappedTransform(channels)
    y = torch.randn(2, channels, 8, 12, generator=torch.Generator().manual_seed(0))
    gathered = transform.gather(y)
    bound = rounding(2 * 16, float(y.abs().max()))  # four products along each side, twice, there and back
    assert float((transform.spread(gathered) - y).abs().max()) < bound
    gathered[:, transform.means] /= transform.coarse_scale.repeat(1, 2, 3)
    others = [channel for channel in range(channels) if channel not in transform.means]
    gathered[:, others] /= transform.scale[others, None, None]
    assert energy(gathered) == pytest.approx(energy(y), rel=2 * rounding(16, 1))
    assert torch.allclose(gathered[:, others], y[:, others], rtol=rounding(2, 1), atol=0)
    assert len(transform.means) == {1: 1, 5: 2, 256: 3}[channels]


def test_means_transformed_again_take_fewer_bits() -> None:
    """At high rate a coefficient takes log2 of its deviation and a constant."""
    transform = LappedTransform(256)
    x = torch.stack([as_float(picture(384, 384, "smooth", salt)) for salt in range(3)])
    y = transform(x - 0.5)
    again = y[:, 0] / transform.coarse_scale[0].repeat(6, 6)
    apart = again.reshape(3, 6, 4, 6, 4).permute(2, 4, 0, 1, 3).flatten(2).std(-1)
    assert float((transform.spread(y)[:, 0].std().log2() - apart.log2()).mean()) > 1


def test_fewer_coefficients_are_the_first_of_more_and_leave_their_energy_out() -> None:
    x = as_float(picture(128, 192, "noise"))[None]
    some, more = LappedTransform(100), LappedTransform(200)
    y = more(x)
    assert float((some(x) - y[:, :100]).abs().max()) < rounding(TERMS, float(y.abs().max()))
    left_out = energy(x) - energy(some.spread(y[:, :100]))
    assert energy(some.inverse(y[:, :100]) - x) == pytest.approx(left_out, abs=2 * rounding(2 * TERMS, 1) * energy(x))


def test_a_flat_image_has_nothing_but_its_mean() -> None:
    transform = LappedTransform(192)
    y = transform(torch.full((1, 3, 64, 64), 0.3))
    length = 0.3 * BLOCK * math.sqrt(3)  # of a block, which no partial sum exceeds; 4 of these that of 4 x 4 blocks
    assert float((y[:, 1:] / transform.scale[1:, None, None]).abs().max()) < rounding(TERMS, length)
    coarse = (y[0, 0] / transform.coarse_scale[0]).flatten()
    assert float(coarse[1:].abs().max()) < rounding(TERMS, 4 * length)
    assert float(coarse[0]) == pytest.approx(4 * length, abs=rounding(TERMS, 4 * length))


def test_the_expected_widths_fall_with_frequency() -> None:
    transform = LappedTransform(256)
    for widths in (transform.deviation, transform.coarse_deviation[0].flatten(), transform.scale):
        assert (widths > 0).all() and widths[0] == widths.max()
    assert transform.coarse_deviation[0].min() < transform.deviation[0] < transform.coarse_deviation[0].max()


@pytest.mark.parametrize("channels", [0, 769])
def test_numbers_of_coefficients_that_there_are_not_are_refused(channels) -> None:
    with pytest.raises(ConfigError, match="768"):
        LappedTransform(channels)


@torch.no_grad()
def test_an_untrained_codec_is_the_linear_one() -> None:
    codec = lapped_model(trained=False)
    x = as_float(picture(128, 64, "smooth"))[None]
    y = codec.compressor.analysis(x)
    transform = LappedTransform(48)
    expected = transform(x - 0.5)
    assert float((y - 8 * expected).abs().max()) < rounding(2, 8 * float(expected.abs().max()))
    length = 0.5 * BLOCK * math.sqrt(3)
    difference = codec.compressor.synthesise(y) - transform.inverse(expected) - 0.5
    assert float(difference.abs().max()) < rounding(TERMS, length)


def test_the_order_of_the_channels_is_that_of_the_weights_that_ship() -> None:
    """By integers, but for coefficients of one rank, whose order is what rounding made of it."""
    rank = [(9 if n >= 256 else 1) * ((2 * (n // 16 % 16) + 1) ** 2 + (2 * (n % 16) + 1) ** 2) for n in order()]
    assert rank == sorted(rank) and len(set(order())) == 768
    assert order()[208:215] == [46, 226, 307, 563, 170, 62, 155]
    digest = hashlib.sha256(str(order()).encode()).hexdigest()
    assert digest == "1df3c8f8a89abf0f8ac71540dd444c79eb15d54b35b7640898d83e0284e1ff21"


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_the_prior_knows_how_wide_each_coefficient_is_in_its_place(size) -> None:
    torch.manual_seed(0)
    compressor = ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 1), latent_channels=48, hyper_channels=32, lapped=True)
    transform = LappedTransform(48)
    expected = (8 * transform.scale * transform.deviation)[:, None, None].repeat(1, 4 * size[0], 4 * size[1])
    coarse = 8 * transform.coarse_scale * transform.coarse_deviation
    expected[transform.means] = coarse.clamp_max(LAPPED_SIGMA_MAX).repeat(1, *size)
    mu, sigma = compressor.hyper_synthesis(torch.zeros(1, 32, *size))
    # What log sigma errs by, sigma errs by in proportion.
    bound = rounding(terms_of(compressor.h_s), float(expected.log().abs().max()))
    assert torch.allclose(sigma[0], expected, rtol=bound, atol=0) and not mu.any()
    # Whatever z is, a place adds what it adds.
    z = torch.randint(-5, 6, (1, 32, *size), generator=torch.Generator().manual_seed(0)).float()
    with_places = compressor.h_s(z)[0, 48:]
    last = compressor.h_s[4].weight
    places = [channel for channel in range(32) if last[48, channel, 1, 1] and not last[49, channel].any()]
    assert len(places) == 16
    last[:, places] = 0
    added = with_places - compressor.h_s(z)[0, 48:]
    wide = (transform.scale * transform.deviation)[transform.means, None, None] * 8
    bound = rounding(terms_of(compressor.h_s), float(with_places.abs().max()))
    assert float((added[transform.means] - (coarse / wide).log().repeat(1, *size)).abs().max()) < bound
    assert float(added[[c for c in range(48) if c not in transform.means]].abs().max()) < bound


def test_every_network_learns_from_the_second_step_on() -> None:
    """The last layers are zero at first; after one step nothing is cut off from the loss."""
    codec = lapped_model(trained=False).train()
    codec.compressor.h_a[-1].weight.data *= 20  # so that z is not rounded to nothing
    optimizer = torch.optim.Adam(codec.compressor.parameters(), lr=1e-3)
    x = as_float(picture(128, 64, "noise"))[None]
    for _ in range(2):
        optimizer.zero_grad()
        out = codec(x, torch.tensor([1.0]))
        (out.bits.mean() / x[0, 0].numel() + 100 * ((out.x_hat - x) ** 2).mean()).backward()
        optimizer.step()
    for network in (codec.compressor.g_a, codec.compressor.g_s.layers, codec.compressor.h_a, codec.compressor.h_s):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


def test_nothing_of_the_transform_is_saved_or_learned() -> None:
    codec = lapped_model(trained=False)
    assert not [name for name in codec.state_dict() if "lapped" in name]
    assert not [name for name, _ in codec.named_parameters() if "lapped" in name]
    assert torch.equal(copy.deepcopy(codec).compressor.lapped.basis, codec.compressor.lapped.basis)


@pytest.mark.parametrize("tile", [0, 64])
@pytest.mark.parametrize("size", [(70, 50), (200, 130)])
def test_files_hold_what_the_encoder_saw(size, tile) -> None:
    codec = ImageCodec(lapped_model(trained=True), "cpu")
    pixels = picture(*size, "smooth")
    fine, coarse = (codec.compress(pixels, q=q, tile=tile) for q in (0.5, 8.0))
    assert len(coarse) < len(fine)
    errors = [(codec.decompress_tensor(data).float() - pixels).square().mean() for data in (fine, coarse)]
    assert errors[0] < errors[1]
    assert codec.decompress(fine).size == size


def test_models_without_the_shortcut_are_what_they_were() -> None:
    codec = small_model()
    x = as_float(picture(64, 64, "smooth"))[None]
    with torch.no_grad():
        assert torch.equal(codec.compressor.analysis(x), codec.compressor.g_a(x))
