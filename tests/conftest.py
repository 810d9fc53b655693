"""Every test runs on one thread, from the same seed, without a network and with its own cache."""

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLPMEM_COMPILE", "0")  # nothing is compiled unless a test asks for it

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("calm", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("calm")


@pytest.fixture(autouse=True)
def _same_start(tmp_path_factory, monkeypatch):
    """Seed torch and point the key cache at a fresh folder."""
    torch.manual_seed(0)
    monkeypatch.setenv("MLPMEM_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("MLPMEM_BUNDLE", raising=False)


@pytest.fixture(scope="session")
def tiny_model():
    """Return a tiny model with memory and datastore; tests only read it."""
    import tiny

    return tiny.model()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """Return a tiny bundle on disk; tests that damage one copy it first."""
    import tiny

    return tiny.bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a Hub that takes pushes, with a login and an empty cache."""
    from pushed_hub import PushedHub

    fake = PushedHub()
    fake.be_the_hub(monkeypatch, tmp_path / "cache")
    yield fake
    fake.close()


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    """Return a copy of the tiny bundle that a test may change."""
    return shutil.copytree(tiny_bundle.folder, tmp_path / "mine" / "tiny")
