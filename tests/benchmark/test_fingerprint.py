"""Kept measurements are used only while the code behind them is the same: every source of the codec counts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small import CONFIG, small_codec, small_model

import gic
from gic.benchmark.codecs import WITHOUT_INFLUENCE, Gic, _code_hash, sources
from gic.codec.checkpoints import save_weights

PACKAGE = Path(gic.__file__).parent

USED = """
import sys
from pathlib import Path
from PIL import Image
import gic
codec = gic.load("w.safetensors", "cpu")
image = Image.effect_noise((80, 70), 50).convert("RGB")
for quantizer in ("round", "dither"):
    codec.decompress(codec.compress(image, q=2.0, quantizer=quantizer), sampler="restart", realism=0.5)
modules = [module for name, module in sys.modules.items() if name == "gic" or name.startswith("gic.")]
print("\\n".join(str(Path(module.__file__)) for module in modules))
"""


def test_every_module_that_coding_imports_counts_and_the_c_code_too(tmp_path):
    save_weights(tmp_path / "w.safetensors", small_model().state_dict(), CONFIG)
    done = subprocess.run([sys.executable, "-c", USED], cwd=tmp_path, capture_output=True, text=True, check=True)
    used = {Path(line) for line in done.stdout.split()}
    expected = {"image_codec", "onnx", "graph", "layers", "parts", "posterior", "lot", "coder", "sde", "loops"}
    assert expected <= {path.stem for path in used}
    assert used <= set(sources())
    assert PACKAGE / "_loops.c" in sources()


def test_a_source_is_left_out_by_name_alone(tmp_path):
    for name in WITHOUT_INFLUENCE:
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), name
    everything = {path for suffix in ("py", "c") for path in PACKAGE.rglob(f"*.{suffix}")}
    left_out = {path.relative_to(PACKAGE).parts[0].split(".")[0] for path in everything - set(sources())}
    assert left_out == set(WITHOUT_INFLUENCE)
    (tmp_path / "folder").mkdir()
    for name in ("new.py", "new.c", "folder/new.py", "training.py"):
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sources(tmp_path)] == ["folder/new.py", "new.c", "new.py"]


def test_without_a_package_the_one_that_runs_is_meant():
    assert sources() == sources(PACKAGE) and len(sources()) > 1
    assert Gic(q=[1.0])._code == _code_hash() == _code_hash(PACKAGE)


@pytest.mark.parametrize("name", ["models/lapped.py", "_loops.c", "models/layers.py", "codec/weights.py", "new.py"])
def test_a_change_in_a_source_changes_the_fingerprint(name, tmp_path, monkeypatch):
    copied = tmp_path / "gic"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__", "*.so"))
    assert _code_hash(copied) == _code_hash()
    with (copied / name).open("a") as file:
        file.write("\n")
    assert _code_hash(copied) != _code_hash()

    def fingerprint():
        codec = Gic(q=[1.0])
        codec._codec = small_codec()
        return codec.fingerprint

    before = fingerprint()
    monkeypatch.setattr("gic.benchmark.codecs._code_hash", lambda: _code_hash(copied))
    assert fingerprint() != before


def test_what_trains_and_judges_changes_nothing(tmp_path):
    copied = tmp_path / "gic"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__", "*.so"))
    for name in ("training/module.py", "commands/dispatch.py", "benchmark/report.py", "quality/terms.py"):
        (copied / name).write_text("")
    assert _code_hash(copied) == _code_hash()
