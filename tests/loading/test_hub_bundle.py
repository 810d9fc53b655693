"""A bundle comes back from the Hub: the same answers, one download, nothing that was altered."""

import json
import os
import shutil
from pathlib import Path

import named
import pytest
from pushed_hub import PushedHub

import mlpmem
from mlpmem.errors import MlpMemError
from mlpmem.loading import hub as hub_module
from mlpmem.loading.bundle import load_bundle
from mlpmem.loading.bundle_writer import put_results
from mlpmem.loading.hub_bundle import fetch_bundle, is_hub_bundle
from mlpmem.ui.recordings import recorded
from train.report.push import prepare, upload

# how the Hub's client sends a large file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
REPOSITORY = "someone/tiny"


@pytest.fixture
def commit(hub, folder):
    """Return the commit of the bundle after a push."""
    name = upload(prepare(folder, REPOSITORY))
    hub.asked.clear()
    return name


def downloaded(hub: PushedHub) -> list[str]:
    """Return the names of the files that were downloaded."""
    return [line.split("/", 5)[5] for line in hub.asked if line.startswith(f"GET /{REPOSITORY}/re")]


def be_offline(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_pushed_bundle_is_the_same_model_by_its_name(hub, folder, commit):
    (folder / "notes.txt").write_text("never sent")
    here, there = mlpmem.load(folder), mlpmem.load(REPOSITORY)
    assert there.source == f"{REPOSITORY}@{commit}" and here.source == ""
    assert there.name == "tiny" and there.systems == ["lm", "memory", "knn"]
    text = "The capital of Peru is"
    expected, got = here.distributions(text), there.distributions(text)
    assert all((got[name] == expected[name]).all() for name in expected)
    pairs = [model.compare(text, max_new_tokens=6) for model in (here, there)]
    assert [t.text for t in pairs[0].values()] == [t.text for t in pairs[1].values()]
    assert there.score(text).perplexity("memory", 0.5) == here.score(text).perplexity("memory", 0.5)


def test_only_the_files_of_the_manifest_are_downloaded_and_only_once(hub, folder, commit):
    files = hub.commits[REPOSITORY][commit]
    files["decoder/pytorch_model.bin"] = files["run.py"] = b"a pickle, or a program"
    mlpmem.load(REPOSITORY, datastore=False)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert sorted(downloaded(hub)) == sorted([*listed, "manifest.json"])
    hub.asked.clear()
    mlpmem.load(REPOSITORY, datastore=False)
    mlpmem.load(f"{REPOSITORY}@{commit}", datastore=False)
    assert hub.asked == []


def test_a_revision_stays_what_it_was_and_a_newer_one_is_asked_for(hub, folder, commit):
    mlpmem.load(REPOSITORY, datastore=False)
    put_results(folder, {"systems": [], "how": "again"})
    second = upload(prepare(folder, REPOSITORY))
    hub.asked.clear()
    assert mlpmem.load(REPOSITORY, datastore=False).source.endswith(commit), "pinned"
    assert mlpmem.load(f"{REPOSITORY}@{second}", datastore=False).source.endswith(second)
    assert sorted(downloaded(hub)) == ["manifest.json", "results.json"], "the rest was here"
    model = mlpmem.load(REPOSITORY, datastore=False, download=True)
    assert model.source.endswith(second)
    assert mlpmem.load(REPOSITORY, datastore=False).source.endswith(second)
    old = fetch_bundle(f"{REPOSITORY}@{commit}")
    assert load_bundle(old).read_json("results.json") == {"systems": []}


def test_a_branch_is_a_revision_too(hub, folder):
    upload(prepare(folder, REPOSITORY, branch="test/v2"))
    with pytest.raises(MlpMemError, match=r"someone/tiny holds no manifest.json at commit"):
        mlpmem.load(REPOSITORY)
    name = hub.refs[REPOSITORY]["test/v2"]
    model = mlpmem.load(f"{REPOSITORY}@test/v2", datastore=False)
    assert model.source == f"{REPOSITORY}@{name}"


def test_an_altered_file_on_the_hub_is_refused(hub, folder, commit):
    data = bytearray((folder / "memory" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    hub.alter(REPOSITORY, "memory/model.safetensors", bytes(data))
    for _ in range(2):
        with pytest.raises(MlpMemError, match="is refused, memory/model.safetensors is altered"):
            mlpmem.load(REPOSITORY)


def test_a_file_of_another_size_is_refused_before_anything_is_downloaded(hub, commit):
    hub.alter(REPOSITORY, "memory/model.safetensors", b"x" * 10)
    with pytest.raises(MlpMemError, match="another size than its manifest says for memory/model"):
        mlpmem.load(REPOSITORY)
    del hub.commits[REPOSITORY][commit]["memory/model.safetensors"]
    with pytest.raises(MlpMemError, match="has no file for memory/model.safetensors"):
        mlpmem.load(REPOSITORY)
    assert {*downloaded(hub)} == {"manifest.json"}


@pytest.mark.parametrize("name", ["decoder/pytorch_model.bin", "memory/.hidden.json", "../up.json"])
def test_a_manifest_that_lists_other_kinds_of_file_is_refused(name, hub, folder, commit):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 3, "sha256": "0" * 64}
    hub.alter(REPOSITORY, "manifest.json", json.dumps(manifest).encode())
    hub.alter(REPOSITORY, name, b"abc")
    with pytest.raises(MlpMemError, match="is no file of a bundle|is malformed"):
        mlpmem.load(REPOSITORY)
    assert {*downloaded(hub)} == {"manifest.json"}


def test_an_altered_file_of_the_cache_is_refused_and_says_what_to_delete(hub, commit):
    folder = fetch_bundle(REPOSITORY)
    (folder / "examples.json").resolve().write_text("[]")
    with pytest.raises(
        MlpMemError, match="examples.json is truncated .*Delete the folder models--"
    ):
        mlpmem.load(REPOSITORY)
    shutil.rmtree(folder.parents[1])
    assert fetch_bundle(REPOSITORY) == folder


def test_links_of_the_cache_may_lead_to_its_own_files_only(hub, commit, tmp_path):
    folder = fetch_bundle(REPOSITORY)
    if not (folder / "examples.json").is_symlink():
        pytest.skip("this system keeps no links in the cache")
    assert recorded.read(folder).examples, "the page reads it too"
    private = tmp_path / "private.json"
    shutil.copy(folder / "examples.json", private)
    (folder / "examples.json").unlink()
    (folder / "examples.json").symlink_to(private)
    with pytest.raises(MlpMemError, match="examples.json is a link"):
        mlpmem.load(REPOSITORY)
    assert not recorded.read(folder).examples


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("someone/else", "the Hub has no repository of this name, or it is private"),
        ("someone/tiny@v9", "the repository has no such revision"),
        (f"someone/tiny@{'f' * 40}", "the repository has no such revision"),
    ],
)
def test_a_repository_or_revision_that_is_not_there_is_said(source, message, hub, commit):
    with pytest.raises(MlpMemError, match=f"bundle: .*cannot be downloaded \\({message}"):
        mlpmem.load(source)


def test_a_private_repository_needs_the_login(hub, folder, monkeypatch):
    upload(prepare(folder, REPOSITORY, private=True))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "none"))
    with pytest.raises(MlpMemError, match="or it is private and no login was found"):
        mlpmem.load(REPOSITORY)
    hub.be_the_hub(monkeypatch, folder.parent / "cache")
    assert mlpmem.load(REPOSITORY, datastore=False).source


def test_offline_the_cache_is_used_or_the_error_says_so(hub, commit, monkeypatch):
    be_offline(monkeypatch)
    with pytest.raises(MlpMemError, match="offline mode forbids it, HF_HUB_OFFLINE=1"):
        mlpmem.load(REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    fetch_bundle(REPOSITORY)
    be_offline(monkeypatch)
    hub.asked.clear()
    lines = []
    assert mlpmem.load(REPOSITORY, datastore=False).source.endswith(commit)
    fetch_bundle(REPOSITORY, newest=True, tell=lambda line, share: lines.append(line))
    assert "offline mode forbids it" in lines[0] and "The downloaded copy is used" in lines[0]
    assert hub.asked == []


def test_size_and_licence_are_told_before_the_download_and_the_commit_after(hub, commit):
    lines = []
    fetch_bundle(REPOSITORY, tell=lambda line, share: lines.append((line, len(downloaded(hub)))))
    line, count = lines[0]
    assert line.startswith(f"downloading {REPOSITORY} ({commit[:12]}), 0.1")
    assert line.endswith("MB, licence: several-see-the-card") and count == 1, "only the manifest"
    assert lines[-1][0] == f"bundle: {REPOSITORY}@{commit}"


def test_a_local_folder_of_the_same_name_comes_first(hub, folder, commit, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    folder.parent.rename("someone")
    assert not is_hub_bundle(REPOSITORY)
    model = mlpmem.load(REPOSITORY, datastore=False)
    assert model.source == "" and hub.asked == []


@pytest.mark.parametrize("name", ["atlas", "smollm2", "gpt2-large-wikitext103", "./a/b", "a/b/c"])
def test_other_names_are_never_asked_of_the_hub(name):
    assert not is_hub_bundle(name) and not is_hub_bundle(Path("a/b"))


def test_a_bundle_that_names_its_decoder_comes_back_without_it(hub, tmp_path, monkeypatch):
    named.package(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    bundle = named.bundle(tmp_path / "named")
    upload(prepare(bundle.folder, REPOSITORY))
    here, there = mlpmem.load(bundle.folder), mlpmem.load(REPOSITORY)
    assert not any("decoder" in name for name in downloaded(hub))
    prompt = [5, 9, 40, 41]
    a, b = (model.generate(prompt, "memory", max_new_tokens=5) for model in (here, there))
    assert [step.token_id for step in a.steps] == [step.token_id for step in b.steps]


@pytest.fixture
def started(monkeypatch):
    """Return app, its page replaced by a record of what it would serve."""
    import app
    from mlpmem.ui import page
    from mlpmem.ui.door import ending, files

    served = []
    monkeypatch.setattr(page, "serve", lambda models, *rest: served.append(models) or 0)
    monkeypatch.setattr(files, "claim", lambda: None)
    monkeypatch.setattr(ending, "exit_on_signals", lambda: None)
    monkeypatch.setattr(app.gc, "disable", lambda: None)
    return app, served


def test_the_page_downloads_its_bundle_then_stays_offline(
    hub, folder, commit, started, monkeypatch, capsys
):
    from huggingface_hub import constants

    app, served = started
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv(hub_module.FORCED, raising=False)
    assert app.main(["--bundle", f"{REPOSITORY}@main"]) == 0
    printed = capsys.readouterr().err
    assert f"mlpmem: downloading {REPOSITORY} ({commit[:12]})" in printed
    assert f"mlpmem: bundle: {REPOSITORY}@{commit}" in printed
    assert os.environ.pop("HF_HUB_OFFLINE") == "1" and os.environ.pop(hub_module.FORCED) == "1"
    assert constants.HF_HUB_OFFLINE, "the client was imported before"
    ((model,),) = served
    assert [example["prompt"] for example in model.recorded.examples] == ["Peru is"]
    model.service.start().join(60)
    assert model.service.status.state == "ready"


def test_the_page_says_why_a_bundle_of_the_hub_cannot_be_served(hub, started, monkeypatch, capsys):
    app, served = started
    assert app.main(["--bundle", "someone/else"]) == 2
    assert "the Hub has no repository of this name" in capsys.readouterr().err
    be_offline(monkeypatch)
    assert app.main(["--bundle", "someone/else"]) == 2
    assert "offline mode forbids it" in capsys.readouterr().err
    assert served == []


def test_a_bundle_pushed_from_the_cache_to_another_repository_is_the_same(hub, commit):
    upload(prepare(fetch_bundle(REPOSITORY), "someone/copy"))
    files = hub.commits["someone/copy"][hub.refs["someone/copy"]["main"]]
    first = hub.commits[REPOSITORY][commit]
    assert {n: d for n, d in files.items() if n != "README.md"} == {
        n: d for n, d in first.items() if n != "README.md"
    }
