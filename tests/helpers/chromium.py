"""Chromium without a window, and what it complains about; playwright's driver with the machine's own browser."""

import shutil
from contextlib import contextmanager

import pytest


def chromium():
    """The browser, or a skip that says what is missing."""
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright is here: pip install playwright")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is here: apt-get install chromium")
    return driver, browser


@contextmanager
def open_page(address, width=1280, height=900, scheme="light"):
    """A page at ``address``; at the end nothing may have been logged as an error or asked of another host."""
    driver, browser = chromium()
    wrong = []
    with driver.sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        context = window.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else wrong.append(r.url))
        page.goto(address)
        yield page
        window.close()
    assert not wrong, wrong


def first_image(page, place):
    """The address of the first image of a place."""
    return page.locator(f"{place} img").first.get_attribute("src")


def changes(page, place, act):
    """Do ``act`` and wait until the first image of a place is another."""
    before = first_image(page, place)
    act()
    there = "([place, old]) => { const i = document.querySelector(place + ' img'); return i && i.src !== old; }"
    page.wait_for_function(there, arg=[place, before])


def drag(page, label, start=0.2, end=0.8):
    """Drag the visible slider of a name with the mouse."""
    slider = page.get_by_label(f"range slider for {label}", exact=True).locator("visible=true").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    at = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], at)
    page.mouse.down()
    for step in range(1, 13):
        page.mouse.move(box["x"] + (start + (end - start) * step / 12) * box["width"], at)
        page.wait_for_timeout(60)
    page.mouse.up()
