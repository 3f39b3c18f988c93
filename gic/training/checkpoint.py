"""The checkpoint callback: saves by steps or by the clock, keeps the newest, exports weights beside them."""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch import callbacks
from lightning.pytorch.utilities import rank_zero_warn

from gic.errors import ConfigError
from gic.files import is_url
from gic.training.clock import time_budget
from gic.training.resume import AtomicCheckpointIO, CheckpointError, newest_first
from gic.training.run_folder import logger_folder, run_folder
from gic.training.storage import copy_to

if TYPE_CHECKING:
    pass


class Checkpoint(callbacks.Checkpoint):
    """Checkpoints every so many steps and where the run ends; ``last.ckpt`` is a link to the newest.

    The last step is saved whatever ends the run: ``max_steps``, ``max_time``, another callback, a signal, or an error,
    unless the loss was not finite.

    A checkpoint is written whole or not at all, and an older one is deleted only after a newer one is complete. If
    a write fails, for example on a full disk, the run continues with a warning; at the last step this is an error.

    Files that this run did not write are never changed: a folder that already holds checkpoints is refused, unless the
    run continues from one of them.

    Args:
        every_n_steps: Optimiser steps between checkpoints, at least 1.
        keep: Number of newest checkpoints kept, at least 1; with 2, there is an older one if the newest is damaged.
        dirpath: Folder; by default ``checkpoints`` in the run's folder.
        every_minutes: Minutes between checkpoints of a run with ``max_time``; None counts steps there too.
        mirror: URL of fsspec (``s3://BUCKET/RUN``, ``gs://``, ``hf://``, ...) of a folder that gets a copy of each
            checkpoint; ``--ckpt_path URL`` resumes from there, and so does ``--ckpt_path auto`` on a machine whose
            folder has none. None copies nothing.
        export: Weights file (``.safetensors``) to write beside each checkpoint, for ``gic compress``; a name without
            folders lies in the run's folder. None writes none.

    Attributes:
        newest: The newest checkpoint that this process has written; None before the first, and on ranks other than 0.

    Raises:
        ConfigError: If a setting lies outside its range.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        keep: int = 3,
        dirpath: str | None = None,
        every_minutes: float | None = None,
        export: str | None = None,
        mirror: str | None = None,
    ) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ConfigError(f"every_n_steps and keep must be at least 1, not {every_n_steps} and {keep}")
        if every_minutes is not None and not 0 < every_minutes < math.inf:
            raise ConfigError(f"every_minutes must be positive, not {every_minutes}")
        if export is not None and not export.endswith(".safetensors"):
            raise ConfigError(f"export must name a file that ends in .safetensors, not {export}")
        if mirror is not None and not is_url(mirror):
            raise ConfigError(f"mirror must be a URL such as s3://bucket/run, not {mirror}")
        self.mirror = mirror
        self.every_minutes = every_minutes
        self.export = export
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.dirpath = dirpath
        self.newest: Path | None = None
        self._folder = Path()
        self._files = AtomicCheckpointIO()
        self._saved_step = -1
        self._step = -1  # the last one seen
        self._first_step = -1  # where this run began
        self._saved_at = 0.0  # seconds of the run's time
        self._written: list[str] = []  # names of files that this run wrote, the newest last

    @property
    def problem(self) -> str:
        """Why the last checkpoint could not be written; empty if it was."""
        return self._files.problem

    def named_folder(self, trainer: L.Trainer) -> Path | None:
        """Folder of checkpoints by settings and logger, before the ranks have agreed on it."""
        if self.dirpath:
            return Path(self.dirpath)
        folder = logger_folder(trainer)
        return None if folder is None else folder / "checkpoints"

    def folder(self, trainer: L.Trainer) -> Path:
        """Folder of the checkpoints of the trainer's run; call it on all ranks."""
        return Path(self.dirpath) if self.dirpath else run_folder(trainer) / "checkpoints"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set the folder, and how its files are written and read."""
        if stage != "fit":
            return
        self._folder = self.folder(trainer)
        trainer.strategy.checkpoint_io = self._files

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the checkpoint that the run starts from, which Lightning reveals only after it has read the file.

        Raises:
            ConfigError: If ranks begin at different checkpoints, or the folder holds those of another run.
        """
        start = str(self._files.read or "the beginning")
        first = trainer.strategy.broadcast(start)
        if first != start:
            raise ConfigError(
                f"rank {trainer.global_rank} would start from {start} and rank 0 from {first}: "
                f"the folder {self._folder} must be the same on all machines"
            )
        problem = self.refusal(self._folder, self._files.read) if trainer.is_global_zero else ""
        if problem := trainer.strategy.broadcast(problem):
            raise ConfigError(problem)
        if trainer.is_global_zero:
            for part in self._folder.glob(".*.ckpt.*.part"):  # from a process that ended while writing
                part.unlink()

    @staticmethod
    def refusal(folder: Path, start: Path | None) -> str:
        """Why a run that starts from a checkpoint, or anew, must not save in a folder; empty if it may."""
        if (start is not None and start.resolve().parent == folder.resolve()) or not newest_first(folder):
            return ""
        return (
            f"{folder} holds the checkpoints of another run: --ckpt_path {folder} goes on with it; for a new one name "
            "another folder, or move these away"
        )

    def state_dict(self) -> dict[str, Any]:
        """Names of the files that this run wrote, so that it may delete them after a restart."""
        return {"written": list(self._written)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the files over if they lie in this run's folder."""
        read = self._files.read
        if read is not None and read.resolve().parent == self._folder.resolve():
            names = state_dict.get("written", [])
            self._written = [name for name in names if re.fullmatch(r"step-\d+\.ckpt", str(name))]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the first step: a checkpoint of this step exists already."""
        self._step = self._first_step = trainer.global_step
        if budget := time_budget(trainer):
            self._saved_at = budget.used(self._step)

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Save when it is due, and at the last step."""
        step = trainer.global_step
        if step == self._step:
            return  # gradients are still accumulating, and a checkpoint does not hold them
        self._step = step
        last = 0 < trainer.max_steps <= step or (
            trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        )
        if last or trainer.should_stop or self._is_due(trainer, step):
            self.save(trainer)

    def _is_due(self, trainer: L.Trainer, step: int) -> bool:
        budget = time_budget(trainer)
        if budget is None or self.every_minutes is None:
            return step % self.every_n_steps == 0
        return budget.used(step) - self._saved_at >= 60 * self.every_minutes

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step of a run that a validation ends."""
        if trainer.should_stop and trainer.state.fn == "fit" and trainer.global_step == self._step:
            self.save(trainer)

    def save(self, trainer: L.Trainer, alone: bool = False) -> None:
        """Save the run at its present step, unless that is done.

        Args:
            trainer: Trainer of the run.
            alone: Whether only rank 0 calls this, since the others may have failed; otherwise call it on all ranks.
        """
        if trainer.global_step == self._saved_step or getattr(trainer, "fast_dev_run", False):
            return
        path = self._folder / f"step-{trainer.global_step:06d}.ckpt"
        began, before = time.monotonic(), list(self._written)
        self._written = [*(name for name in before if name != path.name), path.name]
        if alone:
            self._files.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(), path)
        else:
            trainer.save_checkpoint(path, weights_only=False)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            self._tidy(trainer, path, before)
        if budget := time_budget(trainer):
            self._saved_at = budget.used(trainer.global_step)
            budget.saved(time.monotonic() - began)

    def _tidy(self, trainer: L.Trainer, path: Path, before: list[str]) -> None:
        """Point ``last.ckpt`` to the file that was written, export it, and delete the oldest that this run wrote."""
        if self.problem:
            self._written = before
            left = f"the newest is {self.newest}" if self.newest else "there is none of this run yet"
            rank_zero_warn(f"the checkpoint {path} could not be written: {self.problem}; {left}")
            return
        self.newest = path
        try:
            link = self._folder / f".last.ckpt.{os.getpid()}.part"
            link.unlink(missing_ok=True)
            link.symlink_to(path.name)
            link.replace(self._folder / "last.ckpt")
            for name in self._written[: -self.keep]:
                (self._folder / name).unlink(missing_ok=True)
            self._written = self._written[-self.keep :]
        except OSError as error:
            rank_zero_warn(f"the checkpoint {path} is safe, but its folder could not be tidied: {error}")
        if self.mirror is not None:
            self._copy(path, [name for name in before if name not in self._written])
        if self.export is not None:
            codec: Any = trainer.lightning_module.codec
            packages = {type(each).__module__.partition(".")[0] for each in (codec, *codec.children())}
            self._export(path, sorted(packages))

    def _copy(self, path: Path, obsolete: list[str]) -> None:
        assert self.mirror is not None
        try:
            copy_to(self.mirror, path, obsolete)
        except ConfigError as error:
            rank_zero_warn(f"the checkpoint {path} is safe, but has no copy: {error}")

    def _export(self, path: Path, trust: list[str]) -> None:
        from gic.codec.checkpoints import export_checkpoint

        assert self.export is not None
        output = self._folder.parent / self.export if Path(self.export).name == self.export else Path(self.export)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            export_checkpoint(path, output, trust=trust)
        except (OSError, ConfigError) as error:
            rank_zero_warn(f"the checkpoint {path} is safe, but {output} could not be written: {error}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what a callback has ended at the end of an epoch, and say where the newest checkpoint is.

        Raises:
            CheckpointError: If the last one could not be written.
        """
        if self._step > self._first_step:
            self.save(trainer)
        self._tell(trainer)
        if self.problem:
            go_on = f"go on from the one before: --ckpt_path {self.newest}" if self.newest else "begin again"
            raise CheckpointError(
                f"the last checkpoint of the run could not be written: {self.problem}; make room and {go_on}"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the last whole step, and print where the run can be resumed."""
        # A KeyboardInterrupt may come inside an optimiser's step; any Exception leaves the weights of a whole one.
        whole = isinstance(exception, Exception) and self._step == trainer.global_step > self._first_step
        if whole and trainer.is_global_zero and not isinstance(exception, (ArithmeticError, CheckpointError)):
            try:
                self.save(trainer, alone=True)
            except Exception as error:  # the first error is the one to show
                rank_zero_warn(f"step {self._step} could not be saved: {error}")
        self._tell(trainer)

    def _tell(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self.newest:
            print(f"checkpoint: {self.newest}", flush=True)
