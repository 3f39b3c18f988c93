"""gic behind CompressAI's interface, so that its tools measure gic's weights.

``python -m gic.compat.compressai`` is CompressAI's own ``compressai.utils.eval_model`` with two more architectures:
``gic-r0`` (closest to the original) and ``gic-r1`` (most like a photograph).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gic.codec.image_codec import ImageCodec
from gic.codec.weights import load
from gic.errors import ConfigError, GicError, one_line, require
from gic.method.samplers import Sampler
from gic.models.ranges import SKIP_BELOW

QUALITIES = 8
"""CompressAI's qualities are 1 (smallest files) to 8."""


class CompressionModel(nn.Module):
    """A gic codec at one level, with the interface of ``compressai.models.CompressionModel``.

    The only string of a picture is its whole ``.gic`` file, so sizes are real and include the header.

    Args:
        codec: The codec, with its networks in PyTorch: ``gic.load(..., runtime="torch")``.
        q: Level, within the model's range.
        realism: r in [0, 1].
        steps: Steps of the reverse flow, the model's default if left out.
        sampler: Sampler of the reverse flow, the model's default if left out.

    Raises:
        ConfigError: If the level or r lies outside its range, or the networks are not in PyTorch.

    Example:
        >>> model = CompressionModel(gic.load("small", runtime="torch"), q=4)  # doctest: +SKIP
        >>> out = model.compress(x)  # x: (N, 3, H, W), float in [0, 1]  # doctest: +SKIP
        >>> x_hat = model.decompress(out["strings"], out["shape"])["x_hat"]  # doctest: +SKIP
    """

    def __init__(
        self,
        codec: ImageCodec,
        q: float,
        realism: float = 1.0,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= realism <= 1:
            raise ConfigError(f"realism must lie in [0, 1], not {realism:g}")
        self.codec = codec.model
        self.q = codec.check_level(q)
        self.realism, self.steps, self.sampler = realism, steps, sampler
        self._files = codec

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Image to reconstruction and likelihoods, without a file.

        Args:
            x: Images (N, 3, H, W), float in [0, 1], of any size.

        Returns:
            ``x_hat``, like ``x``, not clamped; ``likelihoods`` with those of ``y`` and ``z``: the sum of -log2 is the
            ideal code length in bits.
        """
        height, width = x.shape[-2:]
        q = torch.full((len(x),), self.q, device=x.device)
        out = self.codec(self.codec.pad(x), q, realism=self.realism, steps=self.steps, sampler=self.sampler)
        likelihoods = self.codec.compressor.likelihoods(out.latents, q, out.y_q)
        if self.codec.quantizer == "dither":  # what is not coded has no cost
            likelihoods["y"] = likelihoods["y"].masked_fill(out.latents.sigma < SKIP_BELOW * self.q, 1.0)
        return {"x_hat": out.x_hat[..., :height, :width], "likelihoods": likelihoods}

    @torch.no_grad()
    def compress(self, x: Tensor) -> dict[str, Any]:
        """Images to ``.gic`` files.

        Args:
            x: Images (N, 3, H, W), float in [0, 1], of any size; they are rounded to 8 bit.

        Returns:
            ``strings``, a list with one list of N files, and ``shape``, the pictures' height and width.
        """
        files = self._codec()
        return {"strings": [[files.compress(one.cpu(), q=self.q) for one in x.float()]], "shape": x.shape[-2:]}

    @torch.no_grad()
    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        """Files to images.

        Args:
            strings: What :meth:`compress` gave.
            shape: Height and width.

        Returns:
            ``x_hat``, (N, 3, H, W), float32, multiples of 1/255.

        Raises:
            ValueError: If the files are not of this shape.
            FormatError: If one is damaged.
        """
        files, device = self._codec(), next(self.parameters()).device
        (batch,) = strings
        pictures = [
            files.decompress_tensor(one, realism=self.realism, steps=self.steps, sampler=self.sampler) for one in batch
        ]
        if any(tuple(picture.shape[-2:]) != tuple(shape) for picture in pictures):
            raise ValueError(f"the files hold pictures of other sizes than {tuple(shape)}")
        return {"x_hat": torch.stack(pictures).to(device).float() / 255}

    def update(self, scale_table: Any = None, force: bool = False) -> bool:
        """Nothing to do: the tables of the entropy coder follow from the weights. Returns False, for no change."""
        return False

    def _codec(self) -> ImageCodec:
        """The file codec, where the networks are now.

        Raises:
            ConfigError: If they are no longer in float32.
        """
        parameter = next(self.parameters())
        if parameter.dtype != torch.float32:
            raise ConfigError(f"gic's files take networks in float32, not {parameter.dtype}: leave out --half")
        if torch.device(self._files.device) != parameter.device:
            self._files = ImageCodec(self.codec, parameter.device)
        return self._files


def pretrained(
    quality: int,
    metric: str = "mse",
    pretrained: bool = True,
    progress: bool = True,
    *,
    checkpoint: str | Path | None = None,
    realism: float = 1.0,
) -> CompressionModel:
    """A model as ``compressai.zoo`` gives them.

    Args:
        quality: 1 (smallest files) to 8; q runs from the coarsest to the finest of the weights in equal ratios.
        metric: Ignored: there is one set of weights, and r is its choice.
        pretrained: Must be true: there are no networks without weights here.
        progress: Ignored: nothing is downloaded, unless the checkpoint is on a hub.
        checkpoint: Weights, as for :func:`gic.load`.
        realism: r in [0, 1].

    Raises:
        ConfigError: If the quality lies outside its range, or there are no such weights.
    """
    if not 1 <= quality <= QUALITIES:
        raise ConfigError(f"the quality must lie in 1 to {QUALITIES}, not {quality}")
    if not pretrained:
        raise ConfigError("untrained networks are made with gic.models, not here")
    codec = load(checkpoint, "cpu", runtime="torch")
    coarse, fine = codec.about.q_max, codec.about.q_min
    # Rounding must not leave the range.
    q = min(max(coarse * (fine / coarse) ** ((quality - 1) / (QUALITIES - 1)), fine), coarse)
    return CompressionModel(codec, q, realism)


def register(checkpoint: str | Path | None = None) -> list[str]:
    """Add gic to ``compressai.zoo.image_models``.

    Args:
        checkpoint: Weights, as for :func:`gic.load`.

    Returns:
        Names of the architectures: ``gic-r0`` and ``gic-r1``.

    Raises:
        MissingExtraError: If CompressAI is not installed.
    """
    zoo = require("compressai.zoo", "baselines")
    made = {f"gic-r{r}": partial(pretrained, checkpoint=checkpoint, realism=float(r)) for r in (0, 1)}
    zoo.image_models.update(made)
    return [*made]


def main(argv: Sequence[str]) -> None:
    """Run CompressAI's ``eval_model`` with gic among its architectures."""
    try:
        register()
        require("compressai.utils.eval_model.__main__", "baselines").main(list(argv))
    except GicError as error:
        sys.exit(one_line(f"gic.compat.compressai: {error}"))


if __name__ == "__main__":
    main(sys.argv[1:])
