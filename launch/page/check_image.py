"""Checking in a separate process whether an untrusted image decodes within limits.

A decoder that takes hours, fills the memory or crashes then affects only that process, which can be killed, unlike a
thread.
"""

import asyncio
import resource
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress

from tacaf.child_processes import child_environment
from tacaf.files import shown
from tacaf.images import PER_IMAGE, ImageError, decode

CPU_S = 10
WAIT_S = 60.0  # on a busy machine
MEMORY = 2**31  # bytes
_TOO_MUCH = "it takes too long or too much memory to decode"


async def problem_of(data: bytes) -> str | None:
    """Why this file cannot be used, or None."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "launch.page.check_image"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=child_environment(OPENBLAS_NUM_THREADS="1"),
        start_new_session=True,  # so that Ctrl-C reaches only the page
    )
    try:
        async with asyncio.timeout(WAIT_S):
            problem, _ = await child.communicate(data)
    except TimeoutError:
        return _TOO_MUCH
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    return problem.decode() or None if child.returncode == 0 else _TOO_MUCH


def limit(seconds: int) -> None:
    """Let the system end this process after `seconds` of CPU time, and refuse it more than MEMORY."""
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))


def main() -> int:
    """Print what is wrong with the image on standard input, or nothing if it decodes."""
    limit(CPU_S)
    try:
        decode(sys.stdin.buffer.read(), PER_IMAGE)  # any range; whether the model has one is checked later
    except ImageError as problem:
        sys.stdout.buffer.write(shown(problem).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
