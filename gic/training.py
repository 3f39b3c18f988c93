"""Training and validation under Lightning: thin wrappers around :mod:`gic.model` and :mod:`gic.losses`."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import RichProgressBar, WeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from gic.data import TrainLoader
from gic.errors import ConfigError, DataError, GicError
from gic.evaluation import (
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
from gic.images import to_image
from gic.losses import Objective
from gic.model import Codec, parameter_counts, trainable_parameters
from gic.resume import CheckpointError, WholeFiles, newest_first
from gic.runs import logger_folder, run_folder, time_budget

if TYPE_CHECKING:
    from gic.benchmark.metrics import ImageMetric, SetMetric


class NonFiniteLossError(GicError, ArithmeticError):
    """The loss became NaN or infinite; the text names the batch and where it was saved."""


class WarmupCosine:
    """Learning-rate schedule: linear warm-up, then a half cosine down to a floor over the whole run.

    The length of a run that goes by the clock (``trainer.max_time``) is its time, and the cosine follows the share of
    it that is used; the warm-up has its steps in either case.

    Args:
        warmup_steps: Optimiser steps of the warm-up.
        final: Learning rate at the end, relative to the optimiser's; 1 is a constant rate.
        total_steps: Steps at which the floor is reached; the length of the run if left out.
    """

    def __init__(self, warmup_steps: int = 100, final: float = 0.05, total_steps: int | None = None) -> None:
        if warmup_steps < 0 or not 0 <= final <= 1:
            raise ConfigError("warmup_steps must not be negative and final must lie in [0, 1]")
        self.warmup_steps = warmup_steps
        self.final = final
        self.total_steps = total_steps

    def factor(self, step: int, run_steps: int, time_used: float = 0.0) -> float:
        """Learning rate at an optimiser step, relative to the optimiser's, in (0, 1].

        Args:
            step: Optimiser steps done.
            run_steps: Steps of the whole run.
            time_used: Share of its time that a run by the clock has used, in [0, 1]. The run ends by steps or by the
                clock, whichever comes first, and so does the cosine.

        >>> [round(WarmupCosine(2, 0.0).factor(step, 6), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
        >>> [round(WarmupCosine(2, 0.0).factor(step, 10**9, step / 6), 3) for step in range(7)]
        [0.5, 0.933, 0.75, 0.5, 0.25, 0.067, 0.0]
        """
        warmth = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        total = max(self.total_steps or run_steps, self.warmup_steps + 1)
        progress = min(1.0, max(0, step - self.warmup_steps) / (total - self.warmup_steps))
        progress = max(progress, time_used)
        return warmth * (self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2)


class LossWatch:
    """Remembers the first batch whose loss was not finite, on the device itself: noting a step waits for nothing."""

    def __init__(self) -> None:
        self._steps: list[tuple[list[str], tuple[int, int]]] = []  # since the last look: keys, step and batch
        self._names: list[str] = []
        self._seen: Tensor | None = None  # whether one was found
        self._place: Tensor | None = None  # which of the steps
        self._images: Tensor | None = None
        self._parts: Tensor | None = None
        self._found: tuple[Tensor, dict[str, float], list[str], tuple[int, int]] | None = None

    @torch.no_grad()
    def note(self, loss: Tensor, parts: dict[str, Tensor], batch: dict[str, Any], where: tuple[int, int]) -> None:
        """Note a step.

        Args:
            loss: Its loss, a single number.
            parts: Parts of the loss, single numbers.
            batch: With ``image`` (B, 3, h, w) and, if known, ``key``.
            where: Number of the step and of the batch.
        """
        images, numbers = batch["image"], torch.stack([part.float() for part in parts.values()])
        if self._images is not None and self._images.shape != images.shape:
            self._found = self.look()  # batches of another size are rare enough to wait for
        place, bad = len(self._steps), ~torch.isfinite(loss)
        self._steps.append((list(batch.get("key", [])), where))
        self._names = list(parts)
        if self._seen is None:
            self._seen, self._place = bad, torch.full_like(bad, place, dtype=torch.long)
            self._images, self._parts = images, numbers
            return
        assert self._place is not None and self._images is not None and self._parts is not None
        first = bad & ~self._seen
        self._place = torch.where(first, place, self._place)
        self._images = torch.where(first, images, self._images)
        self._parts = torch.where(first, numbers, self._parts)
        self._seen = self._seen | bad

    def look(self) -> tuple[Tensor, dict[str, float], list[str], tuple[int, int]] | None:
        """Images, parts, keys, step and batch of the first loss since the last look that was not finite, or None."""
        found, self._found = self._found, None
        if found is None and self._seen is not None and bool(self._seen):
            assert self._place is not None and self._images is not None and self._parts is not None
            keys, where = self._steps[int(self._place)]
            found = self._images, dict(zip(self._names, self._parts.tolist(), strict=True)), keys, where
        self._steps, self._seen, self._images = [], None, None
        return found


class LitCodec(L.LightningModule):
    """Trains a codec with an objective; validates it at several levels.

    Args:
        codec: The model.
        objective: The loss of this stage.
        optimizer: Optimiser, given the parameters that learn.
        schedule: Learning-rate schedule, per optimiser step.
        trainable: Dotted names of the codec's modules that learn in this stage; ``[""]`` is all of it.
        learning_rates: Learning rates of modules that have one of their own, by dotted name, for example
            ``{reverse: 1.0e-3}``; the schedule holds for them too.
        init_from: Checkpoint or weights file whose codec this stage starts from, ``shipped`` for the weights that come
            with the package; resuming a run is ``--ckpt_path`` instead.
        levels: Levels q at which validation measures.
        realism: Values of r at which it measures.
        metrics: What it measures, by the names of ``gic weights``; better not only what the objective holds, so that a
            codec that games its own loss is found out (:func:`gic.evaluation.gaming`). FID and KID compare the patches
            of all images at each level and realism.
        autocast: ``auto`` runs the transforms in bfloat16 on GPUs that have it, ``bfloat16`` on any device; ``off``
            stays in float32.
        compile: Translate the networks with ``torch.compile`` for training, where that works; a warning says so where
            it does not. The first steps take minutes.
        activation_checkpointing: Compute what is inside of the transforms' blocks a second time for the gradient
            instead of keeping it: less memory, more time, the same gradient.
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
        levels: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0),
        realism: Sequence[float] = (0.0, 1.0),
        metrics: Sequence[str] = ("psnr", "ms_ssim"),
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
        self.levels = [codec.check_level(q) for q in levels]
        self.realism = list(realism)
        self.metrics = list(metrics)
        self.autocast = autocast
        self.compiled = compile
        codec.compressor.g_a.checkpointing = codec.compressor.g_s.checkpointing = activation_checkpointing
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
        self._adversarial_state: dict[str, Any] | None = None  # of a checkpoint, until the run begins

    @property
    def objective(self) -> Objective:
        """The loss of this stage."""
        return self._objective[0]

    def __getstate__(self) -> dict[str, Any]:
        """What a copy holds, and the running average is one: the parameters, not the trainer, optimiser or metrics."""
        without = dict.fromkeys(("_trainer", "make_optimizer", "_objective", "_metric_objects", "_adversarial_state"))
        return {**self.__dict__, **without, "_watch": LossWatch()}

    # --- training -----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Start from the checkpoint of an earlier stage, unless a run is being resumed."""
        self.output_dir = run_folder(self.trainer)  # asked for here, by all ranks
        if stage == "fit" and self.init_from is not None:
            from gic.checkpoint import load_codec_state
            from gic.loading import shipped_weights

            start = shipped_weights() if self.init_from == "shipped" else self.init_from
            self.codec.load_state_dict(load_codec_state(start))
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
        run_steps = int(min(self.trainer.estimated_stepping_batches, 2**62))
        budget = time_budget(self.trainer)

        def factor(step: int) -> float:
            return self.schedule.factor(step, run_steps, budget.progress(step) if budget else 0.0)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(self) -> list[Any]:
        """Parameters that learn, apart where they have a learning rate of their own; the longest name decides."""
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
        """Step the decoder, then its judge: steps of the run are the decoder's, as without one."""
        super().optimizer_step(*arguments, **settings)
        if self.objective.adversarial is not None:
            group = self.trainer.optimizers[0].param_groups[0]
            self.objective.adversarial.step(group["lr"] / group["initial_lr"], self.trainer.gradient_clip_val)

    def on_fit_start(self) -> None:
        """Have the loss's networks where the model is, and the discriminator as the checkpoint holds it."""
        self.objective.to(self.device)
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
        """Say how many crops make one step, and with which learning rate: both are the user's to choose."""
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
        """Have the networks translated at their first call, if that is possible on this machine."""
        problem = compiler_problem(self.trainer.strategy.root_device)
        self.compiled = not problem
        if problem:
            rank_zero_warn(f"training goes on without torch.compile, which does not work here: {problem}")
            return
        parts = self.codec.compressor
        for network in (parts.g_a, parts.g_s, parts.h_a, parts.h_s, self.codec.reverse):
            network.compile()

    def _as_written(self) -> AbstractContextManager[Any]:
        """No translation: every validation image would need one for its size."""
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
        if self.device.type == "cpu":  # where a look costs nothing
            self._stop_if_not_finite()
        # Not for the progress bar, whose values Lightning reads after each step: gic.training.ProgressBar takes them.
        self.log("train/loss", loss.detach(), batch_size=len(x))
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(x))
        for reason, count in batch.get("skipped", {}).items():
            self.skipped[reason] = self.skipped.get(reason, 0) + count
        return loss

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seed levels and noise from the batch's place among all, alike after a restart and for any number of ranks."""
        number = batch_idx * self.trainer.world_size + self.global_rank
        place = (int(os.environ.get("PL_GLOBAL_SEED", 0)), self.current_epoch, number)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def _stop_if_not_finite(self) -> None:
        """End the run if the loss of a step since the last look was not finite; waits for the GPU."""
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
        """Save nothing that a loss which was not finite has spoilt; the discriminator lies beside the model."""
        self._stop_if_not_finite()
        if self.objective.adversarial is not None:
            checkpoint["adversarial"] = self.objective.adversarial.to_save()

    def on_validation_start(self) -> None:
        """Measure no such weights either."""
        self._stop_if_not_finite()

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
        """Remember which step the weights are of, for the names of reports."""
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
        """Items of all ranks, in an order that does not depend on how they were shared out."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            lists: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(lists, items)
            items = [item for part in lists for item in part]
        return sorted(items, key=order)

    def _judges(self) -> tuple[list[ImageMetric], list[SetMetric]]:
        """The metrics, made at first use; those that cannot be had are named once."""
        if self._metric_objects is None:
            from gic.benchmark.metrics import make_metrics

            images, sets, missing = make_metrics(self.metrics, None, str(self.device))
            self._metric_objects = images, sets
            for name, reason in missing.items():
                self.print(f"not computed: {name}: {reason}")
        return self._metric_objects

    def on_validation_epoch_end(self) -> None:
        """Gather, log, print and save what validation measured."""
        results = self._gather(self.results)
        failures = self._gather(self.failures)
        features = self._gather(self.features, lambda image: image.key)  # on every rank, with images or without
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
        self.before = self.before or means
        self.latest = means
        for mean in means:
            name = f"q{mean.q:g}_r{mean.realism:g}"
            known = {f"val/{key}/{name}": value for key, value in mean.metrics.items() if value is not None}
            self.log_dict({**known, f"val/bits_per_pixel/q{mean.q:g}": mean.bits_per_pixel}, batch_size=1)
        # One number to choose checkpoints by: the rate-distortion loss, averaged over the levels at the lowest r.
        lambda_0 = self.objective.lambda_0
        rd = [
            m.q * (m.bits_per_pixel + lambda_0 / m.q**2 * 10 ** (-m.metrics["psnr"] / 10))
            for m in means
            if m.realism == min(self.realism) and m.metrics["psnr"] is not None
        ]
        if rd:
            self.log("val/rd_loss", sum(rd) / len(rd), prog_bar=True, batch_size=1)
        if self.trainer.is_global_zero and self.trainer.sanity_checking:
            about = {"step": self.global_step, "checkpoint": str(self.init_from or "")}
            save_json(self.output_dir / "results" / BEFORE, results, means, about)
        elif self.trainer.is_global_zero:
            self._report(results, means)
        self.results, self.features, self.failures, self.grids = [], [], [], []
        if failures:
            self.print(f"{len(failures)} validation images could not be read; the first: {failures[0]}")

    def _report(self, results: list[LevelResult], means: list[LevelResult]) -> None:
        step = self.global_step or self.loaded_step
        name = f"val-{step:06d}"
        print_table(means, f"{name}: {len({r.key for r in results})} images, ideal code length")
        path = self.output_dir / "results" / f"{name}.json"
        about: dict[str, Any] = {"step": step, "checkpoint": str(self.trainer.ckpt_path or "")}
        if self.trainer.state.fn == "fit":
            about["trained_on"] = self._trained_on()
        save_json(path, results, means, about)
        self.print(f"written: {path}")
        if self.grids:
            folder = self.output_dir / "grids"
            folder.mkdir(parents=True, exist_ok=True)
            widest = max(grid.shape[-1] for _, grid in self.grids)
            rows = [torch.nn.functional.pad(g, (0, widest - g.shape[-1], 0, 4), value=1.0) for _, g in self.grids]
            picture = torch.cat(rows, dim=-2)
            to_image(picture).save(folder / f"{name}.png")
            self.print(f"written: {folder / f'{name}.png'}")
            board: Any = getattr(self.logger, "experiment", None)
            if hasattr(board, "add_image"):
                board.add_image("val/grid", picture.clamp(0, 1), step)

    def on_fit_end(self) -> None:
        """Show what this run changed, metrics that were not in its loss included."""
        if self.trainer.is_global_zero and self.before and self.latest is not self.before:
            print_changes(self.before, self.latest, "first validation of this run -> last", self._trained_on())

    def _trained_on(self) -> list[str]:
        """Names of the metrics that the loss holds."""
        names = [getattr(term, "metric", None) for term in self.objective.terms.values()]
        return [name for name in names if isinstance(name, str)]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure one image at all levels."""
        self._evaluate(batch)


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay out an optimiser's state in memory as the parameters are.

    A checkpoint of weights that lay otherwise brings state that does; fused optimisers walk through both side by side
    without a look at the strides, and would silently take the state of one weight for another's.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def compiler_problem(device: torch.device) -> str:
    """Say why ``torch.compile`` does not work on a device, by trying; empty if it does."""
    if not hasattr(torch.compiler, "set_stance"):
        return f"it takes PyTorch 2.6, and this is {torch.__version__}"
    number = time.time_ns() % 1_000_003  # never seen before, or files of an earlier compilation might do
    try:
        torch.compile(lambda x: x + number)(torch.ones(8, device=device))
    except Exception as error:  # compilers, their drivers and their files have many ways to fail
        return str(error).strip().splitlines()[0] or type(error).__name__
    return ""


class Checkpoint(callbacks.Checkpoint):
    """Checkpoints every so many steps and at the last step of the run; ``last.ckpt`` is a link to the newest.

    A checkpoint is written whole or not at all, and an older one goes only when a newer one is safe. When a file cannot
    be written, for want of space above all, the run goes on with a warning; only the last step's is an error.

    Files that this run did not write are left alone: a folder that already holds checkpoints is refused, unless the run
    goes on from one of them.

    Args:
        every_n_steps: Optimiser steps between checkpoints, at least 1.
        keep: Number of the newest checkpoints kept, at least 1; with 2, there is one to go back to if the newest is
            damaged.
        dirpath: Folder; by default ``checkpoints`` in the run's folder.
        every_minutes: Minutes between checkpoints of a run by the clock, instead of steps; None counts steps there too.
        export: Weights file (``.safetensors``) to write beside each checkpoint, for ``gic compress``; a name without
            folders lies in the run's folder. None writes none.

    Attributes:
        newest: The newest checkpoint that this process has written; None before the first, and on ranks but the first.

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
    ) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ConfigError(f"every_n_steps and keep must be at least 1, not {every_n_steps} and {keep}")
        if every_minutes is not None and not 0 < every_minutes < math.inf:
            raise ConfigError(f"every_minutes must be positive, not {every_minutes}")
        if export is not None and not export.endswith(".safetensors"):
            raise ConfigError(f"export must name a file that ends in .safetensors, not {export}")
        self.every_minutes = every_minutes
        self.export = export
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.dirpath = dirpath
        self.newest: Path | None = None
        self._folder = Path()
        self._files = WholeFiles()
        self._saved_step = -1
        self._step = -1  # the last one seen
        self._saved_at = 0.0  # seconds of the run's time
        self._written: list[str] = []  # names of files that this run wrote, the newest last

    @property
    def problem(self) -> str:
        """Why the last checkpoint could not be written; empty if it was."""
        return self._files.problem

    def named_folder(self, trainer: L.Trainer) -> Path | None:
        """Where checkpoints will lie as far as settings and logger say, before the ranks have settled it."""
        if self.dirpath:
            return Path(self.dirpath)
        folder = logger_folder(trainer)
        return None if folder is None else folder / "checkpoints"

    def folder(self, trainer: L.Trainer) -> Path:
        """Where the checkpoints of the trainer's run lie; to be asked on all ranks."""
        return Path(self.dirpath) if self.dirpath else run_folder(trainer) / "checkpoints"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle the folder, and how its files are written and read."""
        if stage != "fit":
            return
        self._folder = self.folder(trainer)
        trainer.strategy.checkpoint_io = self._files

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at where the run begins, which Lightning tells nobody before it has read the file.

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
            for part in self._folder.glob(".*.ckpt.*.part"):  # of a process that ended while it wrote
                part.unlink()

    @staticmethod
    def refusal(folder: Path, start: Path | None) -> str:
        """Why a run that begins at a checkpoint, or anew, must not save in a folder; empty if it may."""
        if (start is not None and start.resolve().parent == folder.resolve()) or not newest_first(folder):
            return ""
        return (
            f"{folder} holds the checkpoints of another run: --ckpt_path {folder} goes on with it; for a new one name "
            "another folder, or move these away"
        )

    def state_dict(self) -> dict[str, Any]:
        """Names of the files that this run wrote, so that it may delete them when it goes on."""
        return {"written": list(self._written)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the files over if they lie in this run's folder."""
        read = self._files.read
        if read is not None and read.resolve().parent == self._folder.resolve():
            names = state_dict.get("written", [])
            self._written = [name for name in names if re.fullmatch(r"step-\d+\.ckpt", str(name))]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where the run begins: what a checkpoint holds of this step is there already."""
        self._step = trainer.global_step
        if budget := time_budget(trainer):
            self._saved_at = budget.used(self._step)

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Save when it is due, and at the last step."""
        step = trainer.global_step
        if step == self._step:
            return  # gradients are still being gathered, and are not part of a checkpoint
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

    def save(self, trainer: L.Trainer) -> None:
        """Save the run at its present step, unless that is done; to be called on all ranks."""
        if trainer.global_step == self._saved_step or getattr(trainer, "fast_dev_run", False):
            return
        path = self._folder / f"step-{trainer.global_step:06d}.ckpt"
        began, before = time.monotonic(), list(self._written)
        self._written = [*(name for name in before if name != path.name), path.name]
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
        if self.export is not None:
            codec: Any = trainer.lightning_module.codec
            packages = {type(each).__module__.partition(".")[0] for each in (codec, *codec.children())}
            self._export(path, sorted(packages))

    def _export(self, path: Path, trust: list[str]) -> None:
        from gic.checkpoint import export_checkpoint

        assert self.export is not None
        output = self._folder.parent / self.export if Path(self.export).name == self.export else Path(self.export)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            export_checkpoint(path, output, trust=trust)
        except (OSError, ConfigError) as error:
            rank_zero_warn(f"the checkpoint {path} is safe, but {output} could not be written: {error}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the newest checkpoint is.

        Raises:
            CheckpointError: If the last one could not be written.
        """
        self._tell(trainer)
        if self.problem:
            raise CheckpointError(
                f"the last checkpoint of the run could not be written: {self.problem}; make room and go on "
                f"from the one before: --ckpt_path {self.newest}"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say from where the run can go on."""
        self._tell(trainer)

    def _tell(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self.newest:
            print(f"checkpoint: {self.newest}", flush=True)


class EMA(WeightAveraging):
    """Exponential moving average of the weights: validated, and saved as the checkpoint's ``state_dict``.

    After n steps the share of the old average that is kept is ``min(decay, (1 + n) / (10 + n))``, so that the average
    of a short run is not that of its first, random weights. The average lies on the model's device, and its count on
    the host, so that an update is a few kernels and waits for nothing.

    Args:
        decay: Share kept in the long run, in [0, 1); the average's memory is about ``1 / (1 - decay)`` steps.

    Raises:
        ConfigError: If ``decay`` lies outside its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"the decay of the average must lie in [0, 1), not {decay}")
        self.decay = decay
        super().__init__()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the model to its device: the copy was made on the CPU, and before ``init_from`` was read."""
        average = self._average_model
        assert average is not None
        count = average.n_averaged.cpu()
        average.to(pl_module.device)
        average.n_averaged = count
        if count == 0:
            average.module.load_state_dict(pl_module.state_dict())

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        """Move the average after an optimiser step."""
        if trainer.global_step <= self._latest_update_step:
            return
        self._latest_update_step = trainer.global_step
        average = self._average_model
        assert average is not None
        pairs = zip(average.module.parameters(), pl_module.parameters(), strict=True)
        old, new = zip(*((a, p) for a, p in pairs if p.requires_grad), strict=True)  # the others stay what they are
        count = int(average.n_averaged)
        kept = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        torch._foreach_lerp_(list(old), list(new), 1 - kept)
        average.n_averaged += 1


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar without the version number; where nobody watches, lines for the log.

    When the output goes to a file, ``log_every_n_steps`` decides how often a line tells step, speed and loss.
    """

    _told = 0
    _beside: dict[str, Any] | None = None  # metrics as they were last shown

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Move the bar, or print a line."""
        super().on_train_batch_end(trainer, pl_module, *args)
        step = trainer.global_step
        quiet = sys.stdout.isatty() or not trainer.is_global_zero
        if quiet or not self._is_due(trainer) or step == self._told:
            return
        self._told = step
        metrics = trainer.logged_metrics  # waits for the GPU
        parts = {name.removeprefix("train/"): float(metrics[name]) for name in metrics if "train/" in name}
        # A perceptual term that no sample of the batch has is not a number.
        values = [f"{name} {value:.4g}" for name, value in parts.items() if name == "loss" or not math.isnan(value)]
        total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        budget = time_budget(trainer)
        share = f" ({budget.progress(step):.0%} of the time)" if budget else ""
        speed = f"{float(metrics['images_per_second']):.3g} images/s" if "images_per_second" in metrics else ""
        print(", ".join([f"step {step}{total}{share}", *([speed] if speed else []), *values]), flush=True)

    @property
    def sanity_check_description(self) -> str:
        """What stands beside the bar of a validation before the first step."""
        return "Validation before the first step"

    @staticmethod
    def _is_due(trainer: L.Trainer) -> bool:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return trainer.global_step % max(1, every) == 0

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Metrics beside the bar, as they were at the last logging interval: to read them waits for the GPU."""
        if self._beside is None or not trainer.training or self._is_due(trainer):
            logged = trainer.logged_metrics if trainer.training else {}
            self._beside = dict(super().get_metrics(trainer, pl_module))
            self._beside.pop("v_num", None)
            for name in ("train/loss", "images_per_second"):
                if name in logged:
                    self._beside[name] = float(logged[name])
        return dict(self._beside)
