"""A blind comparison by eye: gic at r = 1 beside AVIF of the same size, names hidden, order shuffled.

python benchmarks/preference.py sheets ~/photos --bpp 0.1 0.2 0.4 -o blind
python benchmarks/preference.py count blind --output docs/results/preference.json

`sheets` writes, for each picture and rate, a PNG with the original, then A and B, and `choices.csv`, in which you write
A, B or = beside its number, and why. `count` opens the key and says how often each was preferred. Until then leave
`key.json` closed, which tells which is which.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.progress import track
from strip import EDGE, avif

import gic

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
FIELDS = ["sheet", "choice", "why"]


def crop_of(image: Image.Image, side: int) -> tuple[int, int, int, int]:
    """The square of a picture with the most contrast: what there is to see, and chosen by no codec."""
    step, best = max(1, side // 4), (-1.0, (0, 0))
    grey = image.convert("L")
    for top in range(0, max(1, image.height - side + 1), step):
        for left in range(0, max(1, image.width - side + 1), step):
            values = grey.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BOX).getdata()
            mean = sum(values) / len(values)
            best = max(best, (sum((v - mean) ** 2 for v in values), (left, top)))
    left, top = best[1]
    return left, top, min(left + side, image.width), min(top + side, image.height)


def draw(cells: list[tuple[str, Image.Image]], zoom: int) -> Image.Image:
    """Pictures in a row, each with its name above."""
    width, height = (zoom * side for side in cells[0][1].size)
    sheet = Image.new("RGB", (len(cells) * (width + 8) - 8, height + EDGE), "white")
    for column, (name, picture) in enumerate(cells):
        ImageDraw.Draw(sheet).text((column * (width + 8) + 3, 3), name, fill="black")
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (column * (width + 8), EDGE))
    return sheet


def sheets(args: argparse.Namespace) -> None:
    """Write the sheets, the key and the list to fill in."""
    if args.output.exists() and any(args.output.iterdir()):
        sys.exit(f"preference.py: there are files in {args.output}: name another folder")
    paths = sorted(p for p in args.pictures.iterdir() if p.suffix.lower() in SUFFIXES)[: args.limit]
    if not paths:
        sys.exit(f"preference.py: there are no pictures in {args.pictures}")
    codec, draws = gic.load(args.checkpoint), random.Random(args.seed)
    trials = [(path, bpp) for path in paths for bpp in args.bpp]
    draws.shuffle(trials)
    first = [number % 2 == 0 for number in range(len(trials))]  # gic is A on half of the sheets
    draws.shuffle(first)
    args.output.mkdir(parents=True, exist_ok=True)
    key = []
    for number, (path, bpp) in enumerate(track(trials, description="sheets"), 1):
        original = Image.open(path).convert("RGB")
        data = codec.compress(original, bpp=bpp)
        other, size = avif(original, len(data))
        if not size:
            print(f"{path.name}: no AVIF has {bpp:g} bits per pixel, left out")
            continue
        pair = [("gic", codec.decompress(data, realism=args.realism)), ("AVIF", other)]
        if not first[number - 1]:
            pair.reverse()
        box = crop_of(original, args.side)
        named = [("original", original), *((letter, picture) for letter, (_, picture) in zip("AB", pair, strict=True))]
        name = f"{number:03d}"
        draw([(title, picture.crop(box)) for title, picture in named], args.zoom).save(args.output / f"{name}.png")
        bits = {"gic": len(data), "AVIF": size}
        key.append(
            {
                "sheet": name,
                "picture": path.name,
                "bpp": bpp,
                "A": pair[0][0],
                "B": pair[1][0],
                "box": box,
                "bytes": bits,
            }
        )
    about = {"realism": args.realism, "weights": codec.model_id.hex(), "seed": args.seed, "sheets": key}
    (args.output / "key.json").write_text(json.dumps(about, indent=1) + "\n")
    with (args.output / "choices.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows({"sheet": each["sheet"], "choice": "", "why": ""} for each in key)
    print(f"written: {len(key)} sheets in {args.output}; write A, B or = into {args.output / 'choices.csv'}")


def chance(wins: int, losses: int) -> float:
    """Probability of at least as uneven a count if nobody saw a difference: the sign test, two-sided.

    >>> chance(8, 0), chance(3, 3)
    (0.0078125, 1.0)
    """
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n
    return min(1.0, 2 * tail)


def count(args: argparse.Namespace) -> None:
    """Say how often each was preferred."""
    about: dict[str, Any] = json.loads((args.folder / "key.json").read_text())
    with (args.folder / "choices.csv").open(newline="") as file:
        rows = {row["sheet"]: row for row in csv.DictReader(file)}
    judged = []
    for sheet in about["sheets"]:
        row = rows.get(sheet["sheet"], {})
        choice = (row.get("choice") or "").strip().upper()
        if choice not in ("A", "B", "="):
            sys.exit(f"preference.py: sheet {sheet['sheet']} has no choice A, B or = in {args.folder / 'choices.csv'}")
        preferred = "neither" if choice == "=" else sheet[choice]
        judged.append({**sheet, "preferred": preferred, "why": (row.get("why") or "").strip()})
    judged.sort(key=lambda each: (each["bpp"], each["picture"]))
    rates = []
    for bpp in sorted({each["bpp"] for each in judged}):
        found = Counter(each["preferred"] for each in judged if each["bpp"] == bpp)
        p = chance(found["gic"], found["AVIF"])
        rates.append({"bpp": bpp, **{name: found[name] for name in ("gic", "AVIF", "neither")}, "p": p})
        print(
            f"{bpp:g} bits per pixel: gic {found['gic']}, AVIF {found['AVIF']}, neither {found['neither']}"
            f" (p = {p:.3f} if there were no difference)"
        )
    if args.output:
        facts = {name: about[name] for name in ("realism", "weights", "seed")}
        args.output.write_text(json.dumps({**facts, "rates": rates, "sheets": judged}, indent=1) + "\n")
        print(f"written: {args.output}")


def main() -> None:
    """Make the sheets, or count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("sheets", help="write the sheets")
    make.add_argument("pictures", type=Path, help="a folder")
    make.add_argument("--bpp", type=float, nargs="+", default=[0.1, 0.2, 0.4], help="bits per pixel")
    make.add_argument("--limit", type=int, default=16, help="pictures, the first by name")
    make.add_argument("--realism", type=float, default=1.0, help="r, 0 to 1")
    make.add_argument("--side", type=int, default=384, help="of the crop, in pixels")
    make.add_argument("--zoom", type=int, default=1, help="screen pixels for each pixel, along each side")
    make.add_argument("--seed", type=int, default=0, help="of the order")
    make.add_argument("--checkpoint", help="weights (default: those in the package)")
    make.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    make.set_defaults(run=sheets)
    counted = commands.add_parser("count", help="count the choices")
    counted.add_argument("folder", type=Path, help="what `sheets` wrote")
    counted.add_argument("--output", type=Path, help="a JSON file")
    counted.set_defaults(run=count)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
