"""The demo without a browser: what the server answers, to whom, and what it keeps."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from demo_client import Client, png, serving
from PIL import Image
from places import REPOSITORY, TESTS

import gic
from gic.bitstream.container import truncate, unpack
from gic.codec.image_codec import ImageCodec
from gic.demo.equal_bytes import LABELS, NEAR_ENOUGH, nearest_setting, other_codecs
from gic.demo.judges import psnr
from gic.demo.server import DemoServer, names_this_machine
from gic.demo.turns import Shelf, SupersededError, Turns
from gic.demo.work import OPENING, REDUCED, STEPS, Work
from gic.errors import ConfigError


@pytest.fixture(scope="module")
def codec() -> ImageCodec:
    return gic.load(threads=1, runtime="onnx")


@pytest.fixture(scope="module")
def server(codec: ImageCodec) -> Iterator[DemoServer]:
    with serving(codec) as running:
        yield running


@pytest.fixture
def client(server: DemoServer) -> Client:
    return Client(server)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_and_its_parts_are_served_and_nothing_comes_from_elsewhere(client: Client) -> None:
    status, headers, data = client.request("GET", "/")
    text = data.decode()
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';") and "unsafe" not in policy
    named = re.findall(r'(?:src|href)="([^"]*)"', text)
    parts = [name for name in named if name != "data:,"]
    assert len(parts) == 5 and not re.search(r"<style|<script>|\bon\w+=|\$\w", text)
    for name in parts:
        status, headers, data = client.request("GET", f"/{name}")
        assert status == 200 and data and headers["Content-Type"].split(";")[0] in ("text/css", "text/javascript")
        assert not re.search(rb"https?://|@import|innerHTML\s*=", data)


# --- coding -----------------------------------------------------------------------------------------------------------


def test_a_picture_is_coded_at_any_size_and_the_file_decodes_to_what_is_shown(
    client: Client, codec: ImageCodec
) -> None:
    sent = client.send(png())
    assert (sent["width"], sent["height"], sent["whole"], sent["notes"]) == (160, 120, [160, 120], [])
    original = Image.open(io.BytesIO(png()))
    assert client.picture(sent["id"]).tobytes() == original.tobytes()
    sizes = []
    for size in (0, 0.3, 0.7, 1):
        answer = client.compare(sent["id"], size=size)
        assert answer["done"] and answer["left"]["picture"] == sent["id"] and answer["left"]["metrics"] == {}
        right, file = answer["right"], answer["file"]
        data = client.get(f"/files/{file['id']}.gic")
        assert len(data) == file["bytes"] == right["bytes"]
        assert right["bpp"] == pytest.approx(8 * len(data) / (160 * 120))
        wanted = codec.decompress(data, realism=0.5)
        assert client.picture(right["picture"]).tobytes() == wanted.tobytes()
        error = np.mean((np.asarray(wanted, float) - np.asarray(original, float)) ** 2)
        assert right["metrics"]["psnr"] == pytest.approx(10 * np.log10(255**2 / error))
        assert right["encode"] > 0 and right["decode"] > 0
        sizes.append(len(data))
        ends = answer["range"]
        target = ends["smallest"] ** (1 - size) * ends["largest"] ** size
        assert len(data) == pytest.approx(target, rel=0.05)
    assert sizes == sorted(set(sizes))
    encoding = codec.encoding(original)
    assert sizes[0] == len(encoding.at(codec.coarsest)) and sizes[-1] == len(encoding.at(codec.finest))


def test_both_sides_may_show_gic_at_their_own_realism(client: Client, codec: ImageCodec) -> None:
    sent = client.send(png())
    answer = client.compare(sent["id"], left="gic-0", right="gic-1")
    data = client.get(f"/files/{answer['file']['id']}.gic")
    for side, realism in (("left", 0), ("right", 1)):
        shown = client.picture(answer[side]["picture"])
        assert shown.tobytes() == codec.decompress(data, realism=realism).tobytes()
    assert answer["left"]["picture"] != answer["right"]["picture"]
    # What is the same is the same picture, which the page then keeps.
    again = client.compare(sent["id"], left="gic-1", right="gic", realism=1)
    assert again["left"]["picture"] == again["right"]["picture"] == answer["right"]["picture"]


@pytest.mark.parametrize("name", LABELS)
def test_other_codecs_come_nearest_in_bytes_above_or_below(client: Client, server: DemoServer, name: str) -> None:
    if name in server.work.unavailable:
        pytest.skip(server.work.unavailable[name])
    data = png(256, 192)
    sent = client.send(data)
    codec = other_codecs()[name]
    image = Image.open(io.BytesIO(data))
    sizes = [len(codec.encode(image, setting)) for setting in codec.settings]
    sides = set()
    for size in (0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        answer = client.compare(sent["id"], size=size, left=name)
        target, shown = answer["file"]["bytes"], answer["left"]
        assert shown["bytes"] == sizes[list(codec.settings).index(shown["setting"])]
        assert abs(shown["bytes"] - target) <= max(NEAR_ENOUGH * target, min(abs(size - target) for size in sizes))
        assert client.picture(shown["picture"]).size == (256, 192)
        sides.add(shown["bytes"] > target)
    assert sides == {False, True}


def test_qualities_that_a_codec_has_no_file_for_are_passed_over(client: Client) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (3, 17000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    sent = client.send(buffer.getvalue())
    answer = client.compare(sent["id"], size=1, left="jpeg")
    assert 0 < answer["left"]["bytes"] <= answer["file"]["bytes"]  # the largest that there is
    answer = client.compare(sent["id"], size=1, left="webp")
    assert (
        answer["left"]["picture"] is None
        and "WebP cannot hold a picture of 17000 x 3 pixels" in answer["left"]["missing"]
    )
    assert answer["right"]["picture"]  # gic can


def test_the_search_for_a_size_finds_the_nearest() -> None:
    draw = random.Random(0)
    for _ in range(300):
        count = draw.randint(1, 101)
        sizes = sorted(int(20 * draw.uniform(1, 1.3) ** draw.uniform(0, 30)) for _ in range(count))
        target = draw.choice(sizes) * draw.uniform(0.7, 1.3)
        asked: list[int] = []

        def size(setting: int, sizes: list[int] = sizes, asked: list[int] = asked) -> int:
            asked.append(setting)
            return sizes[setting]

        found = nearest_setting(size, count, target)
        nearest = min(abs(each - target) for each in sizes)
        assert abs(sizes[found] - target) <= max(NEAR_ENOUGH * target, nearest)
        assert len(set(asked)) <= 16  # of 101: a search, and no walk


def test_psnr_is_that_of_all_pixels() -> None:
    draw = np.random.default_rng(0)
    a, b = (draw.integers(0, 256, (531, 7, 3), dtype=np.uint8) for _ in range(2))
    error = np.mean((a.astype(float) - b) ** 2)
    assert psnr(Image.fromarray(a), Image.fromarray(b)) == pytest.approx(10 * np.log10(255**2 / error))
    assert psnr(Image.fromarray(a), Image.fromarray(a)) is None


def test_the_first_part_of_a_progressive_file_is_shown(client: Client, codec: ImageCodec) -> None:
    sent = client.send(png(320, 256))
    whole = client.compare(sent["id"], size=1, progressive=True)
    data = client.get(f"/files/{whole['file']['id']}.gic")
    first = whole["file"]["first"]
    progressive = unpack(data).progressive
    assert progressive and len(data) == whole["file"]["whole"] and first == progressive.start < len(data)
    received = []
    for share in (1.01 * first / len(data), 0.5, 0.8, 1):
        answer = client.compare(sent["id"], size=1, progressive=True, received=share)
        part = client.get(f"/files/{answer['file']['id']}.gic")
        assert part == truncate(data, round(share * len(data)))
        shown = client.picture(answer["right"]["picture"])
        assert shown.tobytes() == codec.decompress(part, realism=0.5).tobytes()
        received.append(answer["right"]["metrics"]["psnr"])
    assert received[0] < received[-1]
    for share in (0, 0.9 * first / len(data)):
        answer = client.compare(sent["id"], size=1, progressive=True, received=share, left="jpeg")
        assert answer["file"]["id"] is None and answer["done"]
        assert answer["right"]["picture"] is None and "must arrive" in answer["right"]["missing"]
        assert answer["left"]["bytes"] == pytest.approx(len(data), rel=0.1)  # nothing to be equal to yet


def test_other_codecs_stay_at_the_size_of_the_whole_file_while_it_arrives(client: Client) -> None:
    sent = client.send(png(320, 256))
    given = {"size": 1, "progressive": True, "left": "jpeg"}
    whole = client.compare(sent["id"], **given)
    for share in (0.1, 0.5, 0.8):
        answer = client.compare(sent["id"], **given, received=share, playing=True)
        assert answer["left"] == whole["left"]
        assert answer["file"]["bytes"] == pytest.approx(share * whole["file"]["bytes"], abs=2)
    at_rest = client.compare(sent["id"], **given, received=0.5)
    assert at_rest["left"]["bytes"] < 0.7 * whole["left"]["bytes"]


def test_a_picture_opens_at_a_moderate_rate_or_as_near_as_it_comes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = client.send(png(320, 256, salt=3))
    answer = client.compare(sent["id"], size=None)
    ends, size = answer["range"], answer["range"]["size"]
    assert 8 * ends["smallest"] < OPENING * 320 * 256 < 8 * ends["largest"]
    assert answer["file"]["bpp"] == pytest.approx(OPENING, rel=0.05)
    assert STEPS * size == round(STEPS * size)
    again = client.compare(sent["id"], size=size)
    assert again["file"] == answer["file"] and again["range"]["size"] == size
    for bits, end in ((0.001, 0), (30, 1)):
        monkeypatch.setattr("gic.demo.work.OPENING", bits)
        assert client.compare(sent["id"], size=None)["range"]["size"] == end


def test_large_pictures_are_reduced_unless_the_page_asks_for_all(client: Client) -> None:
    data = png(2100, 1100)
    reduced = client.send(data)
    assert reduced["width"] * reduced["height"] <= 1.001 * REDUCED and reduced["whole"] == [2100, 1100]
    assert reduced["width"] / reduced["height"] == pytest.approx(2100 / 1100, rel=0.002)
    whole = client.send(data, whole=True)
    assert (whole["width"], whole["height"]) == (2100, 1100) and whole["id"] != reduced["id"]


def test_what_was_changed_in_a_picture_is_told(client: Client) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (40, 30), (200, 10, 10, 100)).save(buffer, "PNG")
    sent = client.send(buffer.getvalue())
    assert sent["notes"] == ["alpha blended onto white"]
    answer = client.compare(sent["id"])
    assert answer["right"]["picture"]


def test_examples_are_taken_by_number(codec: ImageCodec, tmp_path: Path) -> None:
    (tmp_path / "a <b>.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "gone.png").write_bytes(b"")
    with serving(codec, *(tmp_path / name for name in ("a <b>.png", "broken.png", "gone.png"))) as running:
        client = Client(running)
        (tmp_path / "gone.png").unlink()
        about = json.loads(client.get("/api/about"))
        assert about["examples"] == ["a <b>.png", "broken.png", "gone.png"]
        assert str(tmp_path) not in json.dumps(about)  # no paths
        *_, taken, _ = client.ask("/api/examples", example=0)
        assert taken["width"] == 160
        for number, said in (
            (1, "not an image"),
            (2, "gone.png"),
            (3, "no such"),
            ("../a", "no such"),
            (-1, "no such"),
        ):
            *_, end = client.ask("/api/examples", example=number)
            assert end["event"] == "error" and said in end["text"]


# --- numbers that take longer -----------------------------------------------------------------------------------------


def test_metrics_come_after_the_pictures(client: Client, server: DemoServer) -> None:
    sent = client.send(png())
    answer = client.compare(sent["id"], left="gic-0", right="gic-1")
    names = [answer[side]["picture"] for side in ("left", "right")]
    assert "ssimulacra2" in server.work.judges.names
    events = client.ask("/api/judge", pictures=[*names, "unknown"])
    values = {(e["picture"], e["metric"]): e["value"] for e in events if e["event"] == "value"}
    assert {(name, "ssimulacra2") for name in names} <= set(values)
    again = client.compare(sent["id"], left="gic-0", right="gic-1")
    assert again["left"]["metrics"]["ssimulacra2"] == values[names[0], "ssimulacra2"]

    from gic.pictures.tensors import to_tensor
    from gic.quality.ssimulacra2 import ssimulacra2

    shown, original = (to_tensor(client.picture(name)) for name in (names[1], sent["id"]))
    assert values[names[1], "ssimulacra2"] == pytest.approx(ssimulacra2(shown, original), abs=1e-6)


def test_a_metric_that_fails_is_told_once(client: Client, server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, image: Image.Image, original: Image.Image) -> float:
        raise ConfigError("its weights are damaged")

    monkeypatch.setattr(server.work.judges, "names", ["lpips_alex"])
    monkeypatch.setattr(server.work.judges, "measure", fails)
    sent = client.send(png(salt=7))
    right = client.compare(sent["id"])["right"]
    said = [event for event in client.ask("/api/judge", pictures=[right["picture"]]) if event["event"] == "advice"]
    assert [event["text"] for event in said] == ["its weights are damaged"]
    assert [event["event"] for event in client.ask("/api/judge", pictures=[right["picture"]])] == ["done"]


def test_metrics_that_would_take_too_much_memory_are_left_out(
    client: Client, server: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = client.send(png(salt=8))
    right = client.compare(sent["id"])["right"]
    monkeypatch.setattr("gic.demo.work.JUDGED", 160 * 120 - 1)
    events = client.ask("/api/judge", pictures=[right["picture"]])
    assert {event["value"] for event in events if event["event"] == "value"} == {None}
    assert any("up to" in event.get("text", "") for event in events)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not an image"),
        (b"no picture at all", "not an image"),
        (png()[:1000], "damaged or cut short"),
        (b"GIC\x01 and so on", "gic decompress"),
    ],
)
def test_what_is_no_picture_is_told_and_the_next_is_taken(client: Client, data: bytes, said: str) -> None:
    end = client.send(data)
    assert end["event"] == "error" and said in end["text"]
    assert client.send(png())["event"] == "picture"


def test_a_picture_of_too_many_pixels_is_told(client: Client) -> None:
    header = bytearray(png(8, 8))
    header[16:24] = (40000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    end = client.send(bytes(header))
    assert end["event"] == "error" and "40000" in end["text"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("the model yields values that are not finite"), "not finite"),
        (MemoryError(), "memory does not suffice"),
        (KeyError("bug"), "an error of gic itself"),
    ],
)
def test_an_error_of_the_codec_is_told_and_the_next_wish_is_answered(
    client: Client, server: DemoServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    error: Exception, said: str,
) -> None:  # fmt: skip
    sent = client.send(png(salt=len(said)))  # none that was coded before

    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(server.work.codec, "encoding", fails)
        answer = client.compare(sent["id"])
        assert said in answer["error"]["text"] and "done" not in answer
    assert ("Traceback" in capfd.readouterr().err) == isinstance(error, KeyError)
    assert client.compare(sent["id"])["done"]


def test_a_picture_that_is_no_longer_kept_is_told(client: Client) -> None:
    assert "no longer kept" in client.compare("unknown")["error"]["text"]
    first = client.send(png(salt=10))
    for salt in (11, 12, 13):
        client.send(png(salt=salt))
    assert "no longer kept" in client.compare(first["id"])["error"]["text"]


@pytest.mark.parametrize(
    "change",
    [{"size": 2}, {"size": "1"}, {"size": float("nan")}, {"realism": None}, {"left": "../etc"}, {"picture": 3}],
)
def test_a_wish_that_is_none_is_told(client: Client, change: dict[str, object]) -> None:
    sent = client.send(png())
    assert "reload the page" in client.compare(**{"name": sent["id"], **change})["error"]["text"]


# --- who is answered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8421", "127.0.0.1.evil.example", "[::1", None, ""])
def test_another_host_is_refused(client: Client, host: str | None) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/about"), ("POST", "/api/compare")):
        status, _, data = client.request(method, path, b"{}" if method == "POST" else None, Host=host)
        assert status == 403 and b"gic demo answers" in data


@pytest.mark.parametrize("origin", ["http://evil.example", "null", None, "http://127.0.0.1:1", "http://localhost"])
def test_another_origin_sends_nothing(client: Client, origin: str | None) -> None:
    status, _, data = client.request("POST", "/api/pictures?page=p&number=1", png(), Origin=origin)
    assert status == 403 and b"own page" in data


def test_a_server_for_others_takes_addresses_and_its_own_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Studio")
    for name, allowed in (
        ("192.168.0.7:8421", True),
        ("studio", True),
        ("[fe80::1]:80", True),
        ("evil.example", False),
    ):
        assert names_this_machine(name, "0.0.0.0") == allowed
        assert not names_this_machine(name, "127.0.0.1")


def test_what_is_too_large_is_refused_before_it_is_read(codec: ImageCodec) -> None:
    with serving(codec, max_bytes=1000) as running:
        client = Client(running)
        path = "/api/pictures?page=p&number=1"
        status, _, _ = client.request("POST", path, **{"Content-Length": "1001"})  # and nothing is sent
        assert status == 413
        for length in (None, "-1", "many", "1" * 30):
            status, _, _ = client.request("POST", path, **{"Content-Length": length})
            assert status in (411, 413)
        status, _, _ = client.request("POST", "/api/compare", **{"Content-Length": str(1 << 20)})
        assert status == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 20000, b"{}", b'{"page": "p"}', b'{"number": 1}'])
def test_requests_that_are_none_are_refused(client: Client, body: bytes) -> None:
    status, _, _ = client.request("POST", "/api/compare", body)
    assert status == 400


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/../pyproject.toml", "/pages/base.css", "//etc/passwd", "/pictures/../../etc/passwd.png",
     "/pictures/unknown.png", "/files/unknown.gic", "/files/", "/api/compare"],
)  # fmt: skip
def test_no_path_leads_to_a_file(client: Client, path: str) -> None:
    status, _, data = client.request("GET", path)
    assert status == 404 and b"no such page" in data


def test_it_listens_to_this_machine_alone(server: DemoServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


# --- turns ------------------------------------------------------------------------------------------------------------


def test_the_newest_wish_of_a_page_is_answered_and_older_ones_are_passed_over(
    client: Client, server: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = client.send(png(salt=4))
    begun, go = threading.Event(), threading.Event()
    real = server.work.codec.encoding
    coded: list[object] = []

    def slow(*arguments: object, **options: object) -> object:
        coded.append(arguments)
        begun.set()
        go.wait()
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(server.work.codec, "encoding", slow)
    ends: dict[str, str] = {}

    def wish(name: str, page: str) -> threading.Thread:
        number = client.number = client.number + 1
        given = {"picture": sent["id"], "size": 0.5, "realism": 1, "received": 1, "left": "original", "right": "gic"}
        body = json.dumps({**given, "page": page, "number": number}).encode()

        def run() -> None:
            ends[name] = client.events("/api/compare", body)[-1]["event"]

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def known(number: int) -> None:
        while server.turns._newest.get(client.page, 0) < number:
            pass

    threads = [wish("running", client.page)]
    begun.wait()
    threads += [wish("waiting", client.page)]
    known(client.number)
    threads += [wish("newest", client.page)]
    known(client.number)
    threads += [wish("another page", "other")]
    go.set()
    for thread in threads:
        thread.join()
    assert ends == {"running": "superseded", "waiting": "superseded", "newest": "done", "another page": "done"}
    assert len(coded) == 1  # and the work that was begun was of use


def test_turns_end_when_they_are_closed() -> None:
    turns = Turns()
    with turns.take("a", 1) as check:
        check()
        closing = threading.Thread(target=turns.close)
        closing.start()
        while not turns._closed:
            pass
        with pytest.raises(SupersededError):
            check()
    closing.join()
    with pytest.raises(SupersededError), turns.take("a", 2):
        pass


def test_a_shelf_keeps_the_last_few_within_its_weight() -> None:
    shelf: Shelf[int] = Shelf(most=3, weight=10)
    for number in range(4):
        shelf.put(str(number), number, 1)
    assert [shelf.get(str(number)) for number in range(4)] == [None, 1, 2, 3]
    shelf.get("1")  # is the newest now
    shelf.put("4", 4, 1)
    assert shelf.get("2") is None and shelf.get("1") == 1
    shelf.put("heavy", 5, 100)
    assert len(shelf) == 2 and shelf.get("heavy") == 5
    shelf.put("light", 6, 1)
    assert shelf.get("light") == 6 and len(shelf) == 2


def test_results_are_bounded(codec: ImageCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gic.demo.work._RESULTS", 4)
    with serving(codec) as running:
        client = Client(running)
        sent = client.send(png())
        shown = [client.compare(sent["id"], realism=r / 10)["right"]["picture"] for r in range(6)]
        kept = [client.request("GET", f"/pictures/{name}.png")[0] == 200 for name in shown]
        assert kept == [False, False, True, True, True, True]


# --- the command ------------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
absent = sys.argv[1:]
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in absent else find(name, package)
for name in absent:
    sys.modules[name] = None  # an import of it fails
import gic
from demo_client import Client, png, serving
with serving(gic.load(threads=1)) as server:
    client = Client(server)
    sent = client.send(png())
    for progressive in (False, True):
        answer = client.compare(sent["id"], left="jpeg", progressive=progressive)
        assert answer["done"] and answer["left"]["picture"] and answer["right"]["picture"], answer
    about = client.get("/api/about").decode()
    if "torch" in absent:
        assert [event["event"] for event in client.ask("/api/judge", pictures=[answer["right"]["picture"]])] == ["done"]
assert not [name for name in sys.modules if name.partition(".")[0] == "torch" and sys.modules[name] is not None]
print(about)
"""


@pytest.mark.parametrize("absent", [[], ["lpips"], ["torch", "lpips", "torchvision", "lightning", "yaml", "rich"]])
def test_pictures_are_shown_without_pytorch_and_the_page_says_what_it_is_good_for(absent: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", WITHOUT_TORCH, *absent]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    names = [metric["name"] for metric in about["metrics"]]
    assert names[0] == "psnr" and ("ssimulacra2" in names) == ("torch" not in absent)
    assert ("[torch]" in about["advice"]) == ("torch" in absent)
    assert ("[train]" in about["advice"]) == ("lpips" in absent)
    assert not absent or "lpips_alex" not in names


@pytest.fixture
def address() -> Iterator[str]:
    """Where the command serves, in a process of its own; it is interrupted afterwards."""
    command = [sys.executable, "-m", "gic", "demo", "--no-browser", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"gic demo: (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)
    try:
        assert found, line + process.communicate()[1]
        yield found[1]
    finally:
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    assert (process.returncode, out, errors) == (0, "", "gic demo: ended\n")


def test_the_command_serves_until_it_is_interrupted(address: str) -> None:
    from urllib.request import urlopen

    with urlopen(address) as answer:
        assert b"<title>gic demo</title>" in answer.read()


def test_the_command_opens_the_browser(tmp_path: Path) -> None:
    script, opened = tmp_path / "browser", tmp_path / "opened"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.part && mv {opened}.part {opened}\n')
    script.chmod(0o755)
    command = [sys.executable, "-m", "gic", "demo", "--port", "0", "--threads", "1"]
    environment = {**os.environ, "BROWSER": f"{script} %s"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        while process.poll() is None and not opened.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    assert opened.read_text() == line.split()[2]


def test_a_server_for_others_is_warned_of(codec: ImageCodec) -> None:
    command = [
        sys.executable,
        "-m",
        "gic",
        "demo",
        "--no-browser",
        "--port",
        "0",
        "--host",
        "0.0.0.0",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert re.match(r"gic demo: http://127\.0\.0\.1:\d+/ ", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert said.startswith("gic demo: WARNING: with --host 0.0.0.0 everyone") and said.endswith("ended\n")


def test_a_port_that_is_taken_is_told(server: DemoServer, codec: ImageCodec) -> None:
    with pytest.raises(ConfigError, match=rf"port {server.server_port} .*--port 0"):
        DemoServer(Work(codec), port=server.server_port)
    for port in (-1, 70000):
        with pytest.raises(ConfigError, match="0 to 65535"):
            DemoServer(Work(codec), port=port)
    with pytest.raises(ConfigError, match="no name or address"):
        DemoServer(Work(codec), host="no.such.host.invalid", port=0)


def test_the_usual_port_gives_way_to_a_free_one(
    codec: ImageCodec, server: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gic.demo.server.PORT", server.server_port)
    other = DemoServer(Work(codec))
    assert other.server_port != server.server_port and str(other.server_port) in other.url
    other.stop()
