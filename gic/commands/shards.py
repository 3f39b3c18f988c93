"""``gic shards``: WebDataset shards from folders of pictures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from gic.errors import ConfigError, one_line


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic shards``."""
    parser.description = (
        "Write training shards (tar files in WebDataset form) from pictures of any size and mode. JPEG files that are "
        "already upright 8 bit sRGB are copied unchanged, with their metadata; others are converted to 8 bit sRGB and "
        "encoded again. Pictures that were converted or left out are listed at the end."
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="IN", help="picture files, folders (searched to any depth) and patterns")
    add("-o", "--output", required=True, metavar="FOLDER", help="folder for the shards")
    add(
        "--prefix",
        default="train",
        help="shards are named PREFIX-000000.tar and so on; use train and val (default train)",
    )
    add(
        "--samples-per-shard",
        type=int,
        default=1000,
        metavar="N",
        help="pictures in each shard (default 1000); have at least as many shards as GPUs times loader workers",
    )
    add("--image-format", choices=("jpg", "png", "webp"), default="jpg", help="jpg (4:4:4), or lossless png or webp")
    add("--quality", type=int, default=95, metavar="1..100", help="JPEG quality (default 95)")
    add("--max-side", type=int, metavar="PIXELS", help="scale pictures down to at most this longer side")
    add(
        "--min-side",
        type=int,
        default=0,
        metavar="PIXELS",
        help="leave out pictures whose shorter side is less; training needs its crop, 256",
    )
    add("--shuffle-seed", type=int, default=0, metavar="SEED", help="of the order of the pictures (default 0)")
    add("--sorted", action="store_true", help="keep the pictures sorted by path")
    add("--workers", type=int, default=4, metavar="N", help="threads that decode and encode (default 4)")
    add("--overwrite", action="store_true", help="replace the shards of this prefix that are in the folder already")


def run(args: Namespace) -> int:
    """Run ``gic shards``; returns the exit code."""
    from rich.console import Console

    from gic.data.shards import left_out, summary, too_small, write_shards

    if not args.output:
        raise ConfigError("the output has an empty name: name a folder")
    if args.output.endswith(".tar"):
        raise ConfigError(f"{args.output} would be a folder: name one for the shards, and --prefix for their names")
    report = write_shards(
        args.inputs,
        args.output,
        prefix=args.prefix,
        samples_per_shard=args.samples_per_shard,
        image_format=args.image_format,
        quality=args.quality,
        max_side=args.max_side,
        min_side=args.min_side,
        shuffle_seed=None if args.sorted else args.shuffle_seed,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    console = Console()
    console.print(summary(report))
    for line in filter(None, [*left_out(report), too_small(report)]):
        console.print(one_line(line), soft_wrap=True, markup=False, highlight=False)
    return 0
