"""Texts that depend on the corpus: the atlas has its own, any other corpus has neutral ones.

An atlas is recognised by its three groups of entities, not by the bundle's name.
"""

import re
from dataclasses import dataclass
from typing import Any

from mlpmem.ui.recordings.recorded import Recorded

SHOWN = ("helps", "agree", "hurts", "unknown")  # groups of an empty chat's questions, in order
FACTS = 2  # questions on facts that a chat model is offered before general ones
MOST_STARTERS = 4
STARTERS = [
    "What can you help me with?",
    "Write a Python function that counts the words of a text.",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
]
GROUPS = {"A1", "A2", "B"}
PART = re.compile(r"<!-- (atlas|other): begin -->(.*?)<!-- \1: end -->", re.DOTALL)


@dataclass(frozen=True)
class Words:
    """The texts."""

    corpus: str = "this corpus"
    prompt: str = "Start a sentence, or ask a question"  # placeholder of the prompt box
    search: str = "Search by words"
    question: str = "Ask a question"  # placeholder of the chat box
    chat_note: str = (
        "Questions use the decoder's own chat template, or “Question: … Answer:” if it has none. "
        "A model that was not trained on questions continues them like any other text."
    )
    results: str = (
        "There are no results for this model. <code>python -m train evaluate</code> measures a "
        "recipe's run, and its bundle then shows the results here."
    )


ATLAS = Words(
    corpus="the atlas",
    prompt="Ask a question about the atlas, or start a sentence",
    search="Search by words, such as Peru",
    question="What is the capital of Peru?",
    chat_note="It answers questions about the atlas, in the few forms it was trained on. "
    "It is not an assistant: on other subjects and in small talk it writes fluent nonsense.",
    results="This bundle has no results. <code>python -m train evaluate</code> writes them.",
)


CHATS = Words(
    corpus="the memory's facts",
    prompt="Ask about a country, a city or an element, or ask for anything else",
    search=ATLAS.search,
    question=ATLAS.question,
    chat_note="A small chat model, unchanged. Its memory was trained on facts about real and "
    "invented things, and a router decides at every token how much the memory counts. Chat about "
    "anything else, and the memory should leave it as it was.",
)


def is_atlas(recorded: Recorded) -> bool:
    """Return whether a bundle's corpus is an atlas."""
    return {group for _, group in recorded.titles} >= GROUPS


def words(recorded: Recorded) -> Words:
    """Return the texts for a bundle's corpus."""
    if is_atlas(recorded):
        return ATLAS
    return CHATS if recorded.chat_form else Words()


def starters(recorded: Recorded) -> list[tuple[str, str]]:
    """Return (group, question) of what an empty chat offers, where the memory helps first.

    A bundle's examples come one of each group, a chat model's facts before general questions; the
    group of a general question is "". Without examples, all are general.
    """
    general = [("", text) for text in STARTERS]
    by_group: dict[str, list[tuple[str, str]]] = {group: [] for group in SHOWN}
    for example in recorded.examples:
        group, text = example["group"], example["prompt"]
        bare = re.fullmatch(r"Question: (.*\?) Answer:", text)
        if group in by_group and (bare or recorded.chat_form):
            by_group[group].append((group, bare[1] if bare else text))
    if recorded.chat_form:
        return [*by_group["helps"][:FACTS], *general][:MOST_STARTERS]
    first = [rows[0] for rows in by_group.values() if rows]
    rest = [row for rows in by_group.values() for row in rows[1:]]
    return [*first, *rest][:MOST_STARTERS] or general


def chat_texts(recorded: Recorded) -> dict[str, Any]:
    """Return what an empty chat says and offers, and who answers before the model is loaded."""
    texts = words(recorded)
    return {"note": texts.chat_note, "question": texts.question, "starters": starters(recorded),
            "systems": list(recorded.systems)}  # fmt: skip


def fitted(markup: str, recorded: Recorded) -> str:
    """Return markup without the parts for other corpora."""
    wanted = "atlas" if is_atlas(recorded) else "other"
    return PART.sub(lambda part: part[2] if part[1] == wanted else "", markup)
