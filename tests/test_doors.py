"""What people build on: a package of their own, whose classes train, code and judge like gic's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import CONFIGS, TESTS
from small import array, picture

import gic
from gic.commands.dispatch import run
from gic.training.cli import make_cli

MINE = '''
"""A package of the user's."""

from dataclasses import dataclass

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from gic.method.samplers import Sampler
from gic.models.compressor import Compressor, ResidualCompressor
from gic.models.hyper import HyperAnalysis, HyperSynthesis
from gic.models.reverse import ReverseNetwork
from gic.quality.metric import ImageMetric, MetricInfo
from gic.quality.terms import PerceptualTerm


class Patches(nn.Module):
    """g_a in one layer, of stride 8."""

    stride = 8

    def __init__(self, channels: int = 6):
        super().__init__()
        self.layer = nn.Conv2d(3, channels, 8, 8)

    def forward(self, x):
        return 4 * self.layer(x - 0.5).float()


class Pixels(nn.Module):
    """g_s in one layer, without second weights."""

    stride = 8

    def __init__(self, channels: int = 6):
        super().__init__()
        self.layer = nn.ConvTranspose2d(channels, 3, 8, 8)

    def forward(self, y, realism=0.0):
        return self.layer(y).float() + 0.5


class WithPatches(Compressor):
    """A compressor with another g_a and g_s."""

    def __init__(self, channels: int = 6, hyper_channels: int = 4):
        super().__init__(
            Patches(channels), Pixels(channels),
            HyperAnalysis(channels, hyper_channels), HyperSynthesis(hyper_channels, 2 * channels),
            latent_channels=channels, hyper_channels=hyper_channels,
        )


class Renamed(ResidualCompressor):
    """gic's compressor with another g_a."""

    def __init__(self, **settings):
        super().__init__(**settings)
        first = self.g_a.layers[0]
        self.g_a.layers[0] = nn.Conv2d(3, first.out_channels, 7, 2, 3)


class Nudge(ReverseNetwork):
    """The smallest reverse network."""

    realistic = None

    def __init__(self, strength: float = 1.0):
        super().__init__()
        self.latent_channels = None
        self.strength = strength

    def refine_for(self, latent_channels):
        self.latent_channels = latent_channels
        self.layer = nn.Conv2d(latent_channels, 2 * latent_channels, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, y_q, mu, log_sigma, log_q, realism=0.0):
        d_mu, d_sigma = (self.strength * self.layer(y_q - mu).float()).chunk(2, dim=1)
        return d_mu, torch.tanh(d_sigma)


@dataclass(frozen=True)
class Part(Sampler):
    """Some of the way to the mean."""

    share: float = 0.5

    def run(self, flow):
        return flow.y_q + self.share * (flow.mean - flow.y_q)


class Brightness(ImageMetric):
    """How far the mean values are apart, times a factor."""

    info = MetricInfo("brightness", "Brightness", False, "image", "brightness: mine 1")

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def measure(self, x_hat, x):
        return self.factor * abs(float(x_hat.float().mean() - x.float().mean()))


class Contrast(PerceptualTerm):
    """Difference of the standard deviations."""

    def forward(self, x_hat, x):
        return (x_hat.flatten(1).std(1) - x.flatten(1).std(1)).abs()


class Gradients(lightning.LightningDataModule):
    """Pictures without files."""

    def __init__(self, side: int = 64):
        super().__init__()
        self.side = side

    def picture(self, number):
        ramp = torch.arange(self.side) * 2 + 10 * number
        return torch.stack([ramp + ramp[:, None], ramp.expand(self.side, -1), 0 * ramp + ramp[:, None]]).to(torch.uint8)

    def train_dataloader(self):
        pairs = [torch.stack([self.picture(2 * i), self.picture(2 * i + 1)]) for i in range(4)]
        return DataLoader([{"image": pair} for pair in pairs], batch_size=None)

    def val_dataloader(self):
        return DataLoader([{"image": self.picture(i), "key": f"gradient {i}"} for i in range(2)], batch_size=None)


class Album:
    """What a logger shows."""

    pictures = []


class Pictures(lightning.pytorch.loggers.CSVLogger):
    """A logger that takes pictures, as W&B's does."""

    def log_image(self, key, images, step=None):
        Album.pictures.append((key, images[0].size, step))
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The user's package, in the folder where the test runs."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    for number in range(2):
        Image.fromarray(array(picture(96, 80, "smooth", number))).save(f"p{number}.png")
    yield __import__("mine")
    sys.modules.pop("mine", None)


def tiny(*more: str) -> list[str]:
    configs = [str(CONFIGS / "base.yaml"), str(TESTS / "tiny.yaml"), *more]
    return ["fit", *(word for config in configs for word in ("--config", config))]


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


SAVE = """
checkpoint: {dirpath: ckpt, every_n_steps: 4, keep: 1}
trainer: {limit_val_batches: 0}
"""
NETWORKS = {
    "a compressor of other transforms": "{class_path: mine.WithPatches, init_args: {channels: 6}}",
    "a compressor with another g_a": """
        class_path: mine.Renamed
        init_args: {widths: [8, 8, 8, 8], blocks: [0, 0, 0, 1], latent_channels: 8, hyper_channels: 4}""",
    "transforms handed in": """
        class_path: gic.models.compressor.Compressor
        init_args:
          g_a: {class_path: mine.Patches}
          g_s: {class_path: mine.Pixels}
          h_a: {class_path: gic.models.hyper.HyperAnalysis, init_args: {channels: 6, hyper_channels: 4}}
          h_s: {class_path: gic.models.hyper.HyperSynthesis, init_args: {hyper_channels: 4, channels: 12}}
          latent_channels: 6
          hyper_channels: 4
          lapped: false
          hyper_activity: false""",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_of_ones_own_trains_codes_and_is_measured(name, mine, capsys):
    model = f"""
model:
  codec:
    class_path: gic.models.codec.Codec
    init_args:
      sampler: {{class_path: mine.Part, init_args: {{share: 0.75}}}}
      compressor: {NETWORKS[name]}
      reverse: {{class_path: mine.Nudge, init_args: {{strength: 0.5}}}}
data: {{class_path: mine.Gradients}}
"""
    assert run(tiny(write("run.yaml", model + SAVE))) == 0
    assert run(["export", "ckpt/last.ckpt", "-o", "w.safetensors"]) == 2
    assert "--trust mine" in capsys.readouterr().err
    assert run(["export", "ckpt/last.ckpt", "-o", "w.safetensors", "--trust", "mine"]) == 0
    weights = ["--checkpoint", "w.safetensors", "--trust", "mine"]
    assert run(["compress", "p0.png", "-o", "p0.gic", "--q", "2", *weights]) == 0
    assert run(["decompress", "p0.gic", "-o", "back.png", *weights]) == 0
    codec = gic.load("w.safetensors", "cpu", trust="mine")
    assert str(codec.about.sampler) == "Part(share=0.75)"
    assert np.array_equal(np.asarray(Image.open("back.png")), np.asarray(codec.decompress(Path("p0.gic").read_bytes())))
    settings = "{data: p0.png, metrics: [psnr], codecs: [{q: [2.0], decodings: [{realism: 1.0}]}], output: out}"
    words = ["test", "--config", write("test.yaml", settings), "--accelerator", "cpu"]
    assert run([*words, "--ckpt_path", "w.safetensors", "--trust", "mine"]) == 0
    (point,) = json.loads(Path("out/results.json").read_text())["curves"][0]["points"]
    assert point["images"]["p0.png"]["bytes"] == Path("p0.gic").stat().st_size


def test_a_sampler_of_ones_own_decodes(mine, capsys):
    assert run(["compress", "p0.png", "-o", "p0.gic", "--q", "8"]) == 0
    decode = ["decompress", "p0.gic", "--overwrite", "-o"]
    assert run([*decode, "a.png", "--sampler", "mine.Part(share=0.25)"]) == 2
    assert "--trust mine" in capsys.readouterr().err
    samplers = ("mine.Part(share=0.25)", "mine.Part(1.0)", "mean", "sde(alpha=0.9)")
    for name, sampler in zip("abcd", samplers, strict=True):
        assert run([*decode, f"{name}.png", "--sampler", sampler, "--trust", "mine"]) == 0
    pictures = {name: np.asarray(Image.open(f"{name}.png")).astype(int) for name in "abcd"}
    assert np.abs(pictures["b"] - pictures["c"]).max() <= 1  # all of the way to the mean
    assert np.abs(pictures["a"] - pictures["c"]).max() > 1
    assert run([*decode, "e.png", "--sampler", "hein"]) == 2
    assert "there is no sampler 'hein'" in capsys.readouterr().err
    ways = "[{realism: 1.0, sampler: 'sde(alpha=0.9)'}, {realism: 1.0, sampler: {class_path: mine.Part}}]"
    settings = f"{{data: p0.png, metrics: [psnr], codecs: [{{q: [8.0], decodings: {ways}}}], output: out}}"
    assert run(["test", "--config", write("test.yaml", settings), "--accelerator", "cpu"]) == 0
    curves = [curve["name"] for curve in json.loads(Path("out/results.json").read_text())["curves"]]
    assert curves == ["gic r=1, sde(alpha=0.9)", "gic r=1, Part"]


def test_a_metric_and_a_term_of_ones_own_judge(mine):
    settings = """
trainer: {limit_val_batches: 2, default_root_dir: runs}
model:
  metrics: [psnr, {class_path: mine.Brightness, init_args: {factor: 2.0}}]
  objective: {init_args: {realism: [1.0], terms: {contrast: {class_path: mine.Contrast, init_args: {weight: 0.1}}}}}
data: {class_path: mine.Gradients}
checkpoint: {dirpath: ckpt, every_n_steps: 4}
"""
    words = tiny(write("run.yaml", settings))
    cli = make_cli(words)
    assert "train/contrast" in cli.trainer.logged_metrics
    (report,) = Path("runs").rglob("val-*.json")
    rows = json.loads(report.read_text())["images"]
    assert {row["key"] for row in rows} == {"gradient 0", "gradient 1"}
    assert all(row["brightness"] >= 0 for row in rows)
    validate = ["validate", *words[1:], "--ckpt_path", "ckpt/last.ckpt"]
    assert run(validate) == 2  # classes that a checkpoint names take trust
    assert run([*validate, "--trust", "mine"]) == 0
    settings = "{data: [p0.png, p1.png], metrics: [{class_path: mine.Brightness}], codecs: [{q: [8.0]}], output: out}"
    assert run(["test", "--config", write("test.yaml", settings), "--accelerator", "cpu"]) == 0
    results = json.loads(Path("out/results.json").read_text())
    assert list(results["metrics"]) == ["brightness"]


def test_a_folder_of_pictures_is_enough_to_train_on(mine):
    settings = "{data: {train: ., val: p1.png, crop_size: 64, batches_per_epoch: 2}, trainer: {limit_val_batches: 1}}"
    cli = make_cli([*tiny(write("run.yaml", settings)), "--trainer.max_steps", "2"])
    assert cli.trainer.global_step == 2
    seen = {Path(key).name for batch in cli.datamodule.train_dataloader() for key in batch["key"]}
    assert seen <= {"p0.png", "p1.png"} and seen


def test_every_logger_that_takes_pictures_gets_them(mine, pictures):
    settings = """
trainer:
  default_root_dir: runs
  logger:
    - {class_path: mine.Pictures, init_args: {save_dir: logs}}
    - {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: board}}
data: {class_path: mine.Gradients}
"""
    make_cli(tiny(write("run.yaml", settings)))
    ((key, size, step),) = mine.Album.pictures
    assert (key, step) == ("val/grid", 4) and size[0] > size[1]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = Path("board").rglob("events.*")
    board = EventAccumulator(str(events.parent))
    board.Reload()
    assert board.Tags()["images"] == ["val/grid"]


def test_mlflow_gets_pictures_by_its_client() -> None:
    from types import SimpleNamespace

    from gic.training.module import show_picture

    calls = []
    client = SimpleNamespace(log_image=lambda *words, **named: calls.append((words[0], words[1].size, named)))
    show_picture(SimpleNamespace(experiment=client, run_id="one"), "val/grid", Image.new("RGB", (8, 4)), 7)
    show_picture(SimpleNamespace(experiment=object()), "val/grid", Image.new("RGB", (8, 4)), 7)  # takes none
    assert calls == [("one", (8, 4), {"key": "val_grid", "step": 7})]


def test_strides_that_files_cannot_hold_are_an_error(mine) -> None:
    from gic.codec.image_codec import ImageCodec
    from gic.errors import ConfigError
    from gic.models.codec import Codec

    compressor = mine.WithPatches()
    compressor.g_a.stride = 24
    with pytest.raises(ConfigError, match="multiples of 96 pixels"):
        ImageCodec(Codec(compressor, mine.Nudge()), "cpu")
    compressor.g_a = torch.nn.Identity()
    with pytest.raises(ConfigError, match="Identity has no stride"):
        _ = compressor.multiple
