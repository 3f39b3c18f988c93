"""CompressAI's pretrained models as baselines: whole files, decoded from their bytes alone."""

from __future__ import annotations

import hashlib
import pickle
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from gic.benchmark.picture_codecs import Baseline
from gic.errors import ConfigError, MissingExtraError, require
from gic.pictures.tensors import to_image, to_tensor

DOWNLOAD_SECONDS = 20.0
"""Timeout in seconds of a server, after which its weights count as not available."""

SIDE = 64
"""CompressAI's networks take images whose sides are multiples of this, in pixels."""

HEADER, LENGTH = struct.Struct("<B4H"), struct.Struct("<I")
"""Headers that :class:`CompressAIZoo` writes before all strings, and before each."""


class CompressAIZoo(Baseline):
    """A pretrained model of CompressAI's zoo, one network for each quality, with real files.

    A file is a byte for the quality, four 16 bit numbers (width and height of the image, height and width of the last
    latent) and CompressAI's strings, each after its length in 32 bits: 13 bytes around the string of a factorised
    prior, 17 around the two of a hyperprior. Images are padded to multiples of 64 by repeating their edge, decoded
    images are cropped. CompressAI is installed by the extra ``baselines``.

    Args:
        model: Name in the zoo, for example ``mbt2018-mean`` or ``cheng2020-anchor``.
        qualities: From 1 to the zoo's highest, 8 or 6; all if left out.
        metric: What the models were trained for.
        checkpoints: State dicts to use instead of the zoo's, by quality. The others are downloaded once, into
            PyTorch's own cache.
        name: Unique in a run; the model's if left out.

    Raises:
        ConfigError: If the zoo has no such model or quality, or a checkpoint is missing.
    """

    suffix = ".bin"

    def __init__(
        self,
        model: str = "mbt2018-mean",
        qualities: Sequence[int] | None = None,
        metric: Literal["mse", "ms-ssim"] = "mse",
        checkpoints: Mapping[int, str] | None = None,
        name: str | None = None,
    ) -> None:
        self._missing: str | None = None
        architectures: Mapping[str, Any] = {}
        try:
            zoo: Any = require("compressai.zoo.image", "baselines")
        except MissingExtraError as error:
            self._missing = str(error)
            if sys.version_info >= (3, 13):
                self._missing = f"CompressAI needs numpy below 2, which has no packages for Python 3.13: {error}"
            urls: Mapping[int, str] = dict.fromkeys(range(1, 9), "")
        else:
            if model not in zoo.model_urls:
                raise ConfigError(f"CompressAI's zoo has no model {model!r}; it has {', '.join(zoo.model_urls)}")
            urls, architectures = zoo.model_urls[model][metric], zoo.model_architectures
        super().__init__(name or model, "quality", list(urls) if qualities is None else qualities, min(urls), max(urls))
        self.model, self.metric = model, metric
        self.checkpoints = {quality: Path(path) for quality, path in (checkpoints or {}).items()}
        for path in self.checkpoints.values():
            if not path.is_file():
                raise ConfigError(f"no file {path}: it should hold weights of {model}")
        self._architecture: Any = architectures.get(model)
        self._urls = urls
        self._networks: dict[str, Any] = {}

    @property
    def version(self) -> str:
        """Of CompressAI."""
        return f"CompressAI {metadata.version('compressai')}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Settings that the points share, and the weights of each."""
        weights = {label: self._weights_name(int(quality)) for label, quality in self._values.items()}
        return {"model": self.model, "metric": self.metric, "weights": weights}

    def _weights_name(self, quality: int) -> str:
        if quality in self.checkpoints:
            path = self.checkpoints[quality]
            return f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"
        return self._urls[quality].rsplit("/", 1)[-1]  # the zoo's names carry a hash

    def unavailable(self) -> str | None:
        """That CompressAI is missing, or which weights are not available."""
        if self._missing is not None:
            return self._missing
        try:
            for setting in self.settings:
                self._network(setting)
        except (OSError, RuntimeError) as error:
            return f"weights of {self.model} cannot be downloaded ({error}): name local files as `checkpoints`"
        return None

    def start(self, device: str) -> None:
        """Move the networks to the device, except those that code positions one after the other."""
        for setting in self.settings:
            network = self._network(setting)
            if not hasattr(network, "context_prediction"):
                network.to(device)

    def _network(self, setting: str) -> Any:
        """The network of a point, loaded once.

        Raises:
            ConfigError: If a checkpoint does not hold it.
            OSError: If it cannot be downloaded.
            RuntimeError: If the downloaded file is something else.
        """
        if setting not in self._networks:
            quality = int(self._values[setting])
            path = self.checkpoints.get(quality)
            if path is None:
                network = self._build(_download(self._urls[quality]))
            else:
                try:
                    state = torch.load(path, map_location="cpu", weights_only=True)
                    network = self._build(state.get("state_dict", state))
                except (pickle.UnpicklingError, EOFError, KeyError, RuntimeError, AttributeError) as error:
                    raise ConfigError(f"{path} does not hold weights of {self.model}: {error}") from error
            self._networks[setting] = network
        return self._networks[setting]

    def _build(self, state: Mapping[str, Tensor]) -> Any:
        from compressai.zoo.pretrained import load_pretrained

        network = self._architecture.from_state_dict(load_pretrained(dict(state))).eval()
        network.update()  # entropy tables, if the file has none
        return network

    @torch.no_grad()
    def encode(self, image: Image.Image, setting: str) -> bytes:
        """Turn an RGB image into a whole file."""
        network = self._network(setting)
        x = to_tensor(image)[None].to(_device(network)) / 255
        height, width = x.shape[-2:]
        coded = network.compress(F.pad(x, (0, -width % SIDE, 0, -height % SIDE), mode="replicate"))
        header = HEADER.pack(int(self._values[setting]), width, height, *coded["shape"])
        strings = [batch[0] for batch in coded["strings"]]
        return header + b"".join(LENGTH.pack(len(string)) + string for string in strings)

    @torch.no_grad()
    def decode(self, data: bytes, decoding: str = "") -> Image.Image:
        """Turn a whole file into an RGB image."""
        quality, width, height, *shape = HEADER.unpack_from(data)
        strings, start = [], HEADER.size
        while start < len(data):
            (length,) = LENGTH.unpack_from(data, start)
            start += LENGTH.size + length
            strings.append([data[start - length : start]])
        x_hat = self._network(f"quality={quality}").decompress(strings, shape)["x_hat"]
        return to_image(x_hat[0, :, :height, :width])


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _download(url: str) -> Mapping[str, Tensor]:
    """A state dict from the zoo or from PyTorch's cache of it; with a timeout, which torch.hub does not have."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_SECONDS)
    try:
        state: Mapping[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
        return state
    finally:
        socket.setdefaulttimeout(before)
