"""Decoding of a GGUF file, against llama.cpp on the same file, in turns.

The peer is node-llama-cpp's prebuilt llama.cpp in a process of its own, from a folder where `npm
install node-llama-cpp` was run: it takes token ids and says when each token came. Both read the
same prompts and write as many tokens, greedily; each has the threads it is given. "memory" is the
decoder with a memory of four blocks, random weights.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mlpmem.bench.figures import Figure, in_turns, ratios, timed
from mlpmem.engine.fused import FusedModel
from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import threads_between
from mlpmem.fast.linear import form_of
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory, MemoryConfig

TOKENS, BLOCKS = 64, 4
LENGTHS = (32, 256, 900)
TEXT = (
    "The history of the city begins with the first settlers who came along the river in search of "
    "good land and built their houses of wood and clay on the hill above the ford. "
)
SERVER = """
import {getLlama, LlamaLogLevel} from "node-llama-cpp";
import * as readline from "node:readline";
const [modelPath, threads, contextSize] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true,
    logLevel: LlamaLogLevel.error, maxThreads: +threads});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: +contextSize, threads: +threads});
const sequence = context.getSequence();
console.log("ready");
for await (const line of readline.createInterface({input: process.stdin})) {
    const {ids, tokens} = JSON.parse(line);
    await sequence.clearHistory();
    const at = [], start = performance.now();
    for await (const _ of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        at.push(performance.now() - start);
        if (at.length >= tokens) break;
    }
    console.log(JSON.stringify(at));
}
process.exit(0);
"""


def bench(
    file: Path, peer: Path | None = None, threads: int = 1, form: str = "int4", rounds: int = 5
) -> Iterator[Figure]:
    """Yield first tokens by the prompt's length, tokens/s, columns, a memory; and the peer's."""
    torch.set_num_threads(threads)
    dtype, bits = form_of(form)
    decoder = Decoder.load(file, dtype=dtype)
    model = FusedModel(decoder, _memory(decoder, dtype)).pack(bits)
    decoder.threads = decoder.all_threads = threads
    if (fast_pass := decoder.fast_pass) is not None:
        fast_pass.compile()
    ids = decoder.encode(TEXT)
    prompts = {length: (ids * (length // len(ids) + 1))[:length] for length in LENGTHS}
    work: dict[str, Callable] = {}
    with _peer(peer, file, threads) as ask:
        for length, prompt in prompts.items():
            work[f"ours/{length}"] = _ours(model, prompt, 1, f"ours/{length}")
            if ask is not None:
                work[f"peer/{length}"] = _theirs(ask, prompt, f"peer/{length}")
        work["memory"] = _ours(model, prompts[32], 1, "memory", memory=True)
        for rows in (2, 3):
            work[f"rows{rows}"] = _ours(model, prompts[900], rows, f"rows{rows}")
        found = in_turns(work, rounds)
    name = f"llama/{form}/threads={threads}"
    if decoder.kl:
        yield Figure(f"{name}/kl", decoder.kl, "nats")
    for length in LENGTHS:
        for part, metric in (("first", "ms_to_first_token"), ("token", "ms_per_token")):
            ours = found[f"ours/{length}/{part}"]
            where = f"{name}/prompt={length}"
            theirs = found.get(f"peer/{length}/{part}")
            middle = sorted(theirs)[len(theirs) // 2] if theirs else None
            yield timed(f"{where}/{metric}", ours, peer=middle)
            yield Figure(f"{where}/{metric}/best", min(ours), "ms", peer=theirs and min(theirs))
            if theirs:
                yield timed(
                    f"{where}/times_faster_than_llama_cpp_{part}", ratios(theirs, ours), "x"
                )
    times = ratios(found["memory/token"], found["ours/32/token"])
    yield timed(f"{name}/with_memory_times_decoder", times, "x")
    for rows in (2, 3):
        times = ratios(found[f"rows{rows}/token"], found["ours/900/token"])
        yield timed(f"{name}/{rows}_columns_times_one/prompt=900", times, "x")


def _memory(decoder: Decoder, dtype: torch.dtype) -> Memory:
    """Return a memory of BLOCKS blocks with random weights and the decoder's head."""
    sizes = decoder.hidden_size, decoder.vocab_size, BLOCKS, 4 * decoder.hidden_size
    config = MemoryConfig(*sizes, family="llama", tied_head=True)
    return Memory(config).eval().requires_grad_(False).to(dtype)


def _ours(
    model: FusedModel, prompt: Sequence[int], rows: int, name: str, memory: bool = False
) -> Callable[[], dict[str, float]]:
    """Return work that reads a prompt and writes TOKENS tokens in so many rows."""
    decoder, ids = model.decoder, torch.tensor([prompt])

    @torch.inference_mode()
    def next_of(output: Any) -> torch.Tensor:
        with threads_between(decoder, rows):
            return best_of(output)

    def best_of(output: Any) -> torch.Tensor:
        logits = output.logits[:, -1].float()
        if memory and output.recalled is not None:
            logits = logits + output.recalled.logits[:, -1]
        elif memory:
            logits = logits + model.memory(output.hidden[:, -1].to(model.memory.norm.weight.dtype))
        return logits.argmax(-1, keepdim=True)

    def work() -> dict[str, float]:
        start = time.perf_counter()
        output = decoder.forward(ids, use_cache=True, last=1)
        token, at = next_of(output), [time.perf_counter()]
        if rows > 1:
            output.cache.batch_select_indices(torch.zeros(rows, dtype=torch.long))
            token = token.expand(rows, 1)
        for _ in range(TOKENS - 1):
            beside = model.memory if memory else None
            output = decoder.forward(token, cache=output.cache, last=1, memory=beside)
            token = next_of(output)
            at.append(time.perf_counter())
        return _times(name, [1000 * (x - start) for x in at])

    return work


def _theirs(ask: Callable, prompt: Sequence[int], name: str) -> Callable[[], dict[str, float]]:
    """Return work that has the peer do the same in one row."""
    return lambda: _times(name, ask(prompt))


def _times(name: str, at: Sequence[float]) -> dict[str, float]:
    """Return ms to the first token and a token after it, of ms when the tokens came."""
    return {f"{name}/first": at[0], f"{name}/token": (at[-1] - at[0]) / (len(at) - 1)}


@contextmanager
def _peer(folder: Path | None, file: Path, threads: int) -> Iterator[Callable | None]:
    """Yield what asks llama.cpp for TOKENS tokens and returns the ms when they came."""
    if folder is None:
        yield None
        return
    if not (folder / "node_modules" / "node-llama-cpp").is_dir():
        raise MlpMemError(
            f"--peer-llama-cpp: {folder} holds no node-llama-cpp; run "
            f"`npm install --prefix {folder} node-llama-cpp` first"
        )
    script = folder / "mlpmem_peer.mjs"
    script.write_text(SERVER, encoding="utf-8")
    size = str(max(LENGTHS) + TOKENS + 8)
    command = ["node", script.name, str(file.resolve()), str(threads), size]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, **pipes) as process:

        def ask(prompt: Sequence[int]) -> list[float]:
            process.stdin.write(json.dumps({"ids": list(prompt), "tokens": TOKENS}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        try:
            if process.stdout.readline().strip() != "ready":
                raise MlpMemError("--peer-llama-cpp: llama.cpp did not start; run node by hand")
            yield ask
        finally:
            process.terminate()
            script.unlink(missing_ok=True)
