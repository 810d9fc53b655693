"""Many prompts at once: what a system makes of given continuations, and what it writes itself.

The same as `log_probs` and `generate` one by one, as fast as batches are. P positions, the tokens
of all continuations one after another; Q prompts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.router import REACH, Evidence, reach, reached
from mlpmem.engine.systems import System, follow
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import DecoderOutput
from mlpmem.retrieval.documents import Documents, join_passages
from mlpmem.retrieval.passages import forward_positions

ROWS, ROUTED_ROWS = 64, 8  # prompts that are continued together; of routed ones all logits exist
PIECE = 512  # positions whose (n, V) log-probs exist at a time


@dataclass(frozen=True)
class Judged:
    """What a system makes of continuations, token by token."""

    log_probs: np.ndarray  # (P,) nats, of the true tokens
    right: np.ndarray  # (P,) bool: the true token is the most probable one
    of: np.ndarray  # (P,) which continuation

    def sums(self) -> np.ndarray:
        """Return the summed log-prob of every continuation, (Q,)."""
        return np.bincount(self.of, self.log_probs)

    def means(self) -> np.ndarray:
        """Return the mean log-prob of every continuation's tokens, (Q,)."""
        return self.sums() / np.bincount(self.of)

    def exact(self) -> np.ndarray:
        """Return (Q,) bool: greedy decoding would write exactly this continuation."""
        return np.bincount(self.of, ~self.right) == 0


def judge(system: System, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Judged:
    """Return what a system makes of (prompt ids, continuation ids) pairs.

    A prompt that is too long loses its beginning, but for its first token. MlpMemError for an
    empty continuation.
    """
    passages, spans = [], []
    for i, (prompt, continuation) in enumerate(pairs):
        if not len(continuation):
            raise MlpMemError(f"pair {i} has no continuation to be judged; leave it out")
        prompt = fit(system, prompt, len(continuation))
        passages.append((i, [*prompt, *continuation]))
        spans.append((len(prompt), len(prompt) + len(continuation)))
    documents = join_passages(passages, [""] * len(pairs), [""] * len(pairs))
    starts = documents.offsets[:-1]
    positions = [start + np.arange(*span) for start, span in zip(starts, spans, strict=True)]
    of = np.repeat(np.arange(len(pairs)), [b - a for a, b in spans])
    positions = np.concatenate([np.empty(0, np.int64), *positions])
    return Judged(*judge_positions(system, documents, positions), of)


def judge_positions(
    system: System, documents: Documents, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (log-probs (P,), right (P,)) of the tokens at positions of documents, read as is."""
    log_probs, right = np.zeros(len(positions)), np.zeros(len(positions), bool)
    true = torch.from_numpy(documents.tokens[positions].astype(np.int64))
    for at, found in _mixed(system, documents, positions):
        gold = found.gather(1, true[at, None].to(found.device))[:, 0]
        log_probs[at] = gold.double().cpu().numpy()
        right[at] = (found.argmax(1).cpu() == true[at]).numpy()
    return log_probs, right


def next_tokens(system: System, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> np.ndarray:
    """Return the log-probs (Q, n) of some next tokens, ids (n,), after every prompt."""
    prompts = [fit(system, prompt, 1) for prompt in prompts]
    passages = [(i, [*prompt, 0]) for i, prompt in enumerate(prompts)]
    documents = join_passages(passages, [""] * len(prompts), [""] * len(prompts))
    kept, wanted = np.zeros((len(prompts), len(ids))), torch.tensor(ids, dtype=torch.long)
    for at, found in _mixed(system, documents, documents.offsets[1:] - 1):
        kept[at] = found[:, wanted.to(found.device)].double().cpu().numpy()
    return kept


def _mixed(
    system: System, documents: Documents, positions: np.ndarray
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (which positions, log-probs (n, V) there) until all were served.

    The positions, ascending where the system is routed, for it reads those before them too.
    """
    if not len(positions):
        return
    read, asked = positions, np.ones(len(positions), bool)
    if system.routed:
        read, asked = reach(documents, positions)
    which, texts = np.cumsum(asked) - 1, documents.passage_at(read)
    true, evidence = torch.from_numpy(documents.tokens[read].astype(np.int64)), Evidence()
    for some in forward_positions(system.decoder, documents, read):
        for start in range(0, len(some.at), PIECE):
            part = slice(start, start + PIECE)
            at, states = some.at[part], (some.hidden[part], some.logits[part])
            found = follow(system, evidence, texts[at].tolist(), states, true[at])
            mine = asked[at]
            if not mine.all():  # else a copy of (n, V) for nothing
                at, found = at[mine], found[torch.from_numpy(mine).to(found.device)]
            yield which[at], found


def fit(system: System, prompt: Sequence[int], room: int) -> list[int]:
    """Return what the system reads for a prompt, its beginning cut where it is too long.

    The first token (BOS, where there is one) stays.
    """
    read = system.context(prompt, room)
    most = system.decoder.max_positions - room
    if most < 1:
        raise MlpMemError(
            f"{room} tokens are to follow, the decoder reads {system.decoder.max_positions} in all"
        )
    return read if len(read) <= most else [read[0], *read[len(read) - most + 1 :]]


@torch.inference_mode()
def write(system: System, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Return the token ids that a system writes greedily after every prompt, its end token last."""
    read = [fit(system, prompt, max_new_tokens) for prompt in prompts]
    order = sorted(range(len(read)), key=lambda i: len(read[i]))
    written: list[list[int]] = [[] for _ in read]
    rows = ROUTED_ROWS if system.routed else ROWS
    for start in range(0, len(order), rows):
        some = order[start : start + rows]
        answers = _written(system, [read[i] for i in some], max_new_tokens)
        for i, ids in zip(some, answers, strict=True):
            written[i] = ids
    return written


def _written(system: System, prompts: list[list[int]], most: int) -> list[list[int]]:
    """Return what is written after some prompts, padded on the left to one length."""
    decoder, width = system.decoder, max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=decoder.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    mask = mask.to(decoder.device)
    written: list[list[int]] = [[] for _ in prompts]
    live, output, evidence = list(range(len(prompts))), None, Evidence()
    for _ in range(most):
        cache = output.cache if output is not None else None
        last = min(width, 1 + REACH) if system.routed and output is None else 1
        output = decoder.forward(ids, attention_mask=mask, cache=cache, use_cache=True, last=last)
        if last > 1:
            _read(system, evidence, prompts, output)
        sources = system.sources(output.hidden[:, -1], output.logits[:, -1])
        chosen = system.mix(sources, evidence.now(live)).argmax(-1)
        if system.routed:
            evidence.read(live, system.gaps(sources, chosen))
        tokens = chosen.tolist()
        for row, token in zip(live, tokens, strict=True):
            written[row].append(token)
        going = [i for i, token in enumerate(tokens) if token not in decoder.eos_ids]
        if not going:
            break
        if len(going) < len(live):
            output.cache.batch_select_indices(torch.tensor(going))
        live = [live[i] for i in going]
        ids = torch.tensor([[tokens[i]] for i in going], device=decoder.device)
        mask = torch.nn.functional.pad(mask[going], (0, 1), value=1)
    return written


def _read(
    system: System, evidence: Evidence, prompts: list[list[int]], output: DecoderOutput
) -> None:
    """Take the prompts, padded on the left, into the evidence, each by its number."""
    for number, ids in enumerate(prompts):
        count = reached(ids)
        if not count:
            continue
        states = (x[number, -1 - count : -1] for x in (output.hidden, output.logits))
        sources = system.sources(*states)
        evidence.read([number] * count, system.gaps(sources, torch.tensor(ids[-count:])))
