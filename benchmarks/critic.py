"""How well the critic ranks, beside NIQE and BRISQUE, and what becomes of a picture that climbs its gradient.

    python benchmarks/critic.py --images val-000000.tar --alex alexnet_features.pth --niqe niqe_modelparameters.mat \
        --brisque brisque_svm_weights.pth --codec last.ckpt --output docs/results/critic.json --pictures critic

Ranking: windows of 288 x 288 from the middle of photographs that were not trained on, as they are and spoiled by each
kind of distortion at four strengths. For each kind: Spearman's rank correlation of a metric with the strength, over all
photographs together; the share of pairs of one photograph that it puts in order; its rank correlation with LPIPS
(alex), which no critic was trained on. Metrics of which lower is better enter with a minus.

Climbing: forty steps of Adam up ``Q - w |x - start|^2`` from spoiled pictures, on the pixels and on the latent of the
codec's decoder; whether LPIPS and PSNR to the original get better or worse.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyiqa
import torch
from rich.progress import track
from scipy.stats import spearmanr
from torch import Tensor

from gic.checkpoint import load_codec
from gic.critic import WEIGHTS, load_critic
from gic.distortions import HELD_OUT, TRAINED, Distortion, distort, through_codec
from gic.errors import DataError
from gic.files import write_bytes
from gic.images import as_float, to_image
from gic.model import Codec
from gic.perceptual import lpips_network
from gic.stream import EvalImages

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
SIDE = 288
Metric = Callable[[Tensor], float]


def windows(source: Sequence[str], limit: int) -> list[Tensor]:
    """Windows from the middle of pictures, as many as asked for, evenly over the source."""
    pictures = []
    for item in EvalImages(source):
        image = item["image"]
        if image is None:
            raise DataError(f"{item['key']}: {item['error']}")
        top, left = (image.shape[1] - SIDE) // 2, (image.shape[2] - SIDE) // 2
        if min(top, left) >= 0:
            pictures.append(as_float(image[:, top : top + SIDE, left : left + SIDE]))
    return pictures[:: max(1, len(pictures) // limit)][:limit]


def defined(metric: torch.nn.Module, x: Tensor) -> float:
    """A metric of pyiqa; NaN where it is not defined, as NIQE for pictures with flat blocks only."""
    try:
        return float(metric(x))
    except torch.linalg.LinAlgError:
        return float("nan")


def eight_bit(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round() / 255


# --- ranking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoiled:
    """One spoiled picture, with its scores by metric."""

    photograph: int
    kind: str
    strength: float
    scores: Mapping[str, float]


def score_all(
    pictures: Sequence[Tensor], kinds: Mapping[str, Distortion], metrics: Mapping[str, Metric], lpips: torch.nn.Module
) -> list[Spoiled]:
    rows = []
    for n, x in enumerate(track(pictures, description="ranking")):
        plan = [("none", 0.0)] + [(kind, strength) for kind in kinds for strength in STRENGTHS]
        for kind, strength in plan:
            y = x if strength == 0 else eight_bit(distort(kinds, kind, x, strength, seed=1000 + n))
            scores = {name: metric(y[None]) for name, metric in metrics.items()}
            with torch.no_grad():
                scores["lpips"] = -float(lpips(2 * y[None] - 1, 2 * x[None] - 1))
            rows.append(Spoiled(n, kind, strength, scores))
    return rows


def rank(rows: Sequence[Spoiled], kinds: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Correlations of each metric over the pictures of these kinds and the photographs as they are."""
    chosen = [row for row in rows if row.kind in kinds or row.strength == 0]
    undefined = len(chosen)
    chosen = [row for row in chosen if all(np.isfinite(score) for score in row.scores.values())]
    undefined -= len(chosen)  # these count for no metric
    strength = np.array([row.strength for row in chosen])
    judge = np.array([row.scores["lpips"] for row in chosen])
    found: dict[str, dict[str, float]] = {}
    for name in names:
        score = np.array([row.scores[name] for row in chosen])
        right = total = 0
        for kind in kinds:
            for n in {row.photograph for row in chosen}:
                line = sorted(
                    (r.strength, r.scores[name]) for r in chosen if r.photograph == n and r.kind in (kind, "none")
                )
                pairs = [(a[1], b[1]) for i, a in enumerate(line) for b in line[i + 1 :]]
                right += sum(a > b for a, b in pairs)
                total += len(pairs)
        found[name] = {"pairs": round(right / total, 3), "srocc_lpips": _spearman(score, judge)}
        if undefined:
            found[name]["left_out"] = undefined
        if len(kinds) == 1:
            found[name]["srocc_strength"] = _spearman(score, -strength)
    return found


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return round(float(spearmanr(a, b).statistic), 3)


# --- climbing ---------------------------------------------------------------------------------------------------------


def climb(
    critic: torch.nn.Module,
    start: Tensor,
    render: Callable[[Tensor], Tensor],
    fidelity: float,
    lr: float,
    steps: int = 40,
) -> Tensor:
    """Climb Q - fidelity * MSE from ``start``, whose picture is ``render(start)``."""
    x0 = render(start).detach().clamp(0, 1)
    free = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=lr)
    for _ in range(steps):
        x = render(free)
        loss = fidelity * (x - x0).square().mean() - critic(x.clamp(0, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return eight_bit(render(free).detach())


def climb_all(
    critic: torch.nn.Module, pictures: Sequence[Tensor], codec: Codec, judge: torch.nn.Module, folder: Path | None
) -> list[dict[str, float | str]]:
    """Climb from each start at two weights; means over the pictures."""
    kinds = {**TRAINED, **HELD_OUT, "codec": through_codec(codec)}
    starts = {"none": 0.0, "blur": 0.4, "motion_blur": 0.4, "jpeg": 0.5, "avif": 0.5, "noise": 0.4, "codec": 0.4}
    table: list[dict[str, float | str]] = []
    strips: dict[int, list[Tensor]] = {n: [x] for n, x in enumerate(pictures)}
    for kind in track([*starts, "latent of the codec"], description="climbing"):
        for fidelity in (500.0, 50.0):
            rows = []
            for n, x in enumerate(pictures):
                x0, x1 = _climb_one(critic, codec, kinds, kind, starts.get(kind, 0.4), x, n, fidelity)
                rows.append([_judge(critic, judge, p, x) for p in (x0, x1)] + [[_rms(x1 - x0)] * 3])
                strips[n] += [x0, x1] if fidelity == 500 else [x1]
            before, after, moved = np.array(rows).mean(0)
            table.append(
                {
                    "start": kind,
                    "fidelity": fidelity,
                    "moved_rms_8bit": round(float(moved[0]), 2),
                    **{f"{m}_before": round(float(v), 4) for m, v in zip(("q", "lpips", "psnr"), before, strict=True)},
                    **{f"{m}_after": round(float(v), 4) for m, v in zip(("q", "lpips", "psnr"), after, strict=True)},
                }
            )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for n, strip in strips.items():
            lines = [torch.cat([strip[0], *strip[i : i + 3]], dim=-1) for i in range(1, len(strip), 3)]
            to_image(torch.cat(lines, dim=-2)).save(folder / f"climb-{n:02d}.png")
    return table


def _climb_one(
    critic: torch.nn.Module,
    codec: Codec,
    kinds: Mapping[str, Distortion],
    kind: str,
    strength: float,
    x: Tensor,
    n: int,
    fidelity: float,
) -> tuple[Tensor, Tensor]:
    if kind != "latent of the codec":
        x0 = eight_bit(distort(kinds, kind, x, strength, n) if strength else x)
        return x0, climb(critic, x0[None], lambda free: free, fidelity, lr=1 / 255)[0]
    q = torch.tensor([codec.q_min * (codec.q_max / codec.q_min) ** strength])
    with torch.no_grad():
        y_hat = codec(codec.pad(x[None]), q, generator=torch.Generator().manual_seed(n)).y_hat

    def render(y: Tensor) -> Tensor:
        return codec.compressor.synthesise(y)[..., :SIDE, :SIDE]

    with torch.no_grad():
        x0 = eight_bit(render(y_hat))[0]
    return x0, climb(critic, y_hat, render, fidelity, lr=0.1)[0]


def _judge(critic: torch.nn.Module, judge: torch.nn.Module, y: Tensor, x: Tensor) -> list[float]:
    with torch.no_grad():
        lpips = float(judge(2 * y[None] - 1, 2 * x[None] - 1))
        mse = float((y - x).square().mean())
        return [float(critic(y[None])), lpips, -10 * float(np.log10(max(mse, 1e-5)))]


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) * 255


# --- the whole --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--critic", default=str(WEIGHTS))
    parser.add_argument("--alex", required=True, help="features of AlexNet, for LPIPS")
    parser.add_argument("--niqe", help="pyiqa's niqe_modelparameters.mat")
    parser.add_argument("--brisque", help="pyiqa's brisque_svm_weights.pth")
    parser.add_argument("--codec", required=True, help="checkpoint of a codec")
    parser.add_argument("--climb-images", type=int, default=6)
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the climbs")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    critic = load_critic(args.critic)
    judge = lpips_network("alex", args.alex)
    codec = load_codec(args.codec)
    metrics: dict[str, Metric] = {"critic": lambda x: float(critic(x))}
    for name, path in (("niqe", args.niqe), ("brisque", args.brisque)):
        if path is not None:
            if name == "brisque":
                torch.load(path, weights_only=True)  # pyiqa unpickles it: prove first that it holds tensors alone
            network = pyiqa.create_metric(name, pretrained_model_path=path, device="cpu")
            metrics[name] = lambda x, network=network: -defined(network, x)
    pictures = windows(args.images, args.limit)
    trained = {**TRAINED, "codec": through_codec(codec)}
    rows = score_all(pictures, {**trained, **HELD_OUT}, metrics, judge)
    names = list(metrics)
    report = {
        "pictures": len(pictures),
        "side": SIDE,
        "strengths": STRENGTHS,
        "critic": sha256(Path(args.critic).read_bytes()).hexdigest()[:16],
        "held_out": {kind: rank(rows, [kind], names) for kind in HELD_OUT},
        "trained": {kind: rank(rows, [kind], names) for kind in trained},
        "all_held_out": rank(rows, list(HELD_OUT), names),
        "all_trained": rank(rows, list(trained), names),
        "all": rank(rows, [*trained, *HELD_OUT], names),
        "mean_score": {"none": _mean_score(rows, "none")} | {k: _mean_score(rows, k) for k in (*trained, *HELD_OUT)},
        "climbing": climb_all(critic, pictures[: args.climb_images], codec, judge, args.pictures),
    }
    text = json.dumps(report, indent=1) + "\n"
    if args.output is not None:
        write_bytes(args.output, text.encode())
    print(text)


def _mean_score(rows: Sequence[Spoiled], kind: str) -> list[float]:
    strengths = sorted({row.strength for row in rows if row.kind == kind})
    scores = [[r.scores["critic"] for r in rows if r.kind == kind and r.strength == s] for s in strengths]
    return [round(sum(line) / len(line), 3) for line in scores]


if __name__ == "__main__":
    main()
