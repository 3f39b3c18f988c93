"""The manual of all commands, from their parsers: the page that ``man gic`` shows, and the tables of the documentation.

``python -m gic.commands.manual docs`` writes both anew: ``docs/gic.1`` and the second half of ``docs/commands.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gic.commands.listing import Argument, Command, commands
from gic.files import write_bytes

EXIT_STATUS = {
    0: "Everything was done.",
    2: "Something given cannot be used, or a result was not written. One line on the standard error says what, where, "
    "and what to do. A wrong option or a missing input stops a command before it begins; where one of several files "
    "fails, the others are done.",
    75: "A training run was stopped by a signal after its checkpoint was written: the same command with --ckpt_path "
    "goes on.",
    130: "Interrupted (Ctrl-C). No file is half written; --skip-existing goes on with a folder.",
    141: "The program that read the output has ended.",
}
"""What each exit code means. Any other is an error in gic, with a traceback."""
ENVIRONMENT = {
    "GIC_CHECKPOINT": "Weights to use where --checkpoint is not given: a file, a name, or hf://OWNER/REPO.",
    "GIC_MODELS": "A folder of weights files that are found by name, also without a network; gic models --download "
    "fills it.",
    "GIC_METRIC_WEIGHTS": "A folder with the weights that metrics need, see gic weights.",
    "GIC_TRACEBACK": "1 shows where an error came from.",
}
EXAMPLES = (
    "gic compress photo.png --bpp 0.25",
    "gic decompress photo.gic -o picture.png --realism 0.8",
    "gic compress ~/photos -o compressed/ --max-bytes 20000 --skip-existing",
    "gic models",
)
BEGIN = "<!-- What follows is made from the parsers: python -m gic.commands.manual docs -->"


def man_page(listed: Sequence[Command]) -> str:
    """The manual in roff, for ``man``."""
    lines = [
        '.TH GIC 1 "" "gic" "User Commands"',
        ".SH NAME",
        r"gic \- generative image codec, and the framework that trains it",
        ".SH SYNOPSIS",
        r".B gic",
        r"\fICOMMAND\fR [\fIOPTION\fR ...] [\fIFILE\fR ...]",
        ".SH DESCRIPTION",
        "Compresses pictures to .gic files of any size and turns them back into pictures, closest to the original or "
        "most like a photograph; trains the networks that do so, and measures them beside other codecs.",
        ".SH COMMANDS",
    ]
    for command in listed:
        lines += [f".SS gic {_roff(command.name)}", _roff(_sentence(command.description))]
        lines += [".PP", rf"\fB{_roff(command.usage)}\fR"]
        for argument in command.arguments:
            lines += [".TP", _roff_head(argument), _roff(argument.text)]
        if command.of_config:
            lines += [".PP", r"Every key of the settings is an option, too: \-\-KEY VALUE."]
    lines.append(".SH EXIT STATUS")
    for code, text in EXIT_STATUS.items():
        lines += [".TP", rf"\fB{code}\fR", _roff(text)]
    lines.append(".SH ENVIRONMENT")
    for name, text in ENVIRONMENT.items():
        lines += [".TP", rf"\fB{name}\fR", _roff(text)]
    lines += [".SH EXAMPLES", ".nf", *map(_roff, EXAMPLES), ".fi"]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    return f"\\&{text}" if text.startswith(".") else text


def _roff_head(argument: Argument) -> str:
    value = rf" \fI{_roff(argument.placeholder)}\fR" if argument.placeholder else ""
    return ", ".join(rf"\fB{_roff(name)}\fR" for name in argument.names) + value if argument.names else value.strip()


def _sentence(text: str) -> str:
    return text if text.endswith((".", ":")) else f"{text}."


def tables(listed: Sequence[Command]) -> str:
    """The same in Markdown."""
    parts = []
    for command in listed:
        rows = []
        for argument in command.arguments:
            names = ", ".join(f"`{name}`" for name in argument.names)
            value = f"`{argument.placeholder}`" if argument.placeholder else ""
            rows.append(f"| {' '.join(filter(None, [names, value]))} | {_cell(argument.text)} |".replace("` `", " "))
        more = "\n\nEvery key of the settings is an option, too: `--KEY VALUE`." if command.of_config else ""
        table = "\n".join(["| option | what |", "|---|---|", *rows])
        parts.append(f"### gic {command.name}\n\n{_cell(_sentence(command.description))}\n\n{table}{more}")
    status = "\n".join(f"| {code} | {text} |" for code, text in EXIT_STATUS.items())
    environment = "\n".join(f"| `{name}` | {text} |" for name, text in ENVIRONMENT.items())
    return (
        f"## Exit codes\n\n| code | meaning |\n|---:|---|\n{status}\n\n"
        f"## Environment\n\n| variable | what |\n|---|---|\n{environment}\n\n"
        f"## Options\n\n" + "\n\n".join(parts) + "\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def main(folder: Path) -> None:
    """Write both into the folder of the documentation."""
    listed = commands()
    write_bytes(folder / "gic.1", man_page(listed).encode())
    page = folder / "commands.md"
    head = page.read_text(encoding="utf-8").partition(BEGIN)[0]
    write_bytes(page, f"{head}{BEGIN}\n\n{tables(listed)}".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
