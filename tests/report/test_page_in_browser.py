"""The page as a person meets it, in headless Chromium."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cssoftmax import report, similarity
from cssoftmax.report import write_report

EVIL = '<img src=x onerror="window.harmed=1"></script><script>window.harmed=1</script>'
NAMES = [EVIL, "$x_1$ & co", "猫", "plain"]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(CHROMIUM)} on the PATH")
    with sync_api.sync_playwright() as playwright:
        # Without a GPU WebGL, which 3-D needs, is drawn by the processor.
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        running = playwright.chromium.launch(executable_path=found, args=flags)
        yield running
        running.close()


@pytest.fixture
def opened(browser, make_run, tmp_path):
    """Opens the page of two runs; the test fails if anything was complained of or asked for from outside."""
    runs = [make_run("<b>one", names=NAMES, shown=40, samples=40), make_run("two", names=NAMES, shown=40, samples=40)]
    path = write_report(runs, tmp_path / "report")
    complaints = []

    def open_page(**options):
        page = browser.new_context(reduced_motion="reduce", **options).new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        return page

    yield open_page
    assert complaints == []


@pytest.fixture(scope="module")
def script(browser):
    """The explorer's functions, without a page around them."""
    page = browser.new_page()
    folder = Path(report.__file__).parent / "template"
    page.add_script_tag(content=(folder / "similarity.js").read_text())
    return page


def test_every_plot_is_drawn_in_every_view_and_names_are_only_text(opened):
    page = opened()
    empty = "plots => plots.filter(plot => !plot.querySelector('.main-svg')).map(plot => plot.id)"
    assert page.locator(".plot").count() == 15 and page.eval_on_selector_all(".plot", empty) == []
    for name in ("PCA, 3-D", "t-SNE, 2-D"):
        page.get_by_role("button", name=name).click()
    page.wait_for_timeout(200)
    assert page.evaluate("window.harmed") is None
    assert EVIL in page.locator("#class-legend").inner_text()
    assert page.locator("h1, .runs b").all_inner_texts()[1] == "<b>one"


def test_a_browser_that_is_too_old_says_so(browser, make_run, tmp_path):
    page = browser.new_page()
    page.add_init_script("delete globalThis.DecompressionStream")
    page.goto(write_report([make_run(samples=20)], tmp_path / "report").as_uri())
    page.wait_for_selector("text=The plots cannot be drawn")
    assert page.locator("#measures table").is_visible()


def test_a_slider_moves_the_curves(opened):
    page = opened()
    last = "[...document.querySelectorAll('{}')].at(-1).getAttribute('d')"  # CS-Softmax lies over the others
    curve = last.format("#explorer-similarities .scatterlayer path.js-line")
    boundary = last.format("#explorer-boundary .contourlayer path.openline")
    pulls = last.replace(".at(-1).getAttribute('d')", ".map(line => line.getAttribute('d')).join()")
    pulls = pulls.format("#explorer-pulls .scatterlayer path.js-line")
    table = page.locator("#explorer-table tbody")
    for slider in ("margin", "weight-update"):
        before = page.evaluate(curve), page.evaluate(boundary), table.inner_text()
        page.locator(f"#{slider}").press("PageUp")
        after = page.evaluate(curve), page.evaluate(boundary), table.inner_text()
        assert all(old != new for old, new in zip(before, after, strict=True)), slider
    for slider in ("scale", "class-count", "own", "other"):
        before = page.evaluate(pulls), table.inner_text()
        page.locator(f"#{slider}").press("PageDown")
        assert (page.evaluate(pulls) != before[0]) and table.inner_text() != before[1], slider


def middle_of_a_point(page):
    point = page.locator("#map-0 .scatterlayer path.point").nth(5)
    point.scroll_into_view_if_needed()
    page.wait_for_timeout(100)  # a scroll hides what is shown
    box = point.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_hovering_over_a_point_shows_its_picture(opened):
    page = opened()
    page.mouse.move(*middle_of_a_point(page))
    page.wait_for_selector("#tip:not([hidden]) img")
    assert page.evaluate("document.querySelector('#tip img').decode().then(() => true)")
    assert page.locator("#tip img").get_attribute("src").startswith("data:image/webp")
    assert page.locator("#tip b").inner_text() in NAMES


def test_a_click_plays_a_sound(opened, tmp_path, write_samples):
    seconds = np.arange(8000) / 16000
    tone = io.BytesIO()
    soundfile.write(tone, 0.5 * np.sin(2 * np.pi * 440 * seconds), 16000, format="MP3")
    for run in ("<b>one", "two"):
        write_samples(tmp_path / run, range(40), [tone.getvalue()] * 40, "audio/mpeg")
    write_report([tmp_path / "<b>one", tmp_path / "two"], tmp_path / "report")
    page = opened()
    page.locator("button.play").first.click()
    page.wait_for_function("player.duration > 0.3 && !player.error")
    page.evaluate("player.removeAttribute('src')")
    page.mouse.click(*middle_of_a_point(page))
    page.wait_for_function("player.src.startsWith('data:audio/mpeg')")


def test_the_page_fits_a_phone_and_follows_the_dark(opened):
    phone = opened(viewport={"width": 360, "height": 740})
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    ink = "getComputedStyle(document.querySelector('#roc .xtick text')).fill"
    light, paper = phone.evaluate(ink), phone.evaluate("getComputedStyle(document.body).backgroundColor")
    phone.emulate_media(color_scheme="dark")
    phone.wait_for_function(f"{ink} !== '{light}'")
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") != paper


PYTHON = {
    "CS-Softmax": lambda margin, u: similarity.CSSoftmax(margin, u),
    "CosFace": lambda margin, u: similarity.CosFace(margin),
    "ArcFace": lambda margin, u: similarity.ArcFace(margin),
    "Circle": lambda margin, u: similarity.CSSoftmax(margin, 1.0),
}


def logits_and_pulls(built, scale, own, other, classes):
    """P and N at each pair of cosines (K,), and -dL/d(own) and dL/d(other) of the cross entropy, by autograd."""
    own, other = (c.clone().requires_grad_() for c in (own, other))
    rows = built.rows(own, torch.ones_like(own), torch.zeros(len(own), dtype=torch.long))
    positive, negative = built.positive(own, rows), built.negative(other, rows)
    rest = built.negative(torch.zeros(len(own), classes - 2, dtype=own.dtype), rows)  # rows are numbers
    logits = scale * torch.cat([positive[:, None], negative[:, None], rest], 1)
    torch.nn.functional.cross_entropy(logits, torch.zeros(len(own), dtype=torch.long), reduction="sum").backward()
    return positive.detach(), negative.detach(), -own.grad, other.grad


@pytest.mark.parametrize(
    ("margin", "u", "scale", "own", "other", "classes"),
    [
        (0.1, 0.25, 12.35, 0.6, 0.2, 10),
        (0.0, 0.0, 30.0, -0.5, 0.9, 2),
        (0.5, 1.0, 64.0, 0.9, -0.7, 100),
        (0.9, 0.5, 5.0, 0.0, 0.0, 3),
    ],
)
def test_the_explorers_curves_are_those_of_the_losses(script, margin, u, scale, own, other, classes):
    settings = {"margin": margin, "weightUpdate": u, "scale": scale, "own": own, "other": other, "classes": classes}
    grid = torch.linspace(-0.99, 0.99, 67, dtype=torch.float64)  # where the circle's and the roots' slopes are finite
    drawn = script.evaluate("([settings, grid]) => curves(settings, grid)", [settings, grid.tolist()])
    for name, build in PYTHON.items():
        built = build(margin, u)
        positive, _, own_pull, _ = logits_and_pulls(built, scale, grid, torch.full_like(grid, other), classes)
        _, negative, _, other_pull = logits_and_pulls(built, scale, torch.full_like(grid, own), grid, classes)
        expected = {"positive": positive, "negative": negative, "ownPull": own_pull, "otherPull": other_pull}
        for key, values in expected.items():
            found = torch.tensor(drawn[name][key], dtype=torch.float64)
            torch.testing.assert_close(found, values, rtol=1e-9, atol=1e-12, msg=lambda text: f"{name} {key}: {text}")  # noqa: B023
