"""``gic.load``: a codec of trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gic.codec.image_codec import ImageCodec
from gic.codec.networks import Runtime, load_networks
from gic.codec.zoo import locate


def load(
    checkpoint: str | Path | None = None,
    device: str = "auto",
    trust: str | Sequence[str] = (),
    *,
    runtime: Runtime = "auto",
    threads: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> ImageCodec:
    """Make a codec of trained weights.

    Args:
        checkpoint: Weights file (``.safetensors``) or training checkpoint (``.ckpt``), which needs PyTorch; or a name:
            ``small``, ``small-0.4`` and others that ``gic models`` lists, or ``hf://OWNER/REPO`` of the Hugging Face
            hub. By default what the environment variable GIC_CHECKPOINT names, else the weights in the package.
        device: Where the networks run: ``auto``, ``cpu``, ``cuda``, ...
        trust: Packages of your own whose classes the file may name, which needs PyTorch; nothing else that it names is
            imported.
        runtime: ``onnx`` (ONNX Runtime, on CPUs), ``torch`` (PyTorch, any device), or ``auto``: PyTorch where it is
            installed and there is a GPU, or the weights need it, else ONNX Runtime. Files do not depend on it.
        threads: Number of threads of ONNX Runtime for one picture; all cores if left out.
        precision: ``bfloat16`` runs the networks in PyTorch faster on a GPU, and pixels differ by a few levels.

    Raises:
        ConfigError: If there are no weights or they cannot be used.
        MissingExtraError: If they need PyTorch, or the hub's client, and it is not installed.

    Example:
        >>> gic.load("small").compress("photo.png", bpp=0.25)  # doctest: +SKIP
    """
    path = locate(checkpoint)
    networks = load_networks(path, device, trust, runtime=runtime, threads=threads, precision=precision)
    return ImageCodec(networks, weights_file=path)
