"""The static page in headless Chromium: it draws, equals ``sample``, and asks no other host for anything."""

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import families
import pytest
import torch

from pmf_lightning import UserError, compose, sample_images
from pmf_lightning.convert import convert
from pmf_lightning.exporting import web_page

ROOT = Path(__file__).resolve().parents[2]


def runtime():
    """The folder of onnxruntime-web, or a skip: PMF_ONNXRUNTIME_WEB, or node_modules of the checkout."""
    place = os.environ.get("PMF_ONNXRUNTIME_WEB", str(ROOT / "node_modules" / "onnxruntime-web"))
    if not Path(place).is_dir():
        pytest.skip(f"no onnxruntime-web at {place}: npm install onnxruntime-web, or set PMF_ONNXRUNTIME_WEB")
    return place


def chromium():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return found


def export(family, folder, *changes):
    source = families.write(folder / f"{family}-weights", family)
    convert(compose([f"in={source}", f"out={folder / 'page'}", "format=web", *changes], "convert"))
    return folder / "page"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the page, served as any static host does."""
    chromium()
    folder = export("pmf", tmp_path_factory.mktemp("web"), f"web.runtime={runtime()}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """A handler that prints nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture
def page(address):
    """The opened page; at the end nothing was asked of another host and the console is empty."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    asked, said = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.get_by_text("nothing is sent").wait_for(timeout=120_000)
        yield page
        browser.close()
    assert len(asked) >= 8
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert said == []


def shown(page):
    return page.evaluate("document.getElementById('picture').toDataURL()")


@pytest.mark.slow
def test_images_are_those_of_sample(page):
    code = "async ([k, label, omega]) => Array.from(await page.draw(page.corners[k], label, omega))"
    for k, (label, omega) in enumerate([(3, 3.0), (7, 3.0), (0, 1.5), (5, 6.0)]):
        image = torch.tensor(page.evaluate(code, [k, label, omega])).view(1, 1, 32, 32).clamp(-1, 1)
        expected = sample_images(families.module("pmf"), [label], seed=0, first=k, omega=omega)
        assert (image - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_it_draws_while_the_mouse_moves_and_by_keys(page):
    box = page.locator("#picture").bounding_box()
    seen = [shown(page)]
    for x in (0.2, 0.8):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + 0.3 * box["height"])
        page.wait_for_timeout(300)
        seen.append(shown(page))
    page.locator("#picture").focus()
    page.keyboard.press("Shift+ArrowDown")
    page.wait_for_timeout(300)
    seen.append(shown(page))
    page.get_by_label("seven").focus()
    page.keyboard.press("Space")
    page.wait_for_timeout(300)
    seen.append(shown(page))
    page.locator("#omega").fill("7.5")
    page.wait_for_timeout(300)
    seen.append(shown(page))
    page.get_by_role("button", name="New noises").click()
    page.wait_for_timeout(300)
    seen.append(shown(page))
    assert len(set(seen)) == len(seen)
    assert page.inner_text("#time").endswith(" ms")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_missing_runtime_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"web.runtime: node_modules/onnxruntime-web is not .*npm install onnxruntime-web"
    ):
        export("pmf", tmp_path)
    with pytest.raises(UserError, match=r"web.runtime=/nowhere: it is not the npm package onnxruntime-web"):
        web_page.find_runtime("/nowhere")


@pytest.fixture
def empty_runtime(tmp_path):
    (tmp_path / "ort" / "dist").mkdir(parents=True)
    for name in web_page.RUNTIME:
        (tmp_path / "ort" / "dist" / name).touch()
    return f"web.runtime={tmp_path / 'ort'}"


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        (
            "pmf",
            "web.most_mb=0.01",
            r"web.most_mb=0.01: the model has 0\.\d MB, too large for a page; export a smaller",
        ),
        (
            "jit",
            "web.most_mb=20",
            "format=web: this model makes an image in 2 steps, and a page takes one; give a model of one step, or set",
        ),
        ("imf", "web.most_mb=20", "format=web: this model makes latents, and a page has no decoder"),
        ("mae", "web.most_mb=20", "mae_tiny generates no images; give a generator"),
    ],
)
def test_models_that_no_page_can_show_are_refused(family, change, words, tmp_path, empty_runtime):
    with pytest.raises(UserError, match=words):
        export(family, tmp_path, change, empty_runtime)
    assert not (tmp_path / "page").exists()
