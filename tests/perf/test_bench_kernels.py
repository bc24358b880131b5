"""The kernel benchmark: plain formulas mean the same as the ops, a wrong op gives no figure, nothing loses the rest.

What needs a GPU is rehearsed on a fake one.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from perf import bench_kernels
from perf.parts import cases, timing
from perf.parts.fake_gpu import fake_gpu
from perf.parts.passes import WrongResultError, check, errors, exact_results, prepare
from perf.parts.result_file import ResultFile
from tests.disks import fill

ROOT = Path(__file__).parent.parent.parent
SMALL = [
    cases.soft_align_case(4, 9, 16),
    cases.align_distance_case(4, 9, 16),
    cases.both_case(4, 9, 16),
    cases.gem_pyramid_case(2),
    cases.ring_aggregate_case(2),
]
rehearsed = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")


@pytest.fixture
def rehearse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Call it with cases and options: the benchmark on a fake GPU, its exit status and its file."""

    def run(todo: list[cases.Case], *words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(bench_kernels, "small_cases", lambda: todo)
        out = tmp_path / "rows.json"
        target = [] if "--profile" in words else ["--json", str(out)]
        status = bench_kernels.main(["--rehearse", "--seconds", "0.001", *target, *words])
        return status, json.loads(out.read_text()) if target else {}

    return run


def scaled(case: cases.Case) -> cases.Case:
    """The case with results of ours 1 % too large."""

    def off(*tensors: torch.Tensor) -> Any:
        result = case.ours(*tensors)
        return tuple(x * 1.01 for x in result) if isinstance(result, tuple) else result * 1.01

    return replace(case, ours=off)


def fails(*tensors: torch.Tensor) -> Any:
    raise RuntimeError("this rival is broken\nand says more")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.op)
def test_every_provider_computes_the_definition(case):
    work = prepare(case, torch.float32, "cpu")
    check(case, work)
    exact = exact_results(case, work)
    for rival in (case.eager, case.sdpa, case.cublas):
        assert rival is None or max(errors(rival, work, exact)) < 1e-4


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.op)
def test_a_wrong_result_is_found(case):
    with pytest.raises(WrongResultError):
        check(scaled(case), prepare(case, torch.float32, "cpu"))


def test_check_goes_through_every_dtype_and_prints_no_figure(monkeypatch, capsys):
    monkeypatch.setattr(bench_kernels, "cases", lambda device: SMALL[:2])
    assert bench_kernels.main(["--device", "cpu", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("right: ") for line in lines)
    assert {dtype for line in lines for dtype in bench_kernels.DTYPES if dtype in line.split()} == {
        "bf16",
        "fp16",
        "fp32",
    }


def test_a_wrong_case_fails_the_check_and_the_others_are_still_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_kernels, "cases", lambda device: [scaled(SMALL[0]), SMALL[1]])
    out = tmp_path / "check.json"
    assert bench_kernels.main(["--device", "cpu", "--check", "--dtype", "fp32", "--json", str(out)]) == 1
    wrong, right = json.loads(out.read_text())["rows"]
    assert "no figure on a wrong result" in wrong["error"]
    assert right["op"] == "align_distance"
    assert right["largest_error"] < 1e-5
    assert right["eager_error"] < 1e-5


@pytest.mark.slow
def test_rows_hold_the_promised_columns(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_kernels, "cases", lambda device: SMALL[:1])
    monkeypatch.setattr(bench_kernels, "cpu_peak_mib", lambda *_: 1.0)
    monkeypatch.setattr(timing, "SIZES", {"cpu": (2**16, 64)})
    out = tmp_path / "rows.json"
    assert bench_kernels.main(["--device", "cpu", "--seconds", "0", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    rows = found["rows"]
    assert found["complete"]
    assert {(row["provider"], row["pass"]) for row in rows} == {
        (provider, name) for provider in ("eager", "cpu path") for name in ("forward", "backward", "both")
    }
    for row in rows:
        assert tuple(row) == bench_kernels.COLUMNS
        assert row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
    assert rows[0]["flops"] == 4 * 4 * 9 * 9 * 16, "two products of N L L C, two operations each"
    assert rows[0]["bytes"] == 2 * 4 * 9 * 16 * 4, "the maps read, the reconstruction written"
    both = {row["provider"]: row for row in rows if row["pass"] == "both"}
    assert both["eager"]["ratio_to_eager"] == 1


@rehearsed
@pytest.mark.slow
def test_on_a_gpu_every_provider_is_timed_at_two_shapes(rehearse):
    """Compiled code that is compiled for dynamic shapes, or frees what a second backward needs, fails at the second."""
    status, found = rehearse([cases.both_case(4, 9, 16), cases.both_case(6, 20, 24)])
    assert status == 0
    assert found["complete"]
    assert found["rehearsal"]
    rows = [(row["shape"]["B"], row["provider"], row["pass"]) for row in found["rows"]]
    assert rows == [
        (images, provider, name)
        for images in (4, 6)
        for provider in ("eager", "triton", "cublas", "sdpa", "compiled")
        for name in ("forward", "backward", "both")
    ]
    assert all(row["graph_ms"] > 0 and row["graph_error"] is None for row in found["rows"])


@rehearsed
def test_a_rival_is_compiled_for_each_shape_alone(rehearse, monkeypatch):
    asked, forgotten = [], []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: forgotten.append(True))
    monkeypatch.setattr(
        "perf.parts.fake_gpu._compile", lambda _: lambda function, **words: asked.append(words) or function
    )
    rehearse(SMALL[:2], "--providers", "eager", "compiled", "--autotuned-compile")
    assert [(words["dynamic"], words["mode"]) for words in asked] == 2 * [
        (False, None),
        (False, "max-autotune-no-cudagraphs"),
    ]
    assert len(forgotten) == len(asked)


@rehearsed
def test_compiled_code_keeps_what_a_second_backward_needs(rehearse):
    donated = []

    def eager(*tensors: torch.Tensor) -> Any:
        donated.append(torch._functorch.config.donated_buffer)
        return SMALL[4].eager(*tensors)

    before = torch._functorch.config.donated_buffer
    rehearse([replace(SMALL[4], eager=eager)], "--providers", "eager", "--no-graph")
    assert donated[-1] is False
    assert torch._functorch.config.donated_buffer == before


@rehearsed
@pytest.mark.parametrize("name", ["eager", "sdpa", "cublas"])
def test_a_provider_that_fails_leaves_the_other_rows(rehearse, monkeypatch, name):
    broken = SMALL[2]
    kept = bench_kernels.provider
    monkeypatch.setattr(bench_kernels, "provider", lambda case, which: fails if which == name else kept(case, which))
    status, found = rehearse([broken, SMALL[3]], "--providers", "eager", "ours", "sdpa", "cublas")
    assert status == 0
    failed = [row for row in found["rows"] if "error" in row]
    assert failed[0]["error"] == "RuntimeError: this rival is broken"
    assert {row["provider"] for row in failed} == {name}
    times = [row for row in found["rows"] if row["op"] == "alignment" and "error" not in row]
    assert len(times) == 9, "three other providers, three passes each"
    assert any(row["op"] == "gem_pyramid" and row["provider"] == "triton" for row in found["rows"])


@rehearsed
def test_a_wrong_case_gives_no_figure_and_the_other_cases_do(rehearse):
    status, found = rehearse([scaled(SMALL[0]), SMALL[1]], "--providers", "eager", "ours")
    assert status == 1
    assert [row["op"] for row in found["rows"] if "error" in row] == ["soft_align"]
    assert [row["op"] for row in found["rows"] if "error" not in row] == 6 * ["align_distance"]


@rehearsed
def test_ours_failing_is_a_failure(rehearse, monkeypatch):
    monkeypatch.setattr(bench_kernels, "provider", lambda case, which: fails)
    assert rehearse(SMALL[:1], "--providers", "ours")[0] == 1


@rehearsed
def test_a_pass_that_cannot_be_captured_says_why_and_the_next_one_is_captured(rehearse):
    waits = [True]

    def eager(*tensors: torch.Tensor) -> Any:
        if torch.cuda.is_current_stream_capturing() and waits.pop():
            waits.append(True)
            torch.cuda.synchronize()
        return SMALL[3].eager(*tensors)

    status, found = rehearse([replace(SMALL[3], eager=eager)], "--providers", "eager", "ours")
    assert status == 0
    by_pass = {(row["provider"], row["pass"]): row for row in found["rows"]}
    for name in ("forward", "both"):
        assert by_pass["eager", name]["graph_ms"] is None
        assert "not permitted when stream is capturing" in by_pass["eager", name]["graph_error"]
        assert by_pass["eager", name]["p50_ms"] > 0
    assert by_pass["eager", "backward"]["graph_ms"] > 0
    assert by_pass["triton", "forward"]["graph_ms"] > 0


@rehearsed
@pytest.mark.parametrize("name", ["forward", "backward", "both"])
def test_forward_and_capture_share_a_stream(name):
    """Autograd runs a backward on its forward's stream; another one than the capture's would break the capture."""
    case, streams, leaves = SMALL[4], [], set()

    class Captured(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
            streams.append((torch.cuda.current_stream(), torch.cuda.is_current_stream_capturing()))
            return tensor.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            streams.append((torch.cuda.current_stream(), torch.cuda.is_current_stream_capturing()))
            return grad

    with fake_gpu():
        work = prepare(case, torch.float32, "cuda")

        def function(parts: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            leaves.add(parts is work.leaves[0])
            return Captured.apply(case.eager(parts, *rest))

        found = timing.graph_ms(function, work, name, 0.001)
        default = torch.cuda.default_stream()
        assert torch.cuda.current_stream() is default
    assert found[1] is None
    assert any(capturing for _, capturing in streams)
    assert {stream for stream, _ in streams} == {streams[0][0]}
    assert streams[0][0] is not default
    assert leaves == {False}, "autograd would wait for the stream on which the shared leaves were used first"


@rehearsed
def test_a_failed_capture_leaves_the_stream_and_the_pool(monkeypatch):
    """When the end of a capture fails, PyTorch leaves neither."""
    closed = []

    def broken(graph: Any, pool: Any = None, stream: Any = None) -> Any:
        torch.cuda.set_stream(stream)
        raise RuntimeError("operation failed due to a previous error during capture")

    with fake_gpu():
        monkeypatch.setattr(torch.cuda, "graph", broken)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *words: closed.append(words), raising=False)
        found = timing.graph_ms(SMALL[4].eager, prepare(SMALL[4], torch.float32, "cuda"), "forward", 0.001)
        assert torch.cuda.current_stream() is torch.cuda.default_stream()
    assert found == (None, "RuntimeError: operation failed due to a previous error during capture")
    assert closed == [(0, (0, 1))]


@rehearsed
def test_what_no_time_is_left_for_is_named(rehearse):
    status, found = rehearse(SMALL[:2], "--limit-s", "0")
    assert status == 0
    assert not found["complete"]
    assert {row["error"] for row in found["rows"]} == {"not measured: no time left"}
    assert {row["op"] for row in found["rows"]} == {"soft_align", "align_distance"}


@rehearsed
@pytest.mark.parametrize(
    ("limit", "missing"),
    [
        ("25", [("soft_align", "compiled"), ("align_distance", "compiled")]),  # it may compile for half a minute
        ("35", [("soft_align", "compiled"), ("align_distance", "eager"), ("align_distance", "compiled")]),
    ],
)
def test_nothing_is_started_that_would_not_end_in_time(rehearse, monkeypatch, limit, missing):
    now = [0.0]
    kept, seconds = bench_kernels.run_provider, {"25": 10.0, "35": 20.0}[limit]
    monkeypatch.setattr(bench_kernels.time, "monotonic", lambda: now[0])

    def slow(*words: Any) -> None:
        kept(*words)
        now[0] += seconds

    monkeypatch.setattr(bench_kernels, "run_provider", slow)
    _, found = rehearse(SMALL[:2], "--providers", "eager", "compiled", "--limit-s", limit)
    assert [(row["op"], row["provider"]) for row in found["rows"] if "error" in row] == missing


@rehearsed
def test_profile_writes_kernels_with_counts_and_times(rehearse, tmp_path):
    out = tmp_path / "kernels.json"
    assert rehearse(SMALL[4:], "--profile", str(out), "--providers", "eager", "ours") == (0, {})
    rows = json.loads(out.read_text())["rows"]
    assert {row["provider"] for row in rows} == {"eager", "triton"}
    assert all(row["count"] > 0 and row["us"] >= 0 for row in rows)
    softmax = next(row for row in rows if row["provider"] == "eager" and row["kernel"] == "aten::_softmax")
    assert softmax["count"] == 2, "one a round of the ring"


def test_every_row_is_on_disk_before_the_next(tmp_path):
    file = ResultFile(tmp_path / "new" / "rows.json", device="cpu")
    for count in (1, 2):
        file.add(op=count)
        found = json.loads(file.path.read_text())
        assert len(found["rows"]) == count
        assert not found["complete"]
    file.write(complete=True)
    assert json.loads(file.path.read_text())["complete"]


def test_a_full_disk_is_said_once_and_keeps_the_older_rows(small_disk, capsys):
    file = ResultFile(small_disk / "rows.json")
    file.add(op=1)
    fill(small_disk)
    file.add(op=2)
    file.add(op=3)
    assert file.failed
    assert capsys.readouterr().err.count("no space left on device") == 1
    assert json.loads(file.path.read_text())["rows"] == [{"op": 1}]


@rehearsed
def test_without_a_gpu_one_line_says_what_to_do(capsys):
    assert bench_kernels.main(["--device", "cuda"]) == 2
    assert "--device cuda" in capsys.readouterr().err


@rehearsed
def test_the_interpreter_is_not_timed(rehearse, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert bench_kernels.main(["--rehearse"]) == 2
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err


def test_images_that_no_case_has_are_refused(capsys):
    assert bench_kernels.main(["--device", "cpu", "--images", "7"]) == 2
    assert "64, 96, got 7" in capsys.readouterr().err


@rehearsed
def test_inside_a_fake_gpu_the_benchmark_rehearses_by_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_kernels, "small_cases", lambda: SMALL[4:])
    out = tmp_path / "rows.json"
    with fake_gpu():
        assert bench_kernels.main(["--providers", "ours", "--seconds", "0.001", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["rehearsal"]


UNINSTALLED = """
import runpy, sys
refused = {"pydantic", "deepspeed", "nvidia", "matplotlib"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path = [Refuse()] + [one for one in sys.meta_path if "editable" not in getattr(one, "__module__", "")]
script = sys.argv[1]
sys.path[0] = script.rpartition("/")[0]
sys.path = [folder for folder in sys.path if folder != sys.argv[2]]
sys.argv = [script, "--help"]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize("name", ["bench_kernels.py", "compile_report.py", "performance_model.py"])
def test_runs_in_a_checkout_without_installation_and_with_pytorch_alone(name, tmp_path):
    """A GPU machine may have PyTorch and Triton, and nothing else of what a training needs."""
    command = [sys.executable, "-c", UNINSTALLED, str(ROOT / "perf" / name), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
