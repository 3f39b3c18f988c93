"""Pictures as pixels: whatever a caller gives."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gic.bitstream.container import NO_METADATA, Metadata
from gic.errors import ImageError
from gic.pictures.load import load_rgb
from gic.pictures.tensors import to_tensor

ImageLike = Image.Image | Tensor | NDArray[np.uint8] | str | Path | bytes | BinaryIO


def read_pixels(image: ImageLike, keep_metadata: bool) -> tuple[Tensor, Metadata, tuple[str, ...]]:
    """Pixels as uint8 (3, H, W), the metadata to store, and notes on what was changed."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ImageError(f"an array must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
        image = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ImageError(f"a tensor must have the shape (3, H, W), not {tuple(image.shape)}")
        if image.dtype == torch.uint8:
            return image.cpu(), NO_METADATA, ()
        if not image.is_floating_point() or not bool(torch.isfinite(image).all()):
            raise ImageError("a tensor must be uint8, or float in [0, 1] without NaN")
        return torch.round(image.detach().float().cpu().clamp(0, 1) * 255).to(torch.uint8), NO_METADATA, ()
    if not isinstance(image, (bytes, str, Path, Image.Image)) and not hasattr(image, "read"):
        raise ImageError(
            "an image is a path, bytes, an open file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W), "
            f"not {type(image).__name__}"
        )
    loaded = load_rgb(image, keep_profile=keep_metadata)
    metadata = Metadata(loaded.exif, loaded.icc) if keep_metadata else NO_METADATA
    return to_tensor(loaded.image), metadata, loaded.notes
