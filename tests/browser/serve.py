"""Serve the page with the fake model: python serve.py FOLDER PORT SECONDS, below 0 for ever."""

import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import fake  # noqa: E402
import fake_columns  # noqa: E402

from mlpmem.ui import page
from mlpmem.ui.recordings import recorded  # noqa: E402
from mlpmem.ui.service.loads import cost_line, tell_tokens  # noqa: E402
from mlpmem.ui.service.service import Later, Service


def main(folder: Path, port: int, seconds: float) -> None:
    def attach(model, tell):
        for done in range(10):
            tell_tokens(tell, done * 43_000, 430_000)
            time.sleep(seconds / 10)
        model.systems = ["lm", "memory", "knn"]
        return model, cost_line(model, SimpleNamespace(seconds=21.0, cached=False, warning=""))

    def load(tell):
        if seconds < 0:
            threading.Event().wait()
        model = fake.FakeModel()
        return model, [Later("datastore", partial(attach, model))]

    service = Service(load, extras=fake_columns.FakeExtras())
    blocks = page.build(service, recorded.read(fake.write_bundle(folder)))
    blocks.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True,
                  **page.launch_options())  # fmt: skip
    service.start()
    blocks.block_thread()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
