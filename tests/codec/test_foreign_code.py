"""Files that others made run nothing: what a weights file or checkpoint names is neither imported nor unpickled."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from own_networks import OwnCodec, OwnReverse
from PIL import Image
from places import CONFIGS, TESTS
from safetensors.torch import save_file
from small import CONFIG, small_model

import gic
from gic.codec.checkpoints import build_codec, load_codec, read_weights, save_weights
from gic.commands.dispatch import run
from gic.errors import ConfigError

BASE = CONFIGS / "base.yaml"


def described(changes):
    """The small codec's description with values put in other places: ``{"compressor.widths": ...}``."""
    tree = copy.deepcopy(CONFIG)
    for place, value in changes.items():
        *path, last = place.split(".")
        node = tree["init_args"]
        for name in path:
            node = node[name]["init_args"]
        node[last] = value
    return tree


EVIL = {"class_path": "evil_module.Evil", "init_args": {}}
FOREIGN = {
    "a bare name": described({"compressor": "evil_module.Evil"}),
    "a bare name below a class": described({"reverse": {"class_path": "evil_module.Evil"}}),
    "the whole codec": EVIL,
    "the whole codec, bare": "evil_module.Evil",
    "a class in a list": described({"compressor.widths": [EVIL, 8, 8, 8]}),
    "a bare name in a list": described({"compressor.widths": ["evil_module.Evil", 8, 8, 8]}),
    "a class in a number's place": described({"q_min": EVIL}),
    "a class in a text's place": described({"sampler": EVIL}),
    "a name in a text's place": described({"compressor.block": "evil_module.Evil"}),
    "another argument": described({"metric": EVIL}),
    "another key": {**CONFIG, "dict_kwargs": {"extra": EVIL}},
    "a function's name for a class": {"class_path": ["evil_module.Evil"]},
    "another class of gic": {"class_path": "gic.benchmark.picture_codecs.Jpeg"},
    "a network where another belongs": described({"compressor": CONFIG["init_args"]["reverse"]}),
}


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """An importable module and a pickled object that leave a mark; the mark must not be there at the end."""
    mark = tmp_path / "mark"
    folder = tmp_path / "importable"
    folder.mkdir()
    (folder / "evil_module.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil:\n    def __init__(self, **_): pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    # What an environment may say that has programs that trust their checkpoints.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    yield mark
    assert not mark.exists()
    assert "evil_module" not in sys.modules


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_weights(path, config):
    state = {name: tensor.contiguous() for name, tensor in small_model().state_dict().items()}
    save_file(state, path, {"gic": json.dumps({"config": config})})


def checkpoint(config=CONFIG, **more):
    """What Lightning saves, as far as reading it back needs."""
    settings = {"codec": config, "levels": [1.0, 4.0], "realism": [0.0], "metrics": ["psnr"]}
    settings["objective"] = {"class_path": "gic.training.objective.Objective", "init_args": {"lambda_0": 123.0}}
    return {
        "state_dict": {f"codec.{name}": tensor for name, tensor in small_model().state_dict().items()},
        "hyper_parameters": settings | more.pop("hyper_parameters", {}),
        "pytorch-lightning_version": "2.6.0",
        "global_step": 7,
        "epoch": 0,
        **more,
    }


def refused(words, capsys):
    """Run a command, and give the one line that it ends with."""
    capsys.readouterr()
    assert run(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"gic {words[0]}: ")
    assert len(last) < 500
    return last


def lightning(command, pictures, tmp_path, *more):
    return [
        *[command, "--config", str(BASE), "--config", str(TESTS / "tiny.yaml")],
        *["--data.train", str(pictures / "train-*.tar"), "--data.val", str(pictures / "val-000000.tar")],
        *["--trainer.default_root_dir", str(tmp_path), *more],
    ]


# --- descriptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", FOREIGN.values(), ids=FOREIGN)
def test_no_name_in_a_weights_file_is_imported(config, trap, tmp_path, capsys):
    write_weights("w.safetensors", config)
    with pytest.raises(ConfigError) as caught:
        gic.load("w.safetensors", "cpu")
    assert "\n" not in str(caught.value)
    Image.new("RGB", (40, 30)).save("a.png")
    assert "w.safetensors" in refused(["compress", "a.png", "--checkpoint", "w.safetensors"], capsys)
    assert not Path("a.gic").exists()


def test_no_command_imports_what_a_weights_file_names(trap, capsys):
    write_weights("w.safetensors", FOREIGN["a bare name"])
    Path("a.gic").write_bytes(b"any")
    Image.new("RGB", (40, 30)).save("a.png")
    for words in (
        ["decompress", "a.gic", "--checkpoint", "w.safetensors"],
        ["export", "w.safetensors", "-o", "out.safetensors"],
        ["test", "--data", "a.png", "--ckpt_path", "w.safetensors", "--accelerator", "cpu"],
    ):
        assert "compressor must be a Compressor" in refused(words, capsys)
    torch.save(checkpoint(FOREIGN["a bare name"]), "w.ckpt")
    assert "compressor must be a Compressor" in refused(["export", "w.ckpt", "-o", "out.safetensors"], capsys)
    assert not Path("out.safetensors").exists()


WRONG = {
    "integer": ({"compressor.latent_channels": 8.5}, "latent_channels must be an integer"),
    "truth for a number": ({"compressor.latent_channels": True}, "latent_channels must be an integer"),
    "text for a number": ({"q_min": "1"}, "q_min must be a number"),
    "number for truth": ({"compressor.lapped": 1}, "lapped must be true or false"),
    "no list": ({"compressor.widths": 8}, "widths must be a list"),
    "long list": ({"compressor.widths": [8] * 1000}, "widths must be a list"),
    "nothing": ({"steps": None}, "steps must be an integer"),
    "unknown choice": ({"quantizer": "floor"}, "quantizer must be one of round, dither"),
    "not a number": ({"q_min": float("nan")}, "q_min must be a finite number"),
    "infinite": ({"compressor.gain": float("inf")}, "gain must be a finite number"),
    "absurd": ({"compressor.hyper_channels": 10**30}, "hyper_channels must be a number of at most"),
    "absurd float": ({"compressor.gain": 1e300}, "gain must be a number of at most"),
    "too many digits to print": ({"compressor.widths": 10**6000}, "widths must be a list"),
    "too large a network": ({"compressor.hyper_channels": 12000}, "parameters is described"),
    "negative": ({"compressor.latent_channels": -8}, "cannot be built"),
    "lists that differ": ({"reverse.widths": [8, 8]}, "same length"),
    "channels that differ": ({"reverse.latent_channels": 16}, "latent channels"),
    "unknown argument": ({"colour": 1}, "'colour'"),
    "no compressor": ({"compressor": None}, "compressor must be a Compressor"),
}


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_arguments_of_the_wrong_kind_are_named_in_one_line(changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build_codec(described(changes))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_description_without_end_is_refused():
    tree = {"class_path": "own_networks.OwnCodec", "init_args": {"labels": []}}
    inner = tree["init_args"]["labels"]
    for _ in range(100_000):
        inner.append([])
        inner = inner[0]
    with pytest.raises(ConfigError, match="nested too deep"):
        build_codec(tree, trust=["own_networks"])


def test_the_networks_of_gic_are_built_as_described():
    codec = build_codec(described({"compressor.gain": 4, "compressor.synthesis_blocks": None, "reverse.blocks": (2,)}))
    assert codec.compressor.gain == 4
    assert len(codec.reverse.down_blocks[0].blocks) == 2


# --- classes of the user's own ----------------------------------------------------------------------------------------

OWN = {
    "class_path": "own_networks.OwnCodec",
    "init_args": {
        **CONFIG["init_args"],
        "offset": 2.5,
        "labels": ["a", [1, None, True]],
        "reverse": {**CONFIG["init_args"]["reverse"], "class_path": "own_networks.OwnReverse"},
    },
}


def test_classes_of_a_trusted_package_are_built_and_others_are_not(trap, tmp_path, capsys):
    write_weights("w.safetensors", OWN)
    Image.new("RGB", (40, 30), (9, 99, 200)).save("a.png")
    words = ["compress", "a.png", "--checkpoint", "w.safetensors", "--device", "cpu"]
    assert "--trust own_networks" in refused(words, capsys)
    assert run([*words, "--trust", "other", "--trust", "own_networks"]) == 0
    assert run(["decompress", "a.gic", "-o", "b.png", *words[2:], "--trust", "own_networks"]) == 0
    model = gic.load("w.safetensors", "cpu", trust=["own_networks"]).model
    assert type(model) is OwnCodec and type(model.reverse) is OwnReverse
    assert (model.offset, model.labels) == (2.5, ["a", [1, None, True]])
    assert type(gic.load("w.safetensors", "cpu", trust="own_networks").model) is OwnCodec
    measure = ["test", "--data", "a.png", "--ckpt_path", "w.safetensors", "--accelerator", "cpu", "--metrics", "[psnr]"]
    assert run([*measure, "--trust", "own_networks"]) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_path": "own_networks.NUMBER"}, "no network"),
        ({"class_path": "own_networks.make_codec"}, "no network"),
        ({"class_path": "own_networks.OwnReverse"}, "must be a Codec"),
        ({"class_path": "own_networks.Missing"}, "cannot be imported"),
        ({"class_path": "own_networks.missing.Missing"}, "cannot be imported"),
        ({"init_args": {**OWN["init_args"], "offset": "2"}}, "offset must be a number"),
        ({"init_args": {**OWN["init_args"], "steps": "2"}}, "steps must be an integer"),
        ({"init_args": {**OWN["init_args"], "labels": {"a": 1}}}, "labels must be a plain value"),
        ({"init_args": {**OWN["init_args"], "labels": EVIL}}, "evil_module"),
        ({"init_args": {**OWN["init_args"], "labels": float("nan")}}, "labels must be a finite number"),
    ],
)
def test_a_trusted_package_is_no_leave_for_anything_else(changes, said, trap):
    with pytest.raises(ConfigError, match=said) as caught:
        build_codec({**OWN, **changes}, trust=["own_networks"])
    assert "\n" not in str(caught.value)


def test_trust_is_given_to_packages_by_their_first_name():
    for name in ("own_networks.OwnCodec", "", "./own"):
        with pytest.raises(ConfigError, match="top-level package"):
            build_codec(OWN, trust=[name])


# --- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "callbacks", "legacy"])
def test_no_object_in_a_checkpoint_is_made(place, trap, pictures, tmp_path, capsys):
    saved = checkpoint()
    if place == "legacy":  # before PyTorch 1.6, and any pickle
        Path("bad.ckpt").write_bytes(pickle.dumps({**saved, "more": Bomb(trap)}))
    else:
        saved[place] = {**saved.get(place, {}), "more": Bomb(trap)}
        torch.save(saved, "bad.ckpt")
    Image.new("RGB", (40, 30)).save("a.png")
    for words in (
        ["compress", "a.png", "--checkpoint", "bad.ckpt"],
        ["export", "bad.ckpt", "-o", "out.safetensors"],
        ["test", "--data", "a.png", "--ckpt_path", "bad.ckpt", "--accelerator", "cpu"],
        lightning("fit", pictures, tmp_path, "--model.init_from", "bad.ckpt"),
        lightning("fit", pictures, tmp_path, "--ckpt_path", "bad.ckpt"),
        lightning("fit", pictures, tmp_path, "--ckpt_path", "bad.ckpt", "--trainer.callbacks",
                  "[{class_path: gic.training.checkpoint.Checkpoint, init_args: {dirpath: ckpt}}]"),
        lightning("validate", pictures, tmp_path, "--ckpt_path", "bad.ckpt"),
    ):  # fmt: skip
        said = refused(words, capsys)
        assert "bad.ckpt" in said
        assert place == "legacy" or "posix.mkdir" in said


def test_a_checkpoint_that_is_read_with_less_care_is_refused_as_a_setting(trap, pictures, tmp_path, capsys):
    words = lightning("fit", pictures, tmp_path, "--weights_only", "false")
    assert "--weights_only false" in refused(words, capsys)


# --- validate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"codec": FOREIGN["a bare name"]}, "compressor must be a Compressor"),
        ({"codec": FOREIGN["the whole codec"]}, "evil_module.Evil"),
        ({"levels": [EVIL]}, "levels must be a list"),
        ({"levels": [float("nan")]}, "levels must be a list"),
        ({"metrics": [EVIL]}, "metrics must be a list"),
        ({"metrics": "evil_module.Evil"}, "metrics must be a list"),
        (
            {"objective": {"class_path": "gic.training.objective.Objective", "init_args": {"lambda_0": EVIL}}},
            "lambda_0",
        ),
    ],
)
def test_validate_imports_nothing_that_a_checkpoint_names(settings, said, trap, pictures, tmp_path, capsys):
    torch.save(checkpoint(hyper_parameters=settings), "other.ckpt")
    assert said in refused(lightning("validate", pictures, tmp_path, "--ckpt_path", "other.ckpt"), capsys)


def test_validate_takes_from_a_checkpoint_what_it_measures_and_nothing_else(trap, pictures, tmp_path):
    from gic.training.cli import make_cli

    objective = {"class_path": "evil_module.Evil", "init_args": {"lambda_0": 123.0, "terms": {"a": EVIL}}}
    others = {"objective": objective, "optimizer": EVIL, "schedule": EVIL, "_class_path": "evil_module.Evil"}
    others |= {"init_from": "nowhere.ckpt", "_instantiator": "evil_module.Evil", "grid_images": 0}
    torch.save(checkpoint(hyper_parameters=others), "other.ckpt")
    words = lightning("validate", pictures, tmp_path, "--ckpt_path", "other.ckpt")
    assert run(words) == 0
    (report,) = tmp_path.glob("version_*/results/val-*.json")
    rows = json.loads(report.read_text())["mean"]
    assert [(row["q"], row["realism"]) for row in rows] == [(1.0, 0.0), (4.0, 0.0)]
    seen = make_cli(words).model
    assert seen.objective.lambda_0 == 123.0
    assert seen.grid_images == 1 and seen.init_from is None
    # The base config says lapped: true and q_max: 16; the checkpoint's description has no word on either.
    assert seen.codec.compressor.lapped is None and seen.codec.q_max == 8


def test_validate_measures_a_trusted_codec(trap, pictures, tmp_path, capsys):
    torch.save(checkpoint(OWN), "own.ckpt")
    words = lightning("validate", pictures, tmp_path, "--ckpt_path", "own.ckpt")
    assert "--trust own_networks" in refused(words, capsys)
    assert run([*words, "--trust", "own_networks"]) == 0


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_keeps_the_parameters_and_drops_constants_of_older_checkpoints(trap, tmp_path):
    saved = checkpoint(OWN)
    saved["state_dict"]["codec.offset"] = torch.tensor([2.5])
    torch.save(saved, "own.ckpt")
    assert run(["export", "own.ckpt", "-o", "own.safetensors", "--trust", "own_networks"]) == 0
    kept = read_weights("own.safetensors").state
    assert "offset" not in kept
    assert kept.keys() == load_codec("own.ckpt", "own_networks").state_dict().keys()


BOUNDS = {
    "compressor.lower": -2.995732307434082,
    "compressor.upper": -5.545177459716797,
    "compressor.prior_y.lower_bound_scale": 0.11,
    "compressor.prior_y.likelihood_lower_bound": 1e-9,
    "compressor.prior_z.likelihood_lower_bound": 1e-9,
}


def test_checkpoints_with_bounds_among_their_weights_are_exported_and_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = checkpoint()
    for name, value in BOUNDS.items():
        saved["state_dict"][f"codec.{name}.bound"] = torch.tensor([value])
    torch.save(saved, "old.ckpt")
    assert run(["export", "old.ckpt", "-o", "w.safetensors"]) == 0
    codec = load_codec("w.safetensors")
    assert read_weights("w.safetensors").state.keys() == codec.state_dict().keys()
    for name, parameter in small_model().named_parameters():
        assert torch.equal(codec.get_parameter(name), parameter.half().float())


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "is not finite"), (float("-inf"), "is not finite"), (7e4, "reaches 70000, which float16")],
)
def test_export_refuses_parameters_that_its_file_cannot_hold(value, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved = checkpoint()
    saved["state_dict"]["codec.reverse.leave.bias"][3] = value
    torch.save(saved, "w.ckpt")
    line = refused(["export", "w.ckpt", "-o", "w.safetensors"], capsys)
    assert "reverse.leave.bias" in line and said in line
    assert not Path("w.safetensors").exists()
    with pytest.raises(ConfigError, match=said):
        save_weights("w.safetensors", load_codec("w.ckpt").state_dict(), CONFIG)


def test_export_refuses_parameters_that_do_not_fit_their_codec(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for change in ("missing", "more", "other"):
        saved = checkpoint()
        if change == "missing":
            del saved["state_dict"]["codec.reverse.leave.bias"]
        elif change == "more":
            saved["state_dict"]["codec.reverse.more"] = torch.ones(3)
        else:
            saved["state_dict"]["codec.reverse.leave.bias"] = torch.ones(3)
        torch.save(saved, "w.ckpt")
        line = refused(["export", "w.ckpt", "-o", "w.safetensors"], capsys)
        assert "w.ckpt" in line and "reverse." in line and "do not fit" in line
    saved["state_dict"]["codec.reverse.leave.bias"] = "text"
    torch.save(saved, "w.ckpt")
    assert "is no tensor" in refused(["export", "w.ckpt", "-o", "w.safetensors"], capsys)
    assert not Path("w.safetensors").exists()


def test_the_classes_in_the_table_are_networks_and_samplers_of_gic(trap):
    from gic.method.samplers import Sampler
    from gic.models.compressor import ResidualCompressor
    from gic.runtime.pytorch import KNOWN

    assert KNOWN["gic.models.compressor.ResidualCompressor"] is ResidualCompressor
    for name, known in KNOWN.items():
        assert name.startswith(("gic.models.", "gic.method.samplers."))
        assert issubclass(known, (torch.nn.Module, Sampler)), name
