"""``gic export``: a training checkpoint to a small weights file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from gic.errors import ConfigError
from gic.files import is_stream


def add_options(parser: ArgumentParser) -> None:
    """Options of ``gic export``."""
    from gic.commands.jobs import add_trust_option

    parser.add_argument("checkpoint", help="training checkpoint, .ckpt")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="weights file to write, .safetensors")
    parser.add_argument("--note", metavar="TEXT", help="where the weights come from, kept in the file: data, licence")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_trust_option(parser)


def run(args: Namespace) -> int:
    """Turn a training checkpoint into a small weights file (float16, safetensors); returns the exit code.

    Raises:
        ConfigError: If the output exists, the checkpoint cannot be read, or its parameters are not those of its codec.
    """
    from gic.codec.checkpoints import export_checkpoint

    output = Path(args.output)
    if output.exists() and not is_stream(output) and not args.overwrite:
        raise ConfigError(f"{output} exists: give --overwrite to replace it")
    if output.suffix != ".safetensors":
        raise ConfigError(f"the output must end in .safetensors, not {output}")
    export_checkpoint(args.checkpoint, output, args.note, args.trust)
    size = "" if is_stream(output) else f"{output.stat().st_size / 1e6:.1f} MB, "
    print(f"written: {output} ({size}float16: a new model, which decodes its own files)")
    return 0
