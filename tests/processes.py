"""For tests that start processes: ports that nobody uses, and waiting for a condition instead of for a while."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

# For what takes seconds on an idle machine. No test may fail because the machine is slow, so that only what hangs for
# good comes to this limit.
LIMIT_S = 500.0


def free_port(among: Iterable[int] | None = None) -> int:
    """A TCP port that nobody on this machine listens at; with `among`, the first such of these."""
    if among is None:
        return _bound(0)
    for port in among:
        try:
            return _bound(port)
        except OSError:
            continue
    pytest.fail(f"expected a free port, found none among {among}")


def fresh_port() -> int:
    """A free port without what an earlier start at it left, which would let one succeed that hangs on a new machine."""
    port = free_port()
    for left in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_*"):
        left.unlink()
    return port


def wait_until(condition: Callable[[], object], *processes: subprocess.Popen, every_s: float = 0.01) -> None:
    """Until the condition holds. The test fails when one of these processes ends before it does, or at the limit."""
    until = time.monotonic() + LIMIT_S
    while True:
        ended = [process for process in processes if process.poll() is not None]
        if condition():  # asked after the processes: what they did last counts
            return
        for process in ended:
            said = [text[-3000:] for text in process.communicate() if text]
            pytest.fail(f"{process.args} ended with status {process.returncode} too early: {said}")
        if time.monotonic() > until:
            pytest.fail(f"waited {LIMIT_S:g} s in vain")
        time.sleep(every_s)


def _bound(port: int) -> int:
    with socket.socket() as probe:
        probe.bind(("", port))
        return probe.getsockname()[1]
