"""Training end to end on the embedded pictures with a tiny codec: stages, resume, DDP, failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from places import CONFIGS, TESTS

from gic.codec.checkpoints import load_codec, read_weights
from gic.errors import ConfigError, DataError
from gic.training.cli import make_cli
from gic.training.ema import EMA
from gic.training.module import NonFiniteLossError, match_layout
from gic.training.progress import ProgressBar
from gic.training.schedule import WarmupCosine
from gic.training.watch import LossWatch


@pytest.fixture
def words(pictures, tmp_path, monkeypatch):
    """The start of a command line for a tiny run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(command, *more, config="base.yaml"):
        return [
            *[command, "--config", str(CONFIGS / config), "--config", str(TESTS / "tiny.yaml")],
            *["--data.train", str(pictures / "train-*.tar"), "--data.val", str(pictures / "val-000000.tar")],
            *["--trainer.default_root_dir", str(tmp_path), *more],
        ]

    return make


CHECKPOINTS = (
    "[{class_path: gic.training.checkpoint.Checkpoint, init_args: {dirpath: ckpt, every_n_steps: 1, keep: 20}}, "
    "{class_path: gic.training.ema.EMA, init_args: {decay: 0.5}}]"
)


def reports(folder, name="val-*.json"):
    """What the runs that began in a folder have measured, by the names of the files."""
    files = sorted(folder.glob(f"version_*/results/{name}"))
    return [json.loads(path.read_text()) for path in files]


def weights(cli):
    return {name: tensor.clone() for name, tensor in cli.model.codec.state_dict().items()}


def test_a_run_learns_and_leaves_a_table_a_grid_and_finite_weights(words, tmp_path):
    # From nothing: eight channels of the lapped transform leave little to learn in so few steps.
    linear = ("--model.codec.init_args.compressor.init_args.lapped", "false")
    linear += ("--model.codec.init_args.compressor.init_args.hyper_activity", "false")
    cli = make_cli(words("fit", "--trainer.max_steps", "40", "--trainer.val_check_interval", "20", *linear))
    first, last = reports(tmp_path)
    assert [row["q"] for row in last["mean"]] == sorted(row["q"] for row in last["mean"])
    assert last["mean"][0]["psnr"] > first["mean"][0]["psnr"]
    assert len({row["key"] for row in last["images"]}) == 3
    assert (tmp_path / "version_0" / "grids" / "val-000040.png").stat().st_size > 1000
    assert all(torch.isfinite(tensor).all() for tensor in weights(cli).values())


def test_resumed_training_gives_the_weights_of_the_uninterrupted_run(words, tmp_path):
    options = ("--trainer.callbacks", CHECKPOINTS, "--trainer.val_check_interval", "3")
    whole = make_cli(words("fit", "--trainer.max_steps", "7", *options))
    # The schedule runs to the same end: max_steps stays, and the run starts again from a checkpoint in mid-epoch.
    for step in (2, 4, 5):
        resumed = make_cli(
            words("fit", "--trainer.max_steps", "7", *options, "--ckpt_path", f"ckpt/step-{step:06d}.ckpt")
        )
        assert resumed.trainer.global_step == 7
        for name, tensor in weights(whole).items():
            assert torch.equal(tensor, weights(resumed)[name]), f"{name} differs after resuming at step {step}"


def test_a_setting_of_the_command_holds_when_a_run_goes_on(words, tmp_path):
    """Lightning's command line lets what the checkpoint was trained with win over it, without a word."""
    options = ("--trainer.callbacks", CHECKPOINTS, "--trainer.val_check_interval", "2", "--trainer.max_steps")
    make_cli(words("fit", *options, "2", "--model.levels", "[1.0, 4.0]"))
    resumed = make_cli(words("fit", *options, "4", "--model.levels", "[2.0]", "--ckpt_path", "ckpt/step-000002.ckpt"))
    assert resumed.model.levels == [2.0]
    assert {row["q"] for row in reports(tmp_path, "val-000004.json")[0]["mean"]} == {2.0}


def test_the_checkpoint_holds_the_average_and_describes_its_codec(words, tmp_path):
    make_cli(words("fit", "--trainer.max_steps", "3", "--trainer.callbacks", CHECKPOINTS))
    path = tmp_path / "ckpt" / "step-000003.ckpt"
    saved = torch.load(path, weights_only=True)
    codec = load_codec(path)
    live = saved["current_model_state"]
    assert any(not torch.equal(saved["state_dict"][name], live[name]) for name in saved["state_dict"])
    for name, tensor in codec.state_dict().items():
        assert torch.equal(tensor, saved["state_dict"][f"codec.{name}"])
    assert codec.compressor.latent_channels == 8


def test_validate_reports_a_checkpoint_and_bits_fall_with_q(words, tmp_path, pictures):
    make_cli(words("fit", "--trainer.max_steps", "30", "--trainer.callbacks", CHECKPOINTS))
    make_cli(words("validate", "--ckpt_path", "ckpt/step-000030.ckpt"))
    (report,) = reports(tmp_path, "val-000030.json")
    bits = [row["bits_per_pixel"] for row in report["mean"] if row["realism"] == 0]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > bits[-1]


def test_an_unreadable_image_is_named_and_no_mean_is_given(words, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    Image.effect_noise((70, 50), 50).convert("RGB").save(folder / "good.png")
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        make_cli(words("validate", "--data.val", str(folder)))
    assert not reports(tmp_path)


def test_a_run_ends_with_what_it_changed_by_metrics_that_are_not_in_its_loss(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    cli = make_cli(words("fit", "--trainer.num_sanity_val_steps", "-1", "--model.metrics", "[psnr, ms_ssim]"))
    before = {(m.q, m.realism): m for m in cli.model.before}
    (report,) = reports(tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "first validation of this run -> last" in printed
    for row in report["mean"]:
        old = before[row["q"], row["realism"]].metrics["psnr"]
        assert old != row["psnr"]
        assert f"{old:.2f} -> {row['psnr']:.2f}" in printed


def test_where_nobody_watches_lines_tell_how_far_a_run_is(words, capsys):
    bar = ("--trainer.enable_progress_bar", "true", "--trainer.callbacks", "gic.training.progress.ProgressBar")
    make_cli(words("fit", "--trainer.max_steps", "5", "--trainer.log_every_n_steps", "2", *bar))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(",")[0] for line in lines] == ["step 2/5", "step 4/5"]
    assert all(" loss " in line and " psnr " in line for line in lines)


def test_validation_without_psnr_is_refused(words):
    with pytest.raises(ConfigError, match="psnr"):
        make_cli(words("fit", "--model.metrics", "[ms_ssim]"))


STAGES = {
    "stages/compressor.yaml": ("compressor.",),
    "stages/reverse.yaml": ("reverse.",),
    "stages/perceptual.yaml": ("reverse.", "compressor.g_s."),
    "stages/joint.yaml": ("",),
}


@pytest.mark.parametrize("config", STAGES)
def test_each_stage_starts_from_the_one_before_and_changes_only_what_it_trains(config, words, tmp_path):
    make_cli(words("fit", "--trainer.max_steps", "2", "--trainer.callbacks", CHECKPOINTS))
    start = read_weights("ckpt/step-000002.ckpt").state
    more = ["--model.init_from", "ckpt/step-000002.ckpt", "--trainer.max_steps", "3"]
    # LPIPS needs weights that are not at hand everywhere; a term of our own stands in for it.
    if config in ("stages/perceptual.yaml", "stages/joint.yaml"):
        more += ["--model.objective.init_args.terms", "{coarse: {class_path: terms.CoarseDistance}}"]
    cli = make_cli(words("fit", *more, config=config))
    changed = {name for name, tensor in weights(cli).items() if not torch.equal(tensor, start[name])}
    allowed = {name for name in start if name.startswith(STAGES[config])}
    assert changed
    assert changed <= allowed
    touched = {name for name in changed if cli.model.codec.get_parameter(name) is not None}
    assert {name.split(".")[0] for name in touched} == {name.split(".")[0] for name in allowed}


def test_a_stage_without_its_predecessor_says_which_file_is_missing(words):
    with pytest.raises(ConfigError, match=r"nowhere\.ckpt"):
        make_cli(words("fit", "--model.init_from", "nowhere.ckpt"))


def test_the_first_validation_is_of_the_weights_that_a_stage_begins_with(words, tmp_path):
    make_cli(words("fit", "--trainer.max_steps", "30", "--trainer.callbacks", CHECKPOINTS))
    make_cli(words("validate", "--ckpt_path", "ckpt/step-000030.ckpt"))
    expected = reports(tmp_path, "val-000030.json")[0]["mean"]
    more = ["--model.init_from", "ckpt/step-000030.ckpt", "--seed_everything", "5", "--trainer.max_steps", "1"]
    callbacks = CHECKPOINTS.replace("dirpath: ckpt", "dirpath: later")
    cli = make_cli(words("fit", *more, "--trainer.num_sanity_val_steps", "-1", "--trainer.callbacks", callbacks))
    assert [(mean.q, mean.realism) for mean in cli.model.before] == [(row["q"], row["realism"]) for row in expected]
    for mean, row in zip(cli.model.before, expected, strict=True):
        assert mean.metrics["psnr"] == pytest.approx(row["psnr"], abs=1e-4)


def test_a_non_finite_loss_stops_the_run_and_saves_the_batch(words, tmp_path):
    cli = make_cli(words("fit"), run=False)
    with torch.no_grad():
        cli.model.codec.compressor.g_s.layers[0].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="step 0"):
        cli.trainer.fit(cli.model, cli.datamodule)
    (folder,) = tmp_path.glob("version_0/non-finite-*")
    assert len(list(folder.glob("*.png"))) == 2
    assert len(json.loads((folder / "batch.json").read_text())["keys"]) == 2


def noted(watch, losses, step=0):
    """Let a watch see one batch for each loss; returns the batches."""
    batches = []
    for number, loss in enumerate(losses, step):
        image = torch.full((2, 3, 8, 8), number, dtype=torch.uint8)
        batches.append({"image": image, "key": [f"{number}a", f"{number}b"]})
        watch.note(torch.tensor(loss), {"mse": torch.tensor(loss * 2)}, batches[-1], (number, 10 + number))
    return batches


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_between_two_looks_the_first_batch_that_went_wrong_is_remembered(bad):
    watch = LossWatch()
    noted(watch, [1.0, 2.0])
    assert watch.look() is None
    losses = [1.0] * 5
    losses[bad] = float("inf")
    losses[4] = float("nan") if bad < 4 else losses[4]
    batches = noted(watch, losses, step=5)
    image, parts, keys, where = watch.look()
    assert torch.equal(image, batches[bad]["image"])
    assert keys == batches[bad]["key"] and where == (5 + bad, 15 + bad)
    assert parts == {"mse": float("inf")}
    assert watch.look() is None
    noted(watch, [1.0, float("nan")])
    other = {"image": torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "key": ["other"]}
    watch.note(torch.tensor(1.0), {"mse": torch.tensor(1.0)}, other, (2, 2))  # a batch of another size
    assert watch.look()[2] == ["1a", "1b"]
    assert watch.look() is None


def test_to_note_a_loss_waits_for_nothing_and_what_went_wrong_is_never_saved(words, tmp_path):
    from test_no_waiting import Waits

    cli = make_cli(words("fit"), run=False)
    cli.model.output_dir = tmp_path
    with Waits() as waits:
        noted(cli.model._watch, [1.0, float("nan"), 1.0])
    assert not waits.found
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*1a, 1b"):
        cli.model.on_save_checkpoint({})
    assert (tmp_path / "non-finite-step-000001-rank-0" / "00.png").is_file()
    noted(cli.model._watch, [float("nan")])
    with pytest.raises(NonFiniteLossError, match="step 0"):
        cli.model.on_validation_start()


def test_the_progress_bar_reads_values_at_logging_intervals_only(monkeypatch):
    from lightning.pytorch.callbacks import RichProgressBar

    asked = []
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: asked.append(1) or {"v_num": 1, "times": len(asked)})
    logged = {"train/loss": torch.tensor(0.5), "train/mse": torch.tensor(0.1), "images_per_second": torch.tensor(3.0)}
    trainer = SimpleNamespace(training=True, global_step=0, log_every_n_steps=5, logged_metrics=logged)
    bar = ProgressBar()
    shown = []
    for trainer.global_step in range(1, 12):
        shown.append(bar.get_metrics(trainer, None))
    assert len(asked) == 3
    assert shown[-1] == {"times": 3, "train/loss": 0.5, "images_per_second": 3.0}


def test_levels_outside_the_range_of_the_model_are_refused(words):
    from gic.commands.dispatch import run

    assert run(words("fit", "--model.levels", "[0.1, 1]")) == 2


def test_two_processes_train_alike_and_validate_each_image_once(words, tmp_path):
    options = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    more = ["--trainer.callbacks", CHECKPOINTS, "--trainer.max_steps", "3", "--trainer.val_check_interval", "3"]
    command = [sys.executable, "-m", "gic", *words("fit", *options, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    (report,) = reports(tmp_path, "val-000003.json")
    seen = [(row["key"], row["q"], row["realism"]) for row in report["images"]]
    assert len(seen) == len(set(seen)) == 3 * 5 * 2
    assert torch.load(tmp_path / "ckpt" / "step-000003.ckpt", weights_only=True)["global_step"] == 3


def test_the_average_of_a_short_run_has_forgotten_the_first_weights():
    callback, live = EMA(decay=0.9999), L.LightningModule()
    live.layer = torch.nn.Linear(1, 1, bias=False)
    callback.setup(None, live, "fit")
    callback.on_fit_start(None, live)
    for step in range(301):
        torch.nn.init.constant_(live.layer.weight, 1.0 + step / 300 if step else 0.0)
        callback.on_train_batch_end(SimpleNamespace(global_step=step + 1), live)
    assert 1.8 < callback._average_model.module.layer.weight.item() < 2.0


def test_the_average_lies_where_the_model_does_and_waits_for_nothing():
    """On the device "meta" whatever asks for a value raises an error, as does a sum of what lies on two devices."""
    callback, live = EMA(), L.LightningModule()
    live.layer = torch.nn.Linear(2, 2)
    callback.setup(None, live, "fit")
    live.to("meta")
    callback._average_model.n_averaged += 1  # as after a restart: nothing is copied from one to the other
    callback.on_fit_start(None, live)
    for step in (1, 2, 3):
        callback.on_train_batch_end(SimpleNamespace(global_step=step), live)
    assert {weight.device.type for weight in callback._average_model.module.parameters()} == {"meta"}
    assert callback._average_model.n_averaged == 4


def test_a_fused_optimiser_goes_on_from_a_state_that_lay_otherwise():
    # As many numbers as fill vectors: the kernel rounds what is left over otherwise, which the layout decides.
    gradient, start, ends = torch.randn(16, 4, 2, 2), torch.randn(16, 4, 2, 2), []
    for layouts in ((torch.contiguous_format,) * 2, (torch.contiguous_format, torch.channels_last)):
        state, weight = None, start
        for layout in layouts:
            weight = torch.nn.Parameter(weight.detach().clone(memory_format=layout))
            optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
            if state is not None:
                optimizer.load_state_dict(state)
                match_layout(optimizer)
            weight.grad = gradient.clone(memory_format=layout)
            optimizer.step()
            state = optimizer.state_dict()
            gradient = gradient.roll(1)
        ends.append(weight.detach())
        gradient = gradient.roll(-2)
    assert torch.equal(*ends)


def test_a_run_goes_on_from_a_checkpoint_whose_optimiser_state_lies_otherwise(words, tmp_path):
    """As the state does of weights that lay otherwise: no value of it counts for another element."""
    options = ("--trainer.max_steps", "4", "--trainer.limit_val_batches", "0", "--trainer.callbacks", CHECKPOINTS)
    whole = weights(make_cli(words("fit", *options)))
    path = tmp_path / "ckpt" / "step-000002.ckpt"
    saved = torch.load(path, weights_only=True)
    moved = 0
    for state in saved["optimizer_states"][0]["state"].values():
        for name, value in state.items():
            if value.dim() == 4:
                lies = torch.channels_last if value.is_contiguous() else torch.contiguous_format
                state[name] = value.contiguous(memory_format=lies)
                moved += state[name].stride() != value.stride()
    assert moved
    torch.save(saved, path)
    for name, tensor in weights(make_cli(words("fit", *options, "--ckpt_path", str(path)))).items():
        assert torch.equal(tensor, whole[name]), name


def test_the_schedule_warms_up_and_ends_at_its_floor():
    schedule = WarmupCosine(warmup_steps=10, final=0.1)
    factors = [schedule.factor(step, 100) for step in range(101)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.1)
