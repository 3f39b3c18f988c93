"""Files written once stay readable: a change of a byte in tests/golden/ is a new format version."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from independent import decode
from PIL import Image
from places import TESTS
from small import all_symbols, documented, picture, small_codec

GOLDEN = TESTS / "golden"
HASHES = json.loads((GOLDEN / "hashes.json").read_text())

spec = importlib.util.spec_from_file_location("regenerate", GOLDEN / "regenerate.py")
assert spec is not None and spec.loader is not None
regenerate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(regenerate)


def test_the_weights_are_the_same_as_when_the_files_were_made() -> None:
    assert {name: regenerate.of(name).model_id.hex() for name in HASHES["models"]} == HASHES["models"]


@pytest.mark.parametrize("name", HASHES["files"])
def test_a_file_made_once_decodes_to_the_same_symbols(name: str) -> None:
    data = (GOLDEN / f"{name}.gic").read_bytes()
    assert hashlib.sha256(data).hexdigest() == HASHES["files"][name]["file"]
    assert regenerate.symbols_hash(regenerate.of(name), data) == HASHES["files"][name]["symbols"]


@pytest.mark.parametrize("name", HASHES["files"])
def test_a_decoder_written_from_the_documentation_finds_the_same_symbols(name: str) -> None:
    data, codec = (GOLDEN / f"{name}.gic").read_bytes(), regenerate.of(name)
    laplace = name.startswith("laplace")
    assert decode(data, codec.model.state_dict(), laplace=laplace) == documented(codec, codec.open(data))


@pytest.mark.parametrize("prior", ["gaussian", "laplace"])
@pytest.mark.parametrize(
    "settings",
    [{"q": 0.5}, {"q": 8.0}, {"q": 8.0, "quantizer": "dither"}, {"q": 0.5, "progressive": True}, {"progressive": True}],
)
def test_it_does_so_for_escapes_and_elements_that_are_not_coded(settings, prior) -> None:
    """Pictures beyond what the prior expects."""
    codec = small_codec(prior=prior)
    pixels = picture(200, 64, "edges")
    pixels[:, :, 90:] = 255 * (pixels[:, :, 90:] > 128)
    data = codec.compress(pixels, **settings)
    laplace = prior == "laplace"
    assert decode(data, codec.model.state_dict(), laplace=laplace) == documented(codec, codec.open(data))


def test_it_does_so_for_the_first_bytes_of_a_file() -> None:
    data = (GOLDEN / "progressive.gic").read_bytes()
    whole = small_codec().open(data).progressive
    assert whole is not None and whole.refinements == 2
    for size in range(whole.start, len(data) + 1, 5):
        expected = documented(small_codec(), small_codec().open(data[:size]))
        assert decode(data[:size], small_codec().model.state_dict()) == expected


@pytest.mark.parametrize("name", HASHES["files"])
def test_a_file_made_once_decodes_to_the_same_picture(name: str) -> None:
    decoded = regenerate.decode(regenerate.of(name), (GOLDEN / f"{name}.gic").read_bytes())
    with Image.open(GOLDEN / f"{name}.png") as image:
        expected = np.asarray(image).astype(int)
    # Floats differ between machines in their last bits, and then the nearest of 256 levels may.
    assert np.abs(np.asarray(decoded).astype(int) - expected).max() <= 1


def test_progressive_files_made_once_are_made_again() -> None:
    """What an encoder writes may change, but not by accident."""
    made = regenerate.make()
    for name in HASHES["files"]:
        if name.startswith("progressive"):
            assert made[name] == (GOLDEN / f"{name}.gic").read_bytes(), name


def test_the_golden_files_cover_what_a_progressive_file_may_be() -> None:
    for name, tiles in (("progressive", 1), ("progressive-tiled", 2), ("progressive-cut", 2)):
        found = small_codec().open((GOLDEN / f"{name}.gic").read_bytes()).progressive
        assert (
            found is not None and found.refinements == 2 and {chunk.tile for chunk in found.chunks} == {*range(tiles)}
        )
        assert (found.held < found.size) == (name == "progressive-cut") and found.lost == ""
        assert len(found.chunks) > 2 * tiles or tiles == 1


def test_metadata_written_once_is_read() -> None:
    image = regenerate.decode(small_codec(), (GOLDEN / "metadata.gic").read_bytes())
    assert image.getexif()[0x0110] == "Camera" and len(image.info["icc_profile"]) > 300


def test_the_golden_files_are_small_and_complete() -> None:
    files = [path for path in GOLDEN.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 90_000
    names = {path.stem for path in files if path.suffix == ".gic"}
    assert names == set(HASHES["files"]) == set(regenerate.make())


def test_the_example_in_the_documentation_is_a_golden_file(repository: Path) -> None:
    page = (repository / "docs" / "format.md").read_text()
    dump = page.split("```")[1]
    data = bytes.fromhex("".join(line.partition(":")[2] for line in dump.strip().splitlines()))
    assert data == (GOLDEN / "round.gic").read_bytes()
    ((z, y),) = all_symbols(small_codec(), small_codec().open(data))
    assert " ".join(map(str, z.ravel())) in page and " ".join(map(str, y.ravel()[:10])) in page
    assert small_codec().coder.tables_hash[:16] in page
