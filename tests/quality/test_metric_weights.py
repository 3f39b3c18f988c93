"""Where weights of metrics are looked for, that they are read as tensors only, and what is said when there are none."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from http.client import IncompleteRead
from urllib.error import HTTPError, URLError

import pytest
import torch
from metric_files import Payload, isolate, save_cnniqa

from gic.commands.dispatch import run
from gic.errors import ConfigError, MissingExtraError, require
from gic.quality import weights as metric_weights
from gic.quality.metrics import make_metric
from gic.quality.networks import build_pyiqa
from gic.quality.table import FILES, METRICS
from gic.quality.weights import find, hub_folder, library_weights, named_files

CNNIQA = "CNNIQA_koniq10k-e6f14c91.pth"
SCORED = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No network, no weights; gives torch hub's folder."""
    return isolate(monkeypatch, tmp_path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(path))
    return path


def served(monkeypatch, source):
    """Downloads yield a file; returns the list of what was downloaded."""
    asked = []

    def download(url, dst, *args, **kwargs):
        asked.append(url)
        shutil.copy(source, dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


# --- where ------------------------------------------------------------------------------------------------------------


def test_a_named_path_comes_before_the_folder_and_the_folder_before_the_cache(folder, no_network):
    name = "niqe_modelparameters.mat"
    assert find("niqe") is None
    (no_network / "pyiqa").mkdir(parents=True)
    (no_network / "pyiqa" / name).touch()
    assert find("niqe") == no_network / "pyiqa" / name
    (folder / name).touch()
    assert find("niqe") == folder / name
    assert find("niqe", {"niqe": folder / "mine.mat"}) == folder / "mine.mat"


def test_the_cache_is_torch_hubs(monkeypatch, tmp_path):
    for variable, path in (("TORCH_HOME", "a"), ("XDG_CACHE_HOME", "b"), ("HOME", "c")):
        monkeypatch.delenv("TORCH_HOME", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv(variable, str(tmp_path / path))
        assert str(hub_folder()) == torch.hub.get_dir()


@pytest.mark.parametrize("place", ["named", "folder", "cache"])
def test_pyiqa_finds_a_file_in_each_place(place, folder, no_network, tmp_path):
    paths = {"named": tmp_path / "mine.pth", "folder": folder / CNNIQA, "cache": no_network / "pyiqa" / CNNIQA}
    paths[place].parent.mkdir(parents=True, exist_ok=True)
    path = save_cnniqa(paths[place])
    network, used = build_pyiqa("cnniqa", {"cnniqa": path} if place == "named" else None)
    assert used == [path]
    state = torch.load(path)["params"]
    assert all(torch.equal(values, state[name]) for name, values in network.net.state_dict().items())


def test_the_places_are_tried_in_this_order(folder, no_network, tmp_path):
    (no_network / "pyiqa").mkdir(parents=True)
    named, inside = save_cnniqa(tmp_path / "mine.pth", 1), save_cnniqa(folder / CNNIQA, 2)
    save_cnniqa(no_network / "pyiqa" / CNNIQA, 3)
    assert build_pyiqa("cnniqa")[1] == [inside]
    assert build_pyiqa("cnniqa", {"cnniqa": named})[1] == [named]


def test_a_download_goes_to_the_librarys_cache_and_is_used_again(monkeypatch, no_network, tmp_path):
    asked = served(monkeypatch, save_cnniqa(tmp_path / "source.pth"))
    for _ in range(2):
        assert build_pyiqa("cnniqa")[1] == [no_network / "pyiqa" / CNNIQA]
    assert len(asked) == 1


def test_nothing_is_downloaded_where_that_is_not_wanted(monkeypatch, tmp_path):
    asked = served(monkeypatch, save_cnniqa(tmp_path / "source.pth"))
    with pytest.raises(ConfigError, match=CNNIQA):
        build_pyiqa("cnniqa", download=False)
    assert not asked


def test_the_world_is_as_before_when_a_metric_is_built(folder):
    from pyiqa.utils import download_util

    save_cnniqa(folder / CNNIQA)
    names = ("DEFAULT_CACHE_DIR", "download_url_to_file")

    def world():
        changed = [getattr(download_util, name) for name in names]
        return (
            dict(os.environ),
            changed,
            torch.hub.download_url_to_file,
            socket.getdefaulttimeout(),
            torch.get_rng_state(),
        )

    *before, state = world()
    build_pyiqa("cnniqa")
    *after, now = world()
    assert before == after
    assert torch.equal(state, now)


# --- named by the user ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"lpips_alx": "x"}, "lpips_alex"),
        ({"niqe": "nowhere.mat"}, r"nowhere\.mat"),
        ({"kid768": "x"}, "name it fid768"),
        ({"psnr": "x"}, "it needs none"),
    ],
)
def test_wrong_names_are_errors(weights, said):
    with pytest.raises(ConfigError, match=said):
        named_files(weights)


def test_a_folder_that_is_none_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere, which is no folder"):
        find("niqe")


def test_a_file_that_a_metric_has_no_use_for_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="asks for no file"):
        build_pyiqa("entropy", {"entropy": save_cnniqa(tmp_path / "x.pth")})


def test_the_wrong_file_is_named(tmp_path):
    torch.save({"params": {}}, tmp_path / "wrong.pth")
    with pytest.raises(ConfigError, match=r"wrong\.pth cannot be used as weights of cnniqa"):
        build_pyiqa("cnniqa", {"cnniqa": tmp_path / "wrong.pth"})


# --- tensors only -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cnniqa", "brisque", "lpips_alex", "fid768", "clipiqa"])
def test_a_file_that_must_be_unpickled_is_refused_and_not_run(metric, tmp_path):
    made = tmp_path / "made by unpickling"
    torch.save({"params": Payload(made)}, tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match=r"bad\.pth"):
        make_metric(metric, {metric: str(tmp_path / "bad.pth")})
    assert not made.exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert made.exists()  # the file would have done it


# --- no network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["lpips_squeeze", "dists", "kid", "fid768", "clipiqa", "musiq"])
def test_without_weights_and_network_the_error_says_what_to_do(metric):
    with pytest.raises(ConfigError) as error:
        make_metric(metric)
    assert "cannot be had" in str(error.value)
    assert f"gic weights {METRICS[metric].weights[0]} --download" in str(error.value)
    assert "GIC_METRIC_WEIGHTS" in str(error.value)
    assert any(name in str(error.value) for key in METRICS[metric].weights for name in FILES[key].names)


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route"),
        HTTPError("https://x", 404, "Not Found", {}, None),  # type: ignore[arg-type]
        TimeoutError("timed out"),
        IncompleteRead(b"half"),
        RuntimeError("invalid hash value"),
    ],
)
def test_whatever_a_failed_download_raises_becomes_one_error(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ConfigError, match="cannot be had"):
        build_pyiqa("cnniqa")


def test_a_backbone_that_no_file_fills_is_not_left_at_random(monkeypatch):
    """A metric that needs ImageNet weights beside its own asks the library for them, at once and without repeating."""
    import timm
    from pyiqa.default_model_configs import DEFAULT_CONFIGS
    from pyiqa.utils.registry import ARCH_REGISTRY

    class NeedsImageNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model("resnet10t", pretrained=True)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "NeedsImageNet", NeedsImageNet)
    config = {"metric_opts": {"type": "NeedsImageNet"}, "metric_mode": "NR"}
    monkeypatch.setitem(DEFAULT_CONFIGS, "needs_imagenet", config)
    with pytest.raises(ConfigError, match="the weights of needs_imagenet cannot be had"):
        build_pyiqa("needs_imagenet")


def test_a_missing_package_is_named():
    with pytest.raises(MissingExtraError, match="pip install 'setuptools<81'"), library_weights("niqe"):
        raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")


# --- gic weights ------------------------------------------------------------------------------------------------------


def listed(words, capsys):
    code = run(["weights", *words, "--json"])
    return code, {state["metric"]: state for state in json.loads(capsys.readouterr().out)}


def test_the_list_says_what_is_there_and_how_large(folder, capsys):
    (folder / "niqe_modelparameters.mat").write_bytes(b"x" * 1234)
    code, states = listed([], capsys)
    assert code == 0
    assert list(states) == list(METRICS)
    (file,) = states["niqe"]["files"]
    assert (states["niqe"]["ready"], file["bytes"]) == (True, 1234)
    assert file["path"] == str(folder / "niqe_modelparameters.mat")
    assert not states["dists"]["ready"]
    assert [file["key"] for file in states["dists"]["files"]] == ["dists", "dists_vgg"]
    assert states["psnr"] == {"metric": "psnr", "ready": True, "files": [], "problem": None}


def test_the_exit_code_says_whether_what_was_named_is_there(folder, capsys):
    (folder / "niqe_modelparameters.mat").touch()
    assert listed(["niqe", "psnr"], capsys)[0] == 0
    assert listed(["niqe", "brisque"], capsys)[0] == 2
    assert run(["weights", "brisque"]) == 2
    assert f"not at {folder / 'brisque_svm_weights.pth'}" in capsys.readouterr().out


def test_other_metrics_of_pyiqa_are_tried(folder, capsys):
    code, states = listed(["cnniqa"], capsys)
    assert code == 2
    assert CNNIQA in states["cnniqa"]["problem"]
    save_cnniqa(folder / CNNIQA)
    assert listed(["cnniqa", "entropy"], capsys)[0] == 0


def test_an_unknown_metric_is_an_error(capsys):
    assert run(["weights", "niqee"]) == 2
    assert "near: niqe" in capsys.readouterr().err


def test_download_fetches_what_is_missing(monkeypatch, no_network, tmp_path, capsys):
    torch.save((torch.zeros(1, 5), torch.zeros(36, 5)), tmp_path / "svm.pth")
    assert listed(["brisque", "--download"], capsys)[0] == 2
    asked = served(monkeypatch, tmp_path / "svm.pth")
    code, states = listed(["brisque", "--download"], capsys)
    assert code == 0
    assert states["brisque"]["files"][0]["path"] == str(no_network / "pyiqa" / "brisque_svm_weights.pth")
    assert len(asked) == 1


def test_the_list_needs_no_torch():
    run = "from gic.commands.dispatch import run; run(['weights', '--json'])"
    code = f"import sys; {run}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_every_file_is_needed_and_every_need_is_a_file():
    assert {key for entry in METRICS.values() for key in entry.weights} == set(FILES)
    assert metric_weights.VARIABLE == "GIC_METRIC_WEIGHTS"


def test_a_package_that_lacks_another_says_which(tmp_path, monkeypatch):
    (tmp_path / "incomplete.py").write_text("import surely_absent.part")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match=r"'incomplete' needs 'surely_absent', .* pip install .*\[train\]"):
        require("incomplete")
    with pytest.raises(MissingExtraError, match="'surely_absent' is needed here"):
        require("surely_absent")
