"""An event loop for tests that create Gradio blocks and queues."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture
def run():
    """Return run(coroutine) -> its result; all run in one loop of another thread.

    This thread may run a browser's loop.
    """
    with ThreadPoolExecutor(1) as thread:
        runner = thread.submit(asyncio.Runner).result()
        yield lambda job: thread.submit(runner.run, job).result()
        thread.submit(runner.close).result()
