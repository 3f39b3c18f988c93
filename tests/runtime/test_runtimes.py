"""The two makers of networks, PyTorch and ONNX Runtime: the same weights are the same codec in both."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from places import REPOSITORY, TESTS
from safetensors.torch import save_file
from small import CONFIG, all_symbols, array, picture, small_model

import gic
from gic.bitstream.container import unpack
from gic.codec.checkpoints import build_codec, read_weights, save_weights
from gic.codec.image_codec import ImageCodec
from gic.codec.zoo import shipped_weights
from gic.errors import ConfigError
from gic.method.samplers import SAMPLERS, Sampler, sampler_of
from gic.models.compressor import Compressor
from gic.models.reverse import ReverseNetwork
from gic.runtime import onnx, parts, pytorch
from gic.runtime.networks import Latent, WayBack
from gic.runtime.onnx import OnnxNetworks
from gic.runtime.pytorch import TorchNetworks

STAGES = {"widths": [8, 8, 12, 8], "blocks": [0, 1, 0, 1]}
PARTS = {
    "g_a": {"widths": [8, 12, 16], "blocks": [1, 1, 2], "latent_channels": 8, "gain": 5.0, "attention": True},
    "g_s": {"widths": [12, 8, 16], "blocks": [2, 0, 1], "latent_channels": 8, "gain": 3.0, "realistic_stages": 3},
    "h_a": {"channels": 8, "hyper_channels": 6},
    "h_s": {"hyper_channels": 6, "channels": 16},
}
CLASSES = {"g_a": "transforms.Analysis", "g_s": "transforms.Synthesis"} | {
    "h_a": "hyper.HyperAnalysis",
    "h_s": "hyper.HyperSynthesis",
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"widths": [8], "blocks": [1]}, {}),
    "lapped": (
        {"latent_channels": 48, "hyper_channels": 32, "lapped": True},
        {"widths": [8, 12], "blocks": [1, 2]},
        {},
    ),
    "detail": (
        {"latent_channels": 64, "hyper_channels": 96, "lapped": True, "detail_channels": 40},
        {"widths": [8], "blocks": [1], "realistic": True},
        {"quantizer": "dither"},
    ),
    "activity": (
        {"latent_channels": 64, "hyper_channels": 96, "lapped": True, "detail_channels": 40, "hyper_activity": True},
        {"widths": [8], "blocks": [1]},
        {"steps": 3, "rho": 1.5},
    ),
    "activity alone": (
        {"latent_channels": 64, "hyper_channels": 96, "lapped": True, "hyper_activity": True},
        {"widths": [8], "blocks": [1]},
        {"q_min": 0.4, "q_max": 6.0},
    ),
    "bottlenecks": ({"block": "bottleneck"}, {"widths": [8], "blocks": [1]}, {"sampler": "sde(alpha=0.3)"}),
    "attention": ({"attention": True, "synthesis_blocks": [1, 0, 2, 0]}, {"widths": [8], "blocks": [2]}, {}),
    "realistic": (
        {"realistic_stages": 2, "attention": True, "gain": 20.0},
        {"widths": [8, 12], "blocks": [1, 1], "realistic": True},
        {},
    ),
    "three resolutions": (
        {},
        {"widths": [8, 12, 16], "blocks": [1, 2, 1], "attention": True, "realistic": True, "embedding": 10},
        {},
    ),
    "lapped and realistic": (
        {"latent_channels": 48, "hyper_channels": 32, "lapped": True, "realistic_stages": 4, "gain": 6.0},
        {"widths": [8], "blocks": [1], "attention": True},
        {},
    ),
    "laplace": (
        {"latent_channels": 64, "hyper_channels": 96, "lapped": True, "detail_channels": 40, "prior": "laplace"},
        {"widths": [8], "blocks": [1]},
        {},
    ),
    "parts": (PARTS, {"widths": [12], "blocks": [1]}, {}),
}
"""Arguments of the compressor, of the reverse network, and of the codec."""
LEVELS = ("one level", "a field")
REALISM = (0.0, 0.4, 1.0)


def described(kind: str) -> dict[str, Any]:
    """The description of a small codec."""
    compressor, reverse, settings = KINDS[kind]
    if compressor is PARTS:
        inner = {n: {"class_path": f"gic.models.{CLASSES[n]}", "init_args": a} for n, a in PARTS.items()}
        sizes = {"latent_channels": 8, "hyper_channels": 6}
        compressor = {"class_path": "gic.models.compressor.Compressor", "init_args": {**inner, **sizes}}
    else:
        arguments = {**STAGES, "latent_channels": 8, "hyper_channels": 4, **compressor}
        compressor = {"class_path": "gic.models.compressor.ResidualCompressor", "init_args": arguments}
    networks = {
        "compressor": compressor,
        "reverse": {"class_path": "gic.models.reverse.ReverseUNet", "init_args": reverse},
    }
    return {"class_path": "gic.models.codec.Codec", "init_args": {**networks, **settings}}


def write(path: Path, kind: str, dtype: torch.dtype = torch.float16) -> Path:
    """A weights file in which no weight is zero, also where training starts with zeros."""
    torch.manual_seed(1)
    codec = build_codec(described(kind))
    for parameter in codec.parameters():
        if not parameter.all():
            values = torch.randn(parameter.shape).sign() * (0.5 + torch.rand(parameter.shape))
            parameter.data += 0.3 / parameter[0].numel() ** 0.5 * values * (parameter == 0)
    for name, parameter in codec.reverse.named_parameters():
        if "attention.qkv" in name:
            parameter.data *= 8  # so that places attend to a few others
        if kind == "lapped and realistic" and name.startswith(("enter", "down_blocks.0.blocks.0.conv2")):
            parameter.data *= 0.01  # so small a signal that the constant in the normalisation counts
    assert all(bool(parameter.all()) for parameter in codec.parameters())
    save_weights(path, codec.state_dict(), described(kind), dtype=dtype)
    return path


class Pair(NamedTuple):
    """One set of weights with either maker."""

    onnx: ImageCodec
    torch: ImageCodec


def both(path: Path) -> Pair:
    pair = Pair(*(gic.load(path, "cpu", runtime=runtime) for runtime in ("onnx", "torch")))
    assert isinstance(pair.onnx.networks, OnnxNetworks) and isinstance(pair.torch.networks, TorchNetworks)
    return pair


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return both(write(tmp_path_factory.mktemp("weights") / "w.safetensors", request.param))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write(tmp_path / "w.safetensors", "three resolutions")


def image(width: int = 128, height: int = 192) -> NDArray[np.float32]:
    return picture(width, height, "edges").numpy()[None] / np.float32(255)


def assert_near(ours: NDArray[Any], other: NDArray[Any]) -> None:
    assert ours.dtype == other.dtype == np.float32 and ours.shape == other.shape
    assert np.abs(other).max() > 0 and float(np.abs(ours - other).max()) <= 1e-4 * float(np.abs(other).max())


# --- the same numbers -----------------------------------------------------------------------------------------


def test_both_are_the_same_model(pair: Pair) -> None:
    assert pair.onnx.model_id == pair.torch.model_id
    assert pair.onnx.coder.tables_hash == pair.torch.coder.tables_hash
    ours, other = (codec.about._replace(entropy_model=None) for codec in pair)  # type: ignore[arg-type]
    assert ours == other
    assert ours.parameters == sum(p.numel() for p in pair.torch.model.parameters())


def test_another_weight_makes_another_model(tmp_path: Path) -> None:
    """In either maker, whichever of the weights it is."""
    path = write(tmp_path / "w.safetensors", "three resolutions")
    state, config, _ = read_weights(path)
    seen = {both(path).onnx.model_id}
    names = [name for name in state if name.endswith((".0.weight", "leave.bias", "matrices.1", "out.weight"))]
    assert len(names) > 8 and any("realistic" in name for name in names)
    for number, name in enumerate(names, 2):
        state[name].view(-1)[-1] += 0.25
        save_weights(path, state, config)
        changed = both(path)
        assert changed.onnx.model_id == changed.torch.model_id
        seen.add(changed.onnx.model_id)
        assert len(seen) == number


def test_analysis_and_hyper_analysis_agree(pair: Pair) -> None:
    x = image()
    y, other = (codec.networks.analysis(x) for codec in pair)
    assert_near(y, other)
    assert_near(*(codec.networks.hyper_analysis(other) for codec in pair))


def latent(codec: ImageCodec, levels: str) -> Latent:
    """What a decoder would have of a picture, at one level or at two of them."""
    y = codec.networks.analysis(image())
    prior = codec.coder.prior(np.round(codec.networks.hyper_analysis(y)).astype(np.int32))
    q = np.full((1, 1, 1, 1), 2.0, np.float32)
    if levels == "a field":
        q = np.where(np.random.default_rng(0).random(y.shape) < 0.3, np.float32(2), np.float32(6))
    symbols = np.where(prior.sigma < 0.055 * q, 0, np.round((y - prior.mu) / q))
    return Latent((prior.mu + q * symbols).astype(np.float32), prior.mu, prior.sigma, q)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_way_back_agrees_for_every_sampler_and_realism(pair: Pair, levels: str) -> None:
    given = latent(pair.torch, levels)
    copies = [part.copy() for part in given]
    results = {}
    for name in SAMPLERS:
        for r in REALISM:
            ways = [WayBack(r, sampler_of(name), 3, np.random.Philox(key=[7, 1])) for _ in pair]
            ours, other = (codec.networks.reconstruct(given, way) for codec, way in zip(pair, ways, strict=True))
            assert_near(ours, other)
            results[name, r] = other
    assert all(map(np.array_equal, given, copies))  # what was given is left as it was
    # The samplers were run: they do not give the same.
    assert not np.array_equal(results["heun", 1.0], results["euler", 1.0])
    assert not np.array_equal(results["sde", 1.0], results["euler", 1.0])


@pytest.mark.parametrize("kind", ["realistic", "three resolutions", "lapped and realistic", "parts"])
def test_second_weights_change_pictures_in_both(kind: str, tmp_path: Path) -> None:
    """So that an agreement above is not that of networks which leave them out."""
    codecs = both(write(tmp_path / "w.safetensors", kind))
    given = latent(codecs.torch, LEVELS[0])
    for codec in codecs:
        mean = sampler_of("mean")  # which does not depend on r itself
        low, high = (codec.networks.reconstruct(given, WayBack(r, mean, 1, np.random.Philox(1))) for r in (0.0, 1.0))
        assert np.abs(low - high).max() > 1e-3 * np.abs(low).max()


# --- the same files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"q": 2.0},
        {"q": 2.0, "quantizer": "dither", "seed": 3, "tile": 64},
        {"q": 1.0, "tile": 64, "progressive": True},
    ],
    ids=["round", "dither", "progressive"],
)
def test_a_file_of_either_decodes_with_the_other(pair: Pair, settings: dict[str, Any]) -> None:
    for maker in pair:
        whole = maker.compress(picture(150, 100, "edges"), **settings)
        first = unpack(whole).progressive
        cut = len(whole) if first is None else (first.start + len(whole)) // 2
        for data in (whole, whole[:cut]):
            symbols, others = (all_symbols(codec, codec.open(data)) for codec in pair)
            assert any(y.any() for _, y in symbols)
            for (z, y), (other_z, other_y) in zip(symbols, others, strict=True):
                assert np.array_equal(z, other_z) and np.array_equal(y, other_y)
            for r in REALISM:
                ours, other = (np.asarray(codec.decompress(data, realism=r), int) for codec in pair)
                assert ours.shape == (100, 150, 3) and len(np.unique(other)) > 20
                assert np.abs(ours - other).max() <= 1


def test_noise_is_the_same_in_both(pair: Pair) -> None:
    data = pair.torch.compress(picture(130, 70, "noise"), q=4.0, tile=64)
    ours, other, more = (
        np.asarray(codec.decompress(data, sampler="restart", seed=seed), int)
        for codec, seed in ((pair.onnx, 5), (pair.torch, 5), (pair.torch, 6))
    )
    assert np.abs(ours - other).max() <= 1
    assert not np.array_equal(other, more)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_threads_that_decode_at_once_with_one_codec_get_the_same_pictures(runtime, weights: Path) -> None:
    codec = gic.load(weights, "cpu", runtime=runtime)
    data = [codec.compress(picture(64 * (1 + i % 2), 70, "edges", i), q=1.0) for i in range(3)]
    jobs = [(piece, r) for r in np.linspace(0, 1, 2 * onnx._GRAPHS).tolist() for piece in data]  # more than are kept

    def decode(codec: ImageCodec, job: tuple[bytes, float]) -> NDArray[np.uint8]:
        return np.asarray(codec.decompress(job[0], realism=job[1]))

    expected = [decode(codec, job) for job in jobs]
    fresh = gic.load(weights, "cpu", runtime=runtime)  # with its graphs yet to be made
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda job: decode(fresh, job), jobs))
    assert all(map(np.array_equal, found, expected))
    assert len({picture.tobytes() for picture in expected}) > len(data)


def test_a_codec_can_be_sent_to_another_process(pair: Pair) -> None:
    data = pair.onnx.compress(picture(64, 64, "edges"), q=2.0)
    for codec in pair:
        expected = np.asarray(codec.decompress(data))
        for sent in (pickle.loads(pickle.dumps(codec)), copy.deepcopy(codec)):  # noqa: S301
            assert np.array_equal(np.asarray(sent.decompress(data)), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_symbol_and_hardly_a_pixel(threads: int, weights: Path) -> None:
    codec = gic.load(weights, "cpu", runtime="onnx")
    other = gic.load(weights, "cpu", runtime="onnx", threads=threads)
    assert other.networks.threads == threads  # type: ignore[attr-defined]
    data = codec.compress(picture(200, 130, "edges"), q=1.0)
    assert np.array_equal(all_symbols(codec, codec.open(data))[0][1], all_symbols(other, other.open(data))[0][1])
    difference = np.asarray(codec.decompress(data), int) - np.asarray(other.decompress(data), int)
    assert np.abs(difference).max() <= 1


class Halfway(Sampler):
    """A sampler of a user's, in functions that tensors alone have."""

    def run(self, flow):
        return torch.lerp(flow.y_q, flow.mean, 0.5) if isinstance(flow.y_q, torch.Tensor) else None


def test_a_sampler_written_for_tensors_runs_in_both(pair: Pair) -> None:
    data = pair.torch.compress(picture(64, 64, "edges"), q=2.0)
    ours, other = (np.asarray(codec.decompress(data, sampler=Halfway()), int) for codec in pair)
    assert np.abs(ours - other).max() <= 1


# --- weights on disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_weights_of_any_precision_are_read_by_both(dtype: torch.dtype, tmp_path: Path) -> None:
    codecs = both(write(tmp_path / "w.safetensors", "lapped and realistic", dtype))
    assert codecs.onnx.model_id == codecs.torch.model_id
    data = codecs.onnx.compress(picture(64, 64, "edges"), q=2.0)
    ours, other = (np.asarray(codec.decompress(data), int) for codec in codecs)
    assert np.abs(ours - other).max() <= 1


def test_weights_without_a_second_set_serve_a_codec_that_has_one(weights: Path) -> None:
    state, config, _ = read_weights(weights)
    save_weights(weights, {name: t for name, t in state.items() if ".realistic." not in name}, config)
    codecs = both(weights)
    assert codecs.onnx.model_id == codecs.torch.model_id
    given, mean = latent(codecs.torch, LEVELS[0]), sampler_of("mean")
    low, high = (codecs.onnx.networks.reconstruct(given, WayBack(r, mean, 1, np.random.Philox(1))) for r in (0.0, 1.0))
    assert np.array_equal(low, high)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
@pytest.mark.parametrize(
    "name", ["compressor.g_a.layers.0.weight", "reverse.realistic.leave.bias", "reverse.leave.bias"]
)
@pytest.mark.parametrize("change", ["missing", "misshapen", "extra"])
def test_weights_that_do_not_fit_are_refused(change: str, name: str, runtime, weights: Path) -> None:
    state, config, _ = read_weights(weights)
    if change == "missing":
        del state[name]
    elif change == "misshapen":
        state[name] = torch.cat([state[name], state[name]])
    else:
        name = f"{name}.more"
        state[name] = torch.ones(3)
    save_weights(weights, state, config)
    with pytest.raises(ConfigError) as caught:
        gic.load(weights, "cpu", runtime=runtime)
    assert name in str(caught.value) and str(weights) in str(caught.value) and "\n" not in str(caught.value)


def changed(tree: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A description with one argument changed."""
    first, _, rest = path.partition(".")
    arguments = dict(tree["init_args"])
    arguments[first] = changed(arguments[first], rest, value) if rest else value
    return {**tree, "init_args": arguments}


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("plain", "q_min", 9.0),
        ("plain", "q_min", 0.0),
        ("plain", "steps", 0),
        ("plain", "rho", 0.0),
        ("plain", "quantizer", "noise"),
        ("plain", "sampler", "guess"),
        ("plain", "compressor.widths", [8, 8, 12]),
        ("plain", "compressor.blocks", [0, 1, 0, 1, 1]),
        ("plain", "compressor.realistic_stages", 5),
        ("plain", "compressor.detail_channels", 4),
        ("plain", "compressor.block", "cube"),
        ("plain", "compressor.unknown", 4),
        ("plain", "reverse.latent_channels", 9),
        ("plain", "reverse.widths", [8, 8]),
        ("lapped", "compressor.latent_channels", 769),
        ("lapped", "compressor.blocks", [0, 1, 0]),
        ("parts", "compressor.g_a.blocks", [1, 1]),
        ("parts", "compressor.g_s.blocks", [1, 1]),
        ("parts", "compressor.lapped", True),
        ("detail", "compressor.latent_channels", 2),
    ],
)
def test_descriptions_that_make_no_codec_are_refused(kind: str, path: str, value: Any, runtime, tmp_path: Path) -> None:
    file = write(tmp_path / "w.safetensors", kind)
    gic.load(file, "cpu", runtime=runtime)
    save_weights(file, read_weights(file).state, changed(described(kind), path, value))
    with pytest.raises(ConfigError) as caught:
        gic.load(file, "cpu", runtime=runtime)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert "do not fit" not in str(caught.value)  # the description is at fault, not the weights


def test_files_that_are_no_weights_are_refused_alike(tmp_path: Path) -> None:
    plain, broken, absent = (tmp_path / f"{name}.safetensors" for name in ("plain", "broken", "absent"))
    save_file({"a": torch.ones(1)}, plain)
    broken.write_bytes(b"nothing")
    for path in (plain, broken, absent):
        said = []
        for runtime in ("onnx", "torch"):
            with pytest.raises(ConfigError) as caught:
                gic.load(path, "cpu", runtime=runtime)  # type: ignore[arg-type]
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_what_needs_pytorch_says_so_where_it_is_not_to_be_used(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", small_model().state_dict(), CONFIG)
    for settings in ({"device": "cuda"}, {"trust": "mine"}):
        with pytest.raises(ConfigError, match=r"PyTorch.*ONNX Runtime"):
            gic.load(tmp_path / "w.safetensors", runtime="onnx", **settings)
    with pytest.raises(ConfigError, match="auto, onnx or torch"):
        gic.load(tmp_path / "w.safetensors", runtime="tensorflow")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        gic.load(tmp_path / "w.safetensors", threads=0)
    codec = gic.load(tmp_path / "w.safetensors", "cpu")
    assert isinstance(codec.networks, OnnxNetworks)
    with pytest.raises(ConfigError, match="runtime"):
        _ = codec.model


# --- descriptions ---------------------------------------------------------------------------------------------


def test_both_know_the_same_names() -> None:
    assert parts.KNOWN.keys() == pytorch.KNOWN.keys()


@pytest.mark.parametrize("name", parts.KNOWN)
def test_a_description_has_the_arguments_of_its_network(name: str) -> None:
    ours, network = parts.KNOWN[name], pytorch.KNOWN[name]
    assert ours.__name__ == network.__name__ == name.rpartition(".")[2]
    described, real = (inspect.signature(kind).parameters for kind in (ours, network))
    assert [*described] == [*real]
    for argument in real:
        assert described[argument].default == real[argument].default, argument
        assert described[argument].kind == real[argument].kind, argument
    assert issubclass(ours, (parts.Part, Sampler)) and issubclass(network, (torch.nn.Module, Sampler))
    for argument, (hint, other) in hints(ours, network).items():
        if isinstance(hint, type) and issubclass(hint, parts.Part):
            assert isinstance(other, type) and issubclass(pytorch.KNOWN[known(hint)], other), argument
        else:
            assert hint == other, argument


def hints(*kinds: type) -> dict[str, tuple[Any, ...]]:
    """Types of the arguments of classes, by name."""
    found = [get_type_hints(kind.__init__) for kind in kinds]  # type: ignore[misc]
    return {name: tuple(each[name] for each in found) for name in inspect.signature(kinds[0]).parameters}


def known(part: type) -> str:
    return next(name for name, kind in parts.KNOWN.items() if kind is part)


def test_descriptions_derive_from_each_other_as_networks_do() -> None:
    assert issubclass(parts.ResidualCompressor, parts.Compressor) and issubclass(pytorch.ResidualCompressor, Compressor)
    assert issubclass(pytorch.ReverseUNet, ReverseNetwork)
    for kind in KINDS:
        assert set(described(kind)["init_args"]) <= {*inspect.signature(parts.Codec).parameters}


# --- without PyTorch ------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
import numpy as np
from PIL import Image
import gic
import gic.pillow
from gic.commands.dispatch import run
assert run(["compress", "a.png", "--bpp", "1"]) == 0
assert run(["compress", "a.png", "-o", "p.gic", "--progressive", "--q", "1"]) == 0
assert run(["truncate", "p.gic", "-o", "cut.gic", "--bpp", "1"]) == 0
assert run(["info", "a.gic", "cut.gic"]) == 0
assert run(["decompress", "a.gic", "-o", "b.png"]) == 0
assert run(["decompress", "cut.gic", "-o", "cut.png", "--realism", "0.5", "--sampler", "restart"]) == 0
Image.open("a.png").convert("RGB").save("plugin.gic", bpp=1)
with Image.open("plugin.gic") as image:
    image.load()
    image.save("plugin.png")
codec = gic.load()
array = np.asarray(Image.open("a.png"))
assert codec.decompress(codec.compress(array, q=2.0)).size == (150, 100)
try:
    codec.decompress_tensor(codec.compress(array))
except gic.errors.MissingExtraError as error:
    print("refused:", error, file=sys.stderr)
try:
    gic.load(runtime="torch")
except gic.errors.MissingExtraError as error:
    print("refused:", error, file=sys.stderr)
assert run(["compress", "a.png", "--overwrite", "--device", "cuda"]) == 2
assert not [name for name in sys.modules if name.partition(".")[0] == "torch" and sys.modules[name] is not None]
print("done")
"""


def test_pictures_are_coded_without_pytorch(tmp_path: Path) -> None:
    Image.fromarray(array(picture(150, 100, "edges"))).save(tmp_path / "a.png")
    environment = {name: value for name, value in os.environ.items() if name != "GIC_CHECKPOINT"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
    assert done.stderr.count("refused:") == 2
    # The pictures are those that PyTorch makes.
    codec = gic.load(shipped_weights(), runtime="torch")
    for name, settings in (("a", {}), ("cut", {"realism": 0.5, "sampler": "restart"}), ("plugin", {})):
        file = tmp_path / f"{name}.gic"
        with Image.open(tmp_path / f"{'b' if name == 'a' else name}.png") as image:
            difference = np.asarray(image.convert("RGB"), int) - np.asarray(codec.decompress(file, **settings), int)
        assert np.abs(difference).max() <= 1
    assert unpack((tmp_path / "cut.gic").read_bytes()).part


def test_a_lack_of_memory_is_a_memory_error(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = gic.load(weights, runtime="onnx").networks

    class Session:
        def run(self, *_: Any) -> None:
            raise Exception("BFCArena: Failed to allocate memory for requested buffer of size 100270080")

    monkeypatch.setattr(networks, "_session", lambda *_: Session())
    with pytest.raises(MemoryError, match="allocate memory"):
        networks.analysis(np.zeros((1, 3, 64, 64), np.float32))
