"""Training on more and more processes: images per second, and where the time goes.

    python benchmarks/scaling.py [--ranks 1 2 4] [--workers 2] [--rounds 3] [--output scaling.json] [-- OPTIONS OF FIT]

Each measurement is a `gic fit` of its own, by default of `small` on the pictures that gic draws, on one rank for each
GPU, or on CPU processes of one thread where there is none; the numbers of ranks take turns, so that a busy machine is
unfair to none. Rank 0 keeps the time of each step after waiting for its device:

- waiting for data: from the end of a step to the arrival of the next batch;
- communication: every other step leaves out the exchange of gradients, and what the backward pass of the others takes
  longer is what the exchange costs; waiting for a slower rank is part of it.

Images per second, and the shares, are those of the steps with the exchange; the first steps do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

ROOT = Path(__file__).resolve().parent.parent
UNCOUNTED = 4  # steps at the start


class Clock(L.Callback):
    """Keeps the time of every step of rank 0, and has every other step leave out the exchange of gradients.

    Args:
        path: JSON file to write at the end: a list of steps, in seconds.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.steps: list[dict[str, Any]] = []
        self._times: dict[str, float] = {}

    def _note(self, trainer: L.Trainer, name: str) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self._times[name] = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self._note(trainer, "start")
        if trainer.world_size > 1:
            trainer.strategy.model.require_backward_grad_sync = batch_idx % 2 == 0

    def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
        """The loss is there."""
        self._note(trainer, "before")

    def on_after_backward(self, trainer: L.Trainer, *_: Any) -> None:
        """The gradients are there."""
        self._note(trainer, "after")

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over."""
        last = self._times.get("end")
        self._note(trainer, "end")
        now = self._times
        if last is not None:
            step = {"exchange": batch_idx % 2 == 0, "images": len(batch["image"]) * trainer.world_size}
            step |= {"waiting": now["start"] - last, "backward": now["after"] - now["before"]}
            self.steps.append({**step, "all": now["end"] - last})

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write what was kept."""
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.steps))


def fit(ranks: int, workers: int, steps: int, more: Sequence[str]) -> list[dict[str, Any]]:
    """Steps of one run, without the first."""
    gpus = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.json"
        words = [sys.executable, "-m", "gic", "fit", "--config", str(ROOT / "configs" / "base.yaml"), *more]
        words += ["--trainer.accelerator", "gpu" if gpus else "cpu", "--trainer.devices", str(ranks)]
        words += ["--trainer.strategy", "ddp" if ranks > 1 else "auto", "--trainer.logger", "false"]
        words += ["--trainer.default_root_dir", folder]
        words += ["--trainer.callbacks", f"[{{class_path: scaling.Clock, init_args: {{path: {path}}}}}]"]
        words += ["--trainer.max_steps", str(UNCOUNTED + steps), "--trainer.limit_val_batches", "0"]
        words += ["--trainer.enable_progress_bar", "false", "--data.num_workers", str(workers)]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        threads = {} if gpus else {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(words, env={**os.environ, "PYTHONPATH": paths, **threads}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return list(json.loads(path.read_text())[UNCOUNTED - 1 :])


def summary(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Throughput and shares of one run."""
    whole = [step for step in steps if step["exchange"]]
    seconds = sum(step["all"] for step in whole)
    # A median: a machine that does something else for a second is no communication.
    apart = [statistics.median(step["backward"] for step in steps if step["exchange"] == on) for on in (True, False)]
    found = {
        "images_per_second": sum(step["images"] for step in whole) / seconds,
        "step_seconds": seconds / len(whole),
        "waiting_for_data": sum(step["waiting"] for step in steps) / sum(step["all"] for step in steps),
        "communication": (apart[0] - apart[1]) / statistics.median(step["all"] for step in whole),
    }
    return {name: round(value, 4) for name, value in found.items()}


def default_ranks() -> list[int]:
    """1, 2, 4, ... up to the number of GPUs, or else of CPU cores."""
    most = torch.cuda.device_count() or len(os.sched_getaffinity(0))
    return [2**i for i in range(most.bit_length()) if 2**i <= most]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=default_ranks())
    parser.add_argument("--workers", type=int, default=2, help="processes that read images, for each rank")
    parser.add_argument("--steps", type=int, default=24, help="steps of each run that count")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each number of ranks")
    parser.add_argument("--output")
    parser.add_argument("more", nargs="*", metavar="-- OPTIONS", help="options of gic fit, another config for example")
    args = parser.parse_args()
    gpus = torch.cuda.is_available()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpus else f"{platform.processor() or platform.machine()}, 1 thread",
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "workers": args.workers,
        "steps": args.steps,
        "options": args.more,
        "runs": [],
    }
    for number in range(args.rounds):
        for ranks in args.ranks:
            before = os.getloadavg()[0]  # what else the machine does
            found = summary(fit(ranks, args.workers, args.steps, args.more))
            report["runs"].append({"round": number, "ranks": ranks, "load_before": round(before, 2), **found})
            print(report["runs"][-1], flush=True)
    report["median"] = {}
    for ranks in args.ranks:
        runs = [run for run in report["runs"] if run["ranks"] == ranks]
        names = ("images_per_second", "step_seconds", "waiting_for_data", "communication")
        report["median"][str(ranks)] = {name: statistics.median(run[name] for run in runs) for name in names}
        print(ranks, report["median"][str(ranks)])
    if args.output:
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
