"""Runs small alignment tests under NVIDIA's memory checker: python -m perf.calls.memcheck --json FILE

The checker reports every access outside an allocation. PyTorch's caching allocator is switched off, because the checker
cannot see such an access inside the allocator's large blocks.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence

from perf.calls.child import NOT_MEASURED
from perf.calls.kernel_tests import ALONE, TESTS
from perf.calls.machine import program
from perf.calls.rows import RowsFile
from tacaf.child_processes import ROOT, child_environment
from tacaf.command import Parser, entry, to_path

CHOSEN = "alignment_of_odd_shapes and shape1 and dtype1"  # fp16, 17 positions and 24 channels: more than a block each


def errors_in(output: str) -> int | None:
    """The number of errors that the checker counted, or None if its output has none."""
    found = re.search(r"ERROR SUMMARY: (\d+) error", output)
    return int(found[1]) if found else None


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--small", action="store_true", help="accepted for a rehearsal; changes nothing")
    args = parser.parse_args(argv)
    checker = program("compute-sanitizer")
    if checker is None:
        print("compute-sanitizer is not on this machine")
        return NOT_MEASURED
    words = [checker, "--tool", "memcheck", sys.executable, "-m", "pytest", *ALONE, "-k", CHOSEN, str(ROOT / TESTS)]
    environment = child_environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", flush=True)
    errors = errors_in(done.stdout + done.stderr)
    file = RowsFile(args.json, program=checker)
    file.add(tests=CHOSEN, errors=errors, status=done.returncode)
    file.write(complete=True)
    return 0 if errors == 0 and done.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main(None))
