"""Pictures with the statistics of photographs, computed from a number, without a download.

Six kinds of scene alternate: fallen leaves as in the "dead leaves" model (Lee, Mumford and
Huang, 2001: occluding shapes with power-law sizes give the edges and the 1/f spectrum of natural
images), landscapes, still lifes, facades, printed pages and materials. They serve in tests and first
experiments; they do not replace photographs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from rich.progress import Progress, TaskID

from gic.data.shards import Sample, encode_image, progress_bar, staging, write_tar
from gic.errors import ConfigError, DataError

GENERATOR_VERSION = 1
"""Increased whenever the same index and seed give another picture; part of the seed and of the manifest."""

Array = npt.NDArray[np.float32]

_SUPERSAMPLING = 2  # drawn at twice the size, then averaged, against jagged edges
_VAL_OFFSET = 1_000_000  # validation pictures have indices from here on, so that none is trained on

# Colours that occur together, sRGB.
_PALETTES = (
    ("2f3b1f", "55692f", "7d8b45", "a9a766", "4a3a24", "c7b98a"),  # forest
    ("6b2d14", "a34a1c", "c97b2b", "dcae56", "4b3b22", "7f7a3a"),  # autumn
    ("1f3a4d", "3d6478", "7fa3ad", "c8d5d0", "8c7b64", "d9c9a8"),  # sea
    ("8a5a3b", "b98457", "d8b384", "ead9b8", "6d4a35", "94a08f"),  # desert
    ("3c3d40", "626466", "8d8c88", "b5b0a6", "524b44", "7c6f5f"),  # stone
    ("1a1f2b", "2c3446", "58524f", "a07f4f", "d8b06a", "37302f"),  # evening
    ("cfd6dc", "eef0ef", "9fb0bd", "6c7f8c", "b7aa98", "49545a"),  # winter
    ("5b6b34", "8aa04c", "b7384a", "d98a93", "e6c84f", "3f4a2b"),  # meadow
    ("7a4a35", "b07a5c", "d7a98c", "efd3bd", "4c2e25", "8e6d5a"),  # skin and wood
    ("6d3f33", "9c5b47", "bf8a6f", "cbbba4", "55585a", "8798a1"),  # brick
)


class _Scene:
    """The random numbers, size and colours of one picture, and the tools to paint it.

    Pictures are float32 arrays of shape (3, height, width), sRGB levels of about [0, 1].
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height = height
        self.width = width
        self.unit = min(height, width) / 384  # lengths are given for 384 pixels
        palette = _PALETTES[rng.integers(len(_PALETTES))]
        self._colours = _colours(rng, palette, 64)
        self.y, self.x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)

    def uniform(self, low: float, high: float) -> float:
        """One number in [low, high)."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def colour(self) -> Array:
        """A colour that goes with the others of this picture, shape (3,)."""
        result: Array = self._colours[self.rng.integers(len(self._colours))]
        return result

    def noise(self, slope: float, stretch: float = 1.0, angle: float = 0.0) -> Array:
        """Gaussian noise of power 1/f^slope, drawn out along an angle; mean 0, deviation 1, (height, width)."""
        fy = np.fft.fftfreq(self.height).astype(np.float32)[:, None]
        fx = np.fft.rfftfreq(self.width).astype(np.float32)[None]
        along = (fx * math.cos(angle) + fy * math.sin(angle)) * stretch
        across = fy * math.cos(angle) - fx * math.sin(angle)
        square = along**2 + across**2 + (0.5 / max(self.height, self.width)) ** 2
        amplitude = square ** (-slope / 4)
        amplitude[0, 0] = 0
        white = (self.rng.random((*amplitude.shape, 2), dtype=np.float32) - 0.5).view(np.complex64)[..., 0]
        field = np.fft.irfft2(amplitude * white, (self.height, self.width)).astype(np.float32)
        result: Array = field / field.std()
        return result

    def stripes(self, period: float, angle: float, warp: Array, amount: float) -> Array:
        """A grating of a period in pixels, bent by ``amount`` radians of ``warp``; in [-1, 1]."""
        turns = 2 * math.pi / period
        step_x, step_y = self.width * math.cos(angle) * turns, self.height * math.sin(angle) * turns
        result: Array = np.sin(self.x * step_x + self.y * step_y + warp * amount)
        return result

    def gradient(self, first: Array, second: Array, angle: float | None = None) -> Array:
        """A smooth gradient from one colour to another across the picture."""
        ramp = self.ramp(self.uniform(0, 2 * math.pi) if angle is None else angle)
        return first[:, None, None] + (second - first)[:, None, None] * ramp

    def ramp(self, angle: float) -> Array:
        """From 0 to 1 across the picture, shape (height, width)."""
        result: Array = np.clip((self.x - 0.5) * math.cos(angle) + (self.y - 0.5) * math.sin(angle) + 0.5, 0, 1)
        return result


def _colours(rng: np.random.Generator, palette: tuple[str, ...], count: int) -> Array:
    """Colours near lines between two of a palette, lighter and darker, not too vivid; shape (count, 3)."""
    given = np.array([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in palette])
    first, second = given[rng.integers(len(given), size=(2, count))]
    mixed = first + (second - first) * rng.random((count, 1)) ** 2
    mixed *= np.exp(rng.normal(0, 0.2, (count, 1))) * (1 + rng.normal(0, 0.03, (count, 3)))
    grey = mixed.mean(axis=1, keepdims=True)
    result: Array = np.clip(grey + 0.8 * (mixed - grey), 0.02, 0.96).astype(np.float32)
    return result


class _Canvas:
    """Shapes drawn over each other with smooth edges: a colour, the weights of three textures, a mask."""

    def __init__(self, scene: _Scene) -> None:
        size = (scene.width * _SUPERSAMPLING, scene.height * _SUPERSAMPLING)
        self._colour = Image.new("RGB", size)
        self._weights = Image.new("CMYK", size)  # four plain channels: three weights and the mask
        self._draw_colour = ImageDraw.Draw(self._colour)
        self._draw_weights = ImageDraw.Draw(self._weights)

    def polygon(self, points: Array, colour: Array, weights: Array | None = None) -> None:
        """Fill a polygon of points (n, 2), x and y in pixels."""
        corners = (points * _SUPERSAMPLING).ravel().tolist()
        self._draw_colour.polygon(corners, fill=_fill(colour))
        self._draw_weights.polygon(corners, fill=(0, 0, 0, 255) if weights is None else (*_fill(weights), 255))

    def line(self, points: Array, colour: Array, width: float) -> None:
        """Draw a stroke of a width in pixels through points (n, 2)."""
        corners = (points * _SUPERSAMPLING).ravel().tolist()
        thick = max(1, round(width * _SUPERSAMPLING))
        self._draw_colour.line(corners, fill=_fill(colour), width=thick, joint="curve")
        self._draw_weights.line(corners, fill=(0, 0, 0, 255), width=thick, joint="curve")

    def over(self, background: Array, textures: Sequence[Array], blur: float = 0.0) -> Array:
        """Lay the shapes, with textures (height, width) of deviation 1, over a background."""
        layers = [layer.reduce(_SUPERSAMPLING) for layer in (self._colour, self._weights)]
        if blur > 0:
            layers = [layer.filter(ImageFilter.GaussianBlur(blur)) for layer in layers]
        colour, weights = (_planes(layer) for layer in layers)
        relief = 1 + 0.6 * (weights[0] * textures[0] + weights[1] * textures[1] + weights[2] * textures[2])
        result: Array = background * (1 - weights[3]) + colour * relief
        return result


def _planes(image: Image.Image) -> Array:
    """8 bit levels as float32 in [0, 1], shape (channels, height, width)."""
    levels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    return levels.astype(np.float32) * np.float32(1 / 255)


def _image(picture: Array) -> Image.Image:
    """A picture (3, height, width) in [0, 1] as 8 bit; values outside are clipped."""
    levels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def _fill(values: Array) -> tuple[int, int, int]:
    """Three numbers in [0, 1] as 8 bit levels for drawing."""
    first, second, third = (min(255, max(0, int(value * 255))) for value in values.tolist())
    return first, second, third


def synthetic_image(index: int, *, size: tuple[int, int] = (384, 384), seed: int = 0) -> Image.Image:
    """Compute a picture; the same arguments give the same picture, in any order of calls.

    Args:
        index: Which picture, from 0; neighbouring indices show different kinds of scene.
        size: Height and width in pixels, at least 16 each.
        seed: Another seed gives another set of pictures.

    Returns:
        Pillow image of mode "RGB".

    Raises:
        ConfigError: If the index or seed is negative or the size too small.

    Example:
        >>> synthetic_image(3, size=(64, 96)).size
        (96, 64)
    """
    height, width = size
    if index < 0 or seed < 0 or height < 16 or width < 16:
        raise ConfigError(f"a synthetic image needs index and seed >= 0 and sides >= 16, not {index}, {seed}, {size}")
    rng = np.random.default_rng([GENERATOR_VERSION, seed, index])
    scene = _Scene(rng, height, width)
    return _photograph(scene, _KINDS[index % len(_KINDS)](scene))


def _photograph(scene: _Scene, picture: Array) -> Image.Image:
    """Add the effects of a camera: uneven light, contrast, a little blur, sensor noise."""
    dim, bright = np.sort(np.exp(scene.rng.normal(-0.06, 0.11, 2))).tolist()
    light = dim + (bright - dim) * scene.ramp(scene.uniform(0, 2 * math.pi))
    light = light * (1 - scene.uniform(0, 0.5) * ((scene.x - 0.5) ** 2 + (scene.y - 0.5) ** 2))
    contrast = scene.uniform(0.9, 1.15)
    picture = picture * (light * contrast) + (1 - contrast) / 2
    if scene.chance(0.4):
        picture = _soften(picture, scene.uniform(0.05, 0.25))
    if scene.chance(0.5):
        grain = scene.rng.standard_normal((scene.height, scene.width), dtype=np.float32)
        picture = picture + grain * scene.uniform(0.003, 0.015)
    return _image(picture)


def _soften(picture: Array, share: float) -> Array:
    """Blur a little: each pixel gives a share in (0, 1/3) to either neighbour, down and then across."""
    for axis in (1, 2):
        neighbours = np.roll(picture, 1, axis) + np.roll(picture, -1, axis)
        blurred = picture * (1 - 2 * share) + neighbours * share
        for edge in (0, -1):  # no neighbour beyond the border
            np.moveaxis(blurred, axis, 0)[edge] = np.moveaxis(picture, axis, 0)[edge]
        picture = blurred
    return picture


def _textures(scene: _Scene) -> tuple[Array, Array, Array]:
    """Three textures of deviation about 1: rough, drawn out like hair or grass, and striped."""
    rough = scene.noise(scene.uniform(1.2, 2.2))
    hair = scene.noise(scene.uniform(1.4, 2.0), stretch=scene.uniform(3, 10), angle=scene.uniform(0, math.pi))
    period = scene.unit * scene.uniform(5, 16)
    grating = scene.stripes(period, scene.uniform(0, math.pi), rough, scene.uniform(0.3, 1.5))
    return rough, hair, grating


def _outlines(scene: _Scene, count: int) -> list[Array]:
    """Outlines of ellipses, stones, polygons and pointed leaves of radius about 1, each of shape (n, 2)."""
    outlines = []
    for number in range(count):
        kind = number % 4
        corners = int(scene.rng.integers(4, 8)) if kind == 2 else 28
        angle = np.linspace(0, 2 * math.pi, corners, endpoint=False)
        reach = np.ones(corners)
        if kind == 1:
            for harmonic in (2, 3, 5):
                reach += 0.25 / harmonic * np.cos(harmonic * angle + scene.uniform(0, 2 * math.pi))
        elif kind == 2:
            reach = scene.rng.uniform(0.7, 1.1, corners)
        elif kind == 3:
            reach = 0.45 + 0.75 * np.abs(np.cos(angle)) ** 3
        flat = np.stack([reach * np.cos(angle), reach * np.sin(angle) * scene.uniform(0.45, 1)], axis=1)
        outlines.append((flat @ _rotation(scene.uniform(0, 2 * math.pi))).astype(np.float32))
    return outlines


def _rotation(angle: float) -> Array:
    """Matrix that turns points (n, 2) when multiplied from the right."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, sine], [-sine, cosine]], np.float32)


def _texture_weights(scene: _Scene) -> Array:
    """Weights of the three textures on an object, shape (3,); most are small."""
    return (scene.rng.random(3) ** 3 * (0.4, 0.4, 0.25)).astype(np.float32)


def _scatter(scene: _Scene, canvas: _Canvas, count: int, smallest: float, largest: float) -> None:
    """Scatter leaves, each covering those below; radii in pixels are distributed as r^-3."""
    shrink = 1 - (smallest / largest) ** 2
    radii = (smallest / np.sqrt(1 - scene.rng.random(count) * shrink)).tolist()
    centres = (scene.rng.uniform(-0.1, 1.1, (count, 2)) * (scene.width, scene.height)).astype(np.float32)
    outlines = _outlines(scene, 48)
    shapes = scene.rng.integers(len(outlines), size=count).tolist()
    shadow = np.array([1, 0], np.float32) @ _rotation(scene.uniform(0, 2 * math.pi))
    for radius, centre, shape in zip(radii, centres, shapes, strict=True):
        outline = outlines[shape] * radius
        colour = scene.colour()
        if radius > 7 * scene.unit:
            canvas.polygon(outline + (centre + shadow * (radius * 0.08)), colour * 0.35)
        canvas.polygon(outline + centre, colour, _texture_weights(scene))
        if radius > 14 * scene.unit and scene.chance(0.5):  # a lighter side
            canvas.polygon(outline * 0.7 + (centre - shadow * (radius * 0.1)), colour * 1.12)


def _leaves(scene: _Scene) -> Array:
    """Fallen leaves, stones and petals, sharp, over ground that is at times out of focus."""
    textures = _textures(scene)
    ground = scene.gradient(scene.colour(), scene.colour()) * (1 + 0.2 * textures[0])
    scale = scene.unit * scene.uniform(0.8, 1.6)
    if scene.chance(0.5):
        behind = _Canvas(scene)
        _scatter(scene, behind, 120, 12 * scale, 130 * scale)
        ground = behind.over(ground, textures, blur=scene.unit * scene.uniform(3, 8))
        count = 250
    else:
        count = 700
    canvas = _Canvas(scene)
    _scatter(scene, canvas, count, 3 * scale, 120 * scale)
    return canvas.over(ground, textures)


def _ridge(scene: _Scene, roughness: float) -> Array:
    """A fractal line across the picture, mean 0, deviation 1, shape (width,)."""
    frequency = np.fft.rfftfreq(scene.width)
    amplitude = np.zeros_like(frequency)
    amplitude[1:] = frequency[1:] ** -roughness
    line = np.fft.irfft(amplitude * np.exp(2j * math.pi * scene.rng.random(frequency.size)), scene.width)
    result: Array = (line / line.std()).astype(np.float32)
    return result


def _landscape(scene: _Scene) -> Array:
    """Sky with clouds, ridges that pale with distance, a foreground, bare trees before it."""
    rough, hair, _ = _textures(scene)
    blue = np.array([0.35, 0.5, 0.72], np.float32) * scene.uniform(0.7, 1.2)
    haze = np.array([0.86, 0.84, 0.8], np.float32) * (1 + scene.rng.normal(0, 0.06, 3)).astype(np.float32)
    picture = scene.gradient(blue, haze, angle=math.pi / 2)
    clouds = scene.noise(scene.uniform(2.4, 3.2), stretch=scene.uniform(1.5, 4))
    cover = np.clip((clouds - scene.uniform(-0.6, 0.8)) * 0.7, 0, 1)
    picture = picture + (np.clip(0.95 - 0.08 * rough, 0, 1) * haze[:, None, None] - picture) * cover * 0.8
    horizon = scene.uniform(0.35, 0.6)
    layers = int(scene.rng.integers(2, 5))
    for layer in range(layers):
        nearness = (layer + 1) / layers
        edge = horizon + 0.3 * nearness**2 + _ridge(scene, 1.2) * scene.uniform(0.02, 0.07)
        below = slice(max(0, math.floor(float(edge.min()) * scene.height)), None)  # rows it can reach
        depth = scene.y[below] - edge
        inside = np.clip(depth * scene.height, 0, 1)
        relief = 1 + (rough + 0.6 * hair)[below] * (0.05 + 0.2 * nearness)
        shade = (1.1 - np.clip(depth, 0, 0.5)) * (0.3 + 0.7 * nearness)
        pale = haze[:, None, None] * (0.7 - 0.7 * nearness)
        ground = (pale + scene.colour()[:, None, None] * shade) * relief
        picture[:, below] += (ground - picture[:, below]) * inside
    canvas = _Canvas(scene)
    for _ in range(int(scene.rng.integers(0, 4))):
        foot = np.array([scene.uniform(0, scene.width), scene.height * scene.uniform(0.8, 1.0)], np.float32)
        height = scene.height * scene.uniform(0.12, 0.22)
        _tree(scene, canvas, foot, -math.pi / 2, height, scene.colour() * 0.3, 6)
    if scene.chance(0.5):
        for _ in range(250):
            foot = np.array([scene.uniform(0, scene.width), scene.height * scene.uniform(0.85, 1.1)])
            tip = foot - (scene.rng.normal(0, 8) * scene.unit, scene.uniform(10, 50) * scene.unit)
            canvas.line(np.stack([foot, tip]).astype(np.float32), scene.colour() * 0.9, scene.unit)
    return canvas.over(picture, (rough, hair, rough))


def _tree(scene: _Scene, canvas: _Canvas, foot: Array, angle: float, length: float, colour: Array, depth: int) -> None:
    """Draw a bare tree, branch by branch."""
    tip = foot + np.array([np.cos(angle), np.sin(angle)], np.float32) * np.float32(length)
    canvas.line(np.stack([foot, tip]), colour, length / 8)
    if depth > 0 and length > 3 * scene.unit:
        for side in (-1, 1):
            bend = angle + side * scene.uniform(0.15, 0.6)
            _tree(scene, canvas, tip, bend, length * scene.uniform(0.6, 0.85), colour, depth - 1)


def _still_life(scene: _Scene) -> Array:
    """Rounded things on a table before a wall, lit from one side."""
    textures = _textures(scene)
    edge = scene.uniform(0.45, 0.7)
    wall = scene.gradient(scene.colour(), scene.colour()) * (1 + 0.04 * textures[0])
    table = scene.gradient(scene.colour(), scene.colour(), math.pi / 2) * (1 + 0.1 * textures[1])
    picture = np.where(scene.y > edge, table, wall)
    light = scene.uniform(-0.9, 0.9)
    for place in np.sort(scene.rng.uniform(0, 1, int(scene.rng.integers(3, 9)))):
        radius = scene.uniform(0.07, 0.22)
        tall = scene.uniform(0.7, 1.4)
        cx, foot = scene.uniform(0.05, 0.95), edge + (1 - edge) * float(place)
        cy = foot - radius * tall * 0.9
        rows = _span(cy - 1.1 * radius * tall, foot + 0.8 * radius, scene.height)
        columns = _span(cx - 3 * radius, cx + 3 * radius, scene.width)
        x, y = scene.x[rows, columns] - cx, scene.y[rows, columns]
        u, v = x / radius, (y - cy) / (radius * tall)
        shadow = np.exp(-2 * ((u / 1.4 + light / 1.4) ** 2 + ((y - foot) / (radius * 0.35)) ** 2))
        distance = np.hypot(u, v)
        inside = np.clip((1 - distance) * radius * min(scene.height, scene.width), 0, 1)
        facing = np.clip(u * light - v * 0.7 + np.sqrt(np.clip(1 - distance**2, 0, 1)) * 0.7, 0, 1.2)
        weights = _texture_weights(scene).tolist()
        relief = 1 + sum(w * t[rows, columns] for w, t in zip(weights, textures, strict=True))
        body = scene.colour()[:, None, None] * ((0.25 + 0.75 * facing) * relief)
        spot = (u - light * 0.5) ** 2 + (v + 0.45) ** 2
        body += scene.uniform(0, 0.7) * np.exp(-spot * scene.uniform(15, 60))
        behind = picture[:, rows, columns] * (1 - 0.6 * shadow)
        picture[:, rows, columns] = behind * (1 - inside) + body * inside
    return picture


def _span(first: float, last: float, pixels: int) -> slice:
    """Pixels from one place to another, given as parts of the side."""
    return slice(max(0, math.floor(first * pixels)), max(1, math.ceil(last * pixels)))


def _facade(scene: _Scene) -> Array:
    """A wall with rows of windows, seen a little from the side."""
    rough, hair, grating = _textures(scene)
    height, width = scene.height, scene.width
    lean, fall = scene.uniform(-0.25, 0.25), scene.uniform(-0.3, 0.3)

    def seen(box: tuple[float, float, float, float]) -> Array:
        left, top, right, bottom = box
        corners = []
        for x, y in ((left, top), (right, top), (right, bottom), (left, bottom)):
            near = 1 + fall * (x - 0.5)
            corners.append((((x - 0.5) / near + 0.5) * width, ((y - 0.5 + lean * (x - 0.5)) / near + 0.5) * height))
        return np.array(corners, np.float32)

    canvas = _Canvas(scene)
    wall, frame, pane = scene.colour(), scene.colour(), scene.colour() * 0.35
    rugged = np.array([0.2, 0.05, 0], np.float32)
    rows, columns = int(scene.rng.integers(2, 7)), int(scene.rng.integers(3, 9))
    if scene.chance(0.6):
        courses = int(scene.rng.integers(20, 36))
        for row in range(-courses // 5, courses + courses // 5):
            for column in range(-3, 15):
                left = (column + 0.5 * (row % 2)) / 12
                box = (left, row / courses, left + 0.078, (row + 0.84) / courses)
                canvas.polygon(seen(box), wall * scene.uniform(0.85, 1.15), rugged)
    for row in range(-1, rows + 1):
        for column in range(-1, columns + 1):
            left, top = (column + 0.22) / columns, (row + 0.2) / rows
            right, bottom = (column + 0.78) / columns, (row + 0.85) / rows
            canvas.polygon(seen((left - 0.012, top - 0.012, right + 0.012, bottom + 0.02)), frame)
            canvas.polygon(seen((left, bottom + 0.01, right, bottom + 0.022)), frame * 0.5)
            middle = (left + right) / 2
            for a, b in ((left, middle - 0.005), (middle + 0.005, right)):
                glass = scene.colour() * 1.2 if scene.chance(0.15) else pane * scene.uniform(0.6, 1.6)
                canvas.polygon(seen((a, top, b, bottom)), glass, rugged)
    plaster = scene.gradient(wall, wall * 0.75) * (1 + 0.08 * rough + 0.05 * hair)
    return canvas.over(plaster, (rough, hair, grating))


def _page(scene: _Scene) -> Array:
    """A printed page or a sign with lines of letter-like strokes, lying on something."""
    textures = _textures(scene)
    below = scene.gradient(scene.colour(), scene.colour()) * (1 + 0.2 * textures[1])
    spin = _rotation(scene.rng.normal(0, 0.12))
    zoom = scene.uniform(0.75, 1.3)

    def placed(points: npt.ArrayLike) -> Array:
        centred = (np.asarray(points) - 0.5) * zoom @ spin + 0.5
        return (centred * (scene.width, scene.height)).astype(np.float32)

    canvas = _Canvas(scene)
    paper = np.clip(0.65 + 0.25 * scene.colour(), 0, 0.9).astype(np.float32)
    ink = scene.colour() * 0.25
    if scene.chance(0.25):
        paper, ink = scene.colour() * 0.5, paper
    edge = np.array([[0.06, 0.06], [0.94, 0.06], [0.94, 0.94], [0.06, 0.94]])
    canvas.polygon(placed(edge + 0.012), paper * 0.15)
    canvas.polygon(placed(edge), paper, np.array([0.06, 0.04, 0]))
    alphabet = [scene.rng.integers(0, 3, (int(scene.rng.integers(3, 6)), 2)) / (3.2, 2.2) for _ in range(16)]
    top = 0.12
    while top < 0.86:
        letter = scene.uniform(0.05, 0.1) if scene.chance(0.15) else scene.uniform(0.018, 0.034)
        end = scene.uniform(0.5, 0.88)
        if scene.chance(0.15):
            box = ((0.12, top), (end, top), (end, top + 0.15), (0.12, top + 0.15))
            canvas.polygon(placed(box), scene.colour(), np.array([0.4, 0.2, 0.1]))
            top += 0.2
            continue
        left = 0.12
        while left < end:
            if not scene.chance(0.15):
                strokes = alphabet[scene.rng.integers(len(alphabet))] * letter + (left, top)
                canvas.line(placed(strokes), ink, letter * 0.13 * min(scene.width, scene.height) * zoom)
            left += letter * 0.85
        top += letter * 1.9
    return canvas.over(below, textures)


def _material(scene: _Scene) -> Array:
    """A surface seen close: rock, wood, cloth or hide, lit from the side."""
    kind = scene.rng.integers(3)
    rough = scene.noise(scene.uniform(1.8, 2.6))
    relief = rough
    mix = 0.5 + 0.25 * scene.noise(scene.uniform(2.2, 3.2))
    if kind == 1:  # wood
        angle = scene.uniform(0, math.pi)
        grain = scene.noise(2.4, stretch=scene.uniform(8, 20), angle=angle)
        rings = scene.stripes(scene.unit * scene.uniform(14, 50), angle + math.pi / 2, grain, scene.uniform(2, 6))
        mix, relief = 0.5 + 0.25 * rings + 0.2 * grain, grain
    elif kind == 2:  # cloth
        angle, period = scene.uniform(0, math.pi), scene.unit * scene.uniform(4, 12)
        weft = scene.stripes(period, angle, rough, 0.4)
        warp = scene.stripes(period, angle + math.pi / 2, rough, 0.4)
        relief = 3 * rough + weft * warp * 0.25
        bands = scene.stripes(scene.unit * scene.uniform(40, 150), angle, rough, 0.4)
        mix = 0.5 + 0.45 * np.tanh(4 * bands) + 0.05 * weft
    slope_y, slope_x = np.gradient(relief)
    angle = scene.uniform(0, 2 * math.pi)
    slope = slope_x * math.cos(angle) + slope_y * np.sin(angle)
    shading = 1 + 0.22 * np.tanh(slope / (slope.std() * 1.5)) + 0.12 * rough
    mix = np.clip(mix, 0, 1)
    first, second = scene.colour()[:, None, None], scene.colour()[:, None, None]
    third = (first + second) * scene.uniform(0.3, 0.6)
    blend: Array = first * (1 - mix) ** 2 + second * (2 * mix * (1 - mix)) + third * mix**2
    result: Array = blend * shading
    return result


_KINDS: tuple[Callable[[_Scene], Array], ...] = (
    _leaves,
    _landscape,
    _still_life,
    _facade,
    _page,
    _material,
)


def ensure_synthetic_shards(
    folder: Path,
    *,
    train: int = 96,
    val: int = 16,
    size: tuple[int, int] = (384, 384),
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write shards of synthetic pictures, unless they are there already.

    Writes ``train-000000.tar`` and on (four, or fewer for fewer than four pictures) and
    ``val-000000.tar``: JPEG of quality 95, 4:4:4, each with a json that holds its index and seed. The
    ``manifest.json``, written last, holds the settings and sizes; if it differs from the requested settings,
    or a shard is missing or truncated, all are created again. Several processes may call this at once:
    one writes, the others wait, and none reads a partial shard.

    Args:
        folder: Folder of the shards; created if missing.
        train: Number of training pictures, at least 1.
        val: Number of validation pictures, at least 1; none of them is a training picture.
        size: Height and width in pixels.
        seed: Seed of all pictures.
        progress: Show a progress bar on the error stream.

    Raises:
        ConfigError: If a setting lies outside its range.
        DataError: If the folder holds shards that this function did not write.
    """
    if train < 1 or val < 1:
        raise ConfigError(f"synthetic shards need at least one picture each, not train={train}, val={val}")
    wanted: dict[str, object] = {
        "source": "synthetic",
        "generator": GENERATOR_VERSION,
        "train": train,
        "val": val,
        "size": list(size),
        "seed": seed,
    }
    if _is_complete(folder, wanted):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if _is_complete(folder, wanted):  # another process has created them
            return
        ours = _read_manifest(folder).get("source") == "synthetic"
        old = sorted([*folder.glob("train-*.tar"), *folder.glob("val-*.tar")])
        if old and not ours:
            raise DataError(
                f"{folder} holds shards that are not synthetic ({old[0].name}): name another folder for the "
                "synthetic ones, or move these away"
            )
        with staging(folder) as staged:
            new = _write_synthetic(staged, train, val, size, seed, progress)
            _replace_manifest(folder, staged, {"source": "synthetic", "complete": False})
            sizes = {path.name: path.stat().st_size for path in new}
            for path in new:
                path.replace(folder / path.name)
            for path in old:
                if path.name not in sizes:
                    path.unlink()
            _replace_manifest(folder, staged, {**wanted, "complete": True, "bytes": sizes})


def _write_synthetic(
    folder: Path, train: int, val: int, size: tuple[int, int], seed: int, progress: bool
) -> list[Path]:
    """Write all synthetic shards into an empty folder."""

    def sample(index: int, key: int) -> Sample:
        image = encode_image(synthetic_image(index, size=size, seed=seed), "jpg", 95)
        about: dict[str, object] = {
            "source": "synthetic",
            "index": index,
            "seed": seed,
            "generator": GENERATOR_VERSION,
            "width": size[1],
            "height": size[0],
        }
        return Sample(f"{key:06d}", "jpg", image, about)

    shards = min(4, train)
    bounds = [train * number // shards for number in range(shards + 1)]
    plan = [(f"train-{n:06d}.tar", range(bounds[n], bounds[n + 1]), 0) for n in range(shards)]
    plan.append(("val-000000.tar", range(_VAL_OFFSET, _VAL_OFFSET + val), _VAL_OFFSET))
    with progress_bar(progress) as bar:
        task = bar.add_task("synthetic pictures", total=train + val)
        for name, indices, offset in plan:
            made = (sample(index, index - offset) for index in indices)
            write_tar(folder / name, _advancing(made, bar, task))
    return [folder / name for name, _, _ in plan]


def _advancing(samples: Iterable[Sample], bar: Progress, task: TaskID) -> Iterator[Sample]:
    """Pass samples on and move the bar."""
    for sample in samples:
        yield sample
        bar.advance(task)


def _read_manifest(folder: Path) -> dict[str, object]:
    """Content of ``manifest.json``; empty if there is none or it has another form."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _replace_manifest(folder: Path, staged: Path, manifest: dict[str, object]) -> None:
    """Write ``manifest.json`` whole."""
    temporary = staged / "manifest.json"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "manifest.json")


def _is_complete(folder: Path, wanted: dict[str, object]) -> bool:
    """Whether the manifest has the wanted settings and every shard has its size."""
    manifest = _read_manifest(folder)
    sizes = manifest.pop("bytes", None)
    if manifest != {**wanted, "complete": True} or not isinstance(sizes, dict):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == count for name, count in sizes.items())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder for one process at a time, if the file system can; the lock ends with its process."""
    with (folder / ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):  # no locks here: shards are still moved into place whole
            pass
        yield
