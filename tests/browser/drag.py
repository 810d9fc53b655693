"""Measure frames while lambda is dragged: python tests/browser/drag.py URL [--tokens 300].

Every animation frame moves the slider by a hundredth, for 120 frames. It prints the times between
frames, the page's work in a frame by the clock (scripts, styles, layout), and the main thread's
processor time of a whole frame, which a busy machine changes little. It does so for two and three
columns, with the processor as it is and four times slower. 60 frames per second are 16.7 ms.
"""

import argparse
import sys
from statistics import median, quantiles

from measure import LONGER
from opened import opened

DRAG = """() => new Promise((done) => {
  const input = document.querySelector('#lambda');
  const [frames, work] = [[], []];
  const move = (now) => {
    frames.push(now);
    if (frames.length > 121) return done([frames, work]);
    const began = performance.now();
    const at = frames.length % 200;
    input.value = String((at > 100 ? 200 - at : at) / 100);
    input.dispatchEvent(new Event('input', { bubbles: true }));
    document.body.getBoundingClientRect();
    work.push(performance.now() - began);
    requestAnimationFrame(move);
  };
  requestAnimationFrame(move);
})"""
FEWER = """(systems) => {
  const view = MLPMEM.page.views[0];
  window.all ??= view.finished;
  const traces = Object.fromEntries(systems.map((name) => [name, window.all[name]]));
  view.receive({ kind: 'recorded', run: systems.join(), prompt: 'measure', traces });
}"""
LATE = 18.0  # milliseconds between two frames, of which one is missed


def processor_time(session) -> float:
    """Return the milliseconds that the page's main thread has used."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return 1000 * next(row["value"] for row in metrics if row["name"] == "ThreadTime")


def drag(page, session, what: str) -> None:
    """Print the frames of one drag."""
    page.evaluate("MLPMEM.page.bar.set(null)")
    page.wait_for_timeout(300)
    before = processor_time(session)
    times, work = page.evaluate(DRAG)
    used = (processor_time(session) - before) / len(work)
    frames = [b - a for a, b in zip(times, times[1:], strict=False)]
    late = sum(frame > LATE for frame in frames)
    sys.stdout.write(
        f"{what:34} {1000 * len(frames) / sum(frames):5.1f} frames/s, frame median "
        f"{median(frames):5.1f} ms, 95th {quantiles(frames, n=20)[-1]:5.1f}, {late:3} of "
        f"{len(frames)} late; work median {median(work):5.1f} ms, 95th "
        f"{quantiles(work, n=20)[-1]:5.1f}; processor {used:5.1f} ms a frame\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Print all drags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--tokens", type=int, default=300)
    args = parser.parse_args()
    with opened(args.url) as page:
        page.wait_for_timeout(1500)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        page.evaluate(LONGER, args.tokens)
        every = page.evaluate("Object.keys(MLPMEM.page.views[0].finished)")
        for count in (2, 3):
            page.evaluate(FEWER, every[:count])
            for slower in (1, 4):
                session.send("Emulation.setCPUThrottlingRate", {"rate": slower})
                speed = "" if slower == 1 else f", {slower}x slower"
                drag(page, session, f"{min(count, len(every))} x {args.tokens} tokens{speed}")
            session.send("Emulation.setCPUThrottlingRate", {"rate": 1})


if __name__ == "__main__":
    main()
