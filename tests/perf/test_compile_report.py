"""Every Triton kernel compiles for three generations of GPUs without spilling and inside their shared memory."""

import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.6")
from perf.compile_report import DTYPES, OPS, SHARED_LIMIT, SPILL_LIMIT, problem_with, usage

ROOT = Path(__file__).parents[2]


QUICK = (80, 90)  # compiled by `make test`; `make test-all` compiles for all of SHARED_LIMIT


def compile_all(folder: Path, choices: str, architectures: Iterable[int]) -> None:
    """Write the rows of these architectures, each compiled in a process of its own: the compiler works on one core."""
    folder.mkdir(exist_ok=True)

    def one(arch: int) -> None:
        path = folder / f"{arch}.json"
        command = ["perf/compile_report.py", "--arch", str(arch), "--choices", choices, "--json", str(path)]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, architectures))


def rows_in(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("*.json")) for row in json.loads(file.read_text())]


@pytest.fixture(
    scope="module",
    params=[QUICK, pytest.param(tuple(SHARED_LIMIT.keys() - set(QUICK)), marks=pytest.mark.long)],
    ids=["sm_80 and sm_90", "sm_100"],
)
def architectures(request) -> tuple[int, ...]:
    return request.param


@pytest.fixture(scope="module")
def defaults(once, architectures) -> list[dict]:
    name = "-".join(map(str, ("compiled", *architectures)))
    return rows_in(once(name, lambda folder: compile_all(folder, "default", architectures)))


def test_nothing_spills_and_shared_memory_suffices(defaults):
    for row in defaults:
        assert row["spill_bytes"] <= SPILL_LIMIT, row
        assert row["shared_bytes"] <= SHARED_LIMIT[row["arch"]], row
        assert 0 < row["registers"] <= 255, row
        assert row["float64_lines"] == 0, row


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"spill_bytes": SPILL_LIMIT + 8}, "spills"),
        ({"shared_bytes": SHARED_LIMIT[80] + 1}, "too much shared memory"),
        ({"float64_lines": 1}, "float64"),
    ],
)
def test_what_a_kernel_may_not_do_is_named(change, expected):
    row = {"spill_bytes": 0, "shared_bytes": SHARED_LIMIT[80], "float64_lines": 0, "arch": 80}
    assert problem_with(row | change) == expected


def test_the_report_is_of_everything(defaults, architectures):
    assert {(row["op"], row["dtype"], row["arch"]) for row in defaults} == {
        (op, dtype, arch) for op in OPS for dtype in DTYPES for arch in architectures
    }


def test_products_run_on_tensor_cores(defaults, architectures):
    # Only Hopper and later have the registers for a warp of whole pairs.
    warps = {"warp_kernel" if arch < 90 else "warp_whole_kernel" for arch in architectures}
    products = {"scores_kernel", "products_kernel", "quadratic_kernel", "gram_gradient_kernel", "gradient_kernel"}
    products |= warps
    wanted = {80: "mma.sync", 90: "wgmma.mma", 100: "tcgen05.mma"}
    rows = [row for row in defaults if row["op"] == "align" and row["dtype"] in ("bf16", "fp16")]
    found = [row for row in rows if row["kernel"] in products]
    assert {row["kernel"] for row in found} == products
    for row in found:
        assert row["tensor_cores"] == wanted[row["arch"]], row


def test_the_log_of_a_spilling_kernel_is_understood():
    log = (
        "ptxas info    : Function properties for k\n"
        "    16 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers"
    )
    assert usage(log) == (255, 52)


@pytest.mark.long
def test_every_tuning_choice(tmp_path):
    compile_all(tmp_path, "all", SHARED_LIMIT)
    rows = rows_in(tmp_path)
    wanted = {
        json.dumps(choice)
        for _, choices in OPS.values()
        for arch in SHARED_LIMIT
        for dtype in DTYPES.values()
        for choice in choices(dtype, arch)
    }
    assert {json.dumps(row["choice"]) for row in rows} >= wanted
