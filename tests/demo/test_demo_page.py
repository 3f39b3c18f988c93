"""The demo's page in a browser: under the hand, the keyboard, and when something goes wrong."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Driver, start_browser
from demo_client import png, serving
from PIL import Image

import gic
from gic.bitstream.container import truncate, unpack
from gic.codec.image_codec import ImageCodec
from gic.demo.equal_bytes import EqualBytes, OtherFile
from gic.demo.server import DemoServer
from gic.demo.turns import Check
from gic.demo.work import Tell
from gic.errors import ConfigError

EVIL = '<img src=x onerror="hacked=1">.png'  # names of pictures come from people's disks


@pytest.fixture(scope="module")
def codec() -> ImageCodec:
    return gic.load(threads=1, runtime="onnx")


@pytest.fixture(scope="module")
def server(codec: ImageCodec) -> Iterator[DemoServer]:
    with serving(codec, max_bytes=1 << 20) as running:
        yield running


@pytest.fixture(scope="module")
def chrome(server: DemoServer) -> Iterator[Driver]:
    made = start_browser(server.url)
    yield made
    made.chrome.quit()


def settle(browser: Driver) -> None:
    """Wait until the page has all that it wants."""
    script = "return document.body.dataset.ready === 'true' && !asking && !again && !judging && !playing"
    browser.until(lambda: browser.run(script))
    browser.settle()


@pytest.fixture
def browser(chrome: Driver) -> Iterator[Driver]:
    """The page, opened anew; the console stays silent, and nothing comes from elsewhere."""
    chrome.open()
    settle(chrome)
    yield chrome
    assert chrome.complaints() == []
    loaded = chrome.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(chrome.url)] == []
    assert chrome.run("return typeof hacked") == "undefined"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "waves.png"
    path.write_bytes(png(320, 240))
    return path


def upload(browser: Driver, path: Path) -> None:
    browser.find("#file").send_keys(str(path))
    settle(browser)


def press(browser: Driver, selector: str, *keys: str) -> None:
    browser.press(selector, *keys)
    settle(browser)


def choose(browser: Driver, side: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find(f"#{side}")).select_by_visible_text(text)
    settle(browser)


def rows(browser: Driver) -> dict[str, list[str]]:
    found = browser.chrome.find_elements("css selector", "#comparison tbody tr")
    cells = [[cell.text for cell in row.find_elements("css selector", "th, td")] for row in found]
    return {head: values for head, *values in cells}


def size(browser: Driver) -> int:
    """Bytes of gic's file, on the right."""
    return int(re.sub(r"\D", "", rows(browser)["bytes"][1]))


def download(browser: Driver, selector: str, folder: Path) -> tuple[str, bytes]:
    """Name and bytes of what a link downloads."""
    folder.mkdir()
    browser.chrome.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    browser.find(selector).click()

    def there() -> list[Path]:
        return [path for path in folder.iterdir() if path.suffix != ".crdownload" and path.stat().st_size]

    browser.until(there)
    (path,) = there()
    return path.name, path.read_bytes()


def test_a_picture_that_is_chosen_is_shown_beside_its_original(browser: Driver, picture: Path) -> None:
    assert not browser.find("#viewer").is_displayed() and "Drop a picture here" in browser.find("#drop").text
    upload(browser, picture)
    assert browser.find("#about").text == "waves.png: 320 × 240 pixels"
    assert browser.find("#name-left").text == "original" and browser.find("#name-right").text.startswith("gic q=")
    values = rows(browser)
    assert list(values)[:3] == ["bytes", "bits per pixel", "PSNR ↑"] and list(values)[-1] == "decode, s"
    assert values["bytes"][0] == "–" and size(browser) > 0 and float(values["PSNR ↑"][1]) > 20
    assert "SSIMULACRA 2 ↑" in values and re.fullmatch(r"−?\d+\.?\d*", values["SSIMULACRA 2 ↑"][1])
    assert browser.find("#size-text").text.startswith(f"{size(browser):,} bytes, ")
    images = browser.run(
        "return [...document.querySelectorAll('.layer img')].map(i => [i.naturalWidth, i.naturalHeight])"
    )
    assert images == [[320, 240]] * 2


def test_the_sliders_obey_the_keyboard(browser: Driver, picture: Path, codec: ImageCodec) -> None:
    from selenium.webdriver.common.keys import Keys

    upload(browser, picture)
    before = size(browser)
    press(browser, "#size", *[Keys.ARROW_RIGHT] * 20)
    finer = size(browser)
    press(browser, "#size", Keys.END)
    assert before < finer < size(browser) and browser.find("#name-right").text.startswith("gic q=1, ")
    press(browser, "#size", Keys.HOME)
    assert size(browser) < before
    assert browser.find("#realism-text").text == "r = 1.00"
    shown = browser.run("return state.sides.right.picture")
    press(browser, "#realism", Keys.HOME)
    assert browser.find("#realism-text").text == "r = 0.00"
    assert browser.find("#name-right").text.endswith("r=0") and browser.run("return state.sides.right.picture") != shown
    press(browser, "#realism", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.find("#name-right").text.endswith("r=0.1")


def test_sides_are_changed_and_swapped(browser: Driver, picture: Path) -> None:
    upload(browser, picture)
    choose(browser, "left", "JPEG")
    assert browser.find("#name-left").text.startswith("JPEG quality=")
    assert browser.find("#tag-left").text.startswith("JPEG, ")
    jpeg, percent = re.fullmatch(r"([\d,]+) \(([+−][\d.]+) %\)", rows(browser)["bytes"][0]).groups()
    assert float(percent.replace("−", "-")) == pytest.approx(
        100 * (int(jpeg.replace(",", "")) / size(browser) - 1), abs=0.051
    )
    browser.find("#swap").click()
    settle(browser)
    assert browser.find("#name-right").text.startswith("JPEG") and browser.find("#name-left").text.startswith("gic")
    choose(browser, "right", "gic, r = 0")
    assert browser.find("#name-right").text.endswith("r=0") and browser.find("#name-left").text.endswith("r=1")


def test_what_is_downloaded_decodes_to_what_is_shown(
    browser: Driver, picture: Path, codec: ImageCodec, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    upload(browser, picture)
    press(browser, "#realism", Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    name, data = download(browser, "#download-gic", tmp_path / "one")
    assert name == "waves.gic" and len(data) == size(browser)
    wanted = codec.decompress(data, realism=0.9)
    name, decoded = download(browser, "#download-png", tmp_path / "two")
    assert name == "waves-decoded.png"
    assert Image.open(io.BytesIO(decoded)).tobytes() == wanted.tobytes()
    pixels = browser.run("""
        const image = document.querySelector("#layer-right img");
        const canvas = Object.assign(document.createElement("canvas"), {width: 320, height: 240});
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        return [...context.getImageData(0, 0, 320, 240).data];
    """)
    assert bytes(pixels) == wanted.convert("RGBA").tobytes()


def test_a_progressive_file_arrives_bit_by_bit(
    browser: Driver, picture: Path, codec: ImageCodec, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    upload(browser, picture)
    press(browser, "#size", Keys.END)
    assert not browser.find("#received").is_displayed()
    browser.find("#progressive").click()
    settle(browser)
    whole = size(browser)
    _, data = download(browser, "#download-gic", tmp_path / "whole")
    assert len(data) == whole and unpack(data).progressive
    best = float(rows(browser)["PSNR ↑"][1])
    press(browser, "#received", *[Keys.ARROW_LEFT] * 40)
    assert browser.find("#received-text").text.startswith(f"60 % of {whole:,} bytes; the first picture takes ")
    _, part = download(browser, "#download-gic", tmp_path / "part")
    assert part == truncate(data, round(0.6 * whole)) and len(part) == size(browser)
    assert float(rows(browser)["PSNR ↑"][1]) < best

    press(browser, "#received", Keys.HOME)
    assert "must arrive" in browser.find("#layer-right").text
    assert not browser.find("#download-gic").get_attribute("href")
    browser.find("#play").click()
    assert browser.find("#play").text == "Pause"
    browser.until(lambda: browser.find("#play").text == "Play")
    settle(browser)
    assert browser.find("#received").get_attribute("value") == "100" and size(browser) == whole
    assert rows(browser)["PSNR ↑"][1] == f"{best:.4g}"
    browser.find("#progressive").click()
    settle(browser)
    _, plain = download(browser, "#download-gic", tmp_path / "plain")
    assert unpack(plain).progressive is None


def test_what_is_no_picture_is_told_and_the_page_goes_on(browser: Driver, picture: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    upload(browser, text)
    assert browser.find("#error").text == "notes.txt: the file is not an image, or of a format that Pillow cannot read"
    assert not browser.find("#viewer").is_displayed()
    upload(browser, picture)
    assert not browser.find("#error").is_displayed() and browser.find("#viewer").is_displayed()
    before = size(browser)
    upload(browser, text)
    assert browser.find("#error").is_displayed() and browser.find("#about").text.startswith("waves.png")
    press(browser, "#size", Keys.END)
    assert not browser.find("#error").is_displayed() and size(browser) > before
    large = tmp_path / "large.png"
    large.write_bytes(bytes((1 << 20) + 1))
    upload(browser, large)
    assert browser.find("#error").text == "large.png has 1,048,577 bytes; at most 1,048,576 bytes are taken."


def test_an_error_of_the_codec_is_told_and_the_next_wish_is_answered(
    browser: Driver, server: DemoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selenium.webdriver.common.keys import Keys

    def fails(*_: object, **__: object) -> None:
        raise ConfigError("the model yields values that are not finite: its weights are damaged")

    (tmp_path / "new.png").write_bytes(png(salt=21))
    with monkeypatch.context() as patch:
        patch.setattr(server.work.codec, "encoding", fails)
        upload(browser, tmp_path / "new.png")
        assert browser.find("#error").text.startswith("the model yields values that are not finite")
    press(browser, "#size", Keys.ARROW_RIGHT)
    assert not browser.find("#error").is_displayed() and size(browser) > 0


def test_names_are_text(browser: Driver, tmp_path: Path) -> None:
    (tmp_path / EVIL).write_bytes(png())
    upload(browser, tmp_path / EVIL)
    assert browser.find("#about").text.startswith(EVIL)
    choose(browser, "left", "WebP")


def test_pictures_are_dropped_and_pasted(browser: Driver, picture: Path) -> None:
    script = """
        const [kind, name, text] = arguments;
        const data = new DataTransfer();
        if (name) data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
        else data.setData("text/plain", "words");
        const paste = kind === "paste";
        const given = {[paste ? "clipboardData" : "dataTransfer"]: data, cancelable: true, bubbles: true};
        const event = new (paste ? ClipboardEvent : DragEvent)(kind, given);
        document.querySelector("#drop").dispatchEvent(event);
    """
    import base64

    text = base64.b64encode(picture.read_bytes()).decode()
    for kind in ("drop", "paste"):
        browser.run(script, kind, f"{kind}.png", text)
        settle(browser)
        assert browser.find("#about").text.startswith(f"{kind}.png: 320")
    browser.run(script, "paste", "", "")  # text is none of the page's business
    assert not browser.find("#error").is_displayed()
    browser.run(script, "drop", "", "")
    assert browser.find("#error").text.startswith("That is no file")


def test_the_newest_wish_is_what_is_shown(
    browser: Driver, server: DemoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "new.png").write_bytes(png(salt=22))
    upload(browser, tmp_path / "new.png")
    begun, go = threading.Event(), threading.Event()
    real = server.work.codec.decompress

    def slow(*arguments: object, **options: object) -> Image.Image:
        begun.set()
        go.wait()
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(server.work.codec, "decompress", slow)
    try:
        browser.press("#realism", Keys.HOME)
        begun.wait()
        assert browser.find("#status").get_attribute("data-state") == "busy"
        browser.press("#realism", *[Keys.ARROW_RIGHT] * 7)
        browser.press("#size", Keys.END)
    finally:
        go.set()
    settle(browser)
    assert browser.find("#name-right").text == "gic q=1, r=0.35"
    assert browser.find("#status").get_attribute("data-state") == "idle"


def test_examples_are_shown_at_once(codec: ImageCodec, chrome: Driver, tmp_path: Path) -> None:
    for number, name in enumerate(("first.png", EVIL)):
        (tmp_path / name).write_bytes(png(salt=number))
    with serving(codec, tmp_path / "first.png", tmp_path / EVIL) as running:
        usual, chrome.url = chrome.url, running.url
        try:
            chrome.open()
            settle(chrome)
            assert chrome.find("#about").text.startswith("first.png") and size(chrome) > 0
            chrome.run(
                "const e = document.querySelector('#example'); e.value = '1'; e.dispatchEvent(new Event('change'))"
            )
            settle(chrome)
            assert chrome.find("#about").text.startswith(EVIL)
            assert chrome.complaints() == []
        finally:
            chrome.url = usual


def test_a_program_that_has_ended_is_told(codec: ImageCodec, chrome: Driver, picture: Path) -> None:
    usual = chrome.url
    try:
        with serving(codec) as running:
            chrome.url = running.url
            chrome.open()
            settle(chrome)
        upload(chrome, picture)
        assert "start gic demo again" in chrome.find("#error").text
        chrome.complaints()  # the browser itself says that nobody answers
    finally:
        chrome.url = usual


@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_the_window(browser: Driver, picture: Path, width: int, scheme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.open(width)
    settle(browser)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    box = browser.box("#drop")
    assert box["top"] + box["height"] < 900
    upload(browser, picture)
    choose(browser, "left", "JPEG")
    browser.find("#progressive").click()
    settle(browser)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    box = browser.box("#stage")
    assert box["width"] > 0.6 * width and box["top"] + box["height"] < 900
    dark = sum(map(int, re.findall(r"\d+", browser.find("body").value_of_css_property("background-color"))[:3])) < 384
    assert dark == (scheme == "dark")


def test_motion_is_reduced_where_it_is_asked(browser: Driver, picture: Path) -> None:
    def animation() -> str:
        return browser.run("""
            $("status").dataset.state = "busy";
            const name = getComputedStyle($("status"), "::before").animationName;
            $("status").dataset.state = "idle";
            return name;
        """)

    upload(browser, picture)
    assert animation() == "breathe"
    media = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    assert animation() == "none"
    browser.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_control_has_a_name_and_the_keyboard_reaches_it(browser: Driver, picture: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    upload(browser, picture)
    browser.find("#progressive").click()
    settle(browser)
    assert browser.nameless() == []
    browser.run("document.activeElement.blur()")
    seen = set()
    for _ in range(25):
        browser.actions().send_keys(Keys.TAB).perform()
        seen.add(browser.run("return document.activeElement.id"))
    assert {"file", "stage", "divider", "size", "realism", "progressive", "received", "play", "left", "right", "swap",
            "download-gic", "download-png"} <= seen  # fmt: skip


def test_a_picture_opens_at_a_moderate_rate_until_the_size_is_chosen(browser: Driver, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    for salt in (31, 32, 33):
        (tmp_path / f"{salt}.png").write_bytes(png(320, 240, salt=salt))
    positions = []
    for salt in (31, 32):
        upload(browser, tmp_path / f"{salt}.png")
        assert 8 * size(browser) / (320 * 240) == pytest.approx(0.4, rel=0.05)
        assert browser.find("#size-text").text.endswith(" bits per pixel (bpp)")
        assert not browser.find("#size-text").text.startswith("about")
        positions.append(browser.find("#size").get_attribute("value"))
    assert positions[0] != positions[1] and browser.find("#realism").get_attribute("value") == "20"
    press(browser, "#size", Keys.HOME, Keys.ARROW_RIGHT)
    upload(browser, tmp_path / "33.png")
    assert browser.find("#size").get_attribute("value") == "1"


# Keeps what the page says at each change of its table: the columns' heads, and rows by their names.
WATCH = """
    window.said = [];
    new MutationObserver(() => said.push({
      heads: ["left", "right"].map((side) => $(`name-${side}`).textContent),
      rows: Object.fromEntries([...$("comparison").tBodies[0].rows].map((row) => {
        const [head, ...cells] = [...row.cells].map((cell) => cell.textContent);
        return [head, cells];
      })),
    })).observe($("comparison").tBodies[0], { childList: true });
"""


def test_while_a_file_arrives_the_other_codec_stays_and_the_table_is_of_one_state(
    browser: Driver, server: DemoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.png").write_bytes(png(320, 240, salt=41))
    upload(browser, tmp_path / "new.png")
    choose(browser, "left", "JPEG")
    browser.find("#progressive").click()
    settle(browser)
    targets: list[int] = []
    real = EqualBytes.near

    def near(self: EqualBytes, name: str, target: int, check: Check) -> OtherFile:
        targets.append(target)
        return real(self, name, target, check)

    monkeypatch.setattr(EqualBytes, "near", near)
    whole, jpeg = size(browser), rows(browser)["bytes"][0].split()[0]
    browser.run(WATCH)
    browser.find("#play").click()
    settle(browser)
    assert set(targets) == {whole} and len(targets) > 5
    said = browser.run("return said.filter((each) => each.rows['bytes'][1] !== '–')")
    arrived = []
    for each in said:
        (left, right), bits = each["rows"]["bytes"], each["rows"]["bits per pixel"]
        assert re.fullmatch(r"[\d,]+", right)  # gic is not compared with itself
        arrived.append(int(right.replace(",", "")))
        assert float(bits[1]) == pytest.approx(8 * arrived[-1] / (320 * 240), abs=6e-5)
        assert left.split()[0] == jpeg
        percent = float(left.partition("(")[2].removesuffix(" %)").replace("−", "-") or 0)
        assert percent == pytest.approx(100 * (int(jpeg.replace(",", "")) / arrived[-1] - 1), abs=0.051)
    assert arrived[-1] == whole and arrived == sorted(arrived) and len(set(arrived)) > 5


def test_another_side_is_shown_at_once_while_a_file_arrives_and_a_pause_compares_what_has_arrived(
    browser: Driver, server: DemoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.png").write_bytes(png(320, 240, salt=42))
    upload(browser, tmp_path / "new.png")
    browser.find("#progressive").click()
    settle(browser)
    begun, go = threading.Event(), threading.Event()
    real = server.work.codec.decompress

    def slow(*arguments: object, **options: object) -> Image.Image:
        begun.set()
        go.wait()
        return real(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(server.work.codec, "decompress", slow)
        try:
            browser.find("#play").click()
            begun.wait()
            asked = browser.run("return number")
            browser.choose("#left", "jpeg")
            assert browser.run("return number") == asked + 1  # it does not wait for the step
        finally:
            go.set()
        browser.until(lambda: browser.find("#name-left").text.startswith("JPEG"))
    assert browser.find("#play").text == "Pause"  # and it goes on
    browser.find("#play").click()
    settle(browser)
    values = rows(browser)["bytes"]
    part = size(browser)
    assert part < browser.run("return state.file.whole")
    assert int(values[0].split()[0].replace(",", "")) == pytest.approx(part, rel=0.1)


def test_a_wish_while_a_file_arrives_does_not_make_it_arrive_twice(browser: Driver, picture: Path) -> None:
    upload(browser, picture)
    browser.run("window.grown = 0; grow = () => (grown += 1); playing = setTimeout(grow, 300); wish();")
    browser.until(lambda: browser.run("return grown && !asking"))
    time.sleep(0.6)
    assert browser.run("stop(); return grown") == 1


@pytest.mark.parametrize("doing", ["playing", "waiting", "judging"])
def test_a_new_picture_ends_what_is_under_way_and_is_shown(
    browser: Driver, server: DemoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    from selenium.webdriver.common.keys import Keys

    for number, name in enumerate(("old", "new")):
        (tmp_path / f"{name}.png").write_bytes(png(320, 240 + 8 * number, salt=51))
    upload(browser, tmp_path / "old.png")
    browser.find("#progressive").click()
    settle(browser)
    real = server.work.add

    def add(data: bytes, whole: bool, tell: Tell) -> None:
        real(data, whole, tell)
        # So slow that all that was to come would have come: a step, a wish that waited, a measurement.
        wait_until = time.monotonic() + 2.5
        while time.monotonic() < wait_until:
            tell({"event": "status", "text": "reading the picture"})
            time.sleep(0.05)

    monkeypatch.setattr(server.work, "add", add)
    if doing == "judging":
        browser.press("#size", Keys.ARROW_RIGHT)
        browser.until(lambda: browser.run("return judging !== null"))
    else:
        browser.find("#play").click()
        if doing == "waiting":
            browser.run("sent = performance.now(); asking ??= new AbortController(); wish()")
            assert browser.run("return again !== null")
    browser.find("#file").send_keys(str(tmp_path / "new.png"))
    assert browser.find("#play").text == "Play"
    if doing == "playing":  # nothing else for the old one takes the turn of the new one
        browser.press("#realism", Keys.ARROW_LEFT)
        browser.find("#play").click()
        assert browser.find("#play").text == "Play"
    settle(browser)
    assert browser.find("#about").text == "new.png: 320 × 248 pixels" and not browser.find("#error").is_displayed()
    assert browser.find("#name-right").text.endswith("r=0.95" if doing == "playing" else "r=1")
    assert browser.run("return document.querySelector('#layer-right img').naturalHeight") == 248


def test_the_sign_of_work_counts_seconds(
    browser: Driver, server: DemoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.png").write_bytes(png(salt=61))
    go = threading.Event()
    real = server.work.codec.encoding

    def slow(*arguments: object, **options: object) -> object:
        go.wait()
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(server.work.codec, "encoding", slow)
    try:
        browser.find("#file").send_keys(str(tmp_path / "new.png"))
        browser.until(lambda: browser.find("#status").text == "analysing the picture, 2 s")
    finally:
        go.set()
    settle(browser)


def test_what_is_no_picture_yet_is_said_in_its_own_half(browser: Driver, picture: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    upload(browser, picture)
    choose(browser, "left", "JPEG")
    browser.find("#progressive").click()
    settle(browser)
    press(browser, "#received", Keys.HOME)
    assert browser.run("return $('layer-left').querySelector('img').naturalWidth") == 320  # the other side is there
    for _ in range(2):
        divider, right = browser.box("#divider"), browser.box("#layer-right p")
        assert right["left"] >= divider["right"] - 1 and right["right"] <= browser.box("#stage")["right"]
        press(browser, "#divider", *[Keys.ARROW_LEFT] * 5)
    browser.find("#swap").click()
    settle(browser)
    left = browser.box("#layer-left p")
    assert left["left"] >= browser.box("#stage")["left"] and left["right"] <= browser.box("#divider")["left"] + 1
    assert all("%" not in cell for cell in rows(browser)["bytes"])


def test_on_a_narrow_screen_the_sliders_come_directly_below_the_picture(browser: Driver, picture: Path) -> None:
    browser.open(400)
    settle(browser)
    upload(browser, picture)
    browser.run("$('stage-help').style.display = 'block'")  # as with a mouse
    selectors = (
        "#stage",
        "#size",
        "#realism",
        "#progressive",
        "#left",
        "#zooms",
        "#comparison",
        "#downloads",
        "#stage-help",
    )
    boxes = {selector: browser.box(selector) for selector in selectors}
    tops = [box["top"] for box in boxes.values()]
    assert tops == sorted(tops)
    assert boxes["#size"]["top"] - boxes["#stage"]["bottom"] < 60
    assert boxes["#realism"]["bottom"] - boxes["#stage"]["bottom"] < 180
    browser.open(1300)  # the stage follows the window
    settle(browser)
    upload(browser, picture)
    width = browser.box("#stage")["width"]
    for narrow in (400, 320):
        metrics = {"width": narrow, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.until(lambda most=narrow: browser.box("#stage")["width"] < most < width)
        browser.until(lambda: browser.box("#layer-left img")["width"] <= browser.box("#stage")["width"])


def test_help_for_wheel_and_keys_is_for_a_fine_pointer(browser: Driver, picture: Path) -> None:
    upload(browser, picture)
    assert browser.find("#stage-help").is_displayed() == browser.run("return matchMedia('(pointer: fine)').matches")
    script = """
        const rules = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]);
        const about = (rule) => rule.cssText.includes("#stage-help") && /display: block/.test(rule.cssText);
        return rules.filter(about).map((rule) => rule.media?.mediaText);
    """
    assert browser.run(script) == ["(pointer: fine)"]


def test_advice_about_more_numbers_is_folded_below_the_table(
    browser: Driver, server: DemoServer, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for advice in ("", "LPIPS needs more"):
        monkeypatch.setattr(server.work.judges, "advice", advice)
        browser.open()
        settle(browser)
        upload(browser, picture)
        assert browser.find("#more").is_displayed() == bool(advice)
        assert not browser.find("#advice").is_displayed()
    browser.find("#more summary").click()
    assert browser.find("#advice").text == advice
    assert 0 <= browser.box("#more")["top"] - browser.box("#comparison")["bottom"] < 40


def test_a_portrait_leaves_room_for_the_sliders_on_a_narrow_screen(browser: Driver, tmp_path: Path) -> None:
    (tmp_path / "tall.png").write_bytes(png(300, 600))
    browser.open(400, 800)
    settle(browser)
    upload(browser, tmp_path / "tall.png")
    assert browser.box("#size")["bottom"] < 800
