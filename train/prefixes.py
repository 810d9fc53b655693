"""What a bundle of a text corpus shows: how documents of the test split begin, continued."""

import random
from pathlib import Path
from typing import NamedTuple

from mlpmem.engine.fused import FusedModel
from mlpmem.engine.trace import Trace
from mlpmem.retrieval.documents import Documents
from train.recipe_after import Export

PROMPT, CONTINUED = 32, 24  # tokens of a prefix, and that are recorded after it
GROUP = "longer"  # the page's group of examples that have no right answer


class Shown(NamedTuple):
    """What a bundle shows of a corpus."""

    examples: list[dict]
    questions: list[dict]  # with known answers, for the page to draw from
    recorded: list[dict]  # comparisons that replay without a model
    answered: list[dict[str, Trace]]  # every comparison made on the way: their costs are kept


def show_text(model: FusedModel, corpus: Path, config: Export, seed: int) -> Shown:
    """Return examples and recorded comparisons of the first of them; a text asks no questions."""
    documents = Documents.load(corpus / "test")
    examples = prefixes(model, documents, config.examples, seed)
    recorded, traces = [], []
    for example in examples[: max(1, config.traces)]:
        made = model.compare(example["prompt"], max_new_tokens=CONTINUED)
        traces.append(made)
        kept = {"v": 1, **{key: example[key] for key in ("name", "prompt", "answer")}}
        recorded.append(kept | {"traces": {name: t.to_dict() for name, t in made.items()}})
    return Shown(examples, [], recorded[: config.traces], traces)


def prefixes(model: FusedModel, documents: Documents, count: int, seed: int) -> list[dict]:
    """Return examples: how documents begin, up to a space. A continuation has no right answer."""
    order = random.Random(seed).sample(range(len(documents)), len(documents))
    found = []
    for p in order:
        ids = documents.passage(p)[:PROMPT].tolist()
        prompt = model.decoder.decode(ids).strip().rpartition(" ")[0]
        if prompt and len(found) < count:
            title = documents.titles[int(documents.document_of[p])]
            known = {"name": title, "title": title, "prompt": prompt, "answer": ""}
            found.append(known | {"group": GROUP, "part": "", "invented": False})
    return found
