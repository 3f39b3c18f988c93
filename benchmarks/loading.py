"""Training images per second: shards against a folder, against the JPEG decoder's own limit, against what a step eats.

    python benchmarks/loading.py [--train 'SHARDS/train-*.tar'] [--crop 128] [--output loading.json]

- decoder: Pillow decodes the same JPEG files from memory to RGB, and nothing else: the floor;
- folder: files of a folder in random order, decoded, cropped and scaled as gic does it, in this process;
- shards: gic's training stream in this process;
- shards, cached: the same with all pictures decoded before (data.cache_mb);
- shards, N workers: gic's loader with worker processes, in wall time, waited for batch by batch.

Without shards those that gic draws are used. The first four are in CPU time and take turns.
"""

from __future__ import annotations

import io
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import in_turns, machine, parser, save, show
from PIL import Image

from gic.data.module import TrainLoader
from gic.data.reading import expand_shards, read_shard
from gic.data.stream import TrainStream, _Tally
from gic.data.synthetic import ensure_synthetic_shards


def main() -> None:
    """Run all of it."""
    options = parser(__doc__)
    options.add_argument("--train", help="shards (default: drawn pictures)")
    options.add_argument("--crop", type=int, default=128)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--images", type=int, default=200, help="images in each turn (default 200)")
    options.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    batches = args.images // args.batch
    images = batches * args.batch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.train is None:
            ensure_synthetic_shards(folder / "drawn", train=64, val=1, progress=False)
        shards = expand_shards(args.train or sorted(str(path) for path in (folder / "drawn").glob("train-*.tar")))
        files: list[bytes] = []
        for shard in shards:
            found = (raw.data for raw in read_shard(shard) if raw is not None)
            files += [data for data in found if isinstance(data, bytes)][: images - len(files)]
        for number, data in enumerate(files):
            (folder / f"{number:06d}.jpg").write_bytes(data)
        settings = {"crop_size": args.crop, "batch_size": args.batch, "batches_per_epoch": batches}
        stream = TrainStream(shards, shuffle_buffer=64, **settings)  # type: ignore[arg-type]

        def decoder() -> None:
            for i in range(images):
                Image.open(io.BytesIO(files[i % len(files)])).convert("RGB")

        def from_folder() -> None:
            paths = sorted(folder.glob("*.jpg"))
            random.Random(0).shuffle(paths)
            rng = np.random.default_rng(0)
            for first in range(0, images, args.batch):
                chosen = [paths[i % len(paths)] for i in range(first, first + args.batch)]
                torch.stack([stream._crop(Image.open(path).convert("RGB"), rng) for path in chosen])

        def from_shards() -> None:
            assert sum(len(batch["image"]) for batch in stream) == images  # type: ignore[index]

        cached = TrainStream(shards, shuffle_buffer=64, cache_mb=4000, **settings)  # type: ignore[arg-type]
        for raw in (raw for shard in shards for raw in read_shard(shard)):
            cached._decode(raw, _Tally(1.0))

        def from_cache() -> None:
            assert sum(len(batch["image"]) for batch in cached) == images  # type: ignore[index]

        runs: dict[str, Callable[[], object]] = {
            "decoder": decoder,
            "folder": from_folder,
            "shards": from_shards,
            "shards, cached": from_cache,
        }
        rates = {name: images / taken for name, taken in in_turns(runs, args.rounds, "cpu").items()}
        for workers in args.workers:
            found = []
            for _ in range(args.rounds):
                loader = TrainLoader(stream, num_workers=workers)
                waiting = iter(loader)
                next(waiting)  # the start of the workers does not count
                start = time.perf_counter()
                rest = sum(1 for _ in waiting)
                found.append(rest * args.batch / (time.perf_counter() - start))
            rates[f"shards, {workers} workers, wall"] = max(found)
    show(
        f"crops of {args.crop}",
        ("from", "images/s", "of the decoder's"),
        [(name, rate, rate / rates["decoder"]) for name, rate in rates.items()],
    )
    about = machine("cpu") | {"timing": "CPU time of one thread, in turns, best of all rounds; with workers wall time"}
    report = {
        "machine": about,
        "crop": args.crop,
        "images": images,
        "shards": Path(args.train).name if args.train else "drawn",
    }
    save({**report, "images_per_second": rates}, args.output)


if __name__ == "__main__":
    main()
