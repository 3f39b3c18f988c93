"""The finer levels of a progressive file: they nest and follow their tables; first bytes give first symbols."""

from __future__ import annotations

import hashlib
import itertools
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from small import lapped_model, picture, small_codec, small_model

from gic.bitstream import rans
from gic.bitstream.coder import EntropyCoder, Prior, level_field, level_value
from gic.bitstream.refinement import STEP, Refinement, _thirds
from gic.bitstream.tables import SCALE_FIRST, SCALE_STEP, SYMBOL_MAX, Tables, prior_tables, scales
from gic.errors import FormatError
from gic.method import sde
from gic.models.lapped import LappedTransform
from gic.models.lot import importance
from gic.runtime.pytorch import entropy_model


class Scene(NamedTuple):
    """A tile at two levels."""

    refinement: Refinement
    coarse: NDArray[np.int32]
    symbols: NDArray[np.int32]
    known: NDArray[np.bool_]
    coded: NDArray[np.bool_]


@cache
def coder(lapped: bool = True) -> EntropyCoder:
    return EntropyCoder(entropy_model((lapped_model(True) if lapped else small_model()).compressor))


def scene(seed: int = 0, side: int = 8, field: bool = False, wild: bool = False, channels: int = 48) -> Scene:
    """A latent whose elements range from those not coded at all to wide ones; ``wild`` with symbols far outside."""
    rng = np.random.default_rng(seed)
    shape = (1, channels, side, side)
    log2_sigma = rng.integers(-4400, 4000, shape).astype(np.int32)
    code = rng.integers(-1500, 1000, shape).astype(np.int32) if field else 200
    residual = rng.laplace(size=shape) * 2 ** (log2_sigma / 1024 - 0.5)
    if wild:
        residual *= np.where(rng.random(shape) < 0.05, 1000.0, 1.0)
    # Random numbers that float32 holds in full, so that no rounding moves them across the border of a cell.
    mu = np.round(rng.normal(size=shape) * 2**11) / 2**11
    y = mu + residual
    prior = Prior(mu, log2_sigma)
    known, coded = (coder().coded_mask(prior, code + more, False) for more in (STEP, 0))
    fine, coarser = (
        sde.quantize(y, level_field(codes).astype(float) if field else level_value(codes), mu).astype(np.int32)
        for codes in (code, code + STEP)
    )
    coarse = np.where(known, coarser, 0)
    fine = np.where(coded, fine, 0)
    fine = np.where(known, fine.clip(3 * coarse - 1, 3 * coarse + 1), fine).astype(np.int32)
    return Scene(coder().refinement(prior, code, coarse), coarse, fine, known, coded)


# --- nesting --------------------------------------------------------------------------------------------------


def test_three_codes_are_one_level_three_times_as_fine() -> None:
    assert abs(level_value(STEP) / 3 - 1) < 1.1e-6


@pytest.mark.parametrize("code", [-1000, 0, 1234])
def test_symbols_lie_in_the_cell_of_their_coarser_ones(code: int) -> None:
    generator = torch.Generator().manual_seed(code)
    mu = torch.randn(200_000, 1, generator=generator)
    y = mu + 20 * torch.randn(200_000, 1, generator=generator)
    fine, coarse = (sde.quantize(y, level_value(codes), mu) for codes in (code, code + STEP))
    off = (fine - 3 * coarse).abs()
    assert float(off.max()) <= 2
    assert float((off > 1).float().mean()) < 1e-4  # at the border of a cell, where the encoder moves them
    assert len(off.unique()) >= 2


def test_an_element_at_the_border_of_a_cell_is_coded_in_the_one_that_is_transmitted() -> None:
    """Ties are rounded to even numbers, 1.5 to 2, but 4.5 to 4 and not to 5."""
    codec = small_codec()
    encoding = codec.encoding(picture(64, 64), progressive=True)
    (tile,) = encoding.tiles
    code = codec.coarsest - STEP
    ties = (np.arange(tile.y.size) % 9 - 4.5).reshape(tile.y.shape).astype(np.float32)
    encoding.tiles[0] = tile._replace(y=tile.prior.mu + np.float32(level_value(code + STEP)) * ties)
    off = encoding._symbols(0, code) - 3 * encoding._symbols(0, code + STEP)
    assert np.abs(off).max() > 1
    *_, (_, nested, _) = encoding._levels(0, code)
    assert np.abs(nested - 3 * encoding._symbols(0, code + STEP)).max() == 1
    codec.decompress(encoding.at(code), sampler="mean")


# --- coding ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("wild", [False, True])
@pytest.mark.parametrize("field", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_symbols_round_trip_in_any_pieces(seed: int, field: bool, wild: bool) -> None:
    refinement, coarse, symbols, known, coded = scene(seed, field=field, wild=wild)
    count = len(refinement)
    assert count == int(coded.sum()) and 0.2 < known.mean() < coded.mean() < 1
    assert not wild or (symbols[coded & ~known] != 0).any()  # first coded at this level
    decoded = np.where(coded, 3 * coarse, 0)
    for start, stop in itertools.pairwise([0, 1, 2, count // 3, count]):
        at, found = refinement.decode(refinement.encode(symbols, start, stop), start, stop)
        assert np.array_equal(at, refinement.order[start:stop])
        decoded.flat[at] = found
    assert np.array_equal(decoded, symbols)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize(("seed", "side", "wild"), [(0, 2, False), (1, 3, True), (2, 3, False), (3, 1, True)])
def test_the_first_bytes_give_the_first_symbols_and_never_a_wrong_one(seed: int, side: int, wild: bool) -> None:
    refinement, _, symbols, _, _ = scene(seed, side, wild=wild)
    for start in (0, len(refinement) // 2):
        stop = len(refinement)
        data = refinement.encode(symbols, start, stop)
        bits = np.cumsum(refinement.lengths(symbols)[start:stop])
        before = 0
        for cut in range(len(data)):
            at, found = refinement.decode(data[:cut], start, stop, len(data))
            assert np.array_equal(found, symbols.flat[at])
            own = np.flatnonzero(np.isin(refinement.order[start:stop], at))
            assert len(own) == len(at) and np.array_equal(refinement.order[start:stop][own], at)
            if not wild:
                assert np.array_equal(own, np.arange(len(own)))
                # As many as the bytes can tell: all but those in the coder's state of 5 bytes, the last of 2.
                assert len(own) >= np.searchsorted(bits, 8 * cut - 56)
            assert len(own) >= before and (len(own) < stop - start or cut > len(data) - 8)
            before = len(own)
            assert np.array_equal(refinement.decode(data[: rans.usable(cut, len(data))], start, stop, len(data))[0], at)


def test_elements_outside_their_table_wait_for_the_end_of_the_chunk() -> None:
    """Their distances are the last bytes of it."""
    refinement, _, symbols, known, _ = scene(1, 4, wild=True)
    data = refinement.encode(symbols, 0, len(refinement))
    at, found = refinement.decode(data[:-1], 0, len(refinement), len(data))
    missing = np.setdiff1d(refinement.order, at)
    assert 0 < len(missing) < 0.1 * len(refinement) and not known.flat[missing].any()
    assert np.abs(symbols.flat[missing]).min() > 1
    assert np.array_equal(found, symbols.flat[at])


@pytest.mark.parametrize("field", [False, True])
def test_lengths_are_those_of_the_bytes(field: bool) -> None:
    for seed in range(3):
        refinement, _, symbols, _, _ = scene(seed, 12, field=field, wild=seed == 2)
        bits = refinement.lengths(symbols)
        assert len(bits) == len(refinement) and bits.min() > 0
        for start, stop in ((0, len(bits)), (5, 6), (len(bits) // 2, len(bits))):
            size = len(refinement.encode(symbols, start, stop))
            assert abs(size - bits[start:stop].sum() / 8) <= 4 + 0.001 * size


@pytest.mark.parametrize("step", [-2, 2, 1000])
def test_a_symbol_outside_its_cell_is_no_refinement(step: int) -> None:
    refinement, coarse, symbols, known, _ = scene()
    damaged = symbols.copy()
    index = np.flatnonzero(known)[7]
    damaged.flat[index] = 3 * coarse.flat[index] + step
    with pytest.raises(ValueError, match="cell of its coarser"):
        refinement.encode(damaged, 0, len(refinement))
    new = refinement.order[~known.flat[refinement.order]][0]
    symbols.flat[new] = SYMBOL_MAX + 1
    with pytest.raises(ValueError, match="exceeds"):
        refinement.encode(symbols, 0, len(refinement))


@pytest.mark.parametrize("step", [-3, -2, 2, 100])
def test_a_code_of_a_symbol_outside_its_cell_is_damaged(step: int) -> None:
    refinement, _, symbols, known, _ = scene()
    steps = refinement._events(symbols)[:90]
    steps[np.flatnonzero(known.flat[refinement.order])[5]] = step
    data = _thirds("gaussian").tables.encode(refinement._table[:90], steps)
    with pytest.raises(FormatError, match="a refinement is too large"):
        refinement.decode(data, 0, 90)


def test_symbols_that_do_not_fit_in_32_bits_are_damage_and_never_wrap_around() -> None:
    """Damaged files of many levels: each makes three of one."""
    yes, ratio = np.ones((1, 1, 1, 4), bool), np.full((1, 1, 1, 4), 1000, np.int32)
    largest = (2**31 - 2) // 3
    coarse = np.array([largest, -largest, 5, 0], np.int32).reshape(yes.shape)
    symbols = 3 * coarse + np.array([1, -1, 1, -1], np.int32)
    data = Refinement(ratio, coarse, yes, yes, 0 * ratio).encode(symbols, 0, 4)
    at, found = Refinement(ratio, coarse, yes, yes, 0 * ratio).decode(data, 0, 4)
    assert np.array_equal(found, symbols.flat[at])
    with pytest.raises(FormatError, match="a symbol is too large"):
        Refinement(ratio, coarse + 1, yes, yes, 0 * ratio).decode(data, 0, 4)


def test_garbage_gives_symbols_in_their_cells_or_a_format_error() -> None:
    rng = np.random.default_rng(0)
    refinement, coarse, _, known, _ = scene(side=3)
    outcomes = set()
    for number in range(400):
        data = rng.bytes(int(rng.integers(1, 200)))
        size = None if number % 2 else len(data) + int(rng.integers(1, 50))
        stop = int(rng.integers(1, 1 + len(refinement)))
        try:
            at, found = refinement.decode(data, 0, stop, size)
        except FormatError:
            outcomes.add("refused")
            continue
        outcomes.add("decoded")
        assert len(at) == len(found) <= stop
        inside = known.flat[at]
        assert np.abs(found - 3 * coarse.flat[at])[inside].max(initial=0) <= 1
    assert outcomes == {"refused", "decoded"}


# --- probabilities and order ----------------------------------------------------------------------------------


def test_the_thirds_are_those_of_a_laplace_distribution_and_sum_to_one() -> None:
    tables = _thirds("gaussian").tables
    assert (np.add.reduceat(tables.frequencies, tables.first[:-1]) == rans.TOTAL).all()
    assert tables.frequencies.min() >= 1
    for number, s in enumerate(scales()):
        law = stats.laplace(scale=s / np.sqrt(2))
        for away, first in ((0, -1.5), (1, 1.5)):
            edges = law.sf(np.arange(4) + first)  # of the whole cell, in units of q: three thirds
            p = -np.diff(edges) / (edges[0] - edges[-1])
            row = slice(*tables.first[2 * number + away : 2 * number + away + 2])
            assert np.abs(tables.frequencies[row][:3] / rans.TOTAL - p).max() < 1e-4


def test_golden() -> None:
    """Files written by any version with these numbers stay readable: a change here is a new file format."""
    ours = _thirds("gaussian")
    tables = ours.tables
    digest = hashlib.sha256()
    for numbers in (tables.low, tables.size, tables.starts, ours.value, np.array(importance(192))):
        digest.update(numbers.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "86cce86247c10d88"
    assert ours.value.reshape(-1, 2)[[0, 60, 179]].tolist() == [[-51, -43], [-18, -15], [-13, -12]]


def test_numbers_of_tables_and_values_lie_far_from_where_they_would_be_rounded_otherwise() -> None:
    """So that any accurate arithmetic finds them."""
    away, at_mu = [], []
    for s in scales():
        t = np.exp(-np.sqrt(2) / s)
        p = np.array([1, t, t * t]) / (1 + t + t * t)
        side = (t**0.5 - t**1.5) / 2 / (1 - t**1.5)
        away.append(p)
        at_mu.append([side, 1 - 2 * side, side])
    cumulative = np.cumsum([away, at_mu], 2)[..., :2] * (rans.TOTAL - 4) + 0.5
    assert np.abs(cumulative - np.round(cumulative)).min() > 1e-4


def test_the_value_is_the_squared_error_saved_per_bit() -> None:
    value = _thirds("gaussian").value.reshape(-1, 2)
    for number in range(16, len(value), 9):
        s = float(scales()[number])
        for away, first in ((0, -1.5), (1, 1.5)):
            y = np.linspace(first, first + 3, 30_001)[:-1] + 0.5e-4
            weight = np.exp(-np.sqrt(2) * (np.abs(y) - np.abs(y).min()) / s)
            third = (y - first).astype(int)
            p = np.bincount(third, weight)
            centre = np.bincount(third, weight * y) / p
            p /= p.sum()
            saved = (p * centre**2).sum() - (p * centre).sum() ** 2
            entropy = -(p * np.log2(p)).sum()
            assert abs(value[number, away] - 10 * np.log2(saved / entropy)) < 0.52


def test_elements_first_coded_at_the_finer_level_have_the_tables_of_a_first_level() -> None:
    refinement, _, symbols, known, _ = scene()
    new = ~known.flat[refinement.order]
    assert 10 < new.sum() < len(new)
    ours: Tables = _thirds("gaussian").tables
    first = prior_tables("gaussian", False)
    assert np.array_equal(ours.size[-len(first) :], first.size)
    row = slice(ours.first[-1 - len(first)], None)
    assert np.array_equal(ours.frequencies[row], first.frequencies)
    # sigma / q lies below 0.055 x 3 there: nearly all are 0, and cost little.
    assert refinement.lengths(np.where(known, symbols, 0))[new].max() < 0.5


def test_a_laplace_prior_has_first_tables_of_its_own_and_the_same_thirds() -> None:
    ours, gaussian = _thirds("laplace"), _thirds("gaussian")
    wider = len(scales("laplace")) - len(scales())  # it has further, smaller scales
    assert wider == 16 and np.array_equal(ours.value[2 * wider :], gaussian.value)
    first = prior_tables("laplace", False)
    assert np.array_equal(ours.tables.size[-len(first) :], first.size)
    assert np.array_equal(ours.tables.frequencies[slice(ours.tables.first[-1 - len(first)], None)], first.frequencies)
    thirds = ours.tables.frequencies[: ours.tables.first[2 * len(scales("laplace"))]].reshape(-1, 4)
    assert np.array_equal(thirds[2 * wider :], gaussian.tables.frequencies[: 8 * len(scales())].reshape(-1, 4))


def test_the_most_valuable_come_first_and_equal_ones_in_their_order() -> None:
    refinement, _, _, _, coded = scene()
    assert (np.diff(refinement.value) <= 0).all() and len(np.unique(refinement.value)) > 20
    equal = np.diff(refinement.value) == 0
    assert (np.diff(refinement.order)[equal] > 0).all()
    assert np.array_equal(np.sort(refinement.order), np.flatnonzero(coded))


def test_the_order_follows_from_what_both_sides_know() -> None:
    rng = np.random.default_rng(0)
    ratio = rng.integers(-3000, 4000, (1, 4, 5, 6)).astype(np.int32)
    coarse = rng.integers(-2, 3, ratio.shape).astype(np.int32)
    all_ = np.ones(ratio.shape, bool)
    weight = rng.integers(-20, 40, ratio.shape)
    one = Refinement(ratio, coarse, all_, all_, weight)
    for other in (-coarse, 7 * coarse):  # only whether it is 0 counts
        assert np.array_equal(Refinement(ratio, other, all_, all_, weight).order, one.order)
    assert not np.array_equal(Refinement(ratio, 1 - np.abs(coarse).clip(0, 1), all_, all_, weight).order, one.order)
    # An error that counts ten tenths more is one of twice the value.
    more = Refinement(ratio, coarse, all_, all_, weight + 10)
    assert np.array_equal(more.order, one.order) and np.array_equal(more.value, one.value + 10)
    first = Refinement(ratio, coarse, all_, all_, weight + 1000 * (np.arange(120).reshape(ratio.shape) == 77))
    assert first.order[0] == 77
    # Elements of equal scale and importance: the scale number is all of sigma / q that is used.
    middle = (ratio - SCALE_FIRST) // SCALE_STEP * SCALE_STEP + SCALE_FIRST
    assert np.array_equal(
        Refinement(middle + 31, coarse, all_, all_, weight).order,
        Refinement(middle - 32, coarse, all_, all_, weight).order,
    )


def test_the_importance_of_an_element_is_that_of_its_channel_and_place() -> None:
    """Without the lapped transform all are alike."""
    shape = (1, 48, 8, 12)
    prior = Prior(np.zeros(shape, np.float32), np.zeros(shape, np.int32))
    zeros = np.zeros(shape, np.int32)
    refinement = coder().refinement(prior, 0, zeros)
    ours = np.empty(zeros.size, int)
    ours[refinement.order] = refinement.value
    numbers = np.array(importance(48)).reshape(48, 4, 4)
    expected = np.tile(numbers, (1, 2, 3))
    assert np.array_equal(ours.reshape(48, 8, 12) - expected, np.full_like(expected, ours[0] - expected[0, 0, 0]))
    shape = (1, 8, 8, 12)
    prior = Prior(np.zeros(shape, np.float32), np.zeros(shape, np.int32))
    assert len(np.unique(coder(False).refinement(prior, 0, np.zeros(shape, np.int32)).value)) == 1


def test_importance_is_the_squared_norm_of_the_basis_functions() -> None:
    """In tenths of an octave, up to one constant; one tenth is lost by rounding, and a little more with the colours."""
    channels = 60
    transform, numbers = LappedTransform(channels), np.array(importance(channels))
    assert {number // 256 for number in transform.kept} == {0, 1, 2}
    measured = np.empty(numbers.shape)
    for place in range(16):
        unit = torch.zeros(channels, channels, 12, 12)  # each in a block whose neighbours are whole
        unit[torch.arange(channels), torch.arange(channels), 4 + place // 4, 4 + place % 4] = 1
        measured[:, place] = 10 * np.log2((transform.inverse(unit) ** 2).flatten(1).sum(1).numpy())
    difference = measured - numbers
    assert difference.max() - difference.min() < 1.1
    assert np.ptp(measured) > 60
