"""Routes of the page and its programs exist; Gradio's other routes do not."""

import pytest

from mlpmem.ui.door import headers, routes
from mlpmem.ui.door.routes import RefusedError

API = "/gradio_api"
EVENT = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/", "page"),
        ("HEAD", "/", "page"),
        ("GET", "/config", "config"),
        ("GET", "/theme.css", "file"),
        ("GET", "/assets/index-Dph_yg.js", "file"),
        ("GET", "/static/js/iframeResizer.contentWindow.min.js", "file"),
        ("GET", f"{API}/heartbeat/a1b2c3", "heartbeat"),
        ("POST", f"{API}/queue/join", "join"),
        ("GET", f"{API}/queue/data", "listen"),
        ("POST", f"{API}/run/predict", "run"),
        ("POST", f"{API}/upload", "upload"),
        ("POST", f"{API}/call/generate", "call"),
        ("POST", f"{API}/call/v2/score", "call_v2"),
        ("GET", f"{API}/call/generate/{EVENT}", "result"),
        ("GET", f"{API}/call/v2/score/{EVENT}", "result"),
        ("GET", "/health", "health"),
        ("GET", "/v1/models", "models"),
        ("GET", "/v1/models/atlas:memory", "model"),
        ("POST", "/v1/completions", "completions"),
        ("POST", "/v1/chat/completions", "chat"),
    ],
)
def test_routes_of_page_and_programs_exist(method, path, name):
    assert routes.find(method, path)[0].name == name


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/file=http://example.org/a",
        f"{API}/file=/etc/passwd",
        f"{API}/file/etc/passwd",
        f"{API}/proxy=https://example.org",
        f"{API}/process_recording",
        "/gradio_api/deep_link",
        f"{API}/component_server",
        f"{API}/upload_progress",
        f"{API}/stream/a/b/c/playlist.m3u8",
        f"{API}/custom_component/a/client/component/index.js",
        f"{API}/run/generate",
        f"{API}/api/predict",
        f"{API}/vibe-edit",
        f"{API}/openapi.json",
        "/v1",
        "/v1/embeddings",
        "/v1/models/",
        "/docs",
        "/monitoring",
        "/login",
        "/manifest.json",
        f"{API}/heartbeat/{'a' * 65}",
        f"{API}/heartbeat/a%b",
        f"{API}/call/{'a' * 65}",
        f"{API}/call/generate/{'a' * 65}",
        "/assets/" + "a" * 300,
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_other_route_exists(method, path):
    with pytest.raises(RefusedError) as refused:
        routes.find(method, path)
    assert refused.value.status == 404


def test_a_route_accepts_its_own_methods_only():
    for method in ("DELETE", "PUT", "GET"):
        with pytest.raises(RefusedError) as refused:
            routes.find(method, f"{API}/queue/join")
        assert refused.value.status == 405


def test_only_the_page_and_a_spaces_host_may_frame_the_page():
    policy = dict(headers.lines(()))[b"content-security-policy"].decode()
    assert policy.endswith("frame-ancestors 'self'") and "default-src 'self'" in policy
    assert dict(headers.lines(()))[b"x-content-type-options"] == b"nosniff"
    space = headers.friends({"SPACE_ID": "a/b", "MLPMEM_ORIGINS": "https://lab.example"})
    policy = dict(headers.lines(space))[b"content-security-policy"].decode()
    assert "https://huggingface.co https://*.hf.space https://lab.example" in policy


@pytest.mark.parametrize(
    ("sent", "friends", "allowed"),
    [
        ({"host": "page.example"}, (), True),  # a program
        ({"host": "page.example:8000", "origin": "http://page.example:8000"}, (), True),
        ({"host": "127.0.0.1:7860", "origin": "http://localhost:7860"}, (), True),
        ({"host": "inner:7860", "x-forwarded-host": "page.example", "origin": "https://page.example"},
         (), True),
        ({"host": "127.0.0.1:7860", "origin": "https://evil.example"}, (), False),
        ({"host": "page.example", "origin": "null"}, (), False),
        ({"host": "page.example", "origin": "https://["}, (), False),
        ({"host": "a-b.hf.space", "origin": "https://huggingface.co"}, headers.SPACE, True),
        ({"host": "a-b.hf.space", "origin": "https://c-d.hf.space"}, headers.SPACE, True),
        ({"host": "a-b.hf.space", "origin": "https://evil.example"}, headers.SPACE, False),
        ({"host": "a-b.hf.space", "origin": "https://huggingface.co.evil.example"},
         headers.SPACE, False),
        ({"host": "page.example", "origin": "https://any.example"}, ("*",), True),
    ],
)  # fmt: skip
def test_cross_site_posts_are_refused(sent, friends, allowed):
    if allowed:
        headers.check_origin(sent, friends)
    else:
        with pytest.raises(RefusedError) as refused:
            headers.check_origin(sent, friends)
        assert refused.value.status == 403
