"""Runs a share of the kernel tests and records every result: python -m perf.calls.kernel_tests --slice 0/12 --json FILE

Several processes, each with a slice, compile the kernels in parallel. The tests are collected without the project's
plugins and fixtures, because those need more packages than PyTorch.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import pytest
import torch

from perf.calls.rows import RowsFile
from tacaf.child_processes import ROOT
from tacaf.command import Parser, entry, to_path

TESTS = "tests/kernels/triton_cases.py"
ALONE = ("-q", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull, "--rootdir", str(ROOT), "--tb=short")


class Recorder:
    """A pytest plugin that keeps every n-th test and adds a row for each one that ran."""

    def __init__(self, file: RowsFile, place: int, of: int) -> None:
        self.file, self.place, self.of = file, place, of

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = items[self.place :: self.of]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            why = str(report.longrepr).splitlines()[-1][:200] if report.failed else None
            test = report.nodeid.partition("::")[2]
            self.file.add(test=test, outcome=report.outcome, seconds=round(report.duration, 2), why=why)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", default="0/1", metavar="K/N", help="the K-th of N shares, from 0")
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--small", action="store_true", help="only tests that launch no kernel")
    args = parser.parse_args(argv)
    place, of = map(int, args.slice.split("/"))
    file = RowsFile(args.json, device="cuda" if torch.cuda.is_available() else "cpu")
    chosen = ["-k", "refused"] if args.small else []
    status = pytest.main([*ALONE, *chosen, str(ROOT / TESTS)], plugins=[Recorder(file, place, of)])
    file.write(complete=True)
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED and of > 1 else int(status)


if __name__ == "__main__":
    sys.exit(main(None))
