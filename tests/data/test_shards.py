from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gic.data.shards
from gic.commands.dispatch import run
from gic.data.shards import left_out, write_shards
from gic.errors import ConfigError, DataError


def photo(number: int, height: int = 24, width: int = 32) -> Image.Image:
    """A smooth picture, another for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven usable images of several kinds, two that are none."""
    path = tmp_path / "in"
    (path / "sub").mkdir(parents=True)
    for number in range(3):
        photo(number).save(path / f"{number}.jpg", quality=90)
    photo(3).save(path / "sub" / "3.png")
    photo(4).convert("CMYK").save(path / "4.jpg")
    photo(5).convert("L").save(path / "5.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(6).save(path / "6.jpg", exif=exif)
    (path / "broken.png").write_bytes(b"this is text")
    (path / "empty.jpg").write_bytes(b"")
    return path


def read(paths: tuple[Path, ...]) -> dict[str, bytes]:
    held: dict[str, bytes] = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in held, "keys must be unique within a set"
                held[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return held


def sources(held: dict[str, bytes]) -> dict[str, str]:
    return {json.loads(data)["source"]: key[:-5] for key, data in held.items() if key.endswith(".json")}


def test_every_usable_image_is_written_once_and_the_rest_is_named(folder: Path, tmp_path: Path) -> None:
    report = write_shards([folder], tmp_path / "out", samples_per_shard=3, progress=False)
    assert [path.name for path in report.shards] == [f"train-{n:06d}.tar" for n in range(3)]
    assert report.written == 7
    held = read(report.shards)
    assert sorted(sources(held)) == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.png", "6.jpg", "sub/3.png"]
    assert {file.name: reason for file, reason in report.skipped} == {
        "broken.png": "is not an image, or of a format that Pillow cannot read",
        "empty.jpg": "is not an image, or of a format that Pillow cannot read",
    }
    assert report.notes == {
        "CMYK converted to RGB without a profile": 1,
        "grey expanded to RGB": 1,
        "EXIF orientation applied": 1,
    }


def test_json_tells_size_and_notes(folder: Path, tmp_path: Path) -> None:
    held = read(write_shards([folder], tmp_path / "out", progress=False).shards)
    key = sources(held)["6.jpg"]
    assert json.loads(held[f"{key}.json"]) == {
        "source": "6.jpg",
        "width": 24,
        "height": 32,
        "notes": ["EXIF orientation applied"],
    }
    with Image.open(io.BytesIO(held[f"{key}.jpg"])) as image:
        assert image.size == (24, 32)


def test_plain_jpeg_is_copied_byte_for_byte_and_nothing_else_is(folder: Path, tmp_path: Path) -> None:
    report = write_shards([folder], tmp_path / "out", progress=False)
    held = read(report.shards)
    same = {name for name, key in sources(held).items() if held[f"{key}.jpg"] == (folder / name).read_bytes()}
    assert same == {"0.jpg", "1.jpg", "2.jpg"}
    assert report.copied == 3


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_lossless_formats_keep_every_pixel(image_format: str, folder: Path, tmp_path: Path) -> None:
    report = write_shards([folder], tmp_path / "out", image_format=image_format, progress=False)  # type: ignore[arg-type]
    held = read(report.shards)
    key = sources(held)["sub/3.png"]
    with Image.open(io.BytesIO(held[f"{key}.{image_format}"])) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(photo(3)))
    assert report.copied == 0


def test_jpeg_is_close_and_keeps_full_chroma(folder: Path, tmp_path: Path) -> None:
    held = read(write_shards([folder], tmp_path / "out", progress=False).shards)
    key = sources(held)["sub/3.png"]
    with Image.open(io.BytesIO(held[f"{key}.jpg"])) as image:
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # type: ignore[attr-defined]
        assert np.abs(np.asarray(image).astype(int) - np.asarray(photo(3))).mean() < 3


def test_scaling_down_and_leaving_out(tmp_path: Path) -> None:
    for name, size in {"large": (60, 100), "wide": (10, 100), "small": (20, 30), "tiny": (5, 5)}.items():
        photo(0, *size).save(tmp_path / f"{name}.jpg")
    report = write_shards([tmp_path], tmp_path / "out", max_side=50, min_side=15, progress=False)
    held = read(report.shards)
    kept = {name: json.loads(held[f"{key}.json"]) for name, key in sources(held).items()}
    assert {name: (about["height"], about["width"]) for name, about in kept.items()} == {
        "large.jpg": (30, 50),
        "small.jpg": (20, 30),
    }
    assert {file.name: reason for file, reason in report.skipped} == {
        "wide.jpg": "too small: 50 x 5, the shorter side needs 15",
        "tiny.jpg": "too small: 5 x 5, the shorter side needs 15",
    }
    assert report.notes == {"scaled down to 50 pixels on the longer side": 1}
    assert report.copied == 1


def test_pictures_below_the_crop_of_training_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in {"crop": (256, 256), "larger": (300, 257), "flat": (400, 255), "small": (20, 30)}.items():
        photo(0, *size).save(tmp_path / f"{name}.png")
    out = str(tmp_path / "out")
    assert run(["shards", str(tmp_path), "-o", out]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 pictures have a shorter side below 256 pixels" in said and "--min-side 256 leaves them out" in said
    assert run(["shards", str(tmp_path), "-o", out, "--min-side", "256", "--overwrite"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "shorter side below" not in said and "2 │ written" in said
    assert "1 shard in" in said


def test_the_crop_of_training_is_that_of_the_loaders() -> None:
    import inspect

    from gic.data.module import ImageData

    assert inspect.signature(ImageData).parameters["crop_size"].default == gic.data.shards.TRAINING_CROP


def test_same_bytes_whatever_the_threads_and_the_time(folder: Path, tmp_path: Path) -> None:
    one = write_shards([folder], tmp_path / "one", samples_per_shard=2, workers=1, progress=False)
    two = write_shards([folder], tmp_path / "two", samples_per_shard=2, workers=3, progress=False)
    assert [path.read_bytes() for path in one.shards] == [path.read_bytes() for path in two.shards]


def test_order_follows_the_seed(folder: Path, tmp_path: Path) -> None:
    orders = [
        list(sources(read(write_shards([folder], tmp_path / str(n), shuffle_seed=seed, progress=False).shards)))
        for n, seed in enumerate((None, 0, 1))
    ]
    assert orders[0] == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.png", "6.jpg", "sub/3.png"]
    assert orders[1] != orders[2]
    assert sorted(orders[1]) == sorted(orders[2]) == sorted(orders[0])


def test_webdataset_reads_what_was_written(folder: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    report = write_shards([folder], tmp_path / "out", samples_per_shard=3, progress=False)
    dataset = wds.WebDataset([str(path) for path in report.shards], shardshuffle=False).decode("pil")
    samples = list(dataset)
    assert len(samples) == 7
    for sample in samples:
        assert sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"])


def test_existing_shards_are_refused_then_wholly_replaced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards([folder], out, samples_per_shard=1, progress=False)
    validation = write_shards([folder], out, prefix="val", progress=False).shards[0]
    other = out / "train-extra.tar"
    other.write_bytes(b"not ours")
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError, match=r"already has 7 shards train-\*\.tar"):
        write_shards([folder], out, progress=False)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    report = write_shards([folder], out, samples_per_shard=4, overwrite=True, progress=False)
    assert sorted(out.iterdir()) == sorted([*report.shards, validation, other])
    assert len(report.shards) == 2


def test_a_broken_off_run_changes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    old = write_shards([folder], out, progress=False).shards[0]
    before = old.read_bytes()
    real = gic.data.shards.write_tar

    def fail_at_second(path: Path, samples: object) -> None:
        real(path, samples)  # type: ignore[arg-type]
        if path.name.endswith("1.tar"):
            raise KeyboardInterrupt

    monkeypatch.setattr(gic.data.shards, "write_tar", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        write_shards([folder], out, samples_per_shard=2, overwrite=True, progress=False)
    assert list(out.iterdir()) == [old]
    assert old.read_bytes() == before


def test_nothing_usable_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"^\S*a\.png is not an image"):
        write_shards([tmp_path], tmp_path / "out", progress=False)
    (tmp_path / "b.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"none of the 2 images .*[ab]\.png: is not an image"):
        write_shards([tmp_path], tmp_path / "out", progress=False)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"quality": 0},
        {"quality": 101},
        {"samples_per_shard": 0},
        {"max_side": 0},
        {"min_side": -1},
        {"workers": 0},
        {"image_format": "gif"},
        {"prefix": "../up"},
        {"prefix": ""},
        {"max_side": 10, "min_side": 20},
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, object], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_shards([folder], tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_too_large_for_the_format_is_left_out_and_said(tmp_path: Path) -> None:
    Image.new("RGB", (17_000, 2)).save(tmp_path / "long.png")
    photo(0).save(tmp_path / "fine.png")
    report = write_shards([tmp_path], tmp_path / "out", image_format="webp", progress=False)
    assert report.written == 1
    assert "17000 x 2 cannot be saved as webp" in report.skipped[0][1]


def test_keys_of_files_from_several_folders(folder: Path, tmp_path: Path) -> None:
    photo(9).save(tmp_path / "0.jpg")
    held = read(write_shards([folder / "0.jpg", tmp_path / "0.jpg"], tmp_path / "out", progress=False).shards)
    assert sorted(sources(held)) == ["0.jpg", "in/0.jpg"]


def test_command_prints_what_was_done(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["shards", str(folder), "-o", str(tmp_path / "out"), "--prefix", "val", "--workers", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "out" / "val-000000.tar").is_file()
    for text in ("7 │ written", "3 │ of these copied", "1 │ CMYK converted", "2 │ left out", "broken.png"):
        assert text in said


def test_long_lists_of_names_are_cut(folder: Path, tmp_path: Path) -> None:
    report = write_shards([folder], tmp_path / "out", progress=False)
    lines = left_out(report, names=1)
    assert "broken.png" in lines[0] or "empty.jpg" in lines[0]
    assert lines[1:] == ["left out: 1 more"]
