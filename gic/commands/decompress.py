"""``gic decompress``: ``.gic`` files to pictures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from gic.bitstream.container import SUFFIX
from gic.commands.jobs import (
    CodecOfFile,
    Job,
    Made,
    add_codec,
    add_files,
    find_gic_files,
    load_codec,
    plan_jobs,
    read,
    run_jobs,
    tiles_bar,
    write,
)
from gic.errors import ConfigError
from gic.files import is_stream


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic decompress``."""
    add_files(parser, f"{SUFFIX} files, folders, patterns, or - for standard input", "FILE.png")
    parser.add_argument(
        "--realism", type=float, metavar="0..1", help="0: closest to the original; 1: most like a photograph (default)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the reverse flow (default: the model's)")
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help="of the reverse flow, optionally with parameters: heun, 'sde(alpha=0.3)', or any other of "
        "gic.method.samplers; mine.Slow from a package that --trust names (default: the model's)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of stochastic samplers (default 0)")
    add_codec(parser)


def run(args: Namespace) -> int:
    """Run ``gic decompress``; returns the exit code."""
    from gic.pictures.save import encode_picture
    from gic.runtime.description import named_sampler

    jobs = plan_jobs(args.inputs, args.output, ".png", find_gic_files)
    codec, together = load_codec(args, len(jobs))
    codec_of = CodecOfFile(codec, args)
    sampler = None if args.sampler is None else named_sampler(args.sampler, args.trust)

    def one(job: Job) -> Made:
        nameless = job.target is not None and not job.target.suffix and is_stream(job.target)  # /dev/stdout
        kind = _picture_format(None if nameless else job.target)
        data = read(job.source)
        own, weights = codec_of(data)
        image = own.decompress(
            data,
            realism=args.realism,
            steps=args.steps,
            sampler=sampler,
            seed=args.seed,
            progress=tiles_bar(jobs),
        )
        part = image.info.get("gic")
        picture, converted = encode_picture(image, kind, str(job.target or "standard output"))
        write(job.target, picture)
        notes = [*([part] if part else []), *([f"by the weights {weights}"] if weights else []), *converted]
        return Made(
            "; ".join([f"{image.width} x {image.height} pixels", *notes]),
            {"width": image.width, "height": image.height, "bytes": len(picture), "notes": notes},
        )

    return run_jobs(jobs, one, args, together)


def _picture_format(target: Path | None) -> str:
    """Pillow's name for the format of the target's suffix, PNG for standard output."""
    from PIL import Image

    suffix = ".png" if target is None else target.suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind is None or kind not in Image.SAVE:
        raise ConfigError(f"{target}: the suffix {suffix!r} names no picture format that can be written; use .png")
    return str(kind)
