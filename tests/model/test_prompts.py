"""Questions and chats have the tokens that training texts have."""

import pytest
import tiny

from mlpmem.errors import MlpMemError
from mlpmem.model.prompts import chat_ids, question_prompt


def test_a_question_is_framed_on_one_line():
    assert question_prompt("  What is\n gold? ") == "Question: What is gold? Answer:"
    with pytest.raises(MlpMemError, match="the question is empty"):
        question_prompt(" \n")


def test_a_chat_is_bos_once_and_every_answered_turn_ended():
    decoder = tiny.decoder()
    plain = decoder.tokenizer.encode
    found = chat_ids(decoder, [("What is gold?", " Au "), ("And Peru?", "")])
    first = plain("Question: What is gold? Answer: Au", add_special_tokens=False)
    last = plain("Question: And Peru? Answer:", add_special_tokens=False)
    assert found == [0, *first, 1, *last]


def test_a_single_turn_is_the_question_alone():
    decoder = tiny.decoder()
    assert chat_ids(decoder, [("Peru?", "")]) == decoder.encode("Question: Peru? Answer:")


def test_the_oldest_turns_go_when_there_is_no_room():
    decoder = tiny.decoder()
    turns = [("a?", "1"), ("b?", "2"), ("c?", "")]
    for kept in range(1, 4):
        room = len(chat_ids(decoder, turns[-kept:]))
        assert chat_ids(decoder, turns, room) == chat_ids(decoder, turns[-kept:])
    assert chat_ids(decoder, turns, 1) == chat_ids(decoder, turns[-1:])


def test_no_turn_and_no_end_token_are_refused():
    decoder = tiny.decoder()
    with pytest.raises(MlpMemError, match="no question yet"):
        chat_ids(decoder, [])
    decoder.tokenizer.eos_token = None
    with pytest.raises(MlpMemError, match="no end token"):
        chat_ids(decoder, [("a?", "1"), ("b?", "")])


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_tokenizers_own_chat_template_is_used_where_it_has_one():
    decoder = tiny.decoder()
    decoder.tokenizer.chat_template = TEMPLATE
    turns = [("What is gold?", " Au "), ("And\nPeru?", "")]
    plain = lambda text: decoder.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    first, last = plain("<user>What is gold?<assistant>Au"), plain("<user>And Peru?<assistant>")
    assert chat_ids(decoder, turns) == [0, *first, 1, *last]
    assert chat_ids(decoder, turns, room=5) == [0, *last], "the last turn never goes"
    with pytest.raises(MlpMemError, match="the question is empty"):
        chat_ids(decoder, [(" ", "")])
    decoder.tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(MlpMemError, match="only one turn"):
        chat_ids(decoder, turns)


def test_a_chat_template_survives_being_saved_and_loaded(tmp_path):
    decoder = tiny.decoder()
    decoder.tokenizer.chat_template = TEMPLATE
    decoder.model.save_pretrained(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    loaded = type(decoder).load(tmp_path)
    assert chat_ids(loaded, [("Peru?", "")]) == chat_ids(decoder, [("Peru?", "")])
