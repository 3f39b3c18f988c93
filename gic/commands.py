"""``gic compress``, ``decompress`` and ``info``: files in, files out, one clear line for what goes wrong."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gic.errors import ConfigError, DataError, GicError
from gic.fileformat import LEVELS_PER_OCTAVE, SUFFIX, GicFile, unpack
from gic.files import write_bytes

if TYPE_CHECKING:
    from gic.codec import ImageCodec

STREAM = "-"


class Job(NamedTuple):
    """One file to make: from where (None is standard input) and where to (None is standard output)."""

    source: Path | None
    target: Path | None


# --- options ----------------------------------------------------------------------------------------------------------


def add_compress_options(parser: ArgumentParser) -> None:
    """Options of ``gic compress``."""
    _add_files(parser, "pictures: files, folders, patterns, or - for standard input", "PICTURE" + SUFFIX)
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--q", type=float, metavar="STEP", help="quantisation step, within the model's range")
    rate.add_argument("--bpp", type=float, metavar="BITS", help="bits per pixel to aim at")
    rate.add_argument("--max-bytes", type=int, metavar="N", help="largest file size in bytes, never exceeded")
    rate.add_argument("--quality", type=float, metavar="0..100", help="0 smallest, 100 finest (50 if nothing is named)")
    parser.add_argument("--quantizer", choices=("round", "dither"), help="default: the model's")
    parser.add_argument("--seed", type=int, default=0, help="of the dither (default 0)")
    parser.add_argument("--keep-metadata", action="store_true", help="keep EXIF and the ICC profile in the file")
    _add_codec(parser)


def add_decompress_options(parser: ArgumentParser) -> None:
    """Options of ``gic decompress``."""
    _add_files(parser, f"{SUFFIX} files, folders, patterns, or - for standard input", "FILE.png")
    parser.add_argument(
        "--realism", type=float, metavar="0..1", help="0: closest to the original; 1: most like a photograph (default)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the reverse flow (default: the model's)")
    parser.add_argument("--sampler", choices=("mean", "euler", "heun", "sde", "restart"), help="default: the model's")
    parser.add_argument("--seed", type=int, default=0, help="of stochastic samplers (default 0)")
    _add_codec(parser)


def add_info_options(parser: ArgumentParser) -> None:
    """Options of ``gic info``."""
    parser.add_argument(
        "inputs", nargs="+", metavar="IN", help=f"{SUFFIX} files, folders, patterns, or - for standard input"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each file")


def _add_files(parser: ArgumentParser, what: str, default: str) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help=what)
    parser.add_argument(
        "-o", "--output", metavar="OUT", help=f"file, folder, or - for standard output (default: {default} beside IN)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _add_codec(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="FILE", help=".safetensors or .ckpt (default: the weights in the package)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    add_trust_option(parser)


TRUST_HELP = "a package of your own whose classes the weights may name; once for each package"


def add_trust_option(parser: ArgumentParser) -> None:
    """Option ``--trust`` of commands that build the codec that a file describes."""
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST_HELP)


# --- commands ---------------------------------------------------------------------------------------------------------


def compress(args: Namespace) -> int:
    """Run ``gic compress``; returns the exit code."""
    from gic.images import find_images

    jobs = plan_jobs(args.inputs, args.output, SUFFIX, find_images)
    codec = _load(args)

    def one(job: Job) -> str:
        if job.target is not None and job.target.suffix != SUFFIX and _is_picture_suffix(job.target.suffix):
            raise ConfigError(f"{job.target} would not be what its suffix says: use {job.target.with_suffix(SUFFIX)}")
        encoding = codec.encoding(
            _read(job.source), quantizer=args.quantizer, seed=args.seed, keep_metadata=args.keep_metadata
        )
        data = encoding.compress(q=args.q, bpp=args.bpp, max_bytes=args.max_bytes, quality=args.quality)
        _write(job.target, data)
        file = unpack(data)
        rate = f"{len(data) * 8 / (file.width * file.height):.4f} bpp"
        return "; ".join([f"{len(data)} bytes, {rate}, q {_q(file):.3f}", *encoding.notes])

    return _run(jobs, one, args.overwrite)


def decompress(args: Namespace) -> int:
    """Run ``gic decompress``; returns the exit code."""
    jobs = plan_jobs(args.inputs, args.output, ".png", find_gic_files)
    codec = _load(args)

    def one(job: Job) -> str:
        kind = _picture_format(job.target)
        image = codec.decompress(
            _read(job.source), realism=args.realism, steps=args.steps, sampler=args.sampler, seed=args.seed
        )
        _write(job.target, _encode_picture(image, kind))
        return f"{image.width} x {image.height} pixels"

    return _run(jobs, one, args.overwrite)


def info(args: Namespace) -> int:
    """Run ``gic info``; returns the exit code."""
    code = 0
    for given in args.inputs:
        try:
            paths: list[Path | None] = [None] if given == STREAM else [*find_gic_files([given])]
        except GicError as error:
            print(f"gic info: {error}", file=sys.stderr)
            code = 2
            continue
        for path in paths:
            name = STREAM if path is None else str(path)
            try:
                facts = describe(_read(path))
            except GicError as error:
                print(f"gic info: {name}: {error}", file=sys.stderr)
                code = 2
                continue
            if args.json:
                print(json.dumps({"file": name, **facts}))
            else:
                print(name)
                for key, value in facts.items():
                    if key == "tile_side" and not value:
                        continue  # one piece
                    print(f"  {key.replace('_', ' '):<16}{value}")
    return code


def describe(data: bytes) -> dict[str, Any]:
    """What a file says of itself, as ``gic info`` prints it; sizes in bytes.

    Raises:
        FormatError: If the file is damaged; a wrong checksum is.
    """
    file = unpack(data)
    z_bytes, y_bytes = sum(len(p.z) for p in file.payloads), sum(len(p.y) for p in file.payloads)
    return {
        "width": file.width,
        "height": file.height,
        "model": file.model_id.hex(),
        "q": round(_q(file), 4),
        "quantizer": file.quantizer,
        "bytes": len(data),
        "bits_per_pixel": round(len(data) * 8 / (file.width * file.height), 4),
        "header_bytes": len(data) - z_bytes - y_bytes,
        "z_bytes": z_bytes,
        "y_bytes": y_bytes,
        "tiles": len(file.payloads),
        "tile_side": file.tile,
        "exif_bytes": len(file.metadata.exif),
        "icc_bytes": len(file.metadata.icc),
        "checksum": "ok",
    }


# --- helpers ----------------------------------------------------------------------------------------------------------


def find_gic_files(paths: Sequence[str | Path]) -> list[Path]:
    """Files named, and ``.gic`` files in folders named, sorted, each once.

    Raises:
        DataError: If a path does not exist, a folder holds none, or a pattern matches none.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = sorted(path.rglob("*" + SUFFIX))
            if not inside:
                raise DataError(f"there is no {SUFFIX} file in the folder {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        elif any(c in str(path) for c in "*?["):
            base = Path(path.anchor)
            matches = sorted(p for p in base.glob(str(path.relative_to(base))) if p.is_file())
            if not matches:
                raise DataError(f"no file matches the pattern {path}")
            found += matches
        else:
            raise DataError(f"there is no file or folder {path}")
    return list(dict.fromkeys(found))


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
        ConfigError: If the names do not go together.
        DataError: If an input does not exist.
    """
    if STREAM in inputs:
        if len(inputs) > 1:
            raise ConfigError("standard input (-) must be the only input")
        if output is None or output == STREAM:
            return [Job(None, None)]
        if output.endswith("/") or Path(output).is_dir():
            raise ConfigError(f"{output} is a folder: what comes from standard input needs the name of a file")
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
    # Two sources that differ in their suffix alone keep it: a.png and a.jpg give a.png.gic and a.jpg.gic.
    jobs: dict[Path, Path] = {}
    for source, target in zip(sources, targets, strict=True):
        name = target.with_suffix(suffix)
        name = name if stems[name] == 1 else target.with_name(target.name + suffix)
        if name in jobs:
            raise ConfigError(f"{jobs[name]} and {source} would both be written to {name}: give them apart")
        jobs[name] = source
    return [Job(source, target) for target, source in jobs.items()]


def _run(jobs: Sequence[Job], one: Callable[[Job], str], overwrite: bool) -> int:
    """Do all jobs; a file that fails is named and the others go on. Returns the exit code."""
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


def _load(args: Namespace) -> ImageCodec:
    from gic.loading import load

    return load(args.checkpoint, args.device, args.trust)


def _read(path: Path | None) -> bytes:
    if path is None:
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _write(path: Path | None, data: bytes) -> None:
    if path is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_bytes(path, data)


def _is_picture_suffix(suffix: str) -> bool:
    from PIL import Image

    return suffix.lower() in Image.registered_extensions()


def _picture_format(target: Path | None) -> str:
    """Pillow's name for the format of the target's suffix, PNG for standard output."""
    from PIL import Image

    suffix = ".png" if target is None else target.suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind is None or kind not in Image.SAVE:
        raise ConfigError(f"{target}: the suffix {suffix!r} names no picture format that can be written; use .png")
    return str(kind)


def _encode_picture(image: Any, kind: str) -> bytes:
    import io

    buffer = io.BytesIO()
    kept = {name: image.info[name] for name in ("exif", "icc_profile") if name in image.info}
    image.save(buffer, kind, **kept)
    return buffer.getvalue()


def _q(file: GicFile) -> float:
    return float(2.0 ** (file.level / LEVELS_PER_OCTAVE))  # for display; gic.entropy.level_value is exact
