"""Threads that outlive whoever waits for them."""

import gc
import threading
import weakref
from contextlib import suppress

import pytest

from aesthetic.workers import Workers


def test_what_a_job_gives_or_raises_arrives() -> None:
    workers = Workers(2)
    answers = [workers.submit(divmod, 7, divisor) for divisor in (2, 0, 3)]
    assert answers[0].result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        answers[1].result()
    assert answers[2].result() == (2, 1)


def test_as_many_jobs_as_there_are_threads_are_done_at_once() -> None:
    workers, all_there = Workers(3), threading.Barrier(3)
    answers = [workers.submit(all_there.wait, 30) for _ in range(3)]
    assert sorted(answer.result() for answer in answers) == [0, 1, 2]


def test_a_job_that_is_done_is_forgotten() -> None:
    class Large:
        pass

    workers, one = Workers(), Large()
    known = weakref.ref(one)
    workers.submit(id, one).result()
    del one
    workers.submit(int).result()  # once that is done, the first has been cleared away
    assert known() is None


def test_a_job_that_failed_is_forgotten() -> None:
    class Large:
        pass

    def fail(_: Large) -> None:
        raise ValueError

    workers, one = Workers(), Large()
    known = weakref.ref(one)
    gc.disable()  # which would find a circle, some time
    try:
        with suppress(ValueError):
            workers.submit(fail, one).result()
        del one
        workers.submit(int).result()
        assert known() is None
    finally:
        gc.enable()


def test_threads_end_with_what_they_were_started_for() -> None:
    before = set(threading.enumerate())
    workers = Workers(2)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    del workers
    gc.collect()
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive()
