"""Which entropy coder: speed, overhead and safety of four of them on the symbols of one picture, and of exactness.

    python benchmarks/entropy_coders.py --image kodim05.png [--weights model.safetensors] [--output coders.json]

Without weights, the prior comes from a random network whose log2 sigma is spread to a mean of -1 and a deviation of 2,
as trained ones are; z is the picture's. y is drawn from the prior, so that ideal code lengths mean something.

``constriction`` is no dependency of gic; it is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import log_ndtr

from gic.bitstream.coder import EntropyCoder, Prior, level_code
from gic.bitstream.tables import SCALE_FIRST, SCALE_LAST, SCALE_STEP, Tables, prior_tables
from gic.codec.checkpoints import load_codec
from gic.errors import FormatError, require
from gic.models.compressor import ResidualCompressor
from gic.runtime.pytorch import entropy_model

ans = require("compressai.ans", "baselines")
try:
    from constriction import stream
except ModuleNotFoundError:
    stream = None

LEVELS = (0.5, 1.0, 2.0, 4.0, 8.0)


# --- the coders: (tables, table of each symbol, symbols) -> size and times ------------------------------------


def gic_coder(tables: Tables, index: NDArray[Any], symbols: NDArray[Any]) -> tuple[int, float, float]:
    data, encode_s = timed(lambda: tables.encode(index, symbols))
    decoded, decode_s = timed(lambda: tables.decode(data, index))
    assert (decoded == symbols).all()
    return len(data), encode_s, decode_s


def compressai_coder(tables: Tables, index: NDArray[Any], symbols: NDArray[Any]) -> tuple[int, float, float]:
    cdfs = [row.tolist() for row in np.split(tables.rows.edges, tables.rows.first[1:-1])]
    sizes = [len(cdf) for cdf in cdfs]
    offsets = tables.low.tolist()

    def encode() -> bytes:
        return ans.RansEncoder().encode_with_indexes(symbols.tolist(), index.tolist(), cdfs, sizes, offsets)

    def decode() -> list[int]:
        return ans.RansDecoder().decode_with_indexes(data, index.tolist(), cdfs, sizes, offsets)

    data, encode_s = timed(encode)
    decoded, decode_s = timed(decode)
    assert decoded == symbols.tolist()
    return len(data), encode_s, decode_s


def constriction_coder(tables: Tables, index: NDArray[Any], symbols: NDArray[Any]) -> tuple[int, float, float]:
    order = np.argsort(index, kind="stable")
    groups, counts = np.unique(index, return_counts=True)
    clipped = np.minimum(np.maximum(symbols, tables.low[index]), tables.low[index] + tables.size[index] - 1)
    positions = (clipped - tables.low[index]).astype(np.int32)[order]

    def models() -> list[Any]:
        bounds = [(tables.first[t], tables.first[t + 1]) for t in groups]
        return [
            stream.model.Categorical(tables.frequencies[a:b].astype(np.float32) / 65536, perfect=False)
            for a, b in bounds
        ]

    def encode() -> NDArray[np.uint32]:
        encoder, start = stream.queue.RangeEncoder(), 0
        for model, count in zip(models(), counts.tolist(), strict=True):
            encoder.encode(positions[start : start + count], model)
            start += count
        return encoder.get_compressed()

    def decode() -> NDArray[np.int32]:
        decoder = stream.queue.RangeDecoder(data)
        return np.concatenate([decoder.decode(m, n) for m, n in zip(models(), counts.tolist(), strict=True)])

    data, encode_s = timed(encode)
    decoded, decode_s = timed(decode)
    assert (decoded == positions).all()
    return 4 * len(data), encode_s, decode_s


def lanes_coder(lanes: int) -> Callable[[Tables, NDArray[Any], NDArray[Any]], tuple[int, float, float]]:
    """NumPy over interleaved 32-bit states; no escapes, no checks: the best case."""

    def run(tables: Tables, index: NDArray[Any], symbols: NDArray[Any]) -> tuple[int, float, float]:
        events, _ = tables.events(index, symbols)
        edges = np.append(tables.starts + (np.repeat(np.arange(len(tables)), tables.size + 1) << 16), len(tables) << 16)

        def encode() -> tuple[NDArray[Any], NDArray[Any]]:
            starts, frequencies = (part[events].astype(np.int64) for part in (tables.starts, tables.frequencies))
            state = np.full(lanes, 1 << 16, np.int64)
            words = []
            for first in range((len(events) - 1) // lanes * lanes, -1, -lanes):
                f = frequencies[first : first + lanes]
                x = state[: len(f)]
                full = x >= f << 16
                words.append((x[full] & 0xFFFF).astype(np.uint16))
                x[full] >>= 16
                quotient, remainder = np.divmod(x, f)
                x[:] = (quotient << 16) + remainder + starts[first : first + lanes]
            return state, np.concatenate(words[::-1])

        def decode() -> NDArray[Any]:
            state, wide, base = final.copy(), words.astype(np.int64), index.astype(np.int64) << 16
            found = np.empty(len(index), np.int64)
            read = 0
            for first in range(0, len(index), lanes):
                b = base[first : first + lanes]
                x = state[: len(b)]
                key = b + (x & 0xFFFF)
                after = edges.searchsorted(key, side="right")
                start = edges[after - 1]
                x[:] = (edges[after] - start) * (x >> 16) + (key - start)
                low = np.flatnonzero(x < 1 << 16)
                x[low] = x[low] << 16 | wide[read : read + len(low)]
                read += len(low)
                found[first : first + lanes] = after - 1
            return found

        (final, words), encode_s = timed(encode)
        decoded, decode_s = timed(decode)
        assert (decoded == events).all()
        return 4 * lanes + 2 * len(words), encode_s, decode_s

    return run


def timed(function: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """Result and shortest time."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return result, best


# --- safety ---------------------------------------------------------------------------------------------------

_COMPRESSAI_PROBE = """
import sys
from compressai import ans
cdf = [0, 20000, 45000, 65535, 65536]
ans.RansDecoder().decode_with_indexes(bytes.fromhex(sys.argv[1]), [0] * 3_000_000, [cdf], [5], [-1])
"""


def compressai_safety() -> dict[str, str]:
    """What CompressAI's decoder does with data that are not a code."""
    result = {}
    for name, data in {
        "empty": b"",
        "one byte": b"\x01",
        "ones": b"\xff" * 64,
        "half a code": bytes(range(16)),
    }.items():
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _COMPRESSAI_PROBE, data.hex(), name],
            capture_output=True,
            timeout=120,
        )
        result[name] = "returns symbols" if run.returncode == 0 else f"ends with {run.returncode}"
    return result


def gic_safety(tables: Tables, index: NDArray[Any], symbols: NDArray[Any], count: int = 300) -> dict[str, int]:
    """What gic's decoder does with flipped and cut payloads."""
    rng = np.random.default_rng(0)
    index, symbols = index[:2000], symbols[:2000]
    data = tables.encode(index, symbols)
    result = {"refused": 0, "symbols": 0}
    for _ in range(count):
        damaged = bytearray(data)
        if rng.random() < 0.5:
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        else:
            del damaged[rng.integers(len(data)) :]
        try:
            tables.decode(bytes(damaged), index)
            result["symbols"] += 1
        except FormatError:
            result["refused"] += 1
    return result


# --- exactness ------------------------------------------------------------------------------------------------


def ideal_bits(y: NDArray[Any], q: float, mu: NDArray[Any], sigma: NDArray[Any]) -> float:
    """``-log2 P`` of the cells around rounded y under N(mu, sigma^2), float64, stable in the tails."""
    k = np.abs(np.round((y - mu) / q))
    s = np.maximum(sigma / q, 0.11)
    upper, lower = log_ndtr((0.5 - k) / s), log_ndtr((-0.5 - k) / s)
    return float(-(upper + np.log1p(-np.exp(lower - upper))).sum() / math.log(2))


def spread(compressor: ResidualCompressor, z: torch.Tensor) -> None:
    """Give a random network's log2 sigma a mean of -1 and a deviation of 2."""
    last = compressor.h_s[-1]
    m = compressor.latent_channels
    with torch.no_grad():
        log_sigma = compressor.h_s(z)[:, m:]
        last.weight[m:] *= 2 * math.log(2) / log_sigma.std()
        last.bias[m:] = 0
        log_sigma = compressor.h_s(z)[:, m:]
        last.bias[m:] = -math.log(2) - log_sigma.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with Image.open(arguments.image) as image:
        x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    x = x[:, :, : x.shape[2] // 64 * 64, : x.shape[3] // 64 * 64]
    compressor = load_codec(arguments.weights).compressor if arguments.weights else ResidualCompressor().eval()
    with torch.no_grad():
        z = compressor.h_a(compressor.g_a(x))
        if not arguments.weights:
            z = z / z.std() * 4
            spread(compressor, torch.round(z))
        z = torch.round(z)
    coder, load_s = timed(lambda: EntropyCoder(entropy_model(compressor)))
    prior, exact_s = timed(lambda: coder.prior(z.numpy()))
    with torch.no_grad():
        (mu_float, sigma_float), float_s = timed(lambda: compressor.hyper_synthesis(z))
    mu, sigma = mu_float.numpy(), sigma_float.numpy()
    exact_sigma = prior.sigma
    report: dict[str, Any] = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
        "load_s": load_s,
        "prior": {
            "exact_s": exact_s,
            "float_s": float_s,
            "mu_error_rms": float(np.sqrt(((mu - prior.mu) ** 2).mean())),
            "mu_rms": float(np.sqrt((mu**2).mean())),
            "log2_sigma_error_rms": float(np.sqrt(((np.log2(sigma) - np.log2(exact_sigma)) ** 2).mean())),
        },
        "levels": {},
        "safety": {"compressai": compressai_safety()},
    }
    print(json.dumps({key: report[key] for key in ("load_s", "prior")}, indent=2))
    rng = np.random.default_rng(0)
    y = mu.astype(np.float64) + sigma * rng.normal(size=mu.shape)
    coders: dict[str, Any] = {"gic.bitstream.rans": gic_coder, "compressai.ans": compressai_coder}
    if stream is not None:
        coders["constriction"] = constriction_coder
    coders |= {f"numpy, {lanes} states": lanes_coder(lanes) for lanes in (64, 256)}
    tables = prior_tables("gaussian", False)
    pixels = x.shape[2] * x.shape[3]
    for q in LEVELS:
        code = level_code(q)
        symbols = np.round((y - prior.mu) / q).astype(np.int32)
        mask = coder.coded_mask(prior, code, False)
        index = table_index(prior, code)[mask]
        kept = symbols[mask]
        float_bits = ideal_bits(y, q, mu, sigma)
        exact_bits = ideal_bits(y, q, prior.mu, exact_sigma)
        estimate = coder.bits_y(np.where(mask, symbols, 0).astype(np.int32), prior, code)
        _, estimate_s = timed(lambda: coder.bits_y(symbols, prior, code))  # noqa: B023
        row: dict[str, Any] = {
            "bpp": float_bits / pixels,
            "coded": len(kept),
            "of": symbols.size,
            "nonzero_but_skipped": int(np.count_nonzero(symbols[~mask])),
            "ideal_bytes_float_prior": float_bits / 8,
            "exact_prior_loss": exact_bits / float_bits - 1,
            "tables_bytes": estimate / 8,
            "tables_loss": estimate / exact_bits - 1,
            "estimate_s": estimate_s,
            "coders": {},
        }
        print(
            f"\nq = {q:g}: {row['bpp']:.3f} bpp, {len(kept)} of {symbols.size} coded "
            f"({row['nonzero_but_skipped']} nonzero skipped), ideal {float_bits / 8:.0f} bytes; "
            f"exact prior {100 * row['exact_prior_loss']:+.4f} %, tables {100 * row['tables_loss']:+.4f} %; "
            f"estimate in {1000 * estimate_s:.1f} ms"
        )
        for name, run in coders.items():
            size, encode_s, decode_s = run(tables, index, kept)
            row["coders"][name] = {"bytes": size, "encode_s": encode_s, "decode_s": decode_s}
            print(
                f"  {name:20s} {size:8d} bytes ({size - estimate / 8:+8.1f}), "
                f"encode {1000 * encode_s:7.1f} ms, decode {1000 * decode_s:7.1f} ms"
            )
        report["levels"][f"{q:g}"] = row
        report["safety"]["gic.bitstream.rans"] = gic_safety(tables, index, kept)
    print(json.dumps(report["safety"], indent=2))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")


def table_index(prior: Prior, code: int) -> NDArray[np.int32]:
    """Number of the scale nearest to sigma / q."""
    ratio = prior.log2_sigma - (code + SCALE_FIRST - SCALE_STEP // 2)
    return np.clip(ratio // SCALE_STEP, 0, (SCALE_LAST - SCALE_FIRST) // SCALE_STEP)


if __name__ == "__main__":
    main()
