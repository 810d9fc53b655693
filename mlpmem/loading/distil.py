"""A memory of your own texts, distilled by `python -m train` in a separate process.

The result stays in the cache folder. The same decoder and texts need no second training, and an
interrupted training resumes.
"""

import atexit
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.loading.hub import Tell
from mlpmem.model.memory import Memory
from mlpmem.retrieval.key_cache import cache_folder
from mlpmem.retrieval.texts import files_of

ROOT = Path(__file__).parents[2]  # where the training program is, in a clone
STAGES = ("corpus", "decoder", "datastore", "targets", "memory")
PROGRESS = re.compile(r"^(\w+): +(\d+)%\|")  # a stage's bar
RUNNING: set[subprocess.Popen] = set()  # trainings of this process
PATIENCE = 5.0  # seconds that a training has to end
PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
ROWS = 30_000  # positions learned from at most, drawn at random: minutes on a CPU's core
# What is not said here is the recipes' own default; nothing is held out, as nothing is measured.
RECIPE = """[corpus]
kind = "text"
train = {text}
valid = {text}
test = {text}
passage = {passage}

[decoder]
source = {decoder}
epochs = 0

[datastore]
depth = {depth}

[targets]
k = {k}
temperature = {temperature}
nll_floor = 1e9
easy_share = {share}

[memory]
lmbda = {lmbda}
blocks = 4
intermediate_size = {inner}
batch = 256
epochs = 8
processes = 1
"""


def distil(model: Model, decoder: str | Path, text: Sequence[str | Path], tell: Tell) -> Memory:
    """Return a memory of texts (files, folders, patterns) for a model's decoder, in this folder.

    The model has the texts' datastore: the targets have its k and temperature, and the memory that
    imitates it is used at its lambda. tell hears which stage is at what, standard error where the
    memory lies. MlpMemError says why there is none.
    """
    text = [str(path.resolve()) for source in text for path in files_of(source)]
    recipe = _recipe(model, Path(decoder).resolve(), text)
    folder = cache_folder() / "distilled" / _label(recipe, Path(decoder), text)
    if not (folder / "memory" / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
        _train(folder, tell)
        os.replace(folder / "runs" / "recipe" / "memory", folder / "memory")
        shutil.rmtree(folder / "runs", ignore_errors=True)
    sys.stderr.write(f"mlpmem: the memory is in {folder / 'memory'}, for --memory\n")
    dtype, device = model.decoder.head_weight.dtype, model.decoder.device
    return Memory.load(folder / "memory", dtype=dtype, device=device)


def _recipe(model: Model, decoder: Path, text: list[str]) -> str:
    """Return the recipe's TOML; a JSON string is a TOML string too."""
    return RECIPE.format(
        text=json.dumps(text),
        decoder=json.dumps(str(decoder)),
        passage=min(256, model.decoder.max_positions),
        depth=model.decoder.depth,
        k=model.settings.k,
        temperature=float(model.settings.knn_temperature),
        lmbda=float(model.settings.of("knn")),
        share=min(1.0, ROWS / len(model.datastore)),
        inner=4 * model.decoder.hidden_size,
    )


def _label(recipe: str, decoder: Path, text: list[str]) -> str:
    """Return a name that changes with the recipe, the texts' content and the decoder's files."""
    digest = hashlib.sha256(recipe.encode())
    try:
        for path in text:
            digest.update(Path(path).read_bytes())
    except OSError as error:
        raise MlpMemError(f"text: cannot read {path} ({error}); check the path") from error
    for path in [decoder] if decoder.is_file() else sorted(decoder.glob("*")):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _train(folder: Path, tell: Tell) -> None:
    """Run the stages up to the memory; MlpMemError with the last lines where they fail."""
    command = [sys.executable, "-m", "train", "all", str(folder / "recipe.toml")]
    command += ["--runs", str(folder / "runs"), "--until", "memory"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}
    last: deque[str] = deque(maxlen=1)
    share = 0.0  # a bar may begin anew within a stage
    with _started(command, environment) as process, (folder / "log.txt").open("w") as log:
        for line in process.stdout:
            log.write(line)
            last.extend([line.strip()] if line.strip() else [])
            if (seen := _progress(line)) is not None:
                share = max(share, seen[1])
                tell(f"distilling a memory: {seen[0]}, {100 * share:.0f}%", share)
    if process.returncode:
        raise MlpMemError(
            f"the memory could not be distilled: {last[-1] if last else 'no reason was given'}; "
            f"{folder / 'log.txt'} has it all. Put that right (training needs "
            '`pip install -e ".[train]"`) and start again, it goes on where it was'
        )


@contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Yield a running process, which ends with this one, however this one ends, and is waited for.

    It has a group of its own, so that all that it starts can be ended with it.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options |= {"encoding": "utf-8", "errors": "replace", "env": environment}
    with subprocess.Popen(
        command, **options, start_new_session=True, preexec_fn=die_with_parent if PRCTL else None
    ) as process:
        RUNNING.add(process)
        try:
            yield process
        except BaseException:
            _end(process)
            raise
        finally:
            RUNNING.discard(process)


def end() -> None:
    """End every training that runs, and return when it has; the same start goes on where it was."""
    for process in list(RUNNING):
        _end(process)


def _end(process: subprocess.Popen) -> None:
    """End a process and what it started: asked first, killed after PATIENCE."""
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with suppress(OSError):
            os.killpg(process.pid, number) if hasattr(os, "killpg") else process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
            return


def die_with_parent() -> None:
    """Have this process end when its parent is killed (on Linux).

    Otherwise it would train on, and write where the run that follows a kill writes too.
    """
    if PRCTL:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


atexit.register(end)


def _progress(line: str) -> tuple[str, float] | None:
    """Return (stage, share of all stages done) of a line with a stage's bar, None of another."""
    found = PROGRESS.match(line)
    if not found or found[1] not in STAGES:
        return None
    return found[1], (STAGES.index(found[1]) + int(found[2]) / 100) / len(STAGES)
