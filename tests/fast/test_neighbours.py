"""Queries by every fast pass find the keys that the plain pass made, to the dtype's rounding."""

from typing import NamedTuple

import pytest
import tiny
import torch

from mlpmem.fast.few_rows import FewRows
from mlpmem.fast.gpt2_pass import Gpt2Pass
from mlpmem.fast.llama_pass import LlamaPass
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.retriever import make_retriever

K = 8
FORMS = ["operators", "kernels", "step"]
SHAPE = {"hidden_size": 64, "intermediate_size": 96}  # 4 bits need groups of 32


class Bounds(NamedTuple):
    """How far fast queries may be from plain ones."""

    error: float  # mean, relative to a query's length
    shared: float  # share of the K nearest keys, at least


EXACT = Bounds(1e-5, 0.999)
# by bits, 0: bfloat16. 8-bit products round their inputs to 7 bits, with one scale per batch.
ROUNDED = {0: Bounds(0.03, 0.95), 8: Bounds(0.2, 0.85), 4: Bounds(0.03, 0.95)}


def use_form(decoder: Decoder, form: str) -> None:
    """Compute with torch's operators, compiled kernels, or one compiled call per token."""
    decoder.use_fast_pass()
    if form == "operators":
        return
    pytest.importorskip("numba")
    decoder.fast_pass.compile()
    if form == "kernels":
        decoder.fast_pass.step = None
    else:
        assert decoder.fast_pass.step is not None


def queries(decoder: Decoder, store: Datastore, prompt: int) -> torch.Tensor:
    """Return the hidden states (N, D) of a datastore's entries, as generation computes them.

    The first `prompt` tokens of a passage are read at once, the others one by one.
    """
    found, documents = torch.empty(len(store), decoder.hidden_size), store.documents
    of_entry = documents.passage_at(store.positions)
    for p in range(len(documents)):
        ids = torch.from_numpy(documents.passage(p).astype("int64"))[None]
        output = decoder.forward(ids[:, :prompt], use_cache=True)
        states = [output.hidden[0]]
        for at in range(prompt, ids.shape[1]):
            output = decoder.forward(ids[:, at : at + 1], cache=output.cache, last=1)
            states.append(output.hidden[0])
        entries = (of_entry == p).nonzero()[0]
        places = store.positions[entries] - 1 - documents.offsets[p]
        found[entries] = torch.cat(states).float()[places]
    return found


def before(store: Datastore, entry: int) -> list[int]:
    """Return the tokens that an entry's key has read; equal ones have one key."""
    documents, at = store.documents, int(store.positions[entry])
    p = int(documents.passage_at(store.positions[[entry]])[0])
    return documents.tokens[documents.offsets[p] : at].tolist()


def check(decoder: Decoder, plain: torch.Tensor, store: Datastore, bounds: Bounds) -> None:
    """Assert that fast queries find what plain ones (N, D) find: first, the query's own key."""
    search = make_retriever("exact", store.keys)
    wanted = search.search(plain, K).indices
    texts = [before(store, entry) for entry in range(len(store))]
    for prompt in (1, 5, tiny.POSITIONS):
        fast = queries(decoder, store, prompt)
        error = ((fast - plain).norm(dim=1) / plain.norm(dim=1)).mean()
        assert float(error) < bounds.error
        found = search.search(fast, K).indices
        assert [texts[i] for i in found[:, 0].tolist()] == texts, "its own key is nearest"
        shared = (found[:, :, None] == wanted[:, None]).any(2).float().mean()
        assert float(shared) >= bounds.shared


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2"])
def test_neighbours_are_the_same_in_float32(family, form):
    decoder = tiny.decoder(family)
    store = tiny.datastore(decoder)  # by transformers' pass
    plain = queries(decoder, store, tiny.POSITIONS)
    use_form(decoder, form)
    assert isinstance(decoder.fast_pass, LlamaPass)
    check(decoder, plain, store, EXACT)


@tiny.needs_ops
@pytest.mark.parametrize(
    ("bits", "form"),
    [(0, "operators"), (0, "kernels"), (8, "operators"), (8, "kernels"), *((4, f) for f in FORMS)],
)  # a step reads float32 and 4 bits
def test_neighbours_are_the_same_with_rounded_weights(bits, form, monkeypatch):
    monkeypatch.setattr(FewRows, "product", None)  # nothing is compiled when keys are made
    decoder = tiny.decoder("llama", **SHAPE)
    decoder.model.to(torch.bfloat16)
    decoder.pack(bits)
    decoder.fast_pass = None
    store = tiny.datastore(decoder)
    plain = queries(decoder, store, tiny.POSITIONS)
    use_form(decoder, form)
    check(decoder, plain, store, ROUNDED[bits])


@tiny.needs_ops
@pytest.mark.parametrize("bits", [None, *ROUNDED])
def test_neighbours_are_the_same_by_gpt2s_pass(bits):
    decoder = tiny.decoder("gpt2")
    if bits is not None:
        decoder.model.to(torch.bfloat16)
    decoder.pack(bits or 0)
    decoder.fast_pass = None
    store = tiny.datastore(decoder)
    plain = queries(decoder, store, tiny.POSITIONS)
    decoder.use_fast_pass()
    assert isinstance(decoder.fast_pass, Gpt2Pass)
    check(decoder, plain, store, EXACT if bits is None else ROUNDED[bits])
