"""Runs jobs in worker processes: results in the order of the jobs, shared progress, no worker outlives its parent."""

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
_POOL_FROM = 10_000  # for fewer images, starting other processes takes longer than the work
_PR_SET_PDEATHSIG = 1  # an option of Linux's prctl
_progress: "Synchronized[int] | None" = None  # in a worker: the number of images done by all workers


def process_count(workers: int | None, images: int) -> int:
    """The number of processes: `workers`, or by default one per usable core, and one for a small number of images.

    Raises InputError if `workers` is out of range.
    """
    if workers is None:
        return len(os.sched_getaffinity(0)) if images >= _POOL_FROM else 1
    if not 1 <= workers <= 1024:
        raise InputError(f"expected --workers from 1 to 1024, got {workers}; leave it out for one per core")
    return workers


def in_order(
    work: Callable[[Job, Progress], Result], jobs: Sequence[Job], workers: int, bar: "tqdm[Any]"
) -> Iterator[Result]:
    """The results of `work(job, progress)`, in the order of `jobs`, from up to `workers` processes.

    The first error in that order is raised once every job before it is done. Later jobs that are running are killed,
    so `work` must not leave anything that looks finished before it is. With one worker, all jobs run in this process.
    Raises InputError if a worker is killed.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield work(job, bar.update)
        return
    # spawn, because forking a process that already runs threads, such as torch's, can hang
    context = get_context("spawn")
    counter = context.Value("q", 0)
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(counter, os.getpid()))
    futures: list[Future[Result]] = []
    try:
        # The workers inherit the mask, so that Ctrl-C, which reaches them too, is handled only by this process.
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
                "a worker process was killed, perhaps because the machine ran out of memory; try again with fewer"
                " --workers"
            ) from None
        raise
    finally:
        pool.shutdown()


def _start(counter: "Synchronized[int]", parent: int) -> None:
    """Prepare a worker process: it dies when its parent is killed."""
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
