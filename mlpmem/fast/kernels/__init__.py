"""Code that numba compiles for Llama-shaped decoders and memories; every file here imports numba.

What lies between two products (layer), attention of one token (attend) and of a prompt (prompt),
products (products), log-probs of tokens (scores), a complete step (step), the LLVM code that they
need (intrinsics), and the form that takes tensors (operators). `llama_pass.py` imports it in the
background. It may import `mlpmem.fast.llama_layers`. Open step.py first.

numba caches what it compiles, and looks only at the file of a function to see whether that is
valid. A function also holds the code of functions that it calls, so the cache's folder is named by
a hash of all files here.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba import config, njit
from numba.misc.appdirs import AppDirs

OPTIONS = {"fastmath": True, "nogil": True, "error_model": "numpy"}
HERE = Path(__file__).parent


def compiled(function: Callable | None = None, **options: Any) -> Callable:
    """Return a function that numba compiles at its first call, or the decorator that does so."""
    if function is None:
        return lambda function: compiled(function, **options)
    before = config.CACHE_DIR  # numba reads it when a function is decorated
    folder = _folder(before)
    config.CACHE_DIR = folder or before
    try:
        return njit(**OPTIONS, cache=bool(folder), **options)(function)
    finally:
        config.CACHE_DIR = before


@cache
def _folder(chosen: str) -> str:
    """Return a writable folder for compiled code, in the chosen one if set; "" if there is none."""
    user = AppDirs(appname="numba", appauthor=False).user_cache_dir
    for parent in (chosen,) if chosen else (HERE / "__pycache__", user):
        folder = Path(parent) / f"mlpmem-{version_of(HERE)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return str(folder)
    return ""


def note(dtype: str) -> Path | None:
    """Return the file that says all kernels for a dtype are cached, None without a cache.

    It is another one for another processor, numba or Python.
    """
    folder = _folder(config.CACHE_DIR)
    made_for = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    made_by = numba.__version__, sys.version
    name = hashlib.sha256(repr((dtype, made_for, made_by)).encode()).hexdigest()[:16]
    return Path(folder) / f"all-{name}" if folder else None


def version_of(folder: Path) -> str:
    """Return a hash of all source files of a folder."""
    content = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]
