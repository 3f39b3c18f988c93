"""The command line: looks at the first word and imports only what that command needs.

``fit``, ``validate`` and ``test`` are Lightning's; the other commands start without it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

from gic import __version__
from gic.errors import GicError

TRAINING = {
    "fit": "train a codec: gic fit --config configs/base.yaml",
    "validate": "measure a checkpoint on the validation images",
    "test": "measure a checkpoint on the test images",
}
COMMANDS = {
    "shards": ("gic.shards", "shards", "write WebDataset shards from folders of images"),
    "export": ("gic.checkpoint", "export", "turn a training checkpoint into a small weights file"),
}
USER_ERROR = 2


def usage() -> str:
    """Text of ``gic --help``."""
    commands = {**TRAINING, **{name: text for name, (_, _, text) in COMMANDS.items()}}
    lines = "\n".join(f"  {name:<12}{text}" for name, text in commands.items())
    head = f"gic {__version__}: a generative image codec"
    return f"{head}\n\nusage: gic COMMAND ...    (gic COMMAND --help for its options)\n\n{lines}"


def run(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: Words after ``gic``.

    Returns:
        Exit code: 0 for success, 2 for wrong input, which is explained in one line on the standard error.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    command, rest = argv[0], list(argv[1:])
    # compressai's dependency torch_geometric uses a deprecated decorator at import; not our user's concern.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    try:
        if command in TRAINING:
            from gic.lightning_cli import run_lightning

            run_lightning([command, *rest])
        elif command in COMMANDS:
            module, name, _ = COMMANDS[command]
            _run_function(getattr(import_module(module), name), command, rest)
        else:
            import difflib

            near = difflib.get_close_matches(command, [*TRAINING, *COMMANDS], 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            print(f"gic: there is no command {command!r}{hint} (gic --help lists them)", file=sys.stderr)
            return USER_ERROR
    except GicError as error:
        if os.environ.get("GIC_TRACEBACK"):
            raise
        print(f"gic {command}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"gic {command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _run_function(function: Callable[..., object], command: str, argv: list[str]) -> None:
    from jsonargparse import auto_cli

    auto_cli(function, args=argv, prog=f"gic {command}", as_positional=True)
