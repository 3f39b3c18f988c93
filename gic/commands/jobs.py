"""Shared parts of the file commands: options, names of outputs, and one clear line for each error."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gic.bitstream.container import SUFFIX, unpack
from gic.errors import ConfigError, DataError, FormatError, GicError, in_words, one_line, out_of_memory
from gic.files import descriptor, is_stream, naming, write_bytes
from gic.names import TRUST_HELP
from gic.pictures.find import IMAGE_SUFFIXES, find_files

if TYPE_CHECKING:
    from gic.codec.image_codec import ImageCodec

T = TypeVar("T")
STREAM = "-"
MAX_BYTES = 1 << 32
"""Largest input, in bytes: of a picture in any format, of the most pixels that are read."""
_BLOCK = 1 << 24


class StoppedError(GicError):
    """Several files, some of which are there; the text says how to go on."""

    exit_code = 130


class Job(NamedTuple):
    """One file to make: its source (None is standard input) and its target (None is standard output)."""

    source: Path | None
    target: Path | None


class Made(NamedTuple):
    """What a job made.

    Attributes:
        said: In words.
        facts: The same as numbers, for ``--json``.
    """

    said: str
    facts: Mapping[str, Any]


def add_files(parser: ArgumentParser, what: str, default: str | None) -> None:
    """Add options for inputs and output; ``what`` describes the inputs, ``default`` the output if there is one."""
    unnamed = "must be given" if default is None else f"default: {default} beside IN"
    parser.add_argument("inputs", nargs="+", metavar="IN", help=what)
    parser.add_argument("-o", "--output", metavar="OUT", help=f"file, folder, or - for standard output ({unnamed})")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing files")
    existing.add_argument(
        "--skip-existing", action="store_true", help="make the files that do not exist yet, to go on with a folder"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object for each file on the standard output, none in words"
    )


def add_codec(parser: ArgumentParser) -> None:
    """Options that choose the weights and where they run."""
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help=".safetensors or .ckpt, a name that gic models lists, or hf://OWNER/REPO (default: the package's weights)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument(
        "--runtime",
        choices=("auto", "onnx", "torch"),
        default="auto",
        help="what runs the networks: ONNX Runtime (CPU) or PyTorch (default: PyTorch if there is a GPU)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="several pictures are coded side by side, one a thread (default: all cores)",
    )
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
    if output == "":
        raise ConfigError("the output has an empty name: name a file or folder")
    if STREAM in inputs:
        if len(inputs) > 1:
            raise ConfigError("standard input (-) must be the only input")
        if output is None or output == STREAM:
            return [Job(None, None)]
        if output.endswith("/") or Path(output).is_dir():
            raise ConfigError(f"{output} is a folder: for standard input, give the name of a file")
        return [Job(None, Path(output))]
    sources = find(inputs)
    single = len(inputs) == 1 and sources == [Path(inputs[0])]
    if output == STREAM:
        if not single:
            raise ConfigError("standard output (-) takes exactly one input")
        return [Job(sources[0], None)]
    if output is not None and not output.endswith("/") and not Path(output).is_dir():
        if single:
            return [Job(sources[0], Path(output))]
        if Path(output).exists() or Path(output).suffix.lower() in IMAGE_SUFFIXES | {SUFFIX}:
            raise ConfigError(f"{output} is one file, for several results: name a folder, for example -o results/")
    if output is None and (open_file := next((s for s in sources if descriptor(s) is not None), None)) is not None:
        raise ConfigError(f"{open_file} is no name for a result: give one, -o FILE, or - for standard output")
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


def run_jobs(jobs: Sequence[Job], one: Callable[[Job], Made], args: Namespace, side_by_side: int = 1) -> int:
    """Do all jobs; a file that fails is named and the others continue.

    Args:
        jobs: What to do.
        one: Does a job, and tells the result.
        args: The options of :func:`add_files`.
        side_by_side: How many jobs run at a time, each in a thread.

    Returns:
        The exit code: 0 if every result is there, 2 if one could not be made. A result that was there before
        is success with ``--skip-existing``, and else is not, for it may be of other options.

    Raises:
        ConfigError: If ``--json`` and a result would both be printed.
    """
    if args.json and any(job.target is None for job in jobs):
        raise ConfigError("--json prints on the standard output: write the result to a file, -o FILE")
    failed = 0
    kept: list[Path] = []

    def tell(job: Job, status: str, **facts: Any) -> None:
        """A line of ``--json``."""
        if args.json:
            names = {"source": str(job.source or STREAM), "target": str(job.target or STREAM)}
            print(json.dumps({**names, "status": status, **facts}), flush=True)

    def done(job: Job) -> tuple[Made, float] | None:
        if job.source is not None and job.source == job.target:
            raise ConfigError("this would be written over itself: is it the right command? -o names another file")
        if job.target is not None and not args.overwrite and job.target.exists() and not is_stream(job.target):
            return None
        started = time.perf_counter()
        return one(job), time.perf_counter() - started

    try:
        for job, result in _results(jobs, done, side_by_side):
            source, target = job.source or "standard input", job.target or "standard output"
            try:
                made = result()
            except (GicError, OSError, MemoryError, RuntimeError) as error:
                failed += 1
                if isinstance(error, GicError):
                    problem = str(error)
                elif isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                    problem = in_words(error)
                elif out_of_memory(error):
                    problem = "the memory does not suffice for this picture"
                else:
                    raise
                print(one_line(f"gic: {source}: {problem}"), file=sys.stderr)
                tell(job, "failed", problem=one_line(problem))
            else:
                if made is None:
                    assert job.target is not None
                    kept.append(job.target)
                    tell(job, "kept")
                else:
                    (said, facts), seconds = made
                    tell(job, "written", **facts, seconds=round(seconds, 4))
                    if not args.json:
                        print(one_line(f"{source} -> {target}: {said}"), file=sys.stderr)
    except KeyboardInterrupt:
        if len(jobs) == 1:
            raise
        raise StoppedError("interrupted: the same with --skip-existing goes on with what is left") from None
    if len(jobs) == 1 and kept:
        how = "passed over" if args.skip_existing else "name another with -o, or replace it with --overwrite"
        print(f"gic: {kept[0]} exists and is kept: {how}", file=sys.stderr)
    elif len(jobs) > 1 and (failed or kept):
        counts = [f"{len(jobs) - failed - len(kept)} written"]
        if kept:
            were = "exists and was kept" if len(kept) == 1 else "exist and were kept"
            how = "" if args.skip_existing else " (--overwrite replaces them, --skip-existing is content with them)"
            counts.append(f"{len(kept)} {were}{how}")
        if failed:
            counts.append(f"{failed} of {len(jobs)} files failed")
        print(f"gic: {', '.join(counts)}", file=sys.stderr)
    return 2 if failed or (kept and not args.skip_existing) else 0


class Bar:
    """One line on a terminal that says how far something is; without a terminal nothing.

    Args:
        what: Of what there are several, in words.
    """

    def __init__(self, what: str) -> None:
        self.what, self.started = what, time.monotonic()
        self.shown = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        """Show how many are done."""
        if self.shown and total > 1:
            spent = time.monotonic() - self.started
            left = f", {spent * (total / done - 1):.0f} s left" if done and spent > 1 else ""
            print(f"{done} of {total} {self.what}{left}\x1b[K", end="\r", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for another line."""
        if self.shown:
            print("\x1b[K", end="", file=sys.stderr)


def tiles_bar(jobs: Sequence[Job]) -> Callable[[int, int], None] | None:
    """What shows the tiles of a picture that is alone; None for several, which are counted themselves."""
    return Bar("tiles") if len(jobs) == 1 else None


def _results(jobs: Sequence[Job], one: Callable[[Job], T], side_by_side: int) -> Iterator[tuple[Job, Callable[[], T]]]:
    """Each job in order, and what tells its result or raises its error; a bar shows how far they are."""
    bar = Bar("pictures")

    def cleared(result: Callable[[], T]) -> Callable[[], T]:
        def call() -> T:
            try:
                return result()
            finally:
                bar.clear()

        return call

    if side_by_side == 1:
        for number, job in enumerate(jobs):
            bar(number, len(jobs))
            yield job, cleared(partial(one, job))
        return
    with ThreadPoolExecutor(side_by_side) as pool:
        try:
            for number, (job, future) in enumerate([(job, pool.submit(one, job)) for job in jobs]):
                bar(number, len(jobs))
                yield job, cleared(future.result)
        finally:  # those that have not begun, after an interruption
            pool.shutdown(wait=False, cancel_futures=True)


def load_codec(args: Namespace, jobs: int) -> tuple[ImageCodec, int]:
    """The codec that the options of :func:`add_codec` choose, and how many of some jobs it does side by side.

    Raises:
        ConfigError: If the number of threads is not positive, or the weights cannot be used.
    """
    from gic.codec.weights import load
    from gic.runtime.threads import available_threads, limit_blas, pictures_at_once

    threads = available_threads() if args.threads is None else args.threads
    if threads < 1:
        raise ConfigError(f"--threads must be at least 1, not {threads}")
    together = pictures_at_once(min(threads, jobs))
    codec = load(args.checkpoint, args.device, args.trust, runtime=args.runtime, threads=threads // together)
    if codec.networks.runtime != "onnx":
        return codec, 1
    limit_blas(threads // together)
    return codec, together


class CodecOfFile:
    """The codec that decodes a file: the one that was loaded, or where none was named, one of weights at hand.

    Args:
        codec: The one that was loaded.
        args: The options of :func:`add_codec`.
    """

    def __init__(self, codec: ImageCodec, args: Namespace) -> None:
        self.codec, self.args = codec, args
        self._others: dict[bytes, tuple[ImageCodec, str] | None] = {}
        self._lock = Lock()

    def __call__(self, data: bytes) -> tuple[ImageCodec, str | None]:
        """The codec, and the name of its weights if it is not the one that was loaded."""
        from gic.codec.weights import load
        from gic.codec.zoo import of_model

        if self.args.checkpoint is not None:
            return self.codec, None
        try:
            model = unpack(data).model_id
        except FormatError:  # which decoding it tells
            return self.codec, None
        with self._lock:
            if model not in self._others:
                self._others[model] = None
                other = None if model == self.codec.model_id else of_model(model)
                if other is not None:  # by its file: the name of one of the hub may lead to a newer revision
                    threads = getattr(self.codec.networks, "threads", None)
                    codec = load(other.path, self.args.device, runtime=self.args.runtime, threads=threads)
                    self._others[model] = codec, other.name
            return self._others[model] or (self.codec, None)


def read(path: Path | None) -> bytes:
    """Bytes of a file, or of standard input for None; at most :data:`MAX_BYTES`.

    Raises:
        DataError: If it cannot be read, or is larger.
    """
    name = "standard input" if path is None else str(path)
    if path is None and sys.stdin is None:
        raise DataError("standard input is closed")
    data = bytearray()
    try:
        with nullcontext(sys.stdin.buffer) if path is None else path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size if path is not None else 0
            while size <= MAX_BYTES and (block := file.read(_BLOCK)):
                data += block
                size = max(size, len(data))
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from error
    if size > MAX_BYTES:
        raise DataError(f"{name} has more than {MAX_BYTES >> 20} MiB, which no picture has that gic codes")
    return bytes(data)


def write(path: Path | None, data: bytes) -> None:
    """Write a file whole, or to standard output for None."""
    if path is not None:
        write_bytes(path, data)
        return
    if sys.stdout is None:
        raise DataError("standard output is closed")
    if sys.stdout.isatty():
        raise DataError("standard output is a terminal: redirect it, or give the name of a file, -o FILE")
    with naming("standard output"):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
