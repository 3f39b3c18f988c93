"""Completion, the manual page and the tables of the documentation say what the parsers say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

from gic.commands.dispatch import BENCHMARK, COMMANDS, TRAINING, TRAINING_OPTIONS, parser_of, run
from gic.commands.listing import commands
from gic.commands.manual import BEGIN, ENVIRONMENT, EXIT_STATUS, main, man_page

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def script(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The script of a shell that this machine has."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"this machine has no {shell}")
    assert run(["completion", shell]) == 0
    path = tmp_path / f"gic.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def completed(script: Path, line: str) -> list[str]:
    """What a shell offers for the last word of a line."""
    words = line.split(" ")
    shell, array = script.suffix[1:], " ".join(word or "''" for word in words)
    if shell == "bash":
        asked = f"""source {script}; COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}
        _gic; printf '%s\\n' "${{COMPREPLY[@]}}" """
    elif shell == "fish":
        asked = f"source {script}; complete -C {shlex.quote(line)}"
    else:  # what zsh's own functions are told, as they work in its line editor alone
        asked = f"""compdef() {{ :; }}; _describe() {{ print -l -- $commands; }}; _arguments() {{ print -l -- "$@"; }}
        source {script}; words=({array}); CURRENT={len(words)}; _gic"""
    done = subprocess.run([shell, "-c", asked], capture_output=True, text=True, check=True, cwd=script.parent)
    assert done.stderr == ""
    return [each.partition("\t")[0] for each in done.stdout.split("\n")]


def offered(names: list[str], name: str) -> bool:
    """Whether a name is among what a shell offers, alone or at the head of what zsh is told."""
    return any(re.match(rf"(\([^)]*\))?\*?{re.escape(name)}($|[\[:])", each) for each in names)


@pytest.mark.parametrize("script", SHELLS, indirect=True)
def test_commands_and_options_are_completed(script: Path) -> None:
    for name in (*COMMANDS, *TRAINING, *BENCHMARK):
        assert offered(completed(script, f"gic {name[:1]}"), name)
    for command in commands():
        for argument in command.arguments:
            for option in argument.names:
                start = "--" if option.startswith("--") else "-"
                assert offered(completed(script, f"gic {command.name} {start}"), option), (command.name, option)


@pytest.mark.parametrize("script", ["bash", "fish"], indirect=True)
def test_values_are_completed(script: Path) -> None:
    (script.parent / "onnxfile").touch()
    assert completed(script, "gic compress --runtime on") == ["onnx", ""]
    assert completed(script, "gic completion z") == ["zsh", ""]
    assert not offered(completed(script, "gic compress --q on"), "onnxfile")  # a number
    if script.suffix == ".fish":  # in bash its own completion adds files
        assert offered(completed(script, "gic compress on"), "onnxfile")
        assert offered(completed(script, "gic decompress --checkpoint on"), "onnxfile")


def test_completion_takes_no_package_of_an_extra() -> None:
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, "-m", "gic", "completion", "bash"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    imported = {name.partition(".")[0] for name in re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)}
    assert "gic" in imported and not imported & {"torch", "lightning", "rich", "huggingface_hub", "jsonargparse"}


def test_the_pages_are_as_new(tmp_path: Path) -> None:
    for name in ("gic.1", "commands.md"):
        shutil.copy(REPOSITORY / "docs" / name, tmp_path)
    page = (tmp_path / "commands.md").read_text()
    (tmp_path / "commands.md").write_text(page.partition(BEGIN)[0])
    main(tmp_path)
    for name in ("gic.1", "commands.md"):
        fresh = (tmp_path / name).read_text()
        assert fresh == (REPOSITORY / "docs" / name).read_text(), "write them anew: python -m gic.commands.manual docs"


def test_the_page_has_every_option_and_is_well_formed(tmp_path: Path) -> None:
    page = man_page(commands())
    plain = page.replace(r"\-", "-")
    for name in COMMANDS:
        for action in parser_of(name)._actions:
            assert all(f"\\fB{option}\\fR" in plain for option in action.option_strings if action.dest != "help")
    assert all(f"\\fB{code}\\fR" in page for code in EXIT_STATUS)
    if shutil.which("mandoc"):
        path = tmp_path / "gic.1"
        path.write_text(page)
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "error", path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_the_exit_codes_are_those_of_the_package() -> None:
    sources = "\n".join(path.read_text() for path in (REPOSITORY / "gic").rglob("*.py"))
    used = set(map(int, re.findall(r"(?:exit_code|USER_ERROR|INTERRUPTED|PIPE_CLOSED) = (\d+)", sources)))
    assert used | {0} == set(EXIT_STATUS)
    assert all(f'"{name}"' in sources for name in ENVIRONMENT)


@pytest.mark.parametrize("command", [*TRAINING, *BENCHMARK])
def test_the_options_of_training_are_real(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning", reason="the extra train is not installed")
    with pytest.raises(SystemExit) as ended:
        run([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"{option}" in said for option in TRAINING_OPTIONS)
