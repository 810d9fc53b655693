"""Stages: skipped if finished, resumed after a kill, never partly in place, every fault named."""

import dataclasses
import errno
import hashlib
import json
import mmap
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import SafetensorError

import train.run.ledger
import train.run.pipeline
import train.run.stage
from mlpmem.errors import MlpMemError
from train.__main__ import STOPPED, main
from train.config.load import load_recipe
from train.config.tables import Recipe
from train.files import read_json, write_json
from train.report.__main__ import main as report
from train.run.machine import peak_memory
from train.run.pipeline import STAGES
from train.run.stage import StageContext, finished_manifest, run_stage

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Config:
    """A stage's configuration."""

    size: int = 3
    pairs: tuple[tuple[str, float], ...] = (("B", 0.5),)


class Work:
    """A stage's function that counts its calls and is killed in some of them."""

    def __init__(self, kills=(), text="done"):
        self.calls, self.kills, self.text = [], kills, text

    def __call__(self, context: StageContext) -> dict:
        self.calls.append(sorted(p.name for p in context.folder.iterdir()))
        (context.folder / "parts").mkdir(exist_ok=True)
        (context.folder / "parts/first.txt").write_text("first", encoding="utf-8")
        if len(self.calls) - 1 in self.kills:
            raise KeyboardInterrupt
        (context.folder / "second.txt").write_text(self.text, encoding="utf-8")
        return {"tokens": 1000, "size": context.config.size, "seed": context.seed}

    @staticmethod
    def kill():
        raise KeyboardInterrupt


def stage(root, function, name="one", config=None, inputs=(), seed=0):
    return run_stage(root, name, config or Config(), inputs, function, seed)


def test_a_stage_leaves_its_files_and_a_manifest(tmp_path):
    manifest = stage(tmp_path, Work(), seed=4)
    assert manifest == finished_manifest(tmp_path / "one")
    assert manifest["stage"] == "one" and manifest["inputs"] == {}
    assert manifest["config"] == {"size": 3, "pairs": [["B", 0.5]], "seed": 4}
    assert manifest["counts"] == {"tokens": 1000, "size": 3, "seed": 4}
    assert 0 <= manifest["seconds"] < 60 and manifest["tokens_per_second"] > 0
    assert 2**20 < manifest["peak_memory_bytes"] < 2**40
    assert "workers_memory" not in manifest["counts"]
    assert manifest["outputs"] == {
        "parts/first.txt": hashlib.sha256(b"first").hexdigest(),
        "second.txt": hashlib.sha256(b"done").hexdigest(),
    }
    assert manifest["bytes"] == len(b"first" + b"done")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", "one"]


def test_seconds_of_killed_runs_count(tmp_path):
    manifest = stage(tmp_path, lambda context: {"earlier_seconds": 100.0, "rows": 5})
    assert 100 <= manifest["seconds"] < 160
    assert manifest["counts"] == {"rows": 5} and manifest["tokens_per_second"] is None


def test_a_finished_stage_is_skipped(tmp_path, capsys):
    work = Work()
    first, second = stage(tmp_path, work), stage(tmp_path, work)
    assert first == second and len(work.calls) == 1
    assert "one: already finished" in capsys.readouterr().out


def test_a_changed_configuration_is_refused_with_the_difference_and_the_next_step(tmp_path):
    stage(tmp_path, Work())
    with pytest.raises(MlpMemError) as caught:
        stage(tmp_path, Work(), config=Config(size=5), seed=1)
    text = str(caught.value)
    assert "config.size: 3 before, 5 now" in text and "config.seed: 0 before, 1 now" in text
    assert "pairs" not in text
    assert f"Delete {tmp_path / 'one'} to remake it" in text and "--runs" in text
    assert finished_manifest(tmp_path / "one")["config"]["size"] == 3


def test_a_remade_stage_with_equal_outputs_is_the_same_input(tmp_path):
    stage(tmp_path, Work())
    stage(tmp_path, Work(), "two", inputs=("one",))
    (tmp_path / "one").rename(tmp_path / "old")
    stage(tmp_path, Work())
    later = Work()
    stage(tmp_path, later, "two", inputs=("one",))
    assert later.calls == []


def test_a_missing_input_is_named_with_its_command(tmp_path):
    stage(tmp_path, Work())
    work = Work()
    with pytest.raises(MlpMemError, match="three: needs two first; run `python -m train two`"):
        stage(tmp_path, work, "three", inputs=("one", "two"))
    assert work.calls == [] and not (tmp_path / "three.partial").exists()


def test_a_stage_and_its_inputs_may_be_in_subfolders(tmp_path):
    def copies(context):
        shutil.copy(context.inputs["one"] / "second.txt", context.folder)
        return {}

    run_stage(tmp_path, "others/one", Config(), (), Work(text="theirs"), 0)
    run_stage(tmp_path, "others/two", Config(), ("others/one",), copies, 0)
    assert (tmp_path / "others/two/second.txt").read_text() == "theirs"
    with pytest.raises(MlpMemError, match="needs others/none first"):
        run_stage(tmp_path, "three", Config(), ("others/none",), copies, 0)


def test_an_unfinished_input_is_missing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, Work(kills=(0,)))
    with pytest.raises(MlpMemError, match="needs one first"):
        stage(tmp_path, Work(), "two", inputs=("one",))


def test_a_killed_stage_has_no_final_folder_and_resumes(tmp_path):
    work = Work(kills=(0,))
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, work)
    assert not (tmp_path / "one").exists() and (tmp_path / "one.partial/parts").is_dir()
    manifest = stage(tmp_path, work)
    assert work.calls == [["identity.json"], ["identity.json", "parts"]]
    assert sorted(manifest["outputs"]) == ["parts/first.txt", "second.txt"]
    assert not (tmp_path / "one.partial").exists()


@pytest.mark.parametrize("change", [{"config": Config(size=9)}, {"seed": 7}])
def test_files_of_a_killed_run_with_another_configuration_are_not_deleted(change, tmp_path):
    work = Work(kills=(0,))
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, work)
    with pytest.raises(
        MlpMemError, match="(?s)one.partial was made with other .*3 before|0 before"
    ):
        stage(tmp_path, work, **change)
    assert (tmp_path / "one.partial/parts/first.txt").is_file() and len(work.calls) == 1


def test_the_folder_of_a_killed_run_without_progress_is_deleted(tmp_path):
    def failing(context):
        raise MlpMemError("no")

    with pytest.raises(MlpMemError):
        stage(tmp_path, failing)
    assert stage(tmp_path, Work(), seed=7)["config"]["seed"] == 7


@pytest.mark.parametrize("file", ["job.json", "alpha_0/job.json"])
def test_a_job_file_is_not_progress(file, tmp_path):
    def failing(context):
        path = context.folder / file
        path.parent.mkdir(exist_ok=True)
        write_json(path, {})
        raise MlpMemError("no")

    with pytest.raises(MlpMemError, match="^no$"):
        stage(tmp_path, failing)
    work = Work()
    assert stage(tmp_path, work, seed=7)["config"]["seed"] == 7
    assert work.calls == [["identity.json"]]


def test_a_stage_that_does_not_resume_starts_over_with_another_configuration(tmp_path):
    work = Work(kills=(0,))
    for seed in (0, 7):
        with suppress(KeyboardInterrupt):
            run_stage(tmp_path, "one", Config(), (), work, seed, resumes=False)
    assert work.calls == [["identity.json"]] * 2
    assert finished_manifest(tmp_path / "one")["config"]["seed"] == 7


def test_a_failed_corpus_is_made_after_its_recipe_is_corrected(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one short text")
    recipe = '[corpus]\nkind = "text"\nvocab_size = 258\ntrain = ["a.txt"]\n'
    corrected = recipe + 'valid = ["a.txt"]\ntest = ["a.txt"]\n'
    for text, status in ((recipe, 1), (corrected, 0)):
        (tmp_path / "my.toml").write_text(text)
        command = ["corpus", str(tmp_path / "my.toml"), "--runs", str(tmp_path / "runs")]
        assert main(command) == status, capsys.readouterr().err
    assert finished_manifest(tmp_path / "runs/my/corpus")["counts"]["valid"]["documents"] == 1


def test_scratch_files_stay_until_the_manifest_is_written(tmp_path, monkeypatch):
    def work(context):
        for name in ("checkpoint", "model"):
            (context.folder / name).write_text(name, encoding="utf-8")
        return {"scratch": ["checkpoint"], "hashes": {"model": "known"}, "rows": 3}

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train.run.stage, "peak_memory", Work.kill)
        stage(tmp_path, work)
    assert (tmp_path / "one.partial/checkpoint").is_file()
    manifest = stage(tmp_path, work)
    assert manifest["outputs"] == {"model": "known"} and manifest["counts"] == {"rows": 3}
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "identity.json",
        "manifest.json",
        "model",
    ]


def test_a_stage_killed_before_its_rename_is_not_repeated(tmp_path, monkeypatch):
    replace = train.run.stage.os.replace

    def killed(source, target):
        if Path(target) == tmp_path / "one":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(train.run.stage.os, "replace", killed)
    work = Work()
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, work)
    monkeypatch.undo()
    manifest = stage(tmp_path, work)
    assert len(work.calls) == 1 and not (tmp_path / "one.partial").exists()
    assert sorted(manifest["outputs"]) == ["parts/first.txt", "second.txt"]


def test_json_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"name": "Perú"})
    with pytest.raises(TypeError):
        write_json(path, {"name": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Perú"}


def flipped(path):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flipped, Path.unlink])
def test_a_damaged_input_is_refused_with_the_command_that_remakes_it(damage, tmp_path, capsys):
    stage(tmp_path, Work())
    damage(tmp_path / "one/parts/first.txt")
    later = Work()
    with pytest.raises(MlpMemError) as caught:
        stage(tmp_path, later, "two", inputs=("one",))
    fault = "is missing" if damage is Path.unlink else "is altered"
    assert f"two: its input one is damaged: first.txt {fault}" in str(caught.value)
    assert "Remake it with `python -m train one RECIPE --again`" in str(caught.value)
    assert later.calls == [] and not (tmp_path / "two.partial").exists()
    stage(tmp_path, Work())
    assert "one: already finished" in capsys.readouterr().out, "a finished stage is not checked"
    run_stage(tmp_path, "one", Config(), (), Work(), 0, again=True)
    assert "one: remade, because it is damaged: first.txt" in capsys.readouterr().out
    assert (tmp_path / "one/parts/first.txt").read_text() == "first"
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "identity.json", "manifest.json", "parts", "second.txt",
    ]  # fmt: skip
    stage(tmp_path, later, "two", inputs=("one",))
    assert later.calls


def test_a_damaged_input_of_a_study_is_named_with_its_folder(tmp_path):
    run_stage(tmp_path, "others/one", Config(), (), Work(), 0)
    flipped(tmp_path / "others/one/second.txt")
    with pytest.raises(MlpMemError, match="its input others/one is damaged: .*Delete .*others/one"):
        stage(tmp_path, Work(), "two", inputs=("others/one",))


@pytest.mark.parametrize("file", ["one/manifest.json", "one.partial/identity.json"])
@pytest.mark.parametrize("text", ["{", "", "\x00", "[" * 100_000])
def test_a_damaged_manifest_or_identity_is_an_error_with_the_next_step(file, text, tmp_path):
    if file.startswith("one/"):
        stage(tmp_path, Work())
    else:
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path, Work(kills=(0,)))
    (tmp_path / file).write_text(text)
    with pytest.raises(MlpMemError, match=f"{file} is damaged .*Delete .* command that made it"):
        stage(tmp_path, Work())


@dataclass(frozen=True)
class Trained:
    """The configuration of a stage that several processes may run."""

    size: int = 3
    processes: int = 2


def test_a_killed_stage_resumes_with_another_number_of_processes(tmp_path, capsys):
    work = Work(kills=(0,))
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, work, config=Trained())
    manifest = stage(tmp_path, work, config=Trained(processes=1))
    assert work.calls[1] == ["identity.json", "parts"], "finished parts stay"
    assert "one: resumes with processes = 1; the killed run had 2" in capsys.readouterr().out
    assert manifest["config"]["processes"] == 1
    assert stage(tmp_path, work, config=Trained(processes=5)) == manifest, "it is finished"
    with pytest.raises(MlpMemError, match="config.size: 3 before, 4 now") as caught:
        stage(tmp_path, work, config=Trained(4, 5))
    assert "processes" not in str(caught.value)


# Pipeline and command


def test_every_stage_has_a_configuration_a_function_and_earlier_inputs():
    fields = [
        f.name
        for f in dataclasses.fields(Recipe)
        if f.name not in ("name", "seed", "studies", "stated")
    ]
    assert fields == list(STAGES)
    for i, (name, one) in enumerate(STAGES.items()):
        assert set(one.inputs) <= set(fields[:i]), name
        assert callable(one.load())


def test_all_runs_the_stages_in_order(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(train.run.pipeline, "run", lambda *arguments: ran.append(arguments))
    monkeypatch.setattr(train.run.ledger, "print_ledger", lambda *arguments: ran.append("ledger"))
    assert main(["all", "tiny", "--runs", str(tmp_path)]) == 0
    stages = [(name, load_recipe("tiny"), tmp_path / "tiny", False) for name in STAGES]
    assert ran == [*stages, "ledger"]
    ran.clear()
    assert main(["corpus", "tiny", "--again", "--runs", str(tmp_path)]) == 0
    assert ran == [("corpus", load_recipe("tiny"), tmp_path / "tiny", True)]


def test_all_ends_with_the_command_that_shows_the_results(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny/export/tiny/results.json"
    path.parent.mkdir(parents=True)
    shutil.copy(ROOT / "assets/atlas/results.json", path)
    monkeypatch.setattr(train.run.pipeline, "run", lambda *arguments: None)
    monkeypatch.setattr(train.run.ledger, "print_ledger", lambda *arguments: None)
    assert main(["all", "tiny", "--runs", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"results: python -m train.report {path}"
    assert report(last.split()[-1:]) == 0
    assert "| decoder" in capsys.readouterr().out


def test_ctrl_c_prints_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train.run.pipeline, "run", lambda *arguments: Work.kill())
    assert main(["all", "tiny", "--runs", str(tmp_path)]) == 130
    assert capsys.readouterr().err == STOPPED
    monkeypatch.setenv("RANK", "1")  # only the first process of a launch prints it
    assert main(["all", "tiny", "--runs", str(tmp_path)]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_sigterm_prints_one_line_and_ends_the_run_by_the_signal():
    code = (
        "import os, signal\nfrom train.__main__ import _terminate\n"
        "signal.signal(signal.SIGTERM, _terminate)\nos.kill(os.getpid(), signal.SIGTERM)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (-signal.SIGTERM, STOPPED)


def test_an_unknown_stage_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert "nonsense" in text and all(name in text for name in STAGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["plan", "tiny", "--text", "a.txt"],
            "--text FILES and the command extend must",
        ),
        (["extend", "tiny"], "--text FILES and the command extend must"),
        (["corpus", "estimate-5b-tokens"], "recipe estimate-5b-tokens has [stated] sizes"),
        (["plan", "tiny", "--again"], "--again is only for all and the stages"),
        (["corpus", "nope"], "no recipe 'nope'"),
        (["corpus", "no/such/file.toml"], "no recipe 'no/such/file.toml'"),
        (["decoder", "tiny"], "decoder: needs corpus first; run `python -m train corpus"),
    ],
)
def test_a_users_mistake_is_one_line_without_a_traceback(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--runs", str(tmp_path)]) == 1
    text = capsys.readouterr().err
    assert text.startswith(message) and text.count("\n") == 1


def test_a_full_disk_is_reported_and_written_files_stay(tmp_path, monkeypatch, capsys):
    def full(name, recipe, root, again):
        return run_stage(root, name, Config(), (), work, 0)

    def work(context):
        (context.folder / "part.txt").write_text("kept", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train.run.pipeline, "run", full)
    assert main(["corpus", "tiny", "--runs", str(tmp_path)]) == 1
    text = capsys.readouterr().err
    assert text.startswith("corpus: the disk is full (") and "run the command again" in text
    assert (tmp_path / "tiny/corpus.partial/part.txt").read_text() == "kept"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recognised_in_every_librarys_error(error, tmp_path):
    def work(context):
        raise error

    with pytest.raises(MlpMemError, match="the disk is full .* MiB free"):
        stage(tmp_path, work)


def test_another_write_error_is_not_reported_as_a_full_disk(tmp_path):
    def work(context):
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        stage(tmp_path, work)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")
def test_a_stages_peak_memory_excludes_earlier_stages(tmp_path):
    large = mmap.mmap(-1, 2**28)  # an earlier stage's memory; malloc might keep it
    large.write(bytes(2**28))
    before = peak_memory()
    assert before > 2**28
    large.close()
    run_stage(tmp_path, "small", Config(), (), lambda context: {}, 0)
    assert read_json(tmp_path / "small/manifest.json")["peak_memory_bytes"] < before - 2**27


def test_a_manifest_has_the_memory_of_all_workers(tmp_path):
    run_stage(tmp_path, "some", Config(), (), lambda context: {"workers_memory": 2**50}, 0)
    assert read_json(tmp_path / "some/manifest.json")["peak_memory_bytes"] == 2**50
