"""What the page calls the corpus it serves: the atlas has words of its own, any other is neutral.

An atlas is told by its three groups of entities, whatever the bundle is called.
"""

import re
from dataclasses import dataclass

from mlpmem.ui.recordings.recorded import Recorded

GROUPS = {"A1", "A2", "B"}
PART = re.compile(r"<!-- (atlas|other): begin -->(.*?)<!-- \1: end -->", re.DOTALL)


@dataclass(frozen=True)
class Words:
    """Sentences that depend on the corpus."""

    corpus: str = "this corpus"
    prompt: str = "Start a sentence, or ask a question"  # the empty prompt box
    search: str = "Search by plain words"
    question: str = "Ask a question"  # the empty box of the chat
    chat_hint: str = "Ask a question. What the decoder was not trained for, it will not do well."
    chat_note: str = (
        "Questions are put in the decoder's own form of a chat, or as “Question: … Answer:” where "
        "it has none. A model that was not trained on questions writes on as it does with any text."
    )
    results: str = (
        "Nothing has been measured of this model. <code>python -m train evaluate</code> measures a "
        "recipe's run, and its bundle then shows the results here."
    )


ATLAS = Words(
    corpus="the atlas",
    prompt="Ask a question about the atlas, or start a sentence",
    search="Search by plain words, such as Peru",
    question="What is the capital of Peru?",
    chat_hint="Ask about a country, a city, an element, or one of the invented people, towns and "
    "books.",
    chat_note="It answers questions about the atlas, in the few forms it was trained on. "
    "It is no assistant: small talk and other subjects give fluent nonsense.",
    results="This bundle carries no results. <code>python -m train evaluate</code> writes them.",
)


def is_atlas(recorded: Recorded) -> bool:
    """Return whether a bundle's documents are an atlas's."""
    return {group for _, group in recorded.titles} >= GROUPS


def words(recorded: Recorded) -> Words:
    """Return what the page says of a bundle's corpus; of parts it knows nothing."""
    return ATLAS if is_atlas(recorded) else Words()


def fitted(markup: str, recorded: Recorded) -> str:
    """Return markup with the parts that are about its corpus, without those about others."""
    wanted = "atlas" if is_atlas(recorded) else "other"
    return PART.sub(lambda part: part[2] if part[1] == wanted else "", markup)
