"""What a browser makes of report.html; needs plotly, playwright and Chromium."""

import shutil
import time

import pytest

from engine.report.html import html_page
from engine.report.write import write_report
from tests.helpers.critical import put_group
from tests.helpers.html import HOSTILE, data_of
from tests.helpers.report import HISTORY, put


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("plotly")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, workplace):
    """Return a function that opens the page of group g; an error or request there fails."""
    complaints = []

    def opened(data=None, width=1440, selector="#accuracies .main-svg"):
        path = workplace / "page.html"
        path.write_text(html_page("g", data or data_of()))
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
        page.on("request", lambda r: complaints.append(r.url) if r.url[:4] == "http" else None)
        page.goto(path.as_uri())
        page.wait_for_selector(selector)
        return page

    yield opened
    assert complaints == []


def texts(page, selector):
    return page.locator(selector).all_text_contents()


def test_a_browser_sorts_filters_and_compares(workplace, open_page):
    for batch, accuracy in ((128, 80.0), (256, 82.0), (1024, 9.5)):
        put(workplace, f"batch={batch}", accuracy=accuracy)
    put(workplace, "batch=2048", status="failed", error="disk full")
    page = open_page()
    # Every row has the same setting, so it has no column.
    accuracies = "#rows tbody td:nth-child(6)"
    assert texts(page, accuracies) == ["80.00", "82.00", "9.50", "failed"]
    heading = page.get_by_role("button", name="top-1 Accuracy, %")
    heading.click()
    assert texts(page, accuracies) == ["9.50", "80.00", "82.00", "failed"]
    heading.click()
    assert texts(page, accuracies) == ["82.00", "80.00", "9.50", "failed"]

    page.get_by_role("button", name="run-3").click()
    assert texts(page, ".details pre, .details .error") == [
        "python train.py batch=2048", "disk full",
    ]  # fmt: skip
    assert "optimizer.momentum=0.9" in texts(page, ".details li")
    for name in ("run-0", "run-2"):
        page.get_by_label(f"compare {name}").check()
    differing = texts(page, "#comparison .differs td:nth-child(2)")
    assert "batch" in differing and "seed" not in differing and "run" in differing
    page.get_by_label("only keys that differ").check()
    assert not page.locator("#comparison .same").first.is_visible()

    expect = pytest.importorskip("playwright.sync_api").expect
    expect(page.locator("#accuracy .points path")).to_have_count(8)
    page.get_by_label("Show runs with").fill("batch=256 completed")
    page.get_by_text("1 of 4 runs").wait_for()
    assert texts(page, accuracies) == ["82.00"] and texts(page, "#runs .name") == ["run-1"]
    expect(page.locator("#accuracy .points path")).to_have_count(2)
    assert page.evaluate("document.getElementById('accuracy').data[0].x") == [1, 3, None]
    for words, count in (("batch=1024", 1), ("batch=10", 0), ("name=resnet18", 0)):
        page.get_by_label("Show runs with").fill(f"{words} optimizer=sgd")
        page.get_by_text(f"{count} of 4 runs").wait_for()


def test_the_pointer_shows_the_value_of_a_point(workplace, open_page):
    put(workplace)
    page = open_page(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#accuracy .points path").last.hover(force=True)
    page.wait_for_selector("#accuracy .hovertext")
    assert texts(page, "#accuracy .hovertext") == ["SGD 128 seed 0, epoch 3: 79.70 %"]


def test_a_plot_without_content_is_left_out(workplace, open_page):
    put_group(workplace, b_crit=500.0)
    write_report("g")
    page = open_page(selector="#accuracy .main-svg")
    assert texts(page, "#plots h2") == ["Accuracy by epoch", "Steps to the target"]


def test_hostile_texts_are_shown_literally(workplace, open_page):
    put(workplace, status="diverged", error=HOSTILE, command=HOSTILE)
    data = data_of()
    data["groups"][0]["name"] = data["runs"][0]["name"] = HOSTILE
    for cells in (data["runs"][0]["cells"], data["rows"][0]["cells"]):
        cells |= {"Run": [HOSTILE] * 2} if "Run" in cells else {}
        cells["Setting"] = [HOSTILE] * 2
    for look in data["series"]:
        look["name"] = HOSTILE
    page = open_page(data)
    page.locator("#runs .name").first.click()
    assert texts(page, ".details pre, .details .error") == [HOSTILE, HOSTILE]
    assert page.locator("img, #accuracies b").count() == 0
    page.locator("#accuracy .points path").first.hover(force=True)
    page.wait_for_selector("#accuracy .hovertext")
    assert HOSTILE in texts(page, "#accuracy .hovertext")[0]


def test_200_runs_open_soon(workplace, open_page):
    long = [HISTORY[0] | {"epoch": n, "step": 8 * n, "train_loss": 1 / n} for n in range(1, 41)]
    for optimizer in ("sgd", "lars"):
        put(workplace, f"optimizer={optimizer}", history=long)
    data = data_of()
    data["runs"] = [run | {"name": f"run-{n}"} for n in range(100) for run in data["runs"]]
    began = time.monotonic()
    page = open_page(data)
    # An idle machine of two cores takes less than 3 s. Other tests may run at the same time.
    assert time.monotonic() - began < 15.0
    assert page.locator("#runs tbody tr").count() == 200
