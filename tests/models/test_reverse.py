"""The reverse network starts at the exact posterior mean, stays in the cell and learns in all its parts."""

from __future__ import annotations

import math

import pytest
import torch
from bounds import rounding
from torch import Tensor
from torch.nn import functional as F

from gic.method import samplers, sde
from gic.method.posterior import truncated_normal_mean
from gic.models.ranges import D_SIGMA_MAX
from gic.models.reverse import LevelEmbedding, ReverseUNet, denoiser, mean_level, refine

CHANNELS = 8
Q = torch.tensor([0.05, 0.6, 3.0, 40.0])


def tiny(seed: int = 0, attention: bool = True) -> ReverseUNet:
    torch.manual_seed(seed)
    return ReverseUNet(CHANNELS, widths=(8, 16), blocks=(1, 1), embedding=16, attention=attention)


def awake(network: ReverseUNet, scale: float = 1.0) -> ReverseUNet:
    """Put random values into the layers that are zero at first."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        if not bool(parameter.any()):
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return network


def prior(seed: int = 0, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """A latent, and the mean and the standard deviation of its prior, one sample for each level."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(Q), CHANNELS, size, size)
    mu = 3 * torch.randn(shape, generator=generator)
    sigma = torch.exp(1.5 * torch.randn(shape, generator=generator))
    return mu + sigma * torch.randn(shape, generator=generator), mu, sigma


def in_cell(y: Tensor, y_q: Tensor, q: Tensor) -> bool:
    half = sde.level(q, y_q) / 2
    return bool(((y >= y_q - half) & (y <= y_q + half)).all())


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("quantizer", sde.QUANTIZERS)
def test_at_initialisation_d_is_the_exact_posterior_mean(attention: bool, quantizer: sde.Quantizer) -> None:
    y, mu, sigma = prior()
    y_q = sde.forward(y, Q, quantizer=quantizer, mu=mu, generator=torch.Generator().manual_seed(1))
    q = sde.level(Q, y)
    d = denoiser(tiny(attention=attention), mu, sigma)(y_q, q)
    assert torch.equal(d, truncated_normal_mean(y_q, q, mu, sigma))


def test_at_initialisation_d_has_less_error_than_the_transmitted_latent() -> None:
    y, mu, sigma = prior(size=16)
    y_q = sde.forward(y, Q, generator=torch.Generator().manual_seed(1))
    d = denoiser(tiny(), mu, sigma)(y_q, sde.level(Q, y)).detach()
    errors, before = (((t - y) ** 2).flatten(1).mean(1) for t in (d, y_q))
    assert bool((errors < before).all())
    assert float(errors[-1]) < 0.2 * float(before[-1])


@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
def test_d_never_leaves_the_cell_whatever_the_weights(scale: float) -> None:
    network = awake(tiny(), scale)
    for seed in range(3):
        y, mu, sigma = prior(seed)
        y_q = sde.forward(y, Q, mu=mu, quantizer="round")
        d = denoiser(network, mu, sigma)(y_q, sde.level(Q, y))
        assert in_cell(d, y_q, Q)
        assert not torch.equal(d, denoiser(tiny(), mu, sigma)(y_q, sde.level(Q, y)))


@pytest.mark.parametrize("sampler", ["mean", "euler", "heun"])
def test_the_flow_never_contradicts_the_file(sampler: str) -> None:
    """|v| <= 1/2, so that the whole way from q to 0 is no longer than half a cell."""
    network = awake(tiny(), 3.0)
    y, mu, sigma = prior()
    y_q = sde.forward(y, Q, mu=mu, quantizer="round")
    y_hat = samplers.reverse(denoiser(network, mu, sigma), y_q, Q, sampler=sampler, steps=5)
    errors = rounding(5 * 4, float(y_q.abs().max()))  # five steps of four operations
    assert in_cell(y_hat, y_q, Q + 2 * errors)


@pytest.mark.parametrize("scale", [0.1, 1000.0])
def test_sigma_is_refined_within_its_bound_and_mu_in_units_of_sigma(scale: float) -> None:
    network = awake(tiny(), scale)
    y, mu, sigma = prior()
    d_mu, d_sigma = network(y, mu, torch.log(sigma), torch.log(Q))
    assert bool((d_sigma.abs() <= D_SIGMA_MAX).all())
    assert bool(d_sigma.std() > 0)
    refined_mu, refined_sigma = refine(network, y, sde.level(Q, y), mu, sigma)
    bound = math.exp(D_SIGMA_MAX) * (1 + 1e-5)
    assert bool(((refined_sigma <= sigma * bound) & (refined_sigma >= sigma / bound)).all())
    assert bool(((refined_mu - mu - sigma * d_mu).abs() <= rounding(2, 1) * (mu.abs() + (sigma * d_mu).abs())).all())
    assert torch.allclose(refined_sigma, sigma * torch.exp(d_sigma), rtol=rounding(2, 1), atol=0)


@pytest.mark.parametrize("attention", [False, True])
def test_gradients_reach_the_whole_network_once_its_zeros_have_learned(attention: bool) -> None:
    """A zero layer hides those before it; every step of the optimiser uncovers at least one more."""
    network = tiny(attention=attention)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    y, mu, sigma = prior()
    y_q = sde.forward(y, Q, mu=mu, quantizer="round")

    def learn() -> list[str]:
        optimiser.zero_grad()
        d = denoiser(network, mu, sigma)(y_q, sde.level(Q, y))
        (((d - y) / sde.level(Q, y)) ** 2).mean().backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
        hidden = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
        optimiser.step()
        return hidden

    assert not [name for name in learn() if name.startswith("leave.")]
    assert not [name for name in learn() if "conv2" in name or name.startswith(("enter.", "up.", "leave."))]
    assert learn() == []


def test_mu_learns_where_the_symbol_is_zero() -> None:
    """With rounding, symbol 0 puts y_q on mu exactly: most elements of a file at low rate."""
    network = tiny()
    y, mu, sigma = prior()
    d = denoiser(network, mu, sigma)(mu, sde.level(Q, y))
    (((d - y) / sde.level(Q, y)) ** 2).mean().backward()
    gradient = network.leave.bias.grad
    assert gradient is not None and bool((gradient[:CHANNELS] != 0).all())


@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 12, 16)])
def test_any_depth_keeps_the_shape_of_the_latent(widths: tuple[int, ...]) -> None:
    network = awake(ReverseUNet(CHANNELS, widths=widths, blocks=(1,) * len(widths), attention=True))
    y, mu, sigma = prior()
    d_mu, d_sigma = network(y, mu, torch.log(sigma), torch.log(Q))
    assert d_mu.shape == d_sigma.shape == y.shape
    assert d_mu.dtype == d_sigma.dtype == torch.float32


@pytest.mark.parametrize(("widths", "blocks"), [((), ()), ((8, 8, 8, 8), (1, 1, 1, 1)), ((8, 16), (1,))])
def test_an_impossible_depth_is_refused(widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="same length, 1 to 3"):
        ReverseUNet(CHANNELS, widths=widths, blocks=blocks)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    network = awake(tiny(), 0.3)
    y, mu, sigma = prior()
    together = denoiser(network, mu, sigma)(y, sde.level(Q, y))
    for i in range(len(Q)):
        row = slice(i, i + 1)
        alone = denoiser(network, mu[row], sigma[row])(y[row], sde.level(Q[row], y[row]))
        assert torch.allclose(alone, together[row], rtol=1e-4, atol=1e-4)


def test_the_level_changes_what_the_network_says() -> None:
    network = awake(tiny(), 0.3)
    y, mu, sigma = prior()
    a, b = (network(y, mu, torch.log(sigma), torch.log(Q * factor))[0] for factor in (1.0, 1.1))
    assert bool((a != b).flatten(1).any(1).all())


def test_the_embedding_tells_levels_apart_and_is_smooth() -> None:
    torch.manual_seed(0)
    embedding = LevelEmbedding(16)
    log_q = torch.linspace(math.log(0.1), math.log(50), 400)
    features = embedding(log_q).detach()
    difference = features.diff(dim=0).norm(dim=1)
    assert bool((difference > 0).all())
    assert float(difference.max()) < 0.2 * float(features.norm(dim=1).mean())
    # no level is mistaken for another far from it: the features have no common period in the range
    distance = torch.cdist(features, features)
    far = (log_q[:, None] - log_q).abs() > 0.5
    assert float(distance[far].min()) > float(difference.min())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_latents_give_finite_results_and_gradients(dtype: torch.dtype) -> None:
    network = awake(tiny(), 0.1)
    _, mu, sigma = prior()
    mu = (1e3 * mu).requires_grad_()
    sigma = (sigma.clamp(0.05, 256) * torch.tensor([1e-2, 1.0, 1.0, 1e2])[:, None, None, None]).requires_grad_()
    y_q = mu.detach() + 1e4 * torch.linspace(-1, 1, 4)[:, None, None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        d = denoiser(network, mu, sigma)(y_q, sde.level(Q, y_q))
    assert bool(torch.isfinite(d).all()) and d.dtype == torch.float32
    assert in_cell(d, y_q, Q)
    F.mse_loss(d, torch.zeros_like(d)).backward()
    for t in (mu, sigma, *network.parameters()):
        assert t.grad is not None and bool(torch.isfinite(t.grad).all())


# --- a field of levels ------------------------------------------------------------------------------------------------


def field(y: Tensor) -> Tensor:
    """A level for each element, from 0.5 to 8."""
    return 0.5 * 2 ** (4 * torch.rand(y.shape, generator=torch.Generator().manual_seed(5)))


def test_a_field_of_equal_levels_is_the_level_bit_for_bit() -> None:
    network = awake(tiny(), 0.3)
    y, mu, sigma = prior()
    q = sde.level(Q, y)
    by_number, by_field = (denoiser(network, mu, sigma)(y, levels) for levels in (q, q.expand_as(y)))
    assert torch.equal(by_number, by_field)
    for one, other in zip(refine(network, y, q, mu, sigma), refine(network, y, q.expand_as(y), mu, sigma), strict=True):
        assert torch.equal(one, other)


def test_the_mean_of_equal_levels_is_the_level_bit_for_bit_and_of_others_that_of_their_logarithms() -> None:
    log_q = torch.log(torch.linspace(0.4, 9, 50))
    assert mean_level(log_q) is log_q
    assert torch.equal(mean_level(log_q[:, None, None, None].expand(-1, 7, 5, 3)), log_q)
    levels = torch.log(field(torch.empty(3, 4, 5, 6)))
    assert torch.allclose(mean_level(levels), levels.mean((1, 2, 3)), atol=1e-6)
    assert mean_level(levels).shape == (3,) and mean_level(levels).dtype == torch.float32


def test_at_initialisation_d_is_the_exact_posterior_mean_at_each_element_s_level() -> None:
    y, mu, sigma = prior()
    q = field(y)
    d = denoiser(tiny(), mu, sigma)(y, q)
    assert torch.equal(d, truncated_normal_mean(y, q, mu, sigma))


def test_d_never_leaves_the_cell_of_each_element_s_level() -> None:
    y, mu, sigma = prior()
    q = field(y)
    y_q = sde.forward(y, q, mu=mu, quantizer="round")
    network = awake(tiny(), 3.0)
    assert in_cell(denoiser(network, mu, sigma)(y_q, q), y_q, q)
    ends = samplers.reverse(denoiser(network, mu, sigma), y_q, q, sampler="heun", steps=5)
    assert in_cell(ends, y_q, q + 2 * rounding(5 * 4, float(y_q.abs().max())))


def test_detail_channels_keep_their_prior_at_each_element_s_level() -> None:
    """Channels beyond the network's, with a number, a level per sample and a field."""
    generator = torch.Generator().manual_seed(3)
    y, mu, sigma = (torch.cat([t, t.flip(1)], 1) for t in prior())
    q = field(y)
    y_q = sde.forward(y, q, mu=mu, quantizer="round")
    network = awake(tiny(), 0.3)
    d = denoiser(network, mu, sigma)(y_q, q)
    own, detail = slice(CHANNELS), slice(CHANNELS, None)
    alone = denoiser(network, mu[:, own], sigma[:, own])(y_q[:, own], q[:, own])
    assert torch.equal(d[:, own], alone)
    expected = truncated_normal_mean(*(t[:, detail] for t in (y_q, q, mu, sigma)))
    assert torch.allclose(d[:, detail], expected, rtol=1e-6, atol=1e-6)
    level = sde.level(0.5 + torch.rand(len(Q), generator=generator), y)
    both = [denoiser(network, mu, sigma)(y_q, levels) for levels in (level, level.expand_as(y))]
    assert torch.equal(*both)


@pytest.mark.parametrize("realism", [0.0, [0.0, 0.5, 0.5, 1.0]])
def test_second_weights_take_a_field_too(realism: samplers.Realism) -> None:
    network = realistic().eval()
    y, mu, sigma = prior()
    q = sde.level(Q, y)
    one, other = (denoiser(network, mu, sigma, realism)(y, levels) for levels in (q, q.expand_as(y)))
    assert torch.equal(one, other)


# --- second weights, for realism --------------------------------------------------------------------------------------


def realistic(seed: int = 0) -> ReverseUNet:
    torch.manual_seed(seed)
    network = ReverseUNet(CHANNELS, widths=(8, 16), blocks=(1, 1), embedding=16, attention=True, realistic=True)
    return awake(network, 0.05)


def test_second_weights_begin_at_nothing_and_also_where_a_file_has_none() -> None:
    plain = awake(tiny())
    torch.manual_seed(1)
    second = ReverseUNet(CHANNELS, widths=(8, 16), blocks=(1, 1), embedding=16, attention=True, realistic=True)
    second.load_state_dict(plain.state_dict())
    y, mu, sigma = prior()
    inputs = (y, mu, sigma.log(), Q.log())
    for r in (0.0, 0.5, 1.0):
        for network in (second.eval(), second.train()):
            for one, other in zip(network(*inputs, r), plain(*inputs), strict=True):
                assert torch.equal(one, other)
    damaged = {name: weights for name, weights in second.state_dict().items() if name != "realistic.enter.weight"}
    with pytest.raises(RuntimeError, match=r"realistic\.enter\.weight"):
        second.load_state_dict(damaged)


def test_r_goes_from_one_network_to_the_other_and_each_sample_has_its_own() -> None:
    network = realistic().eval()
    y, mu, sigma = prior()
    inputs = (y, mu, sigma.log(), Q.log())
    ends = ReverseUNet(CHANNELS, widths=(8, 16), blocks=(1, 1), embedding=16, attention=True).eval()
    own = {name: w for name, w in network.state_dict().items() if not name.startswith("realistic.")}
    assert network.realistic is not None
    change = network.realistic.state_dict()
    found = {}
    for r in (0.0, 0.5, 1.0):
        ends.load_state_dict({name: w + r * change[name] for name, w in own.items()})
        found[r] = ends(*inputs)
        for one, other in zip(network(*inputs, r), found[r], strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0.0][0], found[1.0][0], rtol=0.01, atol=1e-3)
    mixed = network(*inputs, [0.0, 0.5, 0.5, 1.0])
    for sample, r in enumerate((0.0, 0.5, 0.5, 1.0)):
        assert torch.allclose(mixed[0][sample], found[r][0][sample], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_the_realistic_flow_stays_in_the_cell_and_r_0_knows_nothing_of_it(sampler: str) -> None:
    network = realistic().eval()
    y, mu, sigma = prior()
    y_q = sde.forward(y, Q, quantizer="round", mu=mu)
    ends = []
    for r in (0.0, 1.0):
        end = samplers.reverse(denoiser(network, mu, sigma, r), y_q, Q, sampler=sampler, steps=2, realism=r)
        if sampler not in ("sde", "restart"):  # which draw noise
            assert in_cell(end, y_q, Q * (1 + 1e-5))
        ends.append(end)
    network.realistic = None
    again = samplers.reverse(denoiser(network, mu, sigma), y_q, Q, sampler=sampler, steps=2, realism=0.0)
    assert torch.equal(ends[0], again)
    assert not torch.allclose(ends[0], ends[1], atol=1e-3)


def test_in_training_both_sets_are_in_every_graph() -> None:
    for r in (0.0, [0.0, 0.0, 1.0, 1.0]):
        network = realistic().train()
        y, mu, sigma = prior()
        sum(part.sum() for part in network(y, mu, sigma.log(), Q.log(), r)).backward()
        assert all(weights.grad is not None for weights in network.parameters())
