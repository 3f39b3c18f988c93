"""Baselines: whole files that decode by themselves, in order of size, and as good as the codecs are known to be."""

from __future__ import annotations

import builtins
import csv
import sys
import urllib.error
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gic.benchmark import compressai_codecs
from gic.benchmark import picture_codecs as baselines
from gic.benchmark.compressai_codecs import CompressAIZoo
from gic.benchmark.picture_codecs import Avif, Baseline, Heic, Jpeg, Jpeg2000, JpegXL, PillowBaseline, WebP
from gic.errors import ConfigError

CODECS: list[type[Any]] = [Jpeg, WebP, Avif, JpegXL, Heic, Jpeg2000]

PLUGINS: dict[str, type[PillowBaseline]] = {"pillow_jxl": JpegXL, "pillow_heif": Heic}


def ready(codec: Baseline) -> Baseline:
    """The codec, or a skipped test where it cannot run."""
    if reason := codec.unavailable():
        pytest.skip(reason)
    return codec


def picture(width: int = 150, height: int = 91) -> Image.Image:
    """Edges, gradients and some noise; no size is even or a multiple of anything."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 6, (height, width))
    channels = [128 + 90 * np.sin(x / 9), 255 * (x > y), 255 * y / height]
    return Image.fromarray(np.stack([np.clip(c + noise, 0, 255).astype(np.uint8) for c in channels], -1))


def psnr(a: Image.Image, b: Image.Image) -> float:
    return float(10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


@pytest.mark.parametrize("make", CODECS)
def test_round_trip(make: type[Any]) -> None:
    """Better settings give larger files that are closer to the picture, of its size and mode."""
    codec = ready(make())
    image = picture()
    first, middle, last = (codec.settings[i] for i in (1, len(codec.settings) // 2, -1))
    files = [codec.encode(image, setting) for setting in (first, middle, last)]
    pictures = [codec.decode(data) for data in files]
    assert all(p.mode == "RGB" and p.size == image.size for p in pictures)
    assert len(files[0]) < len(files[1]) < len(files[2])
    quality = [psnr(image, p) for p in pictures]
    assert quality[0] < quality[1] < quality[2]
    assert quality[2] > 25
    assert any(character.isdigit() for character in codec.version)


@pytest.mark.parametrize("make", CODECS)
def test_default_points(make: type[Any]) -> None:
    codec = make()
    assert len(codec.settings) == len(set(codec.settings)) >= 8


@pytest.mark.parametrize("make", CODECS)
def test_metadata_is_left_out(make: type[Any]) -> None:
    """Only the picture counts: profile, Exif data, comment and resolution of the original cost nothing."""
    codec = ready(make())
    plain, laden = picture(), picture()
    exif = laden.getexif()
    exif[0x010E] = "d" * 5000
    laden.info.update(icc_profile=b"p" * 5000, exif=exif.tobytes(), comment=b"c" * 5000, dpi=(300, 300))
    setting = codec.settings[2]
    assert codec.encode(laden, setting) == codec.encode(plain, setting)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (Jpeg, [0, 50], "jpeg takes a quality from 1 to 100, not 0"),
        (WebP, [101], "webp takes a quality from 0 to 100, not 101"),
        (Avif, [-1], "avif takes a quality from 0 to 100, not -1"),
        (JpegXL, [100], "jpeg-xl takes a quality from 0 to 99, not 100"),
        (Heic, [-1], "heic takes a quality from 0 to 100, not -1"),
        (Jpeg2000, [0.0], "jpeg-2000 takes a bpp from 0.01 to 24, not 0"),
        (Jpeg, [], "jpeg needs at least one quality"),
    ],
)
def test_values_outside_the_range(make: type[Any], values: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(values)


def test_points_are_sorted() -> None:
    assert list(Jpeg([75, 5, 30]).settings) == ["quality=5", "quality=30", "quality=75"]
    assert list(Jpeg2000([0.5, 0.25]).settings) == ["bpp=0.25", "bpp=0.5"]


def test_jpeg2000_meets_its_rates() -> None:
    codec = ready(Jpeg2000([0.5, 1.0, 2.0]))
    image = picture(640, 480)
    for setting, target in zip(codec.settings, (0.5, 1.0, 2.0), strict=True):
        assert 8 * len(codec.encode(image, setting)) / (640 * 480) == pytest.approx(target, rel=0.02)


def test_avif_says_what_it_is_tuned_for() -> None:
    """The tune is passed on: others make other files, and iq is what Pillow's libavif does if nothing is said."""
    import io

    image = picture()
    files = {tune: ready(Avif([50], tune)).encode(image, "quality=50") for tune in ("iq", "ssim", "psnr")}  # type: ignore[arg-type]
    assert len(set(files.values())) == 3
    assert Avif(tune="ssim").parameters["advanced"] == {"tune": "ssim"}
    buffer = io.BytesIO()
    image.save(buffer, "AVIF", quality=50, max_threads=2)
    assert buffer.getvalue() == files["iq"]


def test_options_that_the_library_lacks_are_a_reason() -> None:
    ready(Avif())
    reason = Avif(tune="butteraugli").unavailable()  # type: ignore[arg-type]
    assert reason is not None
    assert "butteraugli" in reason


@pytest.mark.parametrize("module", PLUGINS)
def test_missing_plugin_is_a_reason(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *_: object) -> Any:
        assert name.startswith(module)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(baselines.importlib, "import_module", missing)
    codec: Any = PLUGINS[module]
    reason = codec().unavailable()
    assert reason is not None
    assert f"pip install {module.replace('_jxl', '-jxl-plugin').replace('_heif', '-heif')}" in reason


def test_pillow_without_a_format_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines.features, "check", lambda _: False)
    assert "built without AVIF" in str(Avif().unavailable())


def test_importing_needs_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Naming a codec in a config must not import its plugin."""
    real = builtins.__import__

    def guarded(name: str, *arguments: Any, **named: Any) -> Any:
        assert not name.startswith(("pillow_jxl", "pillow_heif"))
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", guarded)
    JpegXL()
    Heic()


# --- against what was measured elsewhere ---------------------------------------------------------------------------


def _measured(shared: Path, codec: str, q: str) -> tuple[float, float]:
    with (shared / "published" / "kodak_classical.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if (row["codec"], row["q"]) == (codec, q))
    return float(row["bpp"]), float(row["psnr"])


@pytest.mark.parametrize(
    ("codec", "published", "q"),
    [(Jpeg([10]), "jpeg", "10"), (WebP([0]), "webp", "0")],
)
def test_kodak_means(codec: Baseline, published: str, q: str, shared: Path) -> None:
    """All 24 Kodak images, against a measurement by another program."""
    ready(codec)
    rates, quality = [], []
    for path in sorted((shared / "data" / "kodak").glob("*.png")):
        image = Image.open(path).convert("RGB")
        data = codec.encode(image, codec.settings[0])
        rates.append(8 * len(data) / (image.width * image.height))
        quality.append(psnr(image, codec.decode(data)))
    assert len(rates) == 24
    bpp, expected = _measured(shared, published, q)
    assert np.mean(rates) == pytest.approx(bpp, rel=0.01)
    assert np.mean(quality) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("codec", "published", "q"),
    [
        (Avif([30]), "avif", "30"),
        (Heic([30]), "hevc", "30"),
        (JpegXL([90]), "jxl", "1"),
        (Jpeg2000([0.3]), "j2k", "0.3"),
    ],
)
def test_one_kodak_image(codec: Baseline, published: str, q: str, shared: Path) -> None:
    """One image that lies near the mean of all: not more than plausible, but the slow codecs take their time."""
    ready(codec)
    image = Image.open(shared / "data" / "kodak" / "kodim19.png").convert("RGB")
    data = codec.encode(image, codec.settings[0])
    bpp, expected = _measured(shared, published, q)
    assert 8 * len(data) / (image.width * image.height) == pytest.approx(bpp, rel=0.25)
    assert psnr(image, codec.decode(data)) == pytest.approx(expected, abs=1.5)


# --- CompressAI's zoo ----------------------------------------------------------------------------------------------


needs_compressai = pytest.mark.skipif(
    find_spec("compressai") is None, reason="CompressAI is not installed: pip install -e '.[baselines]'"
)


def checkpoint(path: Path, model: str, updated: bool = True) -> str:
    """A small untrained network of a zoo's architecture."""
    from compressai.zoo.image import model_architectures

    torch.manual_seed(0)
    network = model_architectures[model](16, 24)
    with torch.no_grad():
        for weights in network.g_a.parameters():
            weights.mul_(3)  # latents that do not all round to zero
    if updated:
        network.update()
    torch.save(network.state_dict(), path)
    return str(path)


class Trap:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


@needs_compressai
@pytest.mark.parametrize(
    ("model", "strings"),
    [("bmshj2018-factorized", 1), ("mbt2018-mean", 2), ("mbt2018", 2), ("bmshj2018-hyperprior", 2)],
)
def test_zoo_round_trip(model: str, strings: int, tmp_path: Path) -> None:
    """Files decode in a fresh network, to the size of the image, and count all that the decoder reads."""
    weights = {3: checkpoint(tmp_path / "a.pth", model), 7: checkpoint(tmp_path / "b.pth", model, updated=False)}
    codec, other = (CompressAIZoo(model, [3, 7], checkpoints=weights) for _ in range(2))
    assert codec.unavailable() is None
    codec.start("cpu")
    image = picture(100, 59)
    for setting in codec.settings:
        data = codec.encode(image, setting)
        decoded = other.decode(data)
        assert (decoded.size, decoded.mode) == (image.size, "RGB")
        assert np.array_equal(np.asarray(decoded), np.asarray(codec.decode(data)))
        network = codec._network(setting)
        padded = np.pad(np.asarray(image), ((0, 5), (0, 28), (0, 0)), mode="edge")
        with torch.no_grad():
            coded = network.compress(torch.from_numpy(padded).permute(2, 0, 1)[None] / 255)
            x_hat = network.decompress(coded["strings"], coded["shape"])["x_hat"]
        assert all(batch[0] in data for batch in coded["strings"])
        assert len(data) == 9 + sum(4 + len(batch[0]) for batch in coded["strings"])
        assert len(coded["strings"]) == strings
        expected = (x_hat[0, :, :59, :100].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(decoded), expected)
    assert "CompressAI" in codec.version
    assert "a.pth (sha256 " in codec.parameters["weights"]["quality=3"]


@pytest.mark.parametrize("old", [True, False])
def test_zoo_without_compressai_says_which_extra_to_install(old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compressai", None)
    monkeypatch.setitem(sys.modules, "compressai.zoo.image", None)
    monkeypatch.setattr(sys, "version_info", (3, 12) if old else (3, 13))
    codec = CompressAIZoo("mbt2018-mean", [1, 8])
    reason = codec.unavailable()
    assert reason is not None
    assert "[baselines]" in reason and "\n" not in reason
    assert old == ("numpy below 2" not in reason)
    assert codec.settings == ["quality=1", "quality=8"]


@needs_compressai
def test_zoo_points_and_weights() -> None:
    assert len(CompressAIZoo("mbt2018-mean").settings) == 8
    assert len(CompressAIZoo("cheng2020-anchor").settings) == 6
    assert CompressAIZoo("mbt2018-mean", [1]).parameters["weights"] == {"quality=1": "mbt2018-mean-1-e522738d.pth.tar"}


@needs_compressai
def test_zoo_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No download: a reason, not an error."""

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    reason = CompressAIZoo("mbt2018-mean", [1]).unavailable()
    assert reason is not None
    assert "no route to host" in reason
    assert "checkpoints" in reason


@needs_compressai
def test_zoo_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server that keeps silent is given up, and other connections keep their patience."""
    import socket

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(compressai_codecs, "DOWNLOAD_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/model-1-00000000.pth.tar"
        codec = CompressAIZoo("mbt2018-mean", [1])
        monkeypatch.setattr(codec, "_urls", {1: url})
        assert "timed out" in str(codec.unavailable())
    assert socket.getdefaulttimeout() is None


@needs_compressai
def test_zoo_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model 'elic'; it has bmshj2018-factorized"):
        CompressAIZoo("elic")
    with pytest.raises(ConfigError, match="takes a quality from 1 to 6, not 8"):
        CompressAIZoo("cheng2020-anchor", [6, 8])
    with pytest.raises(ConfigError, match=r"no file .*gone\.pth"):
        CompressAIZoo(checkpoints={1: str(tmp_path / "gone.pth")})
    (tmp_path / "text.pth").write_text("nothing of the kind")
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    other = checkpoint(tmp_path / "other.pth", "bmshj2018-factorized")
    for path in (str(tmp_path / "text.pth"), str(tmp_path / "trap.pth"), other):
        with pytest.raises(ConfigError, match="does not hold weights of mbt2018-mean"):
            CompressAIZoo("mbt2018-mean", [1], checkpoints={1: path}).unavailable()
    assert not (tmp_path / "sprung").exists()
