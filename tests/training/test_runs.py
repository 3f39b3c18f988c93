"""A run's folder is its own, what it saves is whole, and it can go by the clock."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from places import CONFIGS
from training_runs import DDP, TERM, callback_words, finish, losses, start, tiny, wait_for

from gic.codec.checkpoints import load_codec
from gic.codec.zoo import shipped_weights
from gic.errors import ConfigError
from gic.training import clock as runs
from gic.training import run_folder as run_folders
from gic.training.checkpoint import Checkpoint
from gic.training.cli import make_cli
from gic.training.clock import TimeBudget, seconds_of, seconds_to_job_end
from gic.training.resume import newest_first
from gic.training.run_folder import run_folder
from gic.training.schedule import WarmupCosine

SAVING = [
    "--trainer.callbacks",
    "[{class_path: gic.training.checkpoint.Checkpoint, init_args: {every_n_steps: 1, keep: 2}}]",
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_two_runs_without_a_logger_leave_each_other_alone(pictures: Path, tmp_path: Path) -> None:
    words = [*tiny(pictures, "--trainer.default_root_dir", str(tmp_path)), *SAVING, "--trainer.max_steps"]
    make_cli([*words, "3"])
    first = {path: path.read_bytes() for path in tmp_path.glob("version_0/**/*") if path.is_file()}
    make_cli([*words, "4", "--seed_everything", "1"])
    assert first == {path: path.read_bytes() for path in tmp_path.glob("version_0/**/*") if path.is_file()}
    for run, steps in (("version_0", (3, 2)), ("version_1", (4, 3))):
        folder = tmp_path / run / "checkpoints"
        assert [path.name for path in newest_first(folder)] == [f"step-{step:06d}.ckpt" for step in steps]
        assert (tmp_path / run / "config.yaml").is_file()
        load_codec(folder / "last.ckpt")


def test_runs_that_begin_at_the_same_time_have_folders_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "version_7").mkdir()
    (tmp_path / "version_old").mkdir()
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(run_folders._next_version, [tmp_path] * 32))
    assert sorted(int(folder.name.removeprefix("version_")) for folder in folders) == list(range(8, 40))


def test_a_folder_with_the_checkpoints_of_another_run_is_refused(pictures: Path, tmp_path: Path) -> None:
    words = [*tiny(pictures), *callback_words(every=1, keep=2), "--trainer.max_steps"]
    make_cli([*words, "2"])
    before = {path: path.read_bytes() for path in (tmp_path / "ckpt").iterdir()}
    others = set(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="ckpt holds the checkpoints of another run"):
        make_cli([*words, "2"])
    Path("elsewhere.ckpt").write_bytes(Path("ckpt/last.ckpt").read_bytes())
    with pytest.raises(ConfigError, match="ckpt holds the checkpoints of another run"):
        make_cli([*words, "4", "--ckpt_path", "elsewhere.ckpt"])
    assert before == {path: path.read_bytes() for path in (tmp_path / "ckpt").iterdir()}
    assert set(tmp_path.rglob("*")) - others <= {Path("elsewhere.ckpt").resolve()}  # nothing was written at all


def test_a_refused_run_leaves_the_record_of_the_other_one(pictures: Path, tmp_path: Path) -> None:
    logger = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: runs, name: a, version: b}}"
    words = [*tiny(pictures, "--trainer.logger", logger), *SAVING]
    make_cli([*words, "--trainer.max_steps", "1"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert tmp_path / "runs" / "a" / "b" / "config.yaml" in before
    with pytest.raises(ConfigError, match="holds the checkpoints of another run"):
        make_cli([*words, "--model.optimizer.init_args.lr", "0.123"])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_run_that_goes_on_deletes_the_files_it_wrote_and_no_others(pictures: Path, tmp_path: Path) -> None:
    words = [*tiny(pictures), *callback_words(every=1, keep=2), "--trainer.max_steps"]
    make_cli([*words, "2"])
    Path("ckpt/best-of-all.ckpt").write_bytes(Path("ckpt/step-000002.ckpt").read_bytes())
    make_cli([*words, "5", "--ckpt_path", "ckpt/step-000002.ckpt"])
    assert sorted(path.name for path in newest_first(tmp_path / "ckpt")) == [
        "best-of-all.ckpt",
        "step-000004.ckpt",
        "step-000005.ckpt",
    ]


def test_weights_are_exported_beside_each_checkpoint(pictures: Path, tmp_path: Path) -> None:
    saver = SAVING[1].replace("keep: 2", "keep: 2, export: small.safetensors")
    make_cli([*tiny(pictures), "--trainer.callbacks", saver, "--trainer.default_root_dir", str(tmp_path)])
    trained, exported = (
        load_codec(tmp_path / "version_0" / name).state_dict()
        for name in ("checkpoints/last.ckpt", "small.safetensors")
    )
    assert list(trained) == list(exported)
    assert all(torch.equal(tensor.half().float(), exported[name]) for name, tensor in trained.items())
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        Checkpoint(export="small.ckpt")


class Elsewhere(Logger):
    """A logger such as W&B's or MLflow's, with a folder that all its runs share."""

    name, version, save_dir = "elsewhere", "a1b2c3", "shared-by-all"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        pass


@pytest.mark.parametrize("logger", [False, Elsewhere(), [Elsewhere(), Elsewhere()]])
def test_a_run_has_a_folder_of_its_own_whatever_its_logger(tmp_path: Path, logger: Any) -> None:
    made = [L.Trainer(accelerator="cpu", logger=logger, default_root_dir=tmp_path) for _ in range(3)]
    folders = [run_folder(trainer) for trainer in made]
    assert folders == [tmp_path / f"version_{number}" for number in range(3)]
    assert [run_folder(trainer) for trainer in made] == folders


def test_tensorboards_and_csvs_folder_is_the_runs(tmp_path: Path) -> None:
    for make in (TensorBoardLogger, CSVLogger):
        logger = make(tmp_path, name="name", version="one")
        trainer = L.Trainer(accelerator="cpu", logger=[Elsewhere(), logger], default_root_dir=tmp_path)
        assert run_folder(trainer) == tmp_path / "name" / "one"


# --- gathered gradients -----------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_with_gathered_gradients_loses_no_batch(pictures: Path, tmp_path: Path) -> None:
    """The first batch after a restart is half a step: nothing is saved then, or a second restart would miss it."""
    words = tiny(pictures, "--trainer.max_steps", "4", "--trainer.accumulate_grad_batches", "2")
    make_cli([*words, *callback_words(every=2)])
    expected = losses(tmp_path)
    saved = Path("ckpt/step-000002.ckpt")
    before = saved.read_bytes()
    stopped = make_cli([*words, *callback_words(every=2)], run=False)
    batches = []

    def training_step(batch: Any, batch_idx: int, step: Any = stopped.model.training_step) -> Any:
        batches.append(batch_idx)
        if len(batches) == 2:
            raise KeyError("the run breaks off in the second half of a step")
        return step(batch, batch_idx)

    stopped.model.training_step = training_step
    with pytest.raises(KeyError):
        stopped.trainer.fit(stopped.model, stopped.datamodule, ckpt_path=str(saved))
    assert saved.read_bytes() == before
    Path("losses/rank0").unlink()
    make_cli([*words, *callback_words(every=2), "--ckpt_path", str(saved)])
    assert losses(tmp_path) == expected[4:]


# --- the clock --------------------------------------------------------------------------------------------------------


class Clock:
    """Time that goes on when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(runs.time, "monotonic", lambda: self.now)


def trainer_of(step: int = 0, world_size: int = 1) -> Any:
    return SimpleNamespace(
        global_step=step,
        world_size=world_size,
        should_stop=False,
        sanity_checking=False,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        state=SimpleNamespace(fn="fit"),
    )


def train(budget: TimeBudget, clock: Clock, seconds: Any, validation: float, trainer: Any = None) -> list[float]:
    """Let a run go by; returns the learning rate, relative to the highest, that each step is taken with."""
    trainer = trainer or trainer_of()
    schedule = WarmupCosine(warmup_steps=3, final=0.1)

    def validate(sanity: bool) -> None:
        trainer.sanity_checking = sanity
        budget.on_validation_start(trainer, None)
        clock.now += validation
        budget.on_validation_end(trainer, None)
        trainer.sanity_checking = False

    validate(True)
    budget.on_train_start(trainer, None)
    rate, rates = schedule.factor(trainer.global_step, 2**62, budget.progress(trainer.global_step)), []
    while not trainer.should_stop:
        rates.append(rate)
        clock.now += seconds(len(rates))
        trainer.global_step += 1
        rate = schedule.factor(trainer.global_step, 2**62, budget.progress(trainer.global_step))
        budget.on_train_batch_end(trainer, None)
    clock.now += 2.0
    budget.saved(2.0)
    validate(False)
    return rates


@pytest.mark.parametrize("pace", [0.1, 0.7, 2.5])
@pytest.mark.parametrize("uneven", [False, True])
def test_training_by_the_clock_ends_in_time_with_its_rate_at_the_floor(
    monkeypatch: pytest.MonkeyPatch, pace: float, uneven: bool
) -> None:
    clock = Clock(monkeypatch)
    budget = TimeBudget("00:00:02:00")
    noise = torch.rand(5000, generator=torch.Generator().manual_seed(0)).tolist()
    seconds = (lambda number: pace * (0.7 + 0.6 * noise[number])) if uneven else (lambda number: pace)
    rates = train(budget, clock, lambda number: 8.0 if number == 1 else seconds(number), validation=10.0)
    assert 0.95 * 120 <= clock.now - 1000 <= 1.05 * 120
    assert rates[-1] == pytest.approx(0.1, rel=0.1 if uneven else 0.02)
    assert rates[:3] == sorted(rates[:3])
    assert all(before > after or after < 0.11 for before, after in itertools.pairwise(rates[3:]))


def test_a_run_by_the_clock_that_goes_on_has_the_time_that_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    first = TimeBudget("00:02:00")
    clock.now += 50
    state = first.state_dict()
    clock.now += 1000  # the machine was away
    second = TimeBudget("00:02:00")
    second.load_state_dict(state)
    train(second, clock, lambda number: 0.5, validation=5.0)
    assert 0.95 * 120 <= clock.now - 2050 + 50 <= 1.05 * 120


def test_ranks_with_clocks_of_their_own_take_the_same_steps_at_the_same_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    sent: dict[int, list[float]] = {}
    taken = []
    for rank, late in ((0, 0.0), (1, 7.0)):
        clock.now = 1000.0 + late
        looks = iter(range(10_000))

        def broadcast(tensor: torch.Tensor, source: int, rank: int = rank, looks: Any = looks) -> None:
            number = next(looks)
            if rank == 0:
                sent[number] = tensor.tolist()
            tensor.copy_(torch.tensor(sent[number], dtype=tensor.dtype))

        monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
        budget = TimeBudget("00:01:00", started=clock.now - late)
        trainer = trainer_of(world_size=2)
        pace = 0.4 if rank == 0 else 0.43
        taken.append(train(budget, clock, lambda number, pace=pace: pace, validation=4.0, trainer=trainer))
    assert taken[0] == taken[1]
    assert len(sent) < len(taken[0]) / 2


def test_checkpoints_follow_the_clock_instead_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    budget, saver = TimeBudget("1:00:00"), Checkpoint(every_n_steps=1, every_minutes=2)
    trainer, saved = trainer_of(), []
    trainer.callbacks, trainer.max_steps, trainer.is_last_batch = [budget, saver], -1, False
    trainer.current_epoch, trainer.max_epochs, trainer.fast_dev_run = 0, -1, False

    def save(path: Path, weights_only: bool) -> None:
        saved.append((trainer.global_step, clock.now))
        clock.now += 10

    trainer.save_checkpoint, trainer.is_global_zero = save, False
    budget.on_train_start(trainer, None)
    saver.on_train_start(trainer, None)
    for trainer.global_step in range(1, 200):
        clock.now += 3.0
        budget.on_train_batch_end(trainer, None)
        saver.on_train_batch_end(trainer)
    gaps = [later[1] - sooner[1] for sooner, later in itertools.pairwise(saved)]
    assert len(saved) > 3 and all(120 <= gap <= 135 for gap in gaps)
    with pytest.raises(ConfigError, match="every_minutes"):
        Checkpoint(every_minutes=0)


def test_a_job_that_ends_is_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "5000")
    assert seconds_to_job_end(now=4400.0) == 600.0
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME"):
        TimeBudget("job")


@pytest.mark.parametrize("duration", ["10", "1:2", "00:00:00:00", "an hour", {"moons": 1}, {"seconds": -1}])
def test_durations_that_are_none_are_refused(duration: Any) -> None:
    with pytest.raises(ConfigError, match="max_time"):
        seconds_of(duration)


def test_a_run_by_the_clock_validates_and_saves_its_last_step(pictures: Path, tmp_path: Path) -> None:
    words = tiny(pictures, "--trainer.max_time", "00:00:00:12", "--trainer.max_steps", "-1")
    words[words.index("--trainer.limit_val_batches") + 1] = "1.0"
    cli = make_cli([*words, "--trainer.val_check_interval", "1000000", *callback_words(every=1000)])
    step = cli.trainer.global_step
    assert step > 0 and [path.name for path in newest_first(tmp_path / "ckpt")] == [f"step-{step:06d}.ckpt"]
    assert (cli.model.output_dir / "results" / f"val-{step:06d}.json").is_file()
    (group,) = cli.trainer.optimizers[0].param_groups
    assert group["lr"] == pytest.approx(cli.model.schedule.final * group["initial_lr"], rel=0.5)
    saved = torch.load(tmp_path / "ckpt" / "last.ckpt", weights_only=True)
    assert saved["callbacks"]["TimeBudget"]["used"] > 0


def test_a_validation_that_leaves_no_time_is_refused_and_time_used_up_ends_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    budget, trainer = TimeBudget("00:01:00"), trainer_of()
    with pytest.raises(ConfigError, match=r"no time for training.*val_limit"):
        train(budget, clock, lambda number: 0.5, validation=30.0)
    budget, trainer.sanity_checking = TimeBudget("00:01:00"), True
    budget.on_validation_start(trainer, None)
    with pytest.raises(ConfigError, match="val_limit"):  # seen before the validation is over
        for _ in range(10):
            clock.now += 10
            budget.on_validation_batch_end(trainer, None, None, None, 0)
    again = TimeBudget("00:01:00")
    again.load_state_dict({"used": 60.0, "validation": 3.0, "saving": 0.0})
    trainer = trainer_of(step=7)
    again.on_train_start(trainer, None)
    trainer.global_step = 8
    again.on_train_batch_end(trainer, None)
    assert trainer.should_stop


@pytest.mark.parametrize("name", ["shipped", "small"])
def test_a_run_begins_with_the_weights_that_ship(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--trainer.accelerator", "cpu", "--model.init_from"]
    cli = make_cli([*words, name], run=False)
    cli.model.trainer = SimpleNamespace(is_global_zero=False, datamodule=None, precision="32-true")
    monkeypatch.setattr("gic.training.module.run_folder", lambda trainer: tmp_path)
    cli.model.setup("fit")
    shipped = load_codec(shipped_weights()).state_dict()
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in cli.model.codec.state_dict().items())


@pytest.mark.slow
def test_two_processes_by_the_clock_are_stopped_and_go_on_together(pictures: Path, tmp_path: Path) -> None:
    words = [*tiny(pictures, *DDP, "--trainer.max_time", "00:00:00:50", "--trainer.max_steps", "-1")]
    words += [*callback_words(every=20, keep=2)]
    process = start(words, tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("ckpt/step-*.ckpt"))) > 1, process)
    process.send_signal(TERM)
    assert finish(process) == 75, (tmp_path / "out").read_text()
    assert finish(start([*words, "--ckpt_path", "auto"], tmp_path)) == 0, (tmp_path / "out").read_text()
    steps = [[step for step, _ in losses(tmp_path, rank)] for rank in (0, 1)]
    assert steps[0] == steps[1]
    saved = torch.load(tmp_path / "ckpt" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == steps[0][-1]
    rates = saved["lr_schedulers"][0]["_last_lr"]
    assert rates[0] == pytest.approx(0.05 * 5e-4, rel=0.2)
