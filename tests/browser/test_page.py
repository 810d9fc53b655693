"""The Compare tab in a browser, with the fake model."""

import json
import time

import fake
import pytest

from mlpmem.engine.trace import mix

BOOK = fake.ask("Who wrote The Salt Ledger?")


RUN = "#compare-view .view-host"
DONE = """(run) => document.querySelector('#compare-view .view-host').dataset.run !== run
  && document.querySelector('#pane-memory').dataset.state === 'done'"""


def run(page, start):
    """Call start and return once the new run's memory column is done."""
    before = page.get_attribute(RUN, "data-run")
    start()
    page.wait_for_function(DONE, arg=before)


def generate(page, prompt):
    page.fill("#prompt textarea", prompt)
    run(page, lambda: page.click("#generate"))


def set_lambda(page, value):
    page.evaluate(
        """(value) => {
          const input = document.getElementById('lambda');
          input.value = value;
          input.dispatchEvent(new Event('input', { bubbles: true }));
          input.dispatchEvent(new Event('change', { bubbles: true }));
        }""",
        value,
    )


def overflow(page):
    """Return the pixels by which the page can be scrolled horizontally."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def pane_text(page, system):
    return page.inner_text(f"#pane-{system} .strip").removesuffix("end").strip()


def rows_of(page):
    return page.eval_on_selector_all(
        "#drawer .candidate",
        """rows => rows.map(r => [Number(r.dataset.tokenId), ...['lm', 'memory', 'knn', 'fused']
          .map(s => Number(r.getAttribute(`data-${s}`)))])""",
    )


def traces_of(prompt, lmbda=None):
    model = fake.FakeModel(pace=0)
    model.systems = ["lm", "memory", "knn"]
    traces = model.compare(prompt, lmbda=lmbda)
    return {system: json.loads(trace.to_json()) for system, trace in traces.items()}


def test_the_first_screen_plays_a_recording_before_the_model_is_loaded(visit):
    page = visit("waiting", ready=False)
    page.wait_for_selector("#status .chip[data-state=replay]")
    assert page.inner_text(".badge") == "recorded"
    assert pane_text(page, "memory") == "Odalys Wren"
    assert page.inner_text(".truth") == "right answer: Odalys Wren"
    assert page.inner_text("#pane-lm .verdict") == "✗ wrong"
    page.click(".play")
    page.wait_for_selector("#pane-memory[data-state=running] .token")
    assert page.locator("#pane-memory .token").count() < 5
    page.wait_for_selector("#pane-memory[data-state=done]")
    assert pane_text(page, "knn") == "Odalys Wren"


def test_generating_before_the_model_is_loaded_shows_a_message(visit):
    page = visit("waiting", ready=False)
    page.click("#generate")
    page.wait_for_function("document.querySelector('.alert').textContent !== ''")
    assert "cannot answer yet" in page.inner_text(".alert")


def test_generate_fills_three_panes_and_judges_the_answers(visit):
    page = visit()
    generate(page, fake.ask("In which town was Ilka Brandt born?"))
    assert [pane_text(page, s) for s in ("lm", "memory", "knn")] == [
        "Marnfeld", "Tervalla", "Tervalla",
    ]  # fmt: skip
    assert page.inner_text("#pane-memory .verdict") == "✓ right"
    assert "Differs from the decoder at token 1" in page.inner_text("#pane-memory .pane-note")
    assert "169 tokens/s" in page.inner_text("#pane-memory .cost")
    assert "223 MB" in page.inner_text("#pane-knn .cost")


@pytest.mark.slow
def test_a_longer_text_arrives_complete_in_deltas(visit):
    page = visit()
    prompt = "The river Aldermere rises in the"
    generate(page, prompt)
    for system, trace in traces_of(prompt).items():
        assert pane_text(page, system) == trace["text"].strip()
        ids = page.eval_on_selector_all(
            f"#pane-{system} .token", "tokens => tokens.map(t => Number(t.dataset.tokenId))"
        )
        assert ids == [step["id"] for step in trace["steps"]]


@pytest.mark.slow
def test_a_bare_question_gets_the_trained_form(visit):
    page = visit()
    page.fill("#prompt textarea", "What is the capital of Peru?")
    run(page, lambda: page.press("#prompt textarea", "Control+Enter"))
    assert page.inner_text(".asked") == "Question: What is the capital of Peru? Answer:"
    assert pane_text(page, "memory") == "Lima"


def test_the_drawer_shows_the_traces_numbers(visit):
    page = visit()
    generate(page, BOOK)
    trace = traces_of(BOOK)["memory"]
    page.click("#pane-memory .token[data-index='1']")
    page.wait_for_selector("#drawer .candidate[data-chosen]")
    step = trace["steps"][1]
    expected = {
        c[0]: [*c[2:], mix(dict(lm=c[2], memory=c[3]), "memory", 0.55)] for c in step["cand"]
    }
    rows = rows_of(page)
    assert len(rows) == len(expected)
    for token, *numbers in rows:
        assert numbers == pytest.approx(expected[token], rel=1e-9, abs=1e-15)
    assert "agree" in page.inner_text("#drawer .agreement")
    assert page.locator("#drawer .neighbour").count() == 8
    assert page.inner_text("#drawer .neighbour >> nth=0").startswith("The Salt Ledger (book)")
    page.hover("#pane-memory .token[data-index='2']")
    page.wait_for_selector(".hover-card:has-text('Rank of the written token: decoder')")
    listed = page.locator(".hover-list li").count()
    assert 1 <= listed <= 10 and "Entropy" in page.inner_text(".hover-card")
    page.mouse.move(2, 2)
    page.wait_for_selector(".hover-card", state="hidden")
    page.click("#pane-memory .token[data-index='2']")
    said = page.inner_text("#drawer .choice")
    assert said.startswith("Entropy ") and "Rank of the written token: decoder" in said
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#drawer .choice") != said
    page.wait_for_timeout(400)
    assert page.is_hidden(".hover-card"), "the drawer says it"
    page.focus("#pane-lm .token[tabindex='0']")
    page.wait_for_selector(".hover-card:has-text('Likeliest here')")
    assert page.get_attribute("[aria-describedby=token-card]", "role") == "option"


@pytest.mark.slow
def test_arrow_keys_walk_the_tokens_and_escape_closes(visit):
    page = visit()
    page.click("#pane-memory .token[data-index='0']")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#drawer .drawer-title").startswith("Token 3 of 5")
    assert page.evaluate("document.activeElement.dataset.index") == "2"
    page.keyboard.press("Escape")
    assert not page.is_visible("#drawer")
    page.keyboard.press("Enter")
    assert page.is_visible("#drawer")


def test_dragging_lambda_sends_nothing_and_marks_flips(visit):
    page = visit()
    page.wait_for_timeout(1000)
    before = len(page.seen.requests)
    box = page.locator("#lambda").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.55, y)
    page.mouse.down()
    for part in range(54, 18, -2):
        page.mouse.move(box["x"] + box["width"] * part / 100, y)
    page.mouse.up()
    page.wait_for_timeout(300)
    assert page.seen.requests[before:] == []
    assert float(page.input_value("#lambda")) < 0.3
    assert "Text valid up to here" in page.inner_text("#pane-memory .pane-note")
    assert "Generate again at λ" in page.inner_text(".again[data-offered]")
    page.click(".again")
    page.wait_for_function("document.querySelector('.badge').textContent === 'live'")
    page.wait_for_selector("#pane-memory[data-state=done]")
    assert page.locator(".again[data-offered]").count() == 0


def test_javascript_mixes_as_python_does(visit):
    page = visit()
    traces = traces_of(BOOK, lmbda=0.3)
    for system, trace in traces.items():
        for lmbda in (0.0, 0.123, 0.5, 0.99, 1.0):
            got = page.evaluate(
                """([trace, lambda]) => trace.steps.map((step) => [
                  MLPMEM.mix(step.p, trace.system, lambda),
                  ...step.cand.map((row) =>
                    MLPMEM.mix(MLPMEM.candidateOf(row).p, trace.system, lambda)),
                ])""",
                [trace, lmbda],
            )
            for step, numbers in zip(trace["steps"], got, strict=True):
                rows = [step["p"]] + [
                    dict(zip(("lm", "memory", "knn"), c[2:], strict=True)) for c in step["cand"]
                ]
                assert numbers == pytest.approx([mix(p, system, lmbda) for p in rows], abs=1e-9)


def test_stop_keeps_the_tokens_and_frees_the_model(visit):
    page = visit()
    page.fill("#prompt textarea", "slow")
    page.click("#generate")
    page.wait_for_selector("#pane-memory .strip:has-text('tock tock tock')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#pane-memory[data-state=stopped]")
    count = page.locator("#pane-memory .token").count()
    page.wait_for_timeout(400)
    assert 3 <= page.locator("#pane-memory .token").count() == count
    assert not page.is_visible(".play"), "only a complete run can be played"
    began = time.monotonic()
    generate(page, BOOK)
    assert pane_text(page, "memory") == "Odalys Wren"
    assert time.monotonic() - began < 20


def test_stop_before_or_after_a_run_changes_nothing(visit):
    page = visit()
    generate(page, BOOK)
    assert page.is_disabled("#stop")
    seen = page.evaluate(
        """() => { const click = (id) => document.getElementById(id).click();
          click('generate');
          return new Promise((done) => setTimeout(() => { click('stop'); done(
            document.querySelector('#compare-view .badge').textContent); }, 2)); }"""
    )
    assert seen == "live", "no value of the new run has come: the answers are the earlier run's"
    page.wait_for_timeout(700)
    assert page.inner_text("#compare-view .badge") == "live"
    assert pane_text(page, "memory") == "Odalys Wren"
    assert page.inner_text("#pane-memory .verdict") == "✓ right"
    page.wait_for_selector("#stop[disabled]")
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    assert page.inner_text("#compare-view .badge") == "live"
    assert page.get_attribute("#pane-memory", "data-state") == "done"


def test_invalid_input_shows_a_message(visit):
    page = visit()
    page.fill("#prompt textarea", "   ")
    page.click("#generate")
    page.wait_for_function("document.querySelector('.alert').textContent.includes('empty')")
    page.fill("#prompt textarea", "x" * 3000)
    page.click("#generate")
    page.wait_for_function("document.querySelector('.alert').textContent.includes('3,000')")
    generate(page, BOOK)
    assert page.inner_text(".alert") == ""
