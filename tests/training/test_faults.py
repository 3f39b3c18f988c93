"""What breaks in long runs, broken on purpose: it ends in recovery or in one clear error, and no checkpoint is lost."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_files import every_key, keys, stream, write_shards
from torch.utils.data import DataLoader
from training_runs import DDP, KILL, PATIENCE, callback_words, children, finish, losses, start, tiny, wait_for

from gic.data.module import TrainLoader, WorkerDiedError, Workers
from gic.data.plan import Part
from gic.data.reading import WHOLE_SHARD, read_shard
from gic.data.remote import Remote, RemoteFile, cached
from gic.data.stream import EvalImages
from gic.errors import ConfigError, DataError
from gic.training.cli import make_cli
from gic.training.resume import (
    AtomicCheckpointIO,
    CheckpointError,
    damage,
    named_checkpoint,
    newest_first,
    newest_whole,
)

HASTY = Remote(timeout=0.5, retries=3, backoff=0.01)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*trying again in"),
]


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Ends a test that hangs."""

    def hangs(*_: Any) -> None:
        raise AssertionError(f"the test hangs: it is not over after {2 * PATIENCE} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(2 * PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Shards over the network


class FaultyServer(http.server.ThreadingHTTPServer):
    """Serves the files of a folder, and what goes wrong with its next requests can be set.

    Attributes:
        faults: One for each request to come, then none: a status code, or what happens in the middle of the body.
        ranges: Whether requests for a part are honoured.
        requests: Path and range of every request so far.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: list[int | str] = []
        self.ranges = True
        self.requests: list[tuple[str, str]] = []
        self.over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, *_: Any) -> None:  # connections that break are what this is about
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    server: FaultyServer

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.requests.append((self.path, wanted))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        path = self.server.folder / self.path.lstrip("/").partition("?")[0]
        if isinstance(fault, int) or not path.is_file():
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        body = path.read_bytes()
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if begin:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        rest = body[begin:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[:3000] if fault else rest)
        self.wfile.flush()
        if fault == "stall":
            self.server.over.wait(60)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            assert fault in ("", "cut")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "served").mkdir()
    server = FaultyServer(tmp_path / "served")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def shard_names(server: FaultyServer, counts: list[int]) -> list[str]:
    return [server.url(Path(path).name) for path in write_shards(server.folder, counts)]


TRANSIENT = [503, 429, "stall", "reset", "cut"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_costs_no_sample(server: FaultyServer, fault: Any, ranges: bool) -> None:
    (url,) = shard_names(server, [9])
    server.ranges, server.faults = ranges, [fault, fault]
    with pytest.warns(UserWarning, match=r"trying again in 0\.0\d s \(2 of 3\)"):
        raws = list(read_shard(url, WHOLE_SHARD, HASTY))
    assert [raw.key for raw in raws] == every_key([9])
    whole = list(read_shard(str(server.folder / "train-000000.tar")))
    assert [raw.data for raw in raws] == [raw.data for raw in whole]
    assert len(server.requests) == 3
    begun = [int(wanted[len("bytes=") : -1]) for _, wanted in server.requests if wanted]
    if isinstance(fault, int):
        assert begun == []
    else:
        assert begun == ([3000, 6000] if ranges else [3000, 3000])


@pytest.mark.parametrize("fault", [404, 403, 410])
def test_a_shard_that_is_not_there_is_not_asked_for_again(server: FaultyServer, fault: int) -> None:
    (url,) = shard_names(server, [3])
    server.faults = [fault]
    (failed,) = read_shard(url, WHOLE_SHARD, HASTY)
    assert failed.problem == "unreadable_shard"
    assert url in failed.name
    assert f"HTTP status {fault}" in failed.name
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_that_stays_is_given_up_and_named(server: FaultyServer, fault: Any) -> None:
    (url,) = shard_names(server, [9])
    server.faults = 50 * [fault]
    *good, failed = read_shard(url, WHOLE_SHARD, HASTY)
    assert failed.problem == ("unreadable_shard" if isinstance(fault, int) else "damaged_shard")
    assert "tried 4 times" in failed.name
    assert len(server.requests) == 4
    assert {raw.key for raw in good if not raw.problem} <= set(every_key([9]))


def test_a_server_that_is_not_there_is_an_error_that_names_it(server: FaultyServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar"
    with pytest.raises(DataError, match=r"no training sample .*a\.tar.*refused"):
        list(TrainLoader(stream([url], remote=HASTY)))


def test_a_shard_that_changes_while_it_is_read_is_not_mixed(server: FaultyServer) -> None:
    (url,) = shard_names(server, [9])
    server.faults = ["cut"]
    file = RemoteFile(url, HASTY)
    file.read(1000)
    shutil.copy(write_shards(server.folder / "other", [12])[0], server.folder / "train-000000.tar")
    with pytest.raises(OSError, match="length changed"):
        while file.read(1 << 20):
            pass


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_the_network_counts_what_it_passes_over(server: FaultyServer, workers: int) -> None:
    shards = shard_names(server, [4] * 8)
    (server.folder / "train-000003.tar").unlink()
    server.faults = ["reset", "stall", 503, "cut"]
    remote = Remote(timeout=0.5, retries=5, backoff=0.01)
    settings = {"batch_size": 4, "batches_per_epoch": 30, "max_bad_fraction": 0.3}
    loader = TrainLoader(stream(shards, remote=remote, **settings), num_workers=workers)
    batches = list(loader)
    assert set(keys(batches)) == set(every_key([4] * 8)) - set(every_key([0, 0, 0, 4]))
    skipped = [reason for batch in batches for reason in batch["skipped"]]
    assert set(skipped) == {"unreadable_shard"}


def test_more_missing_shards_than_allowed_stop_the_run(server: FaultyServer) -> None:
    shards = shard_names(server, [30] * 10)
    for index in (2, 5):
        (server.folder / f"train-{index:06}.tar").unlink()
    with pytest.raises(DataError, match=r"training shards could not be read, more than max_bad_fraction.*404"):
        list(TrainLoader(stream(shards, batches_per_epoch=1000, remote=HASTY), num_workers=1))


def test_evaluation_over_the_network_names_what_it_lacks(server: FaultyServer) -> None:
    shards = shard_names(server, [2, 2])
    server.faults = ["cut", 503, "", "", 404]
    items = list(EvalImages([*shards, shards[0]], remote=HASTY))
    assert [item["key"] for item in items if item["image"] is not None] == every_key([2, 2])
    (failed,) = (item for item in items if item["image"] is None)
    assert failed["error"].startswith(f"{shards[0]}: HTTP status 404")


# The cache


def caching(folder: Path, **settings: Any) -> Remote:
    return Remote(cache_dir=str(folder / "cache"), timeout=0.5, retries=1, backoff=0.01, **settings)


def test_a_cached_shard_is_fetched_once_and_entered_anywhere(server: FaultyServer, tmp_path: Path) -> None:
    (url,) = shard_names(server, [9])
    remote = caching(tmp_path)
    halves = [Part(0, 0, 1, 0.5, 1.0, 0), Part(0, 0, 1, 0.0, 0.5, 0)]
    read = [[raw.key for raw in read_shard(url, part, remote)] for part in halves]
    assert sorted(read[0] + read[1]) == every_key([9])
    assert read[0] and read[1]
    assert len(server.requests) == 1


def test_shards_of_one_name_in_two_places_are_not_confused(server: FaultyServer, tmp_path: Path) -> None:
    for folder, count in (("a", 2), ("b", 5)):
        write_shards(server.folder / folder, [count])
    remote = caching(tmp_path)
    for _ in range(2):
        for place, count in (("a", 2), ("b", 5), ("b", 5), ("a", 2)):
            found = read_shard(server.url(f"{place}/train-000000.tar"), WHOLE_SHARD, remote)
            assert [raw.key for raw in found] == every_key([count])
    assert len(server.requests) == 2
    assert len(list(read_shard(server.url("b/train-000000.tar?version=2"), WHOLE_SHARD, remote))) == 5
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", ["cut", "reset", "stall"])
def test_part_of_a_shard_is_never_taken_for_the_whole(server: FaultyServer, tmp_path: Path, fault: str) -> None:
    (url,) = shard_names(server, [9])
    server.faults = [fault, fault]  # one more than is forgiven
    with pytest.raises(OSError, match="tried 2 times"):
        cached(url, caching(tmp_path))
    assert not list((tmp_path / "cache").iterdir())
    assert [raw.key for raw in read_shard(url, WHOLE_SHARD, caching(tmp_path))] == every_key([9])


def test_a_process_that_is_killed_while_it_fetches_leaves_no_shard(server: FaultyServer, tmp_path: Path) -> None:
    (url,) = shard_names(server, [9])
    server.faults = ["stall"]
    remote = Remote(cache_dir=str(tmp_path / "cache"), timeout=60)
    fetching = torch.multiprocessing.get_context("fork").Process(target=cached, args=(url, remote))
    fetching.start()
    wait_for(lambda: list((tmp_path / "cache").glob(".*.part")))
    fetching.kill()
    fetching.join()
    (part,) = (tmp_path / "cache").iterdir()
    assert [raw.key for raw in read_shard(url, WHOLE_SHARD, remote)] == every_key([9])
    os.utime(part, (0, 0))  # long abandoned
    cached(server.url("train-000000.tar?again"), remote)
    assert not part.exists()


def test_a_cached_shard_that_has_rotted_is_fetched_again(server: FaultyServer, tmp_path: Path) -> None:
    (url,) = shard_names(server, [9])
    path = cached(url, caching(tmp_path))
    path.write_bytes(path.read_bytes()[:5000])
    assert [raw for raw in read_shard(url, WHOLE_SHARD, caching(tmp_path)) if raw.problem]
    assert [raw.key for raw in read_shard(url, WHOLE_SHARD, caching(tmp_path))] == every_key([9])


# Commands


def test_a_command_that_breaks_off_is_run_again(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [9])
    script = tmp_path / "flaky"
    script.write_text(
        f"#!/bin/sh\nif mkdir {tmp_path}/tried 2>/dev/null; then head -c 9000 {shard}; exit 7; fi\ncat {shard}\n"
    )
    script.chmod(0o755)
    with pytest.warns(UserWarning, match="exit code 7 after 9000 bytes"):
        raws = list(read_shard(f"pipe:{script}", WHOLE_SHARD, HASTY))
    assert [raw.key for raw in raws] == every_key([9])


def test_a_full_cache_is_named_and_left_clean(server: FaultyServer, small_disk: Path) -> None:
    (url,) = shard_names(server, [9])
    fill(small_disk, room=5000)
    (failed,) = read_shard(url, WHOLE_SHARD, Remote(cache_dir=str(small_disk / "cache")))
    assert "No space left on device" in failed.name
    assert not list((small_disk / "cache").iterdir())


def test_a_silent_command_is_ended_with_all_its_parts(tmp_path: Path) -> None:
    note = tmp_path / "ids"
    command = f"pipe:sh -c 'echo $$ >> {note}; sleep 3000' | cat"
    (failed,) = read_shard(command, WHOLE_SHARD, Remote(timeout=0.3, retries=1, backoff=0.01))
    assert "gave nothing for 0.3 s after 0 bytes; tried 2 times" in failed.name
    processes = [int(line) for line in note.read_text().split()]
    assert len(processes) == 2
    for process in processes:
        wait_for(lambda process=process: not alive(process))


def alive(process: int) -> bool:
    """Whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("name", "value"), [("timeout", 0), ("retries", -1), ("backoff", -1)])
def test_settings_without_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Remote(**{name: value})


# Workers that are killed


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_workers_are_replaced_and_the_batches_stay_the_same(tmp_path: Path, workers: int) -> None:
    shards = write_shards(tmp_path, [5, 3, 4])
    settings = {"batches_per_epoch": 30, "batch_size": 3}
    expected = list(TrainLoader(stream(shards, **settings), num_workers=workers))
    list(DataLoader(range(2), num_workers=1))  # has PyTorch set its handler, as any program may have
    got = []
    with pytest.warns(UserWarning, match="starting anew from batch"):
        for number, batch in enumerate(TrainLoader(stream(shards, **settings), num_workers=workers)):
            got.append(batch)
            if number in (2, 11):
                for worker in torch.multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGKILL)
                    wait_for(lambda worker=worker: not alive(worker.pid))  # no error here, in the middle of a step
    assert [batch["position"] for batch in got] == list(range(30))
    assert keys(got) == keys(expected)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(got, expected, strict=True))


class Doomed(EvalImages):
    """Its workers come to grief at the second image."""

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(super().__iter__()):
            if number:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


def test_workers_that_always_die_are_one_clear_error(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [5])
    with pytest.raises(WorkerDiedError, match=r"killed .*--data\.num_workers"):
        list(Workers(Doomed(shards), num_workers=1))
    source = stream(shards)
    source._batches = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    with pytest.raises(WorkerDiedError), pytest.warns(UserWarning, match="starting anew from batch 0"):
        list(TrainLoader(source, num_workers=1))


# Checkpoints


def save(path: Path, number: int = 0) -> Path:
    """A checkpoint of a megabyte."""
    files = AtomicCheckpointIO()
    path.parent.mkdir(exist_ok=True)
    files.save_checkpoint({"weight": torch.full((1 << 18,), float(number))}, path)
    assert not files.problem
    return path


def flip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    lengths = struct.unpack_from("<HH", data, member.header_offset + 26)  # of its name and of the padding after it
    data[member.header_offset + 30 + sum(lengths) + member.file_size // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [flip, cut, empty]


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    paths = [save(tmp_path / f"step-{step}.ckpt", step) for step in range(3)]
    for age, path in zip((30, 20, 10), paths, strict=True):
        os.utime(path, (time.time() - age, time.time() - age))
    (tmp_path / "last.ckpt").symlink_to(paths[2].name)
    assert newest_first(tmp_path) == paths[::-1]
    assert newest_whole(tmp_path) == named_checkpoint(tmp_path) == paths[2]
    harm(paths[2])
    os.utime(paths[2])
    assert damage(paths[2])
    with pytest.warns(UserWarning, match=r"going on from .*step-1\.ckpt.*step-2\.ckpt"):
        assert newest_whole(tmp_path) == paths[1]
    with pytest.raises(ConfigError, match=r"step-2\.ckpt is damaged"):
        named_checkpoint(paths[2])
    for path in paths[:2]:
        harm(path)
    with pytest.raises(ConfigError, match=r"every checkpoint .* step-0\.ckpt"):
        newest_whole(tmp_path)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None
    for name in (tmp_path, tmp_path / "gone.ckpt"):
        with pytest.raises(ConfigError, match=r"no checkpoint"):
            named_checkpoint(name)


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", 1)

    class KillsWhenWritten:
        def __reduce__(self) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    state = {"weight": torch.zeros(1 << 18), "then": KillsWhenWritten()}
    writing = torch.multiprocessing.get_context("fork").Process(
        target=lambda: AtomicCheckpointIO().save_checkpoint(state, path)
    )
    writing.start()
    writing.join()
    assert writing.exitcode == -KILL
    assert not damage(path)
    assert torch.load(path, weights_only=True)["weight"][0] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk, which takes root: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, room: int = 0) -> Path:
    """Fill a disk up but for so many bytes."""
    path = folder / "filling"
    usage = shutil.disk_usage(folder)
    path.write_bytes(bytes(usage.free - room))
    return path


def test_a_full_disk_leaves_the_old_checkpoint_and_no_rest(small_disk: Path) -> None:
    path = save(small_disk / "a.ckpt", 1)
    fill(small_disk, room=500_000)
    files = AtomicCheckpointIO()
    files.save_checkpoint({"weight": torch.zeros(1 << 18)}, path)
    assert "No space left" in files.problem
    assert not damage(path)
    assert torch.load(path, weights_only=True)["weight"][0] == 1
    assert sorted(each.name for each in small_disk.iterdir()) == ["a.ckpt", "filling"]


def test_a_run_survives_a_full_disk_and_says_so(
    pictures: Path, small_disk: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tiny(pictures, "--trainer.max_steps", "6", *callback_words(every=2))
    words = [word.replace("dirpath: ckpt", f"dirpath: {small_disk}") for word in words]
    cli = make_cli(words, run=False)
    filling: list[Path] = []

    def on_train_batch_start(batch: Any, batch_idx: int) -> None:
        if cli.trainer.global_step == 2:
            filling.append(fill(small_disk))
        elif cli.trainer.global_step == 4 and not forever:
            filling.pop().unlink()

    monkeypatch.setattr(cli.model, "on_train_batch_start", on_train_batch_start)
    forever = False
    with pytest.warns(UserWarning, match=r"step-000004\.ckpt could not be written: No space left.*step-000002\.ckpt"):
        cli.trainer.fit(cli.model, cli.datamodule)
    assert {path.name for path in newest_first(small_disk)} == {"step-000002.ckpt", "step-000006.ckpt"}

    for path in newest_first(small_disk):
        path.unlink()
    cli = make_cli(words, run=False)
    monkeypatch.setattr(cli.model, "on_train_batch_start", on_train_batch_start)
    forever = True
    with pytest.raises(CheckpointError, match=r"could not be written.*step-000002\.ckpt"):
        cli.trainer.fit(cli.model, cli.datamodule)
    assert newest_whole(small_disk) == small_disk / "step-000002.ckpt"


def test_the_newest_checkpoints_are_kept_and_rests_removed(pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt").mkdir()
    rest = tmp_path / "ckpt" / ".step-000001.ckpt.123.part"
    rest.write_bytes(b"x")
    make_cli([*tiny(pictures, "--trainer.max_steps", "5"), *callback_words(every=1, keep=2)])
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == [
        "last.ckpt",
        "step-000004.ckpt",
        "step-000005.ckpt",
    ]
    assert (tmp_path / "ckpt" / "last.ckpt").resolve().name == "step-000005.ckpt"


def test_what_a_run_writes_is_newer_than_the_later_steps_it_found(
    pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make_cli([*tiny(pictures, "--trainer.max_steps", "5"), *callback_words(every=2)])
    back = ["--ckpt_path", "ckpt/step-000002.ckpt"]
    make_cli([*tiny(pictures, "--trainer.max_steps", "3"), *callback_words(every=2), *back])
    assert newest_whole(tmp_path / "ckpt") == (tmp_path / "ckpt" / "last.ckpt").resolve()
    assert newest_whole(tmp_path / "ckpt") == tmp_path / "ckpt" / "step-000003.ckpt"
    make_cli([*tiny(pictures, "--trainer.max_steps", "4"), *callback_words(every=1, keep=2), "--ckpt_path", "auto"])
    # Step 5 is of what the run left behind when it went back to step 2, and nothing of it: it is not deleted.
    assert [path.name[-6:-5] for path in newest_first(tmp_path / "ckpt")] == ["4", "3", "5"]


def test_the_last_step_is_saved_however_the_run_is_limited(pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, limits in (("steps", (7, -1)), ("epochs", (-1, 2))):
        words = tiny(pictures, "--trainer.max_steps", str(limits[0]), "--trainer.max_epochs", str(limits[1]))
        make_cli([word.replace("dirpath: ckpt", f"dirpath: {folder}") for word in [*words, *callback_words(every=5)]])
    assert {path.name for path in newest_first(tmp_path / "steps")} == {"step-000005.ckpt", "step-000007.ckpt"}
    assert {path.name for path in newest_first(tmp_path / "epochs")} == {"step-000005.ckpt", "step-000008.ckpt"}


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    pictures: Path, tmp_path: Path, monkeypatch: Any, harm: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*tiny(pictures, "--trainer.max_steps", "6"), *callback_words(every=2)]
    make_cli(words)
    expected = losses(tmp_path)
    (tmp_path / "ckpt" / "step-000006.ckpt").unlink()
    harm(tmp_path / "ckpt" / "step-000004.ckpt")
    with pytest.warns(UserWarning, match=r"going on from ckpt/step-000002\.ckpt"):
        make_cli([*words, "--ckpt_path", "auto"])
    assert losses(tmp_path)[6:] == expected[2:]


def test_auto_begins_anew_without_a_checkpoint_and_asks_for_a_name(
    pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tiny(pictures, "--trainer.max_steps", "1", "--ckpt_path", "auto")
    make_cli([*words, *callback_words()])
    assert [step for step, _ in losses(tmp_path)] == [1]
    logger = "{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: tiny}}"
    with pytest.raises(ConfigError, match="version NAME"):
        make_cli([*words, *callback_words(), "--trainer.logger", f"[{logger}]"])
    with pytest.raises(ConfigError, match=r"gic\.training\.checkpoint\.Checkpoint"):
        make_cli([*words, "--trainer.callbacks", "[{class_path: gic.training.ema.EMA}]"])


# Runs of several processes, and runs that are killed


def test_two_ranks_draw_what_one_rank_of_two_workers_draws(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [5, 3, 4, 6])
    one = list(TrainLoader(stream(shards, batches_per_epoch=20), num_workers=2))
    for rank in (0, 1):
        alone = list(stream(shards, batches_per_epoch=10, rank=rank, world_size=2))
        for mine, same in zip(alone, one[rank::2], strict=True):
            assert mine["key"] == same["key"]
            assert torch.equal(mine["image"], same["image"])


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_from_the_same_batches(pictures: Path, tmp_path: Path) -> None:
    # A step of two ranks is the mean over a batch of each; one rank takes the same two batches, one after the other.
    words = tiny(pictures, "--trainer.max_steps", "10")
    alone = ["--trainer.accumulate_grad_batches", "2", "--data.num_workers", "2", "--data.batches_per_epoch", "8"]
    together = [*DDP, "--data.num_workers", "1", "--data.batches_per_epoch", "4"]
    processes = []
    for folder, options in (("one", alone), ("two", together)):
        processes.append(start([*words, *options, *callback_words(every=10)], tmp_path / folder))
    assert [finish(process) for process in processes] == [0, 0]
    one = [
        2 * float.fromhex(loss) for _, loss in losses(tmp_path / "one")
    ]  # Lightning gives each its share of the mean
    for rank in (0, 1):
        two = [float.fromhex(loss) for _, loss in losses(tmp_path / "two", rank)]
        assert two == pytest.approx(one[rank::2], rel=1e-4)
    states = [
        torch.load(tmp_path / run / "ckpt" / "last.ckpt", weights_only=True)["state_dict"] for run in ("one", "two")
    ]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_losses_of_the_uninterrupted_one(pictures: Path, tmp_path: Path) -> None:
    words = [*tiny(pictures, "--trainer.max_steps", "60", "--data.num_workers", "1"), *callback_words(every=10)]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finish(start(words, whole)) == 0, (whole / "out").read_text()
    expected = losses(whole)
    assert [step for step, _ in expected] == list(range(1, 61))

    process = start(words, broken)
    wait_for(lambda: (broken / "losses" / "rank0").exists() and len(losses(broken)) >= 25, process)
    process.kill()
    process.wait()
    before = losses(broken)
    assert before == expected[: len(before)]
    (broken / "losses" / "rank0").unlink()
    assert finish(start([*words, "--ckpt_path", "auto"], broken)) == 0, (broken / "out").read_text()
    after = losses(broken)
    assert len(before) - 10 <= len(expected) - len(after) <= len(before)  # ten steps at most were made twice
    assert after == expected[len(expected) - len(after) :]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_rank_is_killed_the_others_end_and_the_run_can_go_on(
    pictures: Path, tmp_path: Path, victim: int
) -> None:
    words = [*tiny(pictures, *DDP, "--trainer.max_steps", "300"), *callback_words(every=10)]
    process = start(words, tmp_path)
    ranks = {1: lambda: children(process.pid)[0], 0: lambda: process.pid}
    wait_for(lambda: list((tmp_path / "ckpt").glob("*.ckpt")), process)
    first, second = ranks[0](), ranks[1]()
    os.kill((first, second)[victim], signal.SIGKILL)
    assert finish(process) != 0
    wait_for(lambda: not alive(second))
    said = (tmp_path / "out").read_text()
    assert f"gic fit: rank {1 - victim} has lost contact with another rank" in said
    assert "Traceback" not in said
    newest = newest_whole(tmp_path / "ckpt")
    assert newest is not None
    done = int(newest.stem.removeprefix("step-"))
    shutil.rmtree(tmp_path / "losses")
    words[words.index("300")] = str(done + 5)
    assert finish(start([*words, "--ckpt_path", "auto"], tmp_path)) == 0, (tmp_path / "out").read_text()
    for rank in (0, 1):
        assert [step for step, _ in losses(tmp_path, rank)] == list(range(done + 1, done + 6))
