"""A Mac's GPU has no float64: it is passed over where nothing is named, and refused where it is."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.accelerators import MPSAccelerator as FabricMPSAccelerator
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator
from PIL import Image
from places import CONFIGS, TESTS
from small import CONFIG, small_model

import gic
from gic.codec.checkpoints import save_weights
from gic.codec.image_codec import ImageCodec
from gic.commands.dispatch import run
from gic.devices import check_accelerator
from gic.errors import ConfigError

BASE = CONFIGS / "base.yaml"


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """A machine whose only GPU is a Mac's, as PyTorch and Lightning see it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for accelerator in (MPSAccelerator, FabricMPSAccelerator):
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    save_weights("w.safetensors", small_model().state_dict(), CONFIG)
    Image.new("RGB", (40, 30), (9, 99, 200)).save("a.png")


def training(command, pictures, accelerator):
    return [
        *[command, "--config", str(BASE), "--config", str(TESTS / "tiny.yaml")],
        *["--data.train", str(pictures / "train-*.tar"), "--data.val", str(pictures / "val-000000.tar")],
        *["--trainer.default_root_dir", ".", "--trainer.max_steps", "1", "--trainer.accelerator", accelerator],
        *["--model.levels", "[1.0]", "--model.realism", "[0.0]", "--model.metrics", "[psnr]"],
    ]


def benchmark(accelerator):
    words = ["test", "--data", "a.png", "--ckpt_path", "w.safetensors", "--metrics", "[psnr]"]
    return [*words, "--accelerator", accelerator]


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_auto_passes_a_macs_gpu_over_and_says_so(command, mac, pictures, capsys):
    assert run(benchmark("auto") if command == "test" else training(command, pictures, "auto")) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "float64" in line]
    assert len(said) == 1
    assert said[0].startswith("running on the CPU")


@pytest.mark.parametrize("asked", ["mps", "gpu"])
@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_macs_gpu_by_name_is_refused_in_one_line(command, asked, mac, pictures, capsys):
    assert run(benchmark(asked) if command == "test" else training(command, pictures, asked)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"gic {command}: ")
    assert "float64" in last and "accelerator cpu" in last


@pytest.mark.parametrize("device", ["mps", "mps:0", torch.device("mps")])
def test_a_codec_refuses_a_macs_gpu(device, mac):
    with pytest.raises(ConfigError, match=r"float64.*device cpu"):
        gic.load("w.safetensors", device)


def test_commands_refuse_a_macs_gpu_and_auto_does_without(mac, capsys):
    assert run(["compress", "a.png", "--checkpoint", "w.safetensors", "--device", "mps"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "float64" in line
    assert run(["compress", "a.png", "--checkpoint", "w.safetensors"]) == 0
    assert ImageCodec(small_model()).device == "cpu"


def test_auto_takes_cuda_where_there_is_one_and_the_cpu_elsewhere(monkeypatch, capsys):
    for mps in (False, True):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert (check_accelerator("auto"), check_accelerator("gpu"), check_accelerator("cpu")) == (
            "cuda",
            "cuda",
            "cpu",
        )
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (check_accelerator("auto"), check_accelerator("gpu")) == ("cpu", "gpu")
    assert not capsys.readouterr().err


def test_an_accelerator_object_of_a_macs_gpu_is_refused():
    with pytest.raises(ConfigError, match="float64"):
        check_accelerator(object.__new__(MPSAccelerator))
    other = CPUAccelerator()
    assert check_accelerator(other) is other
