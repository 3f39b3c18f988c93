"""An extension of griffe: roles of Sphinx, tables of reStructuredText and doctests in docstrings become Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([\w.]+)`")
DOCTEST = re.compile(r"^>>> .*\n?(?:.+\n?)*", re.M)
TABLE = re.compile(r"^(=+(?: =+)+)\n(.+)\n\1\n((?:.+\n)+?)\1$", re.M)


def markdown(text: str) -> str:
    """A docstring's text in Markdown."""
    text = re.sub(r" *# doctest:.*", "", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)  # which griffe knows
    text = re.sub(r"^::\n", "", re.sub(r"(?<=\S)::$", ":", text, flags=re.M), flags=re.M)  # before literal blocks
    text = DOCTEST.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", text)
    return ROLE.sub(_reference, TABLE.sub(_table, text))


def _reference(match: re.Match[str]) -> str:
    name = match[2]
    shown = name.rpartition(".")[2] if match[1] else name
    return f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'


def _table(match: re.Match[str]) -> str:
    """A simple table, whose columns are as wide as their marks."""
    starts = [mark.start() for mark in re.finditer("=+", match[1])]
    ends = [*(start - 1 for start in starts[1:]), None]

    def row(line: str) -> str:
        cells = (line[start:end].strip() for start, end in zip(starts, ends, strict=True))
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([row(match[2]), "|" + "---|" * len(starts), *map(row, match[3].splitlines())])


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, loader: Any, **_: Any) -> None:
        """Rewrite one; a name without a module is looked for where the docstring stands."""
        if obj.docstring is None:
            return

        def full(match: re.Match[str]) -> str:
            name = match[2]
            if not name.startswith("gic"):
                name = _resolved(obj, name)
            return f":obj:`{'~' if not match[2].startswith('gic') or match[1] else ''}{name}`"

        obj.docstring.value = markdown(ROLE.sub(full, obj.docstring.value))


def _resolved(obj: griffe.Object, name: str) -> str:
    """The path of a name as it is meant where an object's docstring uses it."""
    first, dot, rest = name.partition(".")
    scope: griffe.Object | None = obj
    while scope is not None:
        if first in scope.members:
            member = scope.members[first]
            path = member.target_path if isinstance(member, griffe.Alias) else member.path
            return path + dot + rest
        scope = scope.parent if isinstance(scope.parent, griffe.Object) else None
    return name
