"""Seconds to encode and decode one picture, stage by stage, beside other codecs and the machine's floors.

    OMP_NUM_THREADS=1 python benchmarks/codec_speed.py --image kodim05.png [--weights model.safetensors]
        [--output codec_speed.json]

All on one thread (or one GPU) and in turns, gic's networks in PyTorch; the variable is for NumPy. The other learned
codecs have random weights, whose files are larger or smaller than trained ones'; their networks take the same time.
gic's stages are those of one picture in one piece.
Floors: operations of the convolutions over the measured rate of a matrix product; bytes over that of a copy.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import in_turns, machine, operations, parser, peak_rates, save, show, small_codec
from PIL import Image
from torch import Tensor

from gic.bitstream import rans
from gic.bitstream.coder import level_value
from gic.bitstream.container import unpack
from gic.codec.decoder import decode_symbols
from gic.codec.image_codec import ImageCodec
from gic.codec.tiling import tiles_of
from gic.data.synthetic import synthetic_image
from gic.errors import require
from gic.method import samplers, sde
from gic.models.reverse import denoiser
from gic.pictures.load import load_rgb
from gic.pictures.tensors import to_tensor

STEPS = (1, 2, 4)
LEARNED = ("mbt2018-mean", "elic2022-official", "cheng2020-anchor")
CLASSICAL = {"JPEG": {"quality": 75}, "WEBP": {"quality": 75}, "AVIF": {"quality": 60, "max_threads": 1}}

Calls = dict[str, Callable[[], object]]


def gic_stages(codec: ImageCodec, pixels: Tensor, q: float, steps: int) -> tuple[Calls, Calls, dict[str, float]]:
    """Stages of encoding and of decoding as calls, and the floor of some as operations (or bytes, negative)."""
    compressor = codec.model.compressor
    encoding = codec.encoding(pixels, tile=0)
    tile = encoding.tiles[0]
    data = codec.compress(pixels, q=q, tile=0)
    file = codec.open(data)
    place = tiles_of(file.width, file.height, 0)[0]
    z, prior, symbols, _ = decode_symbols(codec, file, 0, place)
    x = codec.model.pad(pixels[None].float() / 255).to(codec.device)
    mu, sigma = (torch.from_numpy(part).to(codec.device) for part in (prior.mu, prior.sigma))
    level = torch.tensor([level_value(file.code)], device=codec.device)

    def latent() -> Tensor:
        return torch.from_numpy(sde.dequantize(symbols.astype(np.float32), level_value(file.code), prior.mu))

    y_q = latent().to(codec.device)
    y = compressor.g_a(x)
    picture = codec.decompress(data)

    def reverse() -> Tensor:
        return samplers.reverse(
            denoiser(codec.model.reverse, mu, sigma), y_q, level, steps=steps, sampler=codec.about.sampler
        )

    y_hat = reverse()
    x_hat = compressor.synthesise(y_hat, 1.0)[0]
    encode: Calls = {
        "analysis": lambda: compressor.g_a(x),
        "hyper-analysis": lambda: compressor.h_a(y),
        "entropy parameters": lambda: codec.coder.prior(z),
        "symbols and coder": lambda: (codec.coder.encode_z(tile.z), encoding.at(file.code)),
    }
    decode: Calls = {
        "entropy parameters": lambda: codec.coder.prior(z),
        "symbols and coder": lambda: (
            codec.coder.decode_z(file.payloads[0].z, z.shape),
            codec.coder.decode_y(file.payloads[0].y, prior, file.code),
            latent(),
            prior.sigma,
        ),
        f"reverse, {steps} steps": reverse,
        "synthesis": lambda: compressor.synthesise(y_hat, 1.0),
        "to 8 bits": lambda: torch.round(x_hat.clamp(0, 1).cpu() * 255).to(torch.uint8),
        "write PNG (not in the sum)": lambda: picture.save(io.BytesIO(), "PNG"),
    }
    # The entropy parameters take as many operations in integers as in floating point.
    in_float = {"entropy parameters": lambda: compressor.h_s(torch.from_numpy(z).float().to(codec.device))}
    work = {name: operations(call) for name, call in {**encode, **decode, **in_float}.items() if "PNG" not in name}
    return encode, decode, work


def learned(name: str, x: Tensor) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    """Encoder and decoder of one of CompressAI's models with random weights."""
    require("compressai", "baselines")
    from compressai.models import Cheng2020Anchor, Elic2022Official, MeanScaleHyperprior

    torch.manual_seed(0)
    makers = {
        "mbt2018-mean": lambda: MeanScaleHyperprior(128, 192),
        "elic2022-official": Elic2022Official,
        "cheng2020-anchor": lambda: Cheng2020Anchor(192),
    }
    model = makers[name]().eval()
    model.update(force=True)
    model.to(x.device)
    return lambda: model.compress(x), lambda out: model.decompress(out["strings"], out["shape"])


def classical(kind: str, image: Image.Image) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    """Encoder and decoder of Pillow."""

    def encode() -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **CLASSICAL[kind])
        return buffer.getvalue()

    return encode, lambda data: Image.open(io.BytesIO(data)).load()


def size_of(coded: Any) -> int:
    """Bytes of what a codec made."""
    return len(coded) if isinstance(coded, bytes) else sum(len(s) for part in coded["strings"] for s in part)


@torch.inference_mode()
def main() -> None:
    """Run all of it."""
    options = parser(__doc__)
    options.add_argument("--image", help="picture (default: a drawn one)")
    options.add_argument("--size", type=int, nargs=2, default=[768, 512], help="width and height of the drawn one")
    options.add_argument("--weights", help="gic's weights (default: random ones)")
    options.add_argument("--q", type=float, default=2.0)
    options.add_argument("--codecs", nargs="*", default=[*LEARNED, *CLASSICAL], help="what to compare with")
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    image = load_rgb(args.image).image if args.image else synthetic_image(0, size=(args.size[1], args.size[0]))
    pixels = to_tensor(image)
    x = (pixels.float()[None] / 255).to(args.device)
    codec = ImageCodec(small_codec(args.weights), args.device)
    data = codec.compress(pixels, q=args.q)

    encoders: Calls = {"gic small": lambda: codec.compress(pixels, q=args.q)}
    decoders: Calls = {
        f"gic small, {n} steps": lambda n=n: codec.decompress_tensor(data, steps=n)  # type: ignore[misc]
        for n in STEPS
    }
    sizes = {"gic small": len(data)}
    for name in args.codecs:
        encode, decode = learned(name, x) if name in LEARNED else classical(name, image)
        coded = encode()
        sizes[name] = size_of(coded)
        encoders[name] = encode
        decoders[name] = lambda decode=decode, coded=coded: decode(coded)  # type: ignore[misc]
    # The slowest, decoded element by element, is run once.
    rare = "cheng2020-anchor"
    times_encode = in_turns({n: f for n, f in encoders.items() if n != rare}, args.rounds, args.device)
    times_decode = in_turns({n: f for n, f in decoders.items() if n != rare}, args.rounds, args.device)
    if rare in encoders:
        times_encode |= in_turns({rare: encoders[rare]}, 1, args.device)
        times_decode |= in_turns({rare: decoders[rare]}, 1, args.device)

    rates = peak_rates(args.device)
    stages: dict[str, dict[str, dict[str, float | None]]] = {}
    encode_stages, decode_stages, work = gic_stages(codec, pixels, args.q, steps=2)
    moved = {"to 8 bits": pixels.numel() * 4.0 + pixels.numel()}
    for way, calls in (("encode", encode_stages), ("decode", decode_stages)):
        stages[way] = {}
        for name, taken in in_turns(calls, args.rounds, args.device).items():
            rate = rates["float64" if name == "entropy parameters" else "float32"]
            floor = work.get(name, 0.0) / rate or moved.get(name, 0.0) / rates["bytes"] or None
            stages[way][name] = {"seconds": taken, "floor_seconds": floor}
    entropy = sum(stages["decode"][name]["seconds"] or 0.0 for name in ("entropy parameters", "symbols and coder"))
    reading = in_turns({"": lambda: unpack(data)}, args.rounds, args.device)[""]
    report = {
        "machine": machine(args.device),
        "picture": Path(args.image).name if args.image else "drawn",
        "size": list(image.size),
        "q": args.q,
        "weights": Path(args.weights).name if args.weights else "random",
        "compiled_coder": rans.COMPILED,
        "rates_per_second": rates,
        "encode_seconds": times_encode,
        "decode_seconds": times_decode,
        "bytes": sizes,
        "stages": stages,
        "unpack_seconds": reading,
        "entropy_share_of_decoding": (entropy + reading) / times_decode["gic small, 2 steps"],
    }
    if "elic2022-official" in times_decode:
        report["elic2022_decode_over_gic"] = times_decode["elic2022-official"] / times_decode["gic small, 2 steps"]
    if "mbt2018-mean" in times_encode:
        report["mbt2018_mean_encode_over_gic"] = times_encode["mbt2018-mean"] / times_encode["gic small"]
    names = [*times_encode, *(n for n in times_decode if n not in times_encode)]
    rows = [(n, times_encode.get(n), times_decode.get(n), sizes.get(n)) for n in names]
    show(f"{image.width} x {image.height}, {args.device}", ("codec", "encode s", "decode s", "bytes"), rows)
    for way, found in stages.items():
        show(
            f"gic small: {way}",
            ("stage", "s", "floor s"),
            [(n, v["seconds"], v["floor_seconds"]) for n, v in found.items()],
        )
    print({key: float(np.round(value, 3)) for key, value in report.items() if isinstance(value, float)})
    save(report, args.output)


if __name__ == "__main__":
    main()
