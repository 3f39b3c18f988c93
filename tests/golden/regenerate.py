"""Make golden files: ``python tests/golden/regenerate.py NAME ...``; without names, those that are missing.

Those that are there stay as they are unless they are named, which is for a new version of the file format only: until
then a decoder must read these files. Writes a few small ``.gic`` files, made with weights that follow from arithmetic
alone (``tests/small.py``), the pictures they decode to (mean sampler, realism 0), and ``hashes.json``: SHA-256 of each
file and of its decoded symbols, little-endian int32, z then y of each tile in order.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from unittest.mock import patch  # noqa: E402

import torch  # noqa: E402
from PIL import Image, ImageCms  # noqa: E402
from small import all_symbols, array, picture, small_codec  # noqa: E402

from gic.codec import encoder  # noqa: E402
from gic.codec.image_codec import ImageCodec  # noqa: E402


def symbols_hash(codec: ImageCodec, data: bytes) -> str:
    """Hash of all symbols that a file decodes to."""
    digest = hashlib.sha256()
    for z, y in all_symbols(codec, codec.open(data)):
        digest.update(z.astype("<i4").tobytes() + y.astype("<i4").tobytes())
    return digest.hexdigest()


def of(name: str) -> ImageCodec:
    """The codec of a golden file, by the file's name."""
    return small_codec(prior="laplace") if name.startswith("laplace") else small_codec()


def decode(codec: ImageCodec, data: bytes) -> Image.Image:
    """The picture of a file, as close to the original as the codec comes."""
    return codec.decompress(data, realism=0.0, sampler="mean")


def make() -> dict[str, bytes]:
    """The golden files by name."""
    codec = small_codec()
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = io.BytesIO()
    Image.fromarray(array(picture(50, 40, "edges"))).save(photo, "PNG", exif=exif.tobytes(), icc_profile=profile)
    with patch.object(encoder, "CHUNK_BYTES", 15):  # several chunks for each level of a tile
        tiled = codec.compress(picture(66, 34, "noise"), q=0.7, tile=64, progressive=True)
    mask = picture(66, 70, "flat")
    mask[:, :64, :64] = 255
    return {
        "pixel": codec.compress(picture(1, 1), q=2.0, quantizer="round"),
        "round": codec.compress(picture(40, 30), q=2.0, quantizer="round"),
        "dither": codec.compress(picture(70, 50, "edges"), q=3.0, quantizer="dither", seed=123456789),
        "tiled": codec.compress(picture(80, 70, "noise"), q=1.0, quantizer="dither", seed=1, tile=64),
        "metadata": codec.compress(photo.getvalue(), q=4.0, quantizer="round", keep_metadata=True),
        "grey": codec.compress(picture(60, 44, "edges")[:1].expand(3, -1, -1), q=2.0, quantizer="round"),
        "progressive": codec.compress(picture(40, 30), q=0.6, progressive=True),
        "progressive-tiled": tiled,
        "progressive-cut": tiled[: len(tiled) * 4 // 5],
        "regions": codec.compress(picture(66, 70), q=0.6, roi=mask, progressive=True, tile=64),
        "laplace": of("laplace").compress(picture(40, 30), q=2.0, quantizer="round"),
        "laplace-dither": of("laplace").compress(picture(24, 20, "edges"), q=3.0, quantizer="dither", seed=123456789),
        "laplace-progressive": of("laplace").compress(picture(32, 24), q=0.6, progressive=True),
    }


def main() -> None:
    torch.set_num_threads(1)
    path = HERE / "hashes.json"
    known = json.loads(path.read_text())["files"] if path.exists() else {}
    hashes = {}
    for name, data in make().items():
        if name in known and name not in sys.argv[1:]:
            hashes[name] = known[name]
            continue
        (HERE / f"{name}.gic").write_bytes(data)
        decode(of(name), data).save(HERE / f"{name}.png", icc_profile=None, exif=b"")
        hashes[name] = {"file": hashlib.sha256(data).hexdigest(), "symbols": symbols_hash(of(name), data)}
    about = {"models": {name: of(name).model_id.hex() for name in ("gaussian", "laplace")}, "files": hashes}
    path.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
