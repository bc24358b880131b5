"""Reading batches ahead in threads.

Threads suffice, because reading a file, decoding it and the larger NumPy operations release the interpreter's lock.
Unlike a process, a thread cannot be killed alone, starts at once, needs no pipe and does not outlive the training.
"""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
Make: TypeAlias = Callable[[int], T]
Tasks: TypeAlias = "SimpleQueue[tuple[int, Future[Any]] | None]"


class ReadAhead(Generic[T]):
    """The results of `make(number)` for `first`, `first + 1` and so on, computed before they are taken.

    Each of `makes` gets its own thread and is called in no other, so that the readers in them need no locks. At most
    `ahead` results exist or are being computed. The threads end with this object; they are daemons, so that a process
    can end while a read hangs.
    """

    def __init__(self, makes: Sequence[Make[T]], first: int, ahead: int) -> None:
        self._next, self._ahead = first, ahead
        self._asked: deque[Future[T]] = deque()
        self._tasks: Tasks = SimpleQueue()
        for make in makes:
            Thread(target=_work, args=(make, self._tasks), daemon=True, name="read").start()
        self._end = weakref.finalize(self, _end, self._tasks, self._asked, len(makes))

    def take(self, number: int) -> T:
        """The result for this number, which must be the next one. Raises the exception that `make` raised."""
        assert number == self._next - len(self._asked), "results must be taken in order"
        while len(self._asked) < self._ahead:
            future: Future[T] = Future()
            self._asked.append(future)
            self._tasks.put((self._next, future))
            self._next += 1
        return self._asked.popleft().result()

    def close(self) -> None:
        """Let the threads end, each after its current result."""
        self._end()


def _end(tasks: Tasks, asked: "deque[Future[Any]]", threads: int) -> None:
    for future in asked:
        future.cancel()
    for _ in range(threads):
        tasks.put(None)


def _work(make: Make[Any], tasks: Tasks) -> None:
    """A thread's work. It has no reference to ReadAhead, which could not be deleted otherwise."""
    while (task := tasks.get()) is not None:
        number, future = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = make(number)
        except BaseException as error:  # `take` raises it
            future.set_exception(error)
        else:
            future.set_result(result)
            del result  # so that it is not kept in memory until the next task
        del task, future
