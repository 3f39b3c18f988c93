"""The documentation site: built strictly, whole, and from this host alone."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from browser import start_browser
from places import REPOSITORY

import gic

pytestmark = pytest.mark.skipif(
    find_spec("mkdocs") is None or find_spec("material") is None, reason="mkdocs is not installed"
)
LOADED = dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src")
"""Elements that load what an attribute names; of ``link`` it depends on its ``rel``."""
NOT_LOADED = {"canonical", "prev", "next", "alternate", "edit"}


def build(config: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(target)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    run = build(REPOSITORY / "mkdocs.yml", target)
    assert run.returncode == 0, run.stderr
    return target


class Page(HTMLParser):
    """What a page loads, what it links to, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.style = ""
        self._in_style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.style += values.get("style", "") + "\n"
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag in LOADED and LOADED[tag] in values:
            self.loads.append(values[LOADED[tag]])
        if "srcset" in values:
            self.loads += [part.split()[0] for part in values["srcset"].split(",")]
        if tag == "link" and not NOT_LOADED & set(values.get("rel", "").split()):
            self.loads.append(values["href"])
        elif tag in ("a", "link") and "href" in values:
            self.links.append(values["href"])

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data


def urls(style: str) -> list[str]:
    """What a style sheet loads."""
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.S)
    return [match[1] or match[2] for match in re.finditer(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", style)]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def from_elsewhere(loads: list[str]) -> list[str]:
    return [url for url in loads if urlsplit(url).netloc or urlsplit(url).scheme not in ("", "data")]


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    found = {str(path): from_elsewhere(page.loads + urls(page.style)) for path, page in pages.items()}
    found |= {str(path): from_elsewhere(urls(path.read_text())) for path in site.rglob("*.css")}
    assert {path: urls for path, urls in found.items() if urls} == {}
    assert sum(len(page.loads) for page in pages.values()) > 100
    own = REPOSITORY / "docs" / "assets"
    assert not [path for path in own.iterdir() if re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text())]


def broken(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if parts.path.startswith("/") or not target.is_relative_to(site) or not target.is_file():
                yield f"{path.relative_to(site)}: no file {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path.relative_to(site)}: no anchor {link}"


def test_every_internal_link_and_anchor_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    inner = {path: page for path, page in pages.items() if path.name != "404.html"}  # its links start at the root
    assert list(broken(site, inner)) == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_every_public_name_is_in_the_api_reference(site: Path, pages: dict[Path, Page]) -> None:
    documented = set().union(*(page.anchors for path, page in pages.items() if path.is_relative_to(site / "api")))
    assert [name for name in gic.__all__ if f"gic.{name}" not in documented] == []
    for name in ("gic.ImageCodec.compress", "gic.codec.encoder.Encoding.compress", "gic.method.samplers.reverse"):
        assert name in documented


def test_docstrings_are_rendered(site: Path) -> None:
    """No roles of Sphinx, no marks of sections and no doctests are left in the text of the API's pages."""
    left = [path.name for path in sorted((site / "api").glob("*.html")) if "# doctest:" in path.read_text()]
    for path in sorted((site / "api").glob("*.html")):
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", path.read_text(), flags=re.S)
        text = re.sub(r"<span class=\"doc-section-title\">.*?</span>", "", text, flags=re.S)
        text = re.sub(r"<[^>]+>", "", text)
        sections = r"^\s*(?:Args|Returns|Raises|Examples?|Yields):\s*$"
        for mark in (r":(?:func|class|meth|mod|data|attr):", sections, r"&gt;&gt;&gt; ", r"={4,}", r"`", r"::\s*$"):
            left += [f"{path.name}: {line.strip()[:80]}" for line in text.splitlines() if re.search(mark, line)]
    assert left == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see :func:`gic.load`", 'see <autoref optional identifier="gic.load"><code>gic.load</code></autoref>'),
        ("see :func:`~gic.load`", 'see <autoref optional identifier="gic.load"><code>load</code></autoref>'),
        (">>> f(1)  # doctest: +SKIP\n[[2]]\n\nMore.", "```pycon\n>>> f(1)\n[[2]]\n```\n\nMore."),
        ("Example:\n    >>> f(1)", "Examples:\n    >>> f(1)"),
        ("So::\n\n    f(1)\n", "So:\n\n    f(1)\n"),
        ("\n::\n\n    f(1)\n", "\n\n    f(1)\n"),
        ("a ``code``, `more` and a[1][2]", "a ``code``, `more` and a[1][2]"),
    ],
)
def test_docstrings_become_markdown(text: str, expected: str) -> None:
    spec = importlib.util.spec_from_file_location("docstrings", REPOSITORY / "docs" / "tools" / "docstrings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.markdown(text) == expected


def test_every_page_of_docs_is_in_the_navigation(site: Path) -> None:
    import yaml

    (nav,) = re.findall(r"^nav:\n.*\Z", (REPOSITORY / "mkdocs.yml").read_text(), re.S | re.M)
    listed = set()

    def walk(node: object) -> None:
        if isinstance(node, str):
            listed.add(node)
        elif isinstance(node, dict):
            walk(list(node.values()))
        elif isinstance(node, list):
            for each in node:
                walk(each)

    walk(yaml.safe_load(nav)["nav"])
    docs = REPOSITORY / "docs"
    assert {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} <= listed


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources of a small site with the same settings, to break."""
    for name in ("docs/tools", "docs/assets", "gic", "slurm", "data"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name in ("docs/tools", "slurm", "data"):
            shutil.copytree(REPOSITORY / name, tmp_path / name)
        else:
            (tmp_path / name).symlink_to(REPOSITORY / name)
    text = (REPOSITORY / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(text[: text.index("\nnav:")] + "\nnav: [index.md]\n")
    (tmp_path / "elsewhere.txt").write_text("a file outside docs/")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a](../elsewhere.txt) [b](#here)\n\n## Here\n", ""),
        ("`[a](../nowhere.txt)`\n\n```\n[a](../nowhere.txt)\n```\n", ""),  # code
        ("[a](../nowhere.txt)", "no file ../nowhere.txt"),
        ("[a](../gic)", "no file ../gic"),
        ("[a](nowhere.md)", "nowhere.md"),
        ("[a](#nowhere)", "#nowhere"),
        ("![a](nowhere.png)", "nowhere.png"),
        ("::: gic.nowhere", "gic.nowhere"),
    ],
)
def test_a_link_that_leads_nowhere_fails_the_build(text: str, said: str, copy: Path) -> None:
    (copy / "docs" / "index.md").write_text(f"# Start\n\n{text}")
    pages = copy / "docs" / "tools" / "links.py"
    pages.write_text(re.sub(r"^PAGES = \{.*?\}", "PAGES: dict[str, str] = {}", pages.read_text(), flags=re.S | re.M))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(copy / "site")]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    if said:
        assert run.returncode != 0 and said in run.stderr, run.stderr
    else:
        assert run.returncode == 0, run.stderr
        assert (copy / "site" / "repository" / "elsewhere.txt").is_file() == ("elsewhere" in text)


# --- the first page in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    browser = start_browser("about:blank").chrome
    yield browser
    browser.quit()


def opened(chrome: Any, page: Path, width: int, scheme: str = "light") -> Any:
    """Show a page in a window of a width; returns what runs scripts in it."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chrome.get(page.as_uri())
    return chrome.execute_script


PICTURES = """
const stage = document.querySelector('.compare .stage');
const images = ['.left', '.right'].map((name) => stage.querySelector(name));
const box = (element) => {
  const b = element.getBoundingClientRect();
  return [b.x, b.y, b.width, b.height].map(Math.round);
};
return {
  boxes: [stage, ...images].map(box),
  divider: box(stage.querySelector('.divider')),
  names: images.map((image) => image.src.split('/').pop()),
  loaded: images.every((image) => image.complete && image.naturalWidth > 0),
};
"""


@pytest.mark.parametrize("width", [400, 1300])
def test_the_divider_moves_by_keyboard_and_pointer(site: Path, chrome: Any, width: int) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    run = opened(chrome, site / "index.html", width)
    WebDriverWait(chrome, 30).until(lambda _: run(PICTURES)["loaded"])
    seen = run(PICTURES)
    stage, left, right = seen["boxes"]
    assert left == right == stage and stage[2] > 0.8 * min(width, 700)  # one lies on the other
    assert seen["names"] == ["original.webp", "gic-r1.webp"]
    assert seen["divider"][0] == pytest.approx(stage[0] + stage[2] / 2, abs=3)

    divider = chrome.find_element("css selector", ".compare input[type=range]")
    divider.send_keys(Keys.HOME)
    assert run(PICTURES)["divider"][0] == pytest.approx(stage[0], abs=3)
    divider.send_keys(Keys.ARROW_RIGHT)
    assert divider.get_attribute("value") == "1"
    divider.send_keys(Keys.END)
    assert run(PICTURES)["divider"][0] == pytest.approx(stage[0] + stage[2], abs=3)
    size = json.loads((REPOSITORY / "docs/images/slider/slider.json").read_text())["pictures"]["gic-r1"]["bytes"]
    assert divider.get_attribute("aria-valuetext") == f"100 % original, the rest gic, realism 1: {size} bytes"
    ActionChains(chrome, duration=20).move_to_element(divider).click().perform()
    assert int(divider.get_attribute("value")) == pytest.approx(50, abs=2)

    menu = chrome.find_element("css selector", ".compare select:last-child")
    menu.send_keys(Keys.END)
    assert run(PICTURES)["names"] == ["original.webp", "avif.webp"]
    nameless = "return [...document.querySelectorAll('.compare :is(input, select)')].filter(e => !e.ariaLabel).length"
    assert run(nameless) == 0
    assert [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_search_works_where_the_site_is_on_a_disk(site: Path, chrome: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    run = opened(chrome, site / "api" / "index.html", 1300)
    chrome.find_element("css selector", ".md-search__input").send_keys("restart")
    results = (
        "return [...document.querySelectorAll('.md-search-result__link')].map((link) => link.href.split('/').pop())"
    )
    WebDriverWait(chrome, 30).until(lambda _: run(results))
    assert any(link.startswith("method.html") for link in run(results))


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


@pytest.mark.parametrize("width", [400, 1300])
def test_pages_fit_the_window(site: Path, chrome: Any, width: int) -> None:
    wide = []
    for path in sorted({*site.rglob("*.html")} - {site / "404.html"}):
        if opened(chrome, path, width)("return document.documentElement.scrollWidth") > width:
            wide.append(path.relative_to(site).as_posix())
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index.html", "design.html", "api/method.html"])
def test_pages_can_be_read(site: Path, chrome: Any, page: str, scheme: str) -> None:
    run = opened(chrome, site / page, 1300, scheme)
    colours = run(
        "const of = (selector) => getComputedStyle(document.querySelector(selector));"
        "return [of('body').backgroundColor, of('body').color, of('article a[href]:not(.headerlink)').color]"
    )
    paper, ink, link = map(luminance, colours)
    assert (paper > ink) == (scheme == "light")
    assert contrast(paper, ink) > 7  # WCAG 2, level AAA
    assert contrast(paper, link) > 4.5  # level AA


def test_the_first_page_shows_its_pictures_without_a_script(site: Path) -> None:
    page = Page(site / "index.html")
    assert sum("images/slider/" in url for url in page.loads) == 4
