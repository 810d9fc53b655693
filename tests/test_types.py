"""A type checker finds nothing wrong with what a program calls: the API, engine and retrieval."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED = ("mlpmem/api.py", "mlpmem/engine", "mlpmem/retrieval")


def test_api_engine_and_retrieval_pass_the_type_checker():
    command = [sys.executable, "-m", "ty", "check", "--python", sys.prefix, *CHECKED]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
