"""Check that weights fit into memory before any of them are read.

The limit of a container or process counts: Linux keeps memory in control groups, and a process may
use what the tightest of its groups allows. Both versions of that interface are read (v1 and v2).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import AUTO, FILLED, first_device, free_on_gpus
from mlpmem.formats import NESTED, WEIGHTS, is_gguf, read_json
from mlpmem.model.families import FAMILIES, Family
from mlpmem.model.gguf import reader

TEXT = re.compile(r"(model\.)?language_model\.|lm_head\.")  # weights of a multimodal text part
SPARE = 1.1  # times the weights' size: room for one tensor in its stored form, and some reserve


def parameters_in(folder: Path, packed: bool = False) -> int:
    """Return the number of parameters in a folder's weights, 0 if it has no known weight file.

    When packed, a tied head counts twice, because the embedding table stays. A multimodal model
    counts its text part only. The count comes from the headers of safetensors and GGUF files; for
    .bin files, from their size and the dtype in config.json (default float32).
    """
    if is_gguf(folder):
        return reader.parameters_in(folder, packed)
    folder = folder / NESTED if (folder / NESTED).is_dir() else folder
    for pattern in WEIGHTS:
        files = sorted(filter(Path.is_file, folder.glob(pattern)))
        if files:
            config = _config(folder)
        if files and pattern.endswith(".bin"):
            return sum(path.stat().st_size for path in files) // _stored_dtype(config).itemsize
        if files:
            return _count(files, packed, FAMILIES.get(str(config.get("model_type"))))
    return 0


def _count(files: Sequence[Path], packed: bool, family: Family | None) -> int:
    """Return the number of parameters in safetensors files; an unreadable file counts 0."""
    from safetensors import SafetensorError, safe_open

    sizes = {}
    for path in files:
        with suppress(OSError, SafetensorError):  # reported when the weights are loaded
            with safe_open(path, "pt") as file:
                sizes |= {k: math.prod(file.get_slice(k).get_shape()) for k in file.keys()}
    if family is None:
        return sum(sizes.values())
    if family.text_part:
        sizes = {name: size for name, size in sizes.items() if TEXT.match(name)}
    tied = packed and not any(name.endswith(f"{family.head}.weight") for name in sizes)
    tables = (n for name, n in sizes.items() if tied and name.endswith(f"{family.table}.weight"))
    return sum(sizes.values()) + sum(tables)


def _config(folder: Path) -> dict:
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _stored_dtype(config: Mapping) -> torch.dtype:
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def available_bytes(device: str | torch.device = "cpu") -> int:
    """Return the bytes that this process can use on a device now; MlpMemError if it is missing."""
    if device == AUTO and torch.cuda.is_available():
        return int(FILLED * sum(free_on_gpus()))
    try:
        device = first_device(device)
        if torch.device(device).type == "cuda":
            return torch.cuda.mem_get_info(device)[0]
    except (AssertionError, RuntimeError) as error:  # torch without CUDA, no such name, no driver
        raise MlpMemError(
            f"device {str(device)!r} is not available ({str(error)[:200]}); use cpu, or a device "
            "that this torch supports"
        ) from error
    return allowed().available


def check_room(
    parameters: Mapping[str, int], dtype: torch.dtype, device: str | torch.device = "cpu"
) -> None:
    """Raise MlpMemError, with advice, unless the parameters {name: count} fit on the device."""
    total, free = sum(parameters.values()), available_bytes(device)
    if SPARE * total * dtype.itemsize <= free:
        return
    kind = str(dtype).removeprefix("torch.")
    parts = ", ".join(f"{n} {p * dtype.itemsize / 1e9:.1f} GB" for n, p in parameters.items())
    halved = SPARE * total * torch.bfloat16.itemsize
    advice = "close other programs, take a smaller model or a larger machine"
    if dtype == torch.float32:
        fits = "which fits" if halved <= free else "which does not fit either"
        advice = f"dtype bfloat16 halves that, {fits}; or {advice}"
    raise MlpMemError(
        f"memory of this machine: {parts} in {kind}, so {SPARE * total * dtype.itemsize / 1e9:.1f} "
        f"GB are needed and {free / 1e9:.1f} GB are free on {device}. Advice: {advice}"
    )


PROCESS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
FILES = {True: ("memory.max", "memory.current"),
         False: ("memory.limit_in_bytes", "memory.usage_in_bytes")}  # fmt: skip
CACHED = ("active_file", "inactive_file")  # file cache, which the kernel frees on demand


class Allowed(NamedTuple):
    """Bytes of memory that this process may use at most, and bytes that are free now."""

    total: int
    available: int


def allowed(process: Path = PROCESS, mount: Path = MOUNT) -> Allowed:
    """Return this machine's memory, limited by the control groups of this process."""
    import psutil

    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, free in _limits(process, mount):
        total, available = min(total, limit), min(available, max(0, free))
    return Allowed(total, available)


def _limits(process: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes free below it) for each of the process's groups that has a limit."""
    for folder, is_v2 in _groups(process, mount):
        limit, used = FILES[is_v2]
        try:
            limit, used = (int((folder / name).read_text("ascii")) for name in (limit, used))
            rows = (folder / "memory.stat").read_text("ascii").splitlines()
            stat = {name: int(count) for name, count in map(str.split, rows)}
        except (OSError, ValueError):  # no such group inside a container, or no limit ("max")
            continue
        cached = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in CACHED)
        yield limit, limit - used + cached


def _groups(process: Path, mount: Path) -> Iterator[tuple[Path, bool]]:
    """Yield (folder, whether it is version 2) of the process's groups, innermost first."""
    try:
        rows = [row.split(":", 2) for row in process.read_text("utf-8").splitlines()]
    except (OSError, ValueError):  # not Linux
        return
    for _, controllers, path in (row for row in rows if len(row) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        base = mount / "memory" if controllers else mount
        here = base / path.lstrip("/")
        for folder in (here, *here.parents):
            yield folder, not controllers
            if folder == base:
                break
