"""A bundle that the browser cannot run is built as a replay."""

import json
import re

import pytest
import tiny

from mlpmem.loading.manifest import list_files
from mlpmem.space import live, named
from mlpmem.ui.components import STATIC


def test_the_builder_and_the_page_have_the_same_families():
    rows = (STATIC / "live" / "model" / "families.js").read_text("utf-8")
    (named,) = re.findall(r"^const FAMILIES = \{ (.*) \};$", rows, re.M)
    assert tuple(re.findall(r"(\w+): ", named)) == live.FAMILIES


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("memory/config.json", {"family": "rwkv"}),
        ("decoder/config.json", {"model_type": "gemma"}),
    ],
)
@pytest.mark.parametrize("family", live.FAMILIES)
def test_a_model_that_the_worker_cannot_run_is_not_written(tmp_path, family, name, values):
    folder = tmp_path / "bundle"
    tiny.bundle(folder, tiny.decoder(family), {"family": family})
    assert live.write(folder, tmp_path / "site")["files"]
    row = json.loads((folder / name).read_text("utf-8")) | values
    (folder / name).write_text(json.dumps(row), encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["files"] = {k: v for k, v in list_files(folder).items() if k != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    why = live.obstacle(folder, manifest)
    assert why.endswith(f"is of the family {[*values.values()][0]}, and only llama and gpt2 do")
    assert live.write(folder, tmp_path / "other") is None
    assert not (tmp_path / "other").exists()


def test_a_gguf_file_of_another_family_than_llamas_is_refused(tmp_path):
    files = pytest.importorskip("gguf_files", reason="gguf is not installed", exc_type=ImportError)
    why = named.obstacle(files.write(tmp_path / "gpt2.gguf", tiny.decoder("gpt2")))
    assert why == "its decoder's GGUF file is of the family gpt2, and of those only llama does"
    assert named.obstacle(files.write(tmp_path / "llama.gguf", tiny.decoder("llama"))) == ""
