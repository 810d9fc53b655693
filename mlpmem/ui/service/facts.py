"""What the page must know of a model to offer a chat: its room, its form, its usual sampling."""

from typing import Any

from mlpmem.ui.door.bounds import BOUNDS

USUAL = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def chat_facts(model: Any) -> dict:
    """Return plain values of a model for the chat.

    "systems" can answer now; "template" tells whether a system prompt can be read; "longest" is the
    usual and "most" the largest number of an answer's tokens, "question" that of a question's
    characters.
    """
    decoder = model.decoder
    room = decoder.max_positions
    return {
        "systems": list(model.systems),
        "template": bool(getattr(decoder.tokenizer, "chat_template", None)),
        "room": room,
        "tokenizer": decoder.tokenizer_hash,
        "usual": usual_sampling(getattr(decoder.model, "generation_config", None)),
        "longest": max(1, min(256, room // 4, BOUNDS.chat_tokens)),
        "most": BOUNDS.chat_tokens,
        "question": BOUNDS.characters,
    }


def usual_sampling(config: Any) -> dict[str, float]:
    """Return the sampling that a decoder's own generation config asks for; greedy without one."""
    usual = dict(USUAL)
    if not getattr(config, "do_sample", False):
        return usual
    usual["temperature"] = 1.0
    for name in usual:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            usual[name] = float(value)
    return usual
