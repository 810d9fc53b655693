"""mlpmem/loading/capacity.py: limits of cgroups v1 and v2, of parents, and no limit."""

import psutil
import pytest

from mlpmem.loading.capacity import allowed

MIB = 2**20


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


def write_v2(folder, limit, used, cached=0):
    stat = f"anon 5\nactive_file {cached}\ninactive_file 0"
    write(folder, memory_max=limit, memory_current=used, memory_stat=stat)


def write_v1(folder, limit, used, cached=0):
    stat = f"inactive_file 7\ntotal_inactive_file {cached}\ntotal_active_file 0"
    write(folder, memory_limit_in_bytes=limit, memory_usage_in_bytes=used, memory_stat=stat)


@pytest.fixture
def process(tmp_path):
    (tmp_path / "process").write_text("5:cpu,cpuacct:/x\n4:memory:/one/two\n0::/three/four\n")
    return tmp_path / "process"


def test_the_tightest_limit_of_either_version_counts(process, tmp_path):
    write_v2(tmp_path / "three/four", 300 * MIB, 100 * MIB, cached=40 * MIB)
    write_v1(tmp_path / "memory/one/two", 500 * MIB, 450 * MIB)
    assert allowed(process, tmp_path) == (300 * MIB, 50 * MIB)


def test_a_parents_limit_counts_and_file_cache_is_free(process, tmp_path):
    write_v2(tmp_path / "three/four", "max", 100 * MIB)
    write_v2(tmp_path / "three", 200 * MIB, 150 * MIB, cached=30 * MIB)
    assert allowed(process, tmp_path) == (200 * MIB, 80 * MIB)
    write_v1(tmp_path / "memory", 100 * MIB, 90 * MIB, cached=20 * MIB)
    assert allowed(process, tmp_path) == (100 * MIB, 30 * MIB)


def test_a_group_over_its_limit_has_nothing_free(process, tmp_path):
    write_v2(tmp_path / "three", 200 * MIB, 210 * MIB)
    assert allowed(process, tmp_path).available == 0


@pytest.mark.parametrize("text", ["", "0::/\n", "nonsense", None])
def test_without_a_limit_the_machines_memory_counts(text, tmp_path):
    process = tmp_path / "process"
    if text is not None:
        process.write_text(text)
    write_v1(tmp_path / "memory", 2**63 - 4096, 1)  # version 1 writes this for no limit
    assert allowed(process, tmp_path / "mount").total == psutil.virtual_memory().total


def test_this_process_has_memory_left():
    total, available = allowed()
    assert 0 < available <= total <= psutil.virtual_memory().total
