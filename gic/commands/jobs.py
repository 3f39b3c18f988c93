"""Shared parts of the file commands: options, names of outputs, and one clear line for each error."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gic.bitstream.container import SUFFIX
from gic.errors import ConfigError, DataError, GicError
from gic.files import write_bytes
from gic.names import TRUST_HELP
from gic.pictures.find import find_files

if TYPE_CHECKING:
    from gic.codec.image_codec import ImageCodec

STREAM = "-"


class Job(NamedTuple):
    """One file to make: its source (None is standard input) and its target (None is standard output)."""

    source: Path | None
    target: Path | None


def add_files(parser: ArgumentParser, what: str, default: str) -> None:
    """Add options for inputs and output; ``what`` describes the inputs, ``default`` the output."""
    parser.add_argument("inputs", nargs="+", metavar="IN", help=what)
    parser.add_argument(
        "-o", "--output", metavar="OUT", help=f"file, folder, or - for standard output (default: {default} beside IN)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def add_codec(parser: ArgumentParser) -> None:
    """Options that choose the weights and where they run."""
    parser.add_argument(
        "--checkpoint", metavar="FILE", help=".safetensors or .ckpt (default: the weights in the package)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    add_trust_option(parser)


def add_trust_option(parser: ArgumentParser) -> None:
    """Option ``--trust`` of commands that build the codec that a file describes."""
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST_HELP)


def find_gic_files(paths: Sequence[str | Path]) -> list[Path]:
    """``.gic`` files that files, folders and patterns name, see :func:`gic.pictures.find.find_files`."""
    return find_files(paths, frozenset({SUFFIX}), f"{SUFFIX} file")


def plan_jobs(
    inputs: Sequence[str], output: str | None, suffix: str, find: Callable[[Sequence[str | Path]], list[Path]]
) -> list[Job]:
    """Decide where each result goes.

    Args:
        inputs: Names from the command line; ``-`` is standard input.
        output: Name from the command line; None puts results beside their sources.
        suffix: Of the results.
        find: Turns names into files.

    Raises:
        ConfigError: If inputs and output do not fit together.
        DataError: If an input does not exist.
    """
    if STREAM in inputs:
        if len(inputs) > 1:
            raise ConfigError("standard input (-) must be the only input")
        if output is None or output == STREAM:
            return [Job(None, None)]
        if output.endswith("/") or Path(output).is_dir():
            raise ConfigError(f"{output} is a folder: for standard input, give the name of a file")
        return [Job(None, Path(output))]
    sources = find(inputs)
    single = len(inputs) == 1 and Path(inputs[0]).is_file()
    if output == STREAM:
        if not single:
            raise ConfigError("standard output (-) takes exactly one input")
        return [Job(sources[0], None)]
    if single and output is not None and not output.endswith("/") and not Path(output).is_dir():
        return [Job(sources[0], Path(output))]
    roots = [Path(name) for name in inputs if Path(name).is_dir()]
    targets = []
    for source in sources:
        root = next((r for r in roots if r in source.parents), source.parent)
        folder = source.parent if output is None else Path(output) / source.parent.relative_to(root)
        targets.append(folder / source.name)
    stems = Counter(target.with_suffix(suffix) for target in targets)
    # Two sources that differ only in their suffix keep it: a.png and a.jpg give a.png.gic and a.jpg.gic.
    jobs: dict[Path, Path] = {}
    for source, target in zip(sources, targets, strict=True):
        name = target.with_suffix(suffix)
        name = name if stems[name] == 1 else target.with_name(target.name + suffix)
        if name in jobs:
            raise ConfigError(f"{jobs[name]} and {source} would both be written to {name}: give them apart")
        jobs[name] = source
    return [Job(source, target) for target, source in jobs.items()]


def run_jobs(jobs: Sequence[Job], one: Callable[[Job], str], overwrite: bool) -> int:
    """Do all jobs; a file that fails is named and the others continue. Returns the exit code."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    failed = 0
    for job in track(jobs, console=console, transient=True, disable=len(jobs) == 1 or not console.is_terminal):
        source, target = job.source or "standard input", job.target or "standard output"
        try:
            if job.target is not None and job.target.exists() and not overwrite:
                raise ConfigError(f"{target} exists and is kept: give --overwrite to replace it")
            said = one(job)
        except (GicError, OSError) as error:
            failed += 1
            print(f"gic: {source}: {error}", file=sys.stderr)
        else:
            print(f"{source} -> {target}: {said}", file=sys.stderr)
    if failed and len(jobs) > 1:
        print(f"gic: {failed} of {len(jobs)} files failed", file=sys.stderr)
    return 2 if failed else 0


def load_codec(args: Namespace) -> ImageCodec:
    """The codec that the options of :func:`add_codec` choose."""
    from gic.codec.weights import load

    return load(args.checkpoint, args.device, args.trust)


def read(path: Path | None) -> bytes:
    """Bytes of a file, or of standard input for None.

    Raises:
        DataError: If it cannot be read.
    """
    if path is None:
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def write(path: Path | None, data: bytes) -> None:
    """Write a file whole, or to standard output for None."""
    if path is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_bytes(path, data)
