"""Parts "step" and "search" of `python -m train.bench gpu`: training steps, and exact search.

A step's FLOP are 6 per weight and row (2 forward, 4 backward), a search's 2 per query, key and
number of a key. Their shares of the peak (MFU) are stated where the device's peak is known.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mlpmem.bench.figures import Figure, timed
from mlpmem.loading.capacity import available_bytes
from mlpmem.retrieval.bulk_search import BulkSearch
from train.bench.gpu.device import Job
from train.bench.search import clustered_on, recall
from train.bench.step import Shape, our_step
from train.run.machine import matmul_work

CHECKED = 4  # queries whose recall is measured


@dataclass(frozen=True)
class StepSizes:
    """Memories that take steps, in which dtype, and whether torch compiles them."""

    shapes: tuple[Shape, ...]
    dtype: str  # "bfloat16" or "float32"
    compile: tuple[str, ...]  # of "off" and "on"; all shapes run in the first form first


@dataclass(frozen=True)
class SearchCase:
    """A search of all keys: N keys of D numbers, Q queries at once, K neighbours."""

    entries: int
    dim: int
    queries: int
    k: int


def step(sizes: StepSizes, job: Job) -> Iterator[Figure]:
    """Yield rows/s of a training step, its FLOP per row and its MFU, by shape and form."""
    dtype = getattr(torch, sizes.dtype)
    product, flop = matmul_work(job.device, dtype)
    products = [flop / s for s in job.seconds(product)]
    yield timed(f"step/matmul/{sizes.dtype}", [p / 1e12 for p in products], "TFLOP/s")
    best = max(products)
    for mode in sizes.compile:
        for shape in sizes.shapes:
            name = f"step/{shape.name}/{'compiled' if mode == 'on' else 'eager'}"
            yield from _step(name, shape, sizes.dtype, mode, best, job)


def _step(
    name: str, shape: Shape, dtype: str, mode: str, best: float, job: Job
) -> Iterator[Figure]:
    """Yield the figures of one shape and form; `best` is the rate of a large product, FLOP/s."""
    job.check(name)
    on_gpu = torch.device(job.device).type == "cuda"
    if on_gpu:
        gc.collect()  # the shape before
        torch.compiler.reset()  # otherwise a second shape would compile for sizes that vary
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(job.device)
    work = our_step(shape, dtype, job.device, mode)
    rows, flop = shape.repeats * shape.tokens, 6 * shape.weights
    rates = [rows / seconds for seconds in job.seconds(work)]
    yield timed(f"{name}/rows", rates, "rows/s", floor=best / flop)
    yield Figure(f"{name}/flop", flop, "FLOP/row")
    if job.peak is not None:
        yield timed(f"{name}/mfu", [rate * flop / job.peak for rate in rates], "share")
    if on_gpu:
        peak = torch.cuda.max_memory_allocated(job.device)
        yield Figure(f"{name}/peak_memory", peak / 2**20, "MiB")


def search(sizes: tuple[SearchCase, ...], job: Job) -> Iterator[Figure]:
    """Yield queries/s and TFLOP/s of exact search; of the first case also its recall.

    A case has fewer keys where the device's free memory does not hold them twice (as they are, and
    rounded) in half of it.
    """
    for number, case in enumerate(sizes):
        job.check(f"case {number + 1}")
        free = available_bytes(job.device)
        entries = min(case.entries, free // 2 // (4 * case.dim + 64))
        keys = clustered_on(job.device, entries, case.dim)
        found = BulkSearch(keys, job.device, budget=free // 4)
        queries = keys[:: max(1, entries // case.queries)][: case.queries].clone()
        k = min(case.k, entries)
        seconds = job.seconds(lambda f=found, q=queries, k=k: list(f.search(q, k)))
        name = f"search/{entries}x{case.dim}/k={k}"
        yield timed(f"{name}/queries", [len(queries) / s for s in seconds], "queries/s")
        rates = [2 * len(queries) * entries * case.dim / s for s in seconds]
        yield timed(f"{name}/products", [rate / 1e12 for rate in rates], "TFLOP/s")
        if job.peak is not None:
            yield timed(f"{name}/mfu", [rate / job.peak for rate in rates], "share")
        if number == 0:
            some = queries[:CHECKED]
            indices = next(found.search(some, k))[2].cpu()
            yield Figure(f"{name}/recall", recall(keys.cpu().numpy(), some.cpu(), indices), "share")
        del keys, found, queries
