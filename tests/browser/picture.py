"""Take README's picture: python tests/browser/picture.py URL, of a running app."""

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
    """Show the first screen, whose recording has a quiet machine's times; save the picture."""
    with opened(url, height=1190) as page:
        page.wait_for_selector("#pane-knn[data-state=done]")
        page.evaluate(STRONGEST)
        page.mouse.move(2, 2)
        page.wait_for_timeout(500)
        page.screenshot(path=TARGET)


if __name__ == "__main__":
    main(sys.argv[1])
