"""The report: a page that needs nothing else, shows what it is given, and works under the hand and the keyboard."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Driver, start_browser
from PIL import Image, features

from gic.benchmark.curves import save_curves
from gic.benchmark.palette import STRONG
from gic.benchmark.report import write_report
from gic.benchmark.results import Curve, Measurement, Point, Results
from gic.errors import DataError
from gic.quality.metric import MetricInfo

WIDTH, HEIGHT = 96, 64
EVIL = '</script><img src=x onerror="hacked=1">.png'  # names of images come from names of files and shards
KEYS = (EVIL, "plain.png")
ORIGINAL = (0, 160, 80)

# Sizes are such that jpeg's middle file is nearest to no file of gic, and is not needed.
SIZES = {
    "gic": {"q=8": 100, "q=2": 200, "q=0.5": 900},
    "jpeg": {"quality=5": 110, "quality=30": 500, "quality=80": 1000},
    "jxl": {"distance=9": 190, "distance=1": 2000},
}
CURVES = {"gic r=0": "gic", "gic r=1": "gic", "jpeg": "jpeg", "jxl": "jxl"}


def colour(curve: str, setting: str, key: str) -> tuple[int, int, int]:
    """Every picture has its own colour, so that a page tells which one it shows."""
    shade = 40 + 70 * list(SIZES[CURVES[curve]]).index(setting)
    return (shade, 60 * list(CURVES).index(curve), 200 if key == EVIL else 90)


def saved(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=95)
    return buffer.getvalue()


class Pictures:
    """Plain colours; gic's and jxl's files are none that a browser shows."""

    def __init__(self, keys: tuple[str, ...] = KEYS) -> None:
        self.keys = keys

    def original(self, key: str) -> Image.Image:
        return Image.new("RGB", (WIDTH, HEIGHT), ORIGINAL)

    def file(self, curve: str, setting: str, key: str) -> tuple[bytes, str] | None:
        if curve == "jpeg":
            return saved(Image.new("RGB", (WIDTH, HEIGHT), colour(curve, setting, key)), "JPEG"), "image/jpeg"
        return b"opaque", ""

    def reconstruction(self, curve: str, setting: str, key: str) -> Image.Image | None:
        if curve == "jxl" and setting == "distance=9" and key == KEYS[1]:
            return None  # was not kept
        return Image.new("RGB", (WIDTH, HEIGHT), colour(curve, setting, key))


def make_results() -> Results:
    metrics = {
        "psnr": MetricInfo("psnr", "PSNR", True, "image", "RGB, 8 bit", "dB"),
        "niqe": MetricInfo("niqe", "NIQE", False, "image", "pyiqa <script>hacked=2</script>"),
        "fid": MetricInfo("fid", "FID", False, "set", "Inception"),
    }
    curves = []
    for number, (name, codec) in enumerate(CURVES.items()):
        points = []
        for rank, (setting, size) in enumerate(SIZES[codec].items()):
            images = {}
            for index, key in enumerate(KEYS):
                psnr = 20.0 + 4 * rank + 2 * index + (name == "gic r=0")
                metrics_here = {"psnr": psnr, "niqe": 9.0 - rank - (name == "gic r=1")}
                bits = 8 * size / (WIDTH * HEIGHT)
                images[key] = Measurement(size, bits, 0.5, 0.25, None, None, metrics_here)
            points.append(Point(setting, images, {"fid": 50.0 - rank - 5 * number}))
        decoding = name.removeprefix("gic ") if codec == "gic" else ""
        curves.append(Curve(name, codec, decoding, "1.0", {"effort": 7}, points))
    return Results(
        about={"command": "gic test --limit 2 </script><script>hacked=3</script>", "versions": {"gic": "0.1"}},
        images=[{"key": key, "width": WIDTH, "height": HEIGHT, "sha256": "0" * 64} for key in KEYS],
        metrics=metrics,
        not_computed={"musiq": "its weights are not here"},
        curves=curves,
        originals={"niqe": dict.fromkeys(KEYS, 3.5)},
    )


BD_ROWS = [
    {"curve": "gic r=1", "metric": "psnr", "percent": -23.46, "reason": None, "metric_range": (20.0, 28.0),
     "rate_range": (0.1, 1.2), "anchor": "jpeg"},
    {"curve": "gic r=1", "metric": "niqe", "percent": None, "reason": "too <b>few</b> points", "metric_range": None,
     "rate_range": None, "anchor": "jpeg"},
]  # fmt: skip
PUBLISHED = [
    {
        "name": "HiFiC <b>2</b>",
        "source": "its authors' <b>table</b>",
        "points": [{"bits_per_pixel": bits, "metrics": {"psnr": 24 + bits}} for bits in (0.4, 0.9)],
    },
    {"name": "ELIC", "source": "a table", "points": [{"bits_per_pixel": 0.7, "metrics": {"psnr": 30.0}}]},
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, make_results(), bd_rows=BD_ROWS, published=PUBLISHED, pictures=Pictures())
    return path


class Page(HTMLParser):
    """Elements with their attributes, the text outside scripts, the embedded pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.pictures: list[tuple[str, bytes]] = []
        self._raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if self._raw and tag == "script" and attributes.get("type") == "text/plain":
            self.pictures.append((attributes["data-mime"] or "", base64.b64decode(data)))
        elif not self._raw:
            self.text += data


def test_nothing_comes_from_elsewhere(page: Path) -> None:
    found = Page(page.read_text(encoding="utf-8"))
    assert not {tag for tag, _ in found.elements} & {"link", "iframe", "object", "embed", "base", "video", "audio"}
    for tag, attributes in found.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if name in attributes:
                assert re.match("#|data:", attributes[name] or ""), (tag, attributes[name])
    style = re.search("<style>(.*?)</style>", page.read_text(encoding="utf-8"), re.S)
    assert style and not re.search(r"url\(|@import", style[1])
    policies = [a["content"] for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies and policies[0] and policies[0].startswith("default-src 'none';")


def test_names_are_text(page: Path) -> None:
    found = Page(page.read_text(encoding="utf-8"))
    assert not [a for _, a in found.elements if any(name.startswith("on") for name in a)]
    assert sum(tag == "script" and "type" not in attributes for tag, attributes in found.elements) == 2
    for text in (EVIL, "<script>hacked=2</script>", "</script><script>hacked=3</script>", "<b>few</b>", "<b>table</b>"):
        assert text in found.text


def test_tables_hold_means_and_rates(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    row = re.search(r'<tr><th scope="row">q=8</th>(.*?)</tr>', text)
    assert row
    # psnr of gic r=0 at q=8: 21 and 23
    assert re.findall("<td>(.*?)</td>", row[1]) == ["100", "0.1302", "22.00", "9.000", "50.00", "0.500", "0.250"]
    words = Page(text).text
    assert "−23.5 %" in words and "too <b>few</b> points" in words and "its weights are not here" in words


def test_pictures_come_first_and_how_it_was_made_last(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    order = [
        text.index(part)
        for part in ('id="pictures"', 'id="curves"', 'id="means"', 'id="details"', "gic test --limit 2")
    ]
    assert order == sorted(order)
    assert re.search("<details><summary>How and where this was made</summary>.*?gic test --limit 2.*?</details>", text)


def test_a_curve_has_the_colour_that_it_has_in_the_figures(page: Path, tmp_path: Path) -> None:
    results = make_results()
    save_curves(tmp_path, results, PUBLISHED)
    figure = (tmp_path / "psnr.svg").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"))
    assert found
    data = json.loads(found[1])
    colours = {curve["name"]: curve["colour"] for curve in (*data["curves"], *data["published"])}
    assert colours["gic r=0"] == STRONG[0] and colours["gic r=1"] == STRONG[1]
    assert len(set(colours.values())) == len(colours) == 6
    assert all(colour in figure for colour in colours.values())


def with_gap() -> Results:
    """Results in which NIQE has no value for the first image in one file of gic."""
    results = make_results()
    key = KEYS[0]
    images = results.curves[0].points[1].images
    images[key] = replace(images[key], metrics={**images[key].metrics, "niqe": None}, reasons={"niqe": "it is <flat>"})  # type: ignore[index]
    return replace(results, patches={"fid": 2})


def test_means_over_fewer_images_say_so(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", with_gap(), bd_rows=(), pictures=Pictures())
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    row = re.search(r'<tr><th scope="row">q=2</th>(.*?)</tr>', text)
    assert row and "<td>8.000 <small>(n = 1)</small></td>" in row[1]
    assert text.count("(n = 1)") == 1
    words = Page(text).text
    assert (
        f"NIQE has no value for 1 of 2 images at some points, and its means are over the others: {EVIL}: it is <flat>"
        in words
    )
    assert "FID, n = 2" in words
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found
    data = json.loads(found[1])
    assert [metric["over"] for metric in data["metrics"]] == ["", "n = 1 of 2 images", "n = 2 patches"]
    assert data["curves"][3]["points"][0]["values"]["niqe"][1] == 9.0  # of the other image alone


def test_files_that_browsers_show_are_embedded_as_they_are_and_only_where_they_are_shown(page: Path) -> None:
    embedded = [data for mime, data in Page(page.read_text(encoding="utf-8")).pictures if mime == "image/jpeg"]
    kept = Pictures()
    for key in KEYS:
        for setting, needed in (("quality=5", True), ("quality=30", False), ("quality=80", True)):
            data, _ = kept.file("jpeg", setting, key) or (b"", "")
            assert (data in embedded) == needed, setting
    assert len(embedded) == 4


def test_originals_are_exact_and_reconstructions_are_close(page: Path) -> None:
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for _, data in Page(page.read_text("utf-8")).pictures]
    colours = [picture.getpixel((5, 5)) for picture in pictures]
    assert ORIGINAL in colours
    for setting in SIZES["gic"]:
        want = colour("gic r=1", setting, EVIL)
        assert min(max(abs(a - b) for a, b in zip(want, got, strict=True)) for got in colours) <= 2


def test_without_avif_reconstructions_are_lossless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    write_report(tmp_path / "r.html", make_results(), bd_rows=(), pictures=Pictures())
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    found = Page(text).pictures
    assert {mime for mime, _ in found} == {"image/webp", "image/jpeg"}
    colours = [Image.open(io.BytesIO(data)).convert("RGB").getpixel((5, 5)) for _, data in found]
    assert all(colour("gic r=1", setting, EVIL) in colours for setting in SIZES["gic"])
    assert "embedded as lossless WebP" in text


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Pictures):
        def original(self, key: str) -> Image.Image:
            if key == KEYS[1]:
                raise OSError("gone")
            return super().original(key)

    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(OSError, match="gone"):
        write_report(path, make_results(), bd_rows=(), pictures=Broken())
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        write(self, data[:1000])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(path, make_results(), bd_rows=(), pictures=Pictures())
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"] and path.read_text() == "before"


def test_a_picture_of_no_measured_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"other\.png"):
        write_report(tmp_path / "r.html", make_results(), bd_rows=(), pictures=Pictures(("other.png",)))
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_unicode_is_shown_escaped(tmp_path: Path) -> None:
    results = make_results()
    results.about["checkpoint"] = "caf\udce9.ckpt"  # type: ignore[index]  # what Python makes of a Latin-1 file name
    write_report(tmp_path / "r.html", results, bd_rows=(), pictures=Pictures(()))
    assert "caf\\udce9.ckpt" in (tmp_path / "r.html").read_text(encoding="utf-8")


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chrome(page: Path) -> Iterator[Driver]:
    made = start_browser(page.as_uri())
    yield made
    made.chrome.quit()


@pytest.fixture
def browser(chrome: Driver) -> Iterator[Driver]:
    """The page, opened anew; it must not complain, and load nothing but what it holds."""
    chrome.open()
    yield chrome
    assert chrome.complaints() == []
    loaded = chrome.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(("blob:", "data:"))] == []
    assert chrome.run("return typeof hacked") == "undefined"


def near(got: tuple[int, ...], want: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(got, want, strict=True)) <= 6


def test_dragging_the_divider_moves_it_and_the_clip(browser: Driver) -> None:
    stage = browser.box("#stage")
    browser.drag("#divider", 100, 0)
    divider, clip = browser.box("#divider"), browser.find("#layer-left").value_of_css_property("clip-path")
    centre = divider["left"] + divider["width"] / 2 - stage["left"]
    assert centre == pytest.approx(stage["width"] / 2 + 100, abs=1.5)
    right = re.search(r"inset\(0(?:px|%)? ([\d.]+)%", clip)
    assert right and float(right[1]) == pytest.approx(100 * (1 - centre / stage["width"]), abs=0.2)

    # And on the screen: the original up to the divider, gic beyond it.
    browser.click_radio("zoom", "8×")
    image = Image.open(io.BytesIO(browser.chrome.get_screenshot_as_png())).convert("RGB")
    y = int(browser.box("#stage")["top"] + 60)
    x = int(stage["left"] + centre)
    assert near(image.getpixel((x - 30, y)), ORIGINAL)
    assert near(image.getpixel((x + 30, y)), colour("gic r=1", "q=2", EVIL))


def test_the_divider_obeys_the_keyboard(browser: Driver) -> None:
    from selenium.webdriver.common.keys import Keys

    def now() -> int:
        return int(browser.find("#divider").get_attribute("aria-valuenow"))

    assert now() == 50
    browser.press("#divider", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert now() == 54
    browser.press("#divider", Keys.ARROW_LEFT)
    assert now() == 52
    browser.press("#divider", Keys.HOME)
    assert now() == 0
    browser.press("#divider", Keys.ARROW_LEFT)
    assert now() == 0
    browser.press("#divider", Keys.END)
    assert now() == 100


def pictures_at(browser: Driver) -> dict[str, float]:
    """Where the pictures lie, which must be the same place for both."""
    left, right = browser.box("#layer-left img"), browser.box("#layer-right img")
    assert left == right
    return left


def test_zoom_by_buttons_keys_and_wheel(browser: Driver) -> None:
    assert pictures_at(browser)["width"] == WIDTH  # fits, and is never enlarged to fit
    for text, scale in (("8×", 8), ("2×", 2), ("4×", 4), ("1×", 1), ("fit", 1)):
        browser.click_radio("zoom", text)
        at = pictures_at(browser)
        assert (at["width"], at["height"]) == (scale * WIDTH, scale * HEIGHT)
    assert browser.find("#layer-left img").value_of_css_property("image-rendering") == "pixelated"

    browser.press("#stage", "+", "+")
    assert pictures_at(browser)["width"] == 4 * WIDTH
    assert browser.find("#zooms input:checked + span").text == "4×"
    browser.press("#stage", "-")
    assert pictures_at(browser)["width"] == 2 * WIDTH

    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    stage = browser.find("#stage")
    browser.actions().scroll_from_origin(ScrollOrigin.from_element(stage), 0, -120).perform()
    browser.until(lambda: pictures_at(browser)["width"] == 4 * WIDTH)
    browser.actions().scroll_from_origin(ScrollOrigin.from_element(stage), 0, 120).perform()
    browser.until(lambda: pictures_at(browser)["width"] == 2 * WIDTH)


def test_the_wheel_belongs_to_the_page_until_the_picture_is_clicked(browser: Driver) -> None:
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    stage = browser.find("#stage")
    browser.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", stage)
    before = browser.run("return scrollY")
    browser.actions().scroll_from_origin(ScrollOrigin.from_element(stage), 0, 100).perform()
    browser.until(lambda: browser.run("return scrollY") > before)
    assert pictures_at(browser)["width"] == WIDTH


def test_an_enlarged_picture_is_moved_and_does_not_get_lost(browser: Driver) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(width=700)
    browser.click_radio("zoom", "8×")
    stage, before = browser.box("#stage"), pictures_at(browser)
    assert before["width"] > stage["width"]
    browser.actions().move_to_element_with_offset(browser.find("#stage"), 150, 20).click_and_hold().move_by_offset(
        -40, 30
    ).release().perform()
    after = pictures_at(browser)
    assert (after["x"] - before["x"], after["y"] - before["y"]) == (-40, 30)
    assert browser.find("#divider").get_attribute("aria-valuenow") == "50"
    browser.press("#stage", *[Keys.ARROW_RIGHT] * 20)
    assert pictures_at(browser)["right"] == pytest.approx(stage["right"], abs=1)
    browser.press("#stage", *[Keys.ARROW_UP] * 20)
    assert pictures_at(browser)["top"] == pytest.approx(stage["top"], abs=1)


def test_rate_realism_and_image_change_the_picture(browser: Driver) -> None:
    from selenium.webdriver.common.keys import Keys

    assert browser.shown("left") == ORIGINAL
    assert near(browser.shown("right"), colour("gic r=1", "q=2", EVIL))
    browser.press("#rate", Keys.ARROW_RIGHT)
    browser.settle()
    assert near(browser.shown("right"), colour("gic r=1", "q=0.5", EVIL))
    assert browser.find("#rate").get_attribute("aria-valuetext").startswith("q=0.5: 900 bytes, 1.172 bpp")
    browser.click_radio("decoding", "gic r=0")
    assert near(browser.shown("right"), colour("gic r=0", "q=0.5", EVIL))
    browser.click_radio("image", "plain.png")
    assert near(browser.shown("right"), colour("gic r=0", "q=0.5", "plain.png"))


def test_both_decodings_of_one_file_side_by_side(browser: Driver) -> None:
    browser.choose("#left", "0")
    assert near(browser.shown("left"), colour("gic r=0", "q=2", EVIL))
    assert near(browser.shown("right"), colour("gic r=1", "q=2", EVIL))
    browser.find("#swap").click()
    browser.settle()
    assert near(browser.shown("left"), colour("gic r=1", "q=2", EVIL))
    assert near(browser.shown("right"), colour("gic r=0", "q=2", EVIL))


def test_baselines_come_at_the_nearest_size(browser: Driver) -> None:
    jpeg, jxl = "2", "3"
    for rate, nearest in ((0, "quality=5"), (1, "quality=5"), (2, "quality=80")):
        browser.choose("#rate", str(rate))
        browser.choose("#left", jpeg)
        assert near(browser.shown("left"), colour("jpeg", nearest, EVIL))
    # 200 bytes of gic: jxl's 190 are nearer than jpeg's 110.
    browser.choose("#rate", "1")
    browser.choose("#left", "closest")
    assert near(browser.shown("left"), colour("jxl", "distance=9", EVIL))
    assert browser.find("#name-left").text == "jxl distance=9"
    assert browser.find("#comparison tbody td").text == "190 (−5 %)"
    # A picture that was not kept is missed in words.
    browser.choose("#left", jxl)
    browser.click_radio("image", "plain.png")
    assert browser.find("#layer-left").text == "No picture was kept of this point."


def test_values_of_both_sides_are_stated(browser: Driver) -> None:
    def rows() -> dict[str, list[str]]:
        found = browser.chrome.find_elements("css selector", "#comparison tbody tr")
        cells = [[cell.text for cell in row.find_elements("css selector", "th, td")] for row in found]
        return {head: values for head, *values in cells}

    assert rows() == {
        "bytes": ["–", "200"],
        "bits per pixel": ["–", "0.2604"],
        "PSNR ↑": ["–", "24.00"],
        "NIQE ↓": ["3.500", "7.000"],  # of the original too
        "encode, s": ["–", "0.500"],
        "decode, s": ["–", "0.250"],
    }
    browser.choose("#left", "0")
    assert rows()["PSNR ↑"] == ["25.00", "24.00"] and rows()["NIQE ↓"] == ["8.000", "7.000"]
    better = browser.chrome.find_elements("css selector", "#comparison .better")
    assert [cell.text for cell in better] == ["25.00", "7.000"]


def hover(browser: Driver, metric: int, trace: int, point: int) -> str:
    """Put the pointer on a point of a chart; what the label says."""
    browser.run("document.querySelectorAll('.plot')[arguments[0]].scrollIntoView({block: 'center'})", metric)
    points = f".chart:nth-child({metric + 1}) .scatterlayer .trace:nth-child({trace + 1}) .point"
    browser.until(lambda: len(browser.chrome.find_elements("css selector", points)) > point)
    marker = browser.chrome.find_elements("css selector", points)[point]
    label = f".chart:nth-child({metric + 1}) .hoverlayer .hovertext"

    def labelled() -> bool:
        browser.actions().move_to_element_with_offset(marker, 1, 1).move_to_element(marker).perform()
        return bool(browser.chrome.find_elements("css selector", label))

    browser.until(labelled)
    lines = browser.run(
        "const t = document.querySelector(arguments[0] + ' text.nums');"
        "return t.children.length ? [...t.children].map(line => line.textContent) : [t.textContent]",
        label,
    )
    return "\n".join(lines)


def test_pointing_at_a_curve_reads_its_values(browser: Driver) -> None:
    # Published curves are drawn first, below the measured ones.
    assert hover(browser, 0, 3, 2) == "gic r=1\nq=0.5\n1.172 bpp\nPSNR 29.00 dB"
    assert hover(browser, 2, 0, 0) == "gic r=0\nq=8\n0.130 bpp\nFID 50.00"
    assert hover(browser, 0, 0, 1) == "HiFiC <b>2</b>\n0.900 bpp\nPSNR 24.90 dB\npublished"


def test_published_points_are_hollow_and_dashed(browser: Driver) -> None:
    hover(browser, 0, 0, 0)
    styles = browser.run(
        "return [...document.querySelectorAll('.chart:first-child .trace')].map(trace => {"
        "  const line = getComputedStyle(trace.querySelector('.js-line'));"
        "  return [line.strokeDasharray !== 'none', getComputedStyle(trace.querySelector('.point')).fill === 'none'] })"
    )
    assert styles == [[True, True]] * 2 + [[False, False]] * 4


def test_a_click_in_the_legend_hides_a_curve_everywhere(browser: Driver) -> None:
    def drawn() -> list[int]:
        script = "return [...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.trace').length)"
        return browser.run(script)

    browser.run("document.querySelector('#curves').scrollIntoView()")

    def button(text: str):
        return next(b for b in browser.chrome.find_elements("css selector", ".legend button") if b.text == text)

    browser.until(lambda: drawn() == [6, 4, 4])
    button("jpeg").click()
    browser.until(lambda: drawn() == [5, 3, 3])
    assert button("jpeg").get_attribute("aria-pressed") == "false"
    button("jpeg").click()
    browser.until(lambda: drawn() == [6, 4, 4])
    button("all published").click()
    browser.until(lambda: drawn() == [4, 4, 4])
    assert button("ELIC").get_attribute("aria-pressed") == "false"
    button("ELIC").click()
    browser.until(lambda: drawn() == [5, 4, 4])


def test_pictures_wait_until_they_are_looked_at(browser: Driver) -> None:
    waiting = "return document.querySelectorAll('script[type=\"text/plain\"]').length"
    before = browser.run(waiting)
    browser.choose("#rate", "0")
    assert browser.run(waiting) == before - 1
    browser.choose("#rate", "1")
    browser.choose("#rate", "0")
    assert browser.run(waiting) == before - 1


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_the_window_and_can_be_read(browser: Driver, width: int, scheme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.open(width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.box("#stage")["width"] > 0.6 * width
    luminances = []
    for name in ("color", "background-color"):
        colours = re.findall(r"\d+", browser.find("body").value_of_css_property(name))[:3]
        parts = [int(c) / 255 for c in colours]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        luminances.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])
    ink, paper = luminances
    assert (ink < paper) == (scheme == "light")
    assert (max(luminances) + 0.05) / (min(luminances) + 0.05) > 7  # WCAG 2, level AAA


@pytest.mark.parametrize("width", [400, 1280])
def test_the_picture_is_on_the_first_screen(browser: Driver, width: int) -> None:
    browser.open(width)
    box = browser.box("#stage")
    assert box["top"] + box["height"] < 900


def test_every_control_has_a_name(browser: Driver) -> None:
    assert browser.nameless() == []
