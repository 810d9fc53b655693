"""The worker process for untrusted programs: it renders chat templates and tries tokenizers.

`confined.py` starts it. The operating system limits the time and memory of each request, so a
template that exceeds them fails only its own request. The first process imports everything and then
forks; a fork answers requests, and the next fork is ready at once.
"""

import json
import os
import signal
import sys
from contextlib import suppress

MEMORY = 512 * 2**20  # bytes that a request may use beyond the process's own
PROBES = ("a", " ", "1", "\n", "!", "a ", "a1", "'s", "\u00e9", "\u4e00")
PROBE = 20_000  # repetitions of each probe


def main() -> None:
    """Answer requests, one JSON line each, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C: the parent ends this process
    sys.modules["torch"] = None  # not needed here, and slow to import
    import tokenizers  # noqa: F401  imported once, before the first fork
    import transformers.utils.chat_template_utils  # noqa: F401

    answers = os.dup(1)
    os.dup2(2, 1)  # so that output of libraries is not read as an answer
    _write(answers, {"ready": True})
    if not hasattr(os, "fork"):
        return _serve(answers)
    while True:
        child = os.fork()
        if not child:
            _serve(answers)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and not os.WEXITSTATUS(status):
            return
        _write(answers, {"dead": True})


def _serve(answers: int) -> None:
    """Answer requests one by one; the process dies if a request exceeds its limits."""
    with os.fdopen(os.dup(0), "rb") as requests:
        for line in iter(requests.readline, b""):
            request = json.loads(line)
            _limit(request["seconds"])
            answer = _answer(request)
            _limit(0)
            _write(answers, answer)


def _limit(seconds: float) -> None:
    """Limit this process's memory, and its processor's time to so many seconds; 0 removes both.

    The clock would count other processes' work on a busy machine too.
    """
    if not hasattr(signal, "setitimer"):
        return
    import resource

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    with suppress(OSError, ValueError):
        limit = _used() + MEMORY if seconds else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _used() -> int:
    """Return the bytes of this process's address space; OSError if the system hides them."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _answer(request: dict) -> dict:
    """Return the result of a request, or {"error": first line}."""
    try:
        return {"render": _render, "try": _try_tokenizer}[request["task"]](request)
    except MemoryError:
        return {"error": "it takes too much memory"}
    except BaseException as error:  # from a template, or a panic of tokenizers
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}


def _render(request: dict) -> dict:
    """Return {"text": messages rendered in transformers' sandbox}."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template(conversations=[request["messages"]], **request["arguments"])
    if len(text.encode("utf-8", "surrogatepass")) > request["most"]:
        return {"error": f"it writes over {request['most']} bytes"}
    return {"text": text}


def _try_tokenizer(request: dict) -> dict:
    """Return {"tokens": count} for repeated characters, the worst case of slow rules."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(request["tokenizer"])
    return {"tokens": sum(len(tokenizer.encode(probe * PROBE + "~").ids) for probe in PROBES)}


def _write(answers: int, value: dict) -> None:
    data = json.dumps(value).encode() + b"\n"
    while data:
        data = data[os.write(answers, data) :]


if __name__ == "__main__":
    main()
