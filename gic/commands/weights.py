"""``gic weights``: lists or fetches the weights that metrics need."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from gic.errors import GicError
from gic.quality.table import FILES, METRICS
from gic.quality.weights import VARIABLE, check_pyiqa_name, find, hub_folder, metric_folder, places


@dataclass(frozen=True)
class FileState:
    """A file that a metric needs.

    Attributes:
        key: Its name in configs.
        what: What it holds.
        path: Where it is, None if it is missing.
        bytes: Its size.
        places: Where it was searched for.
    """

    key: str
    what: str
    path: str | None
    bytes: int | None
    places: Sequence[str]


@dataclass(frozen=True)
class MetricState:
    """What a metric needs.

    Attributes:
        metric: Its name.
        ready: Whether everything is there.
        files: The files, if gic's table lists them.
        problem: Why it cannot be built, if that was tried.
    """

    metric: str
    ready: bool
    files: Sequence[FileState]
    problem: str | None = None


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic weights``."""
    parser.add_argument("metrics", nargs="*", metavar="METRIC", help="names of metrics (default: all in the list)")
    parser.add_argument(
        "--download",
        action="store_true",
        help="build each metric through its library, which downloads what is missing: for machines without a network, "
        "run this on one that has it and shares the folders",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def run(args: Namespace) -> int:
    """Run ``gic weights``; returns the exit code."""
    names = list(dict.fromkeys(args.metrics)) or [*METRICS]
    for name in names:
        if name not in METRICS:
            check_pyiqa_name(name)
    states = [state_of(name, args.download) for name in names]
    if args.json:
        print(json.dumps([asdict(state) for state in states], indent=1))
    else:
        folder = metric_folder()
        print(f"{VARIABLE}: {folder or 'not set'}; torch hub: {hub_folder()}")
        for state in states:
            print(_lines(state))
    wanted = bool(args.metrics) or args.download
    return 2 if wanted and not all(state.ready for state in states) else 0


def state_of(metric: str, download: bool = False) -> MetricState:
    """Find the files that a metric needs and whether they are there.

    Args:
        metric: Its name.
        download: Build it, so that its library downloads what is missing. A metric that is only in pyiqa is
            always built, without downloading.
    """
    problem = None
    if download or metric not in METRICS:
        from gic.quality.metrics import make_metric

        try:
            make_metric(metric, download=download)
        except GicError as error:
            problem = str(error)
    files = []
    for key in METRICS[metric].weights if metric in METRICS else ():
        path = find(key)
        looked_at = [str(place) for place in places(FILES[key])]
        size = path.stat().st_size if path else None
        files.append(FileState(key, FILES[key].what, str(path) if path else None, size, looked_at))
    ready = problem is None and all(file.path for file in files)
    return MetricState(metric, ready, files, problem)


def _lines(state: MetricState) -> str:
    """A metric's state for people."""
    lines = [f"{'ready' if state.ready else 'MISSING':<8}{state.metric}"]
    for file in state.files:
        size = "missing" if file.bytes is None else f"{file.bytes / 1e6:.3g} MB"
        lines.append(f"{'':<10}{file.key}: {file.what}, {size}")
        lines += [f"{'':<12}{file.path}"] if file.path else [f"{'':<12}not at {place}" for place in file.places]
    if state.problem:
        lines.append(f"{'':<10}{state.problem}")
    return "\n".join(lines)
