"""``gic models``: lists sets of weights, fetches them for machines without a network, and puts them on the hub."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gic.codec import hub
from gic.codec.zoo import (
    CHECKPOINT_VARIABLE,
    FOLDER_VARIABLE,
    Entry,
    default_checkpoint,
    entries,
    facts,
    folder_problem,
    locate,
)
from gic.errors import ConfigError, GicError, one_line
from gic.files import replacing

WHERE = {"package": "package", "folder": FOLDER_VARIABLE, "hub": "hub's cache", "file": "file"}


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic models``."""
    parser.description = (
        "List the weights at hand: those in the package, in the folder of the environment variable "
        f"{FOLDER_VARIABLE}, and in the cache of the Hugging Face hub's client. Each name is one that --checkpoint and "
        "gic.load take."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"names or files of weights, or {hub.SCHEME}OWNER/REPO (default: all at hand)",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--download",
        metavar="FOLDER",
        help=f"copy them into a folder, for machines without a network, which find them there by {FOLDER_VARIABLE}",
    )
    action.add_argument("--push", metavar="OWNER/REPO", help="put one on the Hugging Face hub, with a model card")
    parser.add_argument("--card", metavar="FILE.md", help="page that becomes the model card of --push")
    parser.add_argument("--license", metavar="ID", help="licence of the weights in the card of --push: apache-2.0, ...")
    parser.add_argument("--preview", metavar="FOLDER", help="write what --push would upload into a folder instead")
    parser.add_argument("--private", action="store_true", help="--push makes a new repository private")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each")


def run(args: Namespace) -> int:
    """Run ``gic models``; returns the exit code."""
    if args.push is None and (args.card or args.license or args.private or args.preview):
        raise ConfigError("--card, --license, --private and --preview belong to --push OWNER/REPO")
    if args.push is not None and len(args.names) != 1:
        raise ConfigError("--push takes one name or file of weights")
    chosen, code = _chosen(args.names)
    if args.push is not None:
        if code:
            return code
        if args.preview is not None:
            hub.prepare(chosen[0].path, args.push, Path(args.preview), card=args.card, license=args.license)
            print(one_line(f"{chosen[0].name} -> {args.preview}: what would go to {hub.SCHEME}{args.push}"))
            return 0
        private = True if args.private else None
        address = hub.push(chosen[0].path, args.push, card=args.card, license=args.license, private=private)
        print(one_line(f"{chosen[0].name} -> {hub.SCHEME}{args.push}: {address}"))
        return 0
    if args.download is not None:
        _copy(chosen, Path(args.download), args.json, all_there=code == 0)
        return code
    if (problem := folder_problem()) is not None:
        print(one_line(f"gic models: {problem}"), file=sys.stderr)
    found = [(entry, _described(entry)) for entry in chosen]
    if args.names and any("problem" in about and "sha256" not in about for _, about in found):
        code = 2  # something that was named holds no weights
    if args.json:
        for _, about in found:
            print(json.dumps(about))
    elif found:
        _print(found)
    return code


def _chosen(names: Sequence[str]) -> tuple[list[Entry], int]:
    """The weights that were named, all at hand if none were; and 2 if one is missing, which is said."""
    known, code = entries(), 0
    if not names:
        return known, code
    chosen: list[Entry] = []
    for name in names:
        try:
            path = locate(name)
            if not path.is_file():
                raise ConfigError(f"no checkpoint {path}: name an existing .safetensors file")
        except GicError as error:
            print(one_line(f"gic models: {error}"), file=sys.stderr)
            code = 2
            continue
        same = next((entry for entry in known if entry.path == path), None)
        chosen.append(same or Entry(name, "hub" if name.startswith(hub.SCHEME) else "file", path))
    return chosen, code


def _described(entry: Entry) -> dict[str, Any]:
    """What weights are, for ``--json``."""
    about: dict[str, Any] = {"name": entry.name, "origin": entry.origin, "path": str(entry.path)}
    try:
        found = facts(entry.path)
    except (GicError, OSError) as error:
        return {**about, "problem": str(error)}
    return {**about, "default": entry.path == _default(), **found._asdict()}


def _default() -> Path | None:
    try:
        return default_checkpoint()
    except GicError:
        return None


def _print(found: Sequence[tuple[Entry, dict[str, Any]]]) -> None:
    """A table for people."""
    rows = [("NAME", "WHERE", "SIZE", "PARAMETERS", "STEPS q", "MODEL", "SHA-256")]
    notes = []
    for entry, about in found:
        size = f"{about['bytes'] / 1e6:.1f} MB" if "bytes" in about else "-"
        parameters = f"{about['parameters'] / 1e6:.1f} M" if about.get("parameters") else "-"
        steps = f"{about['q_min']:g} to {about['q_max']:g}" if about.get("q_min") else "-"
        model, sha256 = about.get("model") or "-", about.get("sha256", "-")[:12]
        rows.append((one_line(entry.name), WHERE[entry.origin], size, parameters, steps, model, sha256))
        if about.get("default"):
            notes.append(f"{entry.name} is the default")
        if rates := about.get("rates"):
            measured = sorted((bits, q) for q, bits in rates["bits_per_pixel"].items())
            ends = " to ".join(f"{bits:.3f} (q = {q})" for bits, q in (measured[0], measured[-1]))
            notes.append(f"{entry.name}: {ends} bits per pixel, the mean of {rates['pictures']}")
        if about.get("provenance", {}).get("note"):
            notes.append(f"{entry.name}: {about['provenance']['note']}")
        if about.get("problem"):
            notes.append(f"{entry.name}: {about['problem']}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for note in notes:
        print(one_line(note))


def _copy(chosen: Sequence[Entry], folder: Path, as_json: bool, all_there: bool) -> None:
    """Copy weights into a folder, each under the name that finds it there."""
    for entry in chosen:
        if entry.origin == "file" and entry.path.suffix != ".safetensors":
            raise ConfigError(f"{entry.path} is no weights file: make one of it with gic export")
        name = hub.parse(entry.name).file_name if entry.name.startswith(hub.SCHEME) else entry.path.name
        target = folder / name
        if target.exists() and target.samefile(entry.path):
            said = "is there already"
        else:
            with replacing(target) as temporary, entry.path.open("rb") as source:
                temporary.write_bytes(source.read())
            said = f"{target.stat().st_size / 1e6:.1f} MB"
        about = {"name": entry.name, "path": str(target), "bytes": target.stat().st_size}
        print(json.dumps(about) if as_json else one_line(f"{entry.name} -> {target}: {said}"))
    if not as_json and chosen and all_there:
        print(f"use them by name, also without a network: export {FOLDER_VARIABLE}={folder.resolve()}")
        print(f"the default for all commands: export {CHECKPOINT_VARIABLE}={chosen[0].name}")
