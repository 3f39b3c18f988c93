"""The command line: reads the first word and imports only what that command needs.

``fit`` and ``validate`` are Lightning's, ``test`` is the benchmark; the other commands start without either.
"""

from __future__ import annotations

import difflib
import io
import os
import sys
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from gic.errors import GicError, in_words, install_command, one_line
from gic.version import __version__

TRAINING = {
    "fit": "train a codec: gic fit --config configs/base.yaml",
    "validate": "measure a checkpoint on the validation images, by ideal code length",
}
BENCHMARK = {"test": "measure weights on real files, beside other codecs: gic test --config configs/test/kodak.yaml"}
# Each is a module of this package with `add_options` and `run`, which takes the options and returns the exit code.
COMMANDS = {
    "compress": "compress pictures to .gic files at any rate",
    "decompress": "turn .gic files into pictures",
    "truncate": "cut progressive .gic files to a size, without decoding them",
    "info": "show the contents of a .gic file",
    "demo": "try the codec on a page in the browser",
    "shards": "write WebDataset shards from folders of pictures",
    "export": "turn a training checkpoint into a small weights file",
    "models": "list, fetch or publish weights of the codec, by name",
    "weights": "list or fetch the weights that metrics need",
    "completion": "print what makes a shell complete gic's commands and options",
}
CODEC = ("compress", "decompress", "export", "demo")
"""Commands that need nothing more than PyTorch beside the base installation."""
TRAINING_OPTIONS = {
    "--config": ("FILE", "YAML file of settings"),
    "--print_config": ("", "print all settings, and end"),
    "--ckpt_path": ("FILE", "checkpoint to go on from, or to measure"),
    "--trust": ("PACKAGE", "a package of your own whose classes may be named"),
}
"""Options of Lightning's commands and the benchmark, their values and what they are; every key of a config is one."""
USER_ERROR = 2
INTERRUPTED = 130
PIPE_CLOSED = 141


def usage() -> str:
    """Text of ``gic --help``."""
    texts = {**COMMANDS, **TRAINING, **BENCHMARK}
    lines = "\n".join(f"  {name:<12}{text}" for name, text in texts.items())
    head = f"gic {__version__}: a generative image codec"
    return f"{head}\n\nusage: gic COMMAND ...    (gic COMMAND --help for its options)\n\n{lines}"


def run(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: Words after ``gic``.

    Returns:
        Exit code: 0 for success, 2 for wrong input or a result that was not written, which is explained in one line on
        the standard error, 130 if it was interrupted, 75 for a training run that was stopped by a signal and can be
        resumed, 141 if the reader of the output has exited.
    """
    started = time.monotonic()
    if sys.stderr is None:  # closed: what is printed there would go to the standard output
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    command = argv[0] if argv else "--help"
    speaker = "gic" if command.startswith("-") else f"gic {command}"
    try:
        code = _run(command, list(argv[1:]), started)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except GicError as error:
        if os.environ.get("GIC_TRACEBACK"):
            raise
        problem, code = str(error), error.exit_code
    except OSError as error:
        if error.errno is None or os.environ.get("GIC_TRACEBACK"):
            raise
        if isinstance(error, BrokenPipeError) and command not in (*TRAINING, *BENCHMARK):
            _discard_output()  # the reader of the output has exited, as `head` does
            return PIPE_CLOSED
        unknown = error.filename is None
        problem, code = in_words(error) + (" (GIC_TRACEBACK=1 shows where)" if unknown else ""), USER_ERROR
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "gic") or os.environ.get("GIC_TRACEBACK"):
            raise
        extra = "torch" if command in CODEC else "train"
        problem = f"this takes the extra {extra!r} (the package {package!r} is missing): {install_command(extra)}"
        code = USER_ERROR
    except KeyboardInterrupt:
        problem, code = "interrupted", INTERRUPTED
    _discard_output()
    print(f"{speaker}: {one_line(problem)}", file=sys.stderr)
    return code


def _discard_output() -> None:
    """Write what is left for the standard output, or discard it where it cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # Python would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(command: str, words: list[str], started: float) -> int:
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command == "--version":
        print(__version__)
        return 0
    # compressai's dependency torch_geometric uses a deprecated decorator at import.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    if command in COMMANDS:
        return _run_command(command, words)
    if command in TRAINING:
        from gic.training.cli import make_cli

        make_cli([command, *words], started=started)
        return 0
    if command in BENCHMARK:
        from gic.commands import test

        return test.run(words)
    near = difflib.get_close_matches(command, [*TRAINING, *BENCHMARK, *COMMANDS], 1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    print(f"gic: there is no command {command!r}{hint} (gic --help lists them)", file=sys.stderr)
    return USER_ERROR


def parser_of(command: str) -> Parser:
    """The options of one of :data:`COMMANDS`."""
    parser = Parser(prog=f"gic {command}", description=COMMANDS[command], allow_abbrev=False)
    import_module(f"gic.commands.{command}").add_options(parser)
    return parser


def _run_command(command: str, argv: list[str]) -> int:
    parser = parser_of(command)
    parser.check_names(argv)
    return int(import_module(f"gic.commands.{command}").run(parser.parse_args(argv)))


class Parser(ArgumentParser):
    """Says in one line what is wrong, and which option may be meant."""

    def check_names(self, argv: Sequence[str]) -> None:
        """Stop at an option that does not exist; without this, ``-overwrite`` is ``-o verwrite``."""
        known = self._option_string_actions
        for word in argv:
            name = word.partition("=")[0]
            if word == "--":
                return
            mistyped = name.startswith("--") and name not in known and " " not in word
            if mistyped or f"-{name}" in known:
                plain = name.lstrip("-")
                names = [option.lstrip("-") for option in known]
                near = [n for n in names if n.startswith(plain)] or difflib.get_close_matches(plain, names, 1)
                self.error(f"there is no option {name}" + (f", did you mean --{near[0]}?" if near else ""))

    def error(self, message: str) -> NoReturn:
        """Print the message and stop."""
        print(f"{self.prog}: {message} ({self.prog} --help explains the options)", file=sys.stderr)
        sys.exit(USER_ERROR)
