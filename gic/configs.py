"""Configs that extend other configs, and how command lines say what is wrong with them."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import yaml

from gic.errors import ConfigError, GicError
from gic.names import OLD_NAMES, current

EXTENDS = "extends"
_NOT_ACCEPTED = re.compile(
    r"Option '(\w+)(?:\.[\w.]+)?' is not accepted|"
    r"(?:[Uu]nrecognized arguments: --|does not accept option ')(?:\w+\.)*(\w+)"
)
_FROM = "# from "  # first line of a config that was written anew, before the name of its file
_USUAL = (
    "lightning.Trainer",
    "gic.data.module.ImageData",
    "gic.training.module.LitCodec",
    "gic.models.codec.Codec",
    "gic.training.checkpoint.Checkpoint",
    "gic.benchmark.benchmark.Benchmark",
)


def expand_configs(argv: Sequence[str]) -> list[str]:
    """Put the configs that a config ``extends`` in front of it.

    A config may say ``extends: other.yaml`` (or a list), relative to itself. What it sets overrides what they set.
    Names that classes had in earlier versions are brought up to date, in configs and on the command line.

    Args:
        argv: Words of the command line.

    Returns:
        The words with each ``--config FILE`` preceded by the files it extends, and the key ``extends`` taken out.

    Raises:
        ConfigError: If a file is missing, is no YAML mapping, or extends itself.
    """
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("--config", "-c") and rest:
            words += _expand(Path(rest.pop(0)), ())
        elif word.startswith("--config="):
            words += _expand(Path(word.partition("=")[2]), ())
        else:
            name, equals, value = word.rpartition("=")
            words.append(name + equals + OLD_NAMES.get(value, value))
    return words


def _expand(path: Path, above: tuple[Path, ...]) -> list[str]:
    resolved = path.resolve()
    if resolved in above:
        raise ConfigError(f"{path} extends itself, by way of {' -> '.join(p.name for p in above)}")
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        whose = f" ({above[-1]} extends it)" if above else ""
        raise ConfigError(f"the config {path} cannot be read: {error.strerror}{whose}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the config {path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"the config {path} must be a YAML mapping")
    as_written = data
    data = current(data)
    parents = data.pop(EXTENDS, None)
    if parents is None and data == as_written:
        return ["--config", str(path)]
    parents = [parents] if isinstance(parents, str) else parents or []
    words = [word for parent in parents for word in _expand(path.parent / parent, (*above, resolved))]
    return [*words, "--config", f"{_FROM}{path}\n{yaml.safe_dump(data, sort_keys=False)}"] if data else words


def explained(key: str, words: Sequence[str]) -> str:
    """Where a key that is not accepted was given, and the name that may be meant.

    Args:
        key: The key.
        words: What :func:`expand_configs` gives.

    Example:
        >>> explained("q_mni", ["--config", "model: {codec: {class_path: gic.models.codec.Codec, q_mni: 1}}"])
        ': model.codec.q_mni in a config; did you mean q_min?'
    """
    places: dict[str, None] = {}
    classes: dict[str, None] = {}

    def search(value: object, at: str, source: str) -> None:
        if isinstance(value, dict):
            if "class_path" in value:
                classes[str(value["class_path"])] = None
            for name, part in value.items():
                path = f"{at}.{name}" if at else str(name)
                if name == key:
                    places[f"{path} in {source}"] = None
                search(part, path, source)

    for option, text in pairwise(words):
        if option == "--config":
            written = Path(text).read_text() if text.endswith((".yaml", ".yml")) else text
            first = written.partition("\n")[0]
            name = first.removeprefix(_FROM) if first.startswith(_FROM) else "a config" if written is text else text
            search(yaml.safe_load(written), "", name)
    given = {word: re.split(r"[-.]", word.partition("=")[0])[-1] for word in words if word.startswith("--")}
    places |= {f"{word} on the command line": None for word, name in given.items() if name == key}
    near = difflib.get_close_matches(key, _parameters(classes), 1)
    text = f": {' or '.join(places)}" if places else ""
    return text + (f"; did you mean {near[0]}?" if near else "")


def _parameters(classes: Iterable[str]) -> list[str]:
    """Names of the parameters of classes of gic, of its trainer and its data among them."""
    names: dict[str, None] = {}
    for path in [*classes, *_USUAL]:
        module, _, name = path.rpartition(".")
        if module.partition(".")[0] in ("gic", "lightning", "torch"):
            try:
                names.update(dict.fromkeys(inspect.signature(getattr(import_module(module), name)).parameters))
            except (ImportError, AttributeError, TypeError, ValueError):
                continue
    return list(names)


def own_error(error: BaseException) -> GicError | None:
    """What a constructor of gic's said, in the error that jsonargparse has wrapped it in; None if it was no such."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, GicError):
        cause = cause.__cause__
    return cause


class PlainErrors:
    """For a parser of jsonargparse: says what is wrong without the pages of usage before it."""

    speaker = "gic"
    """Who says so."""
    explained_by = "--help"
    """Options that explain the others."""
    words: Sequence[str] = ()
    """What is parsed, as :func:`expand_configs` gives it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and stop; of a name that is not accepted, say where it is and what may be meant."""
        if match := _NOT_ACCEPTED.search(message):
            message += explained(match[1] or match[2], self.words)
        print(f"{self.speaker}: {message}", file=sys.stderr)
        print(f"{self.speaker}: --print_config shows every setting; {self.explained_by} explains them", file=sys.stderr)
        sys.exit(2)
