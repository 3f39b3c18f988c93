"""``gic decompress`` to other formats than PNG: what is said, and that nothing is written that is not the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import CONFIG, array, picture, small_model

from gic.codec.checkpoints import save_weights
from gic.codec.weights import load
from gic.commands.dispatch import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a colour and a grey picture and one with much EXIF in it."""
    monkeypatch.chdir(tmp_path)
    save_weights(Path("w.safetensors"), small_model().state_dict(), CONFIG)
    monkeypatch.setenv("GIC_CHECKPOINT", "w.safetensors")
    image = Image.fromarray(array(picture(96, 64)))
    exif = Image.Exif()
    exif[0x010E] = "d" * 100_000
    image.save("exif.png", exif=exif)
    for name, source, keep in (("a", image, False), ("grey", image.convert("L"), False), ("exif", "exif.png", True)):
        Path(f"{name}.gic").write_bytes(load("w.safetensors").compress(source, q=2.0, keep_metadata=keep))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("a.gic", "x.ico", "x.ico cannot be written: ICO would make 64 x 43 pixels of 96 x 64; use .png"),
        ("a.gic", "x.icns", "x.icns cannot be written: ICNS would make"),
        ("a.gic", "x.blp", "x.blp cannot be written: BLP cannot hold a picture of 96 x 64 pixels"),
        ("a.gic", "x.xbm", "x.xbm cannot be written: XBM cannot hold"),
        ("a.gic", "x.pdf", "x.pdf cannot be written"),
        ("exif.gic", "x.jpg", "x.jpg cannot be written: JPEG cannot hold EXIF of 100"),
    ],
)
def test_a_format_that_cannot_hold_the_picture_is_one_line_and_no_file(folder, capsys, source, target, said) -> None:
    assert run(["decompress", source, "-o", target]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not Path(target).exists()


def test_what_is_left_out_is_said(folder: Path, capsys) -> None:
    assert run(["decompress", "exif.gic", "-o", "x.bmp"]) == 0
    assert capsys.readouterr().err.endswith("96 x 64 pixels; EXIF left out, BMP cannot hold it\n")
    assert run(["decompress", "a.gic", "-o", "x.gif"]) == 0
    assert capsys.readouterr().err.endswith("96 x 64 pixels; reduced to the 256 colours of a GIF\n")


@pytest.mark.parametrize("target", ["x.png", "x.tif", "x.bmp"])
def test_a_grey_picture_is_written_grey(folder: Path, target: str) -> None:
    assert run(["decompress", "grey.gic", "-o", target]) == 0
    image = Image.open(target)
    assert (image.mode, image.size) == ("L", (96, 64))
    np.testing.assert_array_equal(np.asarray(image), load("w.safetensors").decompress(Path("grey.gic").read_bytes()))
