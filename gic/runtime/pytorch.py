"""Networks in PyTorch: on any device, and of any class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gic.bitstream.coder import EntropyModel
from gic.bitstream.exact import Convolution, Layer, Relu, Shuffle
from gic.bitstream.tables import FactorizedWeights
from gic.devices import automatic_device, check_device
from gic.errors import ConfigError
from gic.method.samplers import SAMPLERS, Sampler, reverse
from gic.models.codec import Codec
from gic.models.compressor import Compressor, ResidualCompressor
from gic.models.hyper import HyperAnalysis, HyperSynthesis
from gic.models.layers import LowerBound
from gic.models.reverse import ReverseUNet, denoiser
from gic.models.transforms import Analysis, Synthesis
from gic.runtime import description
from gic.runtime.networks import About, FloatArray, Latent, Networks, WayBack, digest

_NETWORKS = (
    Codec,
    Compressor,
    ResidualCompressor,
    Analysis,
    Synthesis,
    HyperAnalysis,
    HyperSynthesis,
    ReverseUNet,
)
KNOWN: dict[str, type[Any]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind for kind in (*_NETWORKS, *SAMPLERS.values())
}
"""Classes that a file may name without being trusted, by their names."""
MAX_PARAMETERS = 1 << 29
"""Largest network of known classes alone; 2 GB of float32."""

Precision = Literal["float32", "bfloat16"]

_MIXING = Lock()
"""Held while networks run: PyTorch puts weights W + r dW in the place of a module's own, for all threads."""


class TorchNetworks(Networks):
    """The networks of a trained codec.

    Args:
        model: The codec.
        device: Where it runs: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``float32``, or ``bfloat16`` for the convolutions of all networks, which is faster on GPUs; pixels
            then differ by a few levels.

    Attributes:
        model: The codec, in evaluation mode, on its device.

    Raises:
        ConfigError: If the device cannot be used, or the codec cannot code files.
    """

    runtime = "torch"

    def __init__(self, model: Codec, device: str | torch.device = "auto", precision: Precision = "float32") -> None:
        if precision not in ("float32", "bfloat16"):
            raise ConfigError(f"the precision must be float32 or bfloat16, not {precision!r}")
        try:
            self._device = check_device(torch.device(automatic_device() if device == "auto" else device))
            self.model = model.eval().to(self._device)
        except (RuntimeError, AssertionError) as error:  # raised by torch without such a device
            raise ConfigError(f"the device {device} cannot be used: {str(error).splitlines()[0]}") from error
        self.device = str(self._device)
        self._autocast = precision == "bfloat16"
        compressor = model.compressor
        self.about = About(
            model.q_min,
            model.q_max,
            model.quantizer,
            model.sampler,
            model.steps,
            model.rho,
            compressor.downsampling,
            compressor.hyper_downsampling,
            sum(weights.numel() for weights in model.parameters()),
            entropy_model(compressor),
            digest(_values(model)),
        )

    @contextmanager
    def _running(self) -> Iterator[None]:
        precise = torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext()
        with torch.inference_mode(), precise:
            yield

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self._device)

    def analysis(self, x: FloatArray) -> FloatArray:
        """Image to y."""
        with self._running():
            return _array(self.model.compressor.analysis(self._tensor(x)))

    def hyper_analysis(self, y: FloatArray) -> FloatArray:
        """Latent y to z."""
        with self._running():
            return _array(self.model.compressor.hyper_analysis(self._tensor(y)))

    def reconstruct(self, latent: Latent, way: WayBack) -> FloatArray:
        """Reverse flow and synthesis."""
        with self._running(), _MIXING:
            y_q, mu, sigma, q = map(self._tensor, latent)
            y_hat = reverse(
                denoiser(self.model.reverse, mu, sigma, way.realism),
                y_q,
                q,
                steps=way.steps,
                sampler=way.sampler,
                realism=way.realism,
                rho=self.about.rho,
                generator=way.noise,
            )
            return _array(self.model.compressor.synthesise(y_hat, way.realism))


def _array(x: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = x.detach().float().cpu().numpy()
    return array


def _values(model: Codec) -> Iterator[tuple[str, NDArray[Any]]]:
    """All parameters and all bounds, by name."""
    for name, tensor in model.state_dict().items():
        yield name, _array(tensor)
    for name, module in model.named_modules():
        if isinstance(module, LowerBound):  # constants, stored in weights of version 0.4 and earlier
            yield f"{name}.bound", np.array([module.bound if module.on_file is None else module.on_file], np.float32)


def entropy_model(compressor: Compressor) -> EntropyModel:
    """What encoder and decoder must share of a compressor.

    Raises:
        ConfigError: If its h_s cannot be computed exactly.
    """
    prior, detail = compressor.prior_z, compressor.detail
    return EntropyModel(
        compressor.latent_channels,
        compressor.hyper_channels,
        list(layers_of(compressor.h_s)),
        FactorizedWeights(*([_array(p) for p in each] for each in (prior.matrices, prior.biases, prior.factors))),
        compressor.sigma_max,
        compressor.lapped is not None,
        np.zeros(0) if detail is None else _array(detail),
        compressor.groups,
        compressor.prior,
    )


def layers_of(module: nn.Module) -> Iterator[Layer]:
    """Layers of an ``nn.Sequential``, also nested, of ``nn.Conv2d``, ``nn.ReLU`` and ``nn.PixelShuffle``.

    Raises:
        ConfigError: If it holds anything else, or a convolution with another stride or padding than 1 and "same".
    """
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from layers_of(child)
    elif isinstance(module, nn.Conv2d):
        k = module.kernel_size[0]
        plain = module.stride == (1, 1) and module.dilation == (1, 1) and module.groups == 1
        same = module.kernel_size == (k, k) and k % 2 == 1 and module.padding in ((k // 2, k // 2), "same")
        if not (plain and same and module.padding_mode == "zeros"):
            raise ConfigError(f"the hyper-synthesis holds {module}: only plain 'same' convolutions can be made exact")
        yield Convolution(_exactly(module.weight), None if module.bias is None else _exactly(module.bias))
    elif isinstance(module, nn.ReLU):
        yield Relu()
    elif isinstance(module, nn.PixelShuffle):
        yield Shuffle(module.upscale_factor)
    else:
        raise ConfigError(
            f"the hyper-synthesis holds a {type(module).__name__}: only Conv2d, ReLU and PixelShuffle can be made exact"
        )


def _exactly(x: Tensor) -> NDArray[Any]:
    """In its own dtype."""
    array: NDArray[Any] = x.detach().cpu().numpy()
    return array


def described(config: Mapping[str, Any], trust: str | Sequence[str] = ()) -> description.Network:
    """A codec's ``class_path`` / ``init_args`` tree, checked.

    Raises:
        ConfigError: If the tree names a class that is neither gic's nor of a trusted package, or is no codec.
    """
    vocabulary = description.Vocabulary(KNOWN, (nn.Module, Sampler), description.packages(trust))
    return description.check(config, Codec, "codec", vocabulary)


def build(network: description.Network) -> Codec:
    """An untrained codec from its checked description.

    Raises:
        ConfigError: If its arguments do not fit together, or it is larger than any of gic's.
    """
    with _at_most(math.inf if network.trusted else MAX_PARAMETERS):
        return description.build(network, Codec)


@contextmanager
def _at_most(limit: float) -> Iterator[None]:
    """Stop building networks as soon as they have more parameters than this, before memory is written."""
    count = 0

    def add(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal count
        count += 0 if parameter is None else parameter.numel()
        if count > limit:
            raise ConfigError(
                f"a network of more than {limit} parameters is described, which is none of gic's: refused"
            )

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()
