"""A small codec whose weights follow from arithmetic alone, and pictures, for the tests of files."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gic.bitstream.container import GicFile
from gic.codec.decoder import decode_symbols
from gic.codec.image_codec import ImageCodec
from gic.codec.tiling import tiles_of
from gic.models.codec import Codec
from gic.models.compressor import ResidualCompressor
from gic.models.ranges import Prior
from gic.models.reverse import ReverseUNet
from gic.runtime.onnx import OnnxNetworks

CONFIG = {
    "class_path": "gic.models.codec.Codec",
    "init_args": {
        "compressor": {
            "class_path": "gic.models.compressor.ResidualCompressor",
            "init_args": {
                "widths": [8, 8, 8, 8],
                "blocks": [0, 0, 0, 1],
                "latent_channels": 8,
                "hyper_channels": 4,
            },
        },
        "reverse": {
            "class_path": "gic.models.reverse.ReverseUNet",
            "init_args": {"latent_channels": 8, "widths": [8], "blocks": [1]},
        },
    },
}
"""The description of :func:`small_model` that a weights file carries."""


def formula(shape: tuple[int, ...], salt: int) -> Tensor:
    """Numbers in [-1/2, 1/2) by integer arithmetic: no random generator, no library version."""
    index = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(salt)
    mixed = (index * np.uint64(2654435761)) % np.uint64(2**32)
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519)) % np.uint64(2**32)
    mixed = mixed ^ (mixed >> np.uint64(13))
    return torch.from_numpy(mixed.astype(np.float64) / 2**32 - 0.5).reshape(shape)


def small_model(salt: int = 0, latent_channels: int = 8, hyper_channels: int = 4, prior: Prior = "gaussian") -> Codec:
    """A codec of a few thousand weights, none of them zero; other weights for another ``salt``."""
    m, n = latent_channels, hyper_channels
    compressor = ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 1), latent_channels=m, hyper_channels=n, prior=prior)
    codec = Codec(compressor, ReverseUNet(m, widths=(8,), blocks=(1,))).eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(codec.named_parameters()):
            values = formula(tuple(parameter.shape), 100_000 * (salt + 1) + 5000 * number)
            if "prior_z.matrices" in name:
                values = 0.2 * values - 1.45
            elif "prior_z.biases" not in name:
                fan_in = math.prod(parameter.shape[1:])
                values = values * (math.sqrt(12 / fan_in) if parameter.dim() > 1 else 0.2)
            parameter.copy_(values)
        # Symbols as busy as those of a trained codec at its levels.
        compressor.g_a.layers[-1].weight *= 3
        compressor.h_a[-1].weight *= 1.5
        compressor.h_s[-1].weight[m:] *= 0.4  # no sigma at its lower end, where y would be far from mu
        compressor.h_s[-1].bias[m:] += 1
        compressor.g_s.layers[0].weight *= 0.25
        codec.reverse.leave.weight *= 0.5
    return codec


def lapped_model(trained: bool) -> Codec:
    """A small codec with the shortcut, as it is made or with weights that no initialisation would give."""
    torch.manual_seed(0)
    compressor = ResidualCompressor((8, 8, 8, 8), (0, 0, 0, 1), latent_channels=48, hyper_channels=4, lapped=True)
    codec = Codec(compressor, ReverseUNet(48, widths=(8,), blocks=(1,))).eval()
    if trained:
        with torch.no_grad():
            for number, parameter in enumerate(p for p in codec.parameters() if not p.any()):
                parameter.copy_(0.02 * formula(tuple(parameter.shape), number))
    return codec


def with_onnx(model: Codec, config: dict[str, Any], threads: int = 1) -> ImageCodec:
    """A codec of the same weights in ONNX Runtime."""
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    return ImageCodec(OnnxNetworks(state, config, threads))


@cache
def small_codec(salt: int = 0, prior: Prior = "gaussian") -> ImageCodec:
    """The codec around :func:`small_model`, on the CPU; made once."""
    return ImageCodec(small_model(salt, prior=prior), "cpu")


Kind = Literal["flat", "smooth", "noise", "edges"]
KINDS: tuple[Kind, ...] = ("flat", "smooth", "noise", "edges")


def picture(width: int, height: int, kind: Kind = "smooth", salt: int = 0) -> Tensor:
    """A picture, uint8 (3, H, W)."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    noise = formula((3, height, width), 7 + 1_000_003 * salt) + 0.5
    phase = torch.tensor([0.0, 1.0, 2.0]).double()[:, None, None] + salt
    if kind == "flat":
        values = torch.full((3, height, width), 0.4, dtype=torch.float64)
    elif kind == "noise":
        values = noise
    elif kind == "edges":
        values = ((torch.floor(x / 13 + salt) + torch.floor(y / 9)) % 2) * 0.8 + 0.1 * noise
    else:
        values = 0.5 + 0.3 * torch.sin(x / 17 + phase) * torch.cos(y / 23 - phase) + 0.15 * noise
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def array(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels as an array (H, W, 3)."""
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def all_symbols(codec: ImageCodec, file: GicFile) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """z and y of each tile."""
    places = tiles_of(file.width, file.height, file.tile)
    return [decode_symbols(codec, file, i, place)[::2] for i, place in enumerate(places)]


def documented(codec: ImageCodec, file: GicFile) -> list[tuple[list[int], list[int], list[int]]]:
    """z, y and the levels of y of each tile, as ``independent.decode`` gives them."""
    found = []
    for i, place in enumerate(tiles_of(file.width, file.height, file.tile)):
        z, _, y, code = decode_symbols(codec, file, i, place)
        found.append((z.ravel().tolist(), y.ravel().tolist(), np.broadcast_to(code, y.shape).ravel().tolist()))
    return found
