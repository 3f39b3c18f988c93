"""``gic truncate``: progressive ``.gic`` files cut to a size."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from gic.bitstream.container import SUFFIX, truncate, unpack
from gic.commands.jobs import Job, Made, add_files, find_gic_files, plan_jobs, read, run_jobs, write
from gic.errors import ConfigError


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic truncate``."""
    add_files(parser, f"progressive {SUFFIX} files, folders, patterns, or - for standard input", None)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--max-bytes", type=int, metavar="N", help="largest file size in bytes, never exceeded")
    size.add_argument("--bpp", type=float, metavar="BITS", help="the same in bits per pixel")


def run(args: Namespace) -> int:
    """Run ``gic truncate``; returns the exit code."""
    if args.output is None and args.inputs != ["-"]:
        raise ConfigError("name the result: -o FILE, or -o FOLDER/ for several")
    if not 0 < (args.bpp if args.max_bytes is None else args.max_bytes) < float("inf"):
        raise ConfigError("--max-bytes and --bpp take a positive number")

    def one(job: Job) -> Made:
        data = read(job.source)
        file = unpack(data)
        pixels = file.width * file.height
        cut = truncate(data, int(args.bpp * pixels / 8) if args.max_bytes is None else args.max_bytes)
        write(job.target, cut)
        rate = len(cut) * 8 / pixels
        lost = file.progressive.lost if file.progressive else ""
        notes = [unpack(cut).part or "the whole file", *filter(None, [lost])]
        return Made(
            "; ".join([f"{len(cut)} bytes, {rate:.4f} bpp", *notes]),
            {"bytes": len(cut), "bits_per_pixel": round(rate, 4), "notes": notes},
        )

    return run_jobs(plan_jobs(args.inputs, args.output, SUFFIX, find_gic_files), one, args)
