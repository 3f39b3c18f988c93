"""Where a run puts its files.

Each run has its own folder: TensorBoard and CSV loggers create one for each run; with any other logger, or none, it is
the next free ``version_N`` under ``default_root_dir``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

_FOLDERS: WeakKeyDictionary[L.Trainer, Path] = WeakKeyDictionary()


def logger_folder(trainer: L.Trainer) -> Path | None:
    """Folder that a logger has created for this run; None with loggers that create none."""
    for logger in trainer.loggers:
        if isinstance(logger, (TensorBoardLogger, CSVLogger)):
            return Path(logger.log_dir)
    return None


def run_folder(trainer: L.Trainer) -> Path:
    """Folder of the trainer's run, the same at every call; the first call must be on all ranks."""
    if trainer not in _FOLDERS:
        folder: Any = logger_folder(trainer)
        if folder is None and trainer.is_global_zero:
            folder = _next_version(Path(trainer.default_root_dir))
        _FOLDERS[trainer] = trainer.strategy.broadcast(folder)
    return _FOLDERS[trainer]


def _next_version(root: Path) -> Path:
    """Create the next folder ``version_N``, safe against other runs at the same time."""
    numbers = [path.name.removeprefix("version_") for path in root.glob("version_*")]
    number = max((int(text) + 1 for text in numbers if text.isdecimal()), default=0)
    while True:
        folder = root / f"version_{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


class NewFolder:
    """The folder of a run that may fail before its first step, and then leaves nothing behind."""

    def __init__(self) -> None:
        self._trainer: L.Trainer | None = None
        self._existed = False

    def watch(self, trainer: L.Trainer) -> None:
        """Note the trainer of a run before it has written anything."""
        folder = logger_folder(trainer)
        self._trainer, self._existed = trainer, folder is not None and folder.exists()

    def forget_unused(self) -> None:
        """Remove the folder if the run has created it, has made no step and has written only logs and its config."""
        trainer = self._trainer
        if trainer is None or self._existed or trainer.global_step or not trainer.is_global_zero:
            return
        folder = logger_folder(trainer) or _FOLDERS.get(trainer)
        if folder is None or not folder.is_dir():
            return
        files = list(folder.iterdir())
        if all(re.fullmatch(r"(events\.out\.tfevents\..*|(hparams|config)\.yaml|metrics\.csv)", f.name) for f in files):
            for file in files:
                file.unlink()
            folder.rmdir()


class SaveConfig(SaveConfigCallback):
    """Keeps the whole config of a run in its folder, as ``config.yaml``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "save_to_log_dir": False, "overwrite": True})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Agree on the run's folder on all ranks; rank 0 writes, for a training run later, when it begins."""
        run_folder(trainer)
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write before a validation that comes first."""
        super().setup(trainer, pl_module, "fit")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write before the first step."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file."""
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / self.config_filename, skip_unset=False, overwrite=True)
