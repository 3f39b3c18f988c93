"""Peak memory: of compressing and decompressing against megapixels, of a training step against the batch.

    python benchmarks/memory.py [--megapixels 0.4 1 2 8 24] [--batches 1 2 4 8] [--crop 128] [--output memory.json]

Pictures are coded with the weights that ship, by either runtime, on one thread. Each number is of a process of its own,
above what it held before it began (Python, PyTorch, weights, the picture): on the CPU by what Linux says of resident
memory, on a GPU by PyTorch's allocator. Floors: the pixels as they are read and as they are written, 6 bytes each, and
for training gradients and Adam's two moments, 12 bytes per parameter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import machine, parser, save, show, small_codec
from numpy.typing import NDArray

import gic
from gic.codec.image_codec import ImageCodec
from gic.data.synthetic import synthetic_image
from gic.training.objective import Objective

MIB = 2**20


def resident(field: str) -> float:
    """Resident memory of this process, now (VmRSS) or at most (VmHWM), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def peak(run: Callable[[], object], device: str) -> float:
    """MiB that a call takes at most above what is held before."""
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def picture(megapixels: float) -> NDArray[np.uint8]:
    """A square of drawn pictures, side a multiple of 64."""
    side = max(64, round((megapixels * 1e6) ** 0.5 / 64) * 64)
    tile = np.asarray(synthetic_image(0, size=(256, 256)))
    count = -(-side // 256)
    return np.ascontiguousarray(np.tile(tile, (count, count, 1))[:side, :side])


def coding(runtime: str, device: str) -> ImageCodec:
    """The codec that ships."""
    return gic.load(device=device, runtime=runtime, threads=1)  # type: ignore[arg-type]


def child(step: str, amount: float, crop: int, device: str, runtime: str) -> float:
    """One measurement, in this process."""
    torch.set_num_threads(1)
    if step == "train":
        model = small_codec().train().to(device)
        objective = Objective(reverse_weight=0.01)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        x = torch.rand(int(amount), 3, crop, crop, device=device)

        def train() -> None:
            for _ in range(2):
                optimizer.zero_grad()
                with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
                    loss = objective(model, x)["loss"]
                loss.backward()
                optimizer.step()

        return peak(train, device)
    codec = coding(runtime, device)
    pixels = picture(amount)
    if step == "compress":
        return peak(lambda: codec.compress(pixels, q=2.0), device)
    # What compressing took must not hide what decompressing takes: the file comes from another process.
    script = [sys.executable, "-W", "ignore", __file__, "--child", "file", str(amount), "--device", device]
    data = subprocess.run(script, check=True, capture_output=True).stdout
    return peak(lambda: codec.decompress(data), device)


def write_file(amount: float, device: str) -> None:
    """Compress to the standard output."""
    codec = coding("torch", device)
    sys.stdout.buffer.write(codec.compress(picture(amount), q=2.0))


def main() -> None:
    """Run all of it."""
    options = parser(__doc__)
    options.add_argument("--megapixels", type=float, nargs="*", default=[0.4, 1.0, 2.0, 8.0, 24.0])
    options.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8])
    options.add_argument("--crop", type=int, default=128)
    options.add_argument("--runtimes", nargs="*", default=["onnx", "torch"], help="for coding (default: both)")
    options.add_argument("--runtime", default="torch", help=argparse.SUPPRESS)
    options.add_argument("--child", nargs=2, metavar=("STEP", "AMOUNT"), help="one measurement, in this process")
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    if args.child:
        step, amount = args.child[0], float(args.child[1])
        if step == "file":
            write_file(amount, args.device)
        else:
            print(json.dumps(child(step, amount, args.crop, args.device, args.runtime)))
        return
    parameters = sum(p.numel() for p in small_codec().parameters())
    steps = [(step, runtime) for runtime in args.runtimes for step in ("compress", "decompress")]
    jobs = [(*step, amount) for amount in args.megapixels for step in steps]
    rows = []
    for step, runtime, amount in [*jobs, *(("train", "torch", float(batch)) for batch in args.batches)]:
        words = [sys.executable, "-W", "ignore", __file__, "--child", step, str(amount)]
        words += ["--crop", str(args.crop), "--device", args.device, "--runtime", runtime]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        floor = 12 * parameters / MIB if step == "train" else amount * 6e6 / MIB
        taken = {"peak_mib": json.loads(done.stdout), "floor_mib": floor}
        rows.append({"step": step, "runtime": runtime, "amount": amount, **taken})
        print(rows[-1], flush=True)
    columns = ("step", "runtime", "megapixels or crops", "peak MiB", "floor MiB")
    show(f"peak memory, crops of {args.crop}", columns, [tuple(row.values()) for row in rows])
    about = {**machine(args.device), "timing": "peak memory of a process of its own for each number"}
    save({"machine": about, "parameters": parameters, "crop": args.crop, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
