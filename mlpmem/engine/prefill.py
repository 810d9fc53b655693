"""The prompts of a run: read by the decoder, and by routers as evidence.

With a PrefixCache, only what is new of a prompt is read.
"""

import time
import weakref
from collections.abc import Collection

import torch

from mlpmem.engine.call import Call, Clock, Writer
from mlpmem.engine.prefix import Asked, Gaps, Known, PrefixCache
from mlpmem.engine.router import Evidence, reached, read_prompt, read_scores
from mlpmem.engine.trace import AUTO
from mlpmem.model.decoder import DecoderOutput


def read_prompts(
    call: Call, writers: list[Writer], evidence: Evidence, clock: Clock
) -> DecoderOutput:
    """Return the decoder's output after every row's prompt, and read the prompts as evidence."""
    begin = time.perf_counter()
    prompts = {writer.row: writer.prompt for writer in writers}
    forced = list(call.options.forced)
    ids = [[*prompts[row].ids, *forced] for row in range(len(prompts))]
    routed = {w.system for w in writers if _reads_evidence(call, w)}
    size, count = len(prompts[0].ids), reached(prompts[0].ids, bool(routed))
    known = _known(call, ids, size, count, routed)
    gaps = known.gaps or []
    if gaps:
        count = size - 1 - known.count
    # scores are enough for a router of the memory only
    by_scores = routed == {"memory"} and call.model.settings.memory_temperature == 1
    output = call.model.decoder.forward(
        torch.tensor(ids)[:, known.count :],
        cache=known.cache,
        use_cache=True,
        last=1 + len(forced) + (0 if by_scores else count),
        memory=call.model.memory if "memory" in call.parts else None,
        scored=count if by_scores else 0,
    )
    clock.reused = known.count
    clock.prefill_ms = 1000 * (time.perf_counter() - begin) / len(prompts)
    for row, prompt in prompts.items():
        columns = {w.name: w.system for w in writers if w.row == row and _reads_evidence(call, w)}
        for name in columns:
            evidence.read([name] * len(gaps), torch.tensor(gaps))
        if output.scores is not None:
            read_scores(evidence, output.scores[:, row], columns)
        else:
            states = output.states(row)
            read_prompt(evidence, call.model, states, prompt.ids, columns, call.store, count)
    clock.read = {part: s / len(prompts) for part, s in evidence.seconds.items()}
    return output


def _reads_evidence(call: Call, writer: Writer) -> bool:
    """Return whether a router that reads evidence chooses a writer's lambda."""
    return writer.lmbda == AUTO and call.model.reads_evidence(writer.system, call.store)


def _known(
    call: Call, ids: list[list[int]], size: int, count: int, routed: Collection[str]
) -> Known:
    """Return what was read before of the one prompt, its first `size` ids; nothing of several.

    `count` of its last tokens are evidence of the routed systems.
    """
    if call.prefix is None or len(ids) > 1:
        return Known()
    memory = call.model.memory if routed == {"memory"} else None  # whose gaps are kept
    asked = Asked(ids[0], size, count, memory, call.model.settings.memory_temperature)
    return call.prefix.take(call.model.decoder, asked)


def keep_read(
    prefix: PrefixCache, call: Call, output: DecoderOutput, latest: list[Writer], evidence: Evidence
) -> None:
    """Keep what one of the latest writers has read, and the evidence of a router of the memory."""
    settings, decoder, gaps = call.model.settings, call.model.decoder, None
    writer = next((w for w in latest if w.lmbda == AUTO and w.system == "memory"), latest[0])
    ids = [*writer.ids, *call.options.forced[len(writer.steps) :]]
    if writer.system == "memory" and _reads_evidence(call, writer):
        first = len(writer.prompt.ids) - reached(writer.prompt.ids)
        found = evidence.gaps.get(writer.name, [])
        gaps = Gaps(weakref.ref(call.model.memory), settings.memory_temperature, first, found)
    read = ids[: output.cache.get_seq_length()]
    prefix.put(decoder, read, output.cache, writer.row, gaps)
