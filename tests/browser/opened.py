"""A page of a running app in a new browser, for the scripts that measure and picture it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from conftest import FLAGS, find_chromium
from playwright.sync_api import sync_playwright

PATIENCE = 240_000  # milliseconds; the first start builds the datastore


@contextmanager
def opened(url: str, height: int = 860, watch: Callable[[Any], None] = id) -> Iterator[Any]:
    """Yield a desktop page once its model is ready; watch(page) is called before it is loaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(playwright), args=FLAGS, timeout=PATIENCE
        )
        page = browser.new_page(viewport={"width": 1280, "height": height})
        page.set_default_timeout(PATIENCE)
        watch(page)
        page.goto(url)
        page.wait_for_selector("#status .chip[data-state=ready]")
        yield page
        browser.close()
