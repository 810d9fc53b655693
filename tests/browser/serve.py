"""Serve the page with the fake model: python serve.py FOLDER PORT SECONDS [eager].

The datastore loads for SECONDS; below 0 the model never loads. Eager answers are scrubbed at once.
"""

import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from mlpmem.ui.door import files  # noqa: E402

files.claim()  # as app.py does, before Gradio is imported

import fake  # noqa: E402
import fake_columns  # noqa: E402

from mlpmem.ui import page  # noqa: E402
from mlpmem.ui.models import PageModel  # noqa: E402
from mlpmem.ui.panels import teach  # noqa: E402
from mlpmem.ui.recordings import recorded  # noqa: E402
from mlpmem.ui.service.loads import cost_line, report_tokens  # noqa: E402
from mlpmem.ui.service.service import BackgroundTask, Service  # noqa: E402


def main(folder: Path, port: int, seconds: float, eager: bool = False) -> None:
    def attach(model, tell):
        for done in range(10):
            report_tokens(tell, done * 43_000, 430_000)
            time.sleep(seconds / 10)
        model.systems = ["lm", "memory", "knn"]
        return model, cost_line(model, SimpleNamespace(seconds=21.0, cached=False, warning=""))

    def load(tell):
        if seconds < 0:
            threading.Event().wait()
        model = fake.FakeModel(eager=eager)
        return model, [BackgroundTask("datastore", partial(attach, model))]

    teach.lesson, teach.check_teachable = fake.lesson, lambda model: None
    teach.check_of = lambda model, text: [("new", fake.ask("Who rang?"), "Ilka")]
    service = Service(load, extras=fake_columns.FakeExtras())
    model = PageModel(service, recorded.read(fake.write_bundle(folder, eager)))
    sys.exit(page.serve([model], "127.0.0.1", port))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), "eager" in sys.argv)
