"""Checkpoint files: written whole, found again, and skipped when they are damaged."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from gic.codec.checkpoints import read_checkpoint
from gic.errors import ConfigError, GicError
from gic.files import is_url, replacing
from gic.training.storage import checkpoints_at, fetched

AUTO = "auto"
"""Value of ``--ckpt_path`` for the newest whole checkpoint in the run's own folder, if there is one."""


class CheckpointError(GicError, OSError):
    """A checkpoint that could not be written; the text names it and says why."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name and then renames them, so that a reader never gets a partial one.

    It reads tensors and plain values only: no other objects of a file are created, and no code of it is run.

    Lightning's own writer creates the file in the machine's temporary folder and copies it from there to other disks: a
    process that ends meanwhile leaves a partial file under the final name.

    A failed write does not end the run, and does not leave the other processes waiting at Lightning's barrier: the
    problem is kept for the caller.

    Attributes:
        problem: Why the last file could not be written; empty if it was.
        read: The last file that was read; None if there was none.
    """

    problem = ""
    read: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, or note the problem and keep the earlier file at ``path``."""
        self.problem = ""
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except OSError as error:
            self.problem = error.strerror or str(error)
        except RuntimeError as error:  # torch's writer, after the file's own error
            if not isinstance(error.__context__, OSError):
                raise
            self.problem = error.__context__.strerror or str(error.__context__)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **settings: Any) -> dict[str, Any]:
        """Read a checkpoint on the CPU, as tensors and plain values, regardless of the settings.

        Raises:
            ConfigError: If it cannot be read, or holds anything else.
        """
        self.read = Path(path)
        return read_checkpoint(path)


def read_plain_values_only(trainer: Trainer) -> None:
    """Let :class:`AtomicCheckpointIO` read and write checkpoints, unless the trainer has another plugin."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def newest_first(folder: Path) -> list[Path]:
    """Checkpoints in a folder by the time they were written, without links such as ``last.ckpt``.

    The step is not used: a run resumed at an earlier step leaves later ones behind.
    """
    files = [path for path in folder.glob("*.ckpt") if path.is_file() and not path.is_symlink()]
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def damage(path: Path) -> str:
    """Say what is wrong with a checkpoint file, by its checksums; empty if nothing is.

    PyTorch itself detects a truncated file, but loads one with changed bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return f"wrong checksum of {part}" if part else ""


def newest_whole(folder: Path) -> Path | None:
    """Find the newest checkpoint that is not damaged; warn of damaged newer ones.

    Returns:
        The checkpoint; None if the folder holds none at all.

    Raises:
        ConfigError: If there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for path in newest_first(folder):
        problem = damage(path)
        if not problem:
            if damaged:
                rank_zero_warn(f"going on from {path}, since newer checkpoints are damaged: {'; '.join(damaged)}")
            return path
        damaged.append(f"{path.name} ({problem})")
    if damaged:
        raise ConfigError(f"every checkpoint in {folder} is damaged, remove them to begin anew: {'; '.join(damaged)}")
    return None


def newest_at(url: str) -> Path | None:
    """Fetch the newest whole checkpoint at a URL; None if there is none at all.

    Raises:
        ConfigError: If the URL cannot be reached, or all checkpoints there are damaged.
    """
    urls = checkpoints_at(url)
    for each in urls:
        path = fetched(each)
        if not damage(path):
            return path
        rank_zero_warn(f"{each} is damaged and passed over")
    if urls:
        raise ConfigError(f"every checkpoint at {url} is damaged, remove them to begin anew")
    return None


def named_checkpoint(name: str | Path) -> Path:
    """Resolve the user's ``--ckpt_path`` to an undamaged file.

    Args:
        name: A file; or a folder of checkpoints, or of a run, for the newest whole one in it; or the URL of either.

    Raises:
        ConfigError: If there is no such file or folder, no checkpoint in it, or only damaged ones.
    """
    if is_url(str(name)):
        found = newest_at(str(name))
        if found is None:
            raise ConfigError(f"there is no checkpoint (*.ckpt) at {name}")
        return found
    path = Path(name)
    if path.is_dir():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        found = newest_whole(folder)
        if found is None:
            raise ConfigError(f"there is no checkpoint (*.ckpt) in {folder}")
        return found
    if not path.is_file():
        raise ConfigError(f"there is no checkpoint {path}: name a file, or a folder for the newest one in it")
    if path.suffix == ".safetensors":
        raise ConfigError(
            f"{path} holds weights alone, and --ckpt_path takes a training checkpoint (.ckpt): --model.init_from "
            f"{path} begins a new run with these weights; gic test and gic compress take them as they are"
        )
    if problem := damage(path):
        raise ConfigError(
            f"the checkpoint {path} is damaged ({problem}); --ckpt_path {path.parent} takes the newest that is whole"
        )
    return path
