"""The project's job scripts on a real SLURM: two nodes work as one job, are interrupted, and go on by themselves."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from places import CONFIGS, REPOSITORY, TESTS
from slurm_cluster import Cluster, missing_programs
from small import CONFIG, small_model
from training_runs import PATIENCE, losses

from gic.benchmark.results import load_results
from gic.codec.checkpoints import save_weights
from gic.data.synthetic import ensure_synthetic_shards

pytestmark = pytest.mark.slurm

STEPS = 300

LOGGER = "[{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: tiny}}]"
CALLBACKS = (
    "[{class_path: gic.training.ema.EMA, init_args: {decay: 0.9}}, "
    "{class_path: gic.training.checkpoint.Checkpoint, init_args: {every_n_steps: 20}}, "
    "{class_path: gic.training.preemption.Preemption, init_args: {every_seconds: 1}}, "
    "{class_path: training_runs.Losses}]"
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if missing := missing_programs():
        pytest.skip(f"SLURM is not installed: there is no {', '.join(missing)} (apt-get install slurm-wlm munge)")
    folder = Path(tempfile.mkdtemp(prefix="gic-slurm-"))  # a socket's path may have a hundred letters and no more
    try:
        with Cluster(folder) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def workplace(tmp_path: Path) -> dict[str, str]:
    """Environment of the jobs; the nodes' names lead nowhere on one machine, so their addresses are given."""
    path = os.pathsep.join([str(REPOSITORY), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return {
        "GIC_PYTHON": f"env PYTHONPATH={path} OMP_NUM_THREADS=1 {sys.executable}",
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def submit(cluster: Cluster, folder: Path, workplace: dict[str, str], *words: str) -> str:
    """Submit a job script with two tasks on two nodes; returns the job's number."""
    options = ["--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=60"]
    return cluster("sbatch", *options, *words, check=True, cwd=folder, **workplace)


def fit_words(*more: str) -> list[str]:
    configs = ["--config", str(CONFIGS / "base.yaml"), "--config", str(TESTS / "tiny.yaml")]
    trainer = ["--trainer.logger", LOGGER, "--trainer.callbacks", CALLBACKS, "--trainer.max_steps", str(STEPS)]
    return [str(REPOSITORY / "slurm" / "fit.sbatch"), *configs, *trainer, "--trainer.val_check_interval", "100", *more]


def test_a_job_on_two_nodes_is_interrupted_requeued_and_resumed(cluster, workplace, tmp_path):
    job = submit(cluster, tmp_path, workplace, *fit_words())
    log = tmp_path / f"slurm-{job}.log"
    run = tmp_path / "runs" / "tiny" / f"job-{job}"

    def text() -> str:
        return log.read_text() if log.exists() else ""

    def going(what):  # with the log as the reason if the job ends too early
        def check():
            assert cluster.state(job) in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), text()[-6000:]
            return what()

        return check

    cluster.wait_for(going(lambda: list(run.glob("checkpoints/step-*.ckpt"))), 2 * PATIENCE)
    cluster("scancel", "--signal=USR1", job, check=True)  # what SLURM sends before the time is up
    cluster.wait_for(going(lambda: "back into the queue" in text()), PATIENCE)
    stopped = [line for line in text().splitlines() if "stopped by SIGUSR1 after step" in line]
    assert len(stopped) == 1
    step = int(stopped[0].split("after step ")[1].split(";")[0])
    assert 20 <= step < STEPS
    saved = torch.load(run / "checkpoints" / f"step-{step:06d}.ckpt", weights_only=True)
    assert saved["ImageData"]["settings"]["world_size"] == 2

    cluster.wait_for(lambda: cluster.state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), 2 * PATIENCE)
    assert cluster.state(job) == "COMPLETED", text()[-6000:]
    assert "start 1: 2 nodes x 1 tasks on node[1-2]" in text()
    assert text().count("effective batch: 1 devices x 2 nodes x 2 crops x 1 accumulated = 4 crops") == 2
    assert f"from the checkpoint path at {run.relative_to(tmp_path)}/checkpoints/step-{step:06d}.ckpt" in text()
    for rank in (0, 1):  # no step was lost, and none was made twice
        assert [number for number, _ in losses(tmp_path, rank)] == list(range(1, STEPS + 1))
    assert len(list(run.glob("events.*"))) == 2
    assert (run / "checkpoints" / "last.ckpt").resolve().name == f"step-{STEPS:06d}.ckpt"
    assert not list(tmp_path.glob("*.requeue"))


def test_a_job_that_cannot_work_says_so_at_once(cluster, workplace, tmp_path):
    jobs = {
        "--ckpt_path": submit(cluster, tmp_path, workplace, *fit_words("--ckpt_path", "last.ckpt")),
        "learning_speed": submit(cluster, tmp_path, workplace, *fit_words("--model.learning_speed", "3")),
    }
    for said, job in jobs.items():
        cluster.wait_for(lambda job=job: cluster.state(job) in ("COMPLETED", "FAILED"), PATIENCE)
        assert cluster.state(job) == "FAILED"
        assert said in (tmp_path / f"slurm-{job}.log").read_text()


def test_an_array_is_as_many_runs(cluster, workplace, tmp_path):
    words = fit_words("--trainer.max_steps", "2", "--seed_everything", "%a", "--trainer.limit_val_batches", "0")
    options = ["--array=3-4", "--nodes=1"]
    job = cluster(
        *["sbatch", "--parsable", *options, "--cpus-per-task=1", "--time=60", *words],
        check=True,
        cwd=tmp_path,
        **workplace,
    )
    cluster.wait_for(lambda: not cluster("squeue", "-h", "-j", job), 2 * PATIENCE)
    for seed in (3, 4):
        run = tmp_path / "runs" / "tiny" / f"job-{job}-{seed}"
        assert f"seed_everything: {seed}" in (run / "config.yaml").read_text()
        assert (run / "checkpoints" / "step-000002.ckpt").exists()


BENCHMARK = """
codecs:
  - class_path: gic.benchmark.codecs.Gic
    init_args: {q: [1.0, 4.0], decodings: [{realism: 0.0}]}
baselines:
  - class_path: gic.benchmark.picture_codecs.Jpeg
    init_args: {qualities: [10, 60]}
metrics: [psnr]
anchor: jpeg
accelerator: cpu
"""


def test_two_nodes_share_the_images_of_a_benchmark_and_the_tasks_of_an_array_have_each_their_own(
    cluster, workplace, tmp_path
):
    ensure_synthetic_shards(tmp_path / "pictures", train=1, val=5, size=(96, 96), progress=False)
    config = tmp_path / "test.yaml"
    config.write_text(f"{BENCHMARK}data: {tmp_path / 'pictures' / 'val-000000.tar'}\n")
    for number in (1, 2):
        save_weights(tmp_path / f"weights-{number}.safetensors", small_model(number).state_dict(), CONFIG)

    def words(task: str) -> list[str]:
        paths = ["--ckpt_path", f"weights-{task}.safetensors", "--output", f"out-{task}", "--cache", f"cache-{task}"]
        return [str(REPOSITORY / "slurm" / "test.sbatch"), "--config", str(config), *paths]

    def finished(job: str) -> str:
        cluster.wait_for(lambda: not cluster("squeue", "-h", "-j", job), 2 * PATIENCE)
        return "\n".join(path.read_text() for path in sorted(tmp_path.glob("slurm-*.log")))

    def means(folder: str) -> dict[tuple[str, str], float | None]:
        assert (tmp_path / folder / "results.json").exists(), log
        results = load_results(tmp_path / folder / "results.json")
        assert len(results.images) == 5
        assert all(len(point.images) == 5 for curve in results.curves for point in curve.points)
        return {(c.name, p.setting): p.mean("psnr") for c in results.curves for p in c.points}

    log = finished(submit(cluster, tmp_path, workplace, "--nodes=1", "--array=1-2", *words("%a")))
    alone, other = means("out-1"), means("out-2")
    assert alone.keys() == other.keys()
    assert {curve for curve, setting in alone if alone[curve, setting] != other[curve, setting]} == {"gic r=0"}

    (tmp_path / "weights-1.safetensors").rename(tmp_path / "weights-both.safetensors")
    log = finished(submit(cluster, tmp_path, workplace, *words("both")))
    assert "Starting with 2 processes" in log
    assert means("out-both") == pytest.approx(alone, abs=1e-6)
