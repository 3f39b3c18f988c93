"""Command lines in documents and in the heads of configs and job scripts work as they are printed.

Each is carried out as far as it is quick: the commands for files run, ``gic fit`` and ``gic test`` are parsed with
their configs, and the data, weights and checkpoints that they name must be there. A document is walked from its top, so
that a line may use what an earlier one has made. What a line may take for granted is in :data:`TAKEN_FOR_GRANTED`; what
no test can run is in :data:`NOT_RUN`, and a line of another kind fails.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hub_on_files import HubOnFiles
from PIL import Image
from places import CONFIGS, REPOSITORY, TESTS
from small import CONFIG, array, picture, small_model

from gic.commands import dispatch

DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/**/*.md", "slurm/*", "data/*.md", "recipes/*", "configs/**/*.yaml")
    for path in sorted(REPOSITORY.glob(pattern))
    if path.name != "CHANGELOG.md"
]

NOT_RUN = {
    "git": "needs the repository's address",
    "cd": "of a shell",
    "source": "of a shell",
    "export": "of a shell",
    "python -m venv": "makes an environment; .ci/run does",
    "pip": "installs; .ci/run does",
    "pytest": "the tests themselves",
    "pre-commit": "installs a hook",
    ".ci/run": "the tests themselves",
    "apt-get": "installs, as root",
    "apptainer": "builds a container",
    "gic demo": "serves until it is stopped; tests/demo/ runs it",
    "recipes/small.sh": "hours; tests/test_recipes.py runs it",
    "recipes/measure.sh": "an hour; tests/test_recipes.py asks what it needs",
    "mkdocs": "builds the site; tests/test_site.py does",
    "ln": "of a shell",
    "python -m gic.compat.compressai": "tests/compat/test_compressai.py runs it",
    "python -m gic.commands.manual": "tests/commands/test_manual.py runs it",
    "python -m gic.training.evaluation": "tests/training/test_evaluation.py runs it",
}
"""Beginnings of lines that are not run, and why."""

NO_COMMANDS = ("gic/\n", "00000000: ", "Bootstrap: ", "effective batch: ")
"""Beginnings of blocks that hold no commands: a tree, bytes, a container's description, an output."""

TAKEN_FOR_GRANTED = {
    "~/photos": "pictures",
    "~/held-out": "pictures",
    "~/kodak": "pictures",
    "data/kodak": "pictures",
    "photos/": "pictures",
    "more/": "pictures",
    "held_out/": "pictures",
    "/shared/originals": "pictures",
    "/shared/held-out": "pictures",
    "/shared/kodak": "pictures",
    "kodak": "pictures",
    "DIR": "pictures",
    "photo.png": "picture",
    "kodim05.png": "picture",
    "mask.png": "picture",
    "SHARDS": "shards",
    "data/photos": "shards",
    "/shared/photos": "shards",
    "val-000000.tar": "shard",
    "last.ckpt": "weights",
    "LAST.ckpt": "weights",
    "before.ckpt": "weights",
    "after.ckpt": "weights",
    "base.safetensors": "weights",
    "zero.safetensors": "weights",  # the lines of Python above it write it
    "u-alone.safetensors": "weights",
    "g_s-alone.safetensors": "weights",
    "both.safetensors": "weights",
    "weights.safetensors": "weights",
    "small-0.4.safetensors": "weights",
    "lpips.safetensors": "weights",
    "adversarial.safetensors": "weights",
    "140-minutes.safetensors": "weights",
    "140-minutes-without-u.safetensors": "weights",
    "runs/photos/version_0/checkpoints/last.ckpt": "weights",  # what runs leave: the test below
    "runs/photos/job-123/checkpoints/last.ckpt": "weights",
    "runs/base/version_0/checkpoints/last.ckpt": "weights",
    "runs/small-compressor/version_0/checkpoints/last.ckpt": "weights",
    "runs/small-joint/version_0/checkpoints/last.ckpt": "weights",
    "my.yaml": "config",
    "mine.py": "blocks",
    "mine.yaml": "blocks",
    "mine.safetensors": "weights",
}
"""What a reader has, or has made by an earlier step, and its kind."""


class Line(NamedTuple):
    """A command of a document: words after a shell has split them."""

    number: int
    words: list[str]


def commands(path: Path) -> Iterator[Line]:
    """Commands in blocks and code spans of a document, or in the comments of a config or script."""
    text = path.read_text()
    if path.suffix == ".md":
        for block in re.finditer(r"^```(\w*)(?: .*)?\n((?s:.*?))^```", text, re.M):
            if block[1] in ("", "sh", "bash") and not block[2].startswith(NO_COMMANDS):
                yield from _split(block[2], text[: block.start(2)].count("\n") + 1)
        spans = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.S | re.M)
    else:
        comments = [line if line.startswith("#") and line[1:2] != "!" else "" for line in text.splitlines()]
        start = re.compile(r"^#   ?(?=(gic|python|sbatch|recipes|ln|[A-Z]+=\w+ recipes) ?\S* )")
        indented = [start.sub("", line) for line in comments]
        for i, line in enumerate(indented):  # continued lines
            if i and indented[i - 1].endswith("\\") and line.startswith("#"):
                indented[i] = line.lstrip("# ")
        kept = ["" if line.startswith("#") else line for line in indented]
        yield from _split("\n".join(kept), 1)
        spans = "\n".join(comments)
    for span in re.finditer(r"`((?:gic|python|\$GIC_PYTHON|pytest) [^`]+)`", spans):
        words = " ".join(span[1].replace("\n#", "\n").split())
        if len(words.split()) > 2 and "[" not in words:
            yield from _split(words, spans[: span.start()].count("\n") + 1)


def _split(block: str, first: int) -> Iterator[Line]:
    joined = re.sub(r"\\\n", lambda m: " \x00", block)
    number = first
    for line in joined.splitlines():
        lexer = shlex.shlex(line.replace("\x00", ""), posix=True, punctuation_chars="&;")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in ("&&", ";"):
                words.append(word)
            elif words:
                yield Line(number, words)
                words = []
        number += 1 + line.count("\x00")


def make(path: Path, kind: str, shards: Path) -> None:
    """Make something small of a kind at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pictures":
        path.mkdir(exist_ok=True)
        width, height = (72, 64) if "kodak" in path.name else (264, 256)  # which is what training takes
        for number in range(2):
            Image.fromarray(array(picture(width, height, "edges", number))).save(path / f"kodim{number:02d}.png")
    elif kind == "picture":
        Image.fromarray(array(picture(320, 256, "smooth", 5))).save(path)
    elif kind == "shards":
        path.symlink_to(shards)
    elif kind == "shard":
        path.symlink_to(shards / "val-000000.tar")
    elif kind == "blocks":  # of a document, which has their name above them
        text = (REPOSITORY / "docs" / "extend.md").read_text()
        blocks = re.findall(rf'^```\w+ title="{path.name}"\n(.*?)^```', text, re.S | re.M)
        path.write_text("\n\n".join(blocks))
    elif kind == "config":
        path.write_text(f"extends: {CONFIGS}/photos.yaml\n")
    elif path.suffix == ".ckpt":
        path.write_bytes(b"a checkpoint")  # whose existence alone is checked
    else:
        from gic.codec.checkpoints import save_weights

        save_weights(path, small_model().state_dict(), CONFIG)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path) -> Path:
    """A checkout with what readers have; the home folder and /shared lie in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for name in ("configs", "docs", "benchmarks", "examples", "slurm", "gic"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "gic").symlink_to(REPOSITORY)
    for name, kind in TAKEN_FOR_GRANTED.items():
        make(tmp_path / real(name, tmp_path), kind, pictures)
    hub = HubOnFiles(tmp_path / "hub")
    hub.install(monkeypatch)
    for revision in ("main", "v2"):
        make(hub.repositories / "OWNER/REPO" / revision / "model.safetensors", "weights", pictures)
    return tmp_path


def real(word: str, place: Path) -> str:
    """A word as a shell and the reader's machine would have it."""
    return re.sub(r"^~", str(place / "home"), re.sub(r"(?<![\w.])/shared/", f"{place}/shared/", word))


def problem(words: list[str], place: Path) -> str | None:
    """What is wrong with a command; None if it works or is listed."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables of the environment
        words = words[1:]
    words = words[: words.index(">")] if ">" in words else words
    left_out = [i for i, word in enumerate(words) if word == "..."]
    left_out += [i - 1 for i in left_out if words[i - 1].startswith("--")]  # the value of an option
    words = [real(word, place) for i, word in enumerate(words) if i not in left_out]
    if words[0] in ("python3", "$GIC_PYTHON", f"{place}/shared/gic-venv/bin/python"):
        words[0] = "python"
    if words[0].endswith("/bin/pip"):
        words[0] = "pip"
    line = " ".join(words)
    if any(line == known or line.startswith(f"{known} ") for known in NOT_RUN):
        return None
    if words[0] == "sbatch":
        script = next((i for i, word in enumerate(words) if word.endswith(".sbatch")), None)
        if script is None:
            return None if len(words) == 2 and words[1].startswith("--") else "names no job script"
        rest = words[script + 1 :]
        name = Path(words[script]).name.removesuffix(".sbatch")
        return problem(["gic", name, *rest], place) if "--config" in rest else None
    if words[:3] == ["python", "-m", "gic"]:
        words = ["gic", *words[3:]]
    if words[0] == "python" and words[1].startswith(("benchmarks/", "examples/")):
        return script_problem(words[1], words[2:])
    if words == ["gic"]:
        return None
    if words[0] != "gic":
        return "is no command that this test knows: add it to NOT_RUN with the reason"
    command, rest = words[1], words[2:]
    if command == "fit":
        return fit_problem(rest)
    if command == "test":
        return test_problem(rest)
    if command in dispatch.COMMANDS or command.startswith("-"):
        return files_problem(words[1:])
    return f"there is no command {command}"


def files_problem(words: list[str]) -> str | None:
    """Run a command for files, unless it downloads or takes a real checkpoint."""
    words = [part for word in words for part in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            if "--download" in words or words[0] == "export":
                module = importlib.import_module(f"gic.commands.{words[0]}")
                parser = argparse.ArgumentParser()
                module.add_options(parser)
                parser.parse_args(words[1:])
                return None
            code = dispatch.run(words)
        except SystemExit as stop:
            code = stop.code
    mentioned = len(words) == 2 and "expected one argument" in errors.getvalue()  # an option without its value
    if mentioned or code == 0 or (words[0] == "weights" and code == 2 and not errors.getvalue()):  # some are not here
        return None
    return errors.getvalue().strip()


def printed_config(words: list[str]) -> dict[str, Any] | str:
    """Settings of a run, or the error."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = dispatch.run([*words, "--print_config"])
        except SystemExit as stop:
            code = stop.code
    if code:
        return errors.getvalue().strip()
    settings: dict[str, Any] = yaml.safe_load(output.getvalue())
    return settings


def fit_problem(words: list[str]) -> str | None:
    """Parse a run, and look for its data and weights."""
    from gic.data.reading import expand_sources
    from gic.data.stream import EvalImages
    from gic.errors import GicError

    settings = printed_config(["fit", *words])
    if isinstance(settings, str):
        return settings
    data = settings["data"]["init_args"]
    try:
        if data["train"] is not None:
            expand_sources(data["train"])
        if data["val"] is not None:
            EvalImages(data["val"])
    except GicError as error:
        return str(error)
    start = settings["model"]["init_args"]["init_from"]
    for name in (settings["ckpt_path"], None if start == "shipped" else start):
        if name is not None and not Path(name).is_file():
            return f"no checkpoint {name}"
    return None


def test_problem(words: list[str]) -> str | None:
    """Parse a benchmark, and look for its images and weights."""
    from gic.benchmark.benchmark import Benchmark
    from gic.commands.test import parse
    from gic.errors import GicError

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            parser, args = parse(words)
        made = parser.instantiate(args).as_dict()
        own = ("accelerator", "devices", "num_nodes", "trust", "config", "ckpt_path")
        Benchmark(**{name: value for name, value in made.items() if name not in own}).check(made["ckpt_path"])
    except GicError as error:
        return str(error)
    except SystemExit as stop:
        return None if "--print_config" in words and not stop.code else errors.getvalue().strip()
    return None


test_problem.__test__ = False  # type: ignore[attr-defined]


class ParsedError(Exception):
    """Raised in place of the work behind a command line."""


def script_problem(script: str, words: list[str]) -> str | None:
    """Parse the options of a script in benchmarks/ or examples/."""
    if not (REPOSITORY / script).is_file():
        return f"no file {script}"
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        parse = argparse.ArgumentParser.parse_args

        def parsed(self: argparse.ArgumentParser, *arguments: Any) -> None:
            parse(self, *arguments)
            raise ParsedError

        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patch.setattr(sys, "argv", [script, *words])
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        spec = importlib.util.spec_from_file_location("script", REPOSITORY / script)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "script", module)
        try:
            spec.loader.exec_module(module)
            module.main()
        except ParsedError:
            return None
        except SystemExit:
            return errors.getvalue().strip()
    return "reads no options"


def python_blocks(path: Path) -> list[str]:
    """Blocks of Python in a document, but those that belong to a file of their own, which are used by its commands."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M)


WITH_PYTHON = [path for path in DOCUMENTS if path.suffix == ".md" and python_blocks(path)]


@pytest.mark.parametrize("path", WITH_PYTHON, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_the_python_of_a_document_runs(path: Path, place: Path) -> None:
    (place / "runs" / "kodak").mkdir(parents=True)
    results = REPOSITORY / "docs" / "results" / "kodak-benchmark.json"
    (place / "runs" / "kodak" / "results.json").symlink_to(results)  # which a command of docs/benchmark.md writes
    for block in python_blocks(path):
        exec(compile(block, path.name, "exec"), {"__name__": "document"})


WITH_COMMANDS = [path for path in DOCUMENTS if any(True for _ in commands(path))]


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_the_command_lines_of_a_document_work(path: Path, place: Path) -> None:
    failed = []
    for line in commands(path):
        if "shards" in line.words and "-o" in line.words:  # it makes what other documents take for granted
            target = Path(real(line.words[line.words.index("-o") + 1], place))
            if target.is_symlink():
                target.unlink()
        if found := problem(line.words, place):
            failed.append(f"line {line.number}: {shlex.join(line.words)}: {found}")
    assert failed == []


def test_commands_are_found_where_they_are_printed() -> None:
    found = {path.relative_to(REPOSITORY).as_posix(): [line.words for line in commands(path)] for path in DOCUMENTS}
    readme = [" ".join(words) for words in found["README.md"]]
    assert "pip install -e .[train]" in readme and "python -m gic fit --config configs/base.yaml" in readme
    assert "gic compress photo.png -o small.gic --bpp 0.25" in readme  # without its comment
    train = [" ".join(words) for words in found["docs/train.md"]]
    assert any(line.startswith("gic fit") and line.endswith("last.ckpt") for line in train)  # over two lines
    assert ["gic", "export", "last.ckpt", "-o", "weights.safetensors"] in found["docs/compress.md"]  # in the text
    assert found["configs/photos.yaml"][0] == ["gic", "shards", "~/photos", "-o", "data/photos"]
    assert found["slurm/fit.sbatch"][0][-2:] == ["--data.val", "/shared/photos/val-*.tar"]
    assert ["gic", "weights", "clipiqa", "--download"] in found["configs/stages/adversarial-clipiqa.yaml"]
    assert sum(map(len, found.values())) > 60


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gic compress nothere.png --bpp 0.25", "nothere.png"),
        ("gic compress photo.png --bbp 0.25", "--bbp"),
        ("gic fit --config configs/nowhere.yaml", "nowhere.yaml"),
        ("gic fit --config configs/photos.yaml --data.trian x", "trian"),
        ("gic fit --config configs/photos.yaml --data.train nothere", "nothere"),
        ("gic fit --config configs/photos.yaml --ckpt_path other.ckpt", "other.ckpt"),
        ("gic fit --config configs/stages/reverse.yaml --model.init_from other.ckpt", "other.ckpt"),
        ("gic test --config configs/test/kodak.yaml --data nothere", "nothere"),
        ("gic test --config configs/test/kodak.yaml --ckpt_path other.ckpt", "other.ckpt"),
        ("sbatch slurm/fit.sbatch --config configs/photos.yaml --data.train nothere", "nothere"),
        ("python benchmarks/memory.py --megapixel 1 --speed 3", "--speed"),
        ("python benchmarks/nothere.py", "nothere.py"),
        ("gic paint photo.png", "paint"),
        ("docker run gic", "no command that this test knows"),
    ],
)
def test_a_line_that_does_not_work_is_found(line: str, said: str, place: Path) -> None:
    found = problem(shlex.split(line), place)
    assert found is not None and said in found


def test_what_runs_leave_is_where_the_next_line_takes_it() -> None:
    """Checkpoints in the table lie in the run folder of a config."""
    names = set()
    for path in CONFIGS.rglob("*.yaml"):
        settings = yaml.safe_load(path.read_text()) or {}
        logger = settings.get("trainer", {}).get("logger") or {}
        names |= {logger.get("init_args", {}).get("name")} if isinstance(logger, dict) else set()
    left = [name.split("/")[1] for name in TAKEN_FOR_GRANTED if name.startswith("runs/")]
    assert left and set(left) <= names


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [REPOSITORY / "README.md", REPOSITORY / "docs/train.md", CONFIGS / "photos.yaml"],
    ids=lambda path: path.name,
)
def test_training_lines_run_with_a_tiny_codec(path: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--config", str(TESTS / "tiny.yaml"), "--trainer.max_steps", "1", "--trainer.limit_val_batches", "1"]
    lines = [[real(word, place) for word in line.words] for line in commands(path)]
    runs = [words[words.index("fit") :] for words in lines if "fit" in words and "--ckpt_path" not in words]
    assert runs
    for words in runs:
        assert dispatch.run([*words, *tiny]) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_of_the_readme_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [[real(word, place) for word in line.words] for line in commands(REPOSITORY / "README.md")]
    (words,) = (words for words in lines if words[:2] == ["gic", "test"] and "--published" in words)
    few = ["--metrics", "[psnr]", "--limit", "1", "--accelerator", "cpu", "--output", "out", "--cache", "cache"]
    assert dispatch.run([*words[1:], *few]) == 0, capsys.readouterr().err
    assert (place / "out" / "report.html").is_file()
