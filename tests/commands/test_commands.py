"""``gic compress``, ``decompress`` and ``info`` on files, folders, patterns and streams; what they say of mistakes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import CONFIG, array, picture, small_model

import gic
from gic.bitstream.coder import level_value
from gic.bitstream.container import unpack
from gic.codec.checkpoints import save_weights
from gic.commands.dispatch import run
from gic.errors import ConfigError
from gic.files import replacing, write_bytes

Gic = Callable[..., int]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of the small codec."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, small_model().state_dict(), CONFIG)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> Path:
    """The current folder, with pictures in it; the weights are named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIC_CHECKPOINT", str(weights))
    for name, salt in {"a.png": 1, "set/b.png": 2, "set/deep/c.jpg": 3}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array(picture(40, 30, salt=salt))).save(name)
    return tmp_path


def files(folder: Path, pattern: str = "*.gic") -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(pattern)}


# --- where results go -----------------------------------------------------------------------------------------


def test_a_picture_becomes_a_file_beside_it_and_a_picture_again(folder: Path, capsys) -> None:
    assert run(["compress", "a.png", "--q", "1"]) == 0
    assert files(folder) == {"a.gic"}
    said = capsys.readouterr().err
    assert "a.png -> a.gic" in said and f"{Path('a.gic').stat().st_size} bytes" in said and "bpp" in said
    assert run(["decompress", "a.gic", "-o", "decoded.png"]) == 0
    assert Image.open("decoded.png").size == (40, 30)
    expected = gic.load().decompress(Path("a.gic").read_bytes())
    assert np.array_equal(np.asarray(Image.open("decoded.png")), np.asarray(expected))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.png"], {"a.gic"}),
        (["a.png", "-o", "x.gic"], {"x.gic"}),
        (["a.png", "-o", "new/x.gic"], {"new/x.gic"}),
        (["a.png", "-o", "out/"], {"out/a.gic"}),
        (["a.png", "-o", "set"], {"set/a.gic"}),
        (["a.png", "set/b.png"], {"a.gic", "set/b.gic"}),
        (["a.png", "set/b.png", "-o", "out"], {"out/a.gic", "out/b.gic"}),
        (["set"], {"set/b.gic", "set/deep/c.gic"}),
        (["set", "-o", "out"], {"out/b.gic", "out/deep/c.gic"}),
        ([".", "-o", "out"], {"out/a.gic", "out/set/b.gic", "out/set/deep/c.gic"}),
        (["set/*.png"], {"set/b.gic"}),
        (["*.png", "-o", "out"], {"out/a.gic"}),
        (["**/*.png", "-o", "out"], {"out/a.gic", "out/b.gic"}),
        (["a.png", "a.png", "./a.png"], {"a.gic"}),
    ],
)
def test_results_lie_where_the_names_say(words: list[str], expected: set[str], folder: Path) -> None:
    assert run(["compress", *words]) == 0
    assert files(folder) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.gic"], {"a.png"}),
        (["a.gic", "-o", "x.ppm"], {"x.ppm"}),
        (["set", "-o", "out"], {"out/b.png", "out/deep/c.png"}),
        (["set/*.gic", "-o", "out"], {"out/b.png"}),
        (["**/*.gic"], {"a.png", "set/b.png", "set/deep/c.png"}),
    ],
)
def test_pictures_lie_where_the_names_say(words: list[str], expected: set[str], folder: Path) -> None:
    assert run(["compress", "."]) == 0
    originals = [*files(folder, "*.png"), *files(folder, "*.jpg")]
    for name in originals:
        Path(name).unlink()
    assert run(["decompress", *words, "--sampler", "mean"]) == 0
    assert files(folder, "*.p*") == expected


def test_sources_that_differ_in_their_suffix_keep_it(folder: Path) -> None:
    Image.open("a.png").save("a.jpg")
    assert run(["compress", "a.png", "a.jpg"]) == 0
    assert files(folder) == {"a.png.gic", "a.jpg.gic"}


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
def test_two_sources_for_one_result_are_refused(option: list[str], folder: Path, capsys) -> None:
    Image.open("a.png").save("set/a.png")
    assert run(["compress", "a.png", "set/a.png", "-o", "out", *option]) == 2
    said = capsys.readouterr().err
    assert "a.png and set/a.png would both be written to out/a" in said
    assert not files(folder)


def test_existing_files_are_kept_unless_told_otherwise(folder: Path, capsys) -> None:
    Path("a.gic").write_bytes(b"precious")
    assert run(["compress", "a.png"]) == 2
    assert "a.gic exists and is kept: name another with -o" in capsys.readouterr().err
    assert Path("a.gic").read_bytes() == b"precious"
    assert run(["compress", "a.png", "--overwrite"]) == 0
    assert unpack(Path("a.gic").read_bytes()).width == 40
    assert run(["decompress", "a.gic"]) == 2
    assert "a.png exists" in capsys.readouterr().err


def test_a_folder_can_be_continued(folder: Path, capsys) -> None:
    (folder / "out/deep").mkdir(parents=True)
    Path("out/b.gic").write_bytes(b"precious")
    assert run(["compress", "set", "-o", "out"]) == 2
    said = capsys.readouterr().err
    assert "1 written, 1 exists and was kept (--overwrite replaces them, --skip-existing" in said and "fail" not in said
    assert run(["compress", "set", "-o", "out"]) == 2  # the options may be others now
    assert "0 written, 2 exist and were kept (--overwrite" in capsys.readouterr().err
    assert run(["compress", "set", "-o", "out", "--skip-existing"]) == 0
    assert "0 written, 2 exist and were kept\n" in capsys.readouterr().err
    Path("set/bad.png").write_bytes(b"no picture")
    Path("set/new.png").write_bytes(Path("a.png").read_bytes())
    assert run(["compress", "set", "-o", "out", "--skip-existing"]) == 2
    assert "1 written, 2 exist and were kept, 1 of 4 files failed" in capsys.readouterr().err
    assert Path("out/b.gic").read_bytes() == b"precious"
    assert run(["decompress", "out/new.gic", "-o", "a.png", "--skip-existing"]) == 0
    assert capsys.readouterr().err == "gic: a.png exists and is kept: passed over\n"
    Path("set/bad.png").unlink()
    assert run(["compress", "set", "-o", "out", "--overwrite"]) == 0
    assert unpack(Path("out/b.gic").read_bytes()).width == 40
    with pytest.raises(SystemExit):
        run(["compress", "set", "-o", "out", "--overwrite", "--skip-existing"])


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"), "out of memory"]
)
def test_a_picture_that_takes_too_much_memory_does_not_stop_the_others(
    error, folder: Path, monkeypatch, capsys
) -> None:
    from gic.codec.image_codec import ImageCodec

    error = torch.cuda.OutOfMemoryError("CUDA out of memory.") if isinstance(error, str) else error
    real, small = ImageCodec.encoding, Path("a.png").read_bytes()

    def encoding(self: ImageCodec, image: bytes, **settings: Any):
        if image != small:
            raise error
        return real(self, image, **settings)

    monkeypatch.setattr(ImageCodec, "encoding", encoding)
    assert run(["compress", "a.png", "set/b.png"]) == 2
    said = capsys.readouterr().err
    assert "gic: set/b.png: the memory does not suffice" in said and "1 written, 1 of 2 files failed" in said
    assert files(folder) == {"a.gic"}
    error = RuntimeError("a mistake")
    with pytest.raises(RuntimeError, match="a mistake"):
        run(["compress", "set/b.png"])


def test_a_folder_that_cannot_be_read_is_no_empty_one(folder: Path, monkeypatch, capsys) -> None:
    real = os.scandir

    def scandir(path: Any):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert run(["compress", "set", "-o", "out"]) == 2
    assert "the folder set/deep cannot be read (Permission denied)" in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_input_without_end_is_refused(folder: Path, monkeypatch, capsys) -> None:
    from gic.commands import jobs

    monkeypatch.setattr(jobs, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(jobs, "_BLOCK", 1 << 16)
    os.mkfifo("endless")

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), Path("endless").open("wb") as pipe:
            while True:
                pipe.write(bytes(1 << 16))

    Path("large.png").write_bytes(bytes((1 << 20) + 1))
    for words in (["compress", "endless", "-o", "a.gic"], ["info", "endless"], ["compress", "large.png"]):
        if "endless" in words:
            threading.Thread(target=feed, daemon=True).start()
        assert run(words) == 2
        assert f"{words[1]} has more than 1 MiB" in capsys.readouterr().err
    assert not files(folder)


def test_names_do_not_command_the_terminal(folder: Path, capsys) -> None:
    odd = "x\n\x1b[31m\x9b2J.png"
    Path("set/b.png").rename(Path("set", odd))
    Path("set", f"bad{odd}").write_bytes(b"no picture")
    assert run(["compress", "set", "-o", "out"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 4 and "\x1b" not in said and "\x9b" not in said and "x \\x1b[31m" in said
    assert run(["info", "out", f"no{odd}"]) == 2
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err and len(told.err.splitlines()) == 1


def test_a_rate_beyond_the_range_is_its_end_with_a_note(folder: Path, capsys) -> None:
    for rate, quality in (("20", "100"), ("0.0001", "0")):
        assert run(["compress", "a.png", "set", "-o", "out", "--bpp", rate, "--overwrite"]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3 and all(f"{float(rate):g} bpp cannot be reached: at the" in line for line in lines)
        assert run(["compress", "a.png", "-o", "end.gic", "--quality", quality, "--overwrite"]) == 0
        assert Path("out/a.gic").read_bytes() == Path("end.gic").read_bytes()
        capsys.readouterr()
    assert run(["compress", "a.png", "set", "-o", "strict", "--bpp", "20", "--strict-rate"]) == 2
    assert "3 of 3 files failed" in capsys.readouterr().err
    assert run(["compress", "a.png", "-o", "large.gic", "--max-bytes", "1000000"]) == 0
    assert Path("large.gic").stat().st_size < 1_000_000 and "cannot" not in capsys.readouterr().err
    assert run(["compress", "a.png", "-o", "small.gic", "--max-bytes", "40", "--overwrite"]) == 2


def test_one_failure_does_not_stop_the_others(folder: Path, capsys) -> None:
    Path("set/bad.png").write_bytes(b"no picture")
    assert run(["compress", "set", "-o", "out"]) == 2
    said = capsys.readouterr().err
    assert "set/bad.png" in said and "not an image" in said and "1 of 3 files failed" in said
    assert files(folder) == {"out/b.gic", "out/deep/c.gic"}
    data = Path("out/b.gic").read_bytes()
    Path("out/b.gic").write_bytes(data[:-9])
    assert run(["decompress", "out", "-o", "back"]) == 2
    said = capsys.readouterr().err
    assert "out/b.gic" in said and "checksum" in said
    assert files(folder / "back", "*.png") == {"deep/c.png"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compress", "nowhere.png"], "nowhere.png"),
        (["compress", "*.tif"], "*.tif"),
        (["compress", "empty"], "empty"),
        (["decompress", "empty"], "no .gic file in the folder empty"),
        (["decompress", "nowhere.gic"], "no file or folder nowhere.gic"),
        (["decompress", "no*.gic"], "no*.gic"),
        (["info", "nowhere.gic"], "no file or folder nowhere.gic"),
        (["compress", "-", "a.png"], "only input"),
        (["compress", "-", "-o", "set"], "set is a folder"),
        (["compress", "a.png", "set/b.png", "-o", "-"], "exactly one input"),
        (["compress", "set", "-o", "-"], "exactly one input"),
        (["compress", "a.png", "--q", "100"], "q = 100"),
        (["compress", "a.png", "--bpp", "900", "--strict-rate"], "cannot be reached"),
        (["compress", "a.png", "--bpp", "1e-5", "--strict-rate"], "cannot be reached"),
        (["compress", "a.png", "--bpp", "nan"], "bpp must be a positive number"),
        (
            ["compress", "a.png", "set/b.png", "-o", "both.gic"],
            "both.gic is one file, for several results: name a fold",
        ),
        (["compress", "a.png", "a.png", "-o", "both.GIC"], "both.GIC is one file"),
        (["compress", "set", "-o", "all.png"], "all.png is one file, for several results"),
        (["compress", "set/*.png", "-o", "one.gic"], "one.gic is one file, for several results"),
        (["compress", "a.png", "set/b.png", "-o", "a.png"], "a.png is one file, for several results"),
        (["compress", "a.png", "set/b.png", "-o", "notes"], "notes is one file, for several results"),
        (["shards", "set", "-o", "train.tar"], "train.tar would be a folder"),
        (["compress", "", "-o", "out"], "a name is empty"),  # an unset variable of the shell, and not this folder
        (["info", ""], "a name is empty"),
        (["shards", "", "-o", "out"], "a name is empty"),
        (["compress", "a.png", "-o", ""], "the output has an empty name"),
        (["compress", "-", "-o", ""], "the output has an empty name"),
        (["shards", "set", "-o", ""], "the output has an empty name"),
        (["compress", "set/**.png"], "set/**.png is no pattern: ** stands alone"),
        (["compress", "a.png", "--max-bytes", "3"], "does not fit in 3 bytes"),
        (["compress", "a.png", "--quality", "101"], "quality"),
        (["compress", "a.png", "--seed", "-1"], "seed"),
        (["compress", "a.png", "--device", "nonsense"], "device nonsense"),
        (["compress", "a.png", "--checkpoint", "nowhere.ckpt"], "nowhere.ckpt"),
        (["compress", "a.png", "--checkpoint", "a.png"], "a.png cannot be read as a checkpoint: it is neither"),
        (["decompress", "a.png"], "no .gic file: it does not begin with GIC"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], said: str, folder: Path, capsys) -> None:
    Path("empty").mkdir()
    Path("notes").write_text("mine")
    if words[0] == "decompress" and words[1] == "a.png":
        words = [*words, "-o", "b.png"]
    assert run(words) == 2
    text = capsys.readouterr().err
    assert said in text
    assert len(text.strip().splitlines()) == 1 and "Traceback" not in text
    assert not files(folder)


def test_a_suffix_that_cannot_be_written_is_told_before_decoding(folder: Path, capsys) -> None:
    run(["compress", "a.png"])
    capsys.readouterr()
    assert run(["decompress", "a.gic", "-o", "b.xyz"]) == 2
    assert "b.xyz: the suffix '.xyz' names no picture format" in capsys.readouterr().err
    assert not Path("b.xyz").exists()


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [("--q", "--bpp"), ("--bpp", "--max-bytes"), ("--max-bytes", "--quality")])
def test_targets_exclude_each_other(pair: tuple[str, str], folder: Path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["compress", "a.png", pair[0], "1", pair[1], "1"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_targets_and_options_reach_the_codec(folder: Path) -> None:
    Image.fromarray(array(picture(300, 200, "noise"))).save("n.png")
    run(["compress", "n.png", "-o", "q.gic", "--q", "2"])
    run(["compress", "n.png", "-o", "bpp.gic", "--bpp", "0.3"])
    run(["compress", "n.png", "-o", "max.gic", "--max-bytes", "2000", "--quantizer", "dither", "--seed", "7"])
    run(["compress", "n.png", "-o", "best.gic", "--quality", "100"])
    found = {name: Path(f"{name}.gic").read_bytes() for name in ("q", "bpp", "max", "best")}
    assert unpack(found["q"]).code == 1024 and unpack(found["best"]).code == -1024
    assert abs(len(found["bpp"]) * 8 / 60_000 / 0.3 - 1) < 0.02
    assert 1940 <= len(found["max"]) <= 2000
    assert (unpack(found["max"]).quantizer, unpack(found["max"]).seed) == ("dither", 7)
    run(["decompress", "q.gic", "-o", "least.png", "--realism", "0"])
    run(["decompress", "q.gic", "-o", "mean.png", "--sampler", "mean", "--steps", "3"])
    run(["decompress", "q.gic", "-o", "most.png", "--realism", "1"])
    assert Path("least.png").read_bytes() == Path("mean.png").read_bytes() != Path("most.png").read_bytes()


def test_what_a_picture_loses_is_said(folder: Path, capsys) -> None:
    Image.new("LA", (40, 30), (90, 128)).save("clear.png")
    assert run(["compress", "a.png", "clear.png"]) == 0
    plain, clear = capsys.readouterr().err.splitlines()
    assert ";" not in plain
    assert clear.endswith("; alpha blended onto white")  # and it comes back grey


@pytest.mark.parametrize("name", ["small.jpg", "small.PNG"])
def test_compressed_files_do_not_pass_for_pictures(folder: Path, capsys, name: str) -> None:
    assert run(["compress", "a.png", "-o", name]) == 2
    assert f"{name} would not be what its suffix says: use small.gic" in capsys.readouterr().err
    assert not Path(name).exists()
    assert run(["compress", "a.png", "-o", "small.bin"]) == 0


def test_metadata_is_kept_only_on_request(folder: Path, capsys) -> None:
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    Image.open("a.png").save("e.png", exif=exif.tobytes())
    run(["compress", "e.png", "-o", "without.gic"])
    run(["compress", "e.png", "-o", "with.gic", "--keep-metadata"])
    run(["decompress", "with.gic", "-o", "with.jpg"])
    assert Image.open("with.jpg").getexif()[0x0110] == "Camera"
    capsys.readouterr()
    run(["info", "--json", "without.gic", "with.gic"])
    without, with_ = map(json.loads, capsys.readouterr().out.splitlines())
    assert without["exif_bytes"] == 0 < with_["exif_bytes"]
    assert with_["bytes"] - without["bytes"] == with_["header_bytes"] - without["header_bytes"] > 10


def test_checkpoints_of_both_kinds_make_the_same_codec(folder: Path, weights: Path) -> None:
    state = {f"codec.{name}": value.half().float() for name, value in small_model().state_dict().items()}
    checkpoint = {"hyper_parameters": {"codec": CONFIG}, "state_dict": state, "global_step": 3}
    torch.save(checkpoint, "last.ckpt")
    assert run(["compress", "a.png", "-o", "1.gic", "--checkpoint", str(weights)]) == 0
    assert run(["compress", "a.png", "-o", "2.gic", "--checkpoint", "last.ckpt"]) == 0
    assert Path("1.gic").read_bytes() == Path("2.gic").read_bytes()
    assert run(["decompress", "1.gic", "-o", "1.png", "--checkpoint", "last.ckpt"]) == 0


def test_without_weights_it_says_how_to_get_some(folder: Path, monkeypatch, capsys) -> None:
    from gic.codec import zoo as loading

    monkeypatch.delenv("GIC_CHECKPOINT")
    monkeypatch.setattr(loading, "PACKAGED", folder / "nowhere")
    assert run(["compress", "a.png"]) == 2
    said = capsys.readouterr().err
    assert "no weights of its own" in said and "--checkpoint" in said and "gic fit" in said


def test_the_wrong_model_is_named_with_the_right_one(folder: Path, capsys) -> None:
    save_weights("other.safetensors", small_model(1).state_dict(), CONFIG)
    run(["compress", "a.png"])
    capsys.readouterr()
    assert run(["decompress", "a.gic", "-o", "b.png", "--checkpoint", "other.safetensors"]) == 2
    said = capsys.readouterr().err
    assert gic.load().model_id.hex() in said and gic.load("other.safetensors").model_id.hex() in said


def test_info_tells_what_is_in_a_file(folder: Path, capsys) -> None:
    run(["compress", ".", "--q", "2"])
    capsys.readouterr()
    assert run(["info", "a.gic"]) == 0
    text = capsys.readouterr().out
    data = Path("a.gic").read_bytes()
    for fact in ("a.gic", "40", "30", "2.0", "round", str(len(data)), gic.load().model_id.hex()):
        assert fact in text
    assert run(["info", "--json", "."]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == sorted(files(folder))
    first = lines[0]
    assert first["bytes"] == len(data) == first["header_bytes"] + first["z_bytes"] + first["y_bytes"]
    assert first["bits_per_pixel"] == round(len(data) * 8 / 1200, 4)


def test_info_goes_on_after_a_damaged_file(folder: Path, capsys) -> None:
    run(["compress", "a.png"])
    Path("bad.gic").write_bytes(Path("a.gic").read_bytes()[:-1])
    capsys.readouterr()
    assert run(["info", "nowhere.gic", "bad.gic", "a.gic", "--json"]) == 2
    said = capsys.readouterr()
    assert "nowhere.gic" in said.err and "bad.gic" in said.err and json.loads(said.out)["file"] == "a.gic"


def test_info_is_quick_since_it_needs_neither_weights_nor_torch(folder: Path) -> None:
    run(["compress", "a.png"])
    code = (
        "import sys; from gic.commands.dispatch import run; sys.exit(run(['info', 'a.gic']) or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "GIC_CHECKPOINT": "nowhere", "PYTHONPATH": str(Path(gic.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_coding_a_picture_imports_nothing_that_it_does_not_need(folder: Path) -> None:
    code = (
        "import sys; from gic.commands.dispatch import run;"
        "code = run(['compress', 'a.png']) or run(['decompress', 'a.gic', '-o', 'x.png']);"
        "heavy = {'compressai', 'lightning', 'pyiqa', 'scipy', 'torchvision'} & set(sys.modules);"
        "sys.exit(code or ', '.join(heavy) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(gic.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_info_and_the_coder_mean_the_same_level(folder: Path, capsys) -> None:
    for quality in (0, 33, 100):
        run(["compress", "a.png", "-o", "x.gic", "--overwrite", "--quality", str(quality)])
        capsys.readouterr()
        run(["info", "x.gic", "--json"])
        q = level_value(unpack(Path("x.gic").read_bytes()).code)
        assert json.loads(capsys.readouterr().out)["q"] == round(q, 4)


# --- progressive files ------------------------------------------------------------------------------------


# --- for programs ---------------------------------------------------------------------------------------------


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_tells_what_became_of_every_file(folder: Path, capsys) -> None:
    Path("set/broken.png").write_bytes(b"no picture")
    assert run(["compress", "a.png", "set", "--q", "2", "--json"]) == 2
    told = {each["source"]: each for each in lines(capsys)}
    assert sorted(told) == ["a.png", "set/b.png", "set/broken.png", "set/deep/c.jpg"]
    broken = told.pop("set/broken.png")
    assert broken["status"] == "failed" and "is not an image" in broken["problem"] and broken["target"]
    for each in told.values():
        data = Path(each["target"]).read_bytes()
        assert each["status"] == "written" and each["bytes"] == len(data) and each["q"] == [2.0]
        assert each["bits_per_pixel"] == round(len(data) * 8 / (40 * 30), 4) and each["seconds"] > 0
        assert (each["width"], each["height"], each["model"]) == (40, 30, gic.load().model_id.hex())
    assert run(["compress", "a.png", "--json", "--skip-existing"]) == 0
    assert lines(capsys) == [{"source": "a.png", "target": "a.gic", "status": "kept"}]
    assert run(["decompress", "a.gic", "-o", "b.png", "--json"]) == 0
    (told_of_picture,) = lines(capsys)
    assert told_of_picture["bytes"] == Path("b.png").stat().st_size and told_of_picture["width"] == 40


def test_json_says_nothing_in_words_but_errors(folder: Path, capsys) -> None:
    assert run(["compress", "a.png", "--json"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["compress", "a.png", "-o", "-", "--json"]) == 2
    assert "--json prints on the standard output" in capsys.readouterr().err
    Image.fromarray(np.zeros((30, 40, 4), np.uint8), "RGBA").save("alpha.png")
    assert run(["compress", "alpha.png", "--json"]) == 0
    assert lines(capsys)[0]["notes"]  # that its transparency is gone


def test_json_tells_of_a_cut(progressive: bytes, capsys) -> None:
    assert run(["truncate", "a.gic", "-o", "cut.gic", "--max-bytes", str(len(progressive) - 1), "--json"]) == 0
    (told,) = lines(capsys)
    assert told["bytes"] == Path("cut.gic").stat().st_size < len(progressive) and told["notes"]


@pytest.fixture
def progressive(folder: Path, capsys) -> bytes:
    """a.gic, a progressive file of three levels."""
    assert run(["compress", "a.png", "--progressive", "--q", "0.5"]) == 0
    assert "q 0.500, 1.500, 4.500" in capsys.readouterr().err
    return Path("a.gic").read_bytes()


def test_a_progressive_file_is_cut_to_any_size(progressive: bytes, capsys) -> None:
    start = unpack(progressive).progressive.start
    for size in range(start, len(progressive) + 9, 7):
        assert run(["truncate", "a.gic", "-o", "b.gic", "--overwrite", "--max-bytes", str(size)]) == 0
        assert size - 60 < len(Path("b.gic").read_bytes()) <= size or size > len(progressive)
        assert progressive.startswith(Path("b.gic").read_bytes())
    assert Path("b.gic").read_bytes() == progressive and "the whole file" in capsys.readouterr().err
    assert run(["truncate", "a.gic", "-o", "out/", "--bpp", str(1.9 * 8 * start / unpack(progressive).width / 30)]) == 0
    cut = len(Path("out/a.gic").read_bytes())
    assert start < cut <= 1.9 * start
    assert f"{cut} of {len(progressive)} bytes, whole up to q" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["a.gic", "-o", "b.gic", "--max-bytes", "9"], "the header and the first level of this file take"),
        (["a.gic", "-o", "b.gic", "--bpp", "nan"], "positive"),
        (["a.gic", "-o", "b.gic", "--max-bytes", "-9"], "positive"),
        (["a.gic", "--max-bytes", "900"], "name the result: -o FILE"),
        (["plain.gic", "-o", "b.gic", "--max-bytes", "900"], "gic compress --progressive"),
        (["nothing.gic", "-o", "b.gic", "--max-bytes", "900"], "nothing.gic"),
    ],
)
def test_what_cannot_be_cut_is_named(progressive: bytes, capsys, words: list[str], reason: str) -> None:
    run(["compress", "a.png", "-o", "plain.gic"])
    capsys.readouterr()
    assert run(["truncate", *words]) == 2
    assert reason in capsys.readouterr().err and not Path("b.gic").exists()


def test_decompress_and_info_tell_how_much_of_a_file_is_there(progressive: bytes, capsys) -> None:
    ends = (unpack(progressive).progressive.start, *unpack(progressive).progressive.ends)
    assert run(["info", "a.gic", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert [level["bytes"] for level in whole["levels"]] == list(ends)
    assert [level["q"] for level in whole["levels"]] == [4.5, 1.5, 0.5] and whole["held"] == "all"
    assert set(ends) <= set(whole["cut_points"])
    for size, told in ((ends[1], "whole up to q 1.500"), (ends[2] - 9, "in part up to q 0.500")):
        Path("b.gic").write_bytes(progressive[:size])
        assert run(["decompress", "b.gic", "--overwrite"]) == 0
        assert f"{size} of {len(progressive)} bytes, whole up to q 1.5" in (said := capsys.readouterr().err)
        assert told in said
        assert run(["info", "b.gic"]) == 0
        assert told in capsys.readouterr().out
    Path("b.gic").write_bytes(progressive[: ends[1] + 9] + b"?" + progressive[ends[1] + 10 :])
    assert run(["decompress", "b.gic", "--overwrite"]) == 0
    assert f"is damaged (its checksum does not match): {ends[2] - ends[1]} bytes are lost" in capsys.readouterr().err
    Path("b.gic").write_bytes(progressive[: ends[0] - 1])
    assert run(["decompress", "b.gic", "--overwrite"]) == 2
    assert f"its header and first level take {ends[0]}" in capsys.readouterr().err


def test_what_is_less_than_asked_is_said(folder: Path, capsys) -> None:
    with Image.open("a.png") as image:
        Image.new("L", image.size, 0).save("m.png")
    assert run(["compress", "a.png", "--q", "4", "--progressive"]) == 0
    assert "of one level" in capsys.readouterr().err
    assert run(["compress", "a.png", "-o", "b.gic", "--q", "4", "--roi", "m.png"]) == 0
    assert "black of the mask is 1 octaves coarser" in capsys.readouterr().err
    assert run(["info", "b.gic"]) == 0
    assert "up to 1 octaves coarser" in capsys.readouterr().out


def test_a_part_of_a_file_says_so_in_python_too(progressive: bytes) -> None:
    import gic.pillow

    codec = gic.load()
    cut = progressive[: len(progressive) - 20]
    Path("cut.gic").write_bytes(cut)
    with Image.open("cut.gic") as opened:
        assert opened.info["gic"] == codec.decompress(cut).info["gic"] == unpack(cut).part != ""
    assert "gic" not in codec.decompress(progressive).info
    with pytest.raises(ConfigError, match="in pieces"):
        next(codec.decompress_progressive(progressive))


def test_a_mask_makes_regions(folder: Path, capsys) -> None:
    with Image.open("a.png") as image:
        Image.new("L", image.size, 0).save("m.png")
        Image.new("L", (9, 9)).save("small.png")
    assert run(["compress", "a.png", "--q", "1", "--roi", "m.png", "--roi-strength", "1"]) == 0
    assert set(unpack(Path("a.gic").read_bytes()).regions) == {4}
    capsys.readouterr()
    for words, reason in (
        (["--roi", "small.png"], "the mask has 9 x 9 pixels"),
        (["--roi", "nowhere.png"], "nowhere.png cannot be read"),
        (["--roi-strength", "1"], "name one, --roi MASK.png"),
    ):
        assert run(["compress", "a.png", "-o", "b.gic", *words]) == 2
        assert reason in capsys.readouterr().err and not Path("b.gic").exists()


# --- as a process ---------------------------------------------------------------------------------------------


def process(*words: str, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(gic.__file__).parent.parent)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([sys.executable, "-m", "gic", *words], env=environment, **streams)


def test_a_reader_that_leaves_early_is_no_error(folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(gic.__file__).parent.parent)}
    reading, writing = os.pipe()
    os.close(reading)
    Path("a.gic").write_bytes(gic.load().compress("a.png", q=1.0))
    command = [sys.executable, "-m", "gic", "info", "a.gic"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


def test_streams_carry_files_through_a_pipe(folder: Path) -> None:
    done = process("compress", "-", "-o", "-", "--q", "1", input=Path("a.png").read_bytes())
    assert done.returncode == 0, done.stderr
    assert done.stdout == gic.load().compress("a.png", q=1.0)
    back = process("decompress", "-", "--sampler", "mean", input=done.stdout)
    assert back.returncode == 0, back.stderr
    image = Image.open(io.BytesIO(back.stdout))
    assert (image.format, image.size) == ("PNG", (40, 30))
    told = process("info", "-", "--json", input=done.stdout)
    assert json.loads(told.stdout)["bytes"] == len(done.stdout)


def test_pipes_are_read_and_written(folder: Path) -> None:
    data = gic.load().compress("a.png", q=1.0)
    for name in ("in.png", "out.gic", "in.gic", "out.png"):
        os.mkfifo(name)
    for words, given, name in (
        (["compress", "in.png", "-o", "out.gic", "--q", "1"], Path("a.png").read_bytes(), "out.gic"),
        (["decompress", "in.gic", "-o", "out.png"], data, "out.png"),
        (["info", "in.gic"], data, None),
    ):
        read: list[bytes] = []
        feeding = threading.Thread(target=Path(words[1]).write_bytes, args=[given], daemon=True)
        reading = threading.Thread(
            target=lambda name=name, read=read: read.append(Path(name).read_bytes()), daemon=True
        )
        feeding.start()
        if name is not None:
            reading.start()
        assert run(words) == 0
        feeding.join(60)
        if name is not None:
            reading.join(60)
            assert read == [data] if name == "out.gic" else Image.open(io.BytesIO(read[0])).size == (40, 30)
    assert all(Path(name).is_fifo() for name in ("in.png", "out.gic", "in.gic", "out.png"))


def test_open_files_are_read_and_written_by_their_names(folder: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files have no names here")
    data = gic.load().compress("a.png", q=1.0)
    out = "/proc/self/fd/1"  # what /dev/stdout leads to, which a mistake in the code would replace
    done = process("compress", "/dev/stdin", "-o", out, "--q", "1", input=Path("a.png").read_bytes())
    assert (done.returncode, done.stdout) == (0, data)
    with Path("log").open("ab") as log, Path("a.png").open("rb") as picture_file:
        log.write(b"first")
        log.flush()
        done = process("compress", "/dev/fd/0", "-o", out, "--q", "1", stdin=picture_file, stdout=log)
    assert done.returncode == 0 and Path("log").read_bytes() == b"first" + data
    done = process("decompress", "/dev/stdin", "-o", out, input=data)
    assert done.returncode == 0 and Image.open(io.BytesIO(done.stdout)).format == "PNG"
    done = process("compress", "/dev/stdin", input=Path("a.png").read_bytes())
    assert done.returncode == 2 and b"/dev/stdin is no name for a result: give one, -o FILE" in done.stderr


def test_pipes_in_folders_are_passed_over(folder: Path) -> None:
    os.mkfifo("set/pipe.png")
    Path("set/gone.png").symlink_to("nowhere.png")
    assert run(["compress", "set", "-o", "out"]) == 2  # of the link, which is no success in silence
    assert files(folder / "out") == {"b.gic", "deep/c.gic"}
    Path("set/gone.png").unlink()
    assert run(["compress", "set/*.png", "-o", "more"]) == 0
    assert run(["shards", "set", "-o", "shards"]) == 0


def test_results_go_through_links(folder: Path) -> None:
    Path("elsewhere").mkdir()
    Path("a.gic").symlink_to("elsewhere/a.gic")  # leads nowhere yet
    for words in (["compress", "a.png"], ["compress", "a.png", "--overwrite", "--q", "2"]):
        assert run(words) == 0
        assert Path("a.gic").is_symlink() and unpack(Path("elsewhere/a.gic").read_bytes()).width == 40
    Path("shards").mkdir()
    Path("shards/train-000000.tar").symlink_to("../elsewhere/train.tar")
    assert run(["shards", "set", "-o", "shards", "--overwrite"]) == 0
    assert Path("shards/train-000000.tar").is_symlink() and Path("elsewhere/train.tar").stat().st_size > 0


def test_shards_replace_no_pipe(folder: Path, capsys) -> None:
    Path("shards").mkdir()
    os.mkfifo("shards/train-000000.tar")
    assert run(["shards", "set", "-o", "shards", "--overwrite"]) == 2
    assert "train-000000.tar is in the way and no file" in capsys.readouterr().err
    assert Path("shards/train-000000.tar").is_fifo()


def test_what_is_told_never_goes_into_the_data(folder: Path) -> None:
    done = process("compress", "a.png", "-o", "-", "--q", "1", preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (0, gic.load().compress("a.png", q=1.0))


def test_a_process_that_fails_says_one_line_and_exits_with_2(folder: Path) -> None:
    done = process("info", "-", input=b"GIC\x01 but damaged, and long enough to be one")
    assert done.returncode == 2 and done.stdout == b""
    assert b"checksum" in done.stderr and len(done.stderr.splitlines()) == 1


# --- whole or not at all --------------------------------------------------------------------------------------


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gic"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RuntimeError), replacing(tmp_path / "b.gic") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert not (tmp_path / "b.gic").exists()


def test_a_failing_encoder_leaves_nothing(folder: Path, monkeypatch, capsys) -> None:
    from gic.codec.image_codec import ImageCodec

    monkeypatch.setattr(ImageCodec, "encoding", lambda *a, **k: (_ for _ in ()).throw(ConfigError("not today")))
    before = set(folder.rglob("*"))
    assert run(["compress", "a.png", "-o", "out.gic"]) == 2
    assert "not today" in capsys.readouterr().err
    assert set(folder.rglob("*")) == before


KILLED = """
import os, signal, sys
from gic.files import replacing
with replacing(sys.argv[1]) as temporary:
    with temporary.open("wb") as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gic"
    path.write_bytes(b"old")
    environment = {**os.environ, "PYTHONPATH": str(Path(gic.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert list(tmp_path.rglob("*.gic")) == [path]  # nor does a search for files find what is left of the new one
