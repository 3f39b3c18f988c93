"""``gic completion``: scripts that make a shell complete gic's commands and options."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gic.commands.listing import Command

SHELLS = ("bash", "zsh", "fish")


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic completion``."""
    parser.description = (
        "Print a script for a shell. For this session: source <(gic completion bash), or zsh; gic completion fish | "
        "source. For all: put that line at the end of ~/.bashrc or ~/.zshrc, or write the script to "
        "~/.config/fish/completions/gic.fish."
    )
    parser.add_argument("shell", choices=SHELLS, help="whose script")


def run(args: Namespace) -> int:
    """Run ``gic completion``; returns the exit code."""
    from gic.commands.listing import commands

    made: dict[str, Callable[[list[Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    print(made[args.shell](commands()), end="")
    return 0


def _bash(commands: list[Command]) -> str:
    values: list[str] = []
    own: list[str] = []  # whose values nobody can guess
    names = []
    for command in commands:
        for argument in command.arguments:
            words = [shlex.quote(f"{command.name} {name}") for name in argument.names]
            if argument.takes == "choices" and words:
                values.append(f'        {"|".join(words)}) _gic_words "{" ".join(argument.choices)}"; return ;;')
            elif argument.takes == "file" and words:
                values.append(f"        {'|'.join(words)}) return ;;")
            elif argument.takes == "text":
                own += words
        options = " ".join([*(name for argument in command.arguments for name in argument.names), "--help"])
        free = " ".join(choice for argument in command.arguments if not argument.names for choice in argument.choices)
        names.append(f'        {command.name}) options="{options}" words="{free}" ;;')
    values.append(f"        {'|'.join(own)}) compopt +o default +o bashdefault 2>/dev/null; return ;;")
    return f"""# Completion of gic for bash: source <(gic completion bash)
_gic_words() {{ COMPREPLY=($(compgen -W "$1" -- "${{COMP_WORDS[COMP_CWORD]}}")); }}
_gic() {{
    local command=${{COMP_WORDS[1]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} options= words=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _gic_words "{" ".join(command.name for command in commands)} --help --version"
        return
    fi
    case "$command $previous" in
{chr(10).join(values)}
    esac
    case $command in
{chr(10).join(names)}
    esac
    if [[ ${{COMP_WORDS[COMP_CWORD]}} == -* ]]; then
        _gic_words "$options"
    elif [[ $words ]]; then
        _gic_words "$words"
    fi
}}
complete -o default -o bashdefault -F _gic gic
"""


def _zsh(commands: list[Command]) -> str:
    def escaped(text: str) -> str:
        for letter in "\\[]:":
            text = text.replace(letter, f"\\{letter}")
        return text

    cases = []
    for command in commands:
        specs = []
        for argument in command.arguments:
            end = {"file": "_files", "choices": f"({' '.join(argument.choices)})", "text": " "}.get(argument.takes, "")
            value = f":{escaped(argument.placeholder)}:{end}" if end else ""
            if not argument.names:
                specs.append(f"'{'*' if argument.repeated else ''}{value}'")
                continue
            for name in argument.names:
                others = "" if argument.repeated else f"({' '.join(argument.names)})"
                text = escaped(argument.text).replace("'", "'\\''")
                specs.append(f"'{others}{'*' if argument.repeated else ''}{name}[{text}]{value}'")
        lines = " \\\n                ".join([*specs, "'(- *)--help[show the options]'"])
        cases.append(f"        {command.name})\n            _arguments -s \\\n                {lines} ;;")
    listed = "\n".join(f"            {shlex.quote(f'{c.name}:{escaped(c.text)}')}" for c in commands)
    return f"""#compdef gic
# Completion of gic for zsh: source <(gic completion zsh), after compinit
_gic() {{
    local -a commands
    if ((CURRENT == 2)); then
        commands=(
{listed}
        )
        _describe command commands
        return
    fi
    shift words
    ((CURRENT--))
    case $words[1] in
{chr(10).join(cases)}
    esac
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _gic "$@"; else compdef _gic gic; fi
"""


def _fish(commands: list[Command]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = ["# Completion of gic for fish: gic completion fish | source"]
    for command in commands:
        lines.append(f"complete -c gic -n __fish_use_subcommand -f -a {command.name} -d {quoted(command.text)}")
    for command in commands:
        start = f"complete -c gic -n '__fish_seen_subcommand_from {command.name}'"
        lines.append(f"{start} -l help -d 'show the options'")
        for argument in command.arguments:
            choices = quoted(" ".join(argument.choices))
            takes = {"file": " -r -F", "choices": f" -x -a {choices}", "text": " -x"}.get(argument.takes, "")
            if argument.names:
                flags = "".join(f" -l {n[2:]}" if n.startswith("--") else f" -s {n[1:]}" for n in argument.names)
                lines.append(f"{start}{flags}{takes} -d {quoted(argument.text)}")
            elif argument.takes == "choices":
                lines.append(f"{start} -f -a {choices}")
    return "\n".join(lines) + "\n"
