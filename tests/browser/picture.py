"""Take the README's picture of a running app: python tests/browser/picture.py URL."""

import sys
from pathlib import Path

from opened import opened

TARGET = Path(__file__).parents[2] / "assets" / "screenshot.png"
STRONGEST = """() => {
  const strength = (t) => (t.dataset.move === 'up' ? Number(t.style.getPropertyValue('--w')) : 0);
  const tokens = [...document.querySelectorAll('#pane-memory .token')];
  tokens.reduce((a, b) => (strength(b) > strength(a) ? b : a)).click();
}"""


def main(url: str) -> None:
    """Save a picture of the first screen, whose recorded times are from an idle machine."""
    with opened(url, height=960) as page:
        page.wait_for_selector("#pane-knn[data-state=done]")
        page.evaluate(STRONGEST)
        page.mouse.move(2, 2)
        page.wait_for_timeout(500)
        page.screenshot(path=TARGET)


if __name__ == "__main__":
    main(sys.argv[1])
