"""Weights on disk: what `gic export` makes of a checkpoint, and what of older ones is still read."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from PIL import Image
from places import REPOSITORY, TESTS
from small import array, picture

import gic
from gic.codec import zoo
from gic.codec.checkpoints import build_codec, load_codec, load_codec_state, read_weights
from gic.commands.dispatch import run
from gic.models.compressor import Latents

TINY = TESTS / "tiny_codec.yaml"
FORMER = REPOSITORY / "weights" / "small-0.4.safetensors"


@pytest.fixture
def checkpoint(tmp_path):
    """What a training run leaves, as far as it matters here."""
    config = yaml.safe_load(TINY.read_text())["model"]["codec"]
    torch.manual_seed(0)
    codec = build_codec(config)
    state = {f"codec.{name}": tensor for name, tensor in codec.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"codec": config}, "global_step": 7}, path)
    return path


def test_exported_weights_are_the_checkpoints_in_half_precision_and_say_where_they_come_from(checkpoint, tmp_path):
    output = tmp_path / "weights.safetensors"
    assert run(["export", str(checkpoint), "-o", str(output), "--note", "two photographs, CC0"]) == 0
    weights = read_weights(output)
    assert weights.provenance["step"] == 7
    assert weights.provenance["gic"] == gic.__version__
    assert weights.provenance["note"] == "two photographs, CC0"
    state = load_codec(output).state_dict()
    for name, tensor in load_codec(checkpoint).state_dict().items():
        assert torch.equal(state[name], tensor.half().float())
    assert output.stat().st_size < checkpoint.stat().st_size
    assert output.stat().st_mode == checkpoint.stat().st_mode  # others may read it where they may read new files


def test_an_existing_file_is_kept_unless_told_otherwise(checkpoint, tmp_path, capsys):
    output = tmp_path / "weights.safetensors"
    output.write_bytes(b"precious")
    assert run(["export", str(checkpoint), "-o", str(output)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_bytes() == b"precious"
    assert run(["export", str(checkpoint), "-o", str(output), "--overwrite"]) == 0
    assert load_codec(output)


def test_a_checkpoint_from_before_the_second_set_of_weights_serves_a_codec_that_has_one(checkpoint, tmp_path):
    saved = torch.load(checkpoint, weights_only=True)
    saved["hyper_parameters"]["codec"]["init_args"]["compressor"]["init_args"]["realistic_stages"] = 2
    assert not any("realistic" in name for name in saved["state_dict"])
    torch.save(saved, checkpoint)
    codec = load_codec(checkpoint)
    second = list(codec.compressor.g_s.realistic.parameters())
    assert second
    assert not any(weights.any() for weights in second)


def test_constants_are_no_weights_and_are_not_rounded_with_them():
    """Weights of version 0.4 hold the bounds, rounded to half precision: 1e-9 became 0, and the rate infinite."""
    codec = build_codec(read_weights(FORMER).config).train()
    codec.load_state_dict(load_codec_state(FORMER))
    assert not [name for name in codec.state_dict() if "bound" in name]
    latents = Latents(*(torch.zeros(1, 256, 4, 4) for _ in range(4)), torch.ones(1, 256, 4, 4))
    latents = latents._replace(z=torch.full((1, 128, 1, 1), 1e4), y=torch.full((1, 256, 4, 4), 1e6))
    q = torch.ones(1)
    assert torch.isfinite(codec.bits(latents, q, latents.y)).all()
    assert codec.compressor.sigma_max == pytest.approx(1024)


@pytest.mark.parametrize("path", [zoo.shipped_weights(), FORMER], ids=lambda path: path.stem)
def test_weights_keep_their_name_whatever_becomes_of_constants(path):
    codec = gic.load(path, runtime="torch")
    names = {"small-0.4": "988170c9b4fc", "small-0.5": "d025dde30adf"}
    for each in (codec, gic.load(path, runtime="onnx")):
        assert each.model_id.hex() == names[path.stem]
        sigma_max = 10237 if path == FORMER else 10240
        assert round(math.log2(each.about.entropy_model.sigma_max) * 1024) == sigma_max
    assert torch.isfinite(-torch.log2(codec.model.compressor.prior_y.likelihood_lower_bound(torch.zeros(1)))).all()


def test_a_file_of_earlier_weights_says_which_it_wants_and_decodes_with_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GIC_CHECKPOINT", raising=False)
    for size in ((64, 64), (150, 100), (31, 77)):
        Image.fromarray(array(picture(*size, "edges"))).save("a.png")
        assert run(["compress", "a.png", "-o", "old.gic", "--q", "8", "--checkpoint", str(FORMER), "--overwrite"]) == 0
        monkeypatch.delenv(zoo.FOLDER_VARIABLE, raising=False)
        capsys.readouterr()
        assert run(["decompress", "old.gic", "-o", "b.png", "--overwrite"]) == 2
        said = capsys.readouterr().err
        assert "small-0.4, which an earlier gic came with: take weights/small-0.4.safetensors" in said
        monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(FORMER.parent))
        assert run(["decompress", "old.gic", "-o", "b.png", "--overwrite"]) == 0
        assert "by the weights small-0.4" in capsys.readouterr().err
        with Image.open("b.png") as image:
            assert image.size == size
