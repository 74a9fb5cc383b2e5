"""What gradio leaves open is collected here, where its warnings are no errors."""

import gc
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    with warnings.catch_warnings(action="ignore"):
        gc.collect()
