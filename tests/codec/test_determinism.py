"""A file made under any threads, dtype, libraries and runtime decodes to the same symbols under any others.

Encoders and decoders are processes of their own; each works through settings and prints or compares hashes. Run as a
script, this file is such a process.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from places import REPOSITORY, TESTS
from small import CONFIG, KINDS, all_symbols, picture, small_model, with_onnx

from gic.bitstream.coder import level_code
from gic.bitstream.container import GicFile, unpack
from gic.codec.decoder import decode_symbols, first_code
from gic.codec.image_codec import ImageCodec
from gic.codec.tiling import tiles_of
from gic.models.codec import Codec

QUANTIZERS = ("round", "dither")


class Setting(NamedTuple):
    """What may change the last bits of a float network; the dtype ``onnx`` is float32 in ONNX Runtime."""

    threads: int
    dtype: str
    onednn: bool

    @property
    def name(self) -> str:
        return f"{self.threads}-{self.dtype}-{'onednn' if self.onednn else 'plain'}"


SETTINGS = [Setting(*s) for s in itertools.product((1, 2), ("float32", "bfloat16"), (True, False))]
SETTINGS += [Setting(threads, "onnx", True) for threads in (1, 2)]


@contextmanager
def applied(setting: Setting) -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(setting.threads)
        with ExitStack() as stack:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=setting.onednn))
            if setting.dtype == "bfloat16":
                stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            yield
    finally:
        torch.set_num_threads(threads)


def wide_model() -> Codec:
    """A codec with enough channels for the order of sums to matter in floating point."""
    return small_model(latent_channels=12, hyper_channels=32)


def codec_of(setting: Setting) -> ImageCodec:
    """That model where the setting has it run."""
    if setting.dtype != "onnx":
        return ImageCodec(wide_model(), "cpu")
    config = copy.deepcopy(CONFIG)
    config["init_args"]["compressor"]["init_args"] |= {"latent_channels": 12, "hyper_channels": 32}  # type: ignore[index]
    config["init_args"]["reverse"]["init_args"] |= {"latent_channels": 12}  # type: ignore[index]
    return with_onnx(wide_model(), config, setting.threads)


def pixels(number: int) -> torch.Tensor:
    """Pictures of changing size and content."""
    kind = KINDS[1 + number % 3]
    if number % 4 == 1:  # oneDNN takes convolutions of some size only
        return picture(500, 380, kind, salt=number)
    return picture(50 + 37 * (number % 3), 40 + 41 * (number % 4), kind, salt=number)


def digest(*arrays: np.ndarray) -> str:
    """Hash of arrays."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]


@torch.no_grad()
def hashes(codec: ImageCodec, file: GicFile, floats_of: Codec) -> dict[str, str]:
    """Hash of a file's symbols, and of what a codec that ran h_s in floating point would find.

    That is the mean, to the bit, and the number of the scale.
    """
    symbols, floats = [], []
    for index, place in enumerate(tiles_of(file.width, file.height, file.tile)):
        z, _, y, _ = decode_symbols(codec, file, index, place)
        symbols += [z, y]
        mu, sigma = floats_of.compressor.hyper_synthesis(torch.from_numpy(z).float())
        floats += [mu.numpy(), torch.round(torch.log2(sigma) * 16).int().numpy()]
    return {"exact": digest(*symbols), "float": digest(*floats), "scales": digest(*floats[1::2])}


def encode(folder: Path, count: int, settings: Sequence[Setting]) -> None:
    """Write ``count`` files for each setting, with the hash of the symbols the encoder meant."""
    for setting in settings:
        codec = codec_of(setting)
        with applied(setting):
            for number in range(count):
                progressive = number % 6 in (0, 4)  # of the even numbers, which are those of round
                encoding = codec.encoding(
                    pixels(number),
                    quantizer=QUANTIZERS[number % 2],
                    seed=number,
                    tile=64 if number % 3 == 0 else 0,
                    progressive=progressive,
                )
                code = level_code(0.6 + (number % 7) / (4 if progressive else 1))
                data = encoding.at(code)
                path = folder / f"{setting.name}.{number}.gic"
                path.write_bytes(data)
                assert (first_code(unpack(data)) > code) == progressive
                meant = [(tile.z, [*encoding._levels(i, code)][-1][1]) for i, tile in enumerate(encoding.tiles)]
                path.with_suffix(".meant").write_text(digest(*itertools.chain(*meant)))


def decode(folder: Path, settings: Sequence[Setting]) -> dict[str, dict[str, dict[str, str]]]:
    """Hashes of the symbols of all files, and of the parameters in floating point, for each setting."""
    model = wide_model()
    found = {}
    for setting in settings:
        codec = codec_of(setting)
        files = {path.stem: codec.open(path.read_bytes()) for path in sorted(folder.glob("*.gic"))}
        with applied(setting):
            found[setting.name] = {name: hashes(codec, file, model) for name, file in files.items()}
    return found


OTHER_PRODUCTS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Nehalem"}
"""An environment in which NumPy's matrix products add in another order, where they are OpenBLAS's on an x86."""


def process(*words: str, **variables: str) -> str:
    """Run this file as a process, with variables of the environment, and return its last line."""
    # Threads that wait asleep: others may be at work on this machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", **variables}
    paths = [str(REPOSITORY), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def check(folder: Path, found: dict[str, dict[str, dict[str, str]]]) -> None:
    meant = {path.stem: path.read_text() for path in folder.glob("*.meant")}
    assert set(found) == {s.name for s in SETTINGS}
    for name, decoded in found.items():
        wrong = [file for file, value in decoded.items() if value["exact"] != meant[file]]
        assert not wrong, f"decoded as {name}, {len(wrong)} of {len(meant)} files derail, the first is {wrong[0]}"
    # The check can fail: encoders' files differ, and parameters computed in floating point do not survive the matrix.
    assert len(set(meant.values())) > len(meant) / len(SETTINGS)
    plain = found["1-float32-onednn"]
    for kind in ("float", "scales"):
        derailed = {
            name: sum(value[kind] != plain[file][kind] for file, value in decoded.items())
            for name, decoded in found.items()
        }
        print(f"{kind} in floating point, differing files of {len(meant)}: {derailed}")
        assert derailed["1-bfloat16-onednn"] > 0.9 * len(meant)
        assert kind == "scales" or derailed["1-float32-plain"] > 0


def test_files_decode_alike_under_all_threads_dtypes_and_libraries(tmp_path: Path) -> None:
    """One process encodes under 8 settings, others decode each file under 8 settings."""
    assert process("encode", str(tmp_path), "16") == "done"
    assert len(list(tmp_path.glob("*.gic"))) == 16 * len(SETTINGS)
    for variables in ({}, OTHER_PRODUCTS):
        check(tmp_path, json.loads(process("decode", str(tmp_path), **variables)))


@pytest.mark.slow
def test_500_files_decode_alike_with_a_process_for_each_setting(tmp_path: Path) -> None:
    found = {}
    for setting in SETTINGS:
        assert process("encode", str(tmp_path), "500", setting.name) == "done"
    for setting in SETTINGS:
        found |= json.loads(process("decode", str(tmp_path), setting.name))
    check(tmp_path, found)


@pytest.mark.slow
def test_files_decode_alike_with_compiled_transforms() -> None:
    """Encoded with compiled networks, decoded without, and the other way round."""
    compiled = ImageCodec(wide_model(), "cpu")
    compressor = compiled.model.compressor
    try:
        compressor.g_a.forward = torch.compile(compressor.g_a.forward)  # type: ignore[method-assign]
        compressor.h_a.forward = torch.compile(compressor.h_a.forward)  # type: ignore[method-assign]
        compiled.compress(pixels(1))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    exchange(ImageCodec(wide_model(), "cpu"), compiled, 6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_files_decode_alike_on_a_gpu_and_on_the_cpu() -> None:
    exchange(ImageCodec(wide_model(), "cpu"), ImageCodec(wide_model(), "cuda"), 60)


def exchange(one: ImageCodec, other: ImageCodec, count: int) -> None:
    """Let each of two codecs decode what both have made, to the same symbols and nearly the same pictures."""
    for number in range(count):
        for maker in (one, other):
            settings = {"quantizer": QUANTIZERS[number % 2], "progressive": number % 6 == 0}
            data = maker.compress(pixels(number), q=0.6 + number % 7, **settings)
            here, there = (list(itertools.chain(*all_symbols(c, c.open(data)))) for c in (one, other))
            assert digest(*here) == digest(*there)
            a, b = (c.decompress_tensor(data, realism=0.0).int() for c in (one, other))
            assert (a - b).abs().max() <= 2


def main(words: Sequence[str]) -> None:
    task, folder, *rest = words
    settings = [s for s in SETTINGS if s.name in rest] or SETTINGS
    if task == "encode":
        encode(Path(folder), int(rest[0]), settings)
        print("done")
    else:
        print(json.dumps(decode(Path(folder), settings)))


if __name__ == "__main__":
    main(sys.argv[1:])
