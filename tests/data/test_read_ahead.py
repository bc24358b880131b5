"""Results made ahead in threads: in order, no more than asked for, errors as they were, and no thread that stays."""

import functools
import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from tacaf.data.read_ahead import ReadAhead
from tacaf.data.reader import BadSampleError

PATIENCE_S = 60.0  # far more than any of these waits takes


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read"]


def ended(threads: list[threading.Thread]) -> bool:
    """Whether these threads end soon."""
    for thread in threads:
        thread.join(PATIENCE_S)
    return not any(thread.is_alive() for thread in threads)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (1, 4), (3, 2), (4, 8)])
def test_results_come_in_order_for_any_number_of_threads(threads, ahead):
    shuffle = random.Random(threads)

    def make(number: int) -> int:
        time.sleep(shuffle.random() / 500)
        return number * number

    reading = ReadAhead([make] * threads, 5, ahead)
    assert [reading.take(number) for number in range(5, 60)] == [number * number for number in range(5, 60)]


def test_each_maker_is_called_in_a_thread_of_its_own():
    seen: list[set[str | int]] = [set(), set()]

    def make(place: int, number: int) -> int:
        seen[place].add(threading.get_ident())
        time.sleep(0.001)
        return number

    reading = ReadAhead([functools.partial(make, place) for place in range(2)], 0, 4)
    for number in range(20):
        reading.take(number)
    assert [len(threads) for threads in seen] == [1, 1]
    assert not seen[0] & seen[1]
    assert threading.get_ident() not in seen[0] | seen[1]


def test_no_more_is_made_than_was_asked_for():
    made: list[int] = []
    reading = ReadAhead([lambda number: made.append(number) or number] * 2, 0, 3)
    assert reading.take(0) == 0
    until(lambda: len(made) == 3)
    time.sleep(0.05)
    assert sorted(made) == [0, 1, 2]


def test_an_error_comes_at_its_place_as_it_was():
    def make(number: int) -> int:
        if number == 3:
            raise BadSampleError(17, "set.tar, sample 0001")
        if number == 4:
            raise MemoryError
        return number

    reading = ReadAhead([make] * 2, 0, 4)
    assert [reading.take(number) for number in range(3)] == [0, 1, 2]
    with pytest.raises(BadSampleError, match=r"set\.tar, sample 0001") as caught:
        reading.take(3)
    assert caught.value.row == 17
    with pytest.raises(MemoryError):
        reading.take(4)
    assert reading.take(5) == 5, "the threads go on"


@pytest.mark.parametrize("how", ["closed", "deleted", "never used"])
def test_the_threads_end(how):
    before = readers()
    reading = ReadAhead([lambda number: np.full(10, number)] * 3, 0, 5)
    started = [thread for thread in readers() if thread not in before]
    assert len(started) == 3
    if how != "never used":
        reading.take(0)
    if how == "closed":
        reading.close()
        assert ended(started)
    del reading
    gc.collect()
    assert ended(started)


def test_what_nobody_will_take_is_not_made():
    going, made = threading.Event(), []

    def make(number: int) -> int:
        made.append(number)
        assert going.wait(PATIENCE_S)
        return number

    before = readers()
    reading = ReadAhead([make], 0, 8)
    started = [thread for thread in readers() if thread not in before]
    threading.Timer(0.1, lambda: (reading.close(), going.set())).start()
    assert reading.take(0) == 0
    assert ended(started)
    assert made == [0]


def test_a_result_is_not_kept_after_it_was_taken():
    reading = ReadAhead([lambda number: np.zeros(number)], 0, 1)
    last = weakref.ref(reading.take(0))
    until(lambda: last() is None)


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise SystemExit(3)", "del reading; sys.exit(3)"])
def test_a_process_ends_while_a_read_hangs(end):
    script = f"""
import sys, threading, time
from tacaf.data.read_ahead import ReadAhead
hangs = threading.Event()
def make(number):
    if number == 2:
        hangs.set()
        time.sleep(3600)
    return number
reading = ReadAhead([make] * 2, 0, 3)
reading.take(0)
hangs.wait(60)
{end}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (3, "")
