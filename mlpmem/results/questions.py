"""What reviewers ask, the answers and their charts: made of findings, for README and Results.

A question whose study has not been measured has no charts, and is not shown.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlpmem.results import cost_charts, study_charts
from mlpmem.results.answers import ANSWERS
from mlpmem.results.charts import Chart, kept
from mlpmem.results.findings import Found, read

MOST_ROWS = 4000  # findings of one study that are drawn


@dataclass(frozen=True)
class Question:
    """A reviewer's question with its charts and the commands that measured them."""

    study: str
    title: str
    answer: str  # one sentence with its numbers, "" where one is missing
    text: str  # how to read the charts
    charts: list[Chart]
    hows: list[str]


def questions(results: object) -> list[Question]:
    """Return the questions to which a results.json has an answer, in their order."""
    by_study: dict[str, list[Found]] = {}
    for row in read(results):
        by_study.setdefault(row.study, []).append(row)
    asked = []
    for study, (title, text, make) in ASKED.items():
        rows = by_study.get(study, [])[:MOST_ROWS]
        if charts := kept(make(rows)):
            hows = list(dict.fromkeys(row.how for row in rows if row.how))[:3]
            answer = ANSWERS[study](rows)
            asked.append(Question(study, title, answer, text, charts, hows))
    return asked


ASKED: dict[str, tuple[str, str, Callable[[Sequence[Found]], Iterator[Chart]]]] = {
    "mixing": (
        "Is the memory better than the datastore?",
        "Perplexity of held-out text, lower is better. λ 0 is the decoder only, λ 1 the memory "
        "or the datastore only. Each number of neighbours has the temperature and the λ that "
        "are best for it on this very text, and so has the memory's line; where all lie on one "
        "level, λ 0 is best: the decoder only.",
        study_charts.mixing,
    ),
    "routing": (
        "Does a λ for every token help?",
        "One λ for all tokens, the λ a router chooses token by token (auto), and an oracle that "
        "believes whichever source gives the true token more: nothing mixed of the two gets "
        "beyond it.",
        study_charts.routing,
    ),
    "imitation": (
        "Is the imitation faithful?",
        "Held-out tokens in quarters. KL is from the datastore's distribution, 0 where they are "
        "the same; the decoder is a yardstick.",
        study_charts.imitation,
    ),
    "worse": (
        "What gets worse?",
        "To the left what the mix costs, to the right what it gains, against the decoder; a "
        "token counts as worse or better from 0.1 nats on.",
        study_charts.worse,
    ),
    "update": (
        "How is new knowledge added?",
        "The same new facts inserted into the datastore, or taught to the memory, to the whole "
        "decoder, or to LoRA beside it; “replay” has as much of the old among the new. Before is "
        "what each knew already.",
        study_charts.update,
    ),
    "compute": (
        "And fine-tuning, with as much computation as the memory took?",
        "The decoder tuned on the same facts, in full or by LoRA, for more and more computation; "
        "the memory's has its keys and targets. B is what is to be learned, A2 what the decoder "
        "knew and reads no more, A1 what it knew and may read again.",
        study_charts.compute,
    ),
    "domains": (
        "What if the domains do not match?",
        "Perplexity of each domain's text (columns) with the memory or datastore of each domain "
        "(rows), one decoder. Violet is better than the decoder on that text, red is worse; "
        "colours are logarithmic.",
        study_charts.domains,
    ),
    "sensitivity": (
        "What does the memory hang on?",
        "Memories trained alike but for one thing, for fewer epochs than the one that ships: to be "
        "held against one another only.",
        study_charts.sensitivity,
    ),
    "context": (
        "Do the words so far help?",
        "Memories trained alike but for what they read beside the hidden state: means of the words "
        "so far, by their half-lives in tokens. And the datastore, searched with such means behind "
        "its keys, by their weight.",
        study_charts.context,
    ),
    "sizes": (
        "Would a larger decoder do instead?",
        "Decoders of several sizes, trained on the same text, alone and each with a datastore and "
        "a memory of its own; and memories of the smaller ones that imitate the datastore of the "
        "largest. Whatever lies on one vertical computes with as many parameters, a memory's "
        "among them.",
        cost_charts.sizes,
    ),
    "cost": (
        "From how many keys on is the memory faster?",
        "One query, both axes logarithmic. Where a line crosses the memory's, searching has "
        "come to cost as much; keys beyond the datastore's own number are made up. Below, every "
        "system alone on a prompt of a dozen tokens.",
        cost_charts.cost,
    ),
    "ledger": (
        "What does it cost to train?",
        "What each stage took, as its manifest has it, on logarithmic axes; a decoder that was "
        "fine-tuned instead stands below, where there is one.",
        cost_charts.ledger,
    ),
}  # fmt: skip
