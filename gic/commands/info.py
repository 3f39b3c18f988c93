"""``gic info``: what is in a ``.gic`` file."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from gic.bitstream.container import SUFFIX, unpack
from gic.commands.jobs import STREAM, find_gic_files, read
from gic.errors import GicError, one_line


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic info``."""
    parser.add_argument(
        "inputs", nargs="+", metavar="IN", help=f"{SUFFIX} files, folders, patterns, or - for standard input"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each file")


def run(args: Namespace) -> int:
    """Run ``gic info``; returns the exit code."""
    code = 0
    for given in args.inputs:
        try:
            paths: list[Path | None] = [None] if given == STREAM else [*find_gic_files([given])]
        except GicError as error:
            print(one_line(f"gic info: {error}"), file=sys.stderr)
            code = 2
            continue
        for path in paths:
            name = STREAM if path is None else str(path)
            try:
                facts = describe(read(path))
            except GicError as error:
                print(one_line(f"gic info: {name}: {error}"), file=sys.stderr)
                code = 2
                continue
            if args.json:
                print(json.dumps({"file": name, **facts}))
            else:
                print(one_line(name))
                for key, value in facts.items():
                    if (key == "tile_side" and not value) or key == "cut_points":
                        continue  # one piece; and what is many numbers
                    if key == "levels":
                        for level in value:
                            at = f"{level['bytes']} bytes, {level['bits_per_pixel']:.4f} bits per pixel"
                            print(f"  {'level':<16}q {level['q']:.4f} at {at}")
                        continue
                    print(f"  {key.replace('_', ' '):<16}{value}")
    return code


def describe(data: bytes) -> dict[str, Any]:
    """Fields of a file, as ``gic info`` prints them; sizes in bytes.

    Raises:
        FormatError: If the file is damaged, for example if the checksum is wrong.
    """
    file = unpack(data)
    z_bytes, y_bytes = sum(len(p.z) for p in file.payloads), sum(len(p.y) for p in file.payloads)
    pixels = file.width * file.height
    progressive: dict[str, Any] = {}
    if (chunks := file.progressive) is not None:
        y_bytes += sum(len(chunk.data) for chunk in chunks.chunks)
        ends = zip(file.levels, (chunks.start, *chunks.ends), strict=True)
        progressive = {
            "levels": [
                {"q": round(q, 4), "bytes": end, "bits_per_pixel": round(end * 8 / pixels, 4)} for q, end in ends
            ],
            "cut_points": [chunks.start, *(stop for stop in chunks.stops if stop <= chunks.held)],
            "whole_bytes": chunks.size,
            "regions": f"up to {file.octaves:g} octaves coarser" if file.regions else "none",
            "held": file.part or "all",
        }
    return {
        "width": file.width,
        "height": file.height,
        "grey": file.grey,
        "model": file.model_id.hex(),
        "version": 1 if file.progressive is None else 2,
        "q": round(file.q, 4),
        "quantizer": file.quantizer,
        "bytes": len(data),
        "bits_per_pixel": round(len(data) * 8 / pixels, 4),
        "header_bytes": len(data) - z_bytes - y_bytes,
        "z_bytes": z_bytes,
        "y_bytes": y_bytes,
        "tiles": len(file.payloads),
        "tile_side": file.tile,
        "exif_bytes": len(file.metadata.exif),
        "icc_bytes": len(file.metadata.icc),
        "checksum": "ok" if file.progressive is None or not file.progressive.lost else "damaged",
        **progressive,
    }
