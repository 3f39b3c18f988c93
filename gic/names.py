"""Class names in files: those of earlier versions, which go on working, and whose classes may be named."""

from __future__ import annotations

from typing import Any

TRUST_HELP = "a package of your own whose classes the weights may name; once for each package"
"""What ``--trust`` is, for the help of every command that has it."""

_BASELINES = ("Jpeg", "WebP", "Avif", "JpegXL", "Heic", "Jpeg2000")
OLD_NAMES: dict[str, str] = {
    # Version 0.1 before the package had wings. The first three stand in weights files.
    "gic.model.Codec": "gic.models.codec.Codec",
    "gic.compressor.Compressor": "gic.models.compressor.ResidualCompressor",
    "gic.reverse.ReverseUNet": "gic.models.reverse.ReverseUNet",
    "gic.losses.Objective": "gic.training.objective.Objective",
    "gic.perceptual.LPIPS": "gic.quality.terms.LPIPS",
    "gic.perceptual.NoReference": "gic.quality.terms.NoReference",
    "gic.adversarial.Adversarial": "gic.quality.discriminator.Adversarial",
    "gic.adversarial.PatchDiscriminator": "gic.quality.discriminator.PatchDiscriminator",
    "gic.training.LitCodec": "gic.training.module.LitCodec",
    "gic.training.WarmupCosine": "gic.training.schedule.WarmupCosine",
    "gic.training.ProgressBar": "gic.training.progress.ProgressBar",
    "gic.training.EMA": "gic.training.ema.EMA",
    "gic.training.Checkpoint": "gic.training.checkpoint.Checkpoint",
    "gic.preemption.Preemption": "gic.training.preemption.Preemption",
    "gic.data.ImageData": "gic.data.module.ImageData",
    "gic.remote.Remote": "gic.data.remote.Remote",
    **{f"gic.benchmark.baselines.{name}": f"gic.benchmark.picture_codecs.{name}" for name in _BASELINES},
    "gic.benchmark.baselines.CompressAIZoo": "gic.benchmark.compressai_codecs.CompressAIZoo",
}
"""Today's name of each class by the name that it had."""


def current(value: Any) -> Any:
    """A config, or any part of one, with the ``class_path`` of old names brought up to date; other values as they are.

    >>> current([{"class_path": "gic.model.Codec", "init_args": {"steps": 2}}])
    [{'class_path': 'gic.models.codec.Codec', 'init_args': {'steps': 2}}]
    """
    if isinstance(value, dict):
        return {
            key: OLD_NAMES.get(part, part) if key == "class_path" and isinstance(part, str) else current(part)
            for key, part in value.items()
        }
    return [current(part) for part in value] if isinstance(value, list) else value
