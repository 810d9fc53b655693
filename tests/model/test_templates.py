"""Chat templates are rendered as in transformers, within limits on time and memory."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tiny

from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.model import confined, templates
from mlpmem.model.prompts import chat_ids
from mlpmem.model.tokenizer import turn_ends

LATEST = confined.BUSY * templates.SECONDS + confined.GRACE_SECONDS  # on a busy machine
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a\n  b\tü 金 {{ x }} "},
    {"role": "assistant", "content": "No </s>"},
    {"role": "user", "content": "Why?"},
]
PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
USED = {
    "plain": PLAIN,
    "time": "{{ strftime_now('%Y') }}" + PLAIN,
    "json": "{{ messages | tojson(indent=2) }}{{ dict(a=1) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if ns.n == 2 %}{% continue %}{% endif %}{{ ns.n }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "tools": "{% if tools is none %}no{% endif %}{{ documents }}{{ unknown is defined }}",
    "long": "{{ 'a' * 60000 }}",
}
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "loops": LOOP,
    "writes without end": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "a little too much": "{{ 'a' * 70000 }}",
    "doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}{{ n.x }}",
    "takes memory": "{{ ('a' * 10000000000) | length }}",
    "counts": "{{ (9 ** 9) ** (9 ** 7) }}",
    "calls itself": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "leaves the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "refuses": "{{ raise_exception('no such role') }}",
    "is damaged": "{% for m in",
}


def tokenizer(template: str):
    words = tiny.tokenizer()
    words.chat_template = template
    return words


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("kind", USED)
def test_a_template_is_rendered_as_in_transformers(kind, prompt):
    words = tokenizer(USED[kind])
    wanted = words.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
    assert templates.render(words, CHAT, prompt) == wanted


def test_a_chats_ids_equal_apply_chat_template():
    decoder = tiny.decoder()
    decoder.tokenizer.chat_template = PLAIN
    chat = [CHAT[1], {"role": "assistant", "content": "No."}, CHAT[3]]
    wanted = decoder.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    assert chat_ids(decoder, chat) == wanted


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_is_refused_in_time_and_the_next_one_is_rendered(kind):
    templates.render(tokenizer(PLAIN), CHAT)  # starts the process
    begin = time.perf_counter()
    with pytest.raises(MlpMemError, match="chat template cannot be used .*; use Compare"):
        templates.render(tokenizer(HOSTILE[kind]), CHAT)
    assert turn_ends(tokenizer(HOSTILE[kind])) == []
    assert time.perf_counter() - begin < 2 * LATEST
    assert templates.render(tokenizer("{{ messages[0].content }}"), CHAT) == "Be brief."


def test_a_long_chat_may_exceed_the_limit_of_the_template_itself():
    chat = [{"role": "user", "content": "word " * 50_000}]
    assert len(templates.render(tokenizer(PLAIN), chat)) > 200_000


def test_another_visitors_request_is_answered_in_the_meantime(tiny_model):
    hostile, other = Model(tiny.decoder()), tokenizer(PLAIN)
    hostile.decoder.tokenizer.chat_template = LOOP
    templates.render(other, CHAT)
    refused = []

    def ask() -> None:
        with pytest.raises(MlpMemError, match="over 1 s"):
            chat_ids(hostile.decoder, "Hi")
        refused.append(time.perf_counter())

    thread = threading.Thread(target=ask)
    begin = time.perf_counter()
    thread.start()
    time.sleep(0.05)
    assert tiny_model.generate("Peru", "lm", max_new_tokens=1).text is not None
    assert templates.render(other, CHAT)
    assert time.perf_counter() - begin < LATEST + 1
    thread.join()
    assert refused


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="it looks for a fork in /proc")
def test_a_busy_machine_refuses_no_template():
    words = tokenizer(PLAIN)
    wanted, pid = templates.render(words, CHAT), confined._WORKER._process.pid
    (fork,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(fork), signal.SIGSTOP)  # as if other programs had the processor
    late = templates.SECONDS + confined.GRACE_SECONDS + 0.5
    waking = threading.Timer(late, os.kill, (int(fork), signal.SIGCONT))
    waking.start()
    assert templates.render(words, CHAT) == wanted
    waking.join()


def test_a_killed_process_is_restarted():
    words = tokenizer(PLAIN)
    wanted = templates.render(words, CHAT)
    confined._WORKER._process.kill()
    confined._WORKER._process.wait()
    assert templates.render(words, CHAT) == wanted
    confined._WORKER.close()
    assert templates.render(words, CHAT) == wanted


def test_the_default_of_several_templates_is_used():
    words = tokenizer({"default": PLAIN, "tool_use": "no"})
    assert templates.render(words, CHAT).startswith("<s>[system]")
    with pytest.raises(MlpMemError, match="no default"):
        templates.render(tokenizer({"rag": PLAIN, "tool_use": "no"}), CHAT)
