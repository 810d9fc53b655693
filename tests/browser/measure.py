"""Measure the page of a running app in a browser: python tests/browser/measure.py URL.

It prints one line per figure with its limit; figures are larger on a busy machine.
"""

import sys
from statistics import median

from opened import opened

REPAINTS = """() => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const times = [];
  const next = async (i) => {
    if (i > 40) return times;
    await frame();
    const began = performance.now();
    MLPMEM.page.setLambda(i / 40);
    document.body.getBoundingClientRect(); // include styles and layout
    times.push(performance.now() - began);
    return next(i + 1);
  };
  return next(0);
}"""
LONGER = """(count) => {
  const view = MLPMEM.page.views[0];
  const traces = structuredClone(view.finished);
  for (const trace of Object.values(traces)) {
    const own = trace.steps.filter((step) => step.s !== '</s>');
    trace.steps = Array.from({ length: count }, (_, i) => ({ ...own[i % own.length], i }));
  }
  view.receive({ kind: 'recorded', run: 'measure', prompt: 'measure', traces });
}"""
STOP = """() => new Promise((done) => {
  const began = performance.now();
  const look = () => (document.body.hasAttribute('data-running') ? requestAnimationFrame(look)
    : done(performance.now() - began));
  document.querySelector('#stop').click();
  look();
})"""
DELTAS = """() => {
  const view = MLPMEM.page.views[0];
  const add = view.add.bind(view);
  window.deltas = [];
  view.add = (steps) => { window.deltas.push(performance.now()); add(steps); };
}"""
SCRUBBED = """(system) => {
  const { cost } = MLPMEM.page.views[0].tree.current.get(system).scrub;
  return cost.seconds / cost.single;
}"""
FIRST = """() => new Promise((done) => {
  const look = () => (document.querySelector('#pane-memory .token') ? done(performance.now())
    : requestAnimationFrame(look));
  look();
})"""


def say(what: str, value: float, unit: str, bound: str = "") -> None:
    """Print one figure."""
    sys.stdout.write(f"{what:48} {value:9.2f} {unit:4} {bound}\n")
    sys.stdout.flush()


def repaint(page, what: str) -> None:
    """Print the time of a change of lambda, including layout."""
    times = page.evaluate(REPAINTS)
    say(f"lambda repaint, {what}", median(times), "ms", "< 16, the median of 41")


def streaming(page) -> None:
    """Print the updates per second and the time to stop of a longer text."""
    page.evaluate(DELTAS)
    page.fill("#prompt textarea", "Question: What do you know about Albania? Answer:")
    page.click("#generate")
    page.wait_for_selector("body[data-running]")
    page.wait_for_selector("body:not([data-running])")
    times = page.evaluate("window.deltas")
    say("updates per second", (len(times) - 1) / (times[-1] - times[0]) * 1000, "", "15 to 20")
    page.click("#generate")
    page.wait_for_function("before => window.deltas.length > before", arg=len(times))
    say("from Stop to a still page", page.evaluate(STOP), "ms", "<= 200")


def scrubbing(page) -> None:
    """Print the time of eleven lambdas relative to one, for both columns."""
    page.click("#generate")
    page.wait_for_selector("#pane-knn[data-state=done]")
    for system in ("memory", "knn"):
        page.click(f"#pane-{system} .scrub .small-button")
        page.wait_for_selector(f"#pane-{system} .scrub-ticks:not([hidden])")
        say(f"eleven lambdas / one, {system}", page.evaluate(SCRUBBED, system), "x", "<= 2.5")


def inspecting(page) -> None:
    """Print the repaint time of an inspected text of about 500 tokens."""
    text = page.evaluate("MLPMEM.page.views[0].finished.memory.text")
    page.evaluate("text => MLPMEM.page.inspect(text)", f"{text.strip()} " * 15)
    page.wait_for_selector("#inspect-pane-memory[data-state=done], #inspect-view .alert:visible")
    count = page.locator("#inspect-pane-memory .token").count()
    repaint(page, f"{count} inspected tokens")


def main(url: str) -> None:
    """Open the page and print all figures."""
    sizes = []

    def watch(page):
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        network.on("Network.loadingFinished", lambda e: sizes.append(e["encodedDataLength"]))

    with opened(url, watch=watch) as page:
        page.wait_for_timeout(1500)
        say(f"transfer before Plotly, {len(sizes)} requests", sum(sizes) / 1e6, "MB", "<= 1")
        page.reload(wait_until="commit")
        say("first screen, cached", page.evaluate(FIRST), "ms")
        page.wait_for_selector("#status .chip[data-state=ready]")
        for count in (100, 300):
            page.evaluate(LONGER, count)
            repaint(page, f"3 x {count} tokens")
        page.evaluate("MLPMEM.page.bar.set(null)")
        streaming(page)
        scrubbing(page)
        inspecting(page)


if __name__ == "__main__":
    main(sys.argv[1])
