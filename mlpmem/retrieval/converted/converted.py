"""The text of a web page or a PDF, read in a process with limits on time, memory and bytes.

Such a file may be made to be slow or to unpack without end, so it is read by worker.py: if that
exceeds a limit, only this file fails.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from mlpmem.errors import MlpMemError

KINDS = (".html", ".htm", ".pdf")
INSTALL = "pip install pypdf"
BYTES = 2**27  # of a file
TEXT = 2**26  # bytes of a file's text
SECONDS = 60.0  # of reading one file
START_SECONDS = 20.0  # that the process may take to start and to end, on a busy machine
MEMORY = 2**30  # bytes of the process
WORKER = Path(__file__).with_name("worker.py")


def absent() -> dict[str, str]:
    """Return {kind: the command that installs its reader} of the kinds that cannot be read here."""
    return {".pdf": INSTALL} if find_spec("pypdf") is None else {}


def converted(
    raw: bytes, kind: str, name: object, seconds: float = SECONDS, most: int = TEXT
) -> str:
    """Return the text of a file's bytes; kind is one of KINDS.

    MlpMemError with the file's name and the reason if it cannot be read within so many seconds, or
    if its text has more than `most` bytes.
    """
    if kind in absent():
        raise MlpMemError(
            f"{name} is a PDF, and the package that reads PDFs is not installed; run "
            f"`{INSTALL}`, or save the file as text"
        )
    if len(raw) > BYTES:
        raise MlpMemError(
            f"{name} must have at most {BYTES / 1e6:.0f} MB; got {len(raw) / 1e6:.0f} MB. Cut it"
        )
    answer = _run(raw, kind, seconds, most)
    if "error" in answer:
        raise MlpMemError(f"{name} {answer['error']}")
    return answer["text"]


def _run(raw: bytes, kind: str, seconds: float, most: int) -> dict[str, str]:
    """Return the worker's {"text"} or {"error": the end of a sentence about the file}."""
    late = {"error": f"takes over {seconds:g} s to read, or too much memory; save it as text"}
    limits = (str(seconds), str(most), str(MEMORY))
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(WORKER), kind, *limits],
            input=raw, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=seconds + START_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return late
    try:
        return json.loads(done.stdout)
    except ValueError:  # it was killed by a limit
        return late
