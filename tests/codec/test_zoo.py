"""Weights by name: in the package, in a folder, on the hub; fetched, listed, published."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_on_files import HubOnFiles
from PIL import Image
from places import REPOSITORY
from small import CONFIG, picture, small_model

import gic
from gic.bitstream.container import unpack
from gic.codec import hub, zoo
from gic.codec.checkpoints import save_weights
from gic.commands.dispatch import run
from gic.errors import ConfigError, FormatError, MissingExtraError
from gic.pictures.tensors import to_image

CLIENT = hub.client


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three sets of weights beside those of a made-up package, and none of the hub."""
    monkeypatch.chdir(tmp_path)
    for name in (zoo.CHECKPOINT_VARIABLE, zoo.FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(zoo, "PACKAGED", tmp_path / "package")
    for salt, name in enumerate(("package/tiny-0.4", "package/tiny-0.10", "folder/mine-2", "folder/mine-10")):
        Path(name).parent.mkdir(exist_ok=True)
        save_weights(f"{name}.safetensors", small_model(salt).state_dict(), CONFIG, {"note": f"number {salt}"})
    HubOnFiles(tmp_path / "hub").install(monkeypatch)
    return tmp_path


@pytest.fixture
def hub_on_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> HubOnFiles:
    """A hub with one repository, of two revisions."""
    made = HubOnFiles(place / "hub")
    made.install(monkeypatch)
    for salt, revision in ((5, "main"), (6, "v1")):
        folder = made.repositories / "someone/gic-tiny" / revision
        folder.mkdir(parents=True)
        save_weights(folder / "model.safetensors", small_model(salt).state_dict(), CONFIG)
    return made


def rounded(salt: int) -> gic.ImageCodec:
    """The codec as its weights file holds it, in float16."""
    return gic.ImageCodec(small_model(salt).half().float())


def without_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra is not installed."""
    monkeypatch.setattr(hub, "client", CLIENT)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)


def identity(salt: int) -> bytes:
    return rounded(salt).model_id


def test_a_name_is_found_with_its_version_and_without(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gic.load("tiny-0.4").model_id == identity(0)
    assert gic.load("tiny").model_id == gic.load("shipped").model_id == gic.load().model_id == identity(1)  # 0.10 > 0.4
    with pytest.raises(ConfigError, match="no checkpoint 'mine'"):
        gic.load("mine")
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(place / "folder"))
    assert gic.load("mine").model_id == identity(3)
    monkeypatch.setenv(zoo.CHECKPOINT_VARIABLE, "mine-2")
    assert gic.load().model_id == identity(2)


def test_a_file_comes_before_a_name(place: Path) -> None:
    Path("tiny").write_bytes(b"none")
    with pytest.raises(ConfigError, match="tiny cannot be read as a checkpoint"):
        gic.load("tiny")


def test_a_folder_that_is_not_there_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, "nowhere")
    assert gic.load("tiny")
    with pytest.raises(ConfigError, match="GIC_MODELS=nowhere is no folder"):
        gic.load("mine")
    assert run(["models"]) == 0
    assert "GIC_MODELS=nowhere is no folder" in capsys.readouterr().err


def test_a_mistyped_name_is_corrected(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tini', neither a file nor a name that gic models lists, did you mean 't"):
        gic.load("tini")


def test_a_file_tells_the_name_of_its_weights(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gic.load("tiny-0.4").compress(picture(64, 64), q=4)
    with pytest.raises(FormatError, match=r"name the weights it was made with, tiny-0\.4$"):
        gic.load("tiny-0.10").decompress(data)
    monkeypatch.setattr(zoo, "PACKAGED", place / "nowhere")
    other = gic.load("folder/mine-2.safetensors")
    with pytest.raises(FormatError, match=r"name the weights it was made with$"):
        other.decompress(data)
    monkeypatch.setitem(zoo.FORMER, unpack(data).model_id.hex(), ("tiny-0.4", "weights/tiny-0.4.safetensors"))
    with pytest.raises(
        FormatError, match=r"with, tiny-0\.4, which an earlier gic came with: take weights/tiny-0\.4\.safe"
    ):
        gic.load("folder/mine-2.safetensors").decompress(data)


def test_decompress_takes_the_weights_that_made_a_file(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to_image(picture(64, 64)).save("a.png")
    for name in ("tiny-0.4", "tiny-0.10", "mine-2"):
        monkeypatch.setenv(zoo.FOLDER_VARIABLE, "folder")
        assert run(["compress", "a.png", "-o", f"made/{name}.gic", "--checkpoint", name]) == 0
    capsys.readouterr()
    assert run(["decompress", "made", "--json"]) == 0
    told = {Path(each["source"]).stem: each["notes"] for each in map(json.loads, capsys.readouterr().out.splitlines())}
    assert told == {"tiny-0.4": ["by the weights tiny-0.4"], "tiny-0.10": [], "mine-2": ["by the weights mine-2"]}
    expected = np.asarray(rounded(2).decompress("made/mine-2.gic"))
    assert np.array_equal(np.asarray(Image.open("made/mine-2.png")), expected)
    assert run(["decompress", "made/mine-2.gic", "-o", "b.png", "--checkpoint", "tiny"]) == 2  # named is named
    monkeypatch.delenv(zoo.FOLDER_VARIABLE)
    assert run(["decompress", "made/mine-2.gic", "-o", "b.png"]) == 2
    assert "name the weights it was made with" in capsys.readouterr().err


def test_the_hub_gives_weights_of_any_revision(hub_on_files: HubOnFiles) -> None:
    assert gic.load("hf://someone/gic-tiny").model_id == identity(5)
    assert gic.load("hf://someone/gic-tiny@v1").model_id == identity(6)
    codec = gic.ImageCodec.from_pretrained("someone/gic-tiny", revision="v1")
    assert codec.model_id == identity(6)
    assert gic.ImageCodec.from_pretrained("tiny").model_id == identity(1)
    with pytest.raises(ConfigError, match="a revision is of a repository"):
        gic.ImageCodec.from_pretrained("tiny", revision="v1")
    hub_on_files.reachable = False
    assert gic.load("hf://someone/gic-tiny").model_id == identity(5)  # from the cache


def test_decompress_takes_the_cached_weights_though_the_hub_has_newer_ones(
    hub_on_files: HubOnFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    to_image(picture(64, 64)).save("a.png")
    assert run(["compress", "a.png", "--checkpoint", "hf://someone/gic-tiny"]) == 0
    save_weights(
        hub_on_files.repositories / "someone/gic-tiny/main/model.safetensors", small_model(8).state_dict(), CONFIG
    )
    capsys.readouterr()
    assert run(["decompress", "a.gic", "-o", "b.png"]) == 0
    assert "by the weights hf://someone/gic-tiny" in capsys.readouterr().err
    hub_on_files.kind = "dataset"  # whose names are no weights'
    assert run(["decompress", "a.gic", "-o", "c.png"]) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://someone", "write hf://OWNER/REPO"),
        ("hf://a/../b", "write hf://OWNER/REPO"),
        ("hf://a/b/c.ckpt", "write hf://OWNER/REPO"),
        ("hf://a/b@v1/../../c.safetensors", "write hf://OWNER/REPO"),
        ("hf://nobody/nothing", "no repository nobody/nothing on the hub"),
        ("hf://someone/gic-tiny@v7", "no such revision"),
        ("hf://someone/gic-tiny/other.safetensors", "name a weights file that the repository has"),
        ("hf://closed/gic", "asks to accept its terms"),
    ],
)
def test_what_the_hub_does_not_give_is_explained(hub_on_files: HubOnFiles, name: str, said: str) -> None:
    hub_on_files.gated = {"closed/gic"}
    with pytest.raises(ConfigError, match=said):
        gic.load(name)


def test_without_its_client_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_client(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"\[hub\]"):
        gic.load("hf://someone/gic-tiny")
    assert gic.load("tiny")


def test_a_folder_serves_machines_without_a_network(
    hub_on_files: HubOnFiles, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["tiny-0.4", "hf://someone/gic-tiny", "hf://someone/gic-tiny@v1"]
    assert run(["models", *names, "--download", "carried"]) == 0
    assert f"export GIC_MODELS={place / 'carried'}" in capsys.readouterr().out
    for made in (hub_on_files.repositories, hub_on_files.cache):
        made.rename(f"{made}-gone")
    without_client(monkeypatch)
    monkeypatch.setattr(zoo, "PACKAGED", place / "nowhere")
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, "carried")
    assert [gic.load(name).model_id for name in names] == [identity(0), identity(5), identity(6)]
    assert run(["models", "--download", "carried"]) == 0  # onto itself
    assert "is there already" in capsys.readouterr().out
    assert sorted(entry.name for entry in zoo.entries()) == sorted(names)


def test_models_lists_what_is_at_hand(
    hub_on_files: HubOnFiles, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gic.load("hf://someone/gic-tiny")
    (hub_on_files.cache / "other/model/main").mkdir(parents=True)
    (hub_on_files.cache / "other/model/main/model.safetensors").write_bytes(b"of another library")
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, "folder")
    assert run(["models", "--json"]) == 0
    listed = {about["name"]: about for about in map(json.loads, capsys.readouterr().out.splitlines())}
    assert sorted(listed) == sorted(["tiny-0.4", "tiny-0.10", "mine-2", "mine-10", "hf://someone/gic-tiny"])
    assert {name for name, about in listed.items() if about["default"]} == {"tiny-0.10"}
    about = listed["mine-2"]
    assert about["model"] == identity(2).hex() and about["provenance"]["note"] == "number 2"
    assert about["bytes"] == Path("folder/mine-2.safetensors").stat().st_size
    assert (about["q_min"], about["q_max"], about["origin"]) == (0.5, 8.0, "folder")
    assert run(["models"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in listed) and identity(5).hex() in table


def test_models_names_what_is_missing_and_shows_the_rest(
    hub_on_files: HubOnFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "tini", "tiny-0.4"]) == 2
    said = capsys.readouterr()
    assert "did you mean 'tiny'" in said.err and "tiny-0.4" in said.out
    assert run(["models", "nothing", "tiny-0.4", "--download", "carried"]) == 2
    assert "use them by name" not in capsys.readouterr().out and Path("carried/tiny-0.4.safetensors").is_file()
    Path("junk.safetensors").write_bytes(b"junk")
    assert run(["models", "junk.safetensors"]) == 2
    assert run(["models", "tiny", "--card", "a.md"]) == 2
    assert run(["models", "--push", "someone/else"]) == 2


def test_the_model_card_has_the_hubs_form(
    hub_on_files: HubOnFiles, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images").mkdir()
    Path("images/strip.png").write_bytes(b"png")
    links = "[the recipe](recipe.md), [the paper](https://arxiv.org/abs/2505.20984), ![a strip](images/strip.png)"
    Path("card.md").write_text(f"# Tiny\n\nSee {links}\n")
    command = ["models", "tiny", "--push", "me/gic-tiny", "--card", "card.md", "--license", "cc-by-4.0", "--private"]
    assert run([*command, "--preview", "preview"]) == 0
    assert hub_on_files.calls == []
    assert run(command) == 0
    assert hub_on_files.calls == [("create_repo", {"private": True, "exist_ok": True})]
    folder = hub_on_files.repositories / "me/gic-tiny/main"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["README.md", "config.json", "images/strip.png", "model.safetensors"]
    _, facts, text = (folder / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(facts)
    assert about["license"] == "cc-by-4.0" and about["library_name"] == "gic" and "image-compression" in about["tags"]
    assert "See the recipe, [the paper](https" in text and "![a strip](images/strip.png)" in text
    assert 'from_pretrained("me/gic-tiny")' in text and "# Tiny" in text
    assert json.loads((folder / "config.json").read_text())["codec"] == CONFIG
    for name in files:
        assert (place / "preview" / name).read_bytes() == (folder / name).read_bytes()
    # What went up comes down.
    assert gic.ImageCodec.from_pretrained("me/gic-tiny").model_id == identity(1)


def test_a_codec_publishes_the_file_it_was_read_from(hub_on_files: HubOnFiles) -> None:
    gic.load("folder/mine-2.safetensors").push_to_hub("me/mine")
    assert gic.load("hf://me/mine").model_id == identity(2)
    assert "number 2" in (hub_on_files.repositories / "me/mine/main/README.md").read_text()
    with pytest.raises(ConfigError, match="not read from a file"):
        gic.ImageCodec(small_model()).push_to_hub("me/mine")
    with pytest.raises(ConfigError, match="OWNER/REPO"):
        gic.load("tiny").push_to_hub("mine")


def test_the_card_of_the_weights_that_ship_is_whole(tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the hub's client is not installed")
    text, pictures = hub.model_card(
        "someone/small", {}, card=REPOSITORY / "docs" / "model-card.md", license="apache-2.0"
    )
    card = huggingface_hub.ModelCard(text)
    assert card.data.license == "apache-2.0" and card.data.library_name == "gic"
    assert pictures and all(path.is_file() for path in pictures.values())
    assert "](../" not in text and ".json)" not in text


# --- the client itself, against a server on this machine --------------------------------------------------------------


class Answers(http.server.SimpleHTTPRequestHandler):
    """What the hub answers to a client that fetches a file."""

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        path = Path(self.directory) / self.path.split("/")[-1]
        if "/resolve/" not in self.path or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", '"1234"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    save_weights(tmp_path / "served/model.safetensors", small_model(7).state_dict(), CONFIG)

    def handler(*arguments: object) -> Answers:
        return Answers(*arguments, directory=str(tmp_path / "served"))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_hubs_own_client_fetches_once_and_works_offline(tmp_path: Path, endpoint: str) -> None:
    pytest.importorskip("huggingface_hub", reason="the hub's client is not installed")
    to_image(picture(64, 64)).save(tmp_path / "a.png")
    base = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GIC_"))}

    def gic_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gic", *words],
            cwd=tmp_path,
            env={**base, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    name = "hf://someone/gic-tiny"
    done = gic_command("compress", "a.png", "--checkpoint", name)
    assert done.returncode == 0, done.stderr
    assert rounded(7).open((tmp_path / "a.gic").read_bytes()).width == 64
    done = gic_command("decompress", "a.gic", "-o", "b.png", "--checkpoint", name, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    listed = gic_command("models", "--json", HF_HUB_OFFLINE="1")
    assert name in [json.loads(line)["name"] for line in listed.stdout.splitlines()]
    done = gic_command("decompress", "a.gic", "-o", "c.png", "--checkpoint", "hf://no/body", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "is not in the cache" in done.stderr
    (tmp_path / "served/model.safetensors").unlink()
    done = gic_command("info", "a.gic")
    assert done.returncode == 0
    done = gic_command("models", str(tmp_path / "served/model.safetensors"), "--push", "no/body", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    done = gic_command("decompress", "a.gic", "-o", "c.png", "--checkpoint", "hf://no/body")
    assert done.returncode == 2 and "no repository no/body" in done.stderr, done.stderr
