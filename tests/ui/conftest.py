"""What the tests of the page share: pictures, a desk with a studio of nano behind it, the page as a process, and a browser."""

import shutil

import numpy as np
import pytest
from opened import Running

from lynx_video.media.image import write_picture
from lynx_video.nano.people import portrait as draw
from lynx_video.studio.setup import Setup

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUICK = {"num_inference_steps": 3, "num_frames": 5}
"""A clip that takes a fraction of a second."""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Files by name: one face, three faces, a small one, none, a text, a dot, and a header of 100 megapixels."""
    folder = tmp_path_factory.mktemp("pictures")
    files = {name: folder / f"{name}.png" for name in ("one", "three", "small", "none", "text", "dot", "huge")}
    write_picture(files["one"], draw(3))
    write_picture(files["three"], np.concatenate([draw(5), draw(8), draw(11)], axis=1))
    small = np.full((256, 256, 3), 200, np.uint8)
    small[60:130, 60:130] = draw(5, 70)
    write_picture(files["small"], small)
    write_picture(files["none"], np.full((256, 256, 3), 120, np.uint8))
    files["text"].write_text("this is no picture")
    write_picture(files["dot"], np.zeros((1, 1, 3), np.uint8))
    write_picture(files["huge"], np.zeros((10_000, 10_000, 3), np.uint8))
    return files


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """An open desk on nano, with folders of its own; its queue serves all tests."""
    from lynx_video.ui.session import Desk

    folder = tmp_path_factory.mktemp("desk")
    scratch = folder / "scratch"
    scratch.mkdir()
    opened = Desk(Setup(), folder / "clips", scratch)
    opened.open()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def form(desk):
    """form(prompt=..., values={...}, ...) is a form with few steps, filled in as asked."""
    from lynx_video.ui.session import Form

    def make(values=None, **more):
        settings = {**desk.settings(more.get("preset", "exact")), **QUICK, **(values or {})}
        return Form(values=settings, **{"prompt": "the person smiles in front of a red wall", **more})

    return make


@pytest.fixture(scope="module")
def page_process(tmp_path_factory):
    """The page on nano, started once; its clips lie in `folder / "clips"`."""
    running = Running(tmp_path_factory.mktemp("page"))
    yield running
    assert running.stop() == (0, [])


@pytest.fixture(scope="module")
def chromium():
    """A headless browser. For one module: as long as it is there, an event loop runs in this thread, and no other can."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """visit(running, width) opens the page; what the browser complains of, or asks of others, fails the test at its end.

    leaves: the page is left or its process ended while they talk, of which the browser complains with reason.
    """
    complaints, pages = [], []

    def open_page(running, width=1280, *, leaves=False, **settings):
        page = chromium.new_page(viewport={"width": width, "height": 900 if width > 640 else 844}, **settings)
        page.set_default_timeout(90_000)
        if not leaves:
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: _same_machine(request.url, running.url, complaints))
        page.goto(running.url)
        page.wait_for_selector("#make")
        page.wait_for_selector("text=/exact: about/")  # the first estimate is there: the page is at rest
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def _same_machine(asked, address, complaints):
    if not asked.startswith((address, "data:", "blob:")):
        complaints.append(f"the page asks for {asked}")
