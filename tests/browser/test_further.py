"""A column with its own weights, a damaged one, and lambda "auto", in a browser."""

import json

import fake
import pytest
from test_page import generate, pane_text, rows_of, run, set_lambda

from mlpmem.ui.recordings import saved

pytestmark = pytest.mark.slow
TUNGSTEN = fake.ask("What is the symbol of tungsten?")


def tick(page, *names):
    page.click("#options > button")
    for name in names:
        page.get_by_role("checkbox", name=name).check()


def titles(page, system):
    return page.eval_on_selector_all(f"#pane-{system} .token", "t => t.map(x => x.title)")


def perplexity(page):
    return page.inner_text(".curve-value")


def test_one_click_shows_what_fine_tuning_forgets(visit):
    page = visit()
    run(page, lambda: page.click(".forgets"))
    page.wait_for_selector("#pane-finetuned[data-state=done]")
    assert page.inner_text(".asked") == TUNGSTEN
    assert page.locator("#compare-view .pane").count() == 3
    assert (pane_text(page, "lm"), pane_text(page, "finetuned")) == ("W", "Os")
    verdicts = [page.inner_text(f"#pane-{s} .verdict") for s in ("lm", "finetuned")]
    assert verdicts == ["✓ right", "✗ wrong"]
    assert "LoRA on B, 158 s" in page.inner_text("#pane-finetuned .pane-caption")
    assert page.inner_text("#drawer .drawer-title") == "Token 1 of 2: “Os” · fine-tuned"
    run(page, lambda: page.click("#generate"))
    shown = page.evaluate("[...MLPMEM.page.activeView().panes.keys()]")
    assert shown == ["lm", "memory", "knn"], "only that run has other columns"
    tick(page, "fine-tuned", "broken", "with both")
    run(page, lambda: page.click("#generate"))
    page.wait_for_selector("#pane-broken[data-state=failed]")
    assert "weights are damaged" in page.inner_text("#pane-broken")
    assert page.locator("#compare-view .pane").count() == 6
    page.click("#pane-finetuned .token >> nth=0")
    assert page.inner_text("#drawer .candidates th >> nth=1") == "fine-tuned"
    assert "This decoder gives “Os”" in page.inner_text("#drawer .story")
    assert not page.is_visible("#drawer .probe"), "the page's model is another one"
    page.click("#drawer .branch >> nth=1")
    page.wait_for_function("document.querySelector('.alert').textContent.includes('continue from')")
    page.wait_for_selector("#pane-finetuned[data-state=done]")
    assert pane_text(page, "finetuned") == "Os", "a failed branch keeps the text"
    assert page.inner_text("#pane-finetuned .verdict") == "✗ wrong"
    assert page.locator(".tree-node").count() == 0
    page.click("#pane-finetuned .token >> nth=0")
    before = rows_of(page)
    set_lambda(page, "0.1")
    assert rows_of(page) == before, "lambda does not apply here"
    page.click("#pane-mixed .token >> nth=0")
    _, lm, memory, knn, fused = rows_of(page)[0]
    assert abs(fused - (0.9 * lm + 0.05 * (memory + knn))) < 1e-9


def test_a_default_routers_switch_is_on_until_lambda_is_moved(visit):
    page = visit()
    page.click("#lambda-auto")
    generate(page, TUNGSTEN)
    page.click("#pane-memory .token >> nth=1")
    switch = lambda: page.get_attribute("#lambda-auto", "aria-checked")  # noqa: E731
    page.evaluate("MLPMEM.page.status.routed = true; MLPMEM.page.bar.set(null)")
    assert switch() == "true" and page.inner_text(".lambda-value") == "0.13"
    assert page.get_attribute(".reset", "data-offered") is None
    page.click("#lambda-auto")
    assert switch() == "false" and page.inner_text(".lambda-value") == "0.55"
    assert titles(page, "memory")[1] == "", "one lambda for all tokens"
    page.click(".reset")
    assert switch() == "true" and titles(page, "memory")[1] == "λ 0.13 here"
    link = page.evaluate("MLPMEM.linkOf(MLPMEM.recordOf(MLPMEM.page.activeView()))")
    assert "lambda=auto" in link


def test_auto_shows_every_tokens_lambda_and_the_slider_takes_over(visit):
    page = visit()
    page.fill("#prompt textarea", TUNGSTEN)
    page.click("#lambda-auto")
    assert page.inner_text(".lambda-value") == "auto"
    tick(page, "fine-tuned")
    generate(page, TUNGSTEN)
    page.wait_for_selector("#pane-finetuned[data-state=done]")
    assert titles(page, "memory") == ["λ 0.88 here", "λ 0.13 here", "λ 0.13 here"]
    assert titles(page, "knn")[0] == "", "no router, so its own lambda"
    page.click("#pane-memory .token >> nth=1")
    assert page.inner_text(".lambda-value") == "0.13"
    assert "The router chose this λ" in page.inner_text("#drawer .story")
    assert all(abs(f - (0.875 * lm + 0.125 * m)) < 1e-9 for _, lm, m, _, f in rows_of(page))
    assert "prompt read in 4.10 ms" in page.inner_text("#pane-memory .cost-detail >> nth=0")
    assert "prompt read" not in page.inner_text("#pane-knn .cost-detail >> nth=0")
    record = page.evaluate("MLPMEM.recordOf(MLPMEM.page.activeView())")
    assert record["traces"]["memory"]["lmbda"] == "auto"
    back = json.loads(json.dumps(saved.read(json.dumps(record))))
    assert back["traces"] == record["traces"]
    link = page.evaluate("MLPMEM.linkOf(MLPMEM.recordOf(MLPMEM.page.activeView()))")
    query = link.split("?")[1]
    assert "lambda=auto" in query and "systems=lm%2Cmemory%2Cknn%2Cfinetuned" in query
    set_lambda(page, "0.9")
    assert page.get_attribute("#lambda-auto", "aria-checked") == "false"
    assert titles(page, "memory")[1] == ""
    assert all(abs(f - (0.1 * lm + 0.9 * m)) < 1e-9 for _, lm, m, _, f in rows_of(page))
    set_lambda(page, "0.55")
    generate(page, TUNGSTEN)
    page.click("#pane-memory .token >> nth=0")
    of_text = perplexity(page)
    page.click("#lambda-auto")
    assert perplexity(page) == of_text, "a text with one lambda has none per token"
    page.goto(link)
    page.wait_for_selector("#pane-finetuned[data-state=done]")
    assert page.get_attribute("#lambda-auto", "aria-checked") == "true"
    assert titles(page, "memory")[0] == "λ 0.88 here"
