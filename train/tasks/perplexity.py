"""Sliding-window perplexity: of the atlas's held-out text by group, or of text files.

Data: the held-out documents of a run's stage corpus, passage by passage; or wikitext-2's test.txt,
in sliding windows that score each token once, with its preceding context (`measure/text.py`). No
prompt. Metric: exp of the mean nll in nats per token of the decoder. RAG systems are left out,
because there is no question to retrieve by. Source: Merity et al. 2016. Window 1,024 and stride 512
are those of the memory's paper; a decoder with a shorter context uses that and its half. Every
window begins with the decoder's BOS, or its EOS. Without a limit TOKENS sampled tokens of a longer
text are scored; published figures use the whole text.
"""

import numpy as np

from mlpmem.engine.systems import ModelSystem, System
from mlpmem.model.tokenizer import encode_text
from mlpmem.retrieval.documents import Documents, join_passages
from train.measure.batches import score_positions
from train.measure.findings import Finding, perplexity
from train.measure.text import LARGEST, slide, units_of
from train.stages.corpus import check_tokens
from train.tasks.task import Task, TaskInput, text_of

WINDOW, TOKENS = 1024, 20_000  # tokens of context, and scored without a limit; both at most
TEXT = "wikitext-2/test.txt"


def run_atlas(inputs: TaskInput) -> list[Finding]:
    """Return findings on the held-out text of each group."""
    documents = Documents.load(inputs.corpus_file("heldout"))
    groups = np.array(documents.groups)[documents.document_of]
    passages_of = {
        group: inputs.sample(np.flatnonzero(groups == group), group)
        for group in dict.fromkeys(groups)
    }
    findings = []
    for system in _readers(inputs):
        check_tokens(system.decoder, inputs.corpus)
        for group, passages in passages_of.items():
            spans = [np.arange(*documents.offsets[p : p + 2])[1:] for p in passages]
            positions = np.concatenate(spans)
            nll = -score_positions(system, documents, positions)[0]
            units = units_of(documents, positions)
            findings.append(_finding(inputs, system, f"{group}/heldout", nll, units))
    return findings


def run_text(inputs: TaskInput) -> list[Finding]:
    """Return findings on a text file."""
    path = inputs.file(TEXT)
    text, findings = text_of(path), []
    for system in _readers(inputs):
        decoder = system.decoder
        window = min(WINDOW, decoder.max_positions)
        tokenizer = decoder.tokenizer
        bos = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if bos is None else bos
        ids = encode_text(tokenizer, text)
        documents = join_passages([(0, [start, *ids])], [path.name], ["text"])
        most = inputs.limit or TOKENS
        windows, positions = slide(documents, window, window // 2, most, inputs.seed)
        nll = -score_positions(system, windows, positions)[0]
        units = units_of(windows, positions)
        findings.append(_finding(inputs, system, TEXT.removesuffix(".txt"), nll, units))
    return findings


def _readers(inputs: TaskInput) -> list[System]:
    """Return the systems that need no question to retrieve by."""
    return [system for system in inputs.systems if isinstance(system, ModelSystem)]


def _finding(
    inputs: TaskInput, system: System, split: str, nll: np.ndarray, units: np.ndarray
) -> Finding:
    """Return the perplexity of nll (P,) in nats, clipped at LARGEST; units (P,) as `units_of`."""
    values = perplexity(np.minimum(nll, LARGEST), units)
    return Finding("perplexity", system.name, split, "perplexity", how=inputs.how, **values)


TASKS = (Task("perplexity", "atlas", run_atlas), Task("text_perplexity", "data", run_text))
