"""Do the words so far help? Memories that read none, some or all; and a kNN-LM that does too.

A memory is trained per way of reading them, for the same few epochs; everything else is as in the
recipe. A datastore needs no training: context vectors stand behind its keys with a weight, where 1
makes their distances as large as those of the hidden states. N entries, D numbers a state.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.model.context import Context
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore
from train.fit.context_rows import ContextReader, token_weights
from train.measure.findings import Finding
from train.studies.run import Run
from train.studies.training.sensitivity import train_cell

READ: dict[str, dict[str, Any]] = {  # how the words so far are read: [memory]'s options
    "none": {"context": ()},
    "16": {"context": (16.0,)},
    "64": {"context": (64.0,)},
    "16 and 64": {},
    "4, 16 and 64": {"context": (4.0, 16.0, 64.0)},
    "16 and 64, words alike": {"token_weights": "words"},
    "16 and 64, of the question": {"words_of": "question"},
    "16 and 64, of the question, and what was asked": {"words_of": "question", "asked": True},
}
USUAL = {"context": (16.0, 64.0), "token_weights": "tell", "words_of": "text", "asked": False}
KNN_LIVES, KNN_WEIGHTS = (16.0, 64.0), (0.0, 0.5, 1.0, 2.0)


@dataclass(frozen=True, eq=False)
class ScaledContext(Context):
    """A context whose vectors are multiplied by a number."""

    scale: float = 1.0

    def read(self, *args, **options) -> Tensor:
        """Return scaled context vectors; see Context.read."""
        return self.scale * super().read(*args, **options)


def context(run: Run) -> Iterator[Finding]:
    """Yield exact match (with questions) and perplexity on the test, memories first."""
    run.manifest("memory")
    if run.recipe.memory.start == "decoder":
        raise MlpMemError(
            'context: [memory] start = "decoder" does not read the words so far; use a recipe with '
            '"free" or "identity"'
        )
    base = replace(run.recipe.memory, epochs=run.config.epochs, temperature=1.0)
    chats = getattr(run.decoder.tokenizer, "chat_template", None)
    for number, (name, options) in enumerate(READ.items()):
        if "words_of" in options and not chats:
            continue
        config = replace(base, **USUAL | options)
        memory = train_cell(run, f"context-{number}", config)
        decoder = Decoder.load(run.root / "decoder", depth=memory.config.depth)
        trial = run.trial(decoder, memory.bind(decoder))
        for measured in run.kind.measurements(trial, ("memory",)):
            yield run.finding_of(measured, read=name, epochs=run.config.epochs)
    for weight in KNN_WEIGHTS:
        decoder = Decoder.load(run.root / "decoder", depth=run.memory.config.depth)
        store = with_context(decoder, run.store, weight) if weight else run.store
        for measured in run.kind.measurements(run.trial(decoder, None, store), ("knn",)):
            yield run.finding_of(measured, weight=weight)


def with_context(decoder: Decoder, store: Datastore, weight: float) -> Datastore:
    """Return the datastore with scaled context vectors behind its keys; the decoder gives both."""
    weights = token_weights("tell", decoder, store.documents)
    reader = ContextReader(decoder, Context(KNN_LIVES, weights))
    words = reader.vectors(store.documents, np.asarray(store.positions)).numpy()
    states = np.asarray(store.keys[:], np.float32)
    scale = weight * float(np.sqrt(states.var(0).sum() / words.var(0).sum()))
    decoder.context = ScaledContext(KNN_LIVES, weights.to(decoder.device), scale=scale)
    keys = np.concatenate([states, scale * words], 1).astype(store.keys.dtype)
    assert np.isfinite(keys).all(), "the keys' dtype must hold them"
    return replace(store, keys=keys)
