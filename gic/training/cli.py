"""``gic fit`` and ``gic validate``: LightningCLI for the codec and its data."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gic.configs import PlainErrors, expand_configs, own_error
from gic.errors import ConfigError, GicError, require


class LostRankError(GicError):
    """Another process of the run does not answer any more."""


def make_cli(argv: Sequence[str], run: bool = True, started: float | None = None) -> Any:
    """Build trainer, model and data from the words of the command line, and run the command.

    Args:
        argv: The command and its options.
        run: Carry the command out; False only builds.
        started: When the command was started, by ``time.monotonic()``, for ``trainer.max_time``; now if left out.

    Returns:
        The LightningCLI, with ``trainer``, ``model`` and ``datamodule``.

    Raises:
        MissingExtraError: If the training packages are not installed.
        GicError: If the input of the run is wrong.
    """
    require("lightning")
    started = time.monotonic() if started is None else started
    # Warning of lightning's own use of torch's pytree under torch 2.15, once per run.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # We pass the words of the command line on ourselves, with the extended configs put in.
    warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
    import lightning as L
    import torch
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from gic.codec.checkpoints import validation_settings
    from gic.data.module import ImageData
    from gic.devices import alone_without_srun, check_accelerator
    from gic.names import TRUST_HELP
    from gic.training.checkpoint import Checkpoint
    from gic.training.clock import TimeBudget
    from gic.training.ema import EMA
    from gic.training.module import LitCodec
    from gic.training.preemption import Preemption
    from gic.training.progress import ProgressBar
    from gic.training.resume import AUTO, named_checkpoint, newest_at, newest_whole, read_plain_values_only
    from gic.training.run_folder import NewFolder, SaveConfig, logger_folder

    # Callbacks that a config has a key for, so that another can change one setting: `ema: {decay: 0.99}`, `ema: null`.
    OURS: dict[str, type[L.Callback]] = {
        "progress": ProgressBar,
        "ema": EMA,
        "checkpoint": Checkpoint,
        "preemption": Preemption,
    }

    threading.excepthook = _quiet_writer
    words = expand_configs(argv if run else argv[1:])
    alone_without_srun()
    new_folders = NewFolder()
    # Classes where a config names no others.
    PARTS = {"model": LitCodec, "data": ImageData}

    class Parser(PlainErrors, LightningArgumentParser):
        """Reports errors in one line."""

        explained_by = "--help, or --model.help, --data.help, --ema.help, ..."

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **{"allow_abbrev": False, **settings})
            self.words = words

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            """Say what a command without a config lacks."""
            if "required: codec, objective" in message:
                message = "no config is given: --config configs/base.yaml, or configs/photos.yaml for photographs"
            super().error(message, ex)

    class GicCLI(LightningCLI):
        """LightningCLI for our module and data."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            for name, callback in OURS.items():
                parser.add_lightning_class_args(callback, name, subclass_mode=True, required=False)
            parser.set_defaults({key: {"class_path": _name(kind)} for key, kind in PARTS.items()})
            parser.set_defaults({"seed_everything": 0})
            parser.add_argument("--trust", action="append", type=str, default=[], metavar="PACKAGE", help=TRUST_HELP)

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            super().parse_arguments(parser, args)
            options = self.config[self.config.subcommand] if self.config.get("subcommand") else {}
            if "verbose" in options:
                options["verbose"] = False  # our own table has the values
            if options.get("weights_only") is False:
                raise ConfigError("--weights_only false would let a checkpoint run code; those of gic do without")
            if options:
                options["weights_only"] = True
            name = options.get("ckpt_path")
            if name is None or (name == AUTO and self.config.subcommand == "fit"):
                return
            options["ckpt_path"] = str(named_checkpoint(name))

        def _parse_ckpt_path(self) -> None:
            """When ``fit`` resumes, command line and configs decide the model; in Lightning the checkpoint would.

            Other commands take the model and what they measure from the checkpoint. Lightning would take all of its
            settings, and import every class that they name.
            """
            command = self.config.get("subcommand")
            options = self.config[command] if command else {}
            if command == "fit" or options.get("ckpt_path") is None:
                return
            settings = validation_settings(options["ckpt_path"], options["trust"])
            for name in ("codec", "objective"):  # from the checkpoint alone, not merged with the config
                options["model"]["init_args"][name] = None
            self.config = self.parser.parse_object({command: {"model": settings}}, self.config)

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            """Build the trainer, on an available device; it runs no code of the checkpoints it reads.

            With ``max_time`` it validates first, to know how long that takes.
            """
            settings = self._get(self.config_init, "trainer", default={})
            kwargs["accelerator"] = check_accelerator(settings.get("accelerator", "auto"))
            if settings.get("max_time") is not None and self.config.get("subcommand", "fit") == "fit":
                budget = TimeBudget(settings["max_time"], started)
                callbacks = settings.get("callbacks") or []
                callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
                sanity = settings.get("num_sanity_val_steps") or -1
                kwargs |= {"max_time": None, "callbacks": [*callbacks, budget], "num_sanity_val_steps": sanity}
            trainer = super().instantiate_trainer(**kwargs)
            read_plain_values_only(trainer)
            return trainer

        def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
            """Add the callbacks that the config has a key for, unless its own list has one of that kind."""
            listed = config.get("callbacks") or []
            kinds = {type(each) for each in (listed if isinstance(listed, list) else [listed])}
            kinds |= {ProgressBar} if config.get("enable_progress_bar") is False else set()
            return super()._instantiate_trainer(
                config, [each for each in callbacks if each is not None and type(each) not in kinds]
            )

        def before_fit(self) -> None:
            """Find the data and the checkpoint of ``--ckpt_path auto``, and refuse a folder before it is written to."""
            if isinstance(self.datamodule, ImageData):
                self.datamodule.find()
            new_folders.watch(self.trainer)
            options = self.config_init["fit"]
            saver = next((each for each in self.trainer.checkpoint_callbacks if isinstance(each, Checkpoint)), None)
            if options["ckpt_path"] == AUTO:
                options["ckpt_path"] = self._newest_checkpoint(saver)
            start = options["ckpt_path"]
            if start is not None:
                self.model.init_from = None  # the resumed run has used it already
            folder = saver and saver.named_folder(self.trainer)
            if saver and folder and (problem := saver.refusal(folder, None if start is None else Path(start))):
                raise ConfigError(problem)

        def _newest_checkpoint(self, saver: Checkpoint | None) -> str | None:
            if saver is None:
                raise ConfigError(
                    f"--ckpt_path {AUTO} needs the callback gic.training.checkpoint.Checkpoint in the config"
                )
            version = getattr(self.trainer.logger, "version", None)
            folder = saver.named_folder(self.trainer)
            if folder is None or isinstance(version, int):
                raise ConfigError(
                    f"--ckpt_path {AUTO} goes on with a run that has a name, and this would be a new run: name it with "
                    "--trainer.logger.init_args.version NAME (TensorBoard and CSV), or give "
                    "gic.training.checkpoint.Checkpoint a dirpath"
                )
            found = newest_whole(folder)
            if found is None and saver.mirror is not None:
                found = newest_at(saver.mirror)
            if found is None:
                print(f"no checkpoint in {folder} yet: beginning anew", file=sys.stderr)
            return None if found is None else str(found)

        def after_fit(self) -> None:
            """Say what can be done with the result."""
            saver = next((each for each in self.trainer.checkpoint_callbacks if isinstance(each, Checkpoint)), None)
            if saver is not None and saver.newest is not None and self.trainer.is_global_zero:
                print(next_steps(saver.newest, logger_folder(self.trainer)), flush=True)

        def before_validate(self) -> None:
            """Find the data before anything slow begins."""
            if isinstance(self.datamodule, ImageData):
                self.datamodule.find()

    helps = {f"--{key}.help": f"--{key}.help={_name(kind)}" for key, kind in PARTS.items()}
    try:
        return GicCLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            parser_kwargs={"prog": "gic"},
            args=[helps.get(word, word) for word in words],
            run=run,
        )
    except ValueError as error:
        raise own_error(error) or error from None  # jsonargparse has wrapped the constructor's error
    except RuntimeError as error:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        # NCCL and the store have error types for this; gloo's error has only the name of its source file.
        if not distributed or not (isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)):
            raise
        raise LostRankError(
            f"rank {torch.distributed.get_rank()} has lost contact with another rank, which was killed, has failed or "
            f"hangs: what it wrote says why; --ckpt_path goes on from the last checkpoint ({str(error).split('. ')[0]})"
        ) from error
    finally:
        new_folders.forget_unused()


def _quiet_writer(failure: threading.ExceptHookArgs) -> None:
    """Leave the error of TensorBoard's writing thread to the main thread, which gets it too."""
    if not (isinstance(failure.exc_value, OSError) and "tensorboard" in type(failure.thread).__module__):
        threading.__excepthook__(failure)


def next_steps(checkpoint: Path, logs: Path | None) -> str:
    """What can be done with a trained codec, as commands."""
    commands = {
        f"gic export {checkpoint} -o mine.safetensors": "the weights alone, for files",
        "gic compress PICTURE --checkpoint mine.safetensors --bpp 0.5": "and gic decompress with the same weights",
        f"gic test --ckpt_path {checkpoint} --data FOLDER": "real files beside JPEG, WebP, AVIF and JPEG XL",
        **({f"tensorboard --logdir {logs}": "how it went"} if logs else {}),
        "gic fit --config configs/photos.yaml --data.train PHOTOS --data.val OTHERS": "a real run takes a GPU",
    }
    width = max(map(len, commands))
    return "next:\n" + "\n".join(f"  {command:<{width}}  # {text}" for command, text in commands.items())


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
