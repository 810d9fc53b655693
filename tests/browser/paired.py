"""A token's time in the page's worker, in the page, and by transformers, in turns.

The worker's clock runs from a plan to its last value, without the page's drawing; transformers'
generate() runs on one thread, for the same fused bundle.
"""

import contextlib
import json
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "assets" / "atlas"
FIRST = -10  # the niceness of processes that run before others
TOKENS = 32
WORKERS = ("DedicatedWorker", "DOM Worker", "WebCore: Worker")  # names of threads
ASK = """async ({ prompt, systems, lmbda, tokens }) => {
  const { page } = MLPMEM;
  const view = page.views[0];
  page.bar.set(lmbda);
  document.querySelector('#option-max_new_tokens').value = tokens;
  const names = ['lm', 'memory', 'knn'];
  document.querySelectorAll('#systems input').forEach((box, i) => { box.checked = systems.includes(names[i]); });
  document.querySelector('#prompt textarea').value = prompt;
  window.heard ||= page.on('ended', () => window.ended?.()) ?? true;
  const ended = new Promise((done) => { window.ended = done; });
  const begin = performance.now();
  document.querySelector('#generate').click();
  await ended;
  const ms = performance.now() - begin;
  await new Promise((done) => setTimeout(done));
  if (view.alert.textContent) throw new Error(view.alert.textContent);
  return { ms, traces: Object.fromEntries(systems.map((system) => [system, view.finished[system].steps.map((step) =>
    ({ id: step.id, p: step.p, lmbda: step.lmbda, cand: step.cand, ms: step.ms }))])) };
}"""  # noqa: E501
WORK = """async ({ prompt, systems, lmbda, tokens }) => {
  window.alone ||= await new Promise(async (done, fail) => {
    const text = await (await fetch('recordings.js')).text();
    const { live } = JSON.parse(text.slice(text.indexOf('(') + 1, text.lastIndexOf(')')));
    const worker = new Worker('worker.js');
    worker.onmessage = ({ data }) => {
      if (data.about === 'ready') done(worker);
      if (data.about === 'lost') fail(new Error(data.text));
    };
    worker.postMessage({ load: live });
  });
  const options = { max_new_tokens: tokens };
  const plan = { kind: 'compare', run: 'r', prompt, systems, lmbda, options, forced: [], own: false };
  await new Promise((done) => {
    window.alone.onmessage = ({ data }) => data.about === 'end' && done();
    window.alone.postMessage({ job: window.jobs = (window.jobs ?? 0) + 1, plan });
  });
}"""  # noqa: E501


def say(what: str, value: float, unit: str, bound: str = "") -> None:
    """Print one figure."""
    sys.stdout.write(f"{what:58} {value:11.6g} {unit:6} {bound}\n")
    sys.stdout.flush()


def per_token(run: Any, clock: Any) -> tuple[float, float]:
    """Return (wall, processor) milliseconds per token after the first of run(tokens)."""
    times = []
    for tokens in (1, TOKENS):
        begin, spent = time.perf_counter(), clock()
        run(tokens)
        times.append((time.perf_counter() - begin, clock() - spent))
    one, many = times
    return tuple(1000 * (b - a) / (TOKENS - 1) for a, b in zip(one, many, strict=True))


def processor(pid: int) -> float:
    """Return the processor seconds of a process's workers, by their threads' nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    workers = [task for task in tasks if (task / "comm").read_text().startswith(WORKERS)]
    assert workers, "the browser names its workers' threads otherwise; correct WORKERS"
    return sum(int((task / "schedstat").read_text().split()[0]) for task in workers) / 1e9


def ask(page: Any, script: str, asked: dict, tokens: int) -> None:
    """Generate a number of tokens by ASK in the page, or by WORK in a worker only."""
    page.evaluate(script, {**asked, "tokens": tokens})


def generate(fused: Any, ids: torch.Tensor, tokens: int) -> None:
    """Generate a number of tokens by transformers."""
    fused.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def timed(page: Any, pid: int, args: Any) -> dict[str, tuple[float, float]]:
    """Return (wall, processor) ms per token of the worker, the page and transformers, medians."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = long_prompts()
    fused = AutoModelForCausalLM.from_pretrained(args.fused)
    fused.fused.decoder.straight = None  # transformers' own Llama, not this project's pass
    tokenizer = AutoTokenizer.from_pretrained(args.fused)
    lmbda = json.loads((BUNDLE / "manifest.json").read_text())["settings"]["lmbda"]["memory"]
    clock = partial(processor, pid)
    rows: dict[str, list] = {"in the worker": [], "in the page": [], "of transformers": []}
    for _ in range(args.turns):
        for prompt in prompts:
            asked = {"prompt": prompt, "systems": ["memory"], "lmbda": lmbda}
            for name, script in (("in the worker", WORK), ("in the page", ASK)):
                rows[name].append(per_token(partial(ask, page, script, asked), clock))
            ids = torch.tensor([tokenizer.encode(prompt)])
            run = partial(generate, fused, ids)
            rows["of transformers"].append(per_token(run, time.process_time))
    return {name: tuple(map(median, zip(*some, strict=True))) for name, some in rows.items()}


def long_prompts() -> list[str]:
    """Return the recorded prompts whose answers with the memory have enough tokens."""
    traces = [json.loads(p.read_text()) for p in sorted((BUNDLE / "traces").glob("*.json"))]
    return [t["prompt"] for t in traces if len(t["traces"]["memory"]["steps"]) > TOKENS]


def print_times(page: Any, pid: int, args: Any) -> None:
    """Print a token's times and their ratios."""
    rows = timed(page, pid, args)
    *ours, (_, theirs) = rows.items()
    for i, kind in enumerate(("clock", "processor")):
        for name, times in rows.items():
            say(f"{kind} time of a token with the memory, {name}", times[i], "ms")
        for name, times in ours:
            bound = "at most 0.5" if name == "in the worker" else ""
            say(f"{kind} time, ratio {name}", times[i] / theirs[i], "times", bound)


def before_others(pid: int) -> None:
    """Let a process and all below it run before those of other sessions, if this user may."""
    for one in (pid, *below(pid)):
        with contextlib.suppress(OSError):
            Path(f"/proc/{one}/autogroup").write_text(str(FIRST))


def below(pid: int) -> list[int]:
    """Return the processes below one, in all generations."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *below(child)]
    return found
