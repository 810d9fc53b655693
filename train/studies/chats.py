"""What does a real chat model answer? Facts asked in chats, and chats that must stay as they were.

Answers are generated greedily and whole. "contained": the answer, or another name of it, is among
the first WORDS words; "exact": it is all of them. RAG puts passages found by BM25 into the chat,
for the decoder alone and, of the fewest passages, for the memory beside it too.
"""

import re
from collections.abc import Iterator

import numpy as np

from mlpmem.api import Model
from mlpmem.engine.router import load_routers
from mlpmem.engine.settings import Settings
from mlpmem.engine.systems import ModelSystem
from mlpmem.engine.trace import AUTO
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import Documents, join_passages
from mlpmem.retrieval.text_search import Passages
from train.corpora.atlas.chats import Facts
from train.corpora.atlas.wordings import AtlasConfig, build_atlas
from train.corpora.chat import ChatForm
from train.files import print_line, read_lines
from train.kinds.kept import SORTS
from train.measure.atlas import CHAT_GROUPS, CHAT_WORDINGS
from train.measure.batches import generate, score_positions
from train.measure.findings import Finding, perplexity, share
from train.measure.questions import cell_of, sample_questions
from train.measure.text import all_positions, groups_of, units_of
from train.studies.run import Run

WORDS, TOKENS = 12, 24  # of an answer that are looked at, and that are generated
LMBDAS = (0.7, 1.0)
RETRIEVED = (1, 3, 5)  # passages
WITH_PASSAGES = "Use this text to answer.\n\n{passages}\n\n{question}"


def chats(run: Run) -> Iterator[Finding]:
    """Yield answers by cell, requests left unchanged, and the perplexity of kept text."""
    if run.kind.name != "chat":
        raise MlpMemError('chats: the recipe must have [corpus] kind = "chat"; use another study')
    systems = _systems(run)
    rows, prompts = asked(run)
    for name, (system, setting) in systems.items():
        yield from answers(run, name, system, rows, prompts, setting)
    for count in RETRIEVED:
        found = _with_passages(run, rows, count)
        yield from answers(run, f"rag_{count}", systems["lm"][0], rows, found, {})
        if count == RETRIEVED[0]:
            yield from answers(run, f"{AUTO}_rag_{count}", systems[AUTO][0], rows, found, {})
    yield from kept(run, systems)


def asked(run: Run) -> tuple[list[dict], list[list[int]]]:
    """Return the questions of all cells and their prompts' token ids."""
    rows = read_lines(run.root / "corpus" / "questions.jsonl")
    cells = [f"{group}/{wording}" for wording in CHAT_WORDINGS for group in CHAT_GROUPS]
    rows = sample_questions(rows, cells, run.config.questions, run.recipe.seed)
    return rows, [row["ids"][: row["prompt_tokens"]] for row in rows]


def _systems(run: Run) -> dict[str, tuple[ModelSystem, dict]]:
    """Return {name: (system, setting)} of the decoder and of its memory at every lambda."""
    run.manifest("router")
    routers = load_routers(run.root / "router")
    model = Model(run.decoder, run.memory, Settings(), routers={"memory": routers["memory"]})
    systems = {"lm": (ModelSystem(model, "lm", None), {})}
    for lmbda in (*LMBDAS, AUTO):
        name = AUTO if lmbda == AUTO else f"memory_{lmbda:g}"
        systems[name] = ModelSystem(model, "memory", lmbda, name), {"lmbda": lmbda}
    return systems


def answers(
    run: Run, name: str, system: ModelSystem, rows: list[dict], prompts: list, setting: dict
) -> Iterator[Finding]:
    """Yield the shares of right answers of one system, by cell."""
    decode = run.decoder.decode
    texts = [decode(ids) for ids in generate(system, prompts, TOKENS)]
    cells = np.array([cell_of(row) for row in rows])
    for metric, test in (("contained", is_contained), ("exact", is_exact)):
        right = np.array([test(text, row) for text, row in zip(texts, rows, strict=True)])
        for cell in dict.fromkeys(cells.tolist()):
            yield run.finding(name, cell, metric, share(right[cells == cell]), **setting)
    print_line(f"chats: {name}: {sum(map(is_contained, texts, rows))} of {len(rows)} contained")


def is_contained(text: str, row: dict) -> bool:
    """Return whether an answer's first WORDS words have the right one, as whole words."""
    start = " ".join(text.split()[:WORDS]).casefold()
    names = (row["answer"], *row["aliases"])
    return any(re.search(rf"(?<!\w){re.escape(n.casefold())}(?!\w)", start) for n in names)


def is_exact(text: str, row: dict) -> bool:
    """Return whether an answer is the right one and nothing else."""
    names = {name.casefold() for name in (row["answer"], *row["aliases"])}
    return text.strip().rstrip(".").casefold() in names


def _with_passages(run: Run, rows: list[dict], count: int) -> list[list[int]]:
    """Return the prompts of questions behind the passages that BM25 finds for the last turn."""
    tokenizer, corpus = run.decoder.tokenizer, run.recipe.corpus
    form = ChatForm.of(tokenizer)
    atlas = build_atlas(AtlasConfig(seed=run.recipe.seed, scale=corpus.scale))
    passages = Passages(_statements(Facts(atlas, corpus.chat.invented), tokenizer), run.decoder)
    asked = []
    for row in rows:
        *before, (question, _) = row["turns"]
        hits = passages.search(question, count)
        texts = [run.decoder.decode(passages.plain(i)) for i in hits]
        asked.append(
            [*before, (WITH_PASSAGES.format(passages="\n".join(texts), question=question), "")]
        )
    return [ids for ids, _ in form.encode(tokenizer, asked)]


def _statements(facts: Facts, tokenizer) -> Documents:
    """Return a passage of statements per entity: what RAG reads."""
    by_entity: dict[int, list[str]] = {}
    for fact in facts.all:
        by_entity.setdefault(fact.entity, []).append(facts.state(fact, fact.seen_statements[0]))
    texts = [" ".join(statements) for statements in by_entity.values()]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    titles = [facts.atlas.entities[entity].title for entity in by_entity]
    return join_passages(list(enumerate(ids)), titles, [""] * len(titles))


def kept(run: Run, systems: dict[str, tuple[ModelSystem, dict]]) -> Iterator[Finding]:
    """Yield the share of requests answered to the letter as before, and perplexities."""
    documents = Documents.load(run.root / "corpus" / "kept" / "test")
    groups = np.array(documents.groups)[documents.document_of]
    for group in [sort for sort in SORTS if sort in groups]:
        chosen = np.flatnonzero(groups == group)
        heads = [documents.passage(p)[: documents.prompts[p]].tolist() for p in chosen]
        most = run.recipe.corpus.chat.answer_tokens
        before = generate(systems["lm"][0], heads, most)
        for name, (system, setting) in systems.items():
            if name != "lm":
                same = [a == b for a, b in zip(generate(system, heads, most), before, strict=True)]
                yield run.finding(name, group, "unchanged", share(same), **setting)
    positions = all_positions(documents)
    groups, units = groups_of(documents, positions), units_of(documents, positions)
    for name, (system, setting) in systems.items():
        log_probs, _ = score_positions(system, documents, positions)
        for group in dict.fromkeys(groups.tolist()):
            mask = groups == group
            values = perplexity(-log_probs[mask], units[mask])
            yield run.finding(name, group, "perplexity", values, **setting)
