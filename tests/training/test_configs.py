"""Every config under configs/ can be built, and configs combine as they say."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from places import CONFIGS

from gic.configs import expand_configs
from gic.data.synthetic import synthetic_image
from gic.errors import ConfigError
from gic.training.cli import make_cli

NO_RUNS = ("models", "test", "strategies", "common.yaml")
RUNS = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name not in NO_RUNS and p.name not in NO_RUNS)
BENCHMARKS = sorted((CONFIGS / "test").glob("*.yaml"))
MODELS = sorted((CONFIGS / "models").glob("*.yaml"))
STRATEGIES = sorted((CONFIGS / "strategies").glob("*.yaml"))


@pytest.fixture
def offline_metrics(monkeypatch):
    """Metrics without their downloads: published weights are not needed to build a config."""
    import gic.quality.metrics  # imports the functions themselves, and would keep those below
    import gic.quality.networks
    import gic.quality.terms

    def random_lpips(net, named=None, download=True):
        import lpips

        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False), []

    def any_quality(metric, named=None, download=True, **options):
        return SimpleNamespace(metric_mode="NR", lower_better=False, net=torch.nn.Identity()), []

    monkeypatch.setattr(gic.quality.networks, "build_lpips", random_lpips)
    monkeypatch.setattr(gic.quality.terms, "build_pyiqa", any_quality)


@pytest.mark.parametrize("path", RUNS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_run_config_instantiates(path, tmp_path, monkeypatch, offline_metrics):
    monkeypatch.chdir(tmp_path)
    cli = make_cli(["fit", "--config", str(path), "--trainer.accelerator", "cpu"], run=False)
    assert sum(p.requires_grad for p in cli.model.codec.parameters()) > 0
    assert cli.trainer.max_steps > 0


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.stem)
def test_every_benchmark_config_instantiates(path):
    from gic.benchmark.benchmark import Benchmark
    from gic.commands.test import parse
    from gic.quality.metrics import check_metric_name

    parser, args = parse(["--config", str(path)])
    values = parser.instantiate(args).as_dict()
    names = inspect.signature(Benchmark).parameters
    benchmark = Benchmark(**{name: value for name, value in values.items() if name in names})
    assert all(len(codec.decodings) > 1 for codec in benchmark.codecs)
    for name in benchmark.metrics:
        check_metric_name(name)


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_every_model_preset_combines_with_a_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(path), "--trainer.accelerator", "cpu"]
    cli = make_cli(words, run=False)
    settings = yaml.safe_load(path.read_text())["model"]["codec"]["init_args"]
    assert "latent_channels" not in settings["reverse"]["init_args"]  # they are the compressor's
    wanted = settings["compressor"]["init_args"]["latent_channels"]
    assert cli.model.codec.compressor.latent_channels == cli.model.codec.reverse.latent_channels == wanted


@pytest.mark.parametrize("path", sorted((CONFIGS / "weights").glob("small-*.yaml")), ids=lambda p: p.stem)
def test_the_recipe_takes_the_fine_model(path, tmp_path, monkeypatch, offline_metrics):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", str(path), "--config", str(CONFIGS / "models" / "fine.yaml")]
    cli = make_cli([*words, "--trainer.accelerator", "cpu"], run=False)
    assert cli.model.codec.compressor.detail_channels == 256 and cli.model.codec.q_min == 0.4


@pytest.mark.slow
def test_the_paper_scale_model_learns_a_batch_in_30_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "models" / "base.yaml")]
    cli = make_cli([*words, "--trainer.accelerator", "cpu"], run=False)
    codec, objective = cli.model.codec.train(), cli.model.objective
    pictures = [np.asarray(synthetic_image(index, size=(64, 64))) for index in range(2)]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255

    def losses(seed):
        torch.manual_seed(seed)
        return objective(codec, x)

    with torch.no_grad():
        before = losses(0)
    optimizer = cli.model.make_optimizer(codec.parameters())
    rate = optimizer.param_groups[0]["lr"]
    for step in range(30):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 10)
        optimizer.zero_grad()
        losses(step + 1)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        after = losses(0)
    assert after["loss"] < 0.8 * before["loss"]
    assert after["psnr"] > before["psnr"] and after["bits_per_pixel"] < before["bits_per_pixel"]


def test_every_strategy_combines_with_a_run_and_with_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def settings(*names):
        overlays = [word for path in names for word in ("--config", str(path))]
        words = ["fit", "--config", str(CONFIGS / "photos.yaml"), *overlays, "--trainer.accelerator", "cpu"]
        cli = make_cli(words, run=False)
        config = cli.config.as_dict()
        assert cli.trainer.max_steps > 0
        trainer = {key: value for key, value in config["trainer"].items() if key != "callbacks"}
        return {**trainer, **config["model"]["init_args"]}

    plain = settings()
    changed = {}
    for path in STRATEGIES:
        mine = {key: value for key, value in settings(path).items() if value != plain[key]}
        assert len(mine) == 1, path  # what a file does not name stays as it was
        changed |= mine
    assert len(changed) == len(STRATEGIES) > 3
    together = settings(*STRATEGIES)
    assert {key: value for key, value in together.items() if value != plain[key]} == changed


def test_presets_have_the_sizes_they_are_meant_to_have():
    from gic.codec.checkpoints import build_codec
    from gic.models.codec import parameter_counts

    count = {
        path.stem: parameter_counts(build_codec(yaml.safe_load(path.read_text())["model"]["codec"]))["all"]
        for path in MODELS
    }
    assert count["small"] <= 12.5e6  # float16 weights of less than 25 MB
    assert 60e6 <= count["base"] <= 120e6


def test_one_key_on_the_command_line_overrides_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", str(CONFIGS / "photos.yaml"), "--model.codec.init_args.q_max", "6"]
    cli = make_cli([*words, "--model.levels", "[1, 6]", "--trainer.accelerator", "cpu"], run=False)
    assert cli.model.codec.q_max == 6
    assert cli.model.codec.compressor.latent_channels == 256  # the rest of base.yaml is still there


def test_an_unknown_key_is_an_error_that_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(f"extends: {CONFIGS / 'base.yaml'}\nmodel:\n  learning_speed: 3\n")
    with pytest.raises(SystemExit) as stop:
        make_cli(["fit", "--config", "bad.yaml"], run=False)
    assert stop.value.code == 2
    assert "learning_speed" in capsys.readouterr().err


def test_an_unknown_class_is_an_error_that_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--model.codec", "gic.models.codec.Kodec"]
    with pytest.raises(SystemExit) as stop:
        make_cli(words, run=False)
    assert stop.value.code == 2
    assert "Kodec" in capsys.readouterr().err


def test_extends_comes_before_and_is_taken_out(tmp_path):
    (tmp_path / "a.yaml").write_text("x: 1\ny: 1\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ny: 2\n")
    (tmp_path / "c.yaml").write_text("extends: [b.yaml]\ny: 3\n")
    words = expand_configs(["fit", f"--config={tmp_path / 'c.yaml'}", "--z", "4"])
    configs = ["--config", str(tmp_path / "a.yaml"), "--config", f"# from {tmp_path}/b.yaml\ny: 2\n"]
    configs += ["--config", f"# from {tmp_path}/c.yaml\ny: 3\n"]
    assert words == ["fit", *configs, "--z", "4"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: self.yaml\n", "extends itself"),
        ("extends: nowhere.yaml\n", "nowhere.yaml"),
        ("- a list\n", "mapping"),
        ("a: [1\n", "YAML"),
    ],
)
def test_a_config_that_cannot_be_read_gives_one_clear_error(text, said, tmp_path):
    (tmp_path / "self.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        expand_configs(["--config", str(tmp_path / "self.yaml")])


def test_a_missing_config_names_the_file():
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        expand_configs(["--config", "missing.yaml"])


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("model: {foo: 1}", "model.foo"),
        ("ema: {decai: 0.5}", "ema.decai"),
        (
            "model: {codec: {init_args: {compressor: {init_args: {widht: 3}}}}}",
            "codec.init_args.compressor.init_args.widht",
        ),
    ],
)
def test_a_key_that_there_is_not_is_named_with_its_place(config, place, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(config)
    with pytest.raises(SystemExit) as stop:
        make_cli(["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(tmp_path / "run.yaml")])
    assert stop.value.code == 2
    assert place in capsys.readouterr().err


def test_settings_that_do_not_go_together_are_one_line_of_the_class_that_says_so(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {codec: {init_args: {q_min: 5.0, q_max: 2.0}}}")
    with pytest.raises(ConfigError, match=r"^q_min and q_max must satisfy"):
        make_cli(["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(tmp_path / "run.yaml")])
