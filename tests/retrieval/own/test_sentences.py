"""Texts in sentences, each keyed as an answer."""

import numpy as np
import pytest
import torch

from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.own.sentences import ASKED, cut_sentences, sentences_of, units_of

TEXTS = {
    "One. Two! Three?": ["One.", "Two!", "Three?"],
    "Pi is 3.14 here. \u201cYes.\u201d He said no.": [
        "Pi is 3.14 here.", "\u201cYes.\u201d", "He said no."],
    "# Title\n\n- a point\n- another": ["# Title", "- a point", "- another"],
    "\u4e00\u4e8c\u3002\u4e09\u56db\uff01": ["\u4e00\u4e8c\u3002", "\u4e09\u56db\uff01"],
    "  \n ": [],
    "no end": ["no end"],
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_sentence_ends_with_its_sign_its_quotes_or_its_line(text):
    assert sentences_of(text) == TEXTS[text]
    assert "".join(text.split()) == "".join("".join(sentences_of(text)).split()), "nothing is lost"


def test_a_passage_is_a_sentence_with_its_end_and_units_follow_passages(tiny_model):
    decoder = tiny_model.decoder
    documents = cut_sentences(decoder, [("a", "Lima is big. So is Oslo."), ("b", "Rome.")], 4)
    texts = [decoder.decode(documents.passage(p).tolist()) for p in range(len(documents))]
    assert texts == ["Lima is big.", "So is Oslo.", "Rome."]
    assert documents.document_of.tolist() == [0, 0, 1]
    ends = documents.tokens[documents.offsets[1:] - 1]
    assert set(ends.tolist()) <= set(decoder.eos_ids)
    units = units_of(documents, decoder.pieces)
    assert units[0] == 0 and np.all(np.diff(units) >= 0)
    assert len(set(units[documents.offsets[:-1]].tolist())) == 3
    with pytest.raises(MlpMemError, match="must hold some text"):
        cut_sentences(decoder, [("a", " \n ")], 4)


def test_a_key_is_the_state_behind_the_head_of_an_answer(tiny_model):
    model = Model(tiny_model.decoder, None, questions=True)
    text = "Lima is the capital of Peru. Oslo is the capital of Norway."
    store = model.store_texts([("mine", text)])
    head = model.chat_ids(ASKED)
    documents = store.datastore.documents
    for p in range(len(documents)):
        ids = documents.passage(p)
        output = model.decoder.forward(torch.tensor([[*head, *ids[:-1].tolist()]]))
        states = output.hidden[0, len(head) - 1 :, : store.datastore.keys.shape[1]]
        at = np.flatnonzero(documents.passage_at(store.datastore.positions) == p)
        places = store.datastore.positions[at] - documents.offsets[p]
        keys = torch.from_numpy(store.datastore.keys[at].astype(np.float32))
        torch.testing.assert_close(keys, states[places].float(), atol=2e-3, rtol=2e-3)
