"""``gic test``: measures weights on real files, beside other codecs; see :mod:`gic.benchmark.benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from jsonargparse import ArgumentParser, Namespace

from gic.configs import PlainErrors, expand_configs, own_error
from gic.errors import MissingExtraError, install_command
from gic.names import TRUST_HELP

NEEDED = ("lightning", "torchmetrics", "webdataset", "matplotlib", "bjontegaard", "tensorboard")
"""Packages of the extra ``train`` that every run uses, the last of them when all is measured."""


def check_packages() -> None:
    """Refuse to start without the packages that a run needs.

    Raises:
        MissingExtraError: If any is not installed; the text names them all.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        what = f"the package {missing[0]!r} is" if len(missing) == 1 else f"the packages {', '.join(missing)} are"
        raise MissingExtraError(f"{what} needed here and not installed: {install_command('train')}")


class Parser(PlainErrors, ArgumentParser):
    """Reports errors in one line."""

    speaker = "gic test"


def parse(argv: Sequence[str]) -> tuple[ArgumentParser, Namespace]:
    """Read the words after ``gic test``."""
    from gic.benchmark.benchmark import Benchmark

    words = expand_configs(argv)
    parser = Parser(
        prog="gic test",
        allow_abbrev=False,
        description="Measure a checkpoint on real files, beside other codecs: curves, BD-rates and a report.",
    )
    parser.add_argument("--config", action="config", help="YAML file; it may contain `extends: other.yaml`")
    parser.add_argument("--ckpt_path", type=str | None, help=".ckpt or .safetensors (default: the package's weights)")
    parser.add_argument("--trust", action="append", type=str, default=[], metavar="PACKAGE", help=TRUST_HELP)
    parser.add_class_arguments(Benchmark, None, sub_configs=False)
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu, gpu, ...")
    parser.add_argument("--devices", type=int | str, default=1, help="processes on each node; auto takes every GPU")
    parser.add_argument("--num_nodes", type=int, default=1, help="machines")
    parser.words = words
    return parser, parser.parse_args(words)


def run(argv: Sequence[str]) -> int:
    """Run ``gic test``; returns the exit code."""
    check_packages()
    from lightning.fabric import Fabric

    from gic.benchmark.benchmark import Benchmark, FabricProcessGroup
    from gic.devices import alone_without_srun, check_accelerator

    alone_without_srun()
    parser, args = parse(argv)
    try:
        made = parser.instantiate(args)
    except ValueError as error:
        raise own_error(error) or error from None
    values = dict(made.as_dict())
    launch = {name: values.pop(name) for name in ("accelerator", "devices", "num_nodes")}
    launch["accelerator"] = check_accelerator(launch["accelerator"])
    checkpoint = values.pop("ckpt_path")
    trust = values.pop("trust")
    values.pop("config", None)
    benchmark = Benchmark(**values)
    benchmark.check(checkpoint)
    many = launch["devices"] != 1 or launch["num_nodes"] != 1
    fabric = Fabric(**launch, strategy="ddp" if many else "auto")
    fabric.launch()
    benchmark.run(FabricProcessGroup(fabric), ["gic", "test", *argv], checkpoint, trust)
    return 0
