"""Measure the page in a browser: python tests/browser/measure.py URL, of a running page.

Prints bytes before Plotly is asked for, milliseconds from Stop to a still page, and milliseconds of
a lambda repaint for three columns of 100 and of 300 tokens; a busy machine makes them larger.
"""

import sys
from statistics import median

from conftest import FLAGS, find_chromium
from playwright.sync_api import sync_playwright

REPAINT = """async (count) => {
  const view = MLPMEM.page.views[0];
  const traces = structuredClone(view.finished);
  for (const trace of Object.values(traces)) {
    const own = trace.steps.filter((step) => step.s !== '</s>');
    trace.steps = Array.from({ length: count }, (_, i) => ({ ...own[i % own.length], i }));
  }
  view.receive({ kind: 'recorded', run: 'measure', prompt: 'measure', traces });
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const times = [];
  for (let i = 0; i <= 40; i += 1) {
    await frame();
    const began = performance.now();
    MLPMEM.page.setLambda(i / 40);
    document.body.getBoundingClientRect(); // styles and layout are part of it
    times.push(performance.now() - began);
  }
  return times;
}"""
STOP = """() => new Promise((done) => {
  const began = performance.now();
  const look = () => (document.body.hasAttribute('data-running') ? requestAnimationFrame(look)
    : done(performance.now() - began));
  document.querySelector('#stop').click();
  look();
})"""


def main(url: str) -> None:
    """Open the page anew and print the three measurements."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(playwright), args=FLAGS, timeout=240_000
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(240_000)
        sizes = []
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        network.on("Network.loadingFinished", lambda e: sizes.append(e["encodedDataLength"]))
        page.goto(url)
        page.wait_for_selector("#status .chip[data-state=ready]")
        page.wait_for_selector("#pane-memory[data-state=done]")
        page.wait_for_timeout(1500)
        say = sys.stdout.write
        say(f"transfer before Plotly: {sum(sizes) / 1e6:.2f} MB in {len(sizes)} requests\n")
        page.fill("#prompt textarea", "slow")
        page.click("#generate")
        page.wait_for_selector("#pane-memory .token >> nth=1")
        say(f"from Stop to a still page: {page.evaluate(STOP):.0f} ms\n")
        page.reload()
        page.wait_for_selector("#pane-memory[data-state=done]")
        for count in (100, 300):
            times = page.evaluate(REPAINT, count)
            say(f"lambda repaint of 3 x {count} tokens: median {median(times):.1f} ms, ")
            say(f"fastest {min(times):.1f}, slowest {max(times):.1f}\n")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
