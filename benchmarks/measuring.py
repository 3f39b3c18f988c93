"""What the speed benchmarks share: clocks, alternation, floors, the model, tables and JSON."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from gic.codec.checkpoints import build_codec, load_codec
from gic.models.codec import Codec

SMALL = Path(__file__).resolve().parent.parent / "configs" / "models" / "small.yaml"


def parser(text: str | None) -> argparse.ArgumentParser:
    """Options that all have: device, rounds, output."""
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--rounds", type=int, default=3, help="times that everything is run, in turns (default 3)")
    options.add_argument("--output", help="JSON file to write")
    return options


def small_codec(weights: str | None = None) -> Codec:
    """The codec to measure: weights from a file, or the preset ``small`` with random ones."""
    if weights is not None:
        return load_codec(weights)
    torch.manual_seed(0)
    return build_codec(yaml.safe_load(SMALL.read_text())["model"]["codec"]).eval()


def method(device: str) -> str:
    """How :func:`seconds` measures, in words."""
    if device != "cpu":
        return "wall time between synchronisations of the device; everything in turns, the shortest of all rounds"
    return f"CPU time of the process, {torch.get_num_threads()} thread; everything in turns, the shortest of all rounds"


def seconds(run: Callable[[], object], device: str) -> float:
    """Seconds that a call takes: CPU time where that is what computes, so that neighbours do not count."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Shortest time of each call, all called in every round, after one round that does not count if there are more."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + (rounds > 1)):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return {name: min(found[len(found) > rounds :]) for name, found in times.items()}


def peak_rates(device: str) -> dict[str, float]:
    """What the machine can do at best: operations per second of matrix products, bytes per second of a copy."""
    size = 1536 if device == "cpu" else 8192
    kinds = [torch.float32, torch.float64] if device == "cpu" else [torch.bfloat16, torch.float32, torch.float64]
    rates = {}
    for kind in kinds:
        a = torch.rand(size, size, device=device).to(kind)
        rates[str(kind).removeprefix("torch.")] = 2 * size**3 / in_turns({"": lambda a=a: a @ a}, 3, device)[""]
    source = torch.empty(2**26, dtype=torch.uint8, device=device)  # 64 MiB: no cache
    target = torch.empty_like(source)
    rates["bytes"] = 2 * len(source) / in_turns({"": lambda: target.copy_(source)}, 3, device)[""]
    return rates


def operations(run: Callable[[], object]) -> float:
    """Operations of the convolutions and matrix products in a call, counted by PyTorch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def machine(device: str) -> dict[str, Any]:
    """Where the numbers come from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(names),
        "gpu": torch.cuda.get_device_name() if device != "cpu" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timing": method(device),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers with three figures."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*("" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v) for v in row))
    Console(width=140).print(table)


def save(report: Mapping[str, Any], path: str | None) -> None:
    """Write the report if a file is named; floats with four figures."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, Mapping):
            return {key: rounded(v) for key, v in value.items()}
        return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value

    if path:
        Path(path).write_text(json.dumps(rounded(report), indent=1) + "\n")
