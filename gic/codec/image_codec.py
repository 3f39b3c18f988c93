"""Pictures to ``.gic`` files and back: the public interface (DESIGN 5, 7, 8)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gic.bitstream.container import MAGIC, MAX_METADATA, REGION_STEP, TILE_UNIT, VERSION, GicFile, size_problem, unpack
from gic.codec.decoder import Decoding, first_code
from gic.codec.encoder import Encoding
from gic.codec.engine import Engine, check_seed
from gic.codec.hub import REPOSITORY, SCHEME, push
from gic.codec.networks import load_networks
from gic.codec.pixels import ImageLike, read_pixels
from gic.codec.rate import one_target
from gic.codec.regions import ROI_STRENGTH, MaskLike, regions_of
from gic.codec.tiling import Tile, piece_problem, tile_side
from gic.codec.zoo import advice, locate
from gic.errors import ConfigError, FormatError, ImageError, TruncatedError, in_words, require
from gic.method.samplers import Sampler, sampler_of
from gic.pictures.arrays import from_array, to_array
from gic.runtime.networks import FloatArray, Latent, Networks, WayBack

if TYPE_CHECKING:
    import torch

    from gic.models.codec import Codec

FileLike = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""A ``.gic`` file: its bytes, its path, or an open file."""


class ImageCodec(Engine):
    """Compresses images to ``.gic`` files and back with one set of weights.

    Args:
        networks: The networks of trained weights, or a trained :class:`gic.models.codec.Codec` of PyTorch.
        device: Where a codec of PyTorch runs: ``auto``, ``cpu``, ``cuda``, ... Files do not depend on it.
        weights_file: The file that the weights were read from, for :meth:`push_to_hub`.

    Example:
        >>> codec = gic.load("weights.safetensors")  # doctest: +SKIP
        >>> data = codec.compress("photo.png", bpp=0.25)  # doctest: +SKIP
        >>> codec.decompress(data, realism=0.8).save("decoded.png")  # doctest: +SKIP
    """

    def __init__(
        self, networks: Networks | Codec, device: str | torch.device = "auto", *, weights_file: Path | None = None
    ) -> None:
        if not isinstance(networks, Networks):
            from gic.runtime.pytorch import TorchNetworks

            networks = TorchNetworks(networks, device)
        super().__init__(networks)
        self.weights_file = weights_file
        self._others: dict[bytes, str] = {}  # what is known of other weights, by their identity

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        **options: Any,
    ) -> ImageCodec:
        """Make a codec of weights on the Hugging Face hub, or of any that :func:`gic.load` takes.

        Args:
            name: OWNER/REPO on the hub, which takes the extra ``hub``; or a name or file of weights.
            revision: Branch, tag or commit on the hub; the newest if left out.
            options: ``device``, ``trust``, ``runtime``, ``threads`` and ``precision``, as for :func:`gic.load`.

        Raises:
            ConfigError: If there are no weights of that name, or they cannot be used.
            MissingExtraError: If a package that they need is not installed.

        Example:
            >>> codec = gic.ImageCodec.from_pretrained("someone/gic-small")  # doctest: +SKIP
        """
        text = os.fspath(name)
        if not isinstance(name, os.PathLike) and REPOSITORY.fullmatch(text) and not Path(text).exists():
            text = SCHEME + text
        if revision is not None:
            if not text.startswith(SCHEME) or "@" in text:
                raise ConfigError(f"a revision is of a repository on the hub, OWNER/REPO, not of {text}")
            text = f"{text}@{revision}"
        path = locate(text)
        return cls(load_networks(path, **options), weights_file=path)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Put the weights that this codec was made of on the Hugging Face hub.

        Args:
            repository: OWNER/REPO; made if it is not there.
            options: ``card``, ``license``, ``private`` and ``message``, as for :func:`gic.codec.hub.push`.

        Returns:
            The commit's address.

        Raises:
            ConfigError: If they were not read from a weights file, or the hub refuses.
            MissingExtraError: If the client is not installed.
        """
        if self.weights_file is None:
            raise ConfigError("this codec was not read from a file: write its weights first, see gic export")
        return push(self.weights_file, repository, **options)

    def __repr__(self) -> str:
        about = self.about
        where = f"{self.networks.runtime} on {self.device}"
        return f"<gic codec {self.model_id.hex()}, q {about.q_min:g} to {about.q_max:g}, {where}>"

    @property
    def model(self) -> Codec:
        """The codec of PyTorch.

        Raises:
            ConfigError: If the networks run elsewhere.
        """
        model: Codec | None = getattr(self.networks, "model", None)
        if model is None:
            raise ConfigError('this codec runs without PyTorch: load it with gic.load(..., runtime="torch")')
        return model

    # --- encoding -------------------------------------------------------------------------------------------------

    def compress(
        self,
        image: ImageLike,
        *,
        q: float | None = None,
        bpp: float | None = None,
        max_bytes: int | None = None,
        quality: float | None = None,
        quantizer: Literal["round", "dither"] | None = None,
        seed: int = 0,
        tile: int | None = None,
        keep_metadata: bool = False,
        strict_rate: bool = True,
        progressive: bool = False,
        roi: MaskLike | None = None,
        roi_strength: float = ROI_STRENGTH,
    ) -> bytes:
        """Compress one image; give at most one of ``q``, ``bpp``, ``max_bytes`` and ``quality``.

        Args:
            image: A path, bytes or open file of any picture Pillow reads, a Pillow image, a tensor (3, H, W), uint8
                or float in [0, 1], or an array (H, W, 3), or (H, W) of a grey one, uint8.
            q: Quantisation step, within the model's range.
            bpp: Target, in bits of the file per pixel of the image; the nearest level is used.
            max_bytes: Largest size of the file, in bytes; never exceeded.
            quality: 0 (smallest) to 100 (finest), linear in log q; 50 if no target is given.
            quantizer: ``round`` or ``dither``, the model's default if left out.
            seed: Of the dither, 0 to 2^32 - 1.
            tile: Side of tiles in pixels, a multiple of 64 up to 2048; 0 for one piece; chosen by size if left out.
            keep_metadata: Keep EXIF and the ICC profile in the file.
            strict_rate: Raise an error if the model's range ends more than 2 % before ``bpp``. If false, the file is at
                the end of the range, and its size tells (``gic compress`` does this, with a note). ``max_bytes`` is
                never exceeded.
            progressive: Make a file of which any first part, from its coarsest level on, is a picture. It takes the
                quantizer ``round``.
            roi: A mask, the region of interest: a picture of the same size, or an array (H, W) uint8 or bool; white
                where the image is to be finest, transparent is black. The target is that of the whole file, and ``q``
                is the step where the mask is white.
            roi_strength: Octaves of q between black and white, rounded to quarters, from 0.25 to 10; less where the
                model's range ends before.

        Returns:
            A whole ``.gic`` file.

        Raises:
            ConfigError: If settings contradict each other, or the target cannot be reached with this model.
            ImageError: If the image cannot be read.
        """
        one_target(q=q, bpp=bpp, max_bytes=max_bytes, quality=quality)  # before the work
        encoding = self.encoding(
            image,
            quantizer=quantizer,
            seed=seed,
            tile=tile,
            keep_metadata=keep_metadata,
            progressive=progressive,
            roi=roi,
            roi_strength=roi_strength,
        )
        return encoding.compress(q=q, bpp=bpp, max_bytes=max_bytes, quality=quality, strict_rate=strict_rate)

    def encoding(
        self,
        image: ImageLike,
        *,
        quantizer: Literal["round", "dither"] | None = None,
        seed: int = 0,
        tile: int | None = None,
        keep_metadata: bool = False,
        progressive: bool = False,
        roi: MaskLike | None = None,
        roi_strength: float = ROI_STRENGTH,
        progress: Callable[[int, int], None] | None = None,
    ) -> Encoding:
        """Analyse an image once, to code it at several rates; the arguments are those of :meth:`compress`.

        ``progress`` is called with the number of analysed tiles and of all tiles.
        """
        pixels, metadata, notes = read_pixels(image, keep_metadata)
        height, width = pixels.shape[-2:]
        if (problem := size_problem(width, height)) is not None:
            raise ImageError(problem)
        tile = tile_side(width, height) if tile is None else tile
        if tile < 0 or tile % TILE_UNIT:
            raise ConfigError(f"the side of tiles must be a multiple of {TILE_UNIT}, not {tile}")
        if (problem := piece_problem(width, height, tile)) is not None:
            raise ConfigError(problem)
        if (progressive or roi is not None) and quantizer == "dither":
            kind = "progressive file" if progressive else "file with regions"
            raise ConfigError(f"a {kind} takes the quantizer round, not dither: leave one of the two out")
        regions = b"" if roi is None else regions_of(roi, width, height, roi_strength)
        quantizer = "round" if progressive or regions else quantizer or self.about.quantizer  # type: ignore[assignment]
        if quantizer not in ("round", "dither"):
            raise ConfigError(f"quantizer must be round or dither, not {quantizer!r}")
        if len(metadata.exif) + len(metadata.icc) > MAX_METADATA:
            raise ConfigError(f"the picture's EXIF and ICC profile exceed {MAX_METADATA} bytes: leave out the metadata")
        return Encoding(
            self, pixels, quantizer, check_seed(seed), tile, metadata, notes, progressive, regions, progress
        )

    # --- decoding -------------------------------------------------------------------------------------------------

    def decompress(
        self,
        data: FileLike,
        *,
        realism: float | None = None,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Image.Image:
        """Decompress one file to a Pillow image, with the metadata the file carries in ``info``.

        Of a progressive file that is not all there ``info["gic"]`` says how much is, and what was lost.

        The image is of mode "L" if the original was grey, else "RGB"; a grey one with an ICC profile, which then is one
        of an RGB space, is of mode "RGB" with three channels that are the same.

        Args:
            data: A whole ``.gic`` file: its bytes, its path, or an open file; of a progressive one the first part
                suffices.
            realism: r in [0, 1]: 0 is closest to the original, 1 looks most like a photograph; 1 if left out.
            steps: Steps of the reverse flow, the model's default if left out.
            sampler: Sampler of the reverse flow, for example ``heun`` or ``sde(alpha=0.3)``, see
                :mod:`gic.method.samplers`; the model's default if left out.
            seed: Of stochastic samplers; a file decodes to the same picture with the same seed.
            progress: Called with the number of finished tiles and of all tiles.

        Raises:
            FormatError: If the file is damaged or was made with other weights.
            ConfigError: If a setting lies outside its range.
        """
        return self._image(self.open(data), realism, steps, sampler, seed, progress)

    def decompress_progressive(
        self,
        chunks: Iterable[bytes],
        *,
        realism: float | None = None,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        seed: int = 0,
    ) -> Iterator[Image.Image]:
        """Decompress a progressive file while it arrives: a picture for each piece of it that adds something.

        Args:
            chunks: The bytes of the file, in pieces of any size. Of a file that is not progressive one picture comes at
                the end.
            realism: As in :meth:`decompress`, and the three below.
            steps: Steps of the reverse flow.
            sampler: Sampler of the reverse flow.
            seed: Of stochastic samplers.

        Yields:
            Pictures as :meth:`decompress` makes them, each better than the one before. A piece that is damaged, and all
            after it, add nothing.

        Raises:
            FormatError: If the pieces end before the first picture, or cannot be a ``.gic`` file.

        Example:
            >>> for image in codec.decompress_progressive(response.iter_content(4096)):  # doctest: +SKIP
            ...     show(image)
        """
        if isinstance(chunks, (bytes, bytearray, memoryview, str)):
            raise ConfigError("give the bytes of the file in pieces, for example [data]; decompress takes a whole file")
        received, used = bytearray(), 0
        for piece in chunks:
            received += piece
            if len(received) > len(MAGIC) and received[len(MAGIC)] == VERSION:
                continue
            try:
                file = self.open(received)
            except TruncatedError:
                continue
            assert file.progressive is not None
            if file.progressive.useful > used:
                used = file.progressive.useful
                yield self._image(file, realism, steps, sampler, seed, None)
        if not used:
            yield self.decompress(received, realism=realism, steps=steps, sampler=sampler, seed=seed)

    def _image(
        self,
        file: GicFile,
        realism: float | None,
        steps: int | None,
        sampler: str | Sampler | None,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> Image.Image:
        image = from_array(self._decode(file, realism, steps, sampler, seed, progress))
        if file.grey:
            image = image.convert("L")
            if file.channels == 3:
                image = image.convert("RGB")
        if file.metadata.icc:
            image.info["icc_profile"] = file.metadata.icc
        if file.metadata.exif:
            image.info["exif"] = file.metadata.exif
        if file.part:
            image.info["gic"] = file.part
        return image

    def decompress_tensor(
        self,
        data: FileLike,
        *,
        realism: float | None = None,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        seed: int = 0,
    ) -> torch.Tensor:
        """Like :meth:`decompress`, to a tensor (3, H, W), uint8, on the CPU; grey ones with equal channels.

        Raises:
            MissingExtraError: If PyTorch is not installed.
        """
        torch: Any = require("torch", "torch")
        file = self.open(data)
        pixels = self._decode(file, realism, steps, sampler, seed, None)
        if file.grey:
            pixels = to_array(from_array(pixels).convert("L").convert("RGB"))
        return torch.from_numpy(pixels)  # type: ignore[no-any-return]

    def _decode(
        self,
        file: GicFile,
        realism: float | None,
        steps: int | None,
        sampler: str | Sampler | None,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> NDArray[np.uint8]:
        r = 1.0 if realism is None else realism
        if not 0 <= r <= 1:
            raise ConfigError(f"realism must lie in [0, 1], not {r:g}")
        if steps is not None and steps < 1:
            raise ConfigError(f"steps must be at least 1, not {steps}")
        chosen = self.about.sampler if sampler is None else sampler_of(sampler)
        check_seed(seed)

        def reconstruct(latent: Latent, place: Tile) -> FloatArray:
            # Each tile has noise of its own, whatever is decoded beside it.
            noise = np.random.Philox(key=[seed, 1], counter=[0, 0, place.row, place.column])
            return self.networks.reconstruct(latent, WayBack(r, chosen, steps or self.about.steps, noise))

        return Decoding(self, file, reconstruct, progress).run()

    def open(self, data: FileLike) -> GicFile:
        """Read a file's fields and check that it was made with this model at a level in its range.

        Raises:
            FormatError: If it was not, or cannot be read.
        """
        file = unpack(_read(data))
        if file.model_id != self.model_id:
            if file.model_id not in self._others:
                self._others[file.model_id] = advice(file.model_id)
            raise FormatError(
                f"the file was made with model {file.model_id.hex()}, these weights are model {self.model_id.hex()}: "
                f"name the weights it was made with{self._others[file.model_id]}"
            )
        coarsest = first_code(file) + REGION_STEP * max(file.regions, default=0)
        if not self.finest <= file.code <= coarsest <= self.coarsest:
            raise FormatError(f"the header is damaged: level code {file.code} lies outside the model's range")
        if (problem := piece_problem(file.width, file.height, file.tile)) is not None:
            raise FormatError(f"the header is damaged: {problem}")
        return file


def _read(file: FileLike) -> bytes:
    """Bytes of a ``.gic`` file.

    Raises:
        FormatError: If it cannot be read, or is none of :data:`FileLike`.
    """
    if isinstance(file, (bytes, bytearray, memoryview)):
        return bytes(file)
    try:
        data = Path(file).read_bytes() if isinstance(file, (str, os.PathLike)) else file.read()
    except OSError as error:
        raise FormatError(in_words(error)) from error
    except (AttributeError, ValueError):  # nothing to read from, or closed
        data = None
    if not isinstance(data, bytes):
        raise FormatError(f"a .gic file is bytes, a path or a file open for reading bytes, not {file!r:.80}")
    return data
