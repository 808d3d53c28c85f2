"""The page in Chromium: every tab, by mouse and by keyboard, at phone and desktop width, and nothing from elsewhere.

The pictures of docs/playground.md come from a page of trained models, which runs without the checks of types:
PLAY_ADDRESS=http://127.0.0.1:7860/ PLAY_PICTURES=pictures python -m pytest tests/playground/test_page.py -k every_width
"""

import os
import re
from pathlib import Path

import pytest
from chromium import changes, chromium, drag, first_image, open_page
from PIL import Image
from playing import write_run

from pmf_lightning import compose

pytest.importorskip("gradio", reason="the extra play is not installed")
PORT = 18650
PICTURES = {"Draw": "#draw-images", "Walk": "#walk-map", "Compare": "#compare-images", "Inside": "#inside-fields"}


def free_port():
    """A port of this process's own, so that tests may run side by side."""
    return PORT + os.getpid() % 1000


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of three small models, or the one that the pictures are made of."""
    chromium()
    if "PLAY_ADDRESS" in os.environ:
        yield os.environ["PLAY_ADDRESS"]
        return
    from pmf_lightning.commands.play import served

    folder = tmp_path_factory.mktemp("runs")
    runs = [str(write_run(folder / kind, kind)) for kind in ("pmf_tiny", "jit_tiny", "drifting_tiny")]
    options = [f"ckpt=[{','.join(runs)}]", "open=false", f"port={free_port()}", f"cache_dir={folder}"]
    with served(compose(options, "play")) as (address, _):
        yield address


def show(page, tab):
    page.get_by_role("tab", name=tab).click()
    page.locator(f"{PICTURES[tab]} img").first.wait_for()


@pytest.mark.slow
def test_draw_follows_the_hand(address):
    with open_page(address) as page:
        page.locator("#draw-images img").first.wait_for()
        assert page.locator("#draw-images img").count() == 20
        page.evaluate(
            "() => { window.seen = new Set(); new MutationObserver(() => { const i = "
            "document.querySelector('#draw-images img'); if (i) window.seen.add(i.src); }).observe("
            "document.querySelector('#draw-images'), {childList: true, subtree: true, attributes: true}); }"
        )
        changes(page, "#draw-images", lambda: drag(page, "seed"))
        page.wait_for_timeout(1000)
        assert page.evaluate("() => window.seen.size") > 1, "the images change before the hand rests"
        for slider in ("steps", "guidance scale", "guidance from t"):
            changes(page, "#draw-images", lambda slider=slider: drag(page, slider))
        cost = page.locator("#draw-cost").inner_text()
        assert re.search(r"[\d.]+ ms per image\s+\d+ network evaluation", cost)
        page.get_by_label("class", exact=True).locator("visible=true").click()
        changes(page, "#draw-images", lambda: page.get_by_role("option", name="7", exact=True).click())
        slider = page.get_by_label("range slider for seed", exact=True).locator("visible=true")
        slider.focus()
        changes(page, "#draw-images", lambda: slider.press("ArrowRight"))  # without a mouse
        page.get_by_label("model", exact=True).click()
        changes(page, "#draw-images", lambda: page.get_by_role("option", name="drifting_tiny").click())
        assert not page.get_by_label("range slider for steps", exact=True).locator("visible=true").count()


@pytest.mark.slow
def test_walk_between_corners_and_classes(address, tmp_path):
    with open_page(address) as page:
        show(page, "Walk")
        changes(page, "#walk-here .here", lambda: drag(page, "from A to B"))
        changes(page, "#walk-here .here", lambda: drag(page, "from the first class to the second"))
        changes(page, "#walk-map", lambda: drag(page, "noise A"))
        assert page.locator("#walk-map img").count() == 27
        page.get_by_role("radio", name="4").click()
        page.locator("#pad .dot").wait_for()
        box = page.locator("#pad .area").bounding_box()
        changes(page, "#walk-here .here", lambda: page.mouse.click(box["x"] + 20, box["y"] + 150))
        where = page.get_by_label("range slider for from A, B to C, D", exact=True)
        page.wait_for_function("input => input.value > 0.7", arg=where.element_handle())
        changes(page, "#walk-here .here", lambda: page.locator("#pad [role=application]").press("ArrowRight"))
        page.get_by_text("a film of the walk").click()
        page.locator("#film-button").click()
        link = page.locator("#film a").first
        with page.expect_download() as loading:
            link.click()
        loading.value.save_as(tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as film:
        assert film.n_frames == 48


@pytest.mark.slow
def test_compare_and_inside(address):
    with open_page(address) as page:
        show(page, "Compare")
        assert page.locator("#compare-images section").count() == 3
        changes(page, "#compare-images", lambda: drag(page, "seed"))
        assert "NFE" in page.locator("#compare-images").inner_text()
        show(page, "Inside")
        assert page.locator("#inside-fields table").count() == 2
        page.locator("#inside-near img").first.wait_for()
        assert re.search(r"% of held-out images", page.locator("#inside-near").inner_text())
        before = first_image(page, "#inside-near")
        changes(page, "#inside-fields", lambda: drag(page, "seed"))
        page.wait_for_function("old => document.querySelector('#inside-near img').src !== old", arg=before)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1280, 1920])
def test_every_width_in_light_and_dark(address, width, scheme, tmp_path):
    folder = Path(os.environ.get("PLAY_PICTURES", tmp_path))
    with open_page(address, width, scheme=scheme) as page:
        page.locator("#draw-images img").first.wait_for()
        for tab in PICTURES:
            show(page, tab)
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width, "it scrolls sideways"
            page.wait_for_timeout(800)
            path = folder / f"play_{tab.lower()}_{width}_{scheme}.png"
            page.screenshot(path=path)
            with Image.open(path) as picture:
                ground = sum(picture.convert("RGB").getpixel((3, 3)))
            assert (ground < 200) == (scheme == "dark")
