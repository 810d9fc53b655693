"""Many prompts at once: scores of continuations, and greedy generation.

The results equal those of `log_probs` and `generate` for single prompts. Q is the number of
prompts, P that of the tokens of all continuations in a row.
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

ROWS, ROUTED_ROWS = 64, 8  # prompts per batch; a routed system holds the logits of all tokens
PIECE = 512  # positions whose (n, V) log-probs are computed at once


@dataclass(frozen=True)
class ContinuationScores:
    """A system's scores of continuations, token by token."""

    log_probs: np.ndarray  # (P,) of the true tokens, in nats
    right: np.ndarray  # (P,) bool: the true token is the most probable one
    of: np.ndarray  # (P,) index of the continuation

    def sums(self) -> np.ndarray:
        """Return the summed log-prob of every continuation, (Q,)."""
        return np.bincount(self.of, self.log_probs)

    def means(self) -> np.ndarray:
        """Return the mean log-prob of every continuation's tokens, (Q,)."""
        return self.sums() / np.bincount(self.of)

    def exact(self) -> np.ndarray:
        """Return (Q,) bool: greedy decoding gives exactly this continuation."""
        return np.bincount(self.of, ~self.right) == 0


def score_continuations(
    system: System, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> ContinuationScores:
    """Return a system's scores of (prompt ids, continuation ids) pairs.

    A prompt that is too long loses tokens after its first. MlpMemError for an empty continuation.
    """
    passages, spans = [], []
    for i, (prompt, continuation) in enumerate(pairs):
        if not len(continuation):
            raise MlpMemError(
                f"pair {i}: the continuation must have 1 token or more; got 0. Remove the pair"
            )
        prompt = fit_prompt(system, prompt, len(continuation))
        passages.append((i, [*prompt, *continuation]))
        spans.append((len(prompt), len(prompt) + len(continuation)))
    documents = join_passages(passages, [""] * len(pairs), [""] * len(pairs))
    starts = documents.offsets[:-1]
    positions = [start + np.arange(*span) for start, span in zip(starts, spans, strict=True)]
    of = np.repeat(np.arange(len(pairs)), [b - a for a, b in spans])
    positions = np.concatenate([np.empty(0, np.int64), *positions])
    return ContinuationScores(*score_positions(system, documents, positions), of)


def score_positions(
    system: System, documents: Documents, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (log-probs (P,), right (P,)) of the tokens at positions of documents."""
    log_probs, right = np.zeros(len(positions)), np.zeros(len(positions), bool)
    true = torch.from_numpy(documents.tokens[positions].astype(np.int64))
    for at, mixed in _mixed(system, documents, positions):
        gold = mixed.gather(1, true[at, None].to(mixed.device))[:, 0]
        log_probs[at] = gold.double().cpu().numpy()
        right[at] = (mixed.argmax(1).cpu() == true[at]).numpy()
    return log_probs, right


def next_tokens(system: System, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> np.ndarray:
    """Return the log-probs (Q, n) of the next tokens ids (n,) after every prompt."""
    prompts = [fit_prompt(system, prompt, 1) for prompt in prompts]
    passages = [(i, [*prompt, 0]) for i, prompt in enumerate(prompts)]
    documents = join_passages(passages, [""] * len(prompts), [""] * len(prompts))
    log_probs, tokens = np.zeros((len(prompts), len(ids))), torch.tensor(ids, dtype=torch.long)
    for at, mixed in _mixed(system, documents, documents.offsets[1:] - 1):
        log_probs[at] = mixed[:, tokens.to(mixed.device)].double().cpu().numpy()
    return log_probs


def _mixed(
    system: System, documents: Documents, positions: np.ndarray
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (indices into positions, log-probs (n, V) there), for all positions.

    Positions must ascend if the system is routed, because it also reads those before each.
    """
    if not len(positions):
        return
    read, scored = positions, np.ones(len(positions), bool)
    if system.reads_evidence:
        read, scored = reach(documents, positions)
    indices, texts = np.cumsum(scored) - 1, documents.passage_at(read)
    true, evidence = torch.from_numpy(documents.tokens[read].astype(np.int64)), Evidence()
    for places in forward_positions(system.decoder, documents, read):
        for start in range(0, len(places.at), PIECE):
            part = slice(start, start + PIECE)
            at, states = places.at[part], (places.hidden[part], places.logits[part])
            mixed = follow(system, evidence, texts[at].tolist(), states, true[at])
            wanted = scored[at]
            if not wanted.all():  # otherwise indexing copies (n, V) needlessly
                at, mixed = at[wanted], mixed[torch.from_numpy(wanted).to(mixed.device)]
            yield indices[at], mixed


def fit_prompt(system: System, prompt: Sequence[int], room: int) -> list[int]:
    """Return a prompt's context with `room` tokens to spare; it may lose tokens after its first."""
    ids = system.context(prompt, room)
    most = system.decoder.max_positions - room
    if most < 1:
        raise MlpMemError(
            f"new tokens must be fewer than the {system.decoder.max_positions} that the decoder "
            f"reads; got {room}. Ask for fewer"
        )
    return ids if len(ids) <= most else [ids[0], *ids[len(ids) - most + 1 :]]


@torch.inference_mode()
def generate(
    system: System, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """Return the token ids that a system generates greedily per prompt, the end token included."""
    contexts = [fit_prompt(system, prompt, max_new_tokens) for prompt in prompts]
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    generated: list[list[int]] = [[] for _ in contexts]
    rows = ROUTED_ROWS if system.reads_evidence else ROWS
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        answers = _generate_batch(system, [contexts[i] for i in batch], max_new_tokens)
        for i, ids in zip(batch, answers, strict=True):
            generated[i] = ids
    return generated


def _generate_batch(system: System, prompts: list[list[int]], most: int) -> list[list[int]]:
    """Return the generated token ids of one batch, whose prompts are padded on the left."""
    decoder, width = system.decoder, max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=decoder.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    mask = mask.to(decoder.device)
    generated: list[list[int]] = [[] for _ in prompts]
    live, output, evidence = list(range(len(prompts))), None, Evidence()
    for _ in range(most):
        cache = output.cache if output is not None else None
        last = min(width, 1 + REACH) if system.reads_evidence and output is None else 1
        output = decoder.forward(ids, attention_mask=mask, cache=cache, use_cache=True, last=last)
        if last > 1:
            _read_prompts(system, evidence, prompts, output)
        sources = system.sources(output.hidden[:, -1], output.logits[:, -1])
        chosen = system.mix(sources, evidence.now(live)).argmax(-1)
        if system.reads_evidence:
            evidence.read(live, system.gaps(sources, chosen))
        tokens = chosen.tolist()
        for row, token in zip(live, tokens, strict=True):
            generated[row].append(token)
        unfinished = [i for i, token in enumerate(tokens) if token not in decoder.eos_ids]
        if not unfinished:
            break
        if len(unfinished) < len(live):
            output.cache.batch_select_indices(torch.tensor(unfinished))
        live = [live[i] for i in unfinished]
        ids = torch.tensor([[tokens[i]] for i in unfinished], device=decoder.device)
        mask = torch.nn.functional.pad(mask[unfinished], (0, 1), value=1)
    return generated


def _read_prompts(
    system: System, evidence: Evidence, prompts: list[list[int]], output: DecoderOutput
) -> None:
    """Add the prompts, padded on the left, to the evidence."""
    for row, ids in enumerate(prompts):
        count = reached(ids)
        if not count:
            continue
        states = (x[row, -1 - count : -1] for x in (output.hidden, output.logits))
        sources = system.sources(*states)
        evidence.read([row] * count, system.gaps(sources, torch.tensor(ids[-count:])))
