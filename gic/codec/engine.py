"""A model made ready for files: networks on a device, exact coder, identity; encoder and decoder share it."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray

from gic.bitstream.coder import Code, EntropyCoder, level_code
from gic.bitstream.container import MODEL_ID_BYTES, REGION_STEP, TILE_UNIT
from gic.bitstream.tables import OFFSETS
from gic.codec.tiling import HALO, Tile
from gic.devices import automatic_device, check_device
from gic.errors import ConfigError
from gic.models.codec import Codec
from gic.models.layers import LowerBound


class Engine:
    """One set of weights, ready to code pictures.

    Args:
        model: A trained codec.
        device: Where the networks run: ``auto``, ``cpu``, ``cuda``, ... Files do not depend on it.

    Attributes:
        model: The networks, in evaluation mode.
        device: Where they are.
        coder: The exact entropy coder of their weights.
        model_id: Identifies the weights in files, MODEL_ID_BYTES bytes.
        finest: Code of the finest level of the model.
        coarsest: Code of the coarsest.
        stride: Pixels for each element of y, along each side.
        hyper_stride: Elements of y for each element of z, along each side.

    Raises:
        ConfigError: If the device cannot be used, or the strides of the networks do not divide the tiles of files.
    """

    def __init__(self, model: Codec, device: str | torch.device = "auto") -> None:
        try:
            self.device = check_device(torch.device(automatic_device() if device == "auto" else device))
            self.model = model.eval().to(self.device)
        except (RuntimeError, AssertionError) as error:  # raised by torch without such a device
            raise ConfigError(f"the device {device} cannot be used: {str(error).splitlines()[0]}") from error
        self.coder = EntropyCoder(model.compressor)
        self.model_id = model_id(model)
        self.finest, self.coarsest = level_code(model.q_min), level_code(model.q_max)
        self.stride, self.hyper_stride = model.compressor.downsampling, model.compressor.hyper_downsampling
        if TILE_UNIT % model.compressor.multiple or HALO % self.stride:
            raise ConfigError(
                f"networks that take sides of multiples of {model.compressor.multiple} pixels cannot code files, whose "
                f"tiles are multiples of {TILE_UNIT}: use strides that divide it"
            )

    def latent_size(self, place: Tile) -> tuple[int, int]:
        """Height and width of a tile's y, in elements."""
        unit = self.stride * self.hyper_stride
        height, width = -(-(place.bottom - place.top) // unit), -(-(place.right - place.left) // unit)
        return height * self.hyper_stride, width * self.hyper_stride

    def offsets(self, quantizer: str, seed: int, index: int, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """Offset numbers of the dither of a tile, (1, M, h, w); None for rounding."""
        if quantizer == "round":
            return None
        shape = (1, self.model.compressor.coded_channels, *size)
        # Philox' raw output never changes between versions, unlike NumPy's distributions; each byte yields one number.
        count = math.prod(shape)
        raw = np.random.Philox(key=[seed, 0], counter=[0, 0, 0, index]).random_raw(-(-count // 8))
        numbers = np.asarray(raw, dtype="<u8").view(np.uint8)[:count] % OFFSETS
        return numbers.astype(np.uint8).reshape(shape)


def tile_codes(engine: Engine, regions: bytes, size: tuple[int, int], place: Tile, code: int) -> Code:
    """Codes of the levels of a tile's elements.

    Args:
        engine: The model.
        regions: Offsets of the blocks of the image, see :class:`gic.bitstream.container.GicFile`, or empty.
        size: Width and height of the image, in pixels.
        place: The tile.
        code: Code without an offset.

    Returns:
        The code, or an array (1, 1, h, w) of the codes of all channels, int32.
    """
    if not regions:
        return code
    blocks = np.frombuffer(regions, np.uint8).reshape(-(-size[1] // TILE_UNIT), -(-size[0] // TILE_UNIT))
    rows, columns = engine.latent_size(place)
    of_block = TILE_UNIT // engine.stride
    y, x = (
        np.arange(rows) // of_block + place.top // TILE_UNIT,
        np.arange(columns) // of_block + place.left // TILE_UNIT,
    )
    codes: NDArray[np.int32] = code + REGION_STEP * blocks[np.ix_(y, x)].astype(np.int32)[None, None]
    return codes


def model_id(model: Codec) -> bytes:
    """First bytes of a hash over the names, shapes and float32 values of all parameters and of all bounds."""
    digest = hashlib.sha256()
    tensors = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, LowerBound):  # constants, stored in weights of version 0.4 and earlier
            tensors[f"{name}.bound"] = torch.tensor([module.bound if module.on_file is None else module.on_file])
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.digest()[:MODEL_ID_BYTES]


def check_seed(seed: int) -> int:
    """Return a seed that files can hold.

    Raises:
        ConfigError: If it lies outside 0 to 2^32 - 1.
    """
    if not 0 <= seed < 1 << 32:
        raise ConfigError(f"seed must lie in 0 to 2^32 - 1, not {seed}")
    return seed
