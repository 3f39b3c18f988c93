"""Entropy parameters and tables are the same bits everywhere; damaged payloads do no harm."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import gic
from gic import loops
from gic.bitstream import exact, portable, rans
from gic.bitstream.coder import CODE_MAX, CODE_MIN, EntropyCoder, Prior, level_code, level_value
from gic.bitstream.exact import EXACT_SUM, INPUT_MAX, IntegerNetwork
from gic.bitstream.tables import (
    FIRST,
    LEVELS_PER_OCTAVE,
    OFFSETS,
    SCALE_STEP,
    SKIP_DITHER,
    SKIP_ROUND,
    SYMBOL_MAX,
    FactorizedWeights,
    Tables,
    dither_values,
    factorized_tables,
    prior_tables,
)
from gic.errors import ConfigError, FormatError
from gic.models import codec as model
from gic.models.compressor import ResidualCompressor
from gic.runtime.pytorch import entropy_model, layers_of

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # on switching oneDNN off

LAPLACE = stats.laplace(scale=0.5**0.5)  # of a standard deviation of 1


@pytest.fixture(scope="module")
def compressor() -> ResidualCompressor:
    """A random model whose log2 sigma is spread as a trained one's is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        compressor = ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 0), latent_channels=24, hyper_channels=32).eval()
    with torch.no_grad():
        compressor.h_s[-1].weight[24:] *= 0.9
        compressor.h_s[-1].bias[24:] = -0.7
    return compressor


@pytest.fixture(scope="module")
def coder(compressor: ResidualCompressor) -> EntropyCoder:
    return EntropyCoder(entropy_model(compressor))


def random_z(seed: int = 0, batch: int = 1, height: int = 4, width: int = 6) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=(batch, 32, height, width)) * 6).astype(np.int32)


def random_y(
    coder: EntropyCoder, prior: Prior, code: int, dither: bool, seed: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.uint8] | None]:
    """Symbols of a draw from the prior, and their dither."""
    rng = np.random.default_rng(seed)
    shape = tuple(prior.mu.shape)
    residual = rng.normal(size=shape) * prior.sigma / level_value(code)
    offsets = rng.integers(0, OFFSETS, shape).astype(np.uint8) if dither else None
    if offsets is not None:
        residual = residual - dither_values(offsets)
    symbols = np.clip(np.round(residual), -SYMBOL_MAX, SYMBOL_MAX)
    return np.where(coder.coded_mask(prior, code, dither), symbols, 0).astype(np.int32), offsets


# --- elementary functions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "reference", "low", "high"),
    [
        (portable.exp, np.exp, -700, 700),
        (portable.exp, np.exp, -1e-3, 1e-3),
        (portable.exp2, np.exp2, -40, 40),
        (portable.softplus, lambda x: np.logaddexp(0, x), -40, 40),
        (portable.tanh, np.tanh, -30, 30),
        (portable.tanh, np.tanh, -1e-8, 1e-8),
        (portable.sigmoid, special.expit, -700, 700),
        (portable.erfc, np.vectorize(math.erfc), -6, 25.9),
        # The same argument to the last bit: the tail makes x^2 of an error in it.
        (portable.normal_cdf, lambda x: 0.5 * np.vectorize(math.erfc)(x * -math.sqrt(0.5)), -5, 8),
    ],
)
def test_portable_functions_are_accurate(ours, reference, low: float, high: float) -> None:
    x = np.linspace(low, high, 20011)
    bound = 16 * np.finfo(float).eps  # four for ours, and as many or more for a library's
    assert (np.abs(ours(x) - reference(x)) <= bound * np.abs(reference(x))).all()


def test_portable_logarithm_is_accurate() -> None:
    x = np.concatenate([np.exp(np.linspace(-600, 600, 9973)), np.linspace(0.5, 2, 9973)])
    assert np.max(np.abs(portable.log(x) - np.log(x)) / np.maximum(np.abs(np.log(x)), 1e-3)) < 1e-14


def test_portable_functions_do_not_depend_on_layout() -> None:
    x = np.random.default_rng(0).normal(size=1001) * 5
    for function in (portable.exp, portable.tanh, portable.softplus, portable.erfc, portable.sigmoid):
        whole = function(x)
        assert (function(x[::-3]) == whole[::-3]).all()
        assert all(function(x[i]) == whole[i] for i in range(0, 1001, 97))


# --- levels and tables ----------------------------------------------------------------------------------------


def test_codes_of_levels_round_trip() -> None:
    for code in (CODE_MIN, -1, 0, 1, 1023, CODE_MAX):
        assert level_code(level_value(code)) == code
    assert level_value(2048) == 4.0
    assert abs(math.log2(level_value(level_code(0.7)) / 0.7)) <= 0.5 / LEVELS_PER_OCTAVE


def test_codes_of_levels_are_the_numbers_of_16_bits() -> None:
    assert level_code(level_value(-(2**15))) == -(2**15) and level_code(level_value(2**15 - 1)) == 2**15 - 1
    for code in (-(2**15) - 1, 2**15):
        with pytest.raises(ConfigError, match="cannot be stored"):
            level_code(level_value(code))


@pytest.mark.parametrize("q", [0.0, -1.0, math.nan, math.inf, 1e300, 1e-300])
def test_impossible_levels_are_refused(q: float) -> None:
    with pytest.raises(ConfigError, match="cannot be stored"):
        level_code(q)


def test_the_skipped_elements_are_those_of_the_model() -> None:
    assert abs(2 ** (SKIP_DITHER / LEVELS_PER_OCTAVE) / model.SKIP_BELOW - 1) < 1 / LEVELS_PER_OCTAVE


def all_tables(compressor: ResidualCompressor) -> dict[str, Tables]:
    return {
        **{f"{prior}, {dither}": prior_tables(prior, dither) for prior in FIRST for dither in (False, True)},
        "z": factorized_tables(entropy_model(compressor).prior_z),
    }


def test_tables_rise_strictly_and_end_at_the_total(compressor: ResidualCompressor) -> None:
    for name, tables in all_tables(compressor).items():
        assert tables.frequencies.min() >= 1, name
        assert (np.add.reduceat(tables.frequencies, tables.first[:-1]) == rans.TOTAL).all(), name
        for table in range(0, len(tables), 41):
            row = tables.rows.edges[slice(*tables.rows.first[table : table + 2])]
            assert row[0] == 0 and row[-1] == rans.TOTAL and all(np.diff(row) > 0)
            assert len(row) == tables.size[table] + 2


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("prior", FIRST)
def test_tables_of_y_cost_little_more_than_the_entropy(prior: str, dither: bool) -> None:
    tables, cdf = prior_tables(prior, dither), {"gaussian": special.ndtr, "laplace": LAPLACE.cdf}[prior]
    for table in range(0, len(tables), 177 if dither else 13):
        scale = 2 ** ((FIRST[prior] + SCALE_STEP * (table // OFFSETS if dither else table)) / LEVELS_PER_OCTAVE)
        u = float(dither_values(np.array(table % OFFSETS))) if dither else 0.0
        k = np.arange(tables.size[table]) + tables.low[table]
        p = cdf((k + u + 0.5) / scale) - cdf((k + u - 0.5) / scale)
        entropy = -(p * np.log2(np.maximum(p, 1e-300))).sum()
        cost = (p * tables.bits[tables.first[table] : tables.first[table + 1] - 1]).sum()
        assert cost - entropy < 2e-4 + 1.5e-3 * entropy


def test_tables_of_z_follow_the_factorised_prior(compressor: ResidualCompressor) -> None:
    tables = factorized_tables(entropy_model(compressor).prior_z)
    k = torch.arange(-20, 21).float()
    with torch.no_grad():
        _, p = compressor.prior_z(k.expand(1, 32, 1, -1))
    for channel in range(0, 32, 5):
        ours = np.array([tables.frequencies[tables.first[channel] + int(v) - tables.low[channel]] for v in k])
        assert np.abs(ours / rans.TOTAL - p[0, channel, 0].numpy()).max() < 1e-3


@pytest.mark.parametrize("bias", [1e4, -1e4, 3e38])
def test_tables_of_z_exist_for_any_finite_weights(compressor: ResidualCompressor, bias: float) -> None:
    prior = ResidualCompressor((8,) * 4, (0,) * 4, latent_channels=8, hyper_channels=32).prior_z
    with torch.no_grad():
        for parameter in prior.biases:
            parameter.fill_(bias)
    tables = factorized_tables(
        FactorizedWeights(
            *([p.detach().numpy() for p in each] for each in (prior.matrices, prior.biases, prior.factors))
        )
    )
    assert tables.frequencies.min() >= 1
    symbols = np.zeros(32, np.int32)
    assert (tables.decode(tables.encode(np.arange(32), symbols), np.arange(32)) == symbols).all()


# --- integer hyper-synthesis -----------------------------------------------------------------------------


def conditions() -> Iterator[tuple[str, Tensor]]:
    """The same z under everything that may change the last bits of a float network."""
    z = torch.from_numpy(random_z(batch=3)).float()
    threads = torch.get_num_threads()
    yield "plain", z
    try:
        torch.set_num_threads(1)
        yield "one thread", z
        torch.set_num_threads(2)
        yield "two threads", z
    finally:
        torch.set_num_threads(threads)
    yield "channels last", z.to(memory_format=torch.channels_last)
    yield "float64", z.double()
    with torch.backends.mkldnn.flags(enabled=False):
        yield "without oneDNN", z
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield "bfloat16 autocast", z
    yield "batch of one", z[:1]
    yield "non-contiguous", z.flip(0).flip(0).transpose(2, 3).contiguous().transpose(2, 3)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a[:1], b[:1])


def one_by_one(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """A matrix product whose sums have another order."""
    total = np.zeros((*b.shape[:-2], len(a), b.shape[-1]))
    for k in reversed(range(a.shape[1])):
        total += a[:, k, None] * b[..., k, None, :]
    return total


def priors(compressor: ResidualCompressor) -> Iterator[tuple[str, Prior]]:
    """The prior of one z, of the first in a batch, under everything that may change the last bits of floats."""
    model, z = entropy_model(compressor), random_z(batch=3)
    plain = EntropyCoder(model)
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            yield f"{threads} threads", plain.prior(z)
    yield "float32", plain.prior(z.astype(np.float32))
    yield "batch of one", plain.prior(z[:1])
    yield "in the order of columns", plain.prior(np.asfortranarray(z))
    shipped = gic.load(runtime="onnx", threads=1).networks
    products = {"ONNX Runtime": shipped.product, "PyTorch": with_torch, "summed the other way round": one_by_one}
    for name, product in products.items():
        yield name, EntropyCoder(model, product).prior(z)


def with_torch(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()  # type: ignore[no-any-return]


def test_the_prior_is_the_same_under_all_conditions(compressor: ResidualCompressor, coder: EntropyCoder) -> None:
    plain = coder.prior(random_z(batch=3))
    for name, prior in priors(compressor):
        assert prior.mu.dtype == np.float32 and prior.log2_sigma.dtype == np.int32
        assert np.array_equal(prior.mu[:1], plain.mu[:1]), name
        assert np.array_equal(prior.log2_sigma[:1], plain.log2_sigma[:1]), name


@torch.no_grad()
def test_a_float_network_is_not_the_same_under_all_conditions(compressor: ResidualCompressor) -> None:
    """The test above can fail: the trained network itself does not pass it."""
    results = {}
    for name, z in conditions():
        network = compressor.h_s.double() if name == "float64" else compressor.h_s.float()
        results[name] = network(z).float()
    compressor.h_s.float()
    different = {name for name, result in results.items() if not same(result, results["plain"])}
    assert "bfloat16 autocast" in different
    assert different & {"one thread", "two threads", "channels last", "without oneDNN", "batch of one"}


def test_a_file_decodes_under_other_conditions(compressor: ResidualCompressor, coder: EntropyCoder) -> None:
    z = random_z(batch=3)[:1]
    prior = coder.prior(z)
    symbols, _ = random_y(coder, prior, 0, False)
    payloads = coder.encode_z(z), coder.encode_y(symbols, prior, 0)
    assert np.array_equal(coder.decode_z(payloads[0], z.shape), z)
    for name, other in priors(compressor):
        first = Prior(*(t[:1] for t in other))
        assert (coder.decode_y(payloads[1], first, 0) == symbols).all(), name


@torch.no_grad()
def test_the_prior_is_practically_the_trained_network_s(compressor: ResidualCompressor, coder: EntropyCoder) -> None:
    z = random_z()
    mu, sigma = compressor.hyper_synthesis(torch.from_numpy(z).float())
    prior = coder.prior(z)
    assert np.abs(prior.mu - mu.numpy()).max() < 2e-3
    assert np.abs(np.log2(prior.sigma) - np.log2(sigma.numpy())).max() < 2 / LEVELS_PER_OCTAVE
    assert sigma.min() < 0.06 and sigma.max() > 4  # the test sees a wide range


def with_prior(prior: str, compressor: ResidualCompressor) -> ResidualCompressor:
    """The same weights with another distribution of y."""
    sizes = {"latent_channels": 24, "hyper_channels": 32, "prior": prior}
    other = ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 0), **sizes).eval()  # type: ignore[arg-type]
    other.load_state_dict(compressor.state_dict())
    return other


def test_symbols_of_a_laplace_prior_take_fewer_bits_with_its_tables(compressor: ResidualCompressor) -> None:
    z = random_z(height=8, width=8)
    coders = {prior: EntropyCoder(entropy_model(with_prior(prior, compressor))) for prior in FIRST}
    for code, offsets in ((0, None), (2048, None), (1024, np.arange(OFFSETS, dtype=np.uint8))):
        prior = coders["laplace"].prior(z)
        y = LAPLACE.rvs(prior.mu.shape, np.random.default_rng(0)) * prior.sigma / level_value(code)
        if offsets is not None:
            offsets = np.resize(offsets, y.shape)
            y -= dither_values(offsets)
        symbols = np.where(coders["laplace"].coded_mask(prior, code, offsets is not None), np.round(y), 0)
        symbols = symbols.astype(np.int32)
        data = {name: coder.encode_y(symbols, prior, code, offsets) for name, coder in coders.items()}
        assert len(data["laplace"]) < 0.98 * len(data["gaussian"])
        for name, coder in coders.items():
            assert np.array_equal(coder.decode_y(data[name], prior, code, offsets), symbols)
    assert coders["laplace"].tables_hash != coders["gaussian"].tables_hash


@pytest.mark.parametrize("prior", FIRST)
@pytest.mark.parametrize("code", [0, 1024, 2048])
@torch.no_grad()
def test_files_are_as_short_as_the_float_model_says(compressor: ResidualCompressor, prior: str, code: int) -> None:
    compressor = with_prior(prior, compressor)
    coder = EntropyCoder(entropy_model(compressor))
    z = random_z(height=8, width=8)
    exact = coder.prior(z)
    mu, sigma = compressor.hyper_synthesis(torch.from_numpy(z).float())
    q = torch.tensor(level_value(code))
    symbols, _ = random_y(coder, exact, code, False)
    p = compressor.prior_y(mu.double() + q * torch.from_numpy(symbols), q, mu.double(), sigma.double())
    ideal = float(-torch.log2(p).sum())
    assert abs(coder.bits_y(symbols, exact, code) - ideal) < 2e-3 * ideal
    _, p = compressor.prior_z(torch.from_numpy(z).float())
    assert abs(coder.bits_z(z) / float(-torch.log2(p).sum()) - 1) < 5e-3


def test_bands_do_not_change_the_result(coder: EntropyCoder, monkeypatch: pytest.MonkeyPatch) -> None:
    z = random_z(height=7, width=5)
    whole = coder.prior(z)
    for elements in (1, 20_000):
        monkeypatch.setattr(exact, "_BAND_ELEMENTS", elements)
        assert np.array_equal(coder.prior(z).mu, whole.mu)


def adversarial_weights() -> list[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (6, 5, 3, 3)
    normal = torch.randn(shape, generator=generator)
    one_large = normal * 1e-6
    one_large[:, 2, 1, 1] = 3.0
    return [
        ("normal", normal * 0.03, torch.randn(6, generator=generator)),
        ("huge", normal * 1e30, torch.zeros(6)),
        ("tiny", normal * 1e-38, torch.zeros(6)),
        ("all equal", torch.full(shape, 1e3), torch.full((6,), -1e3)),
        ("one large", one_large, torch.zeros(6)),
        ("zero", torch.zeros(shape), torch.ones(6)),
        ("mixed rows", normal * 10.0 ** torch.arange(-20, 10, 5)[:, None, None, None], torch.zeros(6)),
    ]


@pytest.mark.parametrize(("name", "weight", "bias"), adversarial_weights())
def test_sums_are_integers_below_2_to_the_53rd(name: str, weight: Tensor, bias: Tensor) -> None:
    limit = 2**exact.MAGNITUDE_BITS
    layer = exact.Convolution(weight.numpy(), bias.numpy())
    conv = exact.integer_conv(layer, np.full(6, 4096.0), exact.FRACTION_BITS, limit, limit)
    for row, offset in zip(conv.weight.tolist(), conv.bias[:, 0].tolist(), strict=True):
        assert all(value == int(value) for value in [*row, offset])
        assert limit * sum(abs(int(value)) for value in row) + abs(int(offset)) < EXACT_SUM
        assert name in ("zero", "tiny", "mixed rows") or max(map(abs, row)) >= 2 ** (exact.WEIGHT_BITS_MIN - 1)


@pytest.mark.parametrize(
    ("weight", "bias"), [(1.0, math.inf), (math.nan, 0.0), (1e-20, 1e10), (1e-30, 1e30), (math.inf, 1.0)]
)
def test_networks_that_cannot_be_exact_are_refused(weight: float, bias: float) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1))
    with torch.no_grad():
        network[0].weight.fill_(weight)
        network[0].bias.fill_(bias)
    with pytest.raises(ConfigError, match="hyper-synthesis"):
        IntegerNetwork(list(layers_of(network)), np.ones(3))


@pytest.mark.parametrize(
    "module",
    [
        nn.GELU(),
        nn.LeakyReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3, padding=1),
    ],
)
def test_modules_that_cannot_be_exact_are_refused(module: nn.Module) -> None:
    with pytest.raises(ConfigError, match="exact"):
        IntegerNetwork(list(layers_of(nn.Sequential(module, nn.Conv2d(4, 4, 3, padding=1)))), np.ones(4))
    with pytest.raises(ConfigError, match="end in a convolution"):
        IntegerNetwork(list(layers_of(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))), np.ones(4))


def test_what_leaves_the_network_and_its_layers_is_clamped_where_it_is_documented() -> None:
    first, last = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(first.weight)
    nn.init.ones_(last.weight)
    z = np.array([-(2**20), -3, 0, 5, 2**20]).reshape(1, 1, 1, 5)

    def out(network: nn.Module, gain: float) -> list[float]:
        return IntegerNetwork(list(layers_of(network)), np.array([gain]))(z).ravel().tolist()  # type: ignore[no-any-return]

    assert out(last, 1.0) == [-(2**15), -3, 0, 5, 2**15]  # the inputs
    assert out(last, 2.0**12) == [-(2**24), -3 * 2**12, 0, 5 * 2**12, 2**24]  # the outputs
    assert out(nn.Sequential(first, last), 1.0) == [-(2**14), -3, 0, 5, 2**14]  # 2^26 units of 2^-12 between layers


@pytest.mark.parametrize("magnitude", [3, 1000, INPUT_MAX, 2**20])
def test_the_network_equals_integer_arithmetic(magnitude: int) -> None:
    """Against a reference in Python's integers, up to inputs that reach the clamps."""
    generator = torch.Generator().manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.PixelShuffle(2), nn.ReLU()), nn.Conv2d(2, 4, 1)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    integer = IntegerNetwork(list(layers_of(network)), np.array([1.0, 2.0, 300.0, 1e-3]))
    z = torch.randint(-magnitude, magnitude + 1, (2, 3, 3, 4), generator=generator).numpy()
    x = np.clip(z.astype(object), -INPUT_MAX, INPUT_MAX)
    for step in integer.steps:
        if isinstance(step, exact.Relu):
            x = np.maximum(x, 0)
        elif isinstance(step, exact.Shuffle):
            b, c, h, w = x.shape
            x = x.reshape(b, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        else:
            x = python_conv(x, step)
    assert (integer(z) == x.astype(np.float64)).all()


def python_conv(x: NDArray[np.object_], conv: exact.IntegerConv) -> NDArray[np.object_]:
    halo = conv.kernel // 2
    b, c, h, w = x.shape
    padded = np.zeros((b, c, h + 2 * halo, w + 2 * halo), dtype=object)
    padded[:, :, halo : halo + h, halo : halo + w] = x
    out = np.zeros((b, len(conv.weight), h, w), dtype=object)
    for o, i, j in itertools.product(range(len(conv.weight)), range(h), range(w)):
        window = padded[:, :, i : i + conv.kernel, j : j + conv.kernel].reshape(b, -1)
        weight = [int(v) for v in conv.weight[o].tolist()]
        shift = -round(math.log2(float(conv.scale[o, 0])))
        for n in range(b):
            total = sum(u * v for u, v in zip(window[n].tolist(), weight, strict=True)) + int(conv.bias[o, 0])
            total = total >> shift if shift >= 0 else total << -shift
            out[n, o, i, j] = min(max(total, -conv.limit), conv.limit)
    return out


@pytest.mark.parametrize("value", [math.nan, 0.5, math.inf])
def test_a_prior_of_fractions_is_refused(coder: EntropyCoder, value: float) -> None:
    z = np.zeros((1, 32, 2, 2))
    z[0, 3, 1, 1] = value
    if value == math.inf:
        assert np.isfinite(coder.prior(z).mu).all()  # clamped like any large number
    else:
        with pytest.raises(ValueError, match="integers"):
            coder.prior(z)


# --- coding ---------------------------------------------------------------------------------------------------


def some_rows(rng: np.random.Generator) -> rans.Rows:
    """Four tables, of 2 events to about 400, some as rare as can be and some as frequent."""
    rows = [np.unique([0, *rng.integers(1, rans.TOTAL, size), rans.TOTAL - 1, rans.TOTAL]) for size in (0, 2, 9, 400)]
    return rans.Rows(np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)]).astype(np.int32))


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("events", [1, 2, 3, 50, 5000])
def test_rans_round_trip(events: int) -> None:
    rng = np.random.default_rng(events)
    rows = some_rows(rng)
    chosen = rng.integers(0, 4, events)
    indexes = np.floor(rng.random(events) * (np.diff(rows.first)[chosen] - 1)).astype(np.int64)
    starts = rows.edges[rows.first[chosen] + indexes]
    frequencies = rows.edges[rows.first[chosen] + indexes + 1] - starts
    data = rans.encode(starts, frequencies)
    ideal = (16 - np.log2(frequencies)).sum() / 8
    assert ideal - 1 <= len(data) <= ideal * 1.0001 + 4
    decoder = rans.Decoder(data)
    half = events // 2
    assert (decoder.read(rows, chosen[:half]) == indexes[:half]).all()
    assert (decoder.read(rows, chosen[half:]) == indexes[half:]).all()
    decoder.finish()


@pytest.mark.skipif(not rans.COMPILED, reason="this installation has no compiled loops")
def test_compiled_loops_and_python_agree_on_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = some_rows(rng)
    for size in [*range(1, 12), 100, 5001]:
        data = bytes([int(rng.integers(1, 256)), *rng.integers(0, 256, size - 1).tolist()])
        chosen = rng.integers(0, 4, 20 * size)
        found = []
        for library in (loops.library, None):
            monkeypatch.setattr(loops, "library", library)
            decoder = rans.Decoder(data)
            found.append((decoder.read(rows, chosen), decoder._state, decoder._words))
            monkeypatch.undo()
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(*found, strict=True))


@pytest.mark.usefixtures("loops")
def test_rans_refuses_what_it_cannot_code() -> None:
    one = np.ones(1, np.int32)
    for starts, frequencies in ((one, 0 * one), (one, rans.TOTAL * one), (one, -one), (one, one[:0])):
        with pytest.raises(ValueError, match="1 to 65535"):
            rans.encode(starts, frequencies)
    rows = some_rows(np.random.default_rng(0))
    for table in (-1, 4):
        with pytest.raises(ValueError, match="no table"):
            rans.Decoder(b"abcdef").read(rows, table * one)


@pytest.mark.usefixtures("loops")
def test_nothing_takes_no_bytes(coder: EntropyCoder) -> None:
    nothing = np.zeros(0, np.int32)
    assert rans.encode(nothing, nothing) == b""
    rans.Decoder(b"").finish()
    empty = np.zeros((0, 32, 2, 2), np.int32)
    assert coder.decode_z(coder.encode_z(empty), empty.shape).shape == empty.shape


@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (32, 3, 5), (2, 32, 4, 4)])
@pytest.mark.parametrize("magnitude", [0, 1, 30, 300, 2**20, SYMBOL_MAX])
def test_z_round_trip(coder: EntropyCoder, shape: tuple[int, ...], magnitude: int) -> None:
    z = np.random.default_rng(magnitude).integers(-magnitude, magnitude + 1, shape).astype(np.int32)
    data = coder.encode_z(z)
    assert (coder.decode_z(data, shape) == z).all()
    assert abs(len(data) - coder.bits_z(z) / 8) <= 4 + 0.001 * len(data)


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("code", [-3000, -1024, 0, 1500, 4096, CODE_MAX, CODE_MIN])
def test_y_round_trip(coder: EntropyCoder, code: int, dither: bool) -> None:
    prior = coder.prior(random_z(height=5, width=7))
    symbols, offsets = random_y(coder, prior, code, dither)
    data = coder.encode_y(symbols, prior, code, offsets)
    assert (coder.decode_y(data, prior, code, offsets) == symbols).all()
    assert abs(len(data) - coder.bits_y(symbols, prior, code, offsets) / 8) <= 4 + 0.001 * len(data)


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("magnitude", [0, 1, 40, 2**20, SYMBOL_MAX])
def test_any_symbols_round_trip(coder: EntropyCoder, magnitude: int, dither: bool) -> None:
    """Also those the prior holds for impossible."""
    rng = np.random.default_rng(magnitude)
    prior = coder.prior(random_z(height=2, width=3))
    shape = tuple(prior.mu.shape)
    offsets = rng.integers(0, OFFSETS, shape).astype(np.uint8) if dither else None
    symbols = rng.integers(-magnitude, magnitude + 1, shape) * rng.choice([-1, 0, 0, 1], shape)
    symbols = np.where(coder.coded_mask(prior, 0, dither), symbols, 0).astype(np.int32)
    data = coder.encode_y(symbols, prior, 0, offsets)
    assert (coder.decode_y(data, prior, 0, offsets) == symbols).all()
    assert abs(len(data) - coder.bits_y(symbols, prior, 0, offsets) / 8) <= 4 + 0.001 * len(data)


def test_a_single_element_and_table_edges_round_trip() -> None:
    tables = prior_tables("gaussian", False)
    for table in range(0, len(tables), 7):
        index = np.array([table])
        radius = -int(tables.low[table])
        for symbol in (0, radius, -radius, radius + 1, -radius - 1, radius + 2, radius + 65537, SYMBOL_MAX):
            symbols = np.array([symbol], np.int32)
            assert tables.decode(tables.encode(index, symbols), index) == symbols


def test_the_length_of_each_symbol_is_what_it_adds() -> None:
    """Inside a table and outside it, where each doubling of the distance takes one more head bit and one more digit."""
    tables = prior_tables("gaussian", False)
    for table in range(0, len(tables), 7):
        radius = -int(tables.low[table])
        own = [
            0,
            1,
            -1,
            radius,
            -radius,
            radius + 1,
            -radius - 1,
            radius + 2,
            radius + 1000,
            -radius - 65537,
            SYMBOL_MAX,
        ]
        symbols, index = np.array(own, np.int32), np.full(len(own), table)
        lengths = tables.lengths(index, symbols)
        alone = [tables.length(index[:1], symbols[i : i + 1]) for i in range(len(own))]
        assert lengths == pytest.approx(alone, rel=1e-12)
        assert float(lengths.sum()) == pytest.approx(tables.length(index, symbols), rel=1e-12)
        for i in range(len(own)):
            many = np.repeat(symbols[i], 400)
            size = 8 * len(tables.encode(np.repeat(table, 400), many))
            assert abs(400 * lengths[i] - size) <= 32 + 0.001 * size


def test_an_element_is_coded_from_the_smallest_ratio_on(coder: EntropyCoder) -> None:
    """Where sigma / q is the least that counts, and not one step below."""
    for code, (dither, least) in itertools.product((-700, 0, 900), ((False, SKIP_ROUND), (True, SKIP_DITHER))):
        log2_sigma = np.array([code + least - 1, code + least, code + least + 1], np.int32)
        prior = Prior(np.zeros((1, 3, 1, 1), np.float32), log2_sigma.reshape(1, 3, 1, 1))
        assert coder.coded_mask(prior, code, dither).ravel().tolist() == [False, True, True]


def test_symbols_that_cannot_be_coded_are_refused(coder: EntropyCoder) -> None:
    z = random_z(height=1, width=1)
    prior = coder.prior(z)
    with pytest.raises(ValueError, match="exceeds"):
        coder.encode_z(np.full_like(z, SYMBOL_MAX + 1))
    with pytest.raises(ValueError, match="exceeds"):
        coder.encode_z(np.full_like(z, -(2**31)))
    mask = coder.coded_mask(prior, 6000, False)
    assert not mask.all()
    with pytest.raises(ValueError, match="coded_mask"):
        coder.encode_y((~mask).astype(np.int32), prior, 6000)
    for shape in ((1, 31, 2, 2), (32, 2), (32,)):
        with pytest.raises(ValueError, match="channels"):
            coder.decode_z(b"", shape)


def test_dithered_symbols_follow_the_shifted_tables(coder: EntropyCoder) -> None:
    """The code length of dithered symbols is right only if u shifts the probabilities the right way."""
    prior = coder.prior(random_z(height=6, width=6))
    code = 1500
    symbols, offsets = random_y(coder, prior, code, True)
    assert offsets is not None
    right = coder.bits_y(symbols, prior, code, offsets)
    assert right < 0.96 * coder.bits_y(symbols, prior, code, (OFFSETS - 1 - offsets).astype(np.uint8))
    scale = prior.sigma / level_value(code)
    p = special.ndtr((symbols + dither_values(offsets) + 0.5) / scale)
    p -= special.ndtr((symbols + dither_values(offsets) - 0.5) / scale)
    mask = coder.coded_mask(prior, code, True)
    assert abs(right / -np.log2(np.maximum(p[mask], 1e-9)).sum() - 1) < 5e-3


# --- damage ---------------------------------------------------------------------------------------------------


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        damaged = bytearray(data)
        match number % 6:
            case 0:
                damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            case 1:
                del damaged[int(rng.integers(len(data))) :]
            case 2:
                damaged += rng.bytes(int(rng.integers(1, 9)))
            case 3:
                damaged = bytearray(rng.bytes(int(rng.integers(0, 2 * len(data)))))
            case 4:
                at = int(rng.integers(len(data)))
                damaged[at : at + 4] = b"\xff" * 4
            case _:
                damaged = bytearray(int(rng.integers(1, 60)) * bytes([int(rng.integers(256))]))
        yield bytes(damaged)


@pytest.mark.parametrize("dither", [False, True])
def test_damaged_payloads_give_symbols_or_a_format_error(coder: EntropyCoder, dither: bool) -> None:
    z = random_z(height=1, width=2)
    prior = coder.prior(z)
    symbols, offsets = random_y(coder, prior, 0, dither)
    payloads = coder.encode_z(z), coder.encode_y(symbols, prior, 0, offsets)
    unnoticed = 0
    start = time.perf_counter()
    for part, data in enumerate(payloads):
        for damaged in mutations(data, 1500, seed=part):
            try:
                if part == 0:
                    decoded, truth = coder.decode_z(damaged, z.shape), z
                else:
                    decoded, truth = coder.decode_y(damaged, prior, 0, offsets), symbols
            except FormatError:
                continue
            assert decoded.shape == truth.shape and np.abs(decoded).max() <= SYMBOL_MAX
            unnoticed += damaged != data
    assert unnoticed < 10  # of 3000; the file's checksum is for the rest
    assert time.perf_counter() - start < 60


def test_the_worst_payload_takes_bounded_time() -> None:
    """Nothing but escapes, as long as they come."""
    tables = prior_tables("gaussian", False)
    index = np.zeros(20_000, np.int64)
    data = tables.encode(index, np.full(20_000, SYMBOL_MAX, np.int32))
    start = time.perf_counter()
    assert (tables.decode(data, index) == SYMBOL_MAX).all()
    with pytest.raises(FormatError):
        tables.decode(data[: len(data) // 2], index)
    assert time.perf_counter() - start < 5


# --- the same in every year -----------------------------------------------------------------------------------


def formula(shape: tuple[int, ...], salt: int, scale: float) -> Tensor:
    """Numbers in [-scale / 2, scale / 2) by integer arithmetic: no random generator, no library version."""
    index = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(salt)
    mixed = (index * np.uint64(2654435761)) % np.uint64(2**32)
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519)) % np.uint64(2**32)
    return torch.from_numpy((mixed.astype(np.float64) / 2**32 - 0.5) * scale).float().reshape(shape)


def test_golden() -> None:
    """Files written by any version with these numbers stay readable: a change here is a new file format."""
    compressor = ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 0), latent_channels=12, hyper_channels=10)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(compressor.named_parameters()):
            scale = 0.35 if name.startswith("h_s") and parameter.dim() == 4 else 1.5
            parameter.copy_(formula(tuple(parameter.shape), 1000 * number, scale))
    coder = EntropyCoder(entropy_model(compressor))
    z = np.round(formula((1, 10, 3, 2), 7, 12.0).numpy()).astype(np.int32)
    prior = coder.prior(z)
    shape = tuple(prior.mu.shape)
    octaves = prior.log2_sigma // LEVELS_PER_OCTAVE
    symbols = np.round(np.ldexp(formula(shape, 8, 5.0).numpy(), octaves)).astype(np.int32)
    offsets = (formula(shape, 9, 16.0).numpy() + 8).astype(np.uint8)
    y = np.where(coder.coded_mask(prior, 100, False), symbols, 0)
    dithered = np.where(coder.coded_mask(prior, 100, True), symbols, 0)
    dither = prior_tables("gaussian", True)
    found = {
        "tables": coder.tables_hash[:16],
        "mu": sha(prior.mu.astype("<f4")),
        "log2_sigma": sha(prior.log2_sigma.astype("<i4")),
        "dither tables": sha(np.concatenate([dither.low, dither.size, dither.starts]).astype("<i8")),
        "z": sha(coder.encode_z(z)),
        "y": sha(coder.encode_y(y, prior, 100)),
        "y dithered": sha(coder.encode_y(dithered, prior, 100, offsets)),
    }
    assert found == GOLDEN
    assert len(np.unique(symbols)) > 20 and (prior.log2_sigma > prior.log2_sigma.min()).mean() > 0.5


def sha(data: bytes | NDArray[np.generic]) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest()[:16]


GOLDEN = {
    "tables": "3f2b2237e1491e3a",
    "mu": "386514439aae8754",
    "log2_sigma": "7bb3fd16706da04f",
    "dither tables": "9ba9935d940316f0",
    "z": "49e7731373256bb3",
    "y": "9b78bb3df0869a0b",
    "y dithered": "db5c9ec95d9e2ab4",
}


def test_the_hash_sees_every_weight_that_matters(compressor: ResidualCompressor) -> None:
    reference = EntropyCoder(entropy_model(compressor)).tables_hash
    assert EntropyCoder(entropy_model(compressor)).tables_hash == reference
    state = {name: value.clone() for name, value in compressor.state_dict().items()}
    for name in ("h_s.0.0.weight", "h_s.4.bias", "prior_z.biases.0", "prior_z.factors.1"):
        with torch.no_grad():
            compressor.get_parameter(name).view(-1)[0] += 0.25
        assert EntropyCoder(entropy_model(compressor)).tables_hash != reference, name
        compressor.load_state_dict(state)
