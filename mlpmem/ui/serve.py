"""From a service to an answering page: build, launch, load, wait."""

import gc
import os
import sys
import tempfile

from mlpmem.ui import page
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.service.service import Service


def serve(
    service: Service, recorded: Recorded, host: str | None = None, port: int | None = None
) -> int:
    """Serve until interrupted, loading once the page answers; returns an exit status.

    Where host and port are not given, GRADIO_SERVER_NAME and GRADIO_SERVER_PORT count, which a host
    such as Spaces sets. Uploads lie in GRADIO_TEMP_DIR or, without it, in a folder of this
    process alone, which goes when it ends.
    """
    if os.environ.get("GRADIO_TEMP_DIR"):
        return _serve(service, recorded, host, port)
    with tempfile.TemporaryDirectory(prefix="mlpmem-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        return _serve(service, recorded, host, port)


def _serve(service: Service, recorded: Recorded, host: str | None, port: int | None) -> int:
    """Serve until interrupted."""
    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port = int(os.environ.get("GRADIO_SERVER_PORT") or 7860) if port is None else port
    blocks = page.build(service, recorded)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            **page.launch_options(),
        )
    except OSError:
        sys.stderr.write(
            f"mlpmem: cannot serve at {host}:{port}: the port is taken or not allowed, or the host "
            "is not this machine's; give another --port or --host\n"
        )
        return 2
    except ValueError as error:  # Gradio asks its own page whether it answers
        sys.stderr.write(
            f"mlpmem: the page does not answer at {host}:{port}; check HTTP_PROXY and NO_PROXY, or "
            f"start it again when the machine is less busy ({str(error).splitlines()[0]})\n"
        )
        return 2
    gc.freeze()  # what was imported stays
    gc.enable()
    sys.stderr.write(f"mlpmem: http://{host}:{port}\n")
    service.start()
    blocks.block_thread()
    return 0
