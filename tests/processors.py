"""Runs the tests as on other processors: with fewer instructions, one thread and two, and on a busy machine.

    python -m tests.processors [WORD ...]     # the words go to pytest; without any: all tests but the long ones

`make test-processors` calls it. Sums are taken in another order with every set of instructions and number of threads,
so a tolerance that holds on one processor only shows here. The limits are those of PyTorch's own kernels
(ATEN_CPU_CAPABILITY), of oneDNN (convolutions) and of MKL (matrix products). Exit status 1 if any run is red.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
# As `make test` runs them.
TESTS = ("--numprocesses", str(min(os.cpu_count() or 1, 8)), "--dist", "worksteal", "-m", "not long")
BUSY = "while True: pass"


class Setting(NamedTuple):
    """One way to run the tests; `busy` processes at full load run beside them."""

    name: str
    environment: Mapping[str, str]
    busy: int = 0


SSE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SETTINGS = (
    Setting("SSE4, 1 thread", {**SSE, "OMP_NUM_THREADS": "1"}),
    Setting("SSE4, 2 threads", {**SSE, "OMP_NUM_THREADS": "2"}),
    Setting("AVX2, 1 thread", {**AVX2, "OMP_NUM_THREADS": "1"}),
    Setting("AVX2, 2 threads", {**AVX2, "OMP_NUM_THREADS": "2"}),
    Setting("all instructions, 1 thread", {"OMP_NUM_THREADS": "1"}),
    Setting("all instructions, 2 threads, two busy processes", {"OMP_NUM_THREADS": "2"}, busy=2),
)


def main(words: Sequence[str]) -> int:
    rows = []
    for setting in SETTINGS:
        print(f"\n== {setting.name}: {' '.join(f'{k}={v}' for k, v in setting.environment.items())}", flush=True)
        began = time.monotonic()
        with load(setting.busy):
            status, summary = run(setting, words)
        minutes = (time.monotonic() - began) / 60
        rows.append((setting.name, "green" if status == 0 else f"red (status {status})", f"{minutes:.1f} min", summary))
    print(f"\n{processor()}")
    for row in rows:
        print("{:48} {:16} {:>10}  {}".format(*row))
    return int(any(not row[1].startswith("green") for row in rows))


def run(setting: Setting, words: Sequence[str]) -> tuple[int, str]:
    """Pytest's exit status and the text of its last line; its output is shown as it comes."""
    command = [sys.executable, "-m", "pytest", *(words or TESTS)]
    environment, last = {**os.environ, **setting.environment}, ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip().strip("= ") or last
    return process.returncode, last


@contextmanager
def load(processes: int) -> Iterator[None]:
    """So many processes at full load meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def processor() -> str:
    """This machine's, as the kernel names it."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{found[1] if found else 'unknown processor'}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
