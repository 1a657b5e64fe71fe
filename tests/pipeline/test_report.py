"""The report of a real sweep in a real browser: it draws, sorts, prints, fits, and asks nothing of the network."""

from __future__ import annotations

import shutil
import urllib.parse
from base64 import b64decode
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import ROOT, FinishedSweep

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(_BROWSERS)} is installed (on Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, smoke: FinishedSweep) -> Iterator[Page]:
    """The report, opened from its file; a test with it fails if the page writes to the console or asks for anything else."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = (smoke.lab.home.sweep("smoke") / "report.html").as_uri()
    page.goto(address)
    yield page
    page.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [address]


def test_every_figure_is_drawn(page: Page) -> None:
    titles = [figure.get_attribute("aria-label") for figure in page.locator("figure").all()]
    for expected in ("What RL gains", "Who gains more, along prior", "pass@k before and after RL", "RL dynamics", "Pre-training"):
        assert expected in titles
    for figure in page.locator("figure svg").all():
        box = figure.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 50
        assert figure.locator("path").count() > 10


def test_the_table_sorts_by_keyboard(page: Page) -> None:
    table = page.locator("table.sortable").first
    column = [cell.inner_text() for cell in table.locator("thead th").all()].index("entropy")

    def entropies() -> list[float]:
        return [float(row.locator("td").nth(column).inner_text()) for row in table.locator("tbody tr").all()]

    table.locator("thead button").nth(column).focus()
    page.keyboard.press("Enter")
    assert entropies() == sorted(entropies())
    assert table.locator("thead th").nth(column).get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert entropies() == sorted(entropies(), reverse=True)


def test_thousands_sort_as_numbers(browser: Browser) -> None:
    script = (ROOT / "pipeline" / "report" / "page.js").read_text()
    rows = "".join(f"<tr><td>{count}</td></tr>" for count in ("12,800", "9,600", "-", "100"))
    page = browser.new_page()
    page.set_content(f"<table class=sortable><thead><tr><th>n</th></tr></thead><tbody>{rows}</tbody></table><script>{script}</script>")
    page.locator("thead button").click()
    assert page.locator("tbody td").all_inner_texts() == ["-", "100", "9,600", "12,800"]
    page.close()


def test_the_download_is_results_csv(page: Page, smoke: FinishedSweep) -> None:
    link = page.get_by_role("link", name="Download").get_attribute("href")
    assert link is not None
    assert b64decode(urllib.parse.unquote(link.partition("base64,")[2])) == (smoke.lab.home.sweep("smoke") / "results.csv").read_bytes()


def test_it_says_what_it_found_before_anything_else(page: Page) -> None:
    assert page.locator("h2").first.inner_text() == "Verdict"
    assert "one seed per setting" in page.locator(".verdict").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_have_the_ink_of_the_page(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    ink, paper = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    axis = page.locator("figure svg text").first.evaluate("text => getComputedStyle(text).fill")
    assert axis == ink
    assert _brightness(paper) > _brightness(ink) if scheme == "light" else _brightness(paper) < _brightness(ink)


def _brightness(colour: str) -> int:
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def test_a_narrow_screen_scrolls_tables_not_the_page(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_it_prints_without_what_only_a_screen_needs(page: Page) -> None:
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.pdf().startswith(b"%PDF")
