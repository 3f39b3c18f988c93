"""The command line: reads the first word and imports only what that command needs.

``fit`` and ``validate`` are Lightning's, ``test`` is the benchmark; the other commands start without either.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module

from gic.errors import GicError
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
    "info": "show the contents of a .gic file",
    "shards": "write WebDataset shards from folders of pictures",
    "export": "turn a training checkpoint into a small weights file",
    "weights": "list or fetch the weights that metrics need",
}
USER_ERROR = 2
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
        Exit code: 0 for success, 2 for wrong input, which is explained in one line on the standard error, 75 for a
        training run that was stopped by a signal and can be resumed, 141 if the reader of the output has exited.
    """
    started = time.monotonic()
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    command, rest = argv[0], list(argv[1:])
    # compressai's dependency torch_geometric uses a deprecated decorator at import.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    try:
        if command in COMMANDS:
            return _run_command(command, rest)
        if command in TRAINING:
            from gic.training.cli import make_cli

            make_cli([command, *rest], started=started)
            return 0
        if command in BENCHMARK:
            from gic.commands import test

            return test.run(rest)
    except GicError as error:
        if os.environ.get("GIC_TRACEBACK"):
            raise
        print(f"gic {command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"gic {command}: interrupted", file=sys.stderr)
        return 130
    import difflib

    near = difflib.get_close_matches(command, [*TRAINING, *BENCHMARK, *COMMANDS], 1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    print(f"gic: there is no command {command!r}{hint} (gic --help lists them)", file=sys.stderr)
    return USER_ERROR


def _run_command(command: str, argv: list[str]) -> int:
    module = import_module(f"gic.commands.{command}")
    parser = ArgumentParser(prog=f"gic {command}", description=COMMANDS[command])
    module.add_options(parser)
    options = parser.parse_args(argv)
    try:
        code = int(module.run(options))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has exited, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code
