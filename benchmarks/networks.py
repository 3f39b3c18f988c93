"""Which networks and optimiser settings learn faster: named variants trained from scratch for the same CPU time.

python benchmarks/networks.py --train 'SHARDS/train-*.tar' --val SHARDS/val-000000.tar --minutes 30 -o FILE

A variant is a set of overrides on the configs of the weights that ship: first the prior of the lapped coefficients
(configs/weights/small-1-prior.yaml), then rate and distortion (small-2-compressor.yaml), with the product's own
objective, data and codec. One thread; the clock is the CPU time of the process, so that a busy machine does not count,
and the cosine of the learning rate follows the share of it that is used. All variants see the same seed. What is
measured, on corners of the first validation photographs with the averaged weights: ideal bits and PSNR at five levels,
the loss of the second stage, and the bits at equal PSNR (BD-rate) against the first variant.

The file keeps what is measured; a variant that is in it is not trained again. Beside it lie the priors that variants
share, `FILE.prior-*.pt`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import machine, save, show
from torch import Tensor

from gic.benchmark.bd_rate import bd_rate
from gic.benchmark.results import Curve, Measurement, Point
from gic.codec.checkpoints import build_codec
from gic.configs import expand_configs
from gic.data.module import ImageData
from gic.data.stream import EvalImages
from gic.models.codec import Codec, macs_per_pixel, parameter_counts, trainable_parameters
from gic.pictures.tensors import as_float
from gic.quality.metric import MetricInfo
from gic.training.objective import Objective, mean_squared_error, psnr, rate_distortion_lambda
from gic.training.schedule import WarmupCosine

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "weights"
STAGES = {"prior": CONFIGS / "small-1-prior.yaml", "compressor": CONFIGS / "small-2-compressor.yaml"}
LEVELS = (1.0, 2.0, 4.0, 8.0, 16.0)
LOOKS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the second stage after which the codec is measured; it is before it, too."""

COMPRESSOR = "model.codec.init_args.compressor.init_args."
REVERSE = "model.codec.init_args.reverse.init_args."
CODEC = "model.codec.init_args."
OPTIMIZER = "model.optimizer.init_args."

BEFORE = {
    COMPRESSOR + "hyper_activity": False,
    COMPRESSOR + "prior": "gaussian",
    CODEC + "q_max": 16.0,
    "compressor:model.trainable": ["compressor"],
    "compressor:model.objective.init_args.reverse_weight": 0.0,
    "compressor:data.batch_size": 2,
}
"""`small` and its second stage as they were when weights 0.4 were made."""
ACTIVITY = {COMPRESSOR + "hyper_activity": True}
PRIOR = ["compressor.h_a", "compressor.h_s", "compressor.prior_z", "compressor.detail"]
DETAIL = {COMPRESSOR + "detail_channels": 256, CODEC + "q_min": 0.4, "prior:model.trainable": PRIOR}

VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "small": {COMPRESSOR + "hyper_activity": True, COMPRESSOR + "prior": "laplace"},
    "other seed": {"seed_everything": 1},
    "activity": ACTIVITY,
    "detail": DETAIL,
    "activity, detail": ACTIVITY | DETAIL,
    "activity, prior lr 3e-3": ACTIVITY | {"prior:" + OPTIMIZER + "lr": 3e-3},
    "activity, lr 1e-3": ACTIVITY | {"compressor:" + OPTIMIZER + "lr": 1e-3},
    "prior lr 3e-3": {"prior:" + OPTIMIZER + "lr": 3e-3},
    "prior lr 1e-2": {"prior:" + OPTIMIZER + "lr": 1e-2},
    "prior 1 crop": {"prior:data.batch_size": 1},
    "lr 1e-3": {"compressor:" + OPTIMIZER + "lr": 1e-3},
    "lr 2e-3": {"compressor:" + OPTIMIZER + "lr": 2e-3},
    "1 crop": {"compressor:data.batch_size": 1},
    "4 crops": {"compressor:data.batch_size": 4},
    "low resolution": {
        "compressor:" + COMPRESSOR + "widths": [12, 48, 128, 224],
        "compressor:" + COMPRESSOR + "blocks": [1, 1, 2, 2],
    },
}
"""What each variant changes: dotted keys of the config, in both stages or in the one named before a colon."""


def config_of(stage: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a stage with a variant's changes."""
    config = _read(STAGES[stage])
    for key, value in {**BEFORE, **overrides}.items():
        named, _, path = key.rpartition(":")
        if named in ("", stage):
            *parents, last = path.split(".")
            place = config
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
    return config


def _read(path: Path) -> dict[str, Any]:
    """A config on top of those that it extends."""
    result: dict[str, Any] = {}
    for text in expand_configs(["--config", str(path)])[1::2]:
        own = yaml.safe_load(Path(text).read_text() if text.endswith(".yaml") else text)
        result = _merged(result, own)
    return result


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else copy.deepcopy(value)
    return result


def train(
    config: Mapping[str, Any],
    codec: Codec,
    train_shards: str,
    seconds: float,
    looks: tuple[float, ...],
    look: Callable[[Codec, int, float], None],
) -> Codec:
    """Train a codec for some CPU time, as ``gic fit`` does; what looking takes does not count.

    Args:
        config: Config of the stage.
        codec: Where it begins; trained in place.
        train_shards: Shards.
        seconds: CPU time.
        looks: Shares of the time after which to look.
        look: Called with the averaged codec, the number of steps and the seconds used.

    Returns:
        The averaged codec.
    """
    data = {name: value for name, value in config["data"].items() if name not in ("train", "val", "val_limit")}
    data |= {"train": train_shards, "val": train_shards, "num_workers": 0, "seed": config["seed_everything"]}
    module = ImageData(**data)
    module.setup("fit")
    batches = module.train_dataloader()
    model = config["model"]
    objective = Objective(**model["objective"]["init_args"])
    for name, learns in trainable_parameters(codec, model.get("trainable", [""])).items():
        codec.get_parameter(name).requires_grad_(learns)
    learning = [p for p in codec.parameters() if p.requires_grad]
    optimizer = getattr(torch.optim, model["optimizer"]["class_path"].rpartition(".")[2])(
        learning, **model["optimizer"]["init_args"]
    )
    schedule = WarmupCosine(**model["schedule"]["init_args"])
    rate, decay = model["optimizer"]["init_args"]["lr"], float(config["ema"]["decay"])
    average = copy.deepcopy(codec).requires_grad_(False).eval()
    averaged = [p for p, own in zip(average.parameters(), codec.parameters(), strict=True) if own.requires_grad]
    torch.manual_seed(config["seed_everything"])
    codec.train()
    used, step, waiting, last = 0.0, 0, list(looks), time.process_time()
    while used < seconds:
        for batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule.factor(step, 10**9, used / seconds)
            loss = objective(codec, as_float(batch["image"]))["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, config["trainer"]["gradient_clip_val"])
            optimizer.step()
            kept = min(decay, (1 + step) / (10 + step)) if step else 0.0
            torch._foreach_lerp_(averaged, [p.detach() for p in learning], 1 - kept)
            step += 1
            now = time.process_time()
            used, last = used + now - last, now
            if not math.isfinite(float(loss.detach())):
                raise SystemExit(f"the loss is not finite after {step} steps")
            while waiting and used >= waiting[0] * seconds:
                look(average, step, used)
                waiting.pop(0)
                last = time.process_time()
            if used >= seconds:
                break
    return average


@torch.no_grad()
def finest(codec: Codec, pictures: Iterable[Tensor]) -> dict[str, Any]:
    """Bits per pixel and PSNR of whole pictures at the codec's finest level."""
    found: dict[str, Any] = {"q": codec.q_min, "bits_per_pixel": [], "psnr": []}
    q = torch.tensor([codec.q_min])
    for x in pictures:
        latents = codec.compressor.analyse(x)
        y_q = codec.to_level(latents, q)
        x_hat = codec.compressor.synthesise(codec.restore(latents, y_q, q, realism=0.0), 0.0)
        found["bits_per_pixel"].append(float(codec.bits(latents, q, y_q)) / (x.shape[-2] * x.shape[-1]))
        found["psnr"].append(float(psnr(x_hat, x)))
    return found


@torch.no_grad()
def measure(codec: Codec, pictures: list[Tensor], objective: Objective) -> dict[str, Any]:
    """Bits per pixel, PSNR and the loss of the compressor stage at each level, for each picture, (1, 3, H, W)."""
    points: list[dict[str, Any]] = [{"q": q, "bits_per_pixel": [], "psnr": []} for q in LEVELS]
    losses = []
    for x in pictures:
        latents = codec.compressor.analyse(x)
        for point, number in zip(points, LEVELS, strict=True):
            q = torch.tensor([number])
            y_q = codec.to_level(latents, q)
            x_hat = codec.compressor.synthesise(codec.restore(latents, y_q, q, realism=0.0), 0.0)
            bits = float(codec.bits(latents, q, y_q)) / (x.shape[-2] * x.shape[-1])
            point["bits_per_pixel"].append(bits)
            point["psnr"].append(float(psnr(x_hat, x)))
            error = rate_distortion_lambda(q, objective.lambda_0) * mean_squared_error(x_hat, x)
            balance = (number / math.sqrt(LEVELS[0] * LEVELS[-1])) ** objective.level_balance
            losses.append((bits + float(error)) * balance)
    return {"loss": sum(losses) / len(losses), "points": points}


def curve(name: str, points: list[dict[str, Any]]) -> Curve:
    """Measurements in the form that :func:`bd_rate` takes."""
    return Curve(
        name, name, "", "", {},
        [
            Point(
                f"q={point['q']:g}",
                {
                    str(i): Measurement(0, bits, 0.0, 0.0, None, None, {"psnr": value})
                    for i, (bits, value) in enumerate(zip(point["bits_per_pixel"], point["psnr"], strict=True))
                },
            )
            for point in reversed(points)
        ],
    )  # fmt: skip


def bits_at_equal_psnr(anchor: list[dict[str, Any]], points: list[dict[str, Any]]) -> float | None:
    """BD-rate in % of the mean curves."""
    metric = MetricInfo("psnr", "PSNR", True, "image", "", "dB")
    return bd_rate(curve("anchor", anchor), curve("test", points), metric).percent


def decoding_macs(codec: Codec, side: int = 512) -> dict[str, float]:
    """Thousands of multiply-accumulates per pixel of the decoder's networks, those of U once and thrice."""
    m, n, h = codec.compressor.latent_channels, codec.compressor.hyper_channels, side // 16
    y, z = torch.zeros(1, m, h, h), torch.zeros(1, n, h // 4, h // 4)
    all_y = torch.zeros(1, codec.compressor.coded_channels, h, h)
    counts = {
        "h_s": macs_per_pixel(lambda: codec.compressor.h_s(z), side**2),
        "U": macs_per_pixel(lambda: codec.reverse(y, y, y, torch.zeros(1)), side**2),
        "g_s": macs_per_pixel(lambda: codec.compressor.g_s(y, 0.0), side**2),
        "lapped": macs_per_pixel(lambda: codec.compressor.lapped.inverse(all_y), side**2)
        if codec.compressor.lapped is not None
        else 0.0,
        "g_a": macs_per_pixel(lambda: codec.compressor.g_a(torch.zeros(1, 3, side, side)), side**2),
    }
    counts = {name: count / 1000 for name, count in counts.items()}
    return counts | {"decoding": counts["h_s"] + 3 * counts["U"] + counts["g_s"] + counts["lapped"]}


def whole_pictures(source: str) -> Iterable[Tensor]:
    """All validation pictures, (1, 3, H, W), without what is beyond multiples of 64."""
    for item in EvalImages(source):
        if item.get("image") is not None:
            x = as_float(item["image"])[None]
            yield x[..., : x.shape[-2] // 64 * 64, : x.shape[-1] // 64 * 64]


def run(name: str, overrides: Mapping[str, Any], args: argparse.Namespace, pictures: list[Tensor]) -> dict[str, Any]:
    """Train one variant through both stages and measure it."""
    first, second = (config_of(stage, overrides) for stage in STAGES)
    seconds = 60 * args.minutes
    objective = Objective(**second["model"]["objective"]["init_args"])
    looks: list[dict[str, Any]] = []

    def look(codec: Codec, step: int, used: float) -> None:
        looks.append({"step": step, "cpu_seconds": used, **measure(codec, pictures, objective)})
        show_look(name, looks[-1])

    torch.manual_seed(first["seed_everything"])
    codec = build_codec(first["model"]["codec"])
    key = json.dumps(
        [first["model"], first["data"], first["seed_everything"], args.prior_share * args.minutes, args.train],
        sort_keys=True,
    )
    kept = args.output.with_name(f"{args.output.name}.prior-{hashlib.sha256(key.encode()).hexdigest()[:8]}.pt")
    if kept.exists():
        state = torch.load(kept, weights_only=True)
    else:
        state = train(first, codec, args.train, args.prior_share * seconds, (), look).state_dict()
        torch.save(state, kept)
    torch.manual_seed(second["seed_everything"])
    codec = build_codec(second["model"]["codec"])
    learned = trainable_parameters(codec, first["model"]["trainable"])
    # What the first stage has not trained begins anew, by the same seed, in whatever shape.
    _, unknown = codec.load_state_dict({key: state[key] for key, yes in learned.items() if yes}, strict=False)
    if unknown:
        raise SystemExit(f"{name}: the second stage lacks {', '.join(unknown)}")
    codec.eval()
    look(codec, 0, 0.0)
    began = finest(codec, whole_pictures(args.val))
    if args.prior_share == 1:
        return {"overrides": dict(overrides), "looks": looks, "finest": {"before": began}}
    codec = train(second, codec, args.train, (1 - args.prior_share) * seconds, LOOKS, look)
    return {
        "overrides": dict(overrides),
        "kmacs_per_pixel": decoding_macs(codec),
        "parameters": dict(parameter_counts(codec)),
        "looks": looks,
        "finest": {"before": began, "after": finest(codec, whole_pictures(args.val))},
    }


def show_look(name: str, look: Mapping[str, Any]) -> None:
    """One line about a measurement."""
    means = [[sum(p[key]) / len(p[key]) for key in ("bits_per_pixel", "psnr")] for p in look["points"]]
    text = ", ".join(f"{bits:.3f} {value:.2f}" for bits, value in means)
    print(f"{name}: {look['step']} steps, {look['cpu_seconds']:.0f} s, loss {look['loss']:.4f}: {text}", flush=True)


def table(report: Mapping[str, Any]) -> None:
    """Print all variants against the first."""
    variants = report["variants"]
    anchor = next(iter(variants.values()))
    rows = []
    for name, variant in variants.items():
        rates = [
            bits_at_equal_psnr(base["points"], own["points"])
            for base, own in zip(anchor["looks"], variant["looks"], strict=True)
        ]
        last = variant["looks"][-1]
        macs = variant.get("kmacs_per_pixel", {}).get("decoding")
        ends = list(variant["finest"].values())[-1]["psnr"]
        rates += [None] * (1 + len(LOOKS) - len(rates))
        rows.append([name, last["step"], last["loss"], *rates, macs, min(ends), sum(ends) / len(ends)])
    shares = [f"bits at {100 * share:.0f} %" for share in (0.0, *LOOKS)]
    show(
        "Bits at equal PSNR, % of the first variant's",
        ["variant", "steps", "loss", *shares, "kMAC/pixel", "finest: least dB", "mean dB"],
        rows,
    )


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Plot each variant's loss over its CPU time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, variant in report["variants"].items():
        looks = variant["looks"]
        axes.plot([look["cpu_seconds"] / 60 for look in looks], [look["loss"] for look in looks], "o-", label=name)
    axes.set(xlabel="CPU minutes of the second stage", ylabel="validation loss")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="training shards, a pattern")
    parser.add_argument("--val", required=True, help="validation pictures: shards, files or folders")
    parser.add_argument("--minutes", type=float, default=30.0, help="CPU time of each variant, of both stages together")
    parser.add_argument("--prior-share", type=float, default=0.4, help="share of the first stage; 1: nothing else")
    parser.add_argument("--pictures", type=int, default=12, help="validation pictures that are measured")
    parser.add_argument("--side", type=int, default=384, help="side of the corner of each that is measured, at most")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    parser.add_argument("--plot", type=Path, help="picture of the curves to write")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write, or to go on with")
    args = parser.parse_args()
    if unknown := [name for name in args.variants if name not in VARIANTS]:
        parser.error(f"there is no variant {unknown[0]!r}")

    torch.set_num_threads(1)
    pictures = [x[..., : args.side, : args.side] for x in islice(whole_pictures(args.val), args.pictures)]
    report: dict[str, Any] = {"machine": machine("cpu"), "minutes": args.minutes, "prior_share": args.prior_share}
    report |= {"levels": LEVELS, "variants": {}}
    if args.output.exists():
        report = json.loads(args.output.read_text())
        if [report["minutes"], report["prior_share"]] != [args.minutes, args.prior_share]:
            parser.error(
                f"{args.output} holds runs of {report['minutes']:g} minutes, {report['prior_share']:g} of it prior"
            )
    for name in args.variants:
        if name not in report["variants"]:
            variant = run(name, VARIANTS[name], args, pictures)
            report["variants"][name] = variant
            save(report, str(args.output))
    table(report)
    if args.plot:
        draw(report, args.plot)


if __name__ == "__main__":
    main()
