"""app.py itself with a tiny bundle: the library behind the page, from start to drawer."""

import urllib.request

import pytest
from test_page import generate, rows_of


def test_the_app_serves_a_bundle_from_start_to_drawer(visit, servers, tmp_path):
    page = visit("app")
    assert "MB memory removes" in page.inner_text("#status .status-line")
    generate(page, "Peru is")
    for system in ("lm", "memory", "knn"):
        page.wait_for_selector(f"#pane-{system}[data-state=done]")
        assert page.locator(f"#pane-{system} .token").count() > 0
    page.click("#pane-knn .token >> nth=0")
    rows = rows_of(page)
    assert len(rows) >= 8
    for _, lm, _, knn, fused in rows:
        assert fused == pytest.approx(0.4 * lm + 0.6 * knn, abs=1e-6)
    assert page.locator("#drawer .neighbour").count() > 0


def test_the_handlers_are_private(servers):
    with urllib.request.urlopen(servers["app"].wait().url + "gradio_api/info") as answer:
        assert b'"named_endpoints":{}' in answer.read().replace(b" ", b"")
