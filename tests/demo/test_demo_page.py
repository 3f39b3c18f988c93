"""The demo's page in a browser: under the hand, the keyboard, and when something goes wrong."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Driver, start_browser
from demo_client import png, serving
from PIL import Image

import gic
from gic.bitstream.container import truncate, unpack
from gic.codec.image_codec import ImageCodec
from gic.demo.server import DemoServer
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
    assert browser.find("#realism-text").text == "r = 1.00, most like a photograph"
    shown = browser.run("return state.sides.right.picture")
    press(browser, "#realism", Keys.HOME)
    assert browser.find("#realism-text").text == "r = 0.00, closest to the original"
    assert browser.find("#name-right").text.endswith("r=0") and browser.run("return state.sides.right.picture") != shown
    press(browser, "#realism", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.find("#name-right").text.endswith("r=0.1")


def test_sides_are_changed_and_swapped(browser: Driver, picture: Path) -> None:
    upload(browser, picture)
    choose(browser, "left", "JPEG")
    assert browser.find("#name-left").text.startswith("JPEG quality=")
    assert browser.find("#tag-left").text.startswith("JPEG, ")
    jpeg = int(rows(browser)["bytes"][0].split()[0].replace(",", ""))
    assert jpeg <= 1.01 * size(browser) or browser.find("#name-left").text == "JPEG quality=1"
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
