"""Work shared among processes: results in the order of the jobs, progress counted, no process outlives its parent."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

from tqdm import tqdm

from tacaf.vocabulary import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int], object]  # called with the number of images just done

_POLL_S = 0.2
_POOL_FROM = 10_000  # fewer images are done faster in this process than by starting others
_PR_SET_PDEATHSIG = 1  # of Linux' prctl
_progress: "Synchronized[int] | None" = None  # in a worker: the images done by all workers


def process_count(workers: int | None, images: int) -> int:
    """How many processes: `workers`, or one a core this process may use where there is enough to do for them."""
    if workers is None:
        return len(os.sched_getaffinity(0)) if images >= _POOL_FROM else 1
    if not 1 <= workers <= 1024:
        raise InputError(f"expected --workers from 1 to 1024, got {workers}; leave it out for one a core")
    return workers


def in_order(
    work: Callable[[Job, Progress], Result], jobs: Sequence[Job], workers: int, bar: "tqdm[Any]"
) -> Iterator[Result]:
    """The results of `work(job, progress)`, in the order of `jobs`, from up to `workers` processes.

    The first error in that order is raised when every job before it is done; jobs under way after it are killed, so
    `work` must leave nothing that looks finished before it is. With one worker everything happens in this process.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield work(job, bar.update)
        return
    # spawn, because forking a process that may already run threads (torch) can hang
    context = get_context("spawn")
    counter = context.Value("q", 0)
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(counter, os.getpid()))
    futures: list[Future[Result]] = []
    try:
        # The workers inherit the mask: a Ctrl-C, which reaches them too, is for this process alone.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures += [pool.submit(_run, work, job) for job in jobs]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        before = bar.n
        for future in futures:
            while not wait([future], timeout=_POLL_S).done:
                bar.update(before + counter.value - bar.n)
            bar.update(before + counter.value - bar.n)
            yield future.result()
    except BaseException as error:
        for future in futures:
            future.cancel()
        for child in set(active_children()) - others:
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "expected the worker processes to live, but one was killed, perhaps for want of memory; "
                "try again with fewer --workers"
            ) from None
        raise
    finally:
        pool.shutdown()


def _start(counter: "Synchronized[int]", parent: int) -> None:
    """Begin a worker: a parent that is killed takes it along."""
    global _progress
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # killed before the line above
        os._exit(1)
    _progress = counter


def _run(work: Callable[[Job, Progress], Result], job: Job) -> Result:
    return work(job, _count)


def _count(images: int) -> None:
    assert _progress is not None
    with _progress.get_lock():
        _progress.value += images
