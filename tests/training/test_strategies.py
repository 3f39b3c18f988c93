"""How training is spread and sped up is configuration: it changes time and memory, not what is learnt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from places import CONFIGS, REPOSITORY, TESTS
from training_runs import DDP, PATIENCE, losses, tiny

from gic.codec.checkpoints import build_codec
from gic.training.cli import make_cli
from gic.training.module import compiler_problem
from gic.training.objective import Objective

BOTH_LOSSES = ["--model.objective.init_args.realism", "[0.0, 1.0]"]
LOSSES = ["--trainer.callbacks", "[{class_path: training_runs.Losses}]"]


def strategy(name: str) -> list[str]:
    return ["--config", str(CONFIGS / "strategies" / f"{name}.yaml")]


def learn(pictures: Path, *more: str, steps: int = 4) -> tuple[list[float], Any]:
    """Losses of a tiny run on both kinds of decoding in this process, and its command line object."""
    if Path("losses").exists():
        Path("losses/rank0").unlink()
    cli = make_cli(tiny(pictures, "--trainer.max_steps", str(steps), *LOSSES, *BOTH_LOSSES, *more))
    return [float.fromhex(loss) for _, loss in losses(Path())], cli


def test_every_stage_trains_on_two_processes_that_look_for_no_unused_parameters(pictures, tmp_path):
    # PyTorch raises in the second step if a parameter that learns had no gradient in the first.
    term = ["--model.objective.init_args.terms", "{coarse: {class_path: terms.CoarseDistance}}"]
    runs = []
    for stage in ("compressor", "reverse", "perceptual", "joint", "adversarial"):
        words = ["fit", "--config", str(CONFIGS / "stages" / f"{stage}.yaml"), *strategy("ddp")]
        words += [*tiny(pictures, *DDP[:2])[3:], "--trainer.strategy.init_args.start_method", "fork"]
        # LPIPS needs weights that are not at hand everywhere; a term of our own stands in for it.
        words += term if stage in ("perceptual", "joint", "adversarial") else []
        words += ["--model.codec.init_args.compressor.init_args.realistic_stages", "2"]
        runs.append([*words, "--trainer.num_sanity_val_steps", "0", *LOSSES])
    script = "import json, sys; from gic.training.cli import make_cli; [make_cli(w) for w in json.load(sys.stdin)]"
    paths = os.pathsep.join([str(REPOSITORY), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths}
    words = [sys.executable, "-c", script]
    done = subprocess.run(
        words, input=json.dumps(runs), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("effective batch: 2 devices x 1 nodes x 2 crops x 1 accumulated = 4 crops") == len(runs)
    for rank in (0, 1):
        assert Counter(step for step, _ in losses(tmp_path, rank)) == dict.fromkeys((1, 2, 3, 4), len(runs))


def test_gathered_batches_make_one_step_and_the_start_says_how_large_it_is(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, cli = learn(pictures, *strategy("accumulate"), "--model.optimizer.init_args.lr", "0.002", steps=2)
    assert len(found) == 8
    assert cli.trainer.global_step == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "effective batch: 1 devices x 1 nodes x 2 crops x 4 accumulated = 8 crops a step" in said
    assert "learning rate 0.002 as set, not scaled with the batch; seed 0" in said


def test_bfloat16_is_close_and_leaves_the_weights_in_float32(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exact, _ = learn(pictures)
    rounded, cli = learn(pictures, *strategy("bf16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.03)
    assert {weights.dtype for weights in cli.model.codec.parameters()} == {torch.float32}


def test_what_is_computed_twice_is_not_kept_and_gives_the_same_gradients(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected, _ = learn(pictures)
    assert learn(pictures, *strategy("checkpointing"))[0] == expected

    settings = yaml.safe_load((CONFIGS / "models" / "base.yaml").read_text())["model"]
    assert settings["activation_checkpointing"]
    options = settings["codec"]["init_args"]["compressor"]["init_args"]
    settings["codec"]["init_args"]["reverse"]["init_args"] |= {"latent_channels": 8, "widths": [8], "blocks": [1]}
    # The prior, whose tensors are kept in either case, is not what this is about: the one that keeps the fewest.
    options |= {"widths": [8, 8, 8, 8], "latent_channels": 8, "hyper_channels": 4, "prior": "gaussian"}
    codec = build_codec(settings["codec"]).train()
    objective = Objective(realism=[0.0, 1.0], steps=2)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def step(twice: bool) -> tuple[int, list[torch.Tensor]]:
        kept: dict[int, torch.UntypedStorage] = {}  # by address; held, so that no address is used again

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        codec.compressor.g_a.checkpointing = codec.compressor.g_s.checkpointing = twice
        codec.zero_grad()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = objective(codec, x)["loss"]
        size = sum(storage.nbytes() for storage in kept.values())
        loss.backward()
        return size, [weights.grad.clone() for weights in codec.parameters()]

    (large, gradients), (small, same) = step(False), step(True)
    assert small < 0.75 * large
    for one, other in zip(gradients, same, strict=True):
        assert torch.equal(one, other)


def test_compiled_networks_learn_the_same_and_validation_is_not_compiled(pictures, tmp_path, monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.chdir(tmp_path)
    expected, _ = learn(pictures)
    # Without code generation, which takes minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    found, cli = learn(pictures, *strategy("compile"))
    assert found == pytest.approx(expected, rel=1e-5)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 5
    cli.trainer.limit_val_batches = 3
    cli.trainer.validate(cli.model, cli.datamodule)
    assert counters["stats"]["unique_graphs"] == graphs
    assert len({result.key for result in cli.model.results} or cli.model.latest) > 0
    torch._dynamo.reset()


def test_without_a_compiler_a_run_says_so_and_goes_on(pictures, tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.chdir(tmp_path)
    expected, _ = learn(pictures, steps=1)
    torch._dynamo.reset()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert "compiler" in compiler_problem(torch.device("cpu"))
        with pytest.warns(UserWarning, match=r"goes on without torch\.compile.*compiler"):
            assert learn(pictures, *strategy("compile"), steps=1)[0] == expected
