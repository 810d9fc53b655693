"""The table of a chat model's answers, and the page's sentence of it."""

from mlpmem.results import chats
from mlpmem.ui.recordings import value
from mlpmem.ui.recordings.recorded import Recorded


def finding(system, split, metric, share):
    return {"study": "chats", "system": system, "split": split, "metric": metric, "value": share}


def results(*extra):
    rows = [
        finding("lm", "real/test", "contained", 0.2),
        finding("lm", "invented/test", "contained", 0),
        finding("auto", "real/test", "contained", 0.98),
        finding("auto", "invented/test", "contained", 0.96),
        finding("auto", "real/test", "exact", 0.1), finding("auto", "general", "unchanged", 0.7),
        *extra,
    ]  # fmt: skip
    return {"systems": [{"name": "memory", "bytes": 46e6}], "findings": rows}


def test_a_cell_has_the_shares_of_real_and_invented_facts():
    head, (decoder, memory) = chats.table(results())
    assert len(head) == len(decoder) == len(memory) == 3, "what was not asked has no column"
    assert decoder == ["decoder", "20 / 0", "–"]
    assert memory == ["decoder + memory, auto λ", "98 / 96", "70"]
    head, (_, memory) = chats.table(results(finding("auto", "follow", "unchanged", 0.8)))
    assert head[-1] == chats.KEPT["follow"] and memory[-1] == "80"
    assert chats.table({})[1] == [] and chats.table(None)[1] == []


def test_the_sentence_of_a_chat_model_has_its_own_figures():
    assert chats.headline(results()) == (0.1, 0.97, 0.7)
    text = value.plain(Recorded(results=results(), memory_bytes=23_337_336)).replace("\u00a0", " ")
    assert text == (
        "Asked in new words about facts, this chat model gets 10 % of them right. With a 23 MB "
        "memory it gets 97 %, and answers 70 % of other requests as before, to the letter."
    )
    assert chats.headline({"findings": [finding("lm", "real/test", "contained", 0.2)]}) is None
