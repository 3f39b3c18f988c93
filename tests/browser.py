"""A browser without a window, for the tests of pages; skipped where there is none."""

from __future__ import annotations

import shutil

import pytest


def start_browser(url: str) -> Driver:
    """A browser for a page, which is not opened yet; its `chrome` is to be quit."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with its chromedriver: how the page behaves is not tested")
    return Driver(url, chromium, driver)


class Driver:
    """A headless Chromium that shows a page with the stage."""

    def __init__(self, url: str, chromium: str, driver: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.chrome = webdriver.Chrome(options=options, service=Service(driver))
        self.url = url
        self.run = self.chrome.execute_script

    def open(self, width: int = 1280, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.chrome.get(self.url)
        self.settle()

    def find(self, selector: str):
        return self.chrome.find_element("css selector", selector)

    def until(self, condition) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.chrome, 60, poll_frequency=0.05).until(lambda _: condition())

    def settle(self) -> None:
        """Wait until both sides show what they are to show."""
        script = "return [...document.querySelectorAll('.layer')].every(l => l.dataset.shown === l.dataset.wanted)"
        self.until(lambda: self.run(script))

    def choose(self, selector: str, value: str) -> None:
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('change'))",
            selector,
            value,
        )
        self.settle()

    def shown(self, side: str) -> tuple[int, ...]:
        """Colour of the picture on a side."""
        script = """
            const image = document.querySelector(`#layer-${arguments[0]} img`);
            const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
            context.drawImage(image, 0, 0);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        """
        return tuple(self.run(script, side))

    def box(self, selector: str) -> dict[str, float]:
        return self.run("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector)

    def actions(self):
        from selenium.webdriver.common.action_chains import ActionChains

        return ActionChains(self.chrome, duration=20)

    def drag(self, selector: str, x: int, y: int) -> None:
        self.actions().click_and_hold(self.find(selector)).move_by_offset(x, y).release().perform()

    def press(self, selector: str, *keys: str) -> None:
        self.find(selector).send_keys(*keys)

    def click_radio(self, name: str, text: str) -> None:
        labels = self.chrome.find_elements("css selector", f"label:has(input[name={name}])")
        next(label for label in labels if label.text == text).click()
        self.settle()

    def complaints(self) -> list[dict[str, object]]:
        """What the browser's console says since the last time."""
        return [entry for entry in self.chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def nameless(self) -> list[str]:
        """Controls that have no name for those who do not see them."""
        return self.run("""
            return [...document.querySelectorAll("input, select, button, [tabindex]")].filter((e) =>
              !(e.labels && [...e.labels].some((label) => label.textContent.trim())) &&
              !e.getAttribute("aria-label") && (e.tagName === "SELECT" || !e.textContent.trim()))
              .map((e) => e.outerHTML.slice(0, 80))
        """)
