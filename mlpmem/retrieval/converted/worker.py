"""The process that reads one file, on its input: python worker.py KIND SECONDS MOST MEMORY.

It writes one JSON object: {"text"}, or {"error": the end of a sentence about the file}.
"""

import io
import json
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

PAGES = 5000  # of a PDF


def main(kind: str, seconds: float, most: int, memory: int) -> None:
    """Read the file, and write its text or what is wrong with it."""
    answers = os.dup(1)
    os.dup2(2, 1)  # so that output of a library is not read as an answer
    raw = sys.stdin.buffer.read()
    limit(seconds, memory)
    try:
        answer = {"text": bounded((pdf_text if kind == ".pdf" else html_text)(raw, most), most)}
    except MemoryError:
        answer = {"error": "takes too much memory to read; save it as text"}
    except RecursionError:
        answer = {"error": "is nested too deeply; save it as text"}
    except ValueError as error:
        answer = {"error": str(error)}
    except Exception as error:  # whatever a damaged file does to its reader
        answer = {"error": f"cannot be read ({type(error).__name__}); save it again, or as text"}
    with os.fdopen(answers, "w", encoding="utf-8") as out:
        json.dump(answer, out)


def limit(seconds: float, memory: int) -> None:
    """Let the operating system end this process after so many seconds, or above its memory."""
    if not hasattr(signal, "setitimer"):
        return
    import resource

    signal.setitimer(signal.ITIMER_REAL, seconds)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def bounded(text: str, most: int) -> str:
    """Return a text without lone surrogates; ValueError if it has more than so many bytes."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) > most or len(text.encode()) > most:
        raise ValueError(f"has more than {most / 1e6:g} MB of text, the limit; cut it")
    return text


def html_text(raw: bytes, most: int) -> str:
    """Return the text that a reader of a web page sees."""
    sys.path.insert(0, str(Path(__file__).parent))
    markup = import_module("markup")
    return markup.visible_text(markup.decoded(raw))


def pdf_text(raw: bytes, most: int) -> str:
    """Return the text of a PDF's pages; ValueError for a password, too many pages, or no text."""
    pypdf, errors = import_module("pypdf"), import_module("pypdf.errors")
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("is protected by a password; save a copy without one")
        if len(reader.pages) > PAGES:
            raise ValueError(f"has more than {PAGES} pages, the limit; cut it")
        pages, size = [], 0
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            size += len(pages[-1])
            if size > most:
                break  # bounded says so
    except (errors.WrongPasswordError, ImportError) as error:  # AES needs a further package
        raise ValueError("is protected by a password; save a copy without one") from error
    except errors.PdfReadError as error:
        raise ValueError("is not a PDF that can be read; save it again, or as text") from error
    if not size:
        raise ValueError("has no text: a scanned page is a picture, which must be recognised first")
    return "\n\n".join(page for page in pages if page)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
