"""Render chat templates in a separate process, with limits on time, memory and size.

The result equals `apply_chat_template(tokenize=False)`, in transformers' sandbox.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.model.confined import run_confined

SECONDS, BYTES = 1.0, 64 * 2**10  # of one rendering; bytes beyond those of the messages
TEMPLATE_BYTES = 2**20  # of a template itself


def render(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
) -> str:
    """Return messages in the tokenizer's chat template; MlpMemError beyond the limits."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates without a default
        raise _unusable(str(error)) from error
    if not isinstance(template, str) or len(template) > TEMPLATE_BYTES:
        raise _unusable(f"it must be a text of at most {TEMPLATE_BYTES} characters")
    own = sum(len(text.encode("utf-8", "replace")) for m in messages for text in m.values())
    arguments = {
        **tokenizer.special_tokens_map,
        "chat_template": template,
        "add_generation_prompt": add_generation_prompt,
    }
    plain = [dict(message) for message in messages]
    answer = run_confined("render", SECONDS, messages=plain, arguments=arguments, most=BYTES + own)
    if "text" not in answer:
        raise _unusable(answer["error"])
    return answer["text"]


def _unusable(why: str) -> MlpMemError:
    return MlpMemError(
        f"this decoder's chat template cannot be used ({why[:200]}); use Compare, which needs "
        "none, or correct chat_template in its tokenizer's folder"
    )
