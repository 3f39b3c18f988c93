"""A large picture through the codec: peak memory and seconds.

    python benchmarks/large_image.py [--weights model.safetensors] [--width 8000 --height 6000] [--output large.json]

The picture is a tiling of drawn ones. Each of compressing and decompressing runs in a process of its own, whose peak
memory is what the kernel says.
Without weights, the codec is the preset `small` with random ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

import gic
from gic.codec.checkpoints import build_codec
from gic.codec.image_codec import ImageCodec
from gic.data.synthetic import synthetic_image

SMALL = Path(__file__).resolve().parent.parent / "configs" / "models" / "small.yaml"
Q_STEP = 2.0


def load(weights: str | None) -> ImageCodec:
    """The codec to measure."""
    if weights is not None:
        return gic.load(weights)
    torch.manual_seed(0)
    return ImageCodec(build_codec(yaml.safe_load(SMALL.read_text())["model"]["codec"]))


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """Drawn pictures side by side, (height, width, 3)."""
    tiles = [np.asarray(synthetic_image(i, size=(512, 512))) for i in range(6)]
    rows = -(-height // 512)
    columns = -(-width // 512)
    grid = [np.concatenate([tiles[(r * 5 + c) % 6] for c in range(columns)], axis=1) for r in range(rows)]
    return np.ascontiguousarray(np.concatenate(grid, axis=0)[:height, :width])


def child(step: str, folder: Path, weights: str | None) -> None:
    """One step in this process; prints what it took as JSON."""
    codec = load(weights)
    if step == "compress":
        pixels = np.load(folder / "pixels.npy")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        data = codec.compress(pixels, q=Q_STEP)
        (folder / "picture.gic").write_bytes(data)
    else:
        data = (folder / "picture.gic").read_bytes()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        codec.decompress_tensor(data)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {"seconds": round(seconds, 1), "peak_gib": round(peak / 2**20, 3), "bytes": len(data)}
    print(json.dumps({**report, "gib_before": round(before / 2**20, 3)}))


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument("--width", type=int, default=8000)
    parser.add_argument("--height", type=int, default=6000)
    parser.add_argument("--output")
    parser.add_argument("--child", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), args.weights)
        return
    report: dict[str, object] = {
        "megapixels": args.width * args.height / 1e6,
        "q": Q_STEP,
        "weights": args.weights or "random",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "pixels.npy", picture(args.width, args.height))
        for step in ("compress", "decompress"):
            words = [sys.executable, "-W", "ignore", __file__, "--child", step, folder]
            words += ["--weights", args.weights] if args.weights else []
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            report[step] = json.loads(done.stdout.splitlines()[-1])
            print(step, report[step], flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
