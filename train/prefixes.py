"""What a bundle of a text corpus shows: how documents of the test split begin, continued."""

import random
from pathlib import Path

from mlpmem.documents import Documents
from mlpmem.fused import FusedModel
from mlpmem.trace import Trace
from train.recipe import Export

PROMPT, CONTINUED = 32, 24  # tokens of a prefix, and that are recorded after it
GROUP = "longer"  # the page's group of examples that have no right answer


def show_text(
    model: FusedModel, corpus: Path, config: Export, seed: int
) -> tuple[list[dict], list[dict], list[dict[str, Trace]]]:
    """Return examples, recorded comparisons of the first of them, and their traces."""
    documents = Documents.load(corpus / "test")
    examples = prefixes(model, documents, config.examples, seed)
    recorded, traces = [], []
    for example in examples[: max(1, config.traces)]:
        made = model.compare(example["prompt"], max_new_tokens=CONTINUED)
        traces.append(made)
        kept = {"v": 1, **{key: example[key] for key in ("name", "prompt", "answer")}}
        recorded.append(kept | {"traces": {name: t.to_dict() for name, t in made.items()}})
    return examples, recorded[: config.traces], traces


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
