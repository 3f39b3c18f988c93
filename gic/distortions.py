"""Ways to spoil a picture, each with a strength: what the critic learns quality from.

A distortion is a pure function of a picture (3, H, W) in [0, 1], a strength in (0, 1] and a seeded generator. What the
generator decides (the noise field, the kernel, the angle) does not depend on the strength, so that two strengths from
equal seeds differ in strength alone; every parameter is a monotone function of the strength. :data:`TRAINED` are the
kinds that :mod:`gic.fit_critic` trains on, :data:`HELD_OUT` those it is judged by.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from gic.errors import ConfigError
from gic.images import as_float, to_image, to_tensor
from gic.model import Codec

Distortion = Callable[[Tensor, float, Generator], Tensor]
"""Picture (3, H, W) float32 in [0, 1], strength in (0, 1] and generator to a picture of the same shape, not clamped."""


def distort(kinds: Mapping[str, Distortion], kind: str, image: Tensor, strength: float, seed: int) -> Tensor:
    """Spoil a picture.

    Args:
        kinds: Distortions by name, for example :data:`TRAINED`.
        kind: Which of them.
        image: Picture (3, H, W), float32 in [0, 1], sides at least 64.
        strength: In [0, 1]; 0 returns the picture as it is.
        seed: Of everything random; the same for pictures that are to differ in strength alone.

    Returns:
        Picture of the same shape, in [0, 1].

    Raises:
        ConfigError: If there is no such kind or the strength lies outside its range.
    """
    if kind not in kinds:
        raise ConfigError(f"there is no distortion {kind!r}; there are {', '.join(kinds)}")
    if not 0 <= strength <= 1:
        raise ConfigError(f"the strength of a distortion must lie in [0, 1], not {strength:g}")
    if strength == 0:
        return image
    return kinds[kind](image, strength, torch.Generator().manual_seed(seed)).clamp(0, 1)


# --- tools ------------------------------------------------------------------------------------------------------------


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _one_of(choices: tuple[float, ...], generator: Generator) -> float:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def _filter(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel with a kernel of odd sides and sum 1, mirrored at the borders."""
    vertical, horizontal = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = F.pad(image[None], (horizontal, horizontal, vertical, vertical), mode="reflect")
    weight = kernel.to(image).expand(len(image), 1, *kernel.shape)
    return F.conv2d(padded, weight, groups=len(image))[0]


def gaussian(sigma: float) -> Tensor:
    """One-dimensional Gaussian of sum 1, (1, 2 n + 1), out to three sigma."""
    at = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (at / max(sigma, 1e-3)) ** 2)
    return (weights / weights.sum())[None]


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur a picture (C, H, W) with a Gaussian of ``sigma`` pixels."""
    kernel = gaussian(sigma)
    return _filter(_filter(image, kernel), kernel.T)


def _offsets(reach: float) -> tuple[Tensor, Tensor]:
    at = torch.arange(-math.ceil(reach), math.ceil(reach) + 1, dtype=torch.float32)
    return at[:, None], at[None, :]


def _mean(image: Tensor, side: int) -> Tensor:
    """Mean over a square window of odd side around each pixel."""
    return _filter(_filter(image, torch.full((1, side), 1 / side)), torch.full((side, 1), 1 / side))


def _field(image: Tensor, generator: Generator) -> Tensor:
    """Normal noise of variance 1 like ``image``; grey in one case of three."""
    grey = float(torch.rand((), generator=generator)) < 1 / 3
    noise = torch.randn(1 if grey else 3, *image.shape[1:], generator=generator)
    return noise.expand_as(image)


def _through_file(image: Tensor, **options: object) -> Tensor:
    """Encode with Pillow and decode again."""
    buffer = io.BytesIO()
    to_image(image).save(buffer, **options)  # type: ignore[arg-type]
    return as_float(to_tensor(Image.open(buffer).convert("RGB")))


# --- blur and loss of detail ------------------------------------------------------------------------------------------


def blur(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Gaussian, disc or square kernel, up to 4 pixels of sigma or as much in width."""
    kind = _one_of((0, 1, 2), generator)
    sigma = 4 * strength**1.5
    if kind == 0:
        return gaussian_blur(image, sigma)
    radius = 2 * sigma if kind == 1 else 1.7 * sigma  # of about the same variance
    y, x = _offsets(radius + 0.5)
    distance = torch.hypot(y, x) if kind == 1 else torch.maximum(y.abs() + 0 * x, x.abs() + 0 * y)
    kernel = (radius + 0.5 - distance).clamp(0, 1)
    return _filter(image, kernel / kernel.sum())


def ringing(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Cut the spectrum off sharply, down to 0.1 of the highest frequency; a disc or a square remains."""
    square = float(torch.rand((), generator=generator)) < 0.5
    mirrored = torch.cat([image, image.flip(-1)], dim=-1)
    mirrored = torch.cat([mirrored, mirrored.flip(-2)], dim=-2)
    v = torch.fft.fftfreq(mirrored.shape[-2])[:, None].abs() * 2
    u = torch.fft.rfftfreq(mirrored.shape[-1])[None, :].abs() * 2
    radius = torch.maximum(u + 0 * v, v + 0 * u) if square else torch.hypot(u, v)
    spectrum = torch.fft.rfft2(mirrored) * (radius <= 0.1**strength)
    return torch.fft.irfft2(spectrum, s=mirrored.shape[-2:])[:, : image.shape[1], : image.shape[2]]  # type: ignore[no-any-return]


def rescale(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Reduce up to 8 times and enlarge again, bicubic, bilinear or by repeating pixels."""
    mode = ("bicubic", "bilinear", "nearest")[int(_one_of((0, 1, 2), generator))]
    size = image.shape[-2:]
    small = [max(4, round(side / 8**strength)) for side in size]
    reduced = F.interpolate(image[None], size=small, mode="bicubic", antialias=True)
    enlarged = F.interpolate(reduced, size=size, mode=mode, align_corners=None if mode == "nearest" else False)
    return enlarged[0]


def oversmooth(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Keep edges and wipe texture away (guided filter, He et al. 2013), as if of wax."""
    side = int(_one_of((5, 9, 15), generator))
    keep = (0.25 * strength**1.5) ** 2  # contrast below the root of this is taken for texture
    mean = _mean(image, side)
    variance = (_mean(image**2, side) - mean**2).clamp_min(0)
    slope = variance / (variance + keep)
    return _mean(slope, side) * image + _mean((1 - slope) * mean, side)


def blocks(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Draw blocks of 4, 8 or 16 pixels towards their mean."""
    side = int(_one_of((4, 8, 16), generator))
    means = F.avg_pool2d(image[None], side, ceil_mode=True)
    flat = F.interpolate(means, scale_factor=side, mode="nearest")[0, :, : image.shape[1], : image.shape[2]]
    return torch.lerp(image, flat, strength**1.5)


def posterise(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Quantise each channel, down to 3 levels: bands of colour."""
    steps = 1 + 64 ** (1 - strength)
    return torch.round(image * steps) / steps  # type: ignore[no-any-return]


# --- noise and texture that is not there ------------------------------------------------------------------------------


def noise(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """White normal noise, grey or coloured, up to 0.15."""
    return image + 0.15 * strength**1.5 * _field(image, generator)  # type: ignore[no-any-return]


def shot_noise(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Noise whose variance grows with the light, as of counted photons."""
    return image + 0.2 * strength**1.5 * image.sqrt() * _field(image, generator)  # type: ignore[no-any-return]


def grain(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Noise of a coarser grain than the pixels, up to 0.12."""
    field = gaussian_blur(_field(image, generator), _uniform(0.6, 2.5, generator))
    return image + 0.12 * strength**1.5 * field / field.std()  # type: ignore[no-any-return]


def pattern(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """A checkerboard, stripes or a grating over all of the picture or where it has detail, up to 0.12."""
    kind = _one_of((0, 1, 2), generator)
    period = _one_of((2, 2, 3, 4, 8), generator)
    angle = _uniform(0, math.pi, generator)
    everywhere = float(torch.rand((), generator=generator)) < 0.5
    colour = torch.randn(3, 1, 1, generator=generator)
    y = torch.arange(image.shape[1], dtype=torch.float32)[:, None]
    x = torch.arange(image.shape[2], dtype=torch.float32)[None, :]
    half = period / 2
    if kind == 0:
        wave = 1 - 2 * ((torch.floor(x / half) + torch.floor(y / half)) % 2)
    elif kind == 1:
        wave = 1 - 2 * (torch.floor((x if angle < math.pi / 2 else y) / half) % 2) + 0 * (x + y)
    else:
        wave = torch.sin(2 * math.pi / max(period, 2.3) * (x * math.cos(angle) + y * math.sin(angle)))
    if not everywhere:
        wave = wave * _activity(image)
    return image + 0.12 * strength**1.5 * wave * colour / colour.norm() * math.sqrt(3)  # type: ignore[no-any-return]


def _activity(image: Tensor) -> Tensor:
    """Local contrast of the fine detail, (1, H, W), of mean 1."""
    detail = (image - gaussian_blur(image, 2)).mean(0, keepdim=True)
    energy = gaussian_blur(detail**2, 4).sqrt()
    return energy / energy.mean().clamp_min(1e-4)


def upsampling(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Detail that is louder and fainter in turn on a grid of 2 to 16 pixels, as transposed convolutions leave it."""
    period = int(_one_of((2, 4, 8, 16), generator))
    tile = torch.randn(1, period, period, generator=generator)
    rows, columns = (-(-side // period) for side in image.shape[1:])
    gain = tile.repeat(1, rows, columns)[:, : image.shape[1], : image.shape[2]]
    detail = image - gaussian_blur(image, 1.5)
    return image + 2.5 * strength**1.5 * gain * detail  # type: ignore[no-any-return]


def false_texture(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Replace the fine detail by noise of the same spectrum and local contrast: texture that means nothing."""
    sigma = _uniform(0.8, 3.0, generator)
    detail = image - gaussian_blur(image, sigma)
    field = torch.randn(1, *image.shape[1:], generator=generator)
    phase = torch.fft.rfft2(field)
    random = torch.fft.irfft2(torch.fft.rfft2(detail).abs() * phase / phase.abs().clamp_min(1e-6), s=image.shape[1:])
    random = random / gaussian_blur(random**2, 4).sqrt().clamp_min(1e-3) * gaussian_blur(detail**2, 4).sqrt()
    share = 0.5 * math.pi * strength
    return image + (math.cos(share) - 1) * detail + 1.2 * math.sin(share) * random  # type: ignore[no-any-return]


def jitter(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Move every pixel a little, up to 3 pixels at random: frayed edges."""
    field = gaussian_blur(torch.randn(2, *image.shape[1:], generator=generator), _uniform(0.4, 1.5, generator))
    shift = 3 * strength**1.5 * field / field.std()
    height, width = image.shape[1:]
    y = (torch.arange(height)[:, None] + shift[0]) * (2 / (height - 1)) - 1
    x = (torch.arange(width)[None, :] + shift[1]) * (2 / (width - 1)) - 1
    grid = torch.stack([x, y], dim=-1)[None]
    return F.grid_sample(image[None], grid, padding_mode="reflection", align_corners=True)[0]


# --- too much of a good thing -----------------------------------------------------------------------------------------


def sharpen(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Unsharp mask, up to six times the detail: halos."""
    detail = image - gaussian_blur(image, _uniform(0.6, 3.0, generator))
    return image + 5 * strength**1.5 * detail  # type: ignore[no-any-return]


def colour(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Too much contrast or saturation, too little of either, or a cast."""
    kind = _one_of((0, 1, 2, 3, 4), generator)
    grey = image.mean(0, keepdim=True)
    if kind == 4:
        cast = torch.randn(3, 1, 1, generator=generator)
        return image + 0.25 * strength * (cast - cast.mean()) / cast.std()
    centre = image.mean((1, 2), keepdim=True) if kind < 2 else grey
    gain = 1 + 1.5 * strength if kind in (0, 2) else 1 - 0.8 * strength
    return centre + gain * (image - centre)


# --- codecs -----------------------------------------------------------------------------------------------------------


def jpeg(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """JPEG of quality 90 down to 4, 4:2:0 or 4:4:4."""
    subsampling = ("4:2:0", "4:4:4")[int(_one_of((0, 1), generator))]
    return _through_file(image, format="JPEG", quality=round(90 * (4 / 90) ** strength), subsampling=subsampling)


def webp(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """WebP of quality 85 down to 0."""
    return _through_file(image, format="WEBP", quality=round(85 * (1 - strength) ** 2), method=2)


def avif(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """AVIF of quality 80 down to 5."""
    return _through_file(image, format="AVIF", quality=round(80 * (5 / 80) ** strength), speed=8)


def jpeg2000(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """JPEG 2000, 6 to 200 times smaller than the pixels."""
    ratio = 6 * (200 / 6) ** strength
    return _through_file(image, format="JPEG2000", quality_mode="rates", quality_layers=[ratio], mct=1)


def through_codec(codec: Codec) -> Distortion:
    """Make a distortion of gic itself: its quantised latents, decoded at a random realism, without coding.

    Args:
        codec: A model in evaluation mode, on the CPU; poor ones make good distortions too.

    Returns:
        The distortion; the strength goes from the codec's finest level to its coarsest.
    """

    def apply(image: Tensor, strength: float, generator: Generator) -> Tensor:
        realism = _uniform(0, 1, generator)
        q = torch.tensor([codec.q_min * (codec.q_max / codec.q_min) ** strength])
        with torch.no_grad():
            x_hat = codec(codec.pad(image[None]), q, realism=realism, generator=generator).x_hat
        return x_hat[0, :, : image.shape[1], : image.shape[2]]  # type: ignore[no-any-return]

    return apply


# --- held out ---------------------------------------------------------------------------------------------------------


def motion_blur(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Smear along a line of up to 21 pixels at any angle."""
    angle = _uniform(0, math.pi, generator)
    half = 10 * strength**1.5
    y, x = _offsets(half + 1)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = x * math.sin(angle) - y * math.cos(angle)
    kernel = (half + 0.5 - along.abs()).clamp(0, 1) * (1 - across.abs()).clamp(0, 1)
    return _filter(image, kernel / kernel.sum())


def speckle(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Noise in proportion to the light, up to 0.5 of it."""
    return image * (1 + 0.5 * strength**1.5 * _field(image, generator))  # type: ignore[no-any-return]


def impulses(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Black and white pixels, up to 8 % of all."""
    chance = torch.rand(1, *image.shape[1:], generator=generator)
    value = torch.randint(2, (1, *image.shape[1:]), generator=generator).to(image)
    return torch.where(chance < 0.08 * strength**2.5, value, image)


TRAINED: Mapping[str, Distortion] = {
    f.__name__: f
    for f in (
        blur,
        ringing,
        rescale,
        oversmooth,
        blocks,
        posterise,
        noise,
        shot_noise,
        grain,
        pattern,
        upsampling,
        false_texture,
        jitter,
        sharpen,
        colour,
        jpeg,
        webp,
    )
}
"""Distortions that the critic is trained on, by name; :func:`through_codec` adds one."""

HELD_OUT: Mapping[str, Distortion] = {f.__name__: f for f in (motion_blur, speckle, impulses, avif, jpeg2000)}
"""Distortions that no training may use: the critic is judged by them."""
