"""Every picture of a shard has a name of its own, and what a shard's headers state is not believed."""

from __future__ import annotations

import io
import os
import tarfile
import warnings
from pathlib import Path

import pytest
from shard_files import encoded, picture, stream, write_tar

from gic.data import reading
from gic.data.plan import Part
from gic.data.reading import Files, expand_sources, read_shard
from gic.data.remote import Remote
from gic.data.stream import EvalImages
from gic.pictures.load import load_rgb

DOTTED = [f"IMG_2023.05.{day:02}.jpg" for day in range(1, 32)]


def shard_of(folder: Path, names: list[str]) -> str:
    return write_tar(folder / "a.tar", [(name, encoded(picture(number))) for number, name in enumerate(names)])


def keys_of(shard: str, part: Part = reading.WHOLE_SHARD) -> list[str]:
    raws = list(read_shard(shard, part))
    assert not [raw for raw in raws if raw.problem]
    return [raw.key for raw in raws]


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (DOTTED, [name[:-4] for name in DOTTED]),
        (["photo0.jpg", "22.05.jpg", "photo1.png"], ["photo0", "22.05", "photo1"]),
        (["DSC.01.JPG", "DSC.02.JPEG", "DSC03.PNG"], ["DSC.01", "DSC.02", "DSC03"]),
        (["./a 1/picture.jpg", "./a 2/picture.jpg"], ["./a 1/picture", "./a 2/picture"]),
        (["v1.0/p0.jpg", "v1.0/p1.2.jpg", "v1.0/p1.3.jpg"], ["v1.0/p0", "v1.0/p1.2", "v1.0/p1.3"]),
        (["2023.01/05.06.jpg", "2023.02/05.06.jpg"], ["2023.01/05.06", "2023.02/05.06"]),
        (["a.b.jpg", "a.b.c.d.jpg"], ["a.b"]),  # the second would belong to the first
        (["._photo.jpg", "photo.jpg"], ["photo"]),  # what macOS puts beside its files
    ],
)
@pytest.mark.filterwarnings("ignore:shards hold pictures")
def test_names_with_dots_are_names(names: list[str], keys: list[str], tmp_path: Path) -> None:
    shard = shard_of(tmp_path, names)
    assert keys_of(shard) == keys
    assert [item["key"] for item in EvalImages(shard)] == keys


@pytest.mark.parametrize("ending", ["cls", "json", "txt", "caption.txt"])
@pytest.mark.parametrize("picture_first", [True, False])
def test_what_lies_beside_a_picture_with_dots_in_its_name_costs_nothing(
    ending: str, picture_first: bool, tmp_path: Path
) -> None:
    members = []
    for name in DOTTED[:12]:
        pair = [(name, encoded(picture(len(members)))), (f"{name[:-4]}.{ending}", b"{}")]
        members += pair if picture_first else pair[::-1]
    shard = write_tar(tmp_path / "a.tar", members)
    assert keys_of(shard) == [name[:-4] for name in DOTTED[:12]]
    batch = next(iter(stream([shard], batch_size=12, batches_per_epoch=1)))
    assert sorted(batch["key"]) == [name[:-4] for name in DOTTED[:12]] and not batch["skipped"]


@pytest.mark.parametrize(
    "names", [["a.png", "a.seg.png", "a.depth.png"], ["a.depth.png", "a.flow.png", "a.png", "a.seg.png"]]
)
def test_a_mask_beside_a_picture_is_no_picture_and_that_is_said(names: list[str], tmp_path: Path) -> None:
    shard = shard_of(tmp_path, [*names, "b.png"])
    with pytest.warns(UserWarning, match=r"KEY\.seg\.png beside KEY\.png.*rename them") as told:
        found = list(read_shard(shard))
    assert [raw.key for raw in found] == ["a", "b"]
    assert isinstance(found[0].data, bytes) and found[0].data == encoded(picture(names.index("a.png")))
    assert len(told) == len(names) - 1


def test_a_sample_without_a_picture_is_named_with_what_was_missed(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("one.05.xyz", b""), ("one.06.xyz", b""), ("two.png", encoded(picture(0)))])
    bad, good = read_shard(shard)
    assert bad.problem == "no_image" and "one.05.xyz" in bad.name and shard in bad.name and ".jpg" in bad.name
    assert good.key == "two"


@pytest.mark.parametrize("place", [0.001, 0.3, 0.5, 0.7, 0.999])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.filterwarnings("ignore:shards hold pictures")
def test_the_stretches_of_a_shard_of_dotted_names_make_one_whole(place: float, parts: int, tmp_path: Path) -> None:
    names = [f"{year}.{month:02}{ending}" for year in ("x", "y", "z") for month in range(11) for ending in (".jpg", "")]
    shard = shard_of(tmp_path, [*names, "u.1.png", "u.png", "v.txt", "w.png"])
    whole = sorted(raw.key for raw in read_shard(shard))
    assert len(whole) == 36
    read = [
        raw.key
        for part in range(parts)
        for start, stop in ((place, 1.0), (0.0, place))
        for raw in read_shard(shard, Part(0, part, parts, start, stop, 0))
        if raw.problem in ("", "no_image")
    ]
    assert sorted(read) == whole


# --- sizes ----------------------------------------------------------------------------------------------------


def test_a_picture_that_is_too_large_is_passed_over_and_counted(tmp_path: Path, monkeypatch) -> None:
    data = encoded(picture(0))
    monkeypatch.setattr(reading, "MAX_PICTURE_BYTES", len(data))
    members = [("a.png", data), ("b.png", data + b"x"), ("c.npy", 9 * data), ("c.png", data)]
    shard = write_tar(tmp_path / "a.tar", members)
    raws = list(read_shard(shard))
    assert [(raw.key, raw.problem) for raw in raws] == [("a", ""), ("b", "too_large"), ("c", "")]
    assert "b.png" in raws[1].name and "MiB" in raws[1].name
    (batch,) = stream([shard], batch_size=2, batches_per_epoch=1, shuffle_buffer=1, max_bad_fraction=0.5)
    assert batch["skipped"] == {"too_large": 1}
    assert [item.get("error", "") for item in EvalImages(shard)] == ["", raws[1].name, ""]
    for name, content in members:
        (tmp_path / name).write_bytes(content)
    (files,) = expand_sources(str(tmp_path / "?.png"))
    assert [raw.problem for raw in read_shard(files)] == ["", "too_large", ""]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [1 << 42, 1 << 62, -512, -(1 << 42)])
@pytest.mark.parametrize("part", [Part(0, 0, 1, 0.0, 1.0, 0), Part(0, 0, 1, 0.9, 1.0, 0)])
def test_a_size_that_cannot_be_is_damage_and_takes_no_memory(
    kind: bytes, size: int, part: Part, tmp_path: Path
) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.png", encoded(picture(0)))])
    with tarfile.open(shard) as tar:
        (member,) = tar.getmembers()
    whole = Path(shard).read_bytes()[: member.offset_data + -(-member.size // 512) * 512]
    Path(shard).write_bytes(whole + header("b.png", size, kind) + 4096 * b"x")
    problems = [raw.problem for raw in read_shard(shard, part)]
    assert problems[0] == "" and problems[-1] == "damaged_shard"
    assert problems[1:-1] == (["too_large"] if kind == tarfile.REGTYPE and size > 0 else [])


@pytest.mark.parametrize("cut", ["in a header", "a flipped bit"])
def test_a_damaged_header_is_not_taken_for_the_end(cut: str, tmp_path: Path) -> None:
    shard = Path(shard_of(tmp_path, [f"{number}.png" for number in range(5)]))
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        place = tar.getmembers()[3].offset
    if cut == "in a header":
        del data[place + 100 :]
    else:
        data[place + 3] ^= 1
    shard.write_bytes(data)
    problems = [raw.problem for raw in read_shard(str(shard))]
    assert problems == ["", "", "", "damaged_shard"]


def test_why_a_shard_cannot_be_read_is_said_without_numbers(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    hasty = Remote(retries=0)
    cache = Remote(cache_dir=str(tmp_path / "file" / "cache"), retries=0)
    for shard, remote, said in (
        (str(tmp_path / "gone.tar"), hasty, "No such file"),
        (str(tmp_path), hasty, "Is a directory"),
        ("http://127.0.0.1:9/a.tar", hasty, "refused after 0 bytes"),
        ("pipe:exit 0", cache, f"the cache {tmp_path / 'file' / 'cache'} cannot be written"),
    ):
        (failed,) = read_shard(shard, reading.WHOLE_SHARD, remote)
        assert failed.problem == "unreadable_shard" and "Errno" not in failed.name and "\n" not in failed.name
        assert said in failed.name and shard in failed.name
    (failed,) = read_shard(Files("pictures", (tmp_path,)))
    assert (failed.problem, failed.name) == ("unreadable_file", f"{tmp_path}: Is a directory")


# --- names that are no UTF-8 ----------------------------------------------------------------------------------


def test_keys_can_be_written_whatever_the_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / name).write_bytes(encoded(picture(0)))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    shard = shard_of(tmp_path / "shards", [name])
    (files,) = expand_sources(str(tmp_path))
    found = [*read_shard(shard), *read_shard(files)]
    keys = [raw.key for raw in found] + [item["key"] for item in EvalImages([str(tmp_path), shard])]
    names = [raw.name for raw in found]
    assert len(keys) == 4
    for text in keys + names:
        assert "caf\\xe9" in text.encode("utf-8").decode()
    for raw in found:
        assert isinstance(raw.data, bytes) and load_rgb(io.BytesIO(raw.data)).image.size == (24, 20)


def test_reading_pictures_warns_of_nothing(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, ["a.png", "b.jpg", "c.01.png", "c.02.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(read_shard(shard))) == 4
