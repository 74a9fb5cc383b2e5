"""The page in Chromium, used as a person would: skipped without Chromium or playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from aesthetic.request import Request
from aesthetic.service import Service

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
serving = pytest.importorskip("aesthetic.ui.serving", reason="gradio is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
SMALL = {"Width": "128", "Height": "128"}


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    def check(request: Request) -> None:
        pass

    with serving.launched(service, check, "127.0.0.1", None) as blocks:
        yield blocks.local_url


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: sync_api.Browser, address: str) -> Iterator[sync_api.Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    tab = context.new_page()
    sent: list[str] = []
    tab.on("request", lambda request: sent.append(request.url))
    tab.goto(address)
    yield tab
    context.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in sent)


def test_draws(tab: sync_api.Page) -> None:
    tab.get_by_label("Prompt", exact=True).fill("the cat")
    tab.get_by_role("button", name="Draw", exact=True).click()
    tab.wait_for_timeout(20000)
    tab.screenshot(path="/tmp/page-t1.png", full_page=True)
