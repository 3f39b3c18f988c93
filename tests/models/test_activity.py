"""h_a sees how strong each group of channels is, and the prior begins with it (``hyper_activity``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bounds import rounding
from small import picture
from torch import Tensor

from gic.bitstream.coder import EntropyCoder
from gic.bitstream.tables import LEVELS_PER_OCTAVE
from gic.errors import ConfigError
from gic.models.codec import Codec
from gic.models.compressor import ResidualCompressor
from gic.models.entropy_model import FactorizedPrior
from gic.models.lot import frequency_groups
from gic.models.reverse import ReverseUNet
from gic.pictures.tensors import as_float
from gic.runtime.pytorch import entropy_model

M, N = 64, 96


def compressor(**options: object) -> ResidualCompressor:
    torch.manual_seed(0)
    sizes = {"latent_channels": M, "hyper_channels": N, "lapped": True, "hyper_activity": True, **options}
    return ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 0), **sizes).eval()  # type: ignore[arg-type]


@torch.no_grad()
def bits(model: ResidualCompressor, x: Tensor) -> float:
    codec = Codec(model, ReverseUNet(M, widths=(8,), blocks=(1,)), q_min=0.5, q_max=16.0).eval()
    return float(codec(x, torch.tensor([1.0]), realism=0.0).bits)


@torch.no_grad()
@pytest.mark.parametrize("detail", [0, 64])
def test_sigma_follows_the_picture_before_anything_is_learned(detail: int) -> None:
    model = compressor(detail_channels=detail)
    x = as_float(picture(256, 256, "noise"))[None] - 0.5
    ratios = []
    for strength in (0.05, 0.4):
        latents = model.analyse(0.5 + strength * x)
        channels = [c for c in range(20, M + detail) if c not in model.lapped.means]  # type: ignore[union-attr]
        rms = latents.y[0, channels].square().mean((1, 2)).sqrt()
        ratios.append(
            float((latents.sigma[0, channels].mean((1, 2)).clamp_min(0.06) / rms.clamp_min(0.06)).log().mean())
        )
    assert all(abs(ratio) < 1.0 for ratio in ratios)


@torch.no_grad()
def test_untrained_pictures_cost_fewer_bits_with_it() -> None:
    for kind in ("noise", "smooth", "edges"):
        x = as_float(picture(256, 256, kind))[None]  # type: ignore[arg-type]
        assert bits(compressor(), x) < bits(compressor(hyper_activity=False), x)


@torch.no_grad()
def test_the_hyper_latent_begins_as_the_mean_activity_of_64_pixels() -> None:
    model = compressor()
    y = model.analysis(as_float(picture(128, 64, "edges"))[None])
    assert model.lapped is not None
    seen = model._activity(model.lapped.spread(y) / (8 * model.lapped.deviation)[:, None, None])
    groups = frequency_groups(len(model.lapped.kept))
    means = {groups[channel] for channel in model.lapped.means}
    passing = [group for group in range(seen.shape[1]) if group not in means]
    expected = 1.25 * torch.nn.functional.avg_pool2d(seen[:, passing], 4)
    z = model.hyper_analysis(y)[:, : len(passing)]
    assert float((z - expected).abs().max()) < rounding(64, 30.0)


@torch.no_grad()
@pytest.mark.parametrize("channels", [32, 33, 40])
def test_as_many_channels_begin_as_activity_as_leave_32_others(channels: int) -> None:
    model = compressor(hyper_channels=channels)
    x = 0.5 + 0.4 * (as_float(picture(128, 64, "edges"))[None] - 0.5)
    assert model.lapped is not None
    y = model.analysis(x)
    seen = model._activity(model.lapped.spread(y) / (8 * model.lapped.deviation)[:, None, None])
    groups = frequency_groups(len(model.lapped.kept))
    means = {groups[channel] for channel in model.lapped.means}
    activity = [group for group in range(seen.shape[1]) if group not in means]
    assert len(activity) > channels - 32
    expected = 1.25 * torch.nn.functional.avg_pool2d(seen[:, activity], 4)
    error = (model.hyper_analysis(y)[:, : len(activity)] - expected).abs().amax((0, 2, 3))
    assert (error < rounding(64, 30.0)).tolist() == [number < channels - 32 for number in range(len(activity))]


def test_the_exact_prior_is_that_of_the_network() -> None:
    model = compressor(detail_channels=64)
    z = torch.randint(-4, 5, (1, N, 2, 3), generator=torch.Generator().manual_seed(0))
    exact = EntropyCoder(entropy_model(model)).prior(z.numpy())
    with torch.no_grad():
        mu, sigma = model.hyper_synthesis(z.float())
    assert float(np.abs(exact.mu - mu.numpy()).max()) < 2e-3
    assert float(np.abs(exact.log2_sigma / LEVELS_PER_OCTAVE - sigma.log2().numpy()).max()) < 2.5 / LEVELS_PER_OCTAVE


@torch.no_grad()
def test_the_prior_of_z_begins_narrow_and_centred() -> None:
    z = torch.zeros(1, 8, 1, 1)
    narrow, wide = FactorizedPrior(8, slope=3.0).eval(), FactorizedPrior(8).eval()
    assert float(narrow(z)[1].min()) > float(wide(z)[1].max())
    assert torch.allclose(narrow(z + 1)[1], narrow(z - 1)[1], rtol=1e-4)


def test_everything_learns() -> None:
    codec = Codec(compressor(), ReverseUNet(M, widths=(8,), blocks=(1,))).train()
    x = as_float(picture(128, 64, "edges"))[None]
    codec(x, torch.tensor([1.0])).bits.sum().backward()
    for name, parameter in codec.compressor.h_a.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_it_takes_the_lapped_transform_and_bears_few_channels() -> None:
    with pytest.raises(ConfigError, match="hyper_activity"):
        compressor(lapped=False)
    few = compressor(hyper_channels=8)
    assert bits(few, as_float(picture(64, 64, "smooth"))[None]) > 0
