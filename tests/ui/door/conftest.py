"""A loop for what Gradio makes: blocks and queues, which leave one behind where there is none."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture
def run():
    """Return run(coroutine) -> its result, all in one loop of another thread.

    This thread may be driving a browser, in a loop of its own.
    """
    with ThreadPoolExecutor(1) as thread:
        runner = thread.submit(asyncio.Runner).result()
        yield lambda job: thread.submit(runner.run, job).result()
        thread.submit(runner.close).result()
