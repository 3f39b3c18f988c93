"""Between Pillow's pictures and tensors (3, H, W): uint8, or float32 in [0, 1]."""

from __future__ import annotations

import torch
from PIL import Image

from gic.errors import ImageError
from gic.pictures.arrays import from_array, to_array


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Copy a picture into a tensor.

    Args:
        image: Pillow image of mode "RGB".

    Returns:
        Shape (3, H, W), uint8, on the CPU.

    Raises:
        ImageError: If the mode is not "RGB"; :func:`~gic.pictures.load.load_rgb` brings any picture there.
    """
    return torch.from_numpy(to_array(image))


def to_image(tensor: torch.Tensor) -> Image.Image:
    """Copy a tensor into a picture.

    Args:
        tensor: Shape (3, H, W), on any device; uint8, or floating point in [0, 1] (values outside are
            clamped; rounded to the nearest of 256 levels).

    Returns:
        Pillow image of mode "RGB".

    Raises:
        ImageError: If the shape or type is another, or a value is not a number.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise ImageError(f"expected a tensor of shape (3, height, width), not {tuple(tensor.shape)}")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        if tensor.isnan().any():
            raise ImageError("the tensor holds values that are not a number and cannot become an image")
        tensor = (tensor.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise ImageError(f"expected a tensor of uint8 or floating point, not {tensor.dtype}")
    return from_array(tensor.numpy())


def as_float(tensor: torch.Tensor) -> torch.Tensor:
    """Map 8 bit levels to [0, 1].

    Args:
        tensor: uint8, any shape and device.

    Returns:
        float32 of the same shape, ``tensor / 255``.

    Raises:
        ImageError: If the tensor is not uint8.
    """
    if tensor.dtype != torch.uint8:
        raise ImageError(f"expected a tensor of uint8, not {tensor.dtype}")
    return tensor.float() / 255
