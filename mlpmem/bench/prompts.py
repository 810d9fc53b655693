"""Time to the first token against the prompt's length, and bytes, per system.

"auto_memory" and "auto_knn" are those under a router's lambda, which asks about the prompt too. Of
"new=20" all but the last tokens were read before, as in a chat's next turn.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

from mlpmem.api import Model
from mlpmem.bench.figures import Figure, in_turns, timed
from mlpmem.engine.prefix import PrefixCache
from mlpmem.engine.trace import AUTO
from mlpmem.loading.decoder_file import DecoderFile

LENGTHS = (32, 64, 128, 256, 512)
NEW = 20  # tokens of a chat's next turn


def bench(
    model: Model, prompt: Sequence[int], lengths: Sequence[int] = LENGTHS, rounds: int = 9
) -> Iterator[Figure]:
    """Yield ms to the first token of prompts that repeat `prompt` up to every length."""
    most = model.decoder.max_positions - 1  # one is written
    routed = [f"{AUTO}_{system}" for system in model.routers if system in model.systems]
    lengths = sorted({min(length, most) for length in lengths})
    sizes = {f"tokens={length}": (length, 0) for length in lengths}
    sizes |= {f"tokens={n}/new={NEW}": (n, NEW) for n in lengths if n > 2 * NEW}
    work = {
        f"{system}/ms_to_first_token/{name}": _first(model, system, prompt, *size)
        for name, size in sizes.items()
        for system in (*model.systems, *routed)
    }
    for name, ms in in_turns(work, rounds).items():
        yield timed(f"prompt/{name}", ms)


def _first(
    model: Model, system: str, prompt: Sequence[int], length: int, new: int
) -> Callable[[], None]:
    """Return work that reads a prompt of so many tokens, or its `new` ones, and writes one."""
    ids, lmbda = (list(prompt) * (length // len(prompt) + 1))[:length], model.settings.of(system)
    if system.startswith(AUTO):
        system, lmbda = system.removeprefix(f"{AUTO}_"), AUTO
    model, prefix = model.only(system), PrefixCache() if new else None
    end = ids[length - new :] if new else []
    ends = cycle((end, [*end[1:], *end[:1]]))

    def work() -> None:
        """Read a prompt that ends otherwise than the one before."""
        asked = [*ids[: length - new], *next(ends)]
        model.generate(asked, system, lmbda=lmbda, max_new_tokens=1, prefix=prefix)

    return work


def bytes_of(
    model: Model, folder: Path | None, decoder_file: DecoderFile | None = None
) -> Iterator[Figure]:
    """Yield the bytes every system adds to memory, and those of a bundle's folder on disk.

    A decoder that the bundle only names has its file's.
    """
    held = {"lm": model.decoder.bytes}
    held |= {"memory": model.memory.bytes} if model.memory is not None else {}
    held |= {"knn": model.store.bytes} if model.store is not None else {}
    for system, size in held.items():
        yield Figure(f"bytes/{system}/in_memory", size, "bytes")
    if folder is not None:
        places = {"lm": "decoder", "memory": "memory", "knn": "documents"}
        for system in held:
            files = (folder / places[system]).rglob("*")
            size = sum(path.stat().st_size for path in files if path.is_file())
            keys = model.datastore.keys.nbytes if system == "knn" else 0
            if system == "lm" and decoder_file is not None:
                size = decoder_file.bytes
            yield Figure(f"bytes/{system}/on_disk", size + keys, "bytes")
