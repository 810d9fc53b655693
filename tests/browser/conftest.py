"""One Chromium per session, and servers: the fake model, one that never loads, the real app.

Every test gets new pages; their requests are recorded and must stay on the page's own origin.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
    # Every new window loads two hidden pages for the address bar: two fifths of a visit's CPU
    # time. The last list counts, so the names of Playwright's that matter here stand in it again.
    "--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup,PaintHolding,HttpsUpgrades"
    ",DestroyProfileOnBrowserClose,MediaRouter,OptimizationHints,PreconnectToSearch"
    ",NetworkTimeServiceQuerying",
]  # fmt: skip
PATIENCE = float(
    os.environ.get("MLPMEM_PATIENCE", "30")
)  # time-out in seconds of a server's start or a step

AXE = HERE.parent / "js" / "node_modules" / "axe-core" / "axe.min.js"
AXE_RUN = """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations
  .flatMap(({ id, impact, nodes }) => nodes.map((node) =>
    `${id} (${impact}): ${node.target.join(' ')} ${node.failureSummary.split('\\n')[1] ?? ''}`))"""


def pytest_collection_modifyitems(items):
    """Mark all tests in this folder; tests of the real app run last."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
    items.sort(key=lambda item: item.path == HERE / "test_app.py")


def find_chromium(playwright) -> str | None:
    """Return MLPMEM_CHROMIUM, the system's Chromium or Playwright's own, the first that exists."""
    own = playwright.chromium.executable_path
    paths = [os.environ.get("MLPMEM_CHROMIUM"), *map(shutil.which, NAMES), own]
    return next((path for path in paths if path and Path(path).exists()), None)


@pytest.fixture(scope="session")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None:
            pytest.skip("no Chromium: set MLPMEM_CHROMIUM or run python -m playwright install")
        browser = playwright.chromium.launch(
            executable_path=path, args=FLAGS, timeout=1000 * PATIENCE
        )
        yield browser
        browser.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A process that serves a page."""

    def __init__(self, log: Path, *command: str, cwd: Path = ROOT, python: str = sys.executable,
                 **environment: str):  # fmt: skip
        """Start it; "{port}" in command and environment becomes a free port."""
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [python, *(part.format(port=self.port) for part in command)],
                stdout=out, stderr=subprocess.STDOUT, cwd=cwd,
                env=os.environ | {k: v.format(port=self.port) for k, v in environment.items()},
            )  # fmt: skip

    def wait(self) -> "Server":
        """Return once it answers; fail with its log otherwise."""
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            try:
                with urllib.request.urlopen(self.url, timeout=5):
                    return self
            except OSError:
                time.sleep(0.1)
            if self.process.poll() is not None:
                break
        pytest.fail(f"the server did not start:\n{self.log.read_text()}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_space(folder: Path, kind: str, python: str = sys.executable) -> Server:
    """Build a Space from a tiny bundle and start it as its host does.

    Only folder/cache is writable; folder/space and folder/home are read-only.
    """
    import tiny

    from mlpmem.space.build import build

    tiny.bundle(folder / "bundle", traces=[])
    space, home = build(folder / "space", kind, bundle=folder / "bundle").folder, folder / "home"
    home.mkdir()
    for path in (space, home, *filter(Path.is_dir, space.rglob("*"))):
        path.chmod(0o555)
    return Server(
        folder / "log", "app.py", cwd=space, python=python,
        CPU_CORES="2", HOME=str(home), USERPROFILE=str(home), MPLCONFIGDIR=str(folder / "cache"),
        GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT="{port}",
        MLPMEM_CACHE=str(folder / "cache"), GRADIO_TEMP_DIR=str(folder / "cache" / "gradio"),
        PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip


class Servers(dict):
    """Servers by name, each started on first use."""

    def __init__(self, folder: Path):
        """Store the folder for bundles and logs."""
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Server:
        self[name] = self._start(name)
        return self[name]

    def _start(self, name: str) -> Server:
        log = self.folder / f"{name}.log"
        if name.startswith("space-"):
            return start_space(self.folder / name, name.removeprefix("space-"))
        if name not in ("app", "gguf"):
            seconds = {"fake": "0.4", "eager": "0.4", "waiting": "-1"}[name]
            serve = str(HERE / "serve.py")
            return Server(log, serve, str(self.folder / name), "{port}", seconds, name)
        import tiny

        if name == "gguf":
            import gguf_files

            decoder = tiny.decoder("llama", intermediate_size=64)  # blocks have 32 weights
            file = gguf_files.write(self.folder / "tiny.gguf", decoder, "Q4_1", gguf_files.TEMPLATE)
            return Server(
                log, "app.py", "--decoder", str(file), "--dtype", "float32", "--port", "{port}"
            )
        tiny.bundle(self.folder / "tiny", traces=[])
        return Server(
            log, "app.py", "--bundle", str(self.folder / "tiny"), "--port", "{port}",
            MLPMEM_CACHE=str(self.folder / "cache"),
        )  # fmt: skip


@pytest.fixture(scope="session")
def servers(chromium, tmp_path_factory):
    started = Servers(tmp_path_factory.mktemp("served"))
    yield started
    for server in started.values():
        server.process.terminate()  # each takes seconds to end, and all may take the same ones
    for server in started.values():
        server.stop()


@dataclass
class Visit:
    """A visitor's page with its requests and errors."""

    page: object
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


SCREENS = [  # (phone, dark) of an audit
    pytest.param(False, False, id="desk-light"),
    pytest.param(False, True, id="desk-dark", marks=pytest.mark.slow),
    pytest.param(True, False, id="phone-light", marks=pytest.mark.slow),
    pytest.param(True, True, id="phone-dark", marks=pytest.mark.slow),
]
SHAPES = {
    "desk": {"viewport": {"width": 1280, "height": 860}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}


@pytest.fixture
def contexts(chromium):
    """Return {"desk", "phone"}: contexts of one test."""
    by_kind = {kind: chromium.new_context(**shape) for kind, shape in SHAPES.items()}
    yield by_kind
    for context in by_kind.values():
        context.close()


@pytest.fixture
def visit(chromium, servers):
    """Return visit(server, phone=..., dark=...) -> a playwright page; its requests are checked.

    Every visitor has its own context, because a context has six connections per host, and each
    page, even one that closed recently, uses two.
    """
    visits = []

    def open_page(name="fake", phone=False, dark=False, ready=True, query=""):
        server = servers[name].wait()
        page = chromium.new_context(**SHAPES["phone" if phone else "desk"]).new_page()
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.set_default_timeout(1000 * PATIENCE)
        page.seen = Visit(page)
        page.on("request", lambda request: page.seen.requests.append(request.url))
        page.on("pageerror", lambda error: page.seen.errors.append(str(error)))
        visits.append((server, page.seen))
        page.goto(f"{server.url}?{query}" if query else server.url)
        page.wait_for_selector("#prompt")
        if ready:
            page.wait_for_selector("#status .chip[data-state=ready]")
        return page

    yield open_page
    for server, seen in visits:
        seen.page.context.close()
        ours = (server.url, "data:", "blob:")
        assert [url for url in seen.requests if not url.startswith(ours)] == []
        assert seen.errors == []


@pytest.fixture
def audit(visit):
    """Return audit(page, state), which adds axe's findings to a list that must stay empty."""
    if not AXE.is_file():
        pytest.skip("no axe-core: npm ci --prefix tests/js")
    found = {}

    def check(page, state):
        if not page.evaluate("Boolean(window.axe)"):
            page.evaluate(AXE.read_text("utf-8"))
        page.wait_for_timeout(250)  # a fade
        if violations := page.evaluate(AXE_RUN):
            found[state] = violations

    yield check
    lines = [f"{state}: {one}" for state, rows in found.items() for one in rows]
    assert not lines, "\n".join(lines)
