"""Runs one command of a part: python -m perf.calls.child [--fake-gpu] MODULE [ARGUMENTS]

With --fake-gpu the module runs inside `perf.parts.fake_gpu.fake_gpu`, as in a rehearsal.
"""

import runpy
import sys
from contextlib import AbstractContextManager, nullcontext

NOT_MEASURED = 77  # exit status of a part that cannot run here; its last line says why


def surroundings(fake: bool) -> AbstractContextManager[None]:
    """The fake GPU, or nothing."""
    if not fake:
        return nullcontext()
    from perf.parts.fake_gpu import fake_gpu

    return fake_gpu()


def main() -> None:
    words = sys.argv[1:]
    fake = words[:1] == ["--fake-gpu"]
    module, *arguments = words[fake:]
    sys.argv = [module, *arguments]
    with surroundings(fake):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
