"""``gic fit-critic``: trains the critic on self-made distortions of photographs (DESIGN 6).

Each photograph gives a group: itself, and a few kinds of distortion at two strengths each. The label of a picture is
exp(-3 (LPIPS + 1 - MS-SSIM)) against its original, so that kinds can be compared; of two strengths of one kind the
weaker has the higher label, whatever the metrics say.

In every step some pictures of each group climb the critic's gradient, going on from where they got to before, and the
critic learns what has become of them by the same label: so it is no use to climb it into rubbish.
"""

from __future__ import annotations

import subprocess
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from gic.commands import add_trust_option
from gic.critic import CriticNetwork, save_critic
from gic.distortions import TRAINED, Distortion, distort, gaussian, through_codec
from gic.errors import ConfigError
from gic.images import as_float
from gic.plan import random_stream
from gic.shards import progress_bar
from gic.stream import TrainStream
from gic.tarshards import expand_shards

_DISTORT, _STEP = 200, 201  # names of the random streams that are drawn from here

MARGIN = 16
"""Pixels by which photographs are larger than the window that is kept once they are spoiled."""

MS_SSIM_SCALES = (0.071, 0.4529, 0.4761)
"""Weights of the three finest scales of MS-SSIM, of sum 1: crops have no more."""


@dataclass(frozen=True)
class Recipe:
    """How a critic is trained.

    Attributes:
        photographs: Crops of photographs that are prepared.
        side: Side of these crops, in pixels.
        kinds: Kinds of distortion for each photograph, two strengths each.
        steps: Steps of the optimiser.
        batch: Photographs in a step.
        lr: Largest learning rate, reached after a tenth of the steps.
        temperature: Difference of scores at which one picture wins over another at e : 1.
        climbers: Pictures of each photograph from which the critic climbs.
        restart: Chance that a climb starts anew from a picture of the group when its photograph comes up again.
        climb_steps: Largest number of steps that a climb goes on for then.
        climb_stride: Smallest and largest step of a climb, in steps of 8 bit.
        seed: Of everything random.
    """

    photographs: int = 1200
    side: int = 96
    kinds: int = 3
    steps: int = 2500
    batch: int = 4
    lr: float = 3e-3
    temperature: float = 0.1
    climbers: int = 3
    restart: float = 0.3
    climb_steps: int = 6
    climb_stride: tuple[float, float] = (0.5, 3.0)
    seed: int = 0


class Groups(NamedTuple):
    """Photographs and what was made of them.

    Attributes:
        images: (N, V, 3, side, side), uint8; the first of each group is the photograph itself.
        labels: (N, V), in (0, 1].
    """

    images: Tensor
    labels: Tensor


def label(x_hat: Tensor, x: Tensor, lpips: nn.Module | None) -> Tensor:
    """Quality of pictures by their originals: exp(-3 (LPIPS + 1 - MS-SSIM)).

    Args:
        x_hat: Pictures (B, 3, H, W) in [0, 1], sides at least 64.
        x: Their originals.
        lpips: Network of :func:`gic.perceptual.lpips_network`; None leaves LPIPS out.

    Returns:
        (B,) in (0, 1], 1 for equals.
    """
    with torch.no_grad():
        similarity = multiscale_structural_similarity_index_measure(
            x_hat, x, data_range=1.0, betas=MS_SSIM_SCALES, reduction="none", normalize="relu"
        )
        distance = 1 - similarity.reshape(-1)
        if lpips is not None:
            distance = distance + lpips(2 * x_hat - 1, 2 * x - 1).flatten(1).mean(1)
    return torch.exp(-3 * distance.clamp_min(0))


def prepare(
    shards: Sequence[str],
    recipe: Recipe,
    codecs: Sequence[Distortion] = (),
    lpips: nn.Module | None = None,
    progress: bool = True,
) -> Groups:
    """Crop photographs, spoil them and label the results.

    Args:
        shards: As :func:`gic.tarshards.expand_shards` returns them.
        recipe: The recipe.
        codecs: Distortions by codecs; one of them takes a turn with every second photograph.
        lpips: As for :func:`label`.
        progress: Show a progress bar.

    Raises:
        DataError: If the shards hold no usable photographs.
    """
    count, side = recipe.photographs, recipe.side
    stream = TrainStream(shards, crop_size=side + MARGIN, batch_size=1, batches_per_epoch=count, seed=recipe.seed)
    versions = 1 + 2 * recipe.kinds
    images = torch.empty(count, versions, 3, side, side, dtype=torch.uint8)
    labels = torch.ones(count, versions)
    with progress_bar(progress) as bar:
        for n, batch in enumerate(bar.track(stream, total=count, description="distortions")):
            rng = random_stream(recipe.seed, _DISTORT, n)
            names = [str(name) for name in rng.choice(list(TRAINED), recipe.kinds, replace=False)]
            kinds = dict(TRAINED)
            if codecs and n % 2 == 0:
                names[0] = "codec"
                kinds["codec"] = codecs[n // 2 % len(codecs)]
            x = as_float(batch["image"][0])
            group = torch.stack([x, *(distort(kinds, name, x, s, seed) for name, s, seed in _plan(names, rng))])
            top, left = rng.integers(MARGIN + 1, size=2)  # grids of blocks lie anywhere in the window
            group = group[..., top : top + side, left : left + side]
            found = label(group[1:], group[:1].expand_as(group[1:]), lpips).reshape(-1, 2)
            labels[n, 1:] = found.sort(dim=1, descending=True).values.flatten()
            images[n] = (group * 255).round().to(torch.uint8)
    return Groups(images, labels)


def _plan(names: Sequence[str], rng: np.random.Generator) -> list[tuple[str, float, int]]:
    """Kind, strength and seed: two strengths of each kind from one seed, the weaker first."""
    plan = []
    for name in names:
        weak, strong = sorted(rng.uniform(0.05, 1, 2))
        seed = int(rng.integers(2**31))
        plan += [(name, float(weak), seed), (name, float(strong), seed)]
    return plan


def climb(network: nn.Module, x: Tensor, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """Change pictures so that the critic likes them better.

    Ascent along the gradient, or along the gradient without its finest detail, with steps between those of steepest
    ascent and of equal size everywhere.

    Args:
        network: The critic.
        x: Pictures (B, 3, H, W) in [0, 1].
        recipe: The recipe.
        rng: Where the size and number of steps come from.

    Returns:
        Pictures of the same shape, in [0, 1].
    """
    low, high = np.log(recipe.climb_stride)
    stride = torch.from_numpy(np.exp(rng.uniform(low, high, (len(x), 1, 1, 1))) / 255).to(x)
    kernel = gaussian(float(rng.choice([0.0, 0.7, 1.5]))).expand(3, 1, 1, -1)
    reach = kernel.shape[-1] // 2
    for _ in range(int(rng.integers(1, recipe.climb_steps + 1))):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
        gradient = F.conv2d(gradient, kernel, padding=(0, reach), groups=3)
        gradient = F.conv2d(gradient, kernel.transpose(2, 3), padding=(reach, 0), groups=3)
        usual = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        x = (x.detach() + stride * gradient / (gradient.abs() + usual)).clamp(0, 1)
    return x.detach()


def critic_loss(score: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Rank within groups and closeness to the labels.

    For each pair of a group the critic's odds sigmoid((s_i - s_j) / T) are to be those of the labels (cross entropy
    less its least value, so that 0 is perfect); the mean squared error beside it makes scores of groups comparable.

    Args:
        score: (G, V).
        label: (G, V), in [0, 1].
        temperature: T.

    Returns:
        A number >= 0.
    """
    odds = (score[:, :, None] - score[:, None, :]) / temperature
    wanted = torch.sigmoid((label[:, :, None] - label[:, None, :]) / temperature)
    rank = F.binary_cross_entropy_with_logits(odds, wanted) - F.binary_cross_entropy(wanted, wanted)
    return rank + 5 * F.mse_loss(score, label)


def _running(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    """Average over about the last hundred steps, fewer at first; counters as they are."""
    return torch.lerp(new, old, min(0.99, (1 + int(count)) / (10 + int(count)))) if old.is_floating_point() else new


def train(groups: Groups, recipe: Recipe, lpips: nn.Module | None = None, progress: bool = True) -> CriticNetwork:
    """Train a critic on prepared groups.

    Args:
        groups: From :func:`prepare`.
        recipe: The recipe.
        lpips: As for :func:`label`, for what the critic climbs to.
        progress: Show a progress bar.

    Returns:
        The running average of the weights, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = CriticNetwork().to(memory_format=torch.channels_last)
    average = AveragedModel(network, avg_fn=_running, use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps, pct_start=0.1)
    climbers = groups.images[:, [0] * recipe.climbers].half() / 255  # where each climb has got to
    with progress_bar(progress) as bar:
        task = bar.add_task("critic", total=recipe.steps)
        for step in range(recipe.steps):
            rng = random_stream(recipe.seed, _STEP, step)
            chosen = rng.choice(len(climbers), recipe.batch, replace=False)
            turns = int(rng.integers(4))
            x = as_float(groups.images[chosen])
            start = climbers[chosen].float()
            for i, j in zip(*np.nonzero(rng.random(start.shape[:2]) < recipe.restart), strict=True):
                start[i, j] = x[i, rng.integers(x.shape[1])]
            x, start = (torch.rot90(pictures, turns, (-2, -1)) for pictures in (x, start))
            end = climb(network.eval(), start.flatten(0, 1), recipe, rng)
            worth = label(end, x[:, :1].expand_as(start).flatten(0, 1), lpips).reshape(start.shape[:2])
            end = end.reshape(start.shape)
            climbers[chosen] = torch.rot90(end, -turns, (-2, -1)).half()
            score = network.train()(torch.cat([x, end], dim=1).flatten(0, 1)).reshape(recipe.batch, -1)
            loss = critic_loss(score, torch.cat([groups.labels[chosen], worth], dim=1), recipe.temperature)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            bar.update(task, advance=1, description=f"critic, loss {loss.item():.3f}")
    trained = average.module
    assert isinstance(trained, CriticNetwork)
    return trained.eval()


# --- the command ------------------------------------------------------------------------------------------------------


def add_fit_critic_options(parser: ArgumentParser) -> None:
    """Options of ``gic fit-critic``."""
    parser.description = (
        "Train the no-reference critic on self-made distortions of photographs (CPU, about half an hour). Labels come "
        "from MS-SSIM and LPIPS, whose backbone is a local file or a download."
    )
    recipe = Recipe()
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="training shards: files, folders, patterns")
    add("-o", "--output", required=True, metavar="FILE", help="weights file to write, .safetensors")
    add("--codec", action="append", default=[], metavar="FILE", help="checkpoint of a gic codec as one more distortion")
    add("--backbone", metavar="FILE", help="features of SqueezeNet 1.1 for LPIPS (default: torchvision downloads them)")
    add("--no-lpips", action="store_true", help="label by MS-SSIM alone: needs no backbone, ranks worse")
    add("--photographs", type=int, default=recipe.photographs, metavar="N", help="crops (default %(default)s)")
    add("--steps", type=int, default=recipe.steps, metavar="N", help="training steps (default %(default)s)")
    add("--batch", type=int, default=recipe.batch, metavar="N", help="photographs in a step (default %(default)s)")
    add("--lr", type=float, default=recipe.lr, help="largest learning rate (default %(default)s)")
    add("--seed", type=int, default=recipe.seed, help="of everything random (default %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing file")
    add_trust_option(parser)


def provenance(
    recipe: Recipe, network: CriticNetwork, shards: Sequence[str], codecs: Sequence[str], lpips: bool
) -> dict[str, Any]:
    """What a weights file says of where it comes from."""
    from gic import __version__

    about: dict[str, Any] = {
        "widths": network.widths,
        "recipe": asdict(recipe),
        "shards": [Path(shard).name for shard in shards],
        "codecs": [Path(path).name for path in codecs],
        "labels": "MS-SSIM and LPIPS (squeeze)" if lpips else "MS-SSIM",
        "gic": __version__,
        "torch": torch.__version__,
    }
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return about | ({"commit": found.stdout.strip()} if found.returncode == 0 else {})


def fit_critic(args: Namespace) -> int:
    """Run ``gic fit-critic``; returns the exit code.

    Raises:
        ConfigError: If a setting lies outside its range, the output exists, or a checkpoint cannot be read.
        DataError: If the shards cannot be used.
    """
    from gic.checkpoint import load_codec
    from gic.perceptual import lpips_network

    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise ConfigError(f"{output} exists: give --overwrite to replace it")
    if output.suffix != ".safetensors":
        raise ConfigError(f"the output must end in .safetensors, not {output}")
    for name in ("photographs", "steps", "batch"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(args, name)}")
    if args.batch > args.photographs:
        raise ConfigError(f"batch must be at most photographs, {args.photographs}, not {args.batch}")
    recipe = Recipe(photographs=args.photographs, steps=args.steps, batch=args.batch, lr=args.lr, seed=args.seed)
    shards = expand_shards(args.shards)
    codecs = [through_codec(load_codec(path, args.trust)) for path in args.codec]
    lpips = None if args.no_lpips else lpips_network("squeeze", args.backbone)
    network = train(prepare(shards, recipe, codecs, lpips), recipe, lpips)
    save_critic(output, network, provenance(recipe, network, shards, args.codec, lpips is not None))
    print(f"written: {output} ({output.stat().st_size / 1e6:.2f} MB)")
    return 0
