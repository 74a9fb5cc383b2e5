"""Threads for whoever may be thrown out, by an exception at any bytecode, while he waits for them.

concurrent.futures does not stand that: the lock of a pool or of a future, which Python takes in several bytecodes,
stays taken, and whoever needs it next waits forever. And until a thread that is just being started runs, Python 3.11
knows it by the number of the one that starts it: the exception goes to the new thread, and the other waits for it.

So all threads are started in advance, and whatever goes to and fro goes through queues, which C code locks.
"""

import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

__all__ = ["Answer", "Workers", "shared"]

POLL = 0.05  # seconds
SHARED = 16  # for the files of eight pictures, and for what the safety checker looks at
Result = TypeVar("Result")


class Answer(Generic[Result]):
    """What will come of a job."""

    def __init__(self) -> None:
        self._box: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()

    def give(self, result: Result | None, error: BaseException | None) -> None:
        """Called once, by whoever did the job."""
        self._box.put((result, error))

    def result(self) -> Result:
        """Wait for it. Raises what the job raised. To be called once."""
        result, error = self._wait()
        if error is not None:
            try:
                raise error
            finally:
                del error  # it knows this frame, and both would live on, with all that the job worked on
        return result  # type: ignore[return-value]

    def _wait(self) -> tuple[Result | None, BaseException | None]:
        while True:
            with suppress(Empty):
                return self._box.get(timeout=POLL)  # who waits in C code for ever hears of no exception meanwhile


class Workers:
    """Threads that do what they are given, in turn. A job may outlive the prediction that it is of."""

    def __init__(self, count: int = 1) -> None:
        """Start `count` threads, which end when nobody knows this object any more."""
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        for _ in range(count):
            Thread(target=_work, args=(self._jobs,), daemon=True).start()
        weakref.finalize(self, _dismiss, self._jobs, count)

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Answer[Result]:
        """Have a thread call `function`."""
        answer = Answer[Result]()
        self._jobs.put((function, arguments, answer))
        return answer


@cache
def shared() -> Workers:
    """Threads for what the model need not wait for: the same ones for every service, started before any prediction."""
    return Workers(SHARED)


def _work(jobs: "SimpleQueue[Any]") -> None:
    while (job := jobs.get()) is not None:
        function, arguments, answer = job
        try:
            answer.give(function(*arguments), None)
        except BaseException as error:  # of whatever kind: somebody waits
            answer.give(None, error)
        del job, function, arguments, answer  # or they would live on until the next job


def _dismiss(jobs: "SimpleQueue[Any]", count: int) -> None:
    for _ in range(count):
        jobs.put(None)
