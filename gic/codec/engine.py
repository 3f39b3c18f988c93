"""A model made ready for files: networks, exact coder, identity; encoder and decoder share it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gic.bitstream.coder import Code, EntropyCoder, level_code
from gic.bitstream.container import MODEL_ID_BYTES, REGION_STEP, TILE_UNIT
from gic.bitstream.tables import OFFSETS
from gic.codec.tiling import HALO, Tile
from gic.errors import ConfigError
from gic.runtime.networks import Networks


class Engine:
    """One set of weights, ready to code pictures.

    Args:
        networks: Its networks.

    Attributes:
        networks: The networks.
        about: Their settings.
        device: Where they run.
        coder: The exact entropy coder of their weights.
        model_id: Identifies the weights in files, MODEL_ID_BYTES bytes: the first of a hash over the names, shapes and
            float32 values of all parameters and bounds.
        finest: Code of the finest level of the model.
        coarsest: Code of the coarsest.
        stride: Pixels for each element of y, along each side.
        hyper_stride: Elements of y for each element of z, along each side.
        multiple: Pixels for each element of z.

    Raises:
        ConfigError: If the model cannot code files, or the strides of its networks do not divide their tiles.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks, self.about, self.device = networks, networks.about, networks.device
        self.coder = EntropyCoder(self.about.entropy_model, networks.product)
        self.model_id = self.about.digest[:MODEL_ID_BYTES]
        self.finest, self.coarsest = level_code(self.about.q_min), level_code(self.about.q_max)
        self.stride, self.hyper_stride = self.about.stride, self.about.hyper_stride
        self.multiple = self.stride * self.hyper_stride
        if TILE_UNIT % self.multiple or HALO % self.stride:
            raise ConfigError(
                f"networks that take sides of multiples of {self.multiple} pixels cannot code files, whose "
                f"tiles are multiples of {TILE_UNIT}: use strides that divide it"
            )

    def check_level(self, q: float) -> float:
        """Return ``q`` if it lies in the model's range.

        Raises:
            ConfigError: If it does not; the text gives the range.
        """
        if not (math.isfinite(q) and self.about.q_min <= q <= self.about.q_max):
            raise ConfigError(
                f"q = {q:g} lies outside the range of this model, [{self.about.q_min:g}, {self.about.q_max:g}]"
            )
        return q

    def latent_size(self, place: Tile) -> tuple[int, int]:
        """Height and width of a tile's y, in elements."""
        unit = self.multiple
        height, width = -(-(place.bottom - place.top) // unit), -(-(place.right - place.left) // unit)
        return height * self.hyper_stride, width * self.hyper_stride

    def offsets(self, quantizer: str, seed: int, index: int, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """Offset numbers of the dither of a tile, (1, M, h, w); None for rounding."""
        if quantizer == "round":
            return None
        shape = (1, self.about.entropy_model.coded_channels, *size)
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


def check_seed(seed: int) -> int:
    """Return a seed that files can hold.

    Raises:
        ConfigError: If it lies outside 0 to 2^32 - 1.
    """
    if not 0 <= seed < 1 << 32:
        raise ConfigError(f"seed must lie in 0 to 2^32 - 1, not {seed}")
    return seed
