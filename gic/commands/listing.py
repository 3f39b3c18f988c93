"""Commands and options as data, read from the parsers: what completion and the manual are made of."""

from __future__ import annotations

from argparse import SUPPRESS, Action
from typing import Literal, NamedTuple

from gic.commands.dispatch import BENCHMARK, COMMANDS, TRAINING, TRAINING_OPTIONS, parser_of

_FILES = ("FILE", "FILE.md", "FOLDER", "OUT", "IN", "MASK", "PICTURE", "checkpoint")
"""Placeholders of arguments that are names of files or folders."""


Takes = Literal["", "file", "choices", "text"]


class Argument(NamedTuple):
    """An option or argument.

    Attributes:
        names: Of an option, the short one first; empty for an argument without a name.
        placeholder: Of its value; empty if it takes none.
        takes: Nothing, a ``file``, one of the ``choices``, or ``text``.
        choices: Values that it takes, if it has a list.
        repeated: Whether it may be given more than once.
        text: What it is.
    """

    names: tuple[str, ...]
    placeholder: str
    takes: Takes
    choices: tuple[str, ...]
    repeated: bool
    text: str


class Command(NamedTuple):
    """A command.

    Attributes:
        name: The word after ``gic``.
        text: What it does, in one line.
        description: The same at length.
        usage: How it is called.
        arguments: Its arguments, those without a name first.
        of_config: Whether every key of a config is an option as well.
    """

    name: str
    text: str
    description: str
    usage: str
    arguments: tuple[Argument, ...]
    of_config: bool


def commands() -> list[Command]:
    """All commands, in the order of ``gic --help``."""
    listed = [_read(name, text) for name, text in COMMANDS.items()]
    for name, line in {**TRAINING, **BENCHMARK}.items():
        text = line.partition(": gic ")[0]
        usage = f"gic {name} --config FILE [--KEY VALUE ...]"
        options = tuple(
            Argument((option,), value, _takes(value), (), value == "PACKAGE", words)
            for option, (value, words) in TRAINING_OPTIONS.items()
        )
        listed.append(Command(name, text, f"{line[0].upper()}{line[1:]}", usage, options, True))
    return listed


def _read(name: str, text: str) -> Command:
    parser = parser_of(name)
    actions = sorted(parser._actions, key=lambda action: bool(action.option_strings))
    arguments = tuple(_argument(action) for action in actions if action.help != SUPPRESS and action.dest != "help")
    free = []
    for action in actions:
        if not action.option_strings:
            words = _argument(action).placeholder + (" ..." if action.nargs in ("+", "*") else "")
            free.append(f"[{words}]" if action.nargs in ("?", "*") else words)
    usage = " ".join([f"gic {name} [OPTION ...]", *free])
    description = parser.description or text
    return Command(name, text, f"{description[0].upper()}{description[1:]}", usage, arguments, False)


def _takes(placeholder: str) -> Takes:
    if not placeholder:
        return ""
    return "file" if placeholder in _FILES else "text"


def _argument(action: Action) -> Argument:
    choices = tuple(map(str, action.choices)) if action.choices is not None else ()
    placeholder = str(action.metavar or ",".join(choices) or action.dest.upper()) if action.nargs != 0 else ""
    takes: Takes = "choices" if choices else "file" if action.dest in _FILES else _takes(placeholder)
    text = (action.help or "") % {"default": action.default} if "%" in (action.help or "") else action.help or ""
    repeated = action.nargs in ("+", "*") or type(action).__name__ == "_AppendAction"
    names = tuple(sorted(action.option_strings, key=len))
    return Argument(names, placeholder, takes, choices, repeated, text)
