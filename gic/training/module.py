"""Training and validation under Lightning: a thin wrapper around the codec and its objective."""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from gic.data.module import TrainLoader
from gic.errors import ConfigError, DataError, GicError, in_words
from gic.files import replacing
from gic.models.codec import Codec, parameter_counts, trainable_parameters
from gic.pictures.tensors import to_image, to_tensor
from gic.quality.metric import ImageMetric, SetMetric
from gic.quality.metrics import make_metrics
from gic.training.clock import time_budget
from gic.training.evaluation import (
    BEFORE,
    Features,
    LevelResult,
    evaluate_image,
    extract_features,
    grid_picture,
    mean_by_level,
    print_changes,
    print_table,
    save_json,
    with_set_metrics,
)
from gic.training.history import draw_history
from gic.training.objective import Objective
from gic.training.run_folder import run_folder
from gic.training.schedule import WarmupCosine
from gic.training.watch import LossWatch

HISTORY = "rate.png"
"""Picture of a run's rate against the step, in its folder."""
_WAITS_FOR_OTHERS = ("broadcast_buffers", "require_forward_param_sync")  # attributes of DistributedDataParallel


class NonFiniteLossError(GicError, ArithmeticError):
    """The loss became NaN or infinite; the text names the batch and where it was saved."""


class LitCodec(L.LightningModule):
    """Trains a codec with an objective; validates it at several levels.

    Args:
        codec: The model.
        objective: The loss of this stage.
        optimizer: Optimiser, called with the trainable parameters.
        schedule: Learning-rate schedule, per optimiser step.
        trainable: Dotted names of the codec's modules that learn in this stage; ``[""]`` is the whole codec.
        learning_rates: Separate learning rates of modules, by dotted name, for example ``{reverse: 1.0e-3}``; the
            schedule applies to them too.
        init_from: Checkpoint or weights file whose codec this stage starts from, or a name that :func:`gic.load`
            takes; ``shipped`` for the weights that come with the package. Resuming a run is ``--ckpt_path`` instead.
        levels: Levels q at which validation measures; five over the codec's range if left out.
        realism: Values of r at which it measures.
        metrics: What it measures, by the names of ``gic weights`` or the ``class_path`` of your own. Include metrics
            outside the objective, to detect a codec that games its own loss
            (:func:`gic.training.evaluation.gaming`). FID and KID compare the patches of all images at each level and
            realism.
        autocast: ``auto`` runs the transforms in bfloat16 on GPUs that have it, ``bfloat16`` on any device; ``off``
            stays in float32.
        compile: Compile the networks with ``torch.compile`` for training, or warn where that does not work. The first
            steps take minutes.
        activation_checkpointing: Recompute the activations inside the transforms' blocks for the gradient instead of
            keeping them: less memory, more time, the same gradient.
        grid_images: Number of validation images in the grid picture.
    """

    def __init__(
        self,
        codec: Codec,
        objective: Objective,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: WarmupCosine | None = None,
        trainable: Sequence[str] = ("",),
        learning_rates: Mapping[str, float] | None = None,
        init_from: str | None = None,
        levels: Sequence[float] | None = None,
        realism: Sequence[float] = (0.0, 1.0),
        metrics: Sequence[str | ImageMetric | SetMetric] = ("psnr", "ms_ssim"),
        autocast: Literal["auto", "bfloat16", "off"] = "auto",
        compile: bool = False,
        activation_checkpointing: bool = False,
        grid_images: int = 4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.codec = codec
        self._objective = (objective,)  # not registered: it is neither averaged nor part of the codec's weights
        self.make_optimizer = optimizer
        self.schedule = schedule or WarmupCosine(warmup_steps=0, final=1.0)
        self.init_from = init_from
        spread = [codec.q_min * (codec.q_max / codec.q_min) ** (i / 4) for i in range(5)]
        self.levels = spread if levels is None else [codec.check_level(q) for q in levels]
        self.realism = list(realism)
        self.metrics = list(metrics)
        self.autocast = autocast
        self.compiled = compile
        for part in codec.modules():
            if hasattr(part, "checkpointing"):
                setattr(part, "checkpointing", activation_checkpointing)  # noqa: B010 - a module's own attribute
        self.grid_images = grid_images
        for name, learns in trainable_parameters(codec, list(trainable)).items():
            codec.get_parameter(name).requires_grad_(learns)
        self.learning_rates = dict(learning_rates or {})
        for name, rate in self.learning_rates.items():
            trainable_parameters(codec, [name])
            if not 0 < rate < math.inf:
                raise ConfigError(f"the learning rate of {name} must be positive, not {rate}")
        if objective.adversarial is not None:
            objective.adversarial.judge_of(codec.compressor.latent_channels)
        if "psnr" not in self.metrics:
            raise ConfigError("metrics must name psnr: checkpoints are compared by rate and distortion")
        self.results: list[LevelResult] = []
        self.before: list[LevelResult] = []
        self.latest: list[LevelResult] = []
        self.features: list[Features] = []
        self.failures: list[str] = []
        self.grids: list[tuple[str, Tensor]] = []
        self.skipped: dict[str, int] = {}
        self.output_dir = Path()
        self.loaded_step = 0
        self._metric_objects: tuple[list[ImageMetric], list[SetMetric]] | None = None
        self._watch = LossWatch()
        self._clock: tuple[float, int] = (time.perf_counter(), 0)
        self._run_steps = 2**62
        self._ddp: dict[str, bool] = {}
        self._adversarial_state: dict[str, Any] | None = None  # of a checkpoint, until the run begins

    @property
    def objective(self) -> Objective:
        """The loss of this stage."""
        return self._objective[0]

    def __getstate__(self) -> dict[str, Any]:
        """Let copies, such as the running average, hold the parameters without trainer, optimiser and metrics."""
        without = dict.fromkeys(("_trainer", "make_optimizer", "_objective", "_metric_objects", "_adversarial_state"))
        return {**self.__dict__, **without, "_watch": LossWatch()}

    # --- training -----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Start from the checkpoint of an earlier stage, unless a run is being resumed."""
        self.output_dir = run_folder(self.trainer)  # called here on all ranks
        if self.trainer.precision != "32-true":
            raise ConfigError(
                f"trainer.precision is {self.trainer.precision}: leave it out, and give --model.autocast bfloat16, "
                "which runs the transforms in bfloat16 and keeps rates and weights in float32 (auto: on GPUs that can)"
            )
        if stage == "fit" and self.init_from is not None:
            from gic.codec.checkpoints import load_codec_state
            from gic.codec.zoo import locate

            start = locate(self.init_from)
            begin_with(self.codec, load_codec_state(start), str(start))
        crop = getattr(getattr(self.trainer, "datamodule", None), "crop_size", None)
        if stage == "fit" and crop is not None and crop % self.codec.compressor.multiple:
            raise ConfigError(f"crop_size must be a multiple of {self.codec.compressor.multiple}, not {crop}")
        if stage == "fit" and self.compiled:
            self._compile()
        if stage == "fit" and self.trainer.is_global_zero:
            counts = parameter_counts(self.codec)
            learning = sum(p.numel() for p in self.codec.parameters() if p.requires_grad)
            parts = ", ".join(f"{name.split('.')[-1]} {count / 1e6:.2f} M" for name, count in counts.items())
            self.print(f"parameters: {parts}; learning in this stage: {learning / 1e6:.2f} M")

    def configure_optimizers(self) -> Any:
        """One optimiser over the parameters that learn; no auxiliary one."""
        optimizer = self.make_optimizer(self._groups())
        budget = time_budget(self.trainer)
        self._run_steps = run_steps = int(min(self.trainer.estimated_stepping_batches, 2**62))

        def factor(step: int) -> float:
            return self.schedule.factor(step, run_steps, budget.progress(step) if budget else 0.0)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _progress(self, step: int) -> float:
        """Share of the run that is over at an optimiser step, in [0, 1]; 0 if it has no end."""
        budget = time_budget(self.trainer)
        return budget.progress(step) if budget else min(1.0, step / self._run_steps)

    def _groups(self) -> list[Any]:
        """Groups of trainable parameters by learning rate; the longest matching name decides."""
        learning = {name: p for name, p in self.codec.named_parameters() if p.requires_grad}
        groups: list[Any] = []
        for prefix in sorted(self.learning_rates, key=len, reverse=True):
            own = [name for name, chosen in trainable_parameters(self.codec, [prefix]).items() if chosen]
            parameters = [learning.pop(name) for name in own if name in learning]
            if parameters:
                groups.append({"params": parameters, "lr": self.learning_rates[prefix]})
        rest = list(learning.values())
        return [{"params": rest}, *groups] if groups and rest else groups or rest

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        """Step the decoder, then the discriminator; only the decoder's steps count as steps of the run."""
        super().optimizer_step(*arguments, **settings)
        if self.objective.adversarial is not None:
            group = self.trainer.optimizers[0].param_groups[0]
            self.objective.adversarial.step(group["lr"] / group["initial_lr"], self.trainer.gradient_clip_val)

    def on_fit_start(self) -> None:
        """Move the loss's networks to the model's device, and load the discriminator from the checkpoint."""
        self.objective.to(self.device)
        if self.trainer.world_size > 1:
            for parameter in self.codec.parameters():
                keep_strides(parameter)
        adversarial, saved = self.objective.adversarial, self._adversarial_state
        self._adversarial_state = None
        if adversarial is None:
            return
        if saved is not None:
            adversarial.take_up(saved)
        elif self.loaded_step:
            self.print(
                "the checkpoint holds no discriminator: a new one begins, and learns alone for "
                f"{adversarial.warmup_steps} steps before it counts"
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for tensor in adversarial.discriminator.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def on_train_start(self) -> None:
        """Print the number of crops per step and the learning rate, which the user chooses."""
        for optimizer in self.trainer.optimizers:
            match_layout(optimizer)
        loader = self.trainer.train_dataloader
        if not isinstance(loader, TrainLoader):
            return
        nodes, crops, steps = self.trainer.num_nodes, loader.stream.batch_size, self.trainer.accumulate_grad_batches
        ranks = self.trainer.world_size
        rate = self.trainer.optimizers[0].param_groups[0]["initial_lr"]
        self.print(
            f"effective batch: {ranks // nodes} devices x {nodes} nodes x {crops} crops x {steps} accumulated = "
            f"{ranks * crops * steps} crops a step; learning rate {rate:g} as set, not scaled with the batch; "
            f"seed {loader.stream.seed}"
        )

    def _compile(self) -> None:
        """Let the networks be compiled at their first call, if this machine can."""
        problem = compiler_problem(self.trainer.strategy.root_device)
        self.compiled = not problem
        if problem:
            rank_zero_warn(f"training goes on without torch.compile, which does not work here: {problem}")
            return
        for network in self.codec.networks:
            network.compile()

    def _as_written(self) -> AbstractContextManager[Any]:
        """Run without compilation: each size of validation image would need its own."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def _autocast(self) -> torch.autocast:
        on_gpu = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        enabled = self.autocast == "bfloat16" or (self.autocast == "auto" and on_gpu)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of a batch of uint8 crops; stops the run when it is not finite."""
        x = batch["image"].float() / 255
        with self._autocast():
            parts, judged = self.objective.evaluate(self.codec, x)
            if judged is not None and self.objective.adversarial is not None:
                parts |= self.objective.adversarial.learn(*judged, accumulate=self.trainer.accumulate_grad_batches)
        loss = parts.pop("loss")
        self._watch.note(loss.detach(), parts, batch, (self.global_step, batch_idx))
        if self.device.type == "cpu":  # where the check costs nothing
            self._stop_if_not_finite()
        # Not for Lightning's progress bar, which reads its values after each step: ours takes them at intervals.
        self.log("train/loss", loss.detach(), batch_size=len(x))
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(x))
        for reason, count in batch.get("skipped", {}).items():
            self.skipped[reason] = self.skipped.get(reason, 0) + count
        return loss

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seed levels and noise from the batch's global index: the same after a restart and for any number of ranks."""
        number = batch_idx * self.trainer.world_size + self.global_rank
        place = (int(os.environ.get("PL_GLOBAL_SEED", 0)), self.current_epoch, number)
        self.objective.progress = self._progress(self.global_step)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def _stop_if_not_finite(self) -> None:
        """End the run if a loss since the last check was not finite; waits for the GPU."""
        found = self._watch.look()
        if found is None:
            return
        images, parts, keys, (step, batch_idx) = found
        folder = self.output_dir / f"non-finite-step-{step:06d}-rank-{self.global_rank}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            to_image(image.cpu()).save(folder / f"{i:02d}.png")
        (folder / "batch.json").write_text(json.dumps({"keys": keys, "batch": batch_idx, "parts": parts}, indent=1))
        raise NonFiniteLossError(
            f"the loss is not finite at step {step} ({parts}); the batch ({', '.join(keys[:4])}, ...) "
            f"is saved in {folder}: look at it, lower the learning rate or start from an earlier checkpoint"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights after a loss that was not finite; add the discriminator to the checkpoint."""
        self._stop_if_not_finite()
        if self.objective.adversarial is not None:
            checkpoint["adversarial"] = self.objective.adversarial.to_save()

    def on_validation_start(self) -> None:
        """Refuse to measure such weights too, and let no rank wait for one that has fewer images."""
        self._stop_if_not_finite()
        # DistributedDataParallel sends the buffers of rank 0 to all before an image, and no longer after it.
        wrapper: Any = self.trainer.strategy.model
        self._ddp = {name: getattr(wrapper, name) for name in _WAITS_FOR_OTHERS if hasattr(wrapper, name)}
        for name in self._ddp:
            setattr(wrapper, name, False)

    def on_validation_end(self) -> None:
        """Let training go on as before."""
        for name, value in self._ddp.items():
            setattr(self.trainer.strategy.model, name, value)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the throughput of all ranks, in images per second, and the learning rate."""
        if (batch_idx + 1) % self._log_interval == 0:
            self._stop_if_not_finite()
            if self.objective.adversarial is not None and "train/discriminator" in self.trainer.logged_metrics:
                self.objective.adversarial.check(float(self.trainer.logged_metrics["train/discriminator"]))
        start, images = self._clock
        images += len(batch["image"])
        if (batch_idx + 1) % self._log_interval == 0:
            now = time.perf_counter()
            speed = images * self.trainer.world_size / (now - start)
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log("images_per_second", speed, batch_size=1)
            self.log("learning_rate", rate, batch_size=1)
            start, images = now, 0
        self._clock = (start, images)

    @property
    def _log_interval(self) -> int:
        return max(1, getattr(self.trainer, "log_every_n_steps", 50))

    def on_train_epoch_start(self) -> None:
        """Restart the throughput clock."""
        self._clock = (time.perf_counter(), 0)

    def on_train_epoch_end(self) -> None:
        """Report what was skipped in this epoch on this rank."""
        if self.skipped:
            tally = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
            print(f"epoch {self.current_epoch}, rank {self.global_rank}: skipped samples: {tally}")
            self.skipped = {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the step of the weights, for the names of reports."""
        self.loaded_step = int(checkpoint.get("global_step", 0))
        self._adversarial_state = checkpoint.get("adversarial")

    # --- evaluation ---------------------------------------------------------------------------------------

    def _evaluate(self, batch: dict[str, Any]) -> None:
        if batch["image"] is None:
            self.failures.append(f"{batch['key']}: {batch['error']}")
            return
        x = batch["image"].to(self.device)
        want_grid = len(self.grids) < self.grid_images
        image_metrics, set_metrics = self._judges()
        with self._autocast(), self._as_written():
            results, pictures = evaluate_image(
                self.codec,
                x,
                batch["key"],
                self.levels,
                self.realism,
                image_metrics,
                seed=zlib.crc32(batch["key"].encode()),
            )
        self.results += results
        if set_metrics:
            self.features.append(extract_features(batch["key"], x, pictures, set_metrics))
        if want_grid:
            self.grids.append((batch["key"], grid_picture(x, results, pictures)))

    def _gather(self, items: list[Any], order: Callable[[Any], Any] | None = None) -> list[Any]:
        """Items of all ranks, in an order that does not depend on their distribution."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            lists: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(lists, items)
            items = [item for part in lists for item in part]
        return sorted(items, key=order)

    def _judges(self) -> tuple[list[ImageMetric], list[SetMetric]]:
        """The metrics, created at first use; those that are not available are printed once."""
        if self._metric_objects is None:
            images, sets, missing = make_metrics(self.metrics, None, str(self.device))
            self._metric_objects = images, sets
            for name, reason in missing.items():
                self.print(f"not computed: {name}: {reason}")
        return self._metric_objects

    def on_validation_epoch_end(self) -> None:
        """Gather, log, print and save what validation measured."""
        results = self._gather(self.results)
        failures = self._gather(self.failures)
        features = self._gather(self.features, lambda image: image.key)  # on every rank, even without images
        if not results:
            detail = f"; the first of {len(failures)} failures: {failures[0]}" if failures else ""
            raise DataError(f"no image could be evaluated: check the data section of the config{detail}")
        fitting = self.trainer.state.fn == "fit"
        if failures and not fitting:
            raise DataError(
                f"{len(failures)} of the images could not be read, so the means are not given: {failures[0]}"
            )
        means = mean_by_level(results)
        _, set_metrics = self._judges()
        means = with_set_metrics(means, features, set_metrics)
        if set_metrics and all(mean.metrics[set_metrics[0].info.name] is None for mean in means):
            names = ", ".join(metric.info.name for metric in set_metrics)
            self.print(f"not computed: {names}: it takes two patches of 256 x 256 pixels among the validation images")
        elif features and not self.trainer.sanity_checking:
            for metric in set_metrics:
                if caution := metric.info.caution(sum(len(f.original[metric.features_identity]) for f in features)):
                    self.print(f"WARNING: {caution}")
        self.before = self.before or means
        self.latest = means
        everywhere: dict[str, Any] = {"batch_size": 1, "sync_dist": True}  # all ranks have gathered the same values
        for mean in means:
            name = f"q{mean.q:g}_r{mean.realism:g}"
            known = {f"val/{key}/{name}": value for key, value in mean.metrics.items() if value is not None}
            self.log_dict({**known, f"val/bits_per_pixel/q{mean.q:g}": mean.bits_per_pixel}, **everywhere)
        # One number to compare checkpoints: the rate-distortion loss, averaged over the levels at the lowest r.
        lambda_0 = self.objective.lambda_0
        rd = [
            m.q * (m.bits_per_pixel + lambda_0 / m.q**2 * 10 ** (-m.metrics["psnr"] / 10))
            for m in means
            if m.realism == min(self.realism) and m.metrics["psnr"] is not None
        ]
        if rd:
            self.log("val/rd_loss", sum(rd) / len(rd), prog_bar=True, **everywhere)
        try:
            if self.trainer.is_global_zero:
                self._report(results, means)
        except OSError as error:
            if not fitting:
                raise
            rank_zero_warn(f"the report of this validation could not be written, training goes on: {in_words(error)}")
        self.results, self.features, self.failures, self.grids = [], [], [], []
        if failures:
            self.print(f"{len(failures)} validation images could not be read; the first: {failures[0]}")

    def _report(self, results: list[LevelResult], means: list[LevelResult]) -> None:
        if self.trainer.sanity_checking:
            about: dict[str, Any] = {"step": self.global_step, "checkpoint": str(self.init_from or "")}
            save_json(self.output_dir / "results" / BEFORE, results, means, about)
            return
        step = self.global_step or self.loaded_step
        name = f"val-{step:06d}"
        print_table(means, f"{name}: {len({r.key for r in results})} images, ideal code length")
        path = self.output_dir / "results" / f"{name}.json"
        about = {"step": step, "checkpoint": str(self.trainer.ckpt_path or "")}
        if self.trainer.state.fn == "fit":
            about["trained_on"] = self._trained_on()
        save_json(path, results, means, about)
        self.print(f"written: {path}")
        if self.trainer.state.fn == "fit" and draw_history(path.parent, self.output_dir / HISTORY):
            self.print(f"written: {self.output_dir / HISTORY}")
        if self.grids:
            folder = self.output_dir / "grids"
            widest = max(grid.shape[-1] for _, grid in self.grids)
            rows = [torch.nn.functional.pad(g, (0, widest - g.shape[-1], 0, 4), value=1.0) for _, g in self.grids]
            picture = torch.cat(rows, dim=-2)
            with replacing(folder / f"{name}.png") as temporary:
                to_image(picture).save(temporary, "PNG")
            self.print(f"written: {folder / f'{name}.png'}")
            for logger in self.loggers:
                show_picture(logger, "val/grid", to_image(picture), step)

    def on_fit_end(self) -> None:
        """Print what this run changed, including metrics outside its loss."""
        if self.trainer.is_global_zero and self.before and self.latest is not self.before:
            print_changes(self.before, self.latest, "first validation of this run -> last", self._trained_on())

    def _trained_on(self) -> list[str]:
        """Names of the metrics in the loss."""
        names = [getattr(term, "metric", None) for term in self.objective.terms.values()]
        return [name for name in names if isinstance(name, str)]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure one image at all levels."""
        self._evaluate(batch)


def begin_with(codec: Codec, state: Mapping[str, Tensor], source: str) -> None:
    """Load the parameters of an earlier stage into a codec.

    Raises:
        ConfigError: If they are those of a codec of another architecture; the text names what differs.
    """
    try:
        codec.load_state_dict(state)
    except RuntimeError as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}
        differ = [
            f"{name} is {list(state[name].shape)}, here {list(shape)}"
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != shape
        ]
        differ += [f"{name} is not in the file" for name in shapes if name not in state]
        differ += [f"{name} is only in the file" for name in state if name not in shapes]
        raise ConfigError(
            f"init_from: {source} holds a codec of another architecture than model.codec ({differ[0]}"
            f"{f', and {len(differ) - 1} more' if len(differ) > 1 else ''}): name the config that it was trained with"
        ) from error


def keep_strides(parameter: Tensor) -> None:
    """Give the gradients of a parameter its own strides along axes of size 1, where strides mean nothing.

    The layers choose them freely, and DistributedDataParallel warns and copies when they differ.
    """
    strides = parameter.stride()

    def restride(gradient: Tensor) -> Tensor:
        same = all(n == 1 or a == b for n, a, b in zip(gradient.shape, gradient.stride(), strides, strict=True))
        return gradient.as_strided(gradient.shape, strides) if same else gradient

    if 1 in parameter.shape and parameter.requires_grad:
        parameter.register_hook(restride)  # type: ignore[no-untyped-call]


def show_picture(logger: Any, name: str, picture: Image.Image, step: int) -> None:
    """Pass a picture to a logger that accepts pictures: TensorBoard, W&B and similar ones, MLflow."""
    if callable(take := getattr(logger, "log_image", None)):
        take(key=name, images=[picture], step=step)
        return
    board: Any = getattr(logger, "experiment", None)
    if callable(take := getattr(board, "add_image", None)):
        take(name, to_tensor(picture), step)
    elif callable(take := getattr(board, "log_image", None)):
        take(logger.run_id, picture, key=name.replace("/", "_"), step=step)


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimiser's state the memory layout of the parameters.

    A checkpoint of weights with another layout holds state with that layout. Fused optimisers ignore the strides and
    would silently use the state of one weight for another.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def compiler_problem(device: torch.device) -> str:
    """Say why ``torch.compile`` does not work on a device, by trying; empty if it does."""
    if not hasattr(torch.compiler, "set_stance"):
        return f"it takes PyTorch 2.6, and this is {torch.__version__}"
    number = time.time_ns() % 1_000_003  # a new constant, so that the cache of an earlier compilation is not used
    try:
        torch.compile(lambda x: x + number)(torch.ones(8, device=device))
    except Exception as error:  # compilers and drivers raise many types
        return str(error).strip().splitlines()[0] or type(error).__name__
    return ""
