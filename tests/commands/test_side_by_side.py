"""Several pictures at a time: the same files as one after the other, and what a terminal shows meanwhile."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import CONFIG, array, picture, small_model

import gic
from gic.codec.checkpoints import save_weights
from gic.commands import jobs
from gic.commands.dispatch import run
from gic.errors import ImageError
from gic.runtime import threads

COUNT = 7


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures in ``in``; the weights are named by the environment."""
    monkeypatch.chdir(tmp_path)
    save_weights("w.safetensors", small_model().state_dict(), CONFIG)
    monkeypatch.setenv("GIC_CHECKPOINT", str(tmp_path / "w.safetensors"))
    monkeypatch.setattr(threads, "pictures_at_once", lambda most: most)  # whatever memory this machine has left
    Path("in").mkdir()
    for number in range(COUNT):
        Image.fromarray(array(picture(70 + 9 * number, 40, salt=number))).save(f"in/{number}.png")
    return tmp_path


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_files_and_pictures_are_those_of_one_after_the_other(runtime: str, folder: Path, capsys) -> None:
    common = ["--runtime", runtime]
    for number in ("1", "4"):
        assert run(["compress", "in", "-o", f"gic{number}/", "--q", "1", "--threads", number, *common]) == 0
        assert run(["decompress", f"gic{number}", "-o", f"out{number}/", "--threads", number, *common]) == 0
    assert len(contents("gic1")) == COUNT
    assert contents("gic1") == contents("gic4") and contents("out1") == contents("out4")
    said = [line.partition(" -> ")[0] for line in capsys.readouterr().err.splitlines()]
    assert said[:COUNT] == sorted(said[:COUNT]) and said.count("in/0.png") == 2  # in order, whoever was ready first


def test_one_failure_among_several_at_a_time_is_named(folder: Path, capsys) -> None:
    Path("in/3.png").write_bytes(b"no picture")
    assert run(["compress", "in", "-o", "gic/", "--threads", "3"]) == 2
    said = capsys.readouterr().err
    assert len(contents("gic")) == COUNT - 1 and "in/3.png: " in said and f"1 of {COUNT} files failed" in said


@pytest.mark.parametrize("given", ["0", "-1", "x"])
def test_a_number_of_threads_that_is_none_is_refused(given: str, folder: Path, capsys) -> None:
    try:
        code = run(["compress", "in", "-o", "gic/", "--threads", given])
    except SystemExit as exit_:
        code = exit_.code  # type: ignore[assignment]
    assert code == 2 and "--threads" in capsys.readouterr().err.splitlines()[-1]
    for wrong in (0, 1.5, "2"):
        with pytest.raises(gic.ConfigError, match="threads"):
            gic.load(threads=wrong)  # type: ignore[arg-type]


def test_as_many_pictures_at_once_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((None, 8), (0, 1), (3 * threads.PICTURE_MEMORY + 5, 3), (2**60, 8)):
        monkeypatch.setattr(threads, "_free_memory", lambda free=free: free)
        assert threads.pictures_at_once(8) == expected


def test_a_file_is_never_written_over_itself(folder: Path, capsys) -> None:
    before = Path("in/0.png").read_bytes()
    for words in (["decompress", "in/0.png"], ["decompress", "in/0.png", "--overwrite"]):
        assert run(words) == 2
        assert "over itself" in capsys.readouterr().err
    assert Path("in/0.png").read_bytes() == before


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_it_is_and_ends_with_the_results(folder: Path, monkeypatch) -> None:
    for words, what in ((["in", "-o", "gic/"], f"1 of {COUNT} pictures"), (["in/0.png", "-o", "x.gic"], "")):
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        assert run(["compress", *words, "--threads", "1"]) == 0
        shown = screen.getvalue()
        assert what in shown and "->" in shown.splitlines()[-1]
        assert not shown.splitlines()[-1].split("\r")[-1].lstrip("\x1b[K").startswith(f"{COUNT} of")


def test_a_terminal_shows_the_tiles_of_a_picture_that_is_alone(monkeypatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = jobs.tiles_bar([jobs.Job(None, None)])
    assert bar is not None and jobs.tiles_bar([jobs.Job(None, None)] * 2) is None
    bar(1, 1)
    assert not screen.getvalue()  # a picture in one piece
    bar(2, 6)
    assert "2 of 6 tiles" in screen.getvalue()


def test_an_interrupted_folder_says_how_to_go_on(folder: Path) -> None:
    for number in range(40):
        Image.fromarray(array(picture(700, 500, salt=number))).save(f"in/more{number}.png")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", "gic", "compress", "in", "-o", "gic/", "--threads", "2"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whoever runs tests in the background ignores it
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heard)
    while not (Path("gic").is_dir() and any(Path("gic").glob("*.gic"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = process.stderr.read().splitlines()
    assert process.wait() == 130 and "--skip-existing" in said[-1]
    done = contents("gic")
    assert 0 < len(done) < COUNT + 40 and all(gic.load().open(data).width for data in done.values())
    assert run(["compress", "in", "-o", "gic/", "--skip-existing"]) == 0
    assert len(contents("gic")) == COUNT + 40


def test_files_do_not_go_to_a_terminal(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert run(["compress", "in/0.png", "-o", "-"]) == 2
    assert "terminal" in capsys.readouterr().err


def test_grey_arrays_are_grey_pictures(folder: Path) -> None:
    codec = gic.load()
    grey = np.asarray(Image.open("in/0.png").convert("L"))
    data = codec.compress(grey, q=1.0)
    assert codec.open(data).grey and data == codec.compress(Image.fromarray(grey), q=1.0)
    with pytest.raises(ImageError, match=r"uint8 \(H, W, 3\) or \(H, W\)"):
        codec.compress(grey.astype(float), q=1.0)
    assert codec.model_id.hex() in repr(codec) and "onnx" in repr(codec)
