"""Networks from the description that a file carries: known classes with plain arguments, and nothing else.

A description is a tree of ``class_path`` and ``init_args``. It comes from the author of the file, so a name in it is
looked up in a table. It is imported only if the user trusts its package.
"""

from __future__ import annotations

import importlib
import inspect
import math
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from gic.errors import ConfigError
from gic.method.samplers import Sampler, made, sampler_of, spelled
from gic.names import OLD_NAMES

MAX_WHOLE, MAX_NUMBER, MAX_LENGTH = 1 << 16, 1e6, 64
"""Largest integer, largest other number and longest list among the arguments of a known class."""

Made = TypeVar("Made")


class Vocabulary(NamedTuple):
    """What descriptions may name.

    Attributes:
        known: Classes that a file may name without being trusted, by their names; :data:`gic.names.OLD_NAMES` has older
            ones.
        bases: What described classes derive from, the networks' base first.
        trust: Top-level packages of the user's own classes.
    """

    known: Mapping[str, type[Any]]
    bases: tuple[type[Any], ...]
    trust: tuple[str, ...] = ()


class Network(NamedTuple):
    """A description that has been checked.

    Attributes:
        name: The class' name: its own if it is known, else the file's.
        make: The class.
        arguments: Plain values and further networks by name.
        trusted: Whether it or a network in it was imported because the user trusts its package.
    """

    name: str
    make: type[Any]
    arguments: dict[str, Any]
    trusted: bool

    def tree(self) -> dict[str, Any]:
        """The ``class_path`` / ``init_args`` tree, with checked values only."""
        arguments = {name: v.tree() if isinstance(v, Network) else v for name, v in self.arguments.items()}
        return {"class_path": self.name, "init_args": arguments}


def packages(trust: str | Sequence[str]) -> tuple[str, ...]:
    """Names of trusted packages, checked.

    Raises:
        ConfigError: If one is not the name of a package.
    """
    names = (trust,) if isinstance(trust, str) else tuple(trust)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigError(f"--trust takes a top-level package, such as mypackage, not {_short(name)}")
    return names


def check(description: Any, kind: type[Any], where: str, vocabulary: Vocabulary) -> Network:
    """Check a description; nothing is built, and only classes of trusted packages are imported.

    Args:
        description: ``class_path`` / ``init_args`` tree, from a file.
        kind: Class that the network must be of.
        where: Name of the network in messages.
        vocabulary: What it may name.

    Raises:
        ConfigError: If it names an unknown class or argument, or a value is not of the argument's kind.
    """
    try:
        return _network(description, kind, where, vocabulary)
    except RecursionError as error:
        raise ConfigError(f"the description of {where} is nested too deep") from error


def build(network: Network, kind: type[Made]) -> Made:
    """Make what is described.

    Raises:
        ConfigError: If its arguments do not fit together.
    """
    try:
        result = _made(network)
    except ConfigError:
        raise
    except Exception as error:  # constructors and torch raise many types
        raise ConfigError(f"a network cannot be built from its description: {first_line(error)}") from error
    assert isinstance(result, kind)
    return result


def named_sampler(text: str, trust: str | Sequence[str] = ()) -> Sampler:
    """The sampler that a user names: ``heun``, ``sde(alpha=0.3)``, or a class of a trusted package, ``mine.Slow(3)``.

    Args:
        text: What the user wrote.
        trust: Top-level packages of the user's own classes.

    Raises:
        ConfigError: If there is no such sampler, or it does not take these parameters.
    """
    name, values, named = spelled(text)
    if "." not in name:
        return sampler_of(text)
    kind, _ = _class(name, "--sampler", Vocabulary({}, (Sampler,), packages(trust)))
    if not issubclass(kind, Sampler):
        raise ConfigError(f"{name} is no sampler: it must be a subclass of gic.method.samplers.Sampler")
    return made(kind, values, named)


def first_line(error: BaseException) -> str:
    r"""Message of an error, in one line.

    >>> first_line(ValueError("one\n  two")), first_line(MemoryError())
    ('one', 'MemoryError')
    """
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _made(network: Network) -> Any:
    return network.make(**{name: _made(v) if isinstance(v, Network) else v for name, v in network.arguments.items()})


def _network(description: Any, kind: type[Any], where: str, vocabulary: Vocabulary) -> Network:
    if not isinstance(description, Mapping) or "class_path" not in description:
        raise ConfigError(
            f"{where} must be a {kind.__name__}, described by class_path and init_args, not {_short(description)}"
        )
    unknown = [name for name in description if name not in ("class_path", "init_args")]
    if unknown:
        raise ConfigError(f"{where} is described by class_path and init_args, there is no place for {_short(unknown)}")
    name, given = description["class_path"], description.get("init_args")
    make, trusted = _class(name, where, vocabulary)
    if not issubclass(make, kind):
        raise ConfigError(f"{where} must be a {kind.__name__}, which {_short(name)} is not")
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ConfigError(f"the init_args of {where} must be arguments by name, not {_short(given)}")
    hints = _arguments(make)
    arguments = {}
    for argument, value in given.items():
        if argument not in hints:
            raise ConfigError(f"{where} has an argument {_short(argument)} that {make.__name__} of this gic has not")
        arguments[argument] = _value(value, hints[argument], f"{where}.{argument}", vocabulary, not trusted)
    inner = any(isinstance(value, Network) and value.trusted for value in arguments.values())
    return Network(str(name) if trusted else OLD_NAMES.get(str(name), str(name)), make, arguments, trusted or inner)


def _class(name: Any, where: str, vocabulary: Vocabulary) -> tuple[type[Any], bool]:
    """The class of a name, and whether it had to be trusted."""
    if not isinstance(name, str):
        raise ConfigError(f"the class_path of {where} must be a name, not {_short(name)}")
    name = OLD_NAMES.get(name, name)
    if name in vocabulary.known:
        return vocabulary.known[name], False
    module, _, last = name.rpartition(".")
    first = name.partition(".")[0]
    if not module or first not in vocabulary.trust:
        hint = f": if you trust its author, --trust {first}" if module and first.isidentifier() else ""
        raise ConfigError(f"{where} asks for the class {_short(name)}, which is none of gic's classes: refused{hint}")
    try:
        found = getattr(importlib.import_module(module), last)
    except Exception as error:  # the user's module may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name == first
        hint = "; install the package, or set PYTHONPATH to the folder that it is in" if missing else ""
        problem = f"which cannot be imported: {first_line(error)}{hint}"
        raise ConfigError(f"{where} asks for {_short(name)}, {problem}") from error
    if not isinstance(found, type) or not issubclass(found, vocabulary.bases):
        raise ConfigError(f"{where} asks for {_short(name)}, which is no network")
    return found, True


def _arguments(make: type) -> dict[str, Any]:
    """Types of a class' arguments by name; if it passes ``**kwargs`` on, those of its base class too."""
    hints: dict[str, Any] = {}
    for base in make.__mro__:
        initialise: Any = vars(base).get("__init__")
        if initialise is None:
            continue
        try:
            known = get_type_hints(initialise)
        except Exception:  # type hints of a user's class that cannot be resolved at run time
            known = {}
        handed_on = False
        for parameter in list(inspect.signature(initialise).parameters.values())[1:]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                hints.setdefault(parameter.name, known.get(parameter.name, Any))
            handed_on |= parameter.kind is parameter.VAR_KEYWORD
        if not handed_on:
            break
    return hints


def _value(value: Any, hint: Any, where: str, vocabulary: Vocabulary, bounded: bool) -> Any:
    """Check a value against its type hint; ``bounded`` is for the arguments of known classes."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        rest = [option for option in options if option is not types.NoneType]
        if value is None and len(rest) < len(options):
            return None
        for option in rest[:-1]:
            try:
                return _value(value, option, where, vocabulary, bounded)
            except ConfigError:
                continue
        return _value(value, rest[-1], where, vocabulary, bounded)
    if origin is Literal:
        if not any(type(value) is type(option) and value == option for option in options):
            raise ConfigError(f"{where} must be one of {', '.join(map(str, options))}, not {_short(value)}")
        return value
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, (list, tuple)) or (bounded and len(value) > MAX_LENGTH):
            raise ConfigError(f"{where} must be a list of at most {MAX_LENGTH} values, not {_short(value)}")
        return [_value(item, options[0] if options else Any, where, vocabulary, bounded) for item in value]
    if isinstance(hint, type) and issubclass(hint, vocabulary.bases):
        return _network(value, hint, where, vocabulary)
    if hint in _SIMPLE:
        what, fits = _SIMPLE[hint]
        if not fits(value):
            raise ConfigError(f"{where} must be {what}, not {_short(value)}")
        return _number(value, where, bounded)
    return _plain(value, where, vocabulary, bounded)


def _plain(value: Any, where: str, vocabulary: Vocabulary, bounded: bool) -> Any:
    """Check a value for an argument of a user's class that has no type hint."""
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, vocabulary, bounded) for item in value]
    if isinstance(value, Mapping) and "class_path" in value:
        return _network(value, vocabulary.bases[0], where, vocabulary)
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ConfigError(f"{where} must be a plain value, not {_short(value)}")
    return _number(value, where, bounded)


def _number(value: Any, where: str, bounded: bool) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, not {value}")
    if bounded and isinstance(value, (int, float)):
        limit = MAX_WHOLE if isinstance(value, int) else MAX_NUMBER
        if abs(value) > limit:
            raise ConfigError(f"{where} must be a number of at most {limit:g} in magnitude")
    return value


_SIMPLE: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
    str: ("a text", lambda value: isinstance(value, str)),
}


def _short(value: Any) -> str:
    """A value from a file, for a message: one short line."""
    try:
        return reprlib.repr(value).replace("\n", " ")
    except Exception:  # numbers of thousands of digits, objects of user classes
        return f"a value of the type {type(value).__name__}"
