"""CompressAI's interface to gic: its evaluation runs, and its numbers are those of the files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from small import CONFIG, picture, small_model

import gic
from gic.codec.checkpoints import save_weights
from gic.compat.compressai import CompressionModel, main, pretrained
from gic.errors import ConfigError
from gic.pictures.tensors import as_float, to_image


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "small.safetensors"
    save_weights(path, small_model().state_dict(), CONFIG)
    monkeypatch.setenv("GIC_CHECKPOINT", str(path))
    return path


@pytest.fixture
def codec(weights: Path) -> gic.ImageCodec:
    return gic.load(weights, runtime="torch")


def test_strings_are_files(codec: gic.ImageCodec) -> None:
    x = torch.stack([as_float(picture(100, 70)), as_float(picture(100, 70, "noise"))])
    model = CompressionModel(codec, q=2.0, realism=0.5)
    out = model.compress(x)
    assert out["shape"] == (70, 100)
    ((first, second),) = out["strings"]
    assert first == codec.compress(picture(100, 70), q=2.0) and second != first
    x_hat = model.decompress(out["strings"], out["shape"])["x_hat"]
    assert x_hat.shape == x.shape and x_hat.min() >= 0 and x_hat.max() <= 1
    assert torch.equal((x_hat[0] * 255).round().byte(), codec.decompress_tensor(first, realism=0.5))
    with pytest.raises(ValueError, match="other sizes"):
        model.decompress(out["strings"], (100, 70))


def test_the_likelihoods_are_those_of_the_symbols(codec: gic.ImageCodec) -> None:
    x = as_float(picture(128, 128, "noise"))[None]
    model = CompressionModel(codec, q=1.0, realism=0.0).eval()
    with torch.no_grad():
        out = model(x)
        bits = sum(float(-torch.log2(values).sum()) for values in out["likelihoods"].values())
        expected = codec.model(x, torch.ones(1), realism=0.0)
    assert math.isclose(bits, float(expected.bits), rel_tol=1e-5)
    size = 8 * len(model.compress(x)["strings"][0][0])
    assert bits < size < 1.1 * bits + 8 * 64  # a header, and tables of finite precision
    assert torch.equal(out["x_hat"], expected.x_hat)
    decoded = model.decompress(**model.compress(x))["x_hat"]
    assert (decoded - out["x_hat"].clamp(0, 1)).abs().max() <= 0.51 / 255


def test_the_forward_pass_takes_any_size_and_gives_gradients(codec: gic.ImageCodec) -> None:
    x = as_float(picture(90, 70))[None].requires_grad_()
    out = CompressionModel(codec, q=2.0).train()(x)
    assert out["x_hat"].shape == x.shape
    out["x_hat"].sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_what_it_does_not_take_is_said(codec: gic.ImageCodec, weights: Path) -> None:
    with pytest.raises(ConfigError, match="range of this model"):
        CompressionModel(codec, q=100.0)
    with pytest.raises(ConfigError, match=r"realism must lie in \[0, 1\]"):
        CompressionModel(codec, q=2.0, realism=2.0)
    with pytest.raises(ConfigError, match="without PyTorch"):
        CompressionModel(gic.load(weights, runtime="onnx"), q=2.0)
    with pytest.raises(ConfigError, match="1 to 8, not 9"):
        pretrained(9)
    with pytest.raises(ConfigError, match="leave out --half"):
        CompressionModel(codec, q=2.0).half().compress(torch.rand(1, 3, 64, 64))


def test_qualities_run_through_the_range_of_the_weights(weights: Path) -> None:
    levels = [pretrained(quality).q for quality in range(1, 9)]
    codec = gic.load(weights)
    assert (levels[0], levels[-1]) == (codec.about.q_max, codec.about.q_min)
    assert levels == sorted(levels, reverse=True)


def test_its_own_evaluation_measures_gic(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("compressai", reason="CompressAI is not installed")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for salt in range(2):
        to_image(picture(192, 192, "noise", salt)).save(folder / f"{salt}.png")
    threads = torch.get_num_threads()
    try:
        main(["pretrained", str(folder), "-a", "gic-r0", "-q", "3,8"])
    finally:
        torch.set_num_threads(threads)  # CompressAI takes one
    results = json.loads(capsys.readouterr().out)["results"]
    codec = gic.load(weights, runtime="torch")
    sizes = []
    for quality in (3, 8):
        model = pretrained(quality)
        files = [codec.compress(folder / f"{salt}.png", q=model.q) for salt in range(2)]
        sizes.append(sum(map(len, files)) * 8 / (2 * 192 * 192))
    assert results["bpp"] == pytest.approx(sizes)
    assert sizes[0] < sizes[1]
