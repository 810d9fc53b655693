"""What answers the routes for other programs, by its interface."""

from collections.abc import Mapping
from typing import Any, Protocol

from mlpmem.ui.door.routes import RefusedError

OFF = "The endpoints below /v1 are off here. MLPMEM_OPENAI=1 where the server starts turns them on."


class Programs(Protocol):
    """What answers them; mlpmem/ui/openai is one."""

    def get(self, name: str, named: Mapping[str, str]) -> tuple[int, bytes]:
        """Return (status, JSON) for a route without a body; RefusedError for no answer."""
        ...

    async def post(self, name: str, payload: dict, scope: dict, receive: Any, send: Any) -> None:
        """Send the answer to a body; RefusedError before anything was sent."""

    def refusal(self, refused: RefusedError) -> tuple[int, bytes]:
        """Return (status, JSON) of a refused request."""
        ...
