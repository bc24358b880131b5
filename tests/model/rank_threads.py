"""Ranks as threads of one process, for tests of what talks through `tacaf.distributed`: no process is started."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

from tacaf import distributed

T = TypeVar("T")
LIMIT_S = 60.0  # a rank that waits longer has been left alone


class _Meeting:
    """Every rank hands in a tensor and gets those of all."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.barrier = threading.Barrier(ranks, timeout=LIMIT_S)
        self.here = threading.local()
        self.tensors: list[Any] = [None] * ranks

    def all_of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.tensors[self.here.rank] = tensor.detach().clone()
        self.barrier.wait()
        found = list(self.tensors)
        self.barrier.wait()
        assert len({one.shape for one in found}) == 1, "gloo would fail or hang"
        return found


def on_ranks(monkeypatch: pytest.MonkeyPatch, ranks: int, job: Callable[[int], T]) -> list[T]:
    """What `job` returns on each of so many ranks."""
    meeting = _Meeting(ranks)
    found: list[Any] = [None] * ranks
    failed: list[BaseException] = []

    def run(rank: int) -> None:
        meeting.here.rank = rank
        try:
            found[rank] = job(rank)
        except BaseException as error:
            failed.append(error)
            meeting.barrier.abort()

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: ranks)
        patch.setattr(distributed, "rank", lambda: meeting.here.rank)
        patch.setattr(distributed, "gather_rows", lambda tensor: torch.cat(meeting.all_of(tensor)))
        patch.setattr(distributed, "sum_over_ranks", lambda tensor: torch.stack(meeting.all_of(tensor)).sum(0))
        patch.setattr(distributed, "max_over_ranks", lambda tensor: torch.stack(meeting.all_of(tensor)).amax(0))
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    real = [error for error in failed if not isinstance(error, threading.BrokenBarrierError)]
    for error in (*real, *failed):
        raise error
    return found
