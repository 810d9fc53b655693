"""Work that waits in the page's queue, and ends when its client leaves.

The queue is that of the page: it bounds a client's jobs and gives turns by computing time. A job
waits there under a ticket; its thread puts values into a channel that the request reads.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import gradio as gr
from starlette.requests import Request

from mlpmem.errors import MlpMemError, public_text
from mlpmem.ui.context import MODEL
from mlpmem.ui.door.routes import API, RefusedError
from mlpmem.ui.openai.answers import ApiError
from mlpmem.ui.request import stream
from mlpmem.ui.request.limits import LATE, Deadline

NAME = "openai"  # of the function in Gradio's table; it is private
FAILED = "The answer failed; the server's terminal says why. Try again."
log = logging.getLogger(__name__)
Make = Callable[[Deadline], Iterator[Any]]


class Job:
    """One request's work, and the channel of its values."""

    def __init__(self, make: Make) -> None:
        """Store the work; it is not started."""
        self._make, self._loop = make, asyncio.get_running_loop()
        self.values: asyncio.Queue[Any] = asyncio.Queue()  # at its end None, or an error
        self.stop: Deadline | None = None  # while it runs

    def run(self, stop: Deadline) -> None:
        """Put every value into the channel, in the page's turn; an error is the last value."""
        end: Exception | None = None
        try:
            with stream.turn(stop):
                for value in self._make(stop):
                    self._put(value)
            stop.check()
        except RefusedError as refused:
            end = refused
        except MlpMemError as error:
            end = ApiError(400, LATE if stop.over else public_text(error))
        except gr.Error as error:  # of a GPU lease: quota or time-out
            end = ApiError(503, stream.lease_text(error))
        except Exception:
            log.exception("an answer failed")
            end = ApiError(500, FAILED)
        finally:
            stop.set()
            self._put(end)

    def _put(self, value: Any) -> None:
        """Put a value into the channel from a thread."""
        with suppress(RuntimeError):  # the server has stopped
            self._loop.call_soon_threadsafe(self.values.put_nowait, value)


class Jobs:
    """The jobs of a page's programs."""

    def __init__(self, blocks: gr.Blocks) -> None:
        """Add the function that runs a ticket's job to the page's queue."""
        self._blocks, self._waiting = blocks, dict[str, Job]()

        def openai(ticket: str) -> bool:
            return self._run(ticket)

        gr.api(openai, api_name=NAME, api_visibility="private", **MODEL)
        self._function = max(blocks.fns)

    def _run(self, ticket: str) -> bool:
        """Run a ticket's job; gr.Error for an unknown ticket, or that of a client who left."""
        stop, job = Deadline(), self._waiting.get(str(ticket))
        if job is not None:
            job.stop = stop  # before it is taken: whoever cannot take it back sets this event
        if job is None or self._waiting.pop(str(ticket), None) is None:
            raise gr.Error("This request has ended. Send it again.", print_exception=False)
        job.run(stop)
        return True

    @asynccontextmanager
    async def begun(self, make: Make, scope: dict, receive: Any) -> AsyncIterator[AsyncIterator]:
        """Queue work and yield an iterator of its values, until the context closes.

        The iterator raises ConnectionError once the client leaves, and the work's RefusedError.
        """
        job, ticket = Job(make), uuid.uuid4().hex
        self._waiting[ticket] = job
        gone = asyncio.create_task(_gone(receive))
        # Gradio accepts jobs of its own routes only
        request = Request({**scope, "path": f"{API}/call/{NAME}"})
        try:
            async with self._blocks._queue.joined(self._function, [ticket], request):
                yield _values(job, gone)
        finally:
            gone.cancel()
            if self._waiting.pop(ticket, None) is None and job.stop is not None:
                job.stop.set()


async def _values(job: Job, gone: asyncio.Task) -> AsyncIterator[Any]:
    """Yield a job's values as they come."""
    while True:
        value = asyncio.ensure_future(job.values.get())
        await asyncio.wait({value, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            value.cancel()
            raise ConnectionError("the client has left")
        if isinstance(found := value.result(), Exception):
            raise found
        if found is None:
            return
        yield found


async def _gone(receive: Any) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
