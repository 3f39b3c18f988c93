"""Seconds to encode and decode with ONNX Runtime, with PyTorch, and with CompressAI's models, side by side.

    python benchmarks/runtimes.py --size 768 512 --size 1920 1080 --output benchmarks/results/runtimes.json

Everything in turns, the shortest of all rounds, wall time: run it on an idle machine. gic has the weights that ship;
CompressAI's models have random ones, whose files are larger or smaller than trained ones' but whose networks take the
same time. `posterior` is the exact posterior mean, all of its evaluations, within gic's decoding with ONNX Runtime.
`side_by_side` are `gic compress` and `gic decompress` of a folder of drawn pictures with one thread and with all cores,
from start to end. `alike` are drawn pictures of many sizes, each coded by either maker and decoded by both: how many
files have other symbols, and how many pixel values differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from codec_speed import learned
from measuring import machine, save, show
from rich.progress import track
from threadpoolctl import threadpool_limits

import gic
from gic.codec.decoder import decode_symbols
from gic.codec.tiling import tiles_of
from gic.data.synthetic import synthetic_image
from gic.pictures.arrays import to_array
from gic.pictures.load import load_rgb
from gic.runtime import onnx
from gic.runtime.threads import available_threads

LEARNED = ("mbt2018-mean", "elic2022-official")


def shortest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Shortest wall time of each call, all called in every round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: min(found[1:]) for name, found in times.items()}


def posterior_seconds(decode: Callable[[], object], rounds: int) -> float:
    """Time that the posterior takes in one decoding, the shortest of all rounds."""
    plain, taken = onnx.truncated_normal_mean, [0.0]

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = plain(*args, **kwargs)
        taken[-1] += time.perf_counter() - start
        return result

    onnx.truncated_normal_mean = timed  # type: ignore[assignment]
    try:
        for _ in range(rounds):
            decode()
            taken.append(0.0)
    finally:
        onnx.truncated_normal_mean = plain
    return min(taken[:-1])


def measure(image: Any, threads: int, q: float, rounds: int, others: tuple[str, ...]) -> dict[str, Any]:
    """Times of one picture with so many threads."""
    torch.set_num_threads(threads)
    with threadpool_limits(threads, "blas"):
        codecs = {
            "gic, ONNX Runtime": gic.load(runtime="onnx", threads=threads),
            "gic, PyTorch": gic.load(device="cpu", runtime="torch"),
        }
        data = codecs["gic, PyTorch"].compress(image, q=q)
        encode: dict[str, Callable[[], object]] = {}
        decode: dict[str, Callable[[], object]] = {}
        for name, codec in codecs.items():
            encode[name] = lambda codec=codec: codec.compress(image, q=q)  # type: ignore[misc]
            decode[name] = lambda codec=codec: codec.decompress(data)  # type: ignore[misc]
        pixels = torch.from_numpy(to_array(image)).float()[None] / 255
        pixels = torch.nn.functional.pad(pixels, (0, -pixels.shape[3] % 64, 0, -pixels.shape[2] % 64), mode="replicate")
        for name in others:
            make, read = learned(name, pixels)
            with torch.no_grad():
                coded = make()
            encode[name] = torch.no_grad()(make)
            decode[name] = torch.no_grad()(lambda read=read, coded=coded: read(coded))
        found: dict[str, Any] = {"encode": shortest(encode, rounds), "decode": shortest(decode, rounds)}
        share = posterior_seconds(decode["gic, ONNX Runtime"], rounds)
    ours, theirs = "gic, ONNX Runtime", "gic, PyTorch"
    found["onnx_over_torch"] = {way: found[way][ours] / found[way][theirs] for way in ("encode", "decode")}
    found["posterior_share_of_decoding"] = share / found["decode"][ours]
    a, b = (np.asarray(codec.decompress(data)).astype(int) for codec in codecs.values())
    found["pixels"] = {"largest_difference": int(abs(a - b).max()), "share_that_differ": float((a != b).mean())}
    found["bytes"] = len(data)
    return found


def side_by_side(count: int, rounds: int) -> dict[str, Any]:
    """Wall time of the commands for a folder, with one thread and with all cores."""
    cores = available_threads()
    found: dict[str, Any] = {"pictures": count, "size": [768, 512], "cores": cores}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for number in range(count):
            synthetic_image(number, size=(512, 768)).save(folder / "in" / f"{number}.png")
        for command, words in (("compress", ["in", "-o", "gic/"]), ("decompress", ["gic", "-o", "out/"])):
            calls: dict[str, Callable[[], object]] = {}
            for threads in (1, cores):
                line = [sys.executable, "-m", "gic", command, *words, "--overwrite", "--threads", str(threads)]
                calls[str(threads)] = partial(subprocess.run, line, cwd=folder, check=True, capture_output=True)
            times = shortest(calls, rounds)
            found[command] = {**times, "times_as_fast": times["1"] / times[str(cores)]}
    return found


def alike(count: int) -> dict[str, Any]:
    """Compare the two makers' symbols and pixels."""
    makers = gic.load(runtime="onnx", threads=1), gic.load(device="cpu", runtime="torch")
    rng = np.random.default_rng(0)
    other_symbols = differ = values = largest = 0
    for number in track(range(count), "pictures of either maker"):
        size = tuple(int(side) for side in rng.integers(40, 400, 2))
        image, q = synthetic_image(number, size=size), float(rng.uniform(1, 16))
        data = makers[number % 2].compress(image, q=q, progressive=number % 3 == 0)
        file = makers[0].open(data)
        place = tiles_of(file.width, file.height, 0)[0]
        (za, _, ya, _), (zb, _, yb, _) = (decode_symbols(maker, file, 0, place) for maker in makers)
        other_symbols += not (np.array_equal(za, zb) and np.array_equal(ya, yb))
        a, b = (np.asarray(maker.decompress(data, realism=float(number % 2))).astype(int) for maker in makers)
        differ, values, largest = differ + int((a != b).sum()), values + a.size, max(largest, int(abs(a - b).max()))
    return {
        "pictures": count,
        "files_with_other_symbols": other_symbols,
        "largest_difference": largest,
        "share_of_values_that_differ": differ / values,
    }


def main() -> None:
    """Run all of it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--image", nargs="*", default=[], help="pictures (default: drawn ones of the sizes)")
    options.add_argument("--size", type=int, nargs=2, action="append", help="width and height of a drawn picture")
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--q", type=float, default=5.66)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--codecs", nargs="*", default=list(LEARNED), help="of CompressAI")
    options.add_argument("--side-by-side", type=int, default=16, help="pictures of the folder (default 16, 0: none)")
    options.add_argument("--alike", type=int, default=500, help="pictures to compare (default 500, 0: none)")
    options.add_argument("--output", help="JSON file to write")
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    sizes = args.size or ([] if args.image else [[768, 512], [1920, 1080]])
    images = [load_rgb(path).image for path in args.image]
    images += [synthetic_image(number, size=(height, width)) for number, (width, height) in enumerate(sizes)]
    about = {**machine("cpu"), "onnxruntime": onnxruntime.__version__, "timing": "wall time, shortest, in turns"}
    report: dict[str, Any] = {"machine": about, "q": args.q, "runs": []}
    for image in images:
        for threads in args.threads:
            found = measure(image, threads, args.q, args.rounds, tuple(args.codecs))
            report["runs"].append({"size": [image.width, image.height], "threads": threads, **found})
            rows = [(name, found["encode"][name], found["decode"][name]) for name in found["encode"]]
            show(f"{image.width} x {image.height}, {threads} thread(s)", ("codec", "encode s", "decode s"), rows)
            ratio, share = found["onnx_over_torch"], found["posterior_share_of_decoding"]
            print(f"ONNX Runtime / PyTorch: encode {ratio['encode']:.2f}, decode {ratio['decode']:.2f}; ", end="")
            print(f"posterior {share:.1%} of decoding; pixels {found['pixels']}")
            save(report, args.output)
    if args.side_by_side:
        report["side_by_side"] = side_by_side(args.side_by_side, args.rounds)
        print(report["side_by_side"])
    if args.alike:
        torch.set_num_threads(1)
        with threadpool_limits(1, "blas"):
            report["alike"] = alike(args.alike)
        print(report["alike"])
    save(report, args.output)


if __name__ == "__main__":
    main()
