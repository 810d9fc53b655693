"""Accessibility in a browser: axe-core on every tab and state, and what it cannot see."""

import pytest
from conftest import SCREENS
from test_feel import tabs_of
from test_page import BOOK, generate, set_lambda

# Gradio's placeholder of a plot that is still being loaded is not ours to name
DRAWN = """() => ![...document.querySelectorAll('.empty.unpadded_box')]
  .some((empty) => empty.checkVisibility())"""


@pytest.mark.slow
@pytest.mark.parametrize(("phone", "dark"), SCREENS)
def test_axe_finds_nothing_on_any_tab_and_state(visit, audit, dark, phone):
    page = visit(dark=dark, phone=phone)
    audit(page, "loaded")
    page.fill("#prompt textarea", "slow")
    page.click("#generate")
    page.wait_for_selector("#pane-memory .strip:has-text('tock')")
    audit(page, "running")
    page.keyboard.press("Escape")
    page.wait_for_selector("#pane-memory[data-state=stopped]")
    audit(page, "stopped")
    generate(page, BOOK)
    page.click("#pane-memory .token >> nth=0")
    page.uncheck("#drawer .neighbour-use >> nth=0")
    audit(page, "drawer")
    page.eval_on_selector(
        "#pane-memory .token[data-end]",
        "end => { end.dataset.move = 'up'; end.style.setProperty('--w', '1'); }",
    )
    audit(page, "an end that a source raised")
    page.hover("#pane-knn .token >> nth=0")
    page.wait_for_timeout(500)
    audit(page, "card")
    set_lambda(page, "0.1")
    audit(page, "another lambda")
    page.click(".share-button")
    audit(page, "share")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.click("#options > button")
    audit(page, "options")
    labels = page.eval_on_selector_all(".options-row label", "all => all.map((l) => l.offsetWidth)")
    assert min(labels) > 60, "no option is squeezed to a letter per line"
    generate(page, "Where is Harrow?")
    audit(page, "asked in the trained form")
    page.click(".tour-button")
    audit(page, "tour")
    page.keyboard.press("Escape")
    for name in tabs_of(page)[1:]:
        page.evaluate(
            "name => [...document.querySelectorAll('#tabs [role=tab]')]"
            ".find((tab) => tab.textContent.trim() === name).click()",
            name,
        )
        page.wait_for_timeout(600)
        page.wait_for_function(DRAWN)
        audit(page, name)
        if name == "Inspect":
            page.click(".inspect-empty button")
            page.wait_for_selector("#inspect-pane-memory[data-state=done]")
            audit(page, "inspected")


def test_skip_links_reach_the_slider_and_the_tabs(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the tab"
    assert page.locator(".skips a >> nth=0").bounding_box()["y"] >= 0
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "lambda"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("MLPMEM.page.lambda") is not None


@pytest.mark.slow
def test_like_controls_have_distinct_names(visit):
    page = visit()
    generate(page, BOOK)
    page.click("#pane-memory .token >> nth=0")
    names = page.eval_on_selector_all(
        "#compare-view :is(button, input, [role=listbox], section)",
        """nodes => nodes.filter((n) => n.checkVisibility())
          .map((n) => n.getAttribute('aria-label') || n.textContent).filter((n) => n)""",
    )
    entries = [name for name in names if "neighbour" not in name and "Corpus" not in name]
    titles = {name for name in entries if name == "The Salt Ledger (book)" or "Harrow" in name}
    rest = [name for name in entries if name not in titles]
    assert len(rest) == len(set(rest)), sorted(rest)


def test_the_answers_and_whether_they_are_right_are_announced(visit):
    page = visit()
    generate(page, BOOK)
    spoken = page.evaluate(
        "document.querySelector('#compare-view > * .unseen[aria-live]').textContent"
    )
    assert "Decoder only: Martin Holt, wrong" in spoken.replace("  ", " ")
    assert "With memory: Odalys Wren, right" in spoken.replace("  ", " ")


@pytest.mark.slow
def test_at_twice_the_size_the_bar_is_low_and_still_works(visit):
    page = visit()
    page.set_viewport_size({"width": 640, "height": 430})  # 1280 x 860 at 200 %
    page.wait_for_timeout(200)
    assert page.locator(".dock").bounding_box()["height"] <= 0.15 * 430
    box = page.locator("#lambda").bounding_box()
    assert box["width"] >= 120 and box["y"] + box["height"] <= 430
    set_lambda(page, "0.2")
    assert page.is_visible(".again")
    inside = page.locator(".again").bounding_box()
    assert inside["x"] + inside["width"] <= 640


def test_a_phone_shows_the_three_answers_first(visit):
    page = visit(phone=True)
    generate(page, BOOK)
    page.evaluate("window.scrollTo(0, 0)")
    dock = page.locator(".dock").bounding_box()["y"]
    for system in ("lm", "memory", "knn"):
        strip = page.locator(f"#pane-{system} .strip").bounding_box()
        assert 0 < strip["y"] and strip["y"] + strip["height"] <= dock, system
    groups = page.locator(".group-button")
    for i in range(groups.count()):
        box = groups.nth(i).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390, "no group is cut at the edge"
