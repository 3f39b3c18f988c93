"""``gic compress``: pictures to ``.gic`` files at any rate."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from gic.bitstream.container import SUFFIX, unpack
from gic.commands.jobs import Job, Made, add_codec, add_files, load_codec, plan_jobs, read, run_jobs, tiles_bar, write
from gic.errors import ConfigError


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic compress``."""
    add_files(parser, "pictures: files, folders, patterns, or - for standard input", "PICTURE" + SUFFIX)
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--q", type=float, metavar="STEP", help="quantisation step, within the model's range")
    rate.add_argument(
        "--bpp",
        type=float,
        metavar="BITS",
        help="bits per pixel to aim at; where the model's range ends before, its end is taken, with a note",
    )
    rate.add_argument("--max-bytes", type=int, metavar="N", help="largest file size in bytes, never exceeded")
    rate.add_argument("--quality", type=float, metavar="0..100", help="0 smallest, 100 finest (default 50)")
    parser.add_argument("--strict-rate", action="store_true", help="make an error of a --bpp that cannot be reached")
    parser.add_argument(
        "--progressive",
        action="store_true",
        help="make a file that is a picture from its first kilobytes on, see gic truncate; a few per cent smaller, too",
    )
    parser.add_argument(
        "--roi",
        metavar="MASK",
        help="picture of the same size, for all inputs: white is finest, with the step --q; transparent is black",
    )
    parser.add_argument(
        "--roi-strength",
        type=float,
        metavar="OCTAVES",
        help="log2 of how much coarser black of the mask is, in quarters from 0.25 to 10 (default 2)",
    )
    parser.add_argument("--quantizer", choices=("round", "dither"), help="default: the model's")
    parser.add_argument("--seed", type=int, default=0, help="of the dither (default 0)")
    parser.add_argument("--keep-metadata", action="store_true", help="keep EXIF and the ICC profile in the file")
    add_codec(parser)


def run(args: Namespace) -> int:
    """Run ``gic compress``; returns the exit code."""
    from gic.pictures.find import find_images

    if args.roi_strength is not None and args.roi is None:
        raise ConfigError("--roi-strength is of a mask: name one, --roi MASK.png")
    mask = None if args.roi is None else read(Path(args.roi))
    jobs = plan_jobs(args.inputs, args.output, SUFFIX, find_images)
    codec, together = load_codec(args, len(jobs))

    def one(job: Job) -> Made:
        if job.target is not None and job.target.suffix != SUFFIX and _is_picture_suffix(job.target.suffix):
            raise ConfigError(f"{job.target} would not be what its suffix says: use {job.target.with_suffix(SUFFIX)}")
        encoding = codec.encoding(
            read(job.source),
            quantizer=args.quantizer,
            seed=args.seed,
            keep_metadata=args.keep_metadata,
            progressive=args.progressive,
            roi=mask,
            progress=tiles_bar(jobs),
            **({} if args.roi_strength is None else {"roi_strength": args.roi_strength}),
        )
        data = encoding.compress(
            q=args.q, bpp=args.bpp, max_bytes=args.max_bytes, quality=args.quality, strict_rate=args.strict_rate
        )
        write(job.target, data)
        file = unpack(data)
        bits_per_pixel = len(data) * 8 / (file.width * file.height)
        notes = [*encoding.notes, *filter(None, [encoding.shortfall(data, args.bpp)])]
        if args.progressive and len(file.levels) == 1:
            notes.append("of one level, as the model has none three times as coarse: it cannot be cut")
        if file.regions and max(file.regions) < max(encoding.regions):
            notes.append(f"black of the mask is {file.octaves:g} octaves coarser, where the model's range ends")
        levels = ", ".join(f"{q:.3f}" for q in reversed(file.levels))
        return Made(
            "; ".join([f"{len(data)} bytes, {bits_per_pixel:.4f} bpp, q {levels}", *notes]),
            {
                "width": file.width,
                "height": file.height,
                "bytes": len(data),
                "bits_per_pixel": round(bits_per_pixel, 4),
                "q": [round(q, 4) for q in reversed(file.levels)],
                "model": file.model_id.hex(),
                "notes": notes,
            },
        )

    return run_jobs(jobs, one, args, together)


def _is_picture_suffix(suffix: str) -> bool:
    from PIL import Image

    return suffix.lower() in Image.registered_extensions()
