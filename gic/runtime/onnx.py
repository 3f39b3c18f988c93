"""Networks in ONNX Runtime: gic's own, on a CPU, without PyTorch.

A graph is built from the weights when it is first needed, and takes images of any size. Realism r chooses weights,
W + r dW, so that each r has graphs of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gic.bitstream.coder import EntropyModel
from gic.bitstream.exact import Convolution, Layer, Relu, Shuffle
from gic.bitstream.tables import FactorizedWeights
from gic.errors import ConfigError, require, words_of
from gic.method.samplers import Denoiser, Flow, Sampler, reverse, sampler_of
from gic.models import lot
from gic.models.ranges import (
    D_SIGMA_MAX,
    LAPPED_SIGMA_MAX,
    LIKELIHOOD_MIN,
    SCALE_MIN,
    SCALE_MIN_LAPLACE,
    SIGMA_MAX,
    SIGMA_MIN,
)
from gic.runtime import description, layers
from gic.runtime.graph import Graph
from gic.runtime.layers import Conv, Gated, LeakyRelu, LevelBlock, Node, Residual, UNet
from gic.runtime.networks import About, FloatArray, Latent, Networks, WayBack, digest
from gic.runtime.parts import HYPER_STRIDE, KNOWN, Codec, Compressor, Part
from gic.runtime.posterior import truncated_normal_mean
from gic.runtime.threads import available_threads

_GRAPHS = 10
"""Graphs that are kept at a time."""
_ATTENTION_HEADS = 4
_EPSILON = 1e-5  # of the normalisation before the attention

Weight = Callable[[str], NDArray[Any]]
"""A parameter by its name."""


class OnnxNetworks(Networks):
    """The networks of one set of weights.

    Args:
        state: Parameters by name, floating point.
        config: ``class_path`` / ``init_args`` tree of the codec.
        threads: That one picture uses; all cores if left out.

    Raises:
        ConfigError: If the tree describes other networks than gic's own, or the parameters do not fit it.
    """

    runtime, device = "onnx", "cpu"

    def __init__(
        self, state: Mapping[str, NDArray[Any]], config: Mapping[str, Any], threads: int | None = None
    ) -> None:
        part = description.build(
            description.check(config, Codec, "codec", description.Vocabulary(KNOWN, (Part, Sampler))), Codec
        )
        self.threads = available_threads() if threads is None else threads
        self._part, self._state = part, _complete(state, part)
        self._graphs: OrderedDict[tuple[str, float], onnxruntime.InferenceSession] = OrderedDict()
        self._lock = Lock()
        c = part.compressor
        self._own = slice(None, c.latent_channels)
        side = lot.SideChannels.of(c.latent_channels, c.lapped, c.detail_channels, c.hyper_activity)
        self._seen = np.array(side.seen, int)
        self._lot = lot.lot(c.latent_channels + c.detail_channels) if c.lapped else None
        bounds = _bounds(state, c)
        highest = float(bounds["compressor.upper.bound"][0])
        self.about = About(
            part.q_min,
            part.q_max,
            part.quantizer,
            sampler_of(part.sampler),
            part.steps,
            part.rho,
            c.g_a.stride,
            HYPER_STRIDE,
            sum(array.size for array in self._state.values()),
            self._entropy_model(side.groups, math.exp(-highest)),
            digest((*self._state.items(), *bounds.items())),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": OrderedDict(), "_lock": None}  # another process makes its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def _entropy_model(self, groups: Sequence[int], sigma_max: float) -> EntropyModel:
        c, state = self._part.compressor, self._state
        h_s: list[Layer] = []
        for node in layers.hyper_synthesis(c.h_s, "compressor.h_s"):
            if isinstance(node, Conv):
                h_s.append(Convolution(state[f"{node.name}.weight"], state[f"{node.name}.bias"]))
            else:
                assert isinstance(node, (Relu, Shuffle))
                h_s.append(node)
        count = len(layers.PRIOR_WIDTHS) - 1
        prior = [
            [state[f"compressor.prior_z.{kind}.{i}"] for i in range(n)]
            for kind, n in (("matrices", count), ("biases", count), ("factors", count - 1))
        ]
        detail = state["compressor.detail"] if groups else np.zeros(0)
        return EntropyModel(
            c.latent_channels,
            c.hyper_channels,
            h_s,
            FactorizedWeights(*prior),
            sigma_max,
            c.lapped,
            detail,
            groups,
            c.prior,
        )

    # --- the networks -----------------------------------------------------------------------------------------

    def analysis(self, x: FloatArray) -> FloatArray:
        """Image to y."""
        y = self._run("g_a", 0.0, {"x": x})[0]
        if self._lot is None:
            return y
        linear = lot.forward(self._lot, x - np.float32(0.5))
        linear *= np.float32(self._part.compressor.gain)
        linear[:, self._own] += lot.gather(self._lot, y)
        return linear

    def hyper_analysis(self, y: FloatArray) -> FloatArray:
        """Latent y to z."""
        if self._lot is not None:
            y = lot.spread(self._lot, y) / (np.float32(self._part.compressor.gain) * self._lot.deviation)[:, None, None]
            if len(self._seen):
                y = np.concatenate([y[:, self._own], self._activity(y[:, -len(self._seen) :])], 1)
        return self._run("h_a", 0.0, {"y": y})[0]

    def _activity(self, y: FloatArray) -> FloatArray:
        """Log magnitude of each group of channels, relative to the expected one, (1, G, h, w)."""
        groups = range(int(self._seen.max()) + 1)
        means = np.stack([(y[:, self._seen == group] ** 2).mean(1) for group in groups], 1)
        activity: FloatArray = np.log(np.sqrt(means + np.float32(1e-6)) + np.float32(0.1))
        return activity

    def reconstruct(self, latent: Latent, way: WayBack) -> FloatArray:
        """Reverse flow and synthesis."""
        y_hat = reverse(
            self._denoiser(latent, way.realism),
            latent.y_q,
            latent.q,
            steps=way.steps,
            sampler=_on_arrays(way.sampler),
            realism=way.realism,
            rho=self.about.rho,
            generator=way.noise,
        )
        r = way.realism if self._part.compressor.g_s.realistic_stages else 0.0
        if self._lot is None:
            return self._run("g_s", r, {"y": y_hat})[0]
        spread = lot.spread(self._lot, y_hat)
        x = self._run("g_s", r, {"y": spread[:, self._own]})[0]
        x += lot.unblocked(self._lot, spread / np.float32(self._part.compressor.gain))
        return x

    def _denoiser(self, latent: Latent, realism: float) -> Denoiser:
        """D(y_q, q) of DESIGN 4 (3), see :func:`gic.models.reverse.denoiser`."""
        own, r = self._own, realism if self._part.reverse.realistic else 0.0
        mu, sigma = (np.ascontiguousarray(each[:, own]) for each in (latent.mu, latent.sigma))
        log_sigma = np.log(sigma)

        def denoise(y_q: FloatArray, q: FloatArray) -> FloatArray:
            y, level = np.ascontiguousarray(y_q[:, own]), q if q.shape[1] == 1 else q[:, own]
            log_q = np.log(level)
            mean_level = float(np.broadcast_to(log_q, y.shape).mean(dtype=float)) if log_q.size > 1 else log_q.item()
            inputs = {"y_q": y, "mu": mu, "sigma": sigma, "log_sigma": log_sigma, "q": level, "log_q": log_q}
            inputs["level"] = _features(mean_level)
            refined_mu, refined_sigma = self._run("reverse", r, inputs)
            mean = truncated_normal_mean(y, level, refined_mu, refined_sigma, self.threads)
            if len(y_q[0]) == len(y[0]):
                return mean
            detail = y_q[:, own.stop :].copy()
            others = np.nonzero(detail != latent.mu[:, own.stop :])  # where y_q is mu, as in most of it, D is mu too
            y, level, m, s = (
                np.broadcast_to(t, y_q.shape)[:, own.stop :][others] for t in (y_q, q, latent.mu, latent.sigma)
            )
            detail[others] = truncated_normal_mean(y, level, m, s, self.threads)
            return np.concatenate([mean, detail], 1)

        return denoise

    def product(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """Matrix product of float64, on many processors twice as fast as NumPy's."""
        return self._run("product", 0.0, {"a": a, "b": b})[0]

    # --- graphs -----------------------------------------------------------------------------------------------

    def _run(self, name: str, r: float, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs of a graph.

        Raises:
            MemoryError: If there is not enough memory.
        """
        session = self._session(name, r)
        try:
            return session.run(None, inputs)  # type: ignore[no-any-return]
        except Exception as error:  # ONNX Runtime has no common base of its errors, and none for this one
            if "allocat" in str(error):
                raise MemoryError(words_of(error)) from error
            raise

    def _session(self, name: str, r: float) -> onnxruntime.InferenceSession:
        with self._lock:
            key = name, r
            if key not in self._graphs:
                self._graphs[key] = _session(getattr(self, f"_{name}")(r), self.threads)
                while len(self._graphs) > _GRAPHS:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            return self._graphs[key]

    def _plain(self, name: str) -> NDArray[Any]:
        return self._state[name]

    def _mixed(self, name: str, r: float, prefix: str, inner: str = "") -> NDArray[Any]:
        """W + r dW."""
        weight = self._state[name]
        if r == 0:
            return weight
        change = self._state[layers.realistic_name(name, prefix, inner)]
        mixed: NDArray[Any] = weight.astype(np.float32) + np.float32(r) * change.astype(np.float32)
        return mixed

    def _product(self, r: float) -> Graph:
        graph = Graph()
        a, b = graph.input("a", 2, np.float64), graph.input("b", 3, np.float64)
        graph.output("c", graph.node("MatMul", a, b), np.float64)
        return graph

    def _g_a(self, r: float) -> Graph:
        c = self._part.compressor
        graph = Graph()
        x = graph.node("Sub", graph.input("x", 4), 0.5)
        nodes = layers.analysis(c.g_a, "compressor.g_a")
        scale = np.full(c.latent_channels, c.g_a.gain)
        if self._lot is not None:
            scale = scale / c.gain * lot.unit(self._lot, c.gain, c.latent_channels)
        graph.output("y", _applied(graph, x, nodes, _scaled_outputs(self._plain, nodes[-1], scale)))
        return graph

    def _h_a(self, r: float) -> Graph:
        graph = Graph()
        nodes = layers.hyper_analysis(self._part.compressor.h_a, "compressor.h_a")
        graph.output("z", _applied(graph, graph.input("y", 4), nodes, self._plain))
        return graph

    def _g_s(self, r: float) -> Graph:
        c = self._part.compressor
        graph = Graph()
        shared, realistic = layers.synthesis(c.g_s, "compressor.g_s")
        scale = np.full(c.latent_channels, 1 / c.g_s.gain)
        if self._lot is not None:
            scale = scale * c.gain / lot.unit(self._lot, c.gain, c.latent_channels)
        x = _applied(graph, graph.input("y", 4), shared, _scaled_inputs(self._plain, shared[0], scale))
        x = _applied(graph, x, realistic, lambda name: self._mixed(name, r, "compressor.g_s", "layers."))
        graph.output("x", graph.node("Add", x, 0.5))
        return graph

    def _reverse(self, r: float) -> Graph:
        graph, part = Graph(), self._part.reverse
        net = layers.unet(part, "reverse", self._part.compressor.latent_channels)
        y_q, mu, sigma, log_sigma, q, log_q = (
            graph.input(name, 4) for name in ("y_q", "mu", "sigma", "log_sigma", "q", "log_q")
        )
        # The symbol, the prior mean and sigma / q, squeezed so that outliers stay of order one.
        x = [
            graph.node("Asinh", graph.node("Div", graph.node("Sub", y_q, mu), q)),
            graph.node("Asinh", graph.node("Div", mu, q)),
            graph.node("Sub", log_sigma, log_q),
        ]
        out = _unet(graph, graph.node("Concat", *x, axis=1), net, lambda name: self._mixed(name, r, "reverse"))
        d_mu, d_sigma = graph.split(out, [self._part.compressor.latent_channels] * 2)
        d_sigma = graph.node("Mul", graph.node("Tanh", graph.node("Div", d_sigma, D_SIGMA_MAX)), D_SIGMA_MAX)
        graph.output("refined_mu", graph.node("Add", mu, graph.node("Mul", sigma, d_mu)))
        graph.output("refined_sigma", graph.node("Mul", sigma, graph.node("Exp", d_sigma)))
        return graph


def _session(graph: Graph, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning slows a machine that is busy
    options.enable_mem_pattern = False  # plans for one size of image cost memory, and no time is saved
    try:
        return onnxruntime.InferenceSession(graph.model(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common base of its errors
        raise ConfigError(f"ONNX Runtime cannot run these networks: {words_of(error)}") from error


def _applied(graph: Graph, x: str, nodes: Sequence[Node], weight: Weight) -> str:
    """Apply layers in sequence."""
    for node in nodes:
        if isinstance(node, Conv):
            x = _convolution(graph, x, node, weight)
        elif isinstance(node, LeakyRelu):
            x = graph.node("LeakyRelu", x, alpha=0.01)
        elif isinstance(node, Relu):
            x = graph.node("Relu", x)
        elif isinstance(node, Shuffle):
            x = graph.node("DepthToSpace", x, blocksize=node.factor, mode="CRD")
        elif isinstance(node, Residual):
            x = graph.node("Add", _applied(graph, x, node.inner, weight), x)
        elif isinstance(node, Gated):
            gate = graph.node("Sigmoid", _applied(graph, x, node.gate, weight))
            x = graph.node("Add", graph.node("Mul", _applied(graph, x, node.value, weight), gate), x)
    return x


def _convolution(graph: Graph, x: str, conv: Conv, weight: Weight) -> str:
    kernel, bias = (graph.constant(weight(f"{conv.name}.{part}")) for part in ("weight", "bias"))
    sides = {"kernel_shape": [conv.kernel] * 2, "strides": [conv.stride] * 2, "pads": [conv.kernel // 2] * 4}
    return graph.node("Conv", x, kernel, bias, **sides)


def _scaled_outputs(weight: Weight, node: Node, scale: NDArray[Any]) -> Weight:
    """Weights with the outputs of one convolution scaled."""
    assert isinstance(node, Conv)

    def scaled(name: str) -> NDArray[Any]:
        array = weight(name)
        if name.rpartition(".")[0] != node.name:
            return array
        product: NDArray[Any] = (array * scale.reshape(-1, *[1] * (array.ndim - 1))).astype(np.float32)
        return product

    return scaled


def _scaled_inputs(weight: Weight, node: Node, scale: NDArray[Any]) -> Weight:
    """Weights with the inputs of one convolution scaled."""
    assert isinstance(node, Conv)

    def scaled(name: str) -> NDArray[Any]:
        array = weight(name)
        return (array * scale[:, None, None]).astype(np.float32) if name == f"{node.name}.weight" else array

    return scaled


def _silu(graph: Graph, x: str) -> str:
    return graph.node("Mul", x, graph.node("Sigmoid", x))


def _linear(graph: Graph, x: str, name: str, weight: Weight) -> str:
    return graph.node("Gemm", x, *(graph.constant(weight(f"{name}.{part}")) for part in ("weight", "bias")), transB=1)


def _unet(graph: Graph, x: str, net: UNet, weight: Weight) -> str:
    embedding = graph.input("level", 2)
    for name in net.mlp:
        embedding = _silu(graph, _linear(graph, embedding, name, weight))
    as_map = graph.constant(np.array([1, -1, 1, 1], np.int64))

    def blocks(x: str, each: Sequence[LevelBlock]) -> str:
        for block in each:
            film = graph.node("Reshape", _linear(graph, embedding, block.film, weight), as_map)
            scale, shift = graph.split(film, [block.conv1.outputs] * 2)
            h = _convolution(graph, _silu(graph, x), block.conv1, weight)
            h = graph.node("Add", graph.node("Mul", h, graph.node("Add", scale, 1.0)), shift)
            x = graph.node("Add", x, _convolution(graph, _silu(graph, h), block.conv2, weight))
        return x

    x = _convolution(graph, x, net.enter, weight)
    skips = []
    for each, down in zip(net.down_blocks, [*net.down, None], strict=True):
        x = blocks(x, each)
        if down is not None:
            skips.append(x)
            x = _convolution(graph, x, down, weight)
    if net.attention is not None:
        x = _self_attention(graph, x, net.attention, net.width, weight)
    for i in reversed(range(len(net.up))):
        x = _applied(graph, x, [net.up[i], Shuffle(2)], weight)
        x = blocks(graph.node("Add", x, skips[i]), net.up_blocks[i])
    return _convolution(graph, _silu(graph, x), net.leave, weight)


def _self_attention(graph: Graph, x: str, name: str, width: int, weight: Weight) -> str:
    """Normalisation, and attention of every place to every other, see :class:`gic.models.reverse.Attention`."""
    axes = [1, 2, 3]
    centred = graph.node("Sub", x, graph.node("ReduceMean", x, axes=axes))
    variance = graph.node("ReduceMean", graph.node("Mul", centred, centred), axes=axes)
    h = graph.node("Div", centred, graph.node("Sqrt", graph.node("Add", variance, _EPSILON)))
    gain, shift = (graph.constant(weight(f"{name}.norm.{part}")[:, None, None]) for part in ("weight", "bias"))
    h = graph.node("Add", graph.node("Mul", h, gain), shift)
    before, after = layers.attention(name, width)
    heads = graph.constant(np.array([_ATTENTION_HEADS, width // _ATTENTION_HEADS, -1], np.int64))
    parts = graph.split(_convolution(graph, h, before, weight), [width] * 3)
    query, key, value = (graph.node("Reshape", part, heads) for part in parts)
    products = graph.node("MatMul", graph.node("Transpose", query, perm=[0, 2, 1]), key)
    share = graph.node("Softmax", graph.node("Div", products, math.sqrt(width // _ATTENTION_HEADS)), axis=-1)
    mixed = graph.node("MatMul", value, graph.node("Transpose", share, perm=[0, 2, 1]))
    mixed = graph.node("Reshape", mixed, graph.node("Shape", x))
    return graph.node("Add", x, _convolution(graph, mixed, after, weight))


def _features(log_q: float) -> FloatArray:
    """Features of a level, see :class:`gic.models.reverse.LevelEmbedding`, (1, 11)."""
    phase = log_q * math.pi / 2 * 2.0 ** np.array(layers.FREQUENCIES)
    features: FloatArray = np.concatenate([[log_q], np.sin(phase), np.cos(phase)])[None].astype(np.float32)
    return features


def _complete(state: Mapping[str, NDArray[Any]], part: Codec) -> dict[str, NDArray[Any]]:
    """All parameters, without bounds, and with dW = 0 where it is missing.

    Raises:
        ConfigError: If they do not fit the description.
    """
    shapes, change = layers.shapes_of(part)
    present = {
        name: array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)
        for name, array in state.items()
        if not name.endswith(".bound")
    }
    for prefix in ("compressor.g_s.realistic.", "reverse.realistic."):
        own = {name for name in change if name.startswith(prefix)}
        if not own & present.keys():
            present |= {name: np.zeros(shapes[name], np.float32) for name in own}
    problems = [f"{name} is missing" for name in sorted(shapes.keys() - present.keys())]
    problems += [f"there is no place for {name}" for name in sorted(present.keys() - shapes.keys())]
    problems += [
        f"{name} has the shape {present[name].shape}, not {shape}"
        for name, shape in sorted(shapes.items())
        if name in present and present[name].shape != shape
    ]
    if problems:
        more = "; ..." if len(problems) > 3 else ""
        raise ConfigError(f"the parameters do not fit the codec it describes: {'; '.join(problems[:3])}{more}")
    return present


def _bounds(state: Mapping[str, NDArray[Any]], part: Compressor) -> dict[str, NDArray[np.float32]]:
    """Bounds of the prior, see :class:`gic.models.layers.LowerBound`: weights of version 0.4 and earlier hold them."""
    bounds = {
        "compressor.lower": math.log(SIGMA_MIN),
        "compressor.upper": -math.log(LAPPED_SIGMA_MAX if part.lapped else SIGMA_MAX),
        "compressor.prior_z.likelihood_lower_bound": LIKELIHOOD_MIN,
        "compressor.prior_y.likelihood_lower_bound": LIKELIHOOD_MIN,
        "compressor.prior_y.lower_bound_scale": SCALE_MIN if part.prior == "gaussian" else SCALE_MIN_LAPLACE,
    }
    given = {name: state[f"{name}.bound"][0] if f"{name}.bound" in state else value for name, value in bounds.items()}
    return {f"{name}.bound": np.array([value], np.float32) for name, value in given.items()}


def _on_arrays(sampler: Sampler) -> Sampler:
    """A sampler for arrays: gic's own as they are; one of a user's, which may know tensors alone, between tensors."""
    return sampler if type(sampler).__module__ == "gic.method.samplers" else _BetweenTensors(sampler)


class _BetweenTensors(Sampler):
    """Runs a sampler that was written for PyTorch."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def run(self, flow: Flow) -> FloatArray:
        """End of the flow."""
        torch: Any = require("torch", "torch")

        def denoiser(y_q: Any, q: Any) -> Any:
            return torch.from_numpy(flow.denoiser(y_q.numpy(), q.numpy()))

        with torch.inference_mode():
            y_q, q, mean = (torch.from_numpy(np.array(each)) for each in (flow.y_q, flow.q, flow.mean))
            end: FloatArray = self.sampler.run(flow._replace(denoiser=denoiser, y_q=y_q, q=q, mean=mean)).numpy()
        return end
