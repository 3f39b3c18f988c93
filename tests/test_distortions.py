"""Distortions: what they keep, that strength means strength, and that nothing random hides in them."""

from __future__ import annotations

import math

import pytest
import torch
from bounds import rounding
from small import picture, small_model

from gic.distortions import HELD_OUT, TRAINED, blur, distort, gaussian, ringing, through_codec
from gic.errors import ConfigError

KINDS = {**TRAINED, **HELD_OUT, "codec": through_codec(small_model())}


@pytest.fixture(scope="module")
def image():
    """Smooth shapes, edges and some texture, 72 x 90, no side a multiple of a block."""
    smooth, edges = (picture(90, 72, kind).float() / 255 for kind in ("smooth", "edges"))
    return (0.6 * smooth + 0.4 * edges).clamp(0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_distortion_gives_a_picture_that_follows_from_its_seed(kind, image):
    before = image.clone()
    once, again = (distort(KINDS, kind, image, 0.6, seed=5) for _ in range(2))
    assert once.shape == image.shape
    assert once.min() >= 0
    assert once.max() <= 1
    assert torch.equal(once, again)
    assert not torch.equal(once, image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_nought_changes_nothing(kind, image):
    assert torch.equal(distort(KINDS, kind, image, 0.0, seed=5), image)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", [*TRAINED, *HELD_OUT])
def test_more_strength_leads_further_from_the_original(kind, seed, image):
    errors = [float((distort(KINDS, kind, image, s, seed) - image).square().mean()) for s in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert errors == sorted(errors)
    assert errors[-1] > 2 * errors[0]


def test_what_is_held_out_is_not_trained_on():
    assert not set(TRAINED) & set(HELD_OUT)
    assert not set(TRAINED.values()) & set(HELD_OUT.values())


def test_the_noise_of_two_strengths_is_the_same_but_for_its_size(image):
    grey = torch.full_like(image, 0.5)
    weak, strong = (distort(TRAINED, "noise", grey, s, seed=1) - grey for s in (0.1, 0.2))
    assert (strong - weak * 2**1.5).abs().max() < rounding(2, 1 + 2**1.5)  # grey is added and taken away


@pytest.mark.parametrize("seed", range(6))
def test_blurs_keep_the_mean_of_the_middle_and_lose_contrast(seed):
    spot = torch.zeros(3, 65, 65)
    spot[:, 32, 32] = 1
    found = blur(spot, 0.7, torch.Generator().manual_seed(seed))
    assert (found.sum((1, 2)) - 1).abs().max() < rounding(65 * 65, 1)
    assert found.max() < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_cutting_the_spectrum_twice_is_cutting_it_once(seed, image):
    once = ringing(image, 0.5, torch.Generator().manual_seed(seed))
    twice = ringing(once, 0.5, torch.Generator().manual_seed(seed))
    # Four Fourier transforms: each of their log2(pixels) steps errs by a rounding of values of the picture's size.
    bound = rounding(4 * math.log2(4 * image[0].numel()), 1)
    assert (once - twice).abs().max() < bound


def test_a_gaussian_has_the_width_asked_for():
    weights = gaussian(1.7)[0].double()
    at = torch.arange(len(weights)) - len(weights) // 2
    assert float((weights * at**2).sum().sqrt()) == pytest.approx(1.7, rel=0.02)
    assert torch.equal(gaussian(0.0), torch.ones(1, 1))


def test_the_codec_decodes_at_the_level_that_the_strength_names(image):
    codec = small_model()
    kinds = {"codec": through_codec(codec)}
    fine, coarse = (distort(kinds, "codec", image, s, seed=2) for s in (0.01, 1.0))
    with torch.no_grad():
        clean = codec.compressor.synthesise(codec.compressor.analyse(codec.pad(image[None])).y)[0, :, :72, :90]
    assert (fine - clean.clamp(0, 1)).abs().mean() < (coarse - clean.clamp(0, 1)).abs().mean()


def test_wrong_settings_are_named(image):
    with pytest.raises(ConfigError, match="blurr"):
        distort(TRAINED, "blurr", image, 0.5, seed=0)
    with pytest.raises(ConfigError, match=r"1\.5"):
        distort(TRAINED, "blur", image, 1.5, seed=0)
