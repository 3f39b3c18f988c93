"""Layers of gic's networks as data: the names and shapes of their parameters, and the order in which they apply.

They follow from the descriptions in :mod:`gic.runtime.parts`, and are those of :mod:`gic.models`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from gic.bitstream.exact import Relu, Shuffle
from gic.models.lot import SideChannels
from gic.runtime.parts import Analysis, Codec, HyperAnalysis, HyperSynthesis, ReverseUNet, Synthesis

Shapes = Mapping[str, tuple[int, ...]]


class Conv(NamedTuple):
    """A convolution with a bias and "same" zero padding."""

    name: str
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1


class LeakyRelu(NamedTuple):
    """``max(x, 0.01 x)``."""


class Residual(NamedTuple):
    """``x + inner(x)``."""

    inner: Sequence[Node]


class Gated(NamedTuple):
    """``x + value(x) * sigmoid(gate(x))``."""

    value: Sequence[Node]
    gate: Sequence[Node]


Node = Conv | LeakyRelu | Relu | Shuffle | Residual | Gated


def _block(name: str, kind: str, c: int) -> Node:
    if kind == "residual":
        return Residual([Conv(f"{name}.conv1", c, c), LeakyRelu(), Conv(f"{name}.conv2", c, c), LeakyRelu()])
    return Residual(_bottleneck([f"{name}.conv1", f"{name}.conv2", f"{name}.conv3"], c))


def _bottleneck(names: Sequence[str], c: int) -> list[Node]:
    half = c // 2
    return [Conv(names[0], c, half, 1), Relu(), Conv(names[1], half, half), Relu(), Conv(names[2], half, c, 1)]


def _attention(name: str, c: int) -> Node:
    def units(branch: str) -> list[Node]:
        inner = [_bottleneck([f"{name}.{branch}.{i}.conv.{place}" for place in (0, 2, 4)], c) for i in range(3)]
        return [node for layers in inner for node in (Residual(layers), Relu())]

    return Gated(units("conv_a"), [*units("conv_b"), Conv(f"{name}.conv_b.3", c, c, 1)])


def analysis(part: Analysis, name: str) -> list[Node]:
    """g_a: x - 1/2 to y / gain."""
    nodes: list[Node] = []
    channels = 3
    for stage, (width, count) in enumerate(zip(part.widths, part.blocks, strict=True)):
        nodes.append(Conv(f"{name}.layers.{len(nodes)}", channels, width, 5 if stage == 0 else 3, 2))
        for _ in range(count):
            nodes.append(_block(f"{name}.layers.{len(nodes)}", part.block, width))
        if part.attention and stage % 2 == 1:
            nodes.append(_attention(f"{name}.layers.{len(nodes)}", width))
        channels = width
    return [*nodes, Conv(f"{name}.layers.{len(nodes)}", channels, part.latent_channels)]


def synthesis(part: Synthesis, name: str) -> tuple[list[Node], list[Node]]:
    """g_s: y / gain to x - 1/2; the layers with the same weights for every r, and those that change with it."""
    widths, count = part.widths, 0
    shared: list[Node] = [Conv(f"{name}.layers.0", part.latent_channels, widths[-1])]
    realistic: list[Node] = []
    for stage in reversed(range(len(widths))):
        nodes, width = realistic if stage < part.realistic_stages else shared, widths[stage]
        if part.attention and stage % 2 == 1:
            count += 1
            nodes.append(_attention(f"{name}.layers.{count}", width))
        for _ in range(part.blocks[stage]):
            count += 1
            nodes.append(_block(f"{name}.layers.{count}", part.block, width))
        count += 1
        outputs = 4 * widths[stage - 1] if stage > 0 else 12
        nodes += [Conv(f"{name}.layers.{count}.0", width, outputs, 1 if stage == 1 else 3), Shuffle(2)]
    return shared, realistic


def hyper_analysis(part: HyperAnalysis, name: str) -> list[Node]:
    """h_a: y to z."""
    n = part.hyper_channels
    return [
        Conv(f"{name}.0", part.channels, n),
        LeakyRelu(),
        Conv(f"{name}.2", n, n, stride=2),
        LeakyRelu(),
        Conv(f"{name}.4", n, n, stride=2),
    ]


def hyper_synthesis(part: HyperSynthesis, name: str) -> list[Node]:
    """h_s: z to mu, log sigma, and log sigma of groups of the detail."""
    n = part.hyper_channels
    up = [(Conv(f"{name}.{i}.0", n, 4 * n), Shuffle(2), Relu()) for i in (0, 2)]
    return [*up[0], *up[1], Conv(f"{name}.4", n, part.channels)]


class LevelBlock(NamedTuple):
    """A block of U, see :class:`gic.models.reverse.LevelBlock`."""

    conv1: Conv
    film: str
    conv2: Conv


class UNet(NamedTuple):
    """Layers of U, see :class:`gic.models.reverse.ReverseUNet`; the coarsest resolution comes last.

    ``width`` are the channels there.
    """

    mlp: tuple[str, str]
    width: int
    enter: Conv
    down_blocks: Sequence[Sequence[LevelBlock]]
    down: Sequence[Conv]
    up: Sequence[Conv]
    up_blocks: Sequence[Sequence[LevelBlock]]
    attention: str | None
    leave: Conv


FREQUENCIES = range(-2, 3)
"""The level's features are sine and cosine of ``pi / 2 * 2^f * log q`` for these f, and log q."""


def unet(part: ReverseUNet, name: str, channels: int) -> UNet:
    """U for a latent of so many channels."""

    def blocks(where: str, i: int) -> list[LevelBlock]:
        names = [f"{name}.{where}.{i}.blocks.{j}" for j in range(part.blocks[i])]
        w = part.widths[i]
        return [LevelBlock(Conv(f"{b}.conv1", w, w), f"{b}.film", Conv(f"{b}.conv2", w, w)) for b in names]

    widths, steps = part.widths, range(len(part.widths) - 1)
    return UNet(
        (f"{name}.embed.mlp.0", f"{name}.embed.mlp.2"),
        widths[-1],
        Conv(f"{name}.enter", 3 * channels, widths[0], 1),
        [blocks("down_blocks", i) for i in range(len(widths))],
        [Conv(f"{name}.down.{i}", widths[i], widths[i + 1], stride=2) for i in steps],
        [Conv(f"{name}.up.{i}.0", widths[i + 1], 4 * widths[i], 1) for i in steps],
        [blocks("up_blocks", i) for i in steps],
        f"{name}.attention" if part.attention else None,
        Conv(f"{name}.leave", widths[0], 2 * channels, 1),
    )


# --- shapes of all parameters -------------------------------------------------------------------------------


def _convolutions(nodes: Sequence[Node]) -> Iterator[Conv]:
    for node in nodes:
        if isinstance(node, Conv):
            yield node
        elif isinstance(node, Residual):
            yield from _convolutions(node.inner)
        elif isinstance(node, Gated):
            yield from _convolutions(node.value)
            yield from _convolutions(node.gate)


def _of_convolutions(convolutions: Iterator[Conv] | Sequence[Conv]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for conv in convolutions:
        shapes[f"{conv.name}.weight"] = (conv.outputs, conv.inputs, conv.kernel, conv.kernel)
        shapes[f"{conv.name}.bias"] = (conv.outputs,)
    return shapes


def _of_unet(part: ReverseUNet, net: UNet) -> dict[str, tuple[int, ...]]:
    e, width = part.embedding, part.widths[-1]
    shapes = _of_convolutions([net.enter, *net.down, *net.up, net.leave])
    linear = {net.mlp[0]: (e, 2 * len(FREQUENCIES) + 1), net.mlp[1]: (e, e)}
    for block in (block for blocks in (*net.down_blocks, *net.up_blocks) for block in blocks):
        shapes |= _of_convolutions([block.conv1, block.conv2])
        linear[block.film] = (2 * block.conv1.outputs, e)
    if net.attention is not None:
        shapes |= {f"{net.attention}.norm.{what}": (width,) for what in ("weight", "bias")}
        shapes |= _of_convolutions(attention(net.attention, width))
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def attention(name: str, width: int) -> tuple[Conv, Conv]:
    """Convolutions before and after the self-attention of U."""
    return Conv(f"{name}.qkv", width, 3 * width, 1), Conv(f"{name}.out", width, width, 1)


PRIOR_WIDTHS = (1, 3, 3, 3, 3, 1)
"""Widths of the factorised prior of z, from a value to its cumulative logit."""


def _of_prior(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (columns, rows) in enumerate(pairwise(PRIOR_WIDTHS)):
        shapes |= {f"{name}.matrices.{i}": (channels, rows, columns), f"{name}.biases.{i}": (channels, rows, 1)}
        if i + 2 < len(PRIOR_WIDTHS):
            shapes[f"{name}.factors.{i}"] = (channels, rows, 1)
    return shapes


def realistic_name(name: str, prefix: str, inner: str = "") -> str:
    """Name of dW of a parameter below ``prefix``.

    >>> realistic_name("g_s.layers.4.bias", "g_s", "layers."), realistic_name("reverse.enter.bias", "reverse")
    ('g_s.realistic.4.bias', 'reverse.realistic.enter.bias')
    """
    return f"{prefix}.realistic.{name.removeprefix(f'{prefix}.{inner}')}"


def shapes_of(codec: Codec) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shapes of all parameters of a codec by name, and which of them belong to dW: those may be missing, which is 0."""
    c = codec.compressor
    shared, realistic = synthesis(c.g_s, "compressor.g_s")
    u = _of_unet(codec.reverse, unet(codec.reverse, "reverse", c.latent_channels))
    changed = _of_convolutions(_convolutions(realistic))
    change = {realistic_name(name, "compressor.g_s", "layers."): shape for name, shape in changed.items()}
    if codec.reverse.realistic:
        change |= {realistic_name(name, "reverse"): shape for name, shape in u.items()}
    nodes = [
        *analysis(c.g_a, "compressor.g_a"),
        *shared,
        *realistic,
        *hyper_analysis(c.h_a, "compressor.h_a"),
        *hyper_synthesis(c.h_s, "compressor.h_s"),
    ]
    shapes = _of_convolutions(_convolutions(nodes)) | u | _of_prior("compressor.prior_z", c.hyper_channels) | change
    groups = SideChannels.of(c.latent_channels, c.lapped, c.detail_channels, c.hyper_activity).groups
    if groups:
        shapes["compressor.detail"] = (len(groups),)
    return shapes, set(change)
