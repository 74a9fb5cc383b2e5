"""Stands in for Ray's workers where a test changes what they would do."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aesthetic.models.checkpoint import Snapshot
from aesthetic.service import Service


def work(
    task: Callable[[Service, Any], Any], items: Sequence[Any], *, model: Snapshot, cluster: object
) -> Iterator[tuple[Any, Any]]:
    """What workers.work does, with one service in this process."""
    service = Service.load(model.reference)
    for item in items:
        yield item, task(service, item)
