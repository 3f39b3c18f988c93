"""Images per second of `gic fit`'s step against a bare PyTorch loop of the same model, and against CompressAI's.

    python benchmarks/train_speed.py [--train 'SHARDS/train-*.tar'] [--output train_speed.json]

The stage is the compressor's (rate and distortion). All take turns in one process: a loop with nothing around it, the
same step under Lightning on batches in memory, with logging (every tenth step), with the running average of the
weights, and with data from shards; each row is one more thing, and what it adds is its cost. Without shards those that
gic draws are used. CompressAI's is mbt2018-mean (128, 192) with its loss and its two optimisers.
On a busy machine the differences of the rows drown in noise. So what Lightning and logging cost, which does not depend
on the model, is measured a second time, around a model of almost nothing, as a share of the bare loop's step.
Floor: the operations of the model's convolutions and matrix products over the measured rate of a matrix product.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from measuring import machine, method, operations, parser, peak_rates, save, show, small_codec

from gic.data.module import ImageData
from gic.errors import require
from gic.models.codec import Codec
from gic.models.compressor import ResidualCompressor
from gic.models.reverse import ReverseUNet
from gic.training.ema import EMA
from gic.training.module import LitCodec
from gic.training.objective import Objective
from gic.training.schedule import WarmupCosine

UNCOUNTED = 2  # steps at the start of each turn


def now(device: str) -> float:
    """A clock that stands still while others compute; on a GPU the time at which it has finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Clock(L.Callback):
    """The time at the end of every step that counts; on a GPU only of the first and the last, so as not to wait."""

    def __init__(self, steps: int, device: str) -> None:
        self.steps, self.device, self.done = steps, device, 0
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Look at the clock."""
        self.done += 1
        if self.done >= UNCOUNTED and (self.device == "cpu" or self.done in (UNCOUNTED, UNCOUNTED + self.steps)):
            self.times.append(now(self.device))

    @property
    def seconds(self) -> list[float]:
        """Seconds per step, one by one, or the mean."""
        steps = 1 if self.device == "cpu" else self.steps
        return [(after - before) / steps for before, after in pairwise(self.times)]


class InMemory:
    """A loader that costs nothing: the same batches again and again."""

    def __init__(self, batches: list[dict[str, Any]], count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.batches[i % len(self.batches)] for i in range(self.count))


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of configs/base.yaml."""
    return torch.optim.Adam(parameters, lr=5e-4, fused=True)


def bare(codec: Any, batches: list[dict[str, Any]], steps: int, device: str) -> list[float]:
    """Seconds per step with nothing around it."""
    objective = Objective()
    parameters = [p for name, p in codec.named_parameters() if name.startswith("compressor.")]
    for name, parameter in codec.named_parameters():
        parameter.requires_grad_(name.startswith("compressor."))
    optimizer = adam(parameters)
    clock = Clock(steps, device)
    for number in range(UNCOUNTED + steps):
        x = batches[number % len(batches)]["image"].to(device).float() / 255
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            loss = objective(codec, x)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        clock.on_train_batch_end()
    return clock.seconds


def fitted(
    codec: Any, data: Any, steps: int, device: str, folder: Path, *, log: bool = False, average: bool = False
) -> list[float]:
    """Seconds per step under Lightning."""
    clock = Clock(steps, device)
    trainer = L.Trainer(
        accelerator="gpu" if device != "cpu" else "cpu",
        devices=1,
        max_steps=UNCOUNTED + steps,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=TensorBoardLogger(folder) if log else False,
        log_every_n_steps=10,
        callbacks=[clock, EMA(0.998)] if average else [clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    lit = LitCodec(codec, Objective(), adam, WarmupCosine(), trainable=["compressor"])
    lit._log_hyperparams = False  # they are objects here and not a config: writing them down would take minutes
    lit.print = lambda *_, **__: None  # type: ignore[method-assign]
    if isinstance(data, L.LightningDataModule):
        trainer.fit(lit, datamodule=data)
    else:
        trainer.fit(lit, InMemory(data, UNCOUNTED + steps))
    return clock.seconds


def compressai(model: Any, batches: list[dict[str, Any]], steps: int, device: str) -> list[float]:
    """Seconds per step of CompressAI's model, loss and optimisers."""
    require("compressai", "baselines")
    from compressai.losses import RateDistortionLoss

    criterion = RateDistortionLoss(lmbda=0.0130)
    quantiles = [p for name, p in model.named_parameters() if name.endswith(".quantiles")]
    parameters = [p for name, p in model.named_parameters() if not name.endswith(".quantiles")]
    optimizer, auxiliary = torch.optim.Adam(parameters, lr=1e-4), torch.optim.Adam(quantiles, lr=1e-3)
    clock = Clock(steps, device)
    for number in range(UNCOUNTED + steps):
        x = batches[number % len(batches)]["image"].to(device).float() / 255
        optimizer.zero_grad()
        auxiliary.zero_grad()
        criterion(model(x), x)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        model.aux_loss().backward()
        auxiliary.step()
        clock.on_train_batch_end()
    return clock.seconds


def overhead(device: str, folder: Path, rounds: int, steps: int = 30) -> float:
    """Seconds per step that Lightning and logging add, found with a model of a few thousand weights."""
    compressor = ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 0), latent_channels=8, hyper_channels=4)
    codec = Codec(compressor, ReverseUNet(8, widths=(8,), blocks=(1,))).train().to(device)
    batches = [{"image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "key": ["0"], "skipped": {}}]
    around: list[float] = []
    alone: list[float] = []
    for _ in range(rounds):
        alone += bare(codec, batches, steps, device)
        around += fitted(codec, batches, steps, device, folder, log=True)
    return sum(sorted(times)[(len(times) - 1) // 4] * sign for times, sign in ((around, 1), (alone, -1)))


def main() -> None:
    """Run all of it."""
    options = parser(__doc__)
    options.add_argument("--train", help="shards (default: drawn pictures)")
    options.add_argument("--crop", type=int, default=128)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--steps", type=int, default=6, help="steps that count, in each turn (default 6)")
    options.add_argument("--workers", type=int, default=1)
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    device, steps = args.device, args.steps
    torch.manual_seed(0)
    image = torch.randint(0, 256, (args.batch, 3, args.crop, args.crop), dtype=torch.uint8)
    batches = [{"image": image, "key": [str(i) for i in range(args.batch)], "skipped": {}}]
    codec = small_codec().train().to(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        require("compressai", "baselines")
        from compressai.models import MeanScaleHyperprior

        other = MeanScaleHyperprior(128, 192).train().to(device)
        data = ImageData(
            args.train,
            args.train,
            synthetic_dir=str(folder / "pictures"),
            crop_size=args.crop,
            batch_size=args.batch,
            batches_per_epoch=UNCOUNTED + steps,
            num_workers=args.workers,
        )
        runs: dict[str, Callable[[], list[float]]] = {
            "bare loop": lambda: bare(codec, batches, steps, device),
            "under Lightning": lambda: fitted(codec, batches, steps, device, folder),
            "and logging": lambda: fitted(codec, batches, steps, device, folder, log=True),
            "and the running average": lambda: fitted(codec, batches, steps, device, folder, log=True, average=True),
            "and data from shards": lambda: fitted(codec, data, steps, device, folder, log=True, average=True),
            "CompressAI mbt2018-mean": lambda: compressai(other, batches, steps, device),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                times[name] += run()
                print(f"{name}: {min(times[name]):.3f} s", flush=True)
        added = overhead(device, folder, args.rounds)
    # A quarter of the steps were at least as fast: what neighbours do to the caches stays out.
    best = {name: sorted(found)[(len(found) - 1) // 4] for name, found in times.items()}
    x = image.to(device).float() / 255
    work = operations(lambda: Objective()(codec, x)["loss"].backward())
    rates = peak_rates(device)
    floor = work / rates["float32" if device == "cpu" else "bfloat16"]
    rows = [(name, t, args.batch / t, 100 * (t / best["bare loop"] - 1)) for name, t in best.items()]
    rows.append(("floor", floor, args.batch / floor, 100 * (floor / best["bare loop"] - 1)))
    show(f"crop {args.crop}, batch {args.batch}, {device}", ("step", "s", "images/s", "% over bare"), rows)
    timing = method(device).replace("the shortest of all rounds", "of all steps the one at the lower quartile")
    print(
        f"Lightning and logging: {1000 * added:.1f} ms a step, {100 * added / best['bare loop']:.1f} % of the bare loop"
    )
    report = {
        "machine": machine(device) | {"timing": timing},
        "crop": args.crop,
        "batch": args.batch,
        "rates_per_second": rates,
        "seconds_per_step": best,
        "all_steps": times,
        "floor_seconds": floor,
        "lightning_and_logging_seconds": added,
        "lightning_and_logging_share": added / best["bare loop"],
    }
    save(report, args.output)


if __name__ == "__main__":
    main()
