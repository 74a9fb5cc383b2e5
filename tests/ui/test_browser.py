"""The page in Chromium, used as a person would: skipped where Chromium, playwright or gradio is absent."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from aesthetic import cancellation
from aesthetic.cli.arguments import check_drawing
from aesthetic.embeddings import embedding
from aesthetic.service import Service

pytest.importorskip("gradio", reason="gradio is not installed: requirements-ui.txt")
sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

OPENING: dict[str, Any] = {"prompt": "the cat", "aesthetic_steps": 2, "seed": 7, "aesthetic_sweep": "0,1,2"}
OPENING |= {"width": 128, "height": 128, "num_inference_steps": 3, "scheduler": "DDIM"}
TIMEOUT = 60_000  # ms


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    from aesthetic.ui import page

    with page.launched(service, lambda request: check_drawing(request, None), OPENING) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Any, address: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A browser's window, whose tabs ask nobody but the page's own server."""
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    window = chromium.new_context(viewport={"width": 1200, "height": 900})
    window.set_default_timeout(TIMEOUT)
    asked: list[str] = []
    window.on("request", lambda request: asked.append(request.url))
    yield window
    window.close()
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture
def tab(context: Any, address: str) -> Any:
    return opened(context, address)


def opened(context: Any, address: str) -> Any:
    tab = context.new_page()
    tab.goto(address)
    button(tab, "Draw").wait_for()
    return tab


def button(tab: Any, name: str) -> Any:
    return tab.get_by_role("button", name=name, exact=True).locator("visible=true")


def wait_for(tab: Any, text: str) -> None:
    tab.get_by_text(text).locator("visible=true").first.wait_for()


def field(tab: Any, name: str) -> Any:
    return tab.locator(f"#{name} :is(textarea, input)").first


def test_it_draws_and_redraws_what_was_painted(tab: Any) -> None:
    button(tab, "Draw").click()
    wait_for(tab, "seed 7")
    button(tab, "Start from this image").click()
    canvas = tab.locator("canvas").last
    canvas.scroll_into_view_if_needed()
    tab.wait_for_timeout(2000)  # until the image is on the canvas
    box = canvas.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2 + 30, box["y"] + box["height"] / 2 + 30, steps=5)
    tab.mouse.up()
    field(tab, "seed").fill("8")
    button(tab, "Draw").click()
    wait_for(tab, "seed 8")
    tab.get_by_text("Recipe: what draws it again").click()
    recipe = tab.locator(".json-holder")
    recipe.wait_for()
    assert '"mask"' in recipe.inner_text().partition('"files"')[2]


def test_a_wrong_value_is_explained_on_its_field(tab: Any) -> None:
    tab.get_by_role("button", name="More").click()
    field(tab, "num_inference_steps").fill("1")
    button(tab, "Draw").click()
    for name in ("num_inference_steps", "prompt"):
        message = tab.locator(f"#{name}").get_by_text("num_inference_steps must be 2 or more for scheduler DDIM")
        message.wait_for()


def test_a_sweep_is_drawn_once_and_a_slider_shows_it(tab: Any) -> None:
    tab.get_by_role("tab", name="How far").click()
    button(tab, "Draw the strip").click()
    wait_for(tab, "0 steps towards sac_8plus")
    tab.get_by_role("slider").locator("visible=true").first.fill("2")
    wait_for(tab, "2 steps towards sac_8plus")


def test_two_aesthetics_are_seen_side_by_side_and_follow_one_slider(tab: Any) -> None:
    tab.get_by_role("tab", name="How far").click()
    tab.locator("#other input").click()
    tab.get_by_role("option", name="fantasy").click()
    button(tab, "Draw the strip").click()
    wait_for(tab, "0 steps towards fantasy")
    tab.get_by_role("slider").locator("visible=true").first.fill("2")
    for name in ("sac_8plus", "fantasy"):
        wait_for(tab, f"2 steps towards {name}")
    curves = tab.locator("svg.marks").locator("visible=true")
    sync_api.expect(curves.filter(has_text="similarity")).to_have_count(2)
    sync_api.expect(curves.filter(has_text="20steps")).to_have_count(0)  # of the curve that the page opens on


def test_a_drawing_keeps_its_address_and_later_ones_get_their_own(tab: Any) -> None:
    button(tab, "Draw").click()
    wait_for(tab, "seed 7")
    images = tab.get_by_role("tabpanel").locator("img[src*='output.0.png']").locator("visible=true")
    first = images.first.get_attribute("src")
    content = tab.request.get(first).body()
    field(tab, "seed").fill("8")
    button(tab, "Draw").click()
    wait_for(tab, "seed 8")
    second = images.first.get_attribute("src")
    tab.get_by_role("tab", name="How far").click()
    button(tab, "Draw the strip").click()
    wait_for(tab, "0 steps towards sac_8plus")
    assert len({first, second, images.first.get_attribute("src")}) == 3
    assert tab.request.get(first).body() == content != tab.request.get(second).body()


def test_an_aesthetic_of_ones_own_is_made_downloaded_and_drawn_with(tab: Any, tmp_path: Path) -> None:
    for color in ("red", "gold"):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{color}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    tab.get_by_role("tab", name="Your own aesthetic").click()
    tab.locator("#likes input[type=file]").set_input_files(
        [tmp_path / f"{name}.png" for name in ("red", "gold", "bad")]
    )
    tab.get_by_label("gold.png").wait_for()
    tab.get_by_label("Name of the aesthetic").fill("../warm 😀")
    button(tab, "Make the aesthetic").click()
    report = tab.get_by_label("What was read")
    sync_api.expect(report).to_have_value(
        "Read 2: gold.png, red.png\nLeft out: bad.png is not an image of a format that is read "
        "(PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF, HEIC)",
        timeout=TIMEOUT,
    )
    button(tab, "Make the aesthetic").click()  # again, in place of the first
    tab.wait_for_timeout(3000)
    tiles = tab.locator(".caption-label").locator("visible=true")
    assert tiles.get_by_text("warm 😀", exact=True).count() == 1, tiles.all_inner_texts()
    tiles.get_by_text("gloomcore", exact=True).click()
    with tab.expect_download() as download:
        button(tab, "Download it (.safetensors): a reload forgets it").click()
    assert download.value.suggested_filename == "warm 😀.safetensors"
    made = embedding.load_aesthetic(Path(download.value.path()))
    assert made.notes["pictures"] == "2"
    button(tab, "Draw the prompt with it").click()
    wait_for(tab, "2 steps towards warm 😀, seed 7")
    tab.get_by_text("Recipe: what draws it again").click()
    assert made.sha256 in tab.locator(".json-holder").inner_text()
    tab.get_by_role("tab", name="Your own aesthetic").click()
    tab.locator("#likes input[type=file]").set_input_files(tmp_path / "bad.png")
    sync_api.expect(button(tab, "Draw the prompt with it")).to_be_disabled()
    sync_api.expect(report).to_have_value("")


def test_a_file_that_is_no_image_is_refused(tab: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    tab.get_by_role("tab", name="Your own aesthetic").click()
    button(tab, "Make the aesthetic").click()
    tab.locator("#likes").get_by_text("drop images first").wait_for()
    tab.locator("#likes input[type=file]").set_input_files(tmp_path / "bad.zip")
    tab.get_by_label("bad.zip").wait_for()
    button(tab, "Make the aesthetic").click()
    tab.locator("#likes").get_by_text("bad.zip is neither an image").wait_for()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Holds drawings at their first step until it is set."""
    from aesthetic.pipeline import sampling

    gate, check = threading.Event(), cancellation.check
    state = SimpleNamespace(open=gate.set, started=threading.Event(), canceled=threading.Event())

    def held() -> None:
        state.started.set()
        gate.wait(60)
        try:
            check()
        except cancellation.Canceled:
            state.canceled.set()
            raise

    monkeypatch.setattr(sampling, "check", held)
    yield state
    gate.set()


@pytest.mark.parametrize("closed", [False, True])
def test_a_second_tab_waits_until_the_first_is_canceled_or_closed(
    closed: bool, tab: Any, context: Any, address: str, gate: Any
) -> None:
    button(tab, "Draw").click()
    assert gate.started.wait(60)
    other = opened(context, address)
    field(other, "seed").fill("9")
    button(other, "Draw").click()
    wait_for(other, "queue: 1/1")
    if closed:
        tab.close()
        other.wait_for_timeout(500)  # until the server has noticed
    else:
        tab.bring_to_front()
        button(tab, "Cancel").click()
    gate.open()
    wait_for(other, "seed 9")
    assert gate.canceled.is_set()
    assert closed or not tab.get_by_text("seed 7").is_visible()


def test_a_phone_is_wide_enough(chromium: Any, address: str) -> None:
    window = chromium.new_context(viewport={"width": 400, "height": 800}, color_scheme="dark")
    tab = opened(window, address)
    for name in ("How far", "Your own aesthetic", "Draw"):
        tab.get_by_role("tab", name=name).click()
        tab.wait_for_timeout(300)
        assert tab.evaluate("document.documentElement.scrollWidth") == 400
    window.close()
