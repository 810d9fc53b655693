"""The worker process for untrusted programs: it renders chat templates and tries tokenizers.

`confined.py` starts it. The operating system enforces limits of time and memory on each request, so
a template that exceeds them ends only its own request. A fork of the first process, which has
imported everything, answers a request, and the next fork is ready at once.
"""

import json
import os
import signal
import sys
from contextlib import suppress

MEMORY = 512 * 2**20  # bytes that a request may take beyond what the process has
PROBES = ("a", " ", "1", "\n", "!", "a ", "a1", "'s", "\u00e9", "\u4e00")
PROBE = 20_000  # times that each is repeated


def main() -> None:
    """Answer requests, a JSON line each, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever started this ends it
    sys.modules["torch"] = None  # seconds to import, and of no use here
    import tokenizers  # noqa: F401  imported once, before the first fork
    import transformers.utils.chat_template_utils  # noqa: F401

    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
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
    """Answer requests one after another; the process dies where one breaks its bounds."""
    with os.fdopen(os.dup(0), "rb") as requests:
        for line in iter(requests.readline, b""):
            request = json.loads(line)
            _bound(request["seconds"])
            answer = _answered(request)
            _bound(0)
            _write(answers, answer)


def _bound(seconds: float) -> None:
    """Have the system end this process after so many seconds, 0 for never; and bound its memory."""
    if not hasattr(signal, "setitimer"):
        return
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with suppress(OSError, ValueError):
        most = _used() + MEMORY if seconds else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _used() -> int:
    """Return the bytes of address space that this process has; OSError where that is not told."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _answered(request: dict) -> dict:
    """Return the answer to a request, or {"error"} with its first line."""
    try:
        return {"render": _render, "try": _try}[request["task"]](request)
    except MemoryError:
        return {"error": "it takes too much memory"}
    except BaseException as error:  # of a template, or a panic of tokenizers
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}


def _render(request: dict) -> dict:
    """Return {"text"} of messages in a template, as transformers renders them in its sandbox."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template(conversations=[request["messages"]], **request["arguments"])
    if len(text.encode("utf-8", "surrogatepass")) > request["most"]:
        return {"error": f"it writes over {request['most']} bytes"}
    return {"text": text}


def _try(request: dict) -> dict:
    """Return {"tokens"} that a tokenizer makes of repeated characters, which slow rules dread."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(request["tokenizer"])
    return {"tokens": sum(len(made.encode(probe * PROBE + "~").ids) for probe in PROBES)}


def _write(answers: int, value: dict) -> None:
    """Write one answer."""
    data = json.dumps(value).encode() + b"\n"
    while data:
        data = data[os.write(answers, data) :]


if __name__ == "__main__":
    main()
