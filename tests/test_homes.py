"""Every heavy dependency has one home, and nothing imports upwards: the linter refuses the rest."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORTS = {
    "gradio": "import gradio as gr",
    "plotly": "import plotly.graph_objects as go",
    "accelerate": "from accelerate import Accelerator",
    "datasets": "from datasets import load_dataset",
    "pickle": "import pickle",
    "mlpmem.ui": "from mlpmem.ui import page",
    "train": "from train import recipe",
}
ALLOWED = {
    "mlpmem/new.py": set(),
    "mlpmem/ui/new.py": {"gradio", "plotly", "mlpmem.ui"},
    "mlpmem/space/new.py": {"mlpmem.ui"},
    "train/new.py": {"accelerate", "datasets", "train"},
    "train/corpora/new.py": {"accelerate", "datasets", "train"},
    "app.py": {"gradio", "mlpmem.ui", "train"},
}


@pytest.mark.parametrize("file", ALLOWED)
def test_a_dependency_outside_its_home_is_refused(file):
    code = "\n".join(IMPORTS.values())
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251"]
    command += ["--output-format", "concise", "--stdin-filename", file, "-"]
    said = subprocess.run(command, input=code, cwd=ROOT, capture_output=True, text=True).stdout
    refused = {int(line.split(":")[1]) - 1 for line in said.splitlines() if "TID251" in line}
    assert {name for i, name in enumerate(IMPORTS) if i not in refused} == ALLOWED[file], said
