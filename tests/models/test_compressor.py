"""The compressor's probabilities are those of its priors at every level, and one analysis serves all levels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from bounds import rounding, terms_of
from scipy import stats
from torch import Tensor, nn

from gic.errors import ConfigError
from gic.method import sde
from gic.models.compressor import Compressor, Latents, ResidualCompressor
from gic.models.entropy_model import FactorizedPrior, LevelGaussian, LevelLaplace
from gic.models.ranges import SIGMA_MAX, SIGMA_MIN
from gic.models.transforms import Block

# CompressAI keeps its bounds in float32.
SMALLEST_RATIO = {LevelGaussian: 0.11, LevelLaplace: 0.055}  # of sigma to q, that the conditional distinguishes
LAWS = {LevelGaussian: stats.norm(), LevelLaplace: stats.laplace(scale=0.5**0.5)}  # of a standard deviation of 1
LEAST_LIKELIHOOD = 1e-9


def tiny(seed: int = 0, **options: object) -> ResidualCompressor:
    torch.manual_seed(seed)
    sizes = {"widths": (8, 8, 8, 8), "blocks": (0, 0, 1, 1), "latent_channels": 8, "hyper_channels": 4}
    return ResidualCompressor(**{**sizes, **options}).eval()  # type: ignore[arg-type]


def images(count: int = 2, height: int = 64, width: int = 128, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


# --- the prior of y ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [0.25, 1.0, 7.3])
@pytest.mark.parametrize("mu", [0.0, -2.7])
def test_the_likelihood_of_a_symbol_is_the_law_of_its_cell(
    kind: type[nn.Module], dtype: torch.dtype, q: float, mu: float
) -> None:
    grid = list(itertools.product(np.geomspace(0.02, 200, 25), np.linspace(-8, 8, 33)))
    sigma = q * torch.tensor([ratio for ratio, _ in grid], dtype=dtype)[None]
    y_q = mu + q * torch.tensor([offset for _, offset in grid], dtype=dtype)[None]
    prior, law = kind().to(dtype), LAWS[kind]
    p = prior(y_q, torch.full((1, 1), q, dtype=dtype), torch.full_like(y_q, mu), sigma)[0].double().numpy()
    scale = np.maximum(sigma[0].double().numpy(), SMALLEST_RATIO[kind] * q)
    near = np.abs(y_q[0].double().numpy() - mu)  # mirrored, so that both ends lie where the distribution is accurate
    expected = law.sf((near - q / 2) / scale) - law.sf((near + q / 2) / scale)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-7
    assert np.allclose(p, np.maximum(expected, LEAST_LIKELIHOOD), rtol=tolerance, atol=tolerance * LEAST_LIKELIHOOD)


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("ratio", [0.11, 0.3, 1.0, 5.0, 60.0])
@pytest.mark.parametrize("u", [0.0, 0.5, -0.31])
def test_the_likelihoods_of_all_symbols_sum_to_one_on_any_grid(kind: type[nn.Module], ratio: float, u: float) -> None:
    q, mu = 2.5, 0.77
    reach = math.ceil(20 * ratio) + 2
    symbols = torch.arange(-reach, reach + 1, dtype=torch.float64)[None]
    y_q = sde.dequantize(symbols, q, mu, u)
    sigma = torch.full_like(y_q, ratio * q)
    p = kind().double()(y_q, torch.full((1, 1), q, dtype=torch.float64), torch.full_like(y_q, mu), sigma)
    assert float(p.sum()) == pytest.approx(1.0, abs=2 * reach * LEAST_LIKELIHOOD + 1e-12)


def test_the_rate_of_additive_noise_is_the_rate_of_dither() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(4, 50_000, generator=generator)
    latents = Latents(y, y, y, 0.2 * torch.ones_like(y), 1.1 * torch.ones_like(y))
    q = torch.tensor([0.3, 1.0, 3.0, 8.0])[:, None]
    prior = LevelGaussian()
    bits = {}
    for quantizer in ("noise", "dither"):
        y_q = sde.forward(y, q, quantizer=quantizer, mu=latents.mu, generator=generator)  # type: ignore[arg-type]
        bits[quantizer] = -torch.log2(prior(y_q, q, latents.mu, latents.sigma))
    difference = bits["noise"].mean(1) - bits["dither"].mean(1)
    deviation = (bits["noise"].var(1) + bits["dither"].var(1)).sqrt() / math.sqrt(50_000)
    assert bool((difference.abs() < 4.5 * deviation).all())


@pytest.mark.parametrize("kind", LAWS)
def test_the_rate_of_rounding_is_the_entropy_at_every_level(kind: type[nn.Module]) -> None:
    """The prior is right here, so that the mean code length is the entropy of the symbols."""
    y = torch.from_numpy(2 * LAWS[kind].rvs((3, 200_000), np.random.default_rng(0)))
    q = torch.tensor([0.5, 2.0, 8.0])
    y_q = sde.forward(y, q, quantizer="round")
    bits = -torch.log2(kind()(y_q, q[:, None], torch.zeros_like(y), torch.full_like(y, 2.0))).mean(1)
    for i in range(3):
        _, counts = torch.unique(y_q[i], return_counts=True)
        assert float(bits[i]) == pytest.approx(stats.entropy(counts.numpy(), base=2), abs=0.01)


def test_gradients_of_the_laplace_distribution_are_finite_wherever_a_symbol_lies() -> None:
    distance = torch.tensor([0.0, 0.3, 0.5, 0.5000001, 1.0, 50.0, 1e4, -1e4])
    for ratio in (1e-3, 0.055, 1.0, 1e3):
        y, sigma = distance.clone().requires_grad_(), torch.full_like(distance, ratio).requires_grad_()
        (-torch.log2(LevelLaplace()(y, torch.ones(1), torch.zeros_like(y), sigma))).sum().backward()
        assert bool(y.grad.isfinite().all() and sigma.grad.isfinite().all())  # type: ignore[union-attr]


def test_an_unknown_prior_is_refused() -> None:
    with pytest.raises(ConfigError, match="prior must be gaussian or laplace, not 'cauchy'"):
        tiny(prior="cauchy")


# --- the prior of z ---------------------------------------------------------------------------------------


def test_the_factorised_prior_keeps_nothing_but_its_weights() -> None:
    names = set(FactorizedPrior(4).state_dict())
    assert not {n for n in names if any(w in n for w in ("quantiles", "target", "cdf", "offset", "table", "median"))}
    assert {name for name, _ in FactorizedPrior(4).named_parameters()} <= names


def test_the_likelihoods_of_whole_z_sum_to_one() -> None:
    z = torch.arange(-400.0, 401.0)[None, None].expand(1, 4, -1)
    for seed in range(3):
        torch.manual_seed(seed)
        z_hat, p = FactorizedPrior(4).eval()(z)
        assert torch.equal(z_hat, z)
        assert torch.allclose(p.sum(-1), torch.ones(1, 4), atol=1e-4)


# --- the compressor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["residual", "bottleneck"])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("synthesis_blocks", [None, (1, 0, 0, 2)])
def test_shapes_follow_the_symbols(block: Block, attention: bool, synthesis_blocks: tuple[int, ...] | None) -> None:
    model = tiny(block=block, attention=attention, synthesis_blocks=synthesis_blocks)
    latents = model.analyse(images())
    assert latents.y.shape == latents.mu.shape == latents.sigma.shape == (2, 8, 4, 8)
    assert latents.z.shape == latents.z_hat.shape == (2, 4, 1, 2)
    assert model.synthesise(latents.y).shape == (2, 3, 64, 128)
    assert model.multiple == 64
    p = model.likelihoods(latents, torch.tensor([1.0, 2.0]), latents.y)
    assert p["y"].shape == latents.y.shape and p["z"].shape == latents.z.shape
    assert all(bool(((v >= LEAST_LIKELIHOOD) & (v <= 1)).all()) for v in p.values())


def test_z_hat_is_the_rounded_z_with_a_straight_through_gradient() -> None:
    model = tiny(gain=200.0)
    latents = model.analyse(images())
    assert latents.z.abs().max() > 3
    assert torch.equal(latents.z_hat, torch.round(latents.z))
    (gradient,) = torch.autograd.grad(latents.z_hat.sum(), latents.z)
    assert torch.equal(gradient, torch.ones_like(latents.z))


def test_the_prior_follows_from_z_hat_alone() -> None:
    model = tiny(gain=200.0)
    latents = model.analyse(images())
    mu, sigma = model.hyper_synthesis(torch.round(latents.z))
    assert torch.equal(mu, latents.mu) and torch.equal(sigma, latents.sigma)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_sigma_stays_in_its_range(scale: float) -> None:
    model = tiny()
    z_hat = scale * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    sigma = model.hyper_synthesis(z_hat)[1].detach()
    assert bool((sigma >= SIGMA_MIN * (1 - 1e-5)).all()) and bool((sigma <= SIGMA_MAX * (1 + 1e-5)).all())
    if scale > 1:
        for found, bound in ((sigma.min(), SIGMA_MIN), (sigma.max(), SIGMA_MAX)):
            # What its logarithm errs by, sigma errs by in proportion.
            assert float(found) == pytest.approx(bound, rel=rounding(1, 1 + abs(math.log(bound))))


def test_sigma_beyond_its_range_can_learn_its_way_back() -> None:
    model = tiny()
    raw: list[Tensor] = []
    model.h_s.register_forward_hook(lambda module, inputs, output: raw.append(output))
    _, sigma = model.hyper_synthesis(1e4 * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    log_sigma = raw[0].detach().chunk(2, dim=1)[1]
    below, above = log_sigma < math.log(SIGMA_MIN), log_sigma > math.log(SIGMA_MAX)
    assert bool(below.any()) and bool(above.any())
    for direction in (1.0, -1.0):  # of a loss that falls with sigma, and of one that grows
        (gradient,) = torch.autograd.grad(direction * sigma.sum(), raw[0], retain_graph=True)
        learns = gradient.chunk(2, dim=1)[1] != 0
        assert torch.equal(learns, ~below & ~above | (above if direction > 0 else below))


@pytest.mark.parametrize("quantizer", ["round", "dither"])
def test_bits_fall_as_q_grows(quantizer: sde.Quantizer) -> None:
    model = tiny(gain=20.0)
    latents = model.analyse(images())
    assert latents.y.std() > 1
    bits = []
    for q in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        noise = torch.Generator().manual_seed(0)
        y_q = sde.forward(latents.y, q, quantizer=quantizer, mu=latents.mu, generator=noise)
        bits.append(-torch.log2(model.likelihoods(latents, torch.tensor(q), y_q)["y"]).flatten(1).sum(1))
    assert all(bool((fine > coarse).all()) for fine, coarse in itertools.pairwise(bits))


def test_the_rate_of_z_is_noisy_in_training_and_that_of_z_hat_in_evaluation() -> None:
    model = tiny(gain=200.0)
    latents = model.analyse(images())

    def rate_of_z() -> Tensor:
        return model.likelihoods(latents, torch.tensor(1.0), latents.y)["z"]

    assert torch.equal(rate_of_z(), model.prior_z(latents.z_hat)[1])
    assert torch.equal(rate_of_z(), rate_of_z())
    model.train()
    assert not torch.equal(rate_of_z(), rate_of_z())


def test_the_analysis_of_an_image_does_not_depend_on_its_batch() -> None:
    model = tiny()
    x = images(4)
    together = model.analyse(x)
    for i in range(4):
        for whole, alone in zip(together, model.analyse(x[i : i + 1]), strict=True):
            bound = rounding(terms_of(model.g_a, model.h_a, model.h_s), float(whole.abs().max()))
            assert float((whole[i : i + 1] - alone).abs().max()) < bound


def test_a_state_goes_into_a_fresh_model_strictly_and_reproduces_it() -> None:
    model, fresh = tiny(seed=0), tiny(seed=1)
    x = images()
    assert not torch.allclose(model.analyse(x).y, fresh.analyse(x).y)
    fresh.load_state_dict(model.state_dict(), strict=True)
    a, b = model.analyse(x), fresh.analyse(x)
    assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))
    assert torch.equal(model.synthesise(a.y), fresh.synthesise(b.y))
    p, r = (m.likelihoods(a, torch.tensor(1.0), a.y) for m in (model, fresh))
    assert torch.equal(p["y"], r["y"]) and torch.equal(p["z"], r["z"])


def test_the_state_holds_no_tables() -> None:
    names = tiny().state_dict()
    assert not [n for n in names if any(word in n for word in ("cdf", "quantiles", "scale_table", "_offset", "target"))]


def test_the_latents_are_float32_under_autocast() -> None:
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = model.analyse(images())
        assert all(t.dtype == torch.float32 for t in latents)
        assert model.synthesise(latents.y).dtype == torch.float32
        p = model.likelihoods(latents, torch.tensor([0.5, 4.0]), latents.y)
    assert all(v.dtype == torch.float32 and bool(torch.isfinite(torch.log2(v)).all()) for v in p.values())
    assert torch.equal(latents.z_hat, torch.round(latents.z))


@pytest.mark.parametrize("stride", [0, -1, 2.0, None])
def test_a_network_says_its_stride_a_whole_number_from_one_on(stride: object) -> None:
    def compressor(g_a: object, h_a: object) -> Compressor:
        networks = [nn.Identity() for _ in range(4)]
        networks[0].stride, networks[2].stride = g_a, h_a  # type: ignore[assignment]
        return Compressor(*networks, latent_channels=3, hyper_channels=3)

    assert compressor(8, 1).multiple == 8 and compressor(1, 4).multiple == 4 and compressor(1, 1).multiple == 1
    for strides in ((stride, 1), (1, stride)):
        with pytest.raises(ConfigError, match="Identity has no stride"):
            _ = compressor(*strides).multiple


# --- the two sets of weights of g_s -----------------------------------------------------------------------


def realistic(stages: int = 2) -> ResidualCompressor:
    """A compressor whose second set of weights is not zero."""
    model = tiny(realistic_stages=stages)
    for weights in model.g_s.realistic.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    return model.eval()


@pytest.mark.parametrize("stages", [0, 1, 2, 3, 4])
def test_the_second_set_of_weights_belongs_to_the_last_stages_and_changes_nothing_at_first(stages: int) -> None:
    plain, model = tiny(), tiny(realistic_stages=stages)
    missing = model.load_state_dict(plain.state_dict())
    assert not missing.missing_keys and not missing.unexpected_keys
    y = torch.randn(2, 8, 4, 8)
    for mode in (True, False):
        model.train(mode)
        for r in (0.0, 1.0):
            assert torch.equal(model.synthesise(y, r), plain.synthesise(y))
    blocks = sum(p.numel() for p in model.g_s.layers.parameters())
    own = sum(p.numel() for p in model.g_s.realistic.parameters())
    assert own == 0 if stages == 0 else 0 < own < blocks


def synthesis_bound(model: ResidualCompressor, y: Tensor) -> float:
    """On the rounding error of an image, whose largest intermediate values are those of ``y``."""
    return rounding(terms_of(model.g_s.layers), float(y.abs().max()))


def test_realism_interpolates_the_weights_of_g_s() -> None:
    model, y = realistic(), torch.randn(2, 8, 4, 8)
    for r in (0.0, 0.3, 1.0):
        merged = tiny()
        state = {k: v for k, v in model.state_dict().items() if ".realistic." not in k}
        for name, change in model.g_s.realistic.named_parameters():
            state[f"g_s.layers.{name}"] = state[f"g_s.layers.{name}"] + r * change
        merged.load_state_dict(state)
        assert float((model.synthesise(y, r) - merged.synthesise(y)).abs().max()) < synthesis_bound(model, y)
    assert float((model.synthesise(y, 0.0) - model.synthesise(y, 1.0)).abs().max()) > 100 * synthesis_bound(model, y)


def test_each_sample_has_its_own_realism() -> None:
    model, y = realistic(), torch.randn(5, 8, 4, 8)
    r = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0])
    apart = torch.cat([model.synthesise(y[i : i + 1], float(r[i])) for i in range(5)])
    assert float((model.synthesise(y, r) - apart).abs().max()) < synthesis_bound(model, y)


def test_no_realism_means_no_gradient_for_the_second_set_of_weights() -> None:
    model, y = realistic().train(), torch.randn(2, 8, 4, 8)
    model.synthesise(y, torch.tensor([0.0, 0.0])).square().mean().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.g_s.realistic.parameters())
    model.synthesise(y, torch.tensor([0.0, 1.0])).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.g_s.realistic.parameters())


def test_more_realistic_stages_than_stages_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"realistic_stages must lie in 0 \.\.\. 4, not 5"):
        tiny(realistic_stages=5)


def test_under_autocast_what_leaves_a_transform_is_float32_before_anything_is_added() -> None:
    model, x = realistic(), torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y = model.g_a(x)
        assert y.dtype == torch.float32
        for r in (0.0, 1.0, [0.0, 1.0]):
            out = model.g_s(y, r)
            assert out.dtype == torch.float32
            learned = out - 0.5  # exact, and what the layers yielded: the sum was not rounded to bfloat16
            assert not torch.equal(out, out.bfloat16().float())
            assert torch.allclose(learned, learned.bfloat16().float(), rtol=0, atol=2 * torch.finfo(out.dtype).eps)
