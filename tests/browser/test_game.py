"""Beat the memory: five rounds of recorded answers and a card, on the page and without a server."""

import struct
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
CHOICE, NEXT = "#game .game-choice", "#game .game-body > .pane-tool"
INK = """(card) => {
  const { data, width, height } = card.getContext('2d').getImageData(0, 0, card.width, card.height);
  const colours = new Set();
  for (let i = 0; i < data.length; i += 4 * 97) colours.add(data.slice(i, i + 3).join());
  return [width, height, colours.size];
}"""


def rounds(page, choose):
    """Play five rounds; return for each (which columns are right, what is said of the guess)."""
    page.click("#game button:has-text('Start')")
    played = []
    for number in range(5):
        page.wait_for_selector(f".game-head:has-text('Round {number + 1} of 5')")
        page.click(f"{CHOICE}[data-system={choose(number)}]")
        page.wait_for_selector(".game-columns")
        right = page.evaluate(
            "[...document.querySelectorAll('.game-column')].map((c) => c.dataset.right === 'true')"
        )
        played.append((right, page.inner_text(".game-head")))
        page.click(NEXT)
    return played


def test_five_rounds_are_guessed_and_counted(visit):
    page = visit("eager")
    played = rounds(page, lambda number: ("lm", "memory", "knn", "none", "memory")[number])
    you = 0
    for number, (right, said) in enumerate(played):
        lm, memory, knn = right
        won = (lm, memory, knn, not any(right), memory)[number]
        assert said == ("You have it" if won else "Not this time")
        you += won
    theirs = sum(right[1] for right, _ in played)
    assert page.inner_text(".game-head").endswith(f": {you} to {theirs}")
    winner = "You beat" if you > theirs else "A draw" if you == theirs else "The memory wins"
    assert page.inner_text(".game-head").startswith(winner)


def test_the_card_is_a_picture_that_is_drawn_without_a_request(visit, tmp_path):
    page = visit("eager")
    rounds(page, lambda number: "memory")
    asked = len(page.seen.requests)
    width, height, colours = page.locator(".game-card").evaluate(INK)
    assert (width, height) == (1200, 630) and colours > 5
    with page.expect_download() as download:
        page.click("#game button:has-text('Save the card')")
    download.value.save_as(tmp_path / "card.png")
    data = (tmp_path / "card.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (1200, 630)
    assert [url for url in page.seen.requests[asked:] if not url.startswith("blob:")] == []
    page.click("#game button:has-text('Play again')")
    page.wait_for_selector(".game-head:has-text('Round 1 of 5')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_in_any_state_of_the_game(visit, audit, dark):
    page = visit("eager", dark=dark)
    page.click("#game button:has-text('Start')")
    audit(page, "asked")
    for number in range(5):
        page.click(f"{CHOICE}[data-system=knn]")
        page.wait_for_selector(".game-columns")
        if not number:
            audit(page, "told")
        page.click(NEXT)
    audit(page, "over")


def test_a_bundle_without_such_recordings_has_no_game(visit):
    assert visit().locator("#game .game").count() == 0


@pytest.mark.parametrize("shape", ["desk", "phone"])
def test_the_static_page_has_the_atlas_rounds(contexts, tmp_path, shape):
    command = [sys.executable, "-m", "mlpmem.ui.recordings.replay", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    page = contexts[shape].new_page()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "site" / "index.html").as_uri())
    played = rounds(page, lambda number: "none")
    assert len({tuple(right) for right, _ in played}) >= 2, "the rounds differ in their outcome"
    assert not any(right[0] for right, _ in played), "the decoder was never told these facts"
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0 and page.locator(".game-card").evaluate(INK)[2] > 5
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
