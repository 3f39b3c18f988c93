"""One GPU in a few minutes: what training and coding reach, beside what the card could do.

    python benchmarks/gpu.py --train 'SHARDS/train-*.tar' [--workers 15] [--output benchmarks/results/gpu.json]

- steps of the stages `compressor` and `perceptual` as `gic fit` takes them (bfloat16 transforms, Adam, running average)
  on batches in memory, and of the first with torch.compile too: seconds, images a second, peak memory; beside the
  floor, which is the operations of the convolutions and matrix products over the measured bfloat16 rate;
- the data: crops a second from shards, waited for batch by batch, alone and as the share of a step that training
  waits for them;
- coding: pictures of 768 x 512 and 1920 x 1080 to bytes and back.

Parts that the time does not suffice for (--budget, seconds) are left out and named. Without shards drawn pictures are
used. Without LPIPS' backbone (`gic weights lpips_alex`) the stage `perceptual` is measured without that term, which the
JSON says.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import machine, operations, parser, peak_rates, save, show

import gic
from gic.codec.image_codec import ImageCodec
from gic.data.module import TrainLoader
from gic.data.reading import expand_shards
from gic.data.stream import TrainStream
from gic.data.synthetic import ensure_synthetic_shards
from gic.errors import GicError
from gic.models.codec import Codec, trainable_parameters
from gic.quality.terms import PerceptualTerm
from gic.training.module import compiler_problem
from gic.training.objective import Objective

STAGES: dict[str, dict[str, Any]] = {
    "compressor": {"trainable": ["compressor"], "objective": {"lambda_0": 6500.0}},
    "perceptual": {
        "trainable": ["reverse", "compressor.g_s"],
        "objective": {
            "lambda_0": 1950.0,
            "rate_weight": 0.0,
            "reverse_weight": 0.01,
            "realism": [0.0, 1.0, 1.0],
            "steps": 2,
        },
    },
}


def lpips() -> dict[str, PerceptualTerm]:
    """LPIPS as a term, if its weights are at hand."""
    from gic.quality.terms import LPIPS

    try:
        return {"lpips": LPIPS(weight=4.0)}
    except GicError as error:
        print(f"without LPIPS: {error}")
        return {}


class Step:
    """One optimiser step of a stage, as `gic fit` takes it."""

    def __init__(self, codec: Codec, stage: str, terms: dict[str, PerceptualTerm]) -> None:
        self.codec = codec.train()
        for name, learns in trainable_parameters(codec, STAGES[stage]["trainable"]).items():
            codec.get_parameter(name).requires_grad_(learns)
        self.parameters = [p for p in codec.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-5, fused=True)
        self.objective = Objective(**STAGES[stage]["objective"], terms=terms if stage == "perceptual" else None)

    def loss(self, image: torch.Tensor) -> torch.Tensor:
        """Loss of a batch, uint8 (B, 3, h, w)."""
        device = self.average[0].device
        x = image.to(device, non_blocking=True).float() / 255
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "cpu"):
            return self.objective(self.codec, x)["loss"]

    def __call__(self, image: torch.Tensor) -> None:
        """Take it."""
        self.optimizer.zero_grad()
        self.loss(image).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 0.01)


def wait(device: str) -> None:
    """Until the device has finished."""
    if device != "cpu":
        torch.cuda.synchronize()


def timed(step: Callable[[torch.Tensor], None], batches: Iterator[Any], steps: int, device: str) -> tuple[float, float]:
    """Seconds a step, and the share of them that passed in waiting for batches."""
    for _ in range(2):
        step(next(batches)["image"])
    wait(device)
    waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
        before = time.perf_counter()
        image = next(batches)["image"]
        waited += time.perf_counter() - before
        step(image)
    wait(device)
    total = time.perf_counter() - start
    return total / steps, waited / total


def endless(image: torch.Tensor) -> Iterator[Any]:
    """The same batch again and again."""
    while True:
        yield {"image": image}


def coding(codec: ImageCodec, width: int, height: int, seconds: float) -> dict[str, float]:
    """Pictures of a size per second, to bytes and back, at q = 4."""
    rows, columns = torch.meshgrid(torch.linspace(0, 40, height), torch.linspace(0, 60, width), indexing="ij")
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    pixels = ((0.5 + 0.3 * torch.sin(rows) * torch.cos(columns) + 0.1 * (noise - 0.5)) * 255).round().to(torch.uint8)
    found: dict[str, float] = {}
    data = b""
    for name in ("encode", "decode"):
        count, start = -1, 0.0
        while count < 1 or time.perf_counter() - start < seconds / 2:
            if count == 0:  # one that does not count
                start = time.perf_counter()
            if name == "encode":
                data = codec.compress(pixels, q=4.0, tile=0)
            else:
                codec.decompress_tensor(data)
            count += 1
        found[f"{name}_pictures_per_second"] = count / (time.perf_counter() - start)
    return found


def main() -> None:
    """Run all of it, as far as the time goes."""
    options = parser(__doc__)
    options.add_argument("--train", help="shards (default: drawn pictures)")
    options.add_argument("--crop", type=int, default=256)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--steps", type=int, default=20, help="steps that count (default 20)")
    options.add_argument("--workers", type=int, default=15)
    options.add_argument("--cache-mb", type=int, default=1000)
    options.add_argument("--budget", type=float, default=240.0, help="seconds for all of it (default 240)")
    options.add_argument("--no-compile", action="store_true")
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    began, device = time.perf_counter(), args.device
    left_out: list[str] = []

    def time_for(part: str, seconds: float) -> bool:
        if time.perf_counter() - began + seconds <= args.budget:
            return True
        left_out.append(part)
        print(f"no time left for: {part}", flush=True)
        return False

    torch.manual_seed(0)
    image = torch.randint(0, 256, (args.batch, 3, args.crop, args.crop), dtype=torch.uint8, device=device)
    rates = peak_rates(device)
    peak = rates["float32" if device == "cpu" else "bfloat16"]
    terms = lpips()
    steps: dict[str, dict[str, float]] = {}

    def measure(name: str, step: Step, batches: Iterator[Any]) -> None:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        taken, waited = timed(step, batches, args.steps, device)
        memory = torch.cuda.max_memory_allocated() if device != "cpu" else 0
        steps[name] = {
            "seconds": taken,
            "images_per_second": args.batch / taken,
            "floor_seconds": floors[name.split(",")[0]],
            "waiting_for_data": waited,
            "peak_memory_gb": memory / 1e9,
        }
        print(f"{name}: {steps[name]}", flush=True)

    floors: dict[str, float] = {}
    for stage in STAGES:
        step = Step(gic.load(device=device, runtime="torch").model, stage, terms)
        floors[stage] = operations(lambda step=step: step.loss(image).backward()) / peak
        measure(stage, step, endless(image))
    with tempfile.TemporaryDirectory() as name:
        if args.train is None:
            ensure_synthetic_shards(Path(name), train=64, val=1, progress=False)
        shards = expand_shards(args.train or sorted(str(path) for path in Path(name).glob("train-*.tar")))
        data: dict[str, float] = {}
        if time_for("data", 30):
            stream = TrainStream(
                shards,
                crop_size=args.crop,
                batch_size=args.batch,
                batches_per_epoch=10**6,
                shuffle_buffer=64,
                cache_mb=args.cache_mb,
            )
            batches = iter(TrainLoader(stream, num_workers=args.workers, pin_memory=device != "cpu"))
            seconds, _ = timed(lambda image: None, batches, max(args.steps, 4 * args.workers), device)
            data = {"crops_per_second": args.batch / seconds, "workers": args.workers, "cache_mb": args.cache_mb}
            print(f"data: {data}", flush=True)
            measure(
                "compressor, from shards",
                Step(gic.load(device=device, runtime="torch").model, "compressor", {}),
                batches,
            )
            batches.close()  # type: ignore[attr-defined]
    pictures: dict[str, dict[str, float]] = {}
    codec = gic.load(device=device)
    for width, height in ((768, 512), (1920, 1080)):
        if time_for(f"{width} x {height}", 15):
            pictures[f"{width}x{height}"] = coding(codec, width, height, 10 if device != "cpu" else 1)
            print(f"{width} x {height}: {pictures[f'{width}x{height}']}", flush=True)
    if not args.no_compile and time_for("torch.compile", 60):
        problem = compiler_problem(torch.device(device))
        if problem:
            left_out.append(f"torch.compile: {problem}")
        else:
            step = Step(gic.load(device=device, runtime="torch").model, "compressor", {})
            parts = step.codec.compressor
            for network in (parts.g_a, parts.g_s, parts.h_a, parts.h_s, step.codec.reverse):
                network.compile()
            before = time.perf_counter()
            step(image)
            wait(device)
            measure("compressor, compiled", step, endless(image))
            steps["compressor, compiled"]["seconds_of_compiling"] = time.perf_counter() - before
    rows = [
        (name, s["seconds"], s["images_per_second"], s["seconds"] / s["floor_seconds"]) for name, s in steps.items()
    ]
    show(f"crop {args.crop}, batch {args.batch}, {device}", ("step", "s", "images/s", "of the floor"), rows)
    report = {
        "machine": machine(device) | {"timing": "wall time between synchronisations of the device"},
        "crop": args.crop,
        "batch": args.batch,
        "rates_per_second": rates,
        "lpips": bool(terms),
        "steps": steps,
        "data": data,
        "coding": pictures,
        "left_out": left_out,
        "seconds": time.perf_counter() - began,
    }
    save(report, args.output)


if __name__ == "__main__":
    main()
