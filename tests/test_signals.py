"""Signals: heard at any time, raised only where that can be borne."""

import os
import signal
from collections.abc import Iterator

import pytest

from script.signals import ENDING, Signals


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_outside_they_are_only_heard() -> None:
    signals = Signals(*ENDING)
    with signals.raised():
        pass
    send(*ENDING)
    assert sorted(signals.heard) == sorted(ENDING)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_first_one_is_raised_and_no_other(number: int, kind: type[BaseException]) -> None:
    signals = Signals(*ENDING)

    def wait() -> None:
        try:
            send(number)
        finally:
            send(signal.SIGHUP, number)

    with pytest.raises(kind), signals.raised():
        wait()
    assert signals.heard == [number, signal.SIGHUP, number]


def test_one_that_came_before_is_raised_at_once() -> None:
    signals, reached = Signals(*ENDING), False
    send(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"), signals.raised():
        reached = True
    assert not reached


def test_one_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = Signals(*ENDING)
    send(signal.SIGHUP)
    assert signals.heard == []
