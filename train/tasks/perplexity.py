"""Sliding-window perplexity: of the atlas's held-out text by group, or of text files.

Data: the heldout documents of a run's corpus stage, passages read as they stand; or wikitext-2's
test.txt (any text with it), a window over it, each token scored once with what came before
(`measure/text.py`). No prompt. Metric: exp of the mean nll in nats by the decoder's own token. With
retrieval there is no question to retrieve by, so such systems are left out. Source: Merity et al.
2016; window 1,024 and stride 512 as the memory's paper has them, halved where a decoder reads less.
Every window begins with the decoder's first token where it has one. Of a longer text TOKENS that
are drawn are scored unless a limit is given; published figures are of all of it.
"""

import numpy as np

from mlpmem.engine.systems import ModelSystem, System
from mlpmem.retrieval.documents import Documents, join_passages
from train.measure import findings
from train.measure.batches import judge_positions
from train.measure.findings import Finding
from train.measure.text import LARGEST, slide, units_of
from train.stages.corpus import check_tokens
from train.tasks.task import Task, TaskInput, text_of

WINDOW, TOKENS = 1024, 20_000  # tokens seen at most, and scored where no limit is given
TEXT = "wikitext-2/test.txt"


def run_atlas(asked: TaskInput) -> list[Finding]:
    """Return findings on the held-out text of each group."""
    documents = Documents.load(asked.corpus_file("heldout"))
    groups = np.array(documents.groups)[documents.document_of]
    kept = {
        group: asked.some(np.flatnonzero(groups == group), group) for group in dict.fromkeys(groups)
    }
    made = []
    for system in _readers(asked):
        check_tokens(system.decoder, asked.corpus)
        for group, passages in kept.items():
            spans = [np.arange(*documents.offsets[p : p + 2])[1:] for p in passages]
            positions = np.concatenate(spans)
            nll = -judge_positions(system, documents, positions)[0]
            of = units_of(documents, positions)
            made.append(_finding(asked, system, f"{group}/heldout", nll, of))
    return made


def run_text(asked: TaskInput) -> list[Finding]:
    """Return findings on a text file."""
    path = asked.file(TEXT)
    text, made = text_of(path), []
    for system in _readers(asked):
        decoder = system.decoder
        window = min(WINDOW, decoder.max_positions)
        words = decoder.tokenizer
        start = words.eos_token_id if words.bos_token_id is None else words.bos_token_id
        ids = words.encode(text, add_special_tokens=False, verbose=False)
        documents = join_passages([(0, [start, *ids])], [path.name], ["text"])
        most = asked.limit or TOKENS
        windows, positions = slide(documents, window, window // 2, most, asked.seed)
        nll = -judge_positions(system, windows, positions)[0]
        of = units_of(windows, positions)
        made.append(_finding(asked, system, TEXT.removesuffix(".txt"), nll, of))
    return made


def _readers(asked: TaskInput) -> list[System]:
    """Return the systems that read nothing but the text."""
    return [system for system in asked.systems if isinstance(system, ModelSystem)]


def _finding(
    asked: TaskInput, system: System, split: str, nll: np.ndarray, of: np.ndarray
) -> Finding:
    """Return one finding of nll (P,) in nats, by units; a token costs LARGEST at most."""
    values = findings.perplexity(np.minimum(nll, LARGEST), of)
    return Finding("perplexity", system.name, split, "perplexity", how=asked.how, **values)


TASKS = (Task("perplexity", "atlas", run_atlas), Task("text_perplexity", "data", run_text))
