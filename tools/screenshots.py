"""Takes the pictures of the report that README and docs show, in headless Chromium.

python tools/screenshots.py RUN RUN    # two folders that `cssoftmax train` wrote
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from cssoftmax.report import write_report

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def embeddings(page: Page) -> None:
    """The maps of both runs, the pointer on a point of the second."""
    page.locator("#embeddings").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    points = page.locator("#map-1 .scatterlayer path.point")
    boxes = [box for index in range(points.count()) if (box := points.nth(index).bounding_box())]
    box = min(boxes, key=lambda box: abs(box["x"] - 900) + abs(box["y"] - 500))
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#tip:not([hidden]) img")


def explorer(page: Page) -> None:
    for _ in range(4):
        page.locator("#margin").press("PageUp")
    page.locator("#margin").blur()
    page.locator("#explorer").scroll_into_view_if_needed()
    page.wait_for_timeout(300)


def shot(page: Page, section: str, name: str) -> None:
    path = IMAGES / f"{name}.png"
    page.locator(section).scroll_into_view_if_needed()
    box = page.locator(section).bounding_box()
    assert box is not None
    clip = {"x": box["x"] - 12, "y": max(box["y"] - 12, 0), "width": box["width"] + 24, "height": box["height"] + 24}
    page.screenshot(path=path, clip=clip)  # type: ignore[arg-type]
    with Image.open(path) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = write_report([Path(run) for run in sys.argv[1:]], Path(folder))
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": 1180, "height": 1300}, color_scheme=scheme, reduced_motion="reduce"
            )
            page = context.new_page()
            page.goto(report.as_uri())
            page.wait_for_selector("html[data-drawn]", state="attached")
            shot(page, "#cosines", f"cosines-{scheme}")
            embeddings(page)
            shot(page, "#embeddings", f"report-{scheme}")
            page.mouse.move(2, 2)
            explorer(page)
            shot(page, "#explorer", f"explorer-{scheme}")
        browser.close()


if __name__ == "__main__":
    main()
