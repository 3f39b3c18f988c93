"""What a GPU must do as the CPU does: training, averages, restarts, files; and that nothing waits for it.

``pytest -m gpu`` is meant to take less than three minutes on one GPU. ``GIC_TEST_DEVICE=cpu pytest -m gpu`` walks
through what can be walked through without one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import CONFIGS, TESTS
from small import picture
from training_runs import losses, tiny
from waits import run_quietly

import gic
from gic.codec.decoder import decode_symbols
from gic.codec.tiling import tiles_of
from gic.training.cli import make_cli
from gic.training.ema import EMA

pytestmark = pytest.mark.gpu

STAGES = ("compressor", "reverse", "perceptual", "joint")
STEPS = 20


@pytest.fixture(scope="session")
def device() -> str:
    """The device under test."""
    name = os.environ.get("GIC_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device (GIC_TEST_DEVICE=cpu walks through the tests without)")
    return name


@contextmanager
def noise_of_the_host() -> Iterator[None]:
    """Random numbers are drawn on the CPU wherever they are used, so that runs on two devices draw the same."""
    rand, rand_like = torch.rand, torch.rand_like

    def drawn(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return rand(*size, **options).to(device or "cpu")

    def drawn_like(like: torch.Tensor) -> torch.Tensor:
        return rand(like.shape, dtype=like.dtype).to(like.device)

    patch = pytest.MonkeyPatch()
    patch.setattr(torch, "rand", drawn)
    patch.setattr(torch, "rand_like", drawn_like)
    try:
        yield
    finally:
        patch.undo()
        assert (torch.rand, torch.rand_like) == (rand, rand_like)


def words_of(stage: str, pictures: Path, device: str, *more: str) -> list[str]:
    """Command line of a tiny run of a stage."""
    words = ["fit", "--config", str(CONFIGS / "stages" / f"{stage}.yaml"), *tiny(pictures)[3:]]
    words += ["--trainer.accelerator", "cpu" if device == "cpu" else "gpu", "--trainer.num_sanity_val_steps", "0"]
    words += ["--model.codec.init_args.compressor.init_args.realistic_stages", "2", "--data.cuda_batch_size", "2"]
    words += ["--data.batches_per_epoch", "100", "--trainer.max_steps", str(STEPS)]
    if stage in ("perceptual", "joint"):  # LPIPS needs weights that are not at hand everywhere
        words += ["--model.objective.init_args.terms", "{coarse: {class_path: terms.CoarseDistance}}"]
    return [*words, *more]


CALLBACKS = ["--trainer.callbacks", "[{class_path: training_runs.Losses}, {class_path: gic.training.ema.EMA}]"]


@pytest.fixture(scope="session")
def learn(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[float, ...]]:
    """Losses of twenty steps of a stage on a device."""

    @cache
    def run(stage: str, device: str, *more: str) -> tuple[float, ...]:
        patch = pytest.MonkeyPatch()
        folder = tmp_path_factory.mktemp("run")
        patch.chdir(folder)
        patch.syspath_prepend(str(TESTS))
        if device == "cpu" and "--model.compile" in more:  # without code generation, which takes minutes there
            patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        try:
            with noise_of_the_host():
                make_cli(words_of(stage, pictures, device, *CALLBACKS, *more))
        finally:
            patch.undo()
        return tuple(float.fromhex(loss) for _, loss in losses(folder))

    return run


def agree(found: tuple[float, ...], expected: tuple[float, ...], share: float) -> None:
    """Losses of the same batches: each near the other, and the sums nearer."""
    assert len(found) == len(expected) == STEPS
    assert torch.isfinite(torch.tensor(found)).all()
    assert found == pytest.approx(expected, rel=4 * share)
    assert sum(found) == pytest.approx(sum(expected), rel=share)


@pytest.mark.parametrize("autocast", ["off", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_as_on_the_cpu(stage: str, autocast: str, device: str, learn: Any) -> None:
    expected = learn(stage, "cpu", "--model.autocast", "off")
    # float32 convolutions may be computed with TF32's 10 bits, bfloat16 has 8; a symbol that is rounded to its
    # neighbour for it changes a loss by more than its last bits.
    agree(learn(stage, device, "--model.autocast", autocast), expected, 0.01 if autocast == "off" else 0.03)


@pytest.mark.parametrize("stage", ["compressor", "perceptual"])
def test_compiled_networks_learn_the_same(stage: str, device: str, learn: Any) -> None:
    torch._dynamo.reset()
    expected = learn(stage, "cpu", "--model.autocast", "off")
    agree(learn(stage, device, "--model.autocast", "bfloat16", "--model.compile", "true"), expected, 0.03)
    torch._dynamo.reset()


@pytest.mark.parametrize("stage", STAGES)
def test_between_logging_intervals_nothing_waits(
    stage: str, device: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_quietly(words_of(stage, pictures, device), monkeypatch)


def test_the_average_lies_on_the_device_and_a_run_goes_on(
    device: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saver = "{class_path: gic.training.checkpoint.Checkpoint, init_args: {dirpath: ckpt, every_n_steps: 10}}"
    callbacks = ["--trainer.callbacks", f"[{CALLBACKS[1][1:-1]}, {saver}]"]
    words = words_of("joint", pictures, device, "--model.autocast", "off", *callbacks)
    with noise_of_the_host():
        cli = make_cli(words)
        whole = losses(tmp_path)
        (average,) = (each._average_model for each in cli.trainer.callbacks if isinstance(each, EMA))
        assert {p.device.type for p in average.module.parameters()} == {device}
        assert average.n_averaged.device.type == "cpu" and average.n_averaged == STEPS
        Path("ckpt/step-000020.ckpt").unlink()
        Path("losses/rank0").unlink()
        resumed = make_cli([*words, "--ckpt_path", "ckpt/step-000010.ckpt"])
    again = losses(tmp_path)
    assert [step for step, _ in again] == [step for step, _ in whole[10:]]
    expected = [float.fromhex(loss) for _, loss in whole[10:]]
    # The same but for the order of sums, which a GPU does not keep.
    assert [float.fromhex(loss) for _, loss in again] == pytest.approx(expected, rel=0.02)
    for name, tensor in cli.model.codec.state_dict().items():
        assert torch.allclose(tensor.cpu(), resumed.model.codec.state_dict()[name].cpu(), atol=2e-3), name


@pytest.mark.parametrize("quantizer", ["round", "dither"])
def test_files_of_one_device_are_read_on_the_other(quantizer: Any, device: str) -> None:
    codecs = [gic.load(device=name) for name in ("cpu", device)]
    for number, kind in enumerate(("smooth", "edges", "noise")):
        pixels = picture(200, 130, kind, salt=number)
        for maker in codecs:
            data = maker.compress(pixels, q=3.0 + number, quantizer=quantizer, seed=number)
            symbols, decoded = [], []
            for reader in codecs:
                file = reader.open(data)
                (place,) = tiles_of(file.width, file.height, file.tile)
                symbols.append(decode_symbols(reader, file, 0, place))
                decoded.append(reader.decompress_tensor(data, realism=1.0).int())
            for one, other in zip(*symbols, strict=True):
                parts = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
                assert all(np.array_equal(a, b) for a, b in parts)
            # Convolutions with TF32 keep 10 bits: at most two grey levels, and seldom one.
            difference = (decoded[0] - decoded[1]).abs()
            assert int(difference.max()) <= 2 and float(difference.float().mean()) < 0.1
