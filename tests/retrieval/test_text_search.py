"""The page marks what a search finds: both fold letters in the same way."""

import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from mlpmem.retrieval.text_search import MOST_WORDS, TextIndex, find_words, fold, marked, words_of
from mlpmem.retrieval.texts import cut_text
from mlpmem.ui.panels import corpus as panel

PAIRS = [  # query, word in the text
    ("strassburg", "Straßburg"),
    ("STRASSBURG", "Straßburg"),
    ("istanbul", "İstanbul"),
    ("cafe", "Café"),
    ("café", "CAFE"),
    (unicodedata.normalize("NFD", "Škoda"), "škoda"),
    ("skoda", unicodedata.normalize("NFD", "Škoda")),
    ("σοφοσ", "Σοφός"),
    ("naïve", "NAI\u0308VE"),
    ("елка", "Ёлка"),
    ("שלום", "שָׁלוֹם"),
    ("한국", unicodedata.normalize("NFD", "한국")),
    ("がく", unicodedata.normalize("NFD", "がく")),
    ("ﬁn", "FIN"),
    ("कुमार", "कुमार"),
]


def index_of(text):
    """Return a corpus of one text."""
    decoder = tiny.decoder()
    return TextIndex(cut_text(decoder, [("t", text)], 96), decoder.decode)


def test_a_document_without_passages_is_no_hit():
    texts = ["Vellmar is a town."]
    documents = SimpleNamespace(
        titles=["Vellmar", "Poldwell"], groups=["B", "A2"], document_of=[0], passage=np.array
    )
    index = TextIndex(documents, lambda ids: texts[ids])
    assert index.search("poldwell") == ([], 0)
    assert index.search("vellmar")[1] == 1


@pytest.mark.parametrize(("query", "word"), PAIRS)
def test_a_found_word_is_marked(query, word):
    text = f"Before, {word}, after."
    (hit,), count = index_of(text).search(query)
    assert count == 1 and hit.match == word
    assert hit.before.endswith("Before, ") and hit.after.startswith(", after.")
    assert marked(text, words_of(query)) == ["Before, ", word, ", after."]


@pytest.mark.parametrize(
    ("query", "text"), [("하", "한국"), ("か", "がく"), ("कम", "कुमार"), ("o", "0 ½ ¹")]
)
def test_different_letters_are_not_found(query, text):
    assert index_of(text).search(query) == ([], 0)
    assert marked(text, words_of(query)) == [text]


def test_folding_a_text_is_folding_its_pieces():
    text = " ".join(word for pair in PAIRS for word in pair)
    spans = find_words(text, [fold(text)])
    assert spans == [(0, len(text))]
    for _, word in PAIRS:
        (start, end), *_ = find_words(text, [fold(word)])
        assert fold(text[start:end]) == fold(word)


def test_a_marked_text_is_complete_and_cut_at_whole_letters():
    text = "Maße, masse und e\u0301e: Éé"
    for query in ("s", "e", "masse e", "\u0301", "zz", ""):
        parts = marked(text, words_of(query))
        assert "".join(parts) == text and len(parts) % 2 == 1
        assert all(not unicodedata.combining(part[0]) for part in parts if part)
    assert marked("Maße", ["s"]) == ["Ma", "ß", "e"]
    assert marked("aab", ["a", "aa"]) == ["", "aa", "b"], "the longest word first"
    assert len(words_of("a " * 99)) == MOST_WORDS


def test_an_opened_document_is_marked_at_the_found_words():
    corpus = index_of("Nach Straßburg, nach Łódź (Lo\u0301dz).")
    shared = SimpleNamespace(service=SimpleNamespace(corpus=corpus))
    opener = panel._opener(shared)

    def parts(**data):
        return panel_value(opener(SimpleNamespace(_data={"document": 0, **data})))["passages"][0]

    assert parts(query="STRASSBURG")[1] == "Straßburg"
    assert parts(query="nach strassburg", place=", nach")[1::2] == [", nach"]
    assert parts(query="lodz")[1::2] == ["Lódz"] or parts(query="lodz")[1::2] == ["Lo\u0301dz"]
    for odd in (None, 3, ["a"], " ", "\u0301"):
        assert "".join(parts(query=odd, place=odd)) == corpus.passages[0][0]


def panel_value(packed):
    """Return the value that a handler of the page sends."""
    import json

    return json.loads(packed["json"])
