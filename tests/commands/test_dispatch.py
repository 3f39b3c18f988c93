"""Whatever a command meets at the file system, in names or in options: one line, and never a traceback."""

from __future__ import annotations

import os
import re
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small import CONFIG, array, picture, small_model

import gic
from gic.codec.checkpoints import save_weights
from gic.commands.dispatch import run

LATIN = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two pictures, a checkpoint, and weights that the environment names."""
    monkeypatch.chdir(tmp_path)
    state = small_model().state_dict()
    save_weights(tmp_path / "weights.safetensors", state, CONFIG)
    monkeypatch.setenv("GIC_CHECKPOINT", str(tmp_path / "weights.safetensors"))
    checkpoint = {f"codec.{name}": value for name, value in state.items()}
    torch.save({"hyper_parameters": {"codec": CONFIG}, "state_dict": checkpoint, "global_step": 3}, "last.ckpt")
    Path("in").mkdir()
    for number in range(2):
        Image.fromarray(array(picture(40, 30, salt=number))).save(f"in/{number}.png")
    return tmp_path


def process(*words: str, output=subprocess.PIPE, **settings) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(gic.__file__).parents[1]), **settings.pop("env", {})}
    command = [sys.executable, "-m", "gic", *words]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=environment, **settings)


def one_line(text: str) -> str:
    assert len(text.splitlines()) == 1 and "Traceback" not in text and "Errno" not in text and ".part" not in text
    assert ".unfinished" not in text
    return text


WRITERS = {
    "compress": ["compress", "in/0.png", "-o", "{}/a.gic"],
    "decompress": ["decompress", "a.gic", "-o", "{}/a.png"],
    "export": ["export", "last.ckpt", "-o", "{}/a.safetensors"],
    "shards": ["shards", "in", "-o", "{}/shards", "--min-side", "1"],
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_cannot_be_written_is_one_line(command: str, folder: Path, capsys) -> None:
    Path("a.gic").write_bytes(gic.load().compress("in/0.png"))
    Path("file").write_bytes(b"in the way")
    assert run([word.format("file") for word in WRITERS[command]]) == 2
    said = one_line(capsys.readouterr().err)
    assert "file" in said and re.search(r"not a directory|file exists", said)
    assert Path("file").read_bytes() == b"in the way"


@pytest.mark.parametrize("command", WRITERS)
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(command: str, folder: Path) -> None:
    Path("a.gic").write_bytes(gic.load().compress("in/0.png"))
    before = sorted(folder.rglob("*"))
    words = [word.format("out") for word in WRITERS[command]]
    if command == "shards":
        words += ["--image-format", "png"]
    done = process(*words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50)))
    said = one_line(done.stderr.decode())
    assert done.returncode == 2 and "file too large" in said and "out" in said
    assert [path for path in sorted(folder.rglob("*")) if path.is_file()] == [p for p in before if p.is_file()]


@pytest.mark.parametrize("words", [["info", "a.gic"], ["--help"], ["compress", "in/0.png", "-o", "-"], ["weights"]])
def test_an_output_that_takes_nothing_is_one_line(words: list[str], folder: Path) -> None:
    full = folder / "full"
    try:
        os.mknod(full, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        with full.open("wb") as file:
            Path("a.gic").write_bytes(gic.load().compress("in/0.png"))
            done = process(*words, output=file)
    except PermissionError:
        pytest.skip("only root may make a device")
    assert done.returncode == 2
    assert "no space left on device" in one_line(done.stderr.decode())


@pytest.mark.parametrize("words", [["info", "-"], ["compress", "-", "-o", "-"]])
def test_closed_streams_are_one_line(words: list[str], folder: Path) -> None:
    done = process(*words, preexec_fn=lambda: os.close(0))
    assert done.returncode == 2 and "standard input" in one_line(done.stderr.decode())
    if "-o" in words:
        with Path("in/0.png").open("rb") as file:
            done = process(*words, stdin=file, preexec_fn=lambda: os.close(1))
        assert done.returncode == 2 and "standard output" in one_line(done.stderr.decode())


def test_a_mistake_in_the_program_is_not_taken_for_one_of_the_user(folder: Path, monkeypatch) -> None:
    from gic.commands import info

    for error in (OSError("a mistake"), ValueError("a mistake"), KeyError("a mistake")):
        monkeypatch.setattr(info, "run", lambda args, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            run(["info", "a.gic"])
    known = PermissionError(13, "Permission denied", "a.gic")
    monkeypatch.setattr(info, "run", lambda args: (_ for _ in ()).throw(known))
    assert run(["info", "a.gic"]) == 2
    monkeypatch.setenv("GIC_TRACEBACK", "1")
    with pytest.raises(PermissionError):
        run(["info", "a.gic"])


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict", ""])
def test_any_name_may_be_printed(encoding: str, folder: Path) -> None:
    try:
        Path("in/0.png").rename(Path("in", LATIN))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    Path("in/1.png").rename("in/é€.png")
    env = {"PYTHONIOENCODING": encoding} if encoding else {"LANG": "C", "LC_ALL": "C"}
    assert run(["compress", "in", "-o", "out", "--q", "2"]) == 0
    Path("out", f"bad {LATIN}.gic").write_bytes(b"no file")
    for words in (["info", "out"], ["info", "--json", "out"], ["shards", "in", f"out/bad {LATIN}.gic", "-o", "shards"]):
        done = process(*words, env=env)
        assert done.returncode == (2 if "info" in words else 0) and done.stdout
        assert len(done.stderr.splitlines()) == (1 if "info" in words else 0)
    done = process("compress", f"in/{LATIN}", "in/é€.png", "-o", "out", "--overwrite", env=env)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 2
    done = process("info", f"no {LATIN}", env=env)
    assert done.returncode == 2 and b"no caf" in done.stderr and one_line(done.stderr.decode())


def test_a_shard_keeps_the_name_of_a_file_whatever_its_bytes(folder: Path) -> None:
    import json
    import tarfile

    try:
        Path("in/0.png").rename(Path("in", LATIN))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert run(["shards", "in", "-o", "shards"]) == 0
    with tarfile.open("shards/train-000000.tar") as tar:
        texts = [tar.extractfile(member).read() for member in tar if member.name.endswith(".json")]
    assert {json.loads(text)["source"] for text in texts} == {LATIN, "1.png"}


def test_long_names_become_files_or_one_line(folder: Path, capsys) -> None:
    fits, too_long = 251 * "x" + ".png", 255 * "x"
    for name in (fits, too_long):
        Path("in", name).write_bytes(Path("in/0.png").read_bytes())
    assert run(["compress", f"in/{fits}"]) == 0 and Path("in", f"{251 * 'x'}.gic").is_file()
    capsys.readouterr()
    assert run(["compress", f"in/{too_long}"]) == 2
    assert "file name too long (give a shorter name)" in one_line(capsys.readouterr().err)
    for words in (["info", 300 * "x"], ["compress", "in/0.png", "-o", 300 * "y"], ["shards", "in", "-o", 300 * "z"]):
        assert run(words) == 2
        assert "file name too long" in one_line(capsys.readouterr().err)


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compress", "in/0.png", "--over"], "no option --over, did you mean --overwrite?"),
        (["compress", "in/0.png", "--max", "900"], "no option --max, did you mean --max-bytes?"),
        (["compress", "in/0.png", "--qualty=3"], "no option --qualty, did you mean --quality?"),
        (["compress", "in/0.png", "-overwrite"], "no option -overwrite, did you mean --overwrite?"),
        (["compress", "in/0.png", "--nonsense"], "no option --nonsense ("),
        (["decompress", "a.gic", "--real", "1"], "no option --real, did you mean --realism?"),
        (["info", "a.gic", "--js"], "no option --js, did you mean --json?"),
        (["shards", "in", "--ouput", "x"], "no option --ouput, did you mean --output?"),
        (["export", "last.ckpt", "-o", "x.safetensors", "--notes", "x"], "no option --notes, did you mean --note?"),
        (["weights", "--down"], "no option --down, did you mean --download?"),
        (["compress", "in/0.png", "--q", "fine"], "invalid float value"),
        (["compress"], "required: IN"),
    ],
)
def test_options_are_not_guessed_and_the_nearest_is_named(words: list[str], said: str, folder: Path, capsys) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        run(words)
    text = one_line(capsys.readouterr().err)
    assert caught.value.code == 2 and said in text and f"gic {words[0]} --help" in text
    assert sorted(folder.rglob("*")) == before


def test_what_follows_two_dashes_is_a_name(folder: Path, capsys) -> None:
    Path("--over").write_bytes(gic.load().compress("in/0.png"))
    assert run(["info", "--", "--over"]) == 0
    assert "--over" in capsys.readouterr().out
