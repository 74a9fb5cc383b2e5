"""One tiny home with random weights and one service on it for the whole run, and one on the demo model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from transformers import CLIPModel

from aesthetic.embeddings.registry import Registry
from aesthetic.models import checkpoint, loading
from aesthetic.request import Request
from aesthetic.service import Service
from tests import original, snapshot
from tests.cluster.nodes import two_nodes
from tests.snapshot import ROOT

# The first draw of text reads Unicode's tables, which takes longer than Hypothesis likes.
hypothesis.settings.register_profile("here", suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None)
hypothesis.settings.load_profile("here")

# Files that we may not redistribute: aesthetic_embeddings/ with the published ones, and cog/ with Cog's own schema of
# cog.yaml. Tests that need them are skipped where they are not.
TEST_DATA = Path(os.environ.get("TEST_DATA") or "none")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests together, in their order: script/mutants names the tests it wants in any order."""
    items.sort(key=lambda item: item.reportinfo()[:2])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests together, and all tests on Ray: each process that runs some starts a cluster of its own."""
    from xdist.scheduler import LoadFileScheduling  # which script/mutants does without

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "Ray" if file.startswith("tests/cluster/") or "::test_on_ray_" in nodeid else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for AESTHETIC_HOME; tests don't change it."""
    return snapshot.write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def model(home: Path) -> loading.Model:
    """The model of `home`, on the CPU."""
    return loading.load(checkpoint.locate(None, home / "weights"), torch.device("cpu"))


@pytest.fixture(scope="session")
def service(home: Path, model: loading.Model) -> Service:
    """A service on `model`, shared by all tests: no prediction may change the next."""
    return Service(model, Registry(home / "embeddings"))


@pytest.fixture(scope="session")
def demo() -> Service:
    """A service on the model that comes with the checkout, on the CPU."""
    demo = loading.load(checkpoint.locate("demo", ROOT / "weights"), torch.device("cpu"))
    return Service(demo, Registry(ROOT / "embeddings"))


@pytest.fixture(scope="session")
def address(home: Path) -> Iterator[str]:
    """The address of a Ray cluster of two nodes, whose workers draw with the model of `home`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AESTHETIC_HOME", str(home))
        with two_nodes() as found:
            yield found


@pytest.fixture
def clip(home: Path) -> CLIPModel:
    """The CLIP that the original code would use with `model`; its loop changes it."""
    return original.load_clip(home)


@pytest.fixture
def quick() -> Request:
    """A request that takes a fraction of a second."""
    return Request(
        prompt="the cat", width=128, height=128, num_inference_steps=3, aesthetic_steps=3, seed=7, scheduler="DDIM"
    )


@pytest.fixture(autouse=True)
def _no_surprises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's settings from the tests, and the tests from the network."""
    monkeypatch.delenv("AESTHETIC_HOME", raising=False)
    monkeypatch.delenv("AESTHETIC_MODEL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TQDM_DISABLE", "")  # a command that a test runs would set it for all that follow


def published(name: str) -> Path:
    """A published embedding: one of TEST_DATA, or one that script/download-weights has fetched."""
    for folder in (TEST_DATA / "aesthetic_embeddings", ROOT / "embeddings"):
        if (folder / f"{name}.pt").is_file():
            return folder / f"{name}.pt"
    pytest.skip("the published embeddings have not been downloaded")
