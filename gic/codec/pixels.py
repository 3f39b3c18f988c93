"""Pictures as pixels: whatever a caller gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gic.bitstream.container import NO_METADATA, Metadata
from gic.errors import ImageError
from gic.pictures.arrays import to_array
from gic.pictures.load import load_rgb

if TYPE_CHECKING:
    from torch import Tensor

ImageLike = Union[Image.Image, "Tensor", NDArray[np.uint8], str, Path, bytes, BinaryIO]
"""A picture: a Pillow image, a tensor, an array, a path, the bytes of a file, or an open file."""


def read_pixels(image: ImageLike, keep_metadata: bool) -> tuple[NDArray[np.uint8], Metadata, tuple[str, ...]]:
    """Pixels as uint8 (3, H, W), the metadata to store, and notes on what was changed."""
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ImageError(f"an array must be uint8 (H, W, 3) or (H, W), not {image.dtype} {image.shape}")
        pixels: NDArray[np.uint8] = image.transpose(2, 0, 1)
        return pixels, NO_METADATA, ()
    if is_tensor(image):
        return _from_tensor(image), NO_METADATA, ()
    if not isinstance(image, (bytes, str, Path, Image.Image)) and not hasattr(image, "read"):
        raise ImageError(
            "an image is a path, bytes, an open file, a Pillow image, an array (H, W, 3) or (H, W), or a tensor "
            f"(3, H, W), not {type(image).__name__}"
        )
    loaded = load_rgb(image, keep_profile=keep_metadata)  # type: ignore[arg-type]  # no tensor any more
    metadata = Metadata(loaded.exif, loaded.icc) if keep_metadata else NO_METADATA
    return to_array(loaded.image), metadata, loaded.notes


def is_tensor(image: object) -> bool:
    """Whether something is a tensor of PyTorch, which may not be installed."""
    torch = sys.modules.get("torch")  # nobody has a tensor before it is imported
    return torch is not None and isinstance(image, torch.Tensor)


def _from_tensor(image: Any) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ImageError(f"a tensor must have the shape (3, H, W), not {tuple(image.shape)}")
    if image.is_floating_point():
        array = image.detach().float().cpu().numpy()
        if np.isfinite(array).all():
            levels: NDArray[np.uint8] = np.round(array.clip(0, 1) * np.float32(255)).astype(np.uint8)
            return levels
    elif str(image.dtype) == "torch.uint8":
        pixels: NDArray[np.uint8] = image.cpu().numpy()
        return pixels
    raise ImageError("a tensor must be uint8, or float in [0, 1] without NaN")
