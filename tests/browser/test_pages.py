"""The tabs that are read: Results, About, and the way from a datastore to its first question."""

import pytest

BROKEN = """() => [...document.querySelectorAll(
  'thead th, .results th, .rest th')].flatMap((cell) => {
  if (!cell.getClientRects().length) return [];
  const found = [];
  const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    for (const { 0: word, index } of node.textContent.matchAll(/[\\p{L}\\p{N}]+/gu)) {
      const range = document.createRange();
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      const tops = [...range.getClientRects()].map(({ top }) => Math.round(top));
      if (new Set(tops).size > 1) found.push(word);
    }
  }
  return found;
})"""


def tab(page, name):
    page.click(f"#tabs [role=tab]:has-text('{name}') >> visible=true")
    page.wait_for_timeout(500)


@pytest.mark.slow
def test_no_table_of_results_is_cut_on_a_desktop(visit):
    page = visit()
    tab(page, "Results")
    widths = page.eval_on_selector_all(
        ".table-scroll", "all => all.map((t) => [t.scrollWidth, t.clientWidth])"
    )
    assert len(widths) >= 2 and all(whole <= seen + 1 for whole, seen in widths)
    page.set_viewport_size({"width": 700, "height": 860})
    assert page.evaluate(BROKEN) == [], "a table scrolls in its own box, and no word is broken"
    page.set_viewport_size({"width": 1280, "height": 860})
    tab(page, "Compare")
    assert page.evaluate(BROKEN) == []
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


def test_about_has_the_figure_the_links_and_code_to_copy(visit):
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab(page, "About")
    assert page.locator("#about .figure svg title").text_content() == "One token of MLP Memory"
    links = page.eval_on_selector_all("#about a", "all => all.map((a) => a.href)")
    assert "https://arxiv.org/abs/2508.01832" in links
    assert page.locator(".copy").count() == page.locator("pre.snippet").count() >= 2
    page.click("[aria-label='Copy, python']")
    page.wait_for_selector(".copy:has-text('Copied')")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("from gradio_client import Client") and "Copy" not in copied


@pytest.mark.slow
def test_a_finished_datastore_leads_to_its_first_question(visit):
    page = visit()
    tab(page, "Corpus")
    page.fill("#own-text textarea", "Vellmar has a mayor, Ilka Brandt.")
    page.click("#own-make")
    page.click("#own-view button:has-text('Ask it')")
    page.wait_for_function("document.activeElement.closest('#prompt') !== null")
    assert page.input_value("#prompt textarea") == ""
    assert page.is_checked("#store-choice input[value=own]")
