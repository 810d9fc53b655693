"""Take README's picture: python tests/browser/picture.py URL, of a running app that is ready."""

import sys
from pathlib import Path

from conftest import FLAGS, find_chromium
from playwright.sync_api import sync_playwright

TARGET = Path(__file__).parents[2] / "assets" / "screenshot.png"
STRONGEST = """() => {
  const strength = (t) => (t.dataset.move === 'up' ? Number(t.style.getPropertyValue('--w')) : 0);
  const tokens = [...document.querySelectorAll('#pane-memory .token')];
  tokens.reduce((a, b) => (strength(b) > strength(a) ? b : a)).click();
}"""


def main(url: str) -> None:
    """Show the first longer text, open its most telling token, save the picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(playwright), args=FLAGS, timeout=120_000
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1250})
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector("#status .chip[data-state=ready]")
        page.click(".group-button >> nth=-1")
        page.click(".example >> nth=0")
        page.wait_for_selector("#pane-knn[data-state=done] .token >> nth=12")
        page.evaluate(STRONGEST)
        page.mouse.move(2, 2)
        page.wait_for_timeout(500)
        page.screenshot(path=TARGET)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
