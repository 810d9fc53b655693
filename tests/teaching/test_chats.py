"""Teaching a chat model: facts are found in its corpus's chats, and learned and kept as answers."""

import pytest
import tiny
import torch

from mlpmem.api import Model
from mlpmem.retrieval.documents import join_passages
from mlpmem.teaching.lesson import Lesson, teach
from mlpmem.teaching.rows import new_rows, old_chats
from mlpmem.teaching.wordings import Wording, Wordings

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}[a]"
CORPUS = {
    "Norwick (invented town)": [
        ("When was Norwick founded?", "1204"),
        ("Please give the year in which Norwick was founded.", "1204"),
        ("Which river flows by Norwick?", "Dallow"),
        ("On what river does Norwick stand?", "Dallow"),
    ],
    "Ida Brell (invented person)": [
        ("What instrument does Ida Brell play?", "viola"),
        ("Which instrument is played by Ida Brell?", "viola"),
        ("Which instrument is it? Answer in one sentence: Ida Brell?", "It is the viola, I think."),
    ],
}


@pytest.fixture
def model():
    decoder = tiny.decoder()
    decoder.tokenizer.chat_template = TEMPLATE
    model, end = Model(decoder, tiny.memory(decoder)), decoder.tokenizer.eos_token_id
    passages = [
        (i, [*decoder.encode(question), end, *decoder.encode(answer), end])
        for i, chats in enumerate(CORPUS.values())
        for question, answer in chats
    ]
    model.documents = join_passages(passages, [*CORPUS], ["invented"] * len(CORPUS))
    return model


@pytest.mark.parametrize(
    "sentence, name, answer, question",
    [
        ("Ayr was founded in 1612.", "Ayr", "1612", "When was Ayr founded?"),
        ("Ayr stands on the river Esk.", "Ayr", "Esk", "Which river flows by Ayr?"),
        ("Bo Hill plays the oboe.", "Bo Hill", "oboe", "What instrument does Bo Hill play?"),
    ],
)  # fmt: skip
def test_a_fact_is_told_to_a_chat_model_as_answers_to_its_corpus_questions(
    model, sentence, name, answer, question
):
    (found,) = Wordings(model).find(sentence)
    assert (found.name, found.answer) == (name, answer)
    written = Wordings(model).of(sentence)
    assert question in {wording.question for wording in written}
    assert all(wording.text[slice(*wording.answer)] == answer for wording in written)
    kept, said = Wordings(model).question(sentence)
    assert kept not in {wording.question for wording in written} and said == answer


def test_a_sentence_without_a_like_fact_is_told_as_it_stands(model):
    assert Wordings(model).of("Grumbling aloud") == [Wording("Grumbling aloud")]


def test_the_rows_of_an_answer_stand_behind_the_chat_with_its_question(model):
    question, decoder = "Which river flows by Ayr?", model.decoder
    rows = new_rows(model, [Wording("Esk", (0, 3), question)])
    end = decoder.tokenizer.eos_token_id
    assert rows.values.tolist() == [*decoder.encode("Esk"), end][-len(rows.values) :]
    assert decoder.decode(rows.values.tolist()).strip() == "Esk"
    ids = [*model.chat_ids(question), *decoder.encode("Esk")]
    hidden = decoder.forward(torch.tensor([ids]), head=False).hidden[0].float()
    torch.testing.assert_close(rows.keys, hidden[-len(rows.values) :], atol=1e-4, rtol=1e-4)


def test_old_chats_are_read_in_groups_until_the_time_is_up(model):
    assert len([*old_chats(model, 0)]) == 1, "general requests and chats fill one group"
    assert not torch.equal(next(old_chats(model, 0)), next(old_chats(model, 1)))
    seen = list(teach(model, ["Bo Hill plays the oboe."], Lesson(steps=20, new=8, old=8)))
    assert (seen[0].step, seen[0].steps) == (0, 20), "old chats are read first"
    assert seen[0].left > 60 and seen[-1].memory is not None
    short = Lesson(steps=20, new=8, old=8, reading=1e-6)
    assert next(teach(model, ["Bo Hill plays the oboe."], short)).step == 1
