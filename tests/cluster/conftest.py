"""One cluster for all tests of the room."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import two_nodes


@pytest.fixture(scope="session")
def address(home: Path) -> Iterator[str]:
    """The address of a Ray cluster whose workers draw with the model of `home`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AESTHETIC_HOME", str(home))
        with two_nodes() as found:
            yield found
