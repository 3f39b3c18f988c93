"""Files are replaced whole, links are followed, and what is no file is written to."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import gic
from gic.errors import in_words
from gic.files import descriptor, is_stream, printable, replacing, write_bytes

CONTENT = bytes(range(256)) * 1000  # more than a pipe holds at once


def by_block(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


writers = pytest.mark.parametrize("write", [write_bytes, by_block])


@writers
def test_a_pipe_is_written_to_and_stays_a_pipe(write, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for name in ("pipe", "link"):
        read: list[bytes] = []
        reader = threading.Thread(target=lambda read=read: read.append(pipe.read_bytes()), daemon=True)
        reader.start()
        write(tmp_path / name, CONTENT)
        reader.join(60)
        assert read == [CONTENT]
    assert stat.S_ISFIFO(pipe.lstat().st_mode) and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link"}


def device(path: Path, number: int) -> Path:
    """A device of one's own, for a mistake in the code would replace the machine's."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, number))
        path.open("rb").close()
    except OSError:
        pytest.skip("only root may make a device")
    return path


@writers
def test_a_device_stays_a_device(write, tmp_path: Path) -> None:
    null = device(tmp_path / "null", 3)
    write(null, CONTENT)
    assert stat.S_ISCHR(null.lstat().st_mode) and list(tmp_path.iterdir()) == [null]


@writers
@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("links", [1, 2])
def test_a_link_stays_and_its_target_is_replaced_whole(write, old: bytes | None, links: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    target = tmp_path / "a" / "target"
    if old is not None:
        target.write_bytes(old)
    other = tmp_path / "other"
    other.symlink_to(Path("a", "target"))
    link = other if links == 1 else tmp_path / "link"
    if links == 2:
        link.symlink_to(other)
    inode = target.stat().st_ino if old is not None else None
    write(link, CONTENT)
    assert link.is_symlink() and target.read_bytes() == link.read_bytes() == CONTENT
    assert old is None or target.stat().st_ino != inode  # whole: a new file in the old one's place
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@writers
def test_links_in_a_ring_are_an_error_and_stay(write, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.symlink_to(two)
    two.symlink_to(one)
    with pytest.raises(OSError) as caught:
        write(one, b"x")
    assert caught.value.errno == errno.ELOOP and str(one) in in_words(caught.value)
    assert one.is_symlink() and two.is_symlink()


WRITE = """
import sys
from gic.files import {name}, replacing
def by_block(path, data):
    with replacing(path) as temporary:
        temporary.write_bytes(data)
print("before", flush=True)
{name}(sys.argv[1], b"data")
print("after")
"""


@pytest.mark.parametrize("name", ["write_bytes", "by_block"])
@pytest.mark.parametrize("path", ["/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("mode", ["wb", "ab", "pipe"])
def test_an_open_file_goes_on_where_it_is(name: str, path: str, mode: str, tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files have no names here")
    (tmp_path / "link").symlink_to("/proc/self/fd/1")  # as /dev/stdout is, which a mistake would replace
    out = tmp_path / "out"
    out.write_bytes(b"first\n")
    code = WRITE.format(name=name).replace(f"import {name}, replacing", "import write_bytes, replacing")
    command = [sys.executable, "-c", code, path]
    environment = {**os.environ, "PYTHONPATH": str(Path(gic.__file__).parents[1])}
    if mode == "pipe":
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, cwd=tmp_path)
        assert done.stdout == b"before\ndataafter\n"
    else:
        with out.open(mode) as file:
            done = subprocess.run(command, stdout=file, env=environment, cwd=tmp_path)
            assert out.read_bytes() == (b"first\n" if mode == "ab" else b"") + b"before\ndataafter\n"
    assert done.returncode == 0


def test_the_names_of_open_files_are_known(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files have no names here")
    (tmp_path / "link").symlink_to("/dev/stderr")
    names = {"/dev/stdin": 0, "/dev/stdout": 1, tmp_path / "link": 2, "/dev/fd/12": 12, "/proc/self/fd/3": 3}
    assert {name: descriptor(name) for name in names} == names


def test_plain_names_are_no_streams(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link", "missing", "."):
        assert not is_stream(tmp_path / name) and descriptor(tmp_path / name) is None


@writers
@pytest.mark.parametrize("name", [255 * "x", 251 * "x" + ".gic", 85 * "€", 127 * "é" + "x"])
def test_names_may_be_as_long_as_the_file_system_allows(write, name: str, tmp_path: Path) -> None:
    write(tmp_path / name, CONTENT)
    assert (tmp_path / name).read_bytes() == CONTENT and len(list(tmp_path.iterdir())) == 1


@writers
def test_two_long_names_at_once_have_temporaries_of_their_own(write, tmp_path: Path) -> None:
    names = [tmp_path / (200 * "x" + str(number)) for number in range(2)]
    with replacing(names[0]) as first, replacing(names[1]) as second:
        first.write_bytes(b"0")
        second.write_bytes(b"1")
    assert [name.read_bytes() for name in names] == [b"0", b"1"]


@writers
def test_a_private_file_stays_private(write, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch(mode=0o600)
    (tmp_path / "link").symlink_to(path)
    for name in ("a", "link"):
        write(tmp_path / name, CONTENT)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write(tmp_path / "new", CONTENT)
    (tmp_path / "like").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "like").stat().st_mode


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name, said in {
        256 * "x": "file name too long (give a shorter name)",
        "folder": "is a directory",
        "file/below": "a part of this path is a file|a file is in the way",
    }.items():
        with pytest.raises(OSError) as caught:
            write_bytes(tmp_path / name, b"x")
        text = in_words(caught.value)
        assert any(part in text for part in said.split("|"))
        assert ".part" not in text and "Errno" not in text and "\n" not in text
        assert str(tmp_path / name.split("/")[0]) in text


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    full = device(tmp_path / "full", 7)
    for write in (write_bytes, by_block):
        with pytest.raises(OSError) as caught:
            write(full, CONTENT)
        assert in_words(caught.value) == f"{full}: no space left on device (make room, or choose another place)"


def test_names_that_are_no_utf_8_can_be_printed() -> None:
    for name in (b"caf\xe9.png", "é €".encode(), b"\xff\xfe"):
        text = printable(os.fsdecode(name))
        assert text.encode("utf-8").decode() == text == printable(name)
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9" and printable("é") == "é"
