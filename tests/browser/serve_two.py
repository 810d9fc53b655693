"""Serve a page with two tiny models: python serve_two.py FOLDER PORT.

The second one names its decoder's file, which lies in FOLDER/site if it is a package there, else on
the Hub that HF_ENDPOINT names. The process is offline, as app.py makes it.
"""

import os
import sys
from pathlib import Path

for parent in (2, 1, 0):
    sys.path.insert(0, str([*Path(__file__).parents][parent]))

from mlpmem.loading import hub  # noqa: E402
from mlpmem.ui.door import files  # noqa: E402

os.environ.pop("HF_HUB_OFFLINE", None)
hub.stay_offline()
files.claim()

from mlpmem.ui import page  # noqa: E402
from mlpmem.ui.models import of_bundle  # noqa: E402


def main(folder: Path, port: int) -> None:
    sys.path.insert(0, str(folder / "site"))
    models = [of_bundle(name, folder / name) for name in ("atlas", "smollm2")]
    sys.exit(page.serve(models, "127.0.0.1", port))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
