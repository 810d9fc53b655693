"""An outdated stage is named with the stages made from it, and remade with `again`."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from mlpmem.errors import MlpMemError
from train.files import read_json, write_json
from train.run.processes import lock_stage
from train.run.stage import StageContext, finished_manifest, run_stage


@dataclass(frozen=True)
class Config:
    """A stage's configuration."""

    size: int = 3


class Work:
    """A stage's function that lists its folder; the first `killed` calls are killed."""

    def __init__(self, text="done", killed=0):
        self.calls, self.text, self.killed = [], text, killed

    def __call__(self, context: StageContext) -> dict:
        self.calls.append(sorted(p.name for p in context.folder.iterdir()))
        (context.folder / "part.txt").write_text(self.text, encoding="utf-8")
        if len(self.calls) <= self.killed:
            raise KeyboardInterrupt
        return {"size": context.config.size}


def stage(root: Path, function, name="one", config=None, inputs=(), **options) -> dict:
    return run_stage(root, name, config or Config(), inputs, function, 0, **options)


def again(*arguments, **options) -> dict:
    return stage(*arguments, **options, again=True)


def test_a_stage_with_a_remade_input_is_refused(tmp_path):
    stage(tmp_path, Work())
    stage(tmp_path, Work(), "two", inputs=("one",))
    (tmp_path / "one/manifest.json").unlink()
    (tmp_path / "one").rename(tmp_path / "old")
    stage(tmp_path, Work(text="other"))
    with pytest.raises(MlpMemError) as caught:
        stage(tmp_path, Work(), "two", inputs=("one",))
    text = str(caught.value)
    assert text.startswith("two was made with other settings:\n  its input one has changed since")
    assert "and also the folders made from it" not in text and "--again" in text


def test_all_folders_made_from_a_changed_stage_are_named(tmp_path):
    stage(tmp_path, Work())
    for name, inputs in {"two": ("one",), "aside": (), "a_far": ("two", "aside")}.items():
        stage(tmp_path, Work(), name, inputs=inputs)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, Work(killed=1), "begun", inputs=("a_far",))
    with pytest.raises(MlpMemError) as caught:
        stage(tmp_path, Work(), "one", Config(size=5))
    later = ", ".join(str(tmp_path / name) for name in ("two", "a_far", "begun.partial"))
    assert f"the folders made from it: {later}; or" in str(caught.value)


def test_again_remakes_only_outdated_stages(tmp_path, capsys):
    stage(tmp_path, Work())
    stage(tmp_path, Work(), "two", inputs=("one",))
    changed, second, same = Config(size=5), Work(), Work()
    assert again(tmp_path, Work(text="new"), config=changed)["config"]["size"] == 5
    assert again(tmp_path, second, "two", inputs=("one",))["counts"]["size"] == 3
    again(tmp_path, same, config=changed)
    assert len(second.calls) == 1 and same.calls == []
    printed = capsys.readouterr().out
    assert "one: remade, because config.size: 3 before, 5 now" in printed
    assert "two: remade, because its input one has changed since" in printed
    assert (tmp_path / "one/part.txt").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", "one", "two"]


def test_the_old_stage_stays_until_a_resumed_new_one_is_complete(tmp_path):
    stage(tmp_path, Work(text="old"))
    work = Work(killed=1, text="new")
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, work, config=Config(size=5))
    assert (tmp_path / "one/part.txt").read_text() == "old"
    with pytest.raises(MlpMemError, match="one was made with other settings"):
        stage(tmp_path, work, config=Config(size=5))
    again(tmp_path, work, config=Config(size=5))
    assert work.calls[1] == ["identity.json", "part.txt"]
    assert (tmp_path / "one/part.txt").read_text() == "new"


def test_again_deletes_the_files_of_a_killed_run_with_other_settings(tmp_path):
    work = Work(killed=1)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, work)
    again(tmp_path, work, config=Config(size=9))
    assert work.calls[1] == ["identity.json"]


def test_again_is_refused_while_another_run_holds_a_lock(tmp_path):
    stage(tmp_path, Work())
    work = Work()
    message = "two: another run is working in .* process"
    with lock_stage(tmp_path, "two"), pytest.raises(MlpMemError, match=message):
        again(tmp_path, work, config=Config(size=5))
    assert work.calls == [] and finished_manifest(tmp_path / "one")["config"]["size"] == 3


def test_added_texts_missing_from_a_remade_datastore_are_named(tmp_path, capsys):
    stage(tmp_path, Work())
    path = tmp_path / "one/manifest.json"
    write_json(path, read_json(path) | {"added": [{"file": "notes.txt", "sha256": "a"}]})
    again(tmp_path, Work(), config=Config(size=5))
    assert "one: no longer contains notes.txt; add" in capsys.readouterr().out
