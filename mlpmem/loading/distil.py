"""A memory of your own texts, distilled by `python -m train` in a separate process.

It trains on the keys that the page has built. The result stays in the cache folder. The same
decoder and texts need no second training, and an interrupted training resumes.
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
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.key_cache import cache_folder
from mlpmem.retrieval.texts import files_of

ROOT = Path(__file__).parents[2]  # where the training program is, in a clone
STAGES = ("corpus", "decoder", "datastore", "targets", "memory")
PROGRESS = re.compile(r"^(\w+): +(\d+)%\|(?:.*<([\d:]+))?")  # a stage's bar, with the time left
BUILT = "datastore"  # folder of the page's datastore, for the training
RUNNING: set[subprocess.Popen] = set()  # trainings of this process
PATIENCE = 5.0  # seconds before a training is killed
PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
ROWS = 30_000  # training positions at most, drawn at random: minutes on one CPU core
# Other values are the recipe defaults; nothing is held out, because nothing is measured.
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
built = {built}

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
    """Return a memory of texts (files, folders, patterns) for the decoder in a folder.

    The model must hold the texts' datastore. Its k, temperature and lambda are used for the targets
    and the memory. tell reports each stage's progress; the memory's folder is printed to standard
    error. MlpMemError gives the reason if training fails.
    """
    text = [str(path.resolve()) for source in text for path in files_of(source)]
    recipe = _recipe(model, Path(decoder).resolve(), text)
    folder = cache_folder() / "distilled" / _label(recipe, Path(decoder), text)
    if not (folder / "memory" / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
        _hand_over(model.datastore, folder)
        _train(folder, tell)
        os.replace(folder / "runs" / "recipe" / "memory", folder / "memory")
        for name in ("runs", BUILT):
            shutil.rmtree(folder / name, ignore_errors=True)
    sys.stderr.write(f"mlpmem: the memory is in {folder / 'memory'}, for --memory\n")
    dtype, device = model.decoder.model.dtype, model.decoder.device
    return Memory.load(folder / "memory", dtype=dtype, device=device)


def _recipe(model: Model, decoder: Path, text: list[str]) -> str:
    """Return the recipe's TOML; a JSON string is a TOML string too."""
    return RECIPE.format(
        text=json.dumps(text),
        decoder=json.dumps(str(decoder)),
        passage=min(256, model.decoder.max_positions),
        depth=model.decoder.depth,
        built=json.dumps(BUILT),  # beside the recipe
        k=model.settings.k,
        temperature=float(model.settings.knn_temperature),
        lmbda=float(model.settings.of("knn")),
        share=min(1.0, ROWS / len(model.datastore)),
        inner=4 * model.decoder.hidden_size,
    )


def _label(recipe: str, decoder: Path, text: list[str]) -> str:
    """Return a name that depends on the recipe, the texts' content and the decoder's files."""
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


def _hand_over(datastore: Datastore, folder: Path) -> None:
    """Write a datastore for the training, unless an interrupted training has taken it already."""
    if (folder / "runs" / "recipe" / "datastore").is_dir():
        return
    try:
        datastore.save(folder / BUILT)
    except OSError as error:
        raise MlpMemError(
            f"the memory could not be distilled: the keys cannot be written to {folder} "
            f"({error.strerror or type(error).__name__}); free space there, or set MLPMEM_CACHE to "
            "another folder"
        ) from error


def _train(folder: Path, tell: Tell) -> None:
    """Run the stages up to the memory; MlpMemError with the last line if one fails."""
    command = [sys.executable, "-m", "train", "all", str(folder / "recipe.toml")]
    command += ["--runs", str(folder / "runs"), "--until", "memory"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}
    last: deque[str] = deque(maxlen=1)
    share = 0.0  # a bar may restart within a stage
    with _started(command, environment) as process, (folder / "log.txt").open("w", 1) as log:
        for line in process.stdout:
            log.write(line)
            last.extend([line.strip()] if line.strip() else [])
            if (progress := _progress(line)) is not None:
                stage, done, left = progress
                share = max(share, done)
                tell(f"distilling a memory: {stage}, {100 * share:.0f}%{left}", share)
    if process.returncode:
        raise MlpMemError(
            f"the memory could not be distilled: {last[-1] if last else 'no reason was given'}; "
            f"the full log is {folder / 'log.txt'}. Fix the cause (training needs "
            '`pip install -e ".[train]"`) and start again; training resumes'
        )


@contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Yield a running process, and wait for it. It ends when this process ends for any reason.

    It leads its own process group, so that its children can be ended too.
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
    """End every running training and wait for it; the next start resumes it."""
    for process in list(RUNNING):
        _end(process)


def _end(process: subprocess.Popen) -> None:
    """Terminate a process group; kill it after PATIENCE seconds."""
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with suppress(OSError):
            os.killpg(process.pid, number) if hasattr(os, "killpg") else process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
            return


def die_with_parent() -> None:
    """End this process when its parent is killed (Linux only).

    Otherwise it would keep training and write to the same folder as the next run.
    """
    if PRCTL:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


atexit.register(end)


def _progress(line: str) -> tuple[str, float, str] | None:
    """Return (stage, share of all stages done, words on the time left) from a progress line.

    None from any other line. The words are "" while the time is unknown.
    """
    match = PROGRESS.match(line)
    if not match or match[1] not in STAGES:
        return None
    share = (STAGES.index(match[1]) + int(match[2]) / 100) / len(STAGES)
    if not match[3]:
        return match[1], share, ""
    left = 0  # seconds
    for part in match[3].split(":"):
        left = 60 * left + int(part)
    return match[1], share, f", {left} s left" + ("" if match[1] == STAGES[-1] else " of this step")
