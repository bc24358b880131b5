"""The GPU suite: no part loses another's results, every call ends in time, and a rehearsal runs every line of it."""

import fnmatch
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from perf import bench_kernels, gpu_suite
from perf.bench_train import VARIANTS
from perf.calls import run, summary
from perf.calls.plan import CALLS, KERNELS, Call, Part
from perf.calls.run import Place, run_part, time_for
from perf.parts.cases import cases
from tests.disks import fill

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")]

ANY = defaultdict(lambda: "1")  # what a plan fills in
ROWS = """
import json, sys, time
from pathlib import Path
from perf.calls.rows import RowsFile
from tests.disks import fill
file = RowsFile(Path(sys.argv[1]))
file.add(row=1)
file.add(row=2)
{then}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes a module of a part that only PYTHONPATH finds."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def make(name: str, text: str) -> str:
        (folder / f"{name}.py").write_text(text)
        return name

    return make


@pytest.fixture
def place(tmp_path):
    (tmp_path / "parts").mkdir()
    return Place(tmp_path / "parts")


def part_of(module: str, *words: str, **values) -> Part:
    return Part(values.pop("name", "part"), ((module, *words),), 0, 60, **values)


def test_without_a_gpu_one_line_names_the_rehearsal(tmp_path, capsys):
    assert gpu_suite.main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "--rehearse" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert gpu_suite.main(["--out", str(tmp_path / "file"), "--rehearse"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error
    assert error.count("\n") == 1


def test_a_part_that_fails_is_named_with_its_last_line(module, place):
    part = part_of(module("fails", "import sys\nprint('the reason')\nsys.exit(3)"))
    assert run_part(part, place, 60)["state"] == "failed with 3: the reason"


def test_a_part_that_cannot_run_here_says_why(module, place):
    part = part_of(module("lacks", "import sys\nprint('the checker is not there')\nsys.exit(77)"))
    assert run_part(part, place, 60)["state"] == "not measured: the checker is not there"


@pytest.mark.parametrize(
    ("need", "said"),
    [
        ("surely_absent", "surely_absent is not installed"),
        ("perf/absent.py", "perf/absent.py is not in this tree"),
        ("surely.absent", "surely.absent is not installed"),
    ],
)
def test_what_a_part_lacks_is_said(place, need, said):
    assert run_part(part_of("none", needs=(need,)), place, 60)["state"] == f"not measured: {said}"


def test_a_part_that_is_stopped_leaves_its_rows_and_no_process(module, place, monkeypatch):
    monkeypatch.setattr(run, "GRACE_S", 1)
    text = ROWS.format(then="Path(sys.argv[1]).with_suffix('.pid').write_text(str(__import__('os').getpid()))")
    text += "\nimport signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    part = part_of(module("hangs", text), "{out}/{part}.json")
    row = run_part(part, place, 8)
    assert row["state"] == "stopped after 8 s"
    assert row["seconds"] < 300, "what ignores the signal is not waited for"
    assert summary.results_of("part", place.folder) == [{"complete": False, "rows": [{"row": 1}, {"row": 2}]}]
    process = int((place.folder / "part.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_commands_of_a_part_run_side_by_side_and_one_failure_is_enough(module, place):
    names = [module("right", "print('done')"), module("wrong", "import sys; print('no'); sys.exit(1)")]
    part = Part("both", tuple((name,) for name in names), 0, 60)
    assert run_part(part, place, 60)["state"] == "failed with 1: no"
    assert (place.folder / "both.0.txt").read_text() == "done\n"


def test_old_files_of_a_repeated_part_are_gone(module, place):
    (place.folder / "part.json").write_text("[1]")
    run_part(part_of(module("nothing", "")), place, 60)
    assert summary.results_of("part", place.folder) == []


def test_no_part_takes_the_time_that_later_ones_need():
    parts = (Part("a", (), 10, 100), Part("b", (), 30, 50), Part("c", (), 20, 20))
    assert time_for(0, parts, 120) == 70
    assert time_for(0, parts, 300) == 100, "its own most"
    assert time_for(1, parts, 40) == 30, "too late for all: at least what it needs"
    assert time_for(2, parts, 7) == 7


@pytest.mark.parametrize("number", CALLS)
def test_every_call_can_give_each_part_its_least_time(number):
    call = CALLS[number]
    assert sum(part.least_s for part in call.parts) <= 0.9 * call.limit_s
    assert len({part.name for part in call.parts}) == len(call.parts)
    assert all(part.least_s <= part.most_s for part in call.parts)


def test_the_calls_without_the_tuning_take_at_most_25_minutes():
    assert sum(CALLS[number].limit_s for number in (1, 3, 4)) <= 25 * 60


def kernel_commands(calls: tuple[int, ...]) -> Iterator[Sequence[str]]:
    for number in calls:
        for part in CALLS[number].parts:
            yield from (words for module, *words in part.commands if module == KERNELS)


def chosen_ops(words: Sequence[str]) -> set[str]:
    """The ops that bench_kernels.py finds a case of, given these arguments."""
    args = bench_kernels.parse([word.format_map(ANY) for word in words])
    return {case.op for case in cases("cuda") if args.op in (None, case.op) and args.images in (None, case.shape["B"])}


@pytest.mark.parametrize("calls", [(1, 2), (1,)], ids=str)
def test_every_op_is_timed_by_some_part_and_no_part_asks_for_a_case_that_is_not_there(calls):
    timed = set()
    for words in kernel_commands(calls):
        assert chosen_ops(words), words
        if "--check" not in words and "--profile" not in words:
            timed |= chosen_ops(words)
    assert timed == (set(bench_kernels.OPS) if 2 in calls else {"batch_norm", "gem_pyramid"})


@pytest.mark.parametrize("name", ["*fused norm, graph", "*compile, graph"])
def test_the_graphs_of_the_step_come_before_the_engine_and_the_profile(name):
    (variant,) = fnmatch.filter([variant.name for variant in VARIANTS], name)
    parts = [part for part in CALLS[3].parts if any(fnmatch.fnmatch(variant, word) for word in part.commands[0])]
    assert parts
    assert CALLS[3].parts.index(parts[0]) < [part.name for part in CALLS[3].parts].index("engine")


def test_what_measures_the_same_is_left_out_only_where_the_better_part_passed(module, place):
    right, wrong = module("right", ""), module("wrong", "import sys; sys.exit(1)")
    for first, expected in ((right, "left out"), (wrong, "passed")):
        parts = (part_of(first, name="better"), part_of(right, name="other", unless_passed="better"))
        rows = list(run.run_call(Call("test", 60, parts), place))
        assert rows[1]["state"].startswith(expected)


def test_a_full_disk_costs_the_files_and_not_the_table(small_disk, capsys):
    kept = summary.Summary(1, small_disk, small_disk, {"gpu": "none"})
    kept.add({"part": "first", "state": "passed", "seconds": 1.0})
    before = (small_disk / "call_1.json").read_text()
    fill(small_disk)
    kept.add({"part": "second", "state": "passed", "seconds": 1.0})
    kept.end()
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "no space left" in shown.err
    assert shown.out.splitlines()[-1].startswith("second")
    assert (small_disk / "call_1.json").read_text() == before
    assert not kept.right


def test_a_call_out_of_order_says_so_and_keeps_rows_while_it_runs(module, tmp_path, monkeypatch, capsys):
    name = module("rows", ROWS.format(then="time.sleep(3)"))
    monkeypatch.setattr(run, "TICK_S", 0.5)
    monkeypatch.setitem(CALLS, 3, Call("test", 60, (part_of(name, "{out}/{part}.json"),)))
    seen = []
    monkeypatch.setattr(summary.Summary, "add", lambda self, part: seen.append(json.loads(self.file.read_text())))
    assert gpu_suite.main(["--out", str(tmp_path), "--work", str(tmp_path / "work"), "--rehearse", "--call", "3"]) == 0
    assert "call 3 without call 1" in capsys.readouterr().out
    (part,) = seen[0]["parts"]
    assert part["state"] == "running"
    (tmp_path / "kept.json").write_text(json.dumps(seen[0]))
    (file,) = summary.unpack(tmp_path / "kept.json", tmp_path / "apart")
    assert json.loads(file.read_text())["rows"] == [{"row": 1}, {"row": 2}]
    assert part["results"][0]["rows"] == [{"row": 1}, {"row": 2}]


@pytest.mark.parametrize("number", CALLS)
def test_the_needs_of_a_call_are_listed_with_sizes(number, capsys):
    assert gpu_suite.main(["--needs", str(number)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == max(1, len(CALLS[number].packages))
    assert all(" MB  " in line for line in lines) == bool(CALLS[number].packages)


# One part of each kind; the rest takes longer, or differs in its shapes alone
QUICK = {
    1: ("compile", "tests", "batch_norm", "ceilings", "graphs", "memcheck"),
    2: ("kernels_64", "tune"),
    3: ("train", "profile"),
    4: ("people", "score"),
}


def rehearse(number: int, folder: Path) -> dict:
    words = ["--out", str(folder), "--work", str(folder / "work"), "--rehearse", "--call", str(number)]
    status = gpu_suite.main(words)
    found = json.loads((folder / f"call_{number}.json").read_text())
    assert found["complete"]
    bad = [part for part in found["parts"] if not part["state"].startswith(("passed", "not measured", "left out"))]
    assert not bad, [
        (part["state"], (folder / "work" / f"call_{number}" / f"{part['part']}.txt").read_text()[-3000:])
        for part in bad
    ]
    assert status == 0
    assert f"call {number}" in (folder / f"call_{number}.md").read_text().lower()
    return found


def result_of(found: dict, name: str) -> dict:
    """The file of a part, which must have passed."""
    part = next(part for part in found["parts"] if part["part"] == name)
    assert part["state"] == "passed"
    return part["results"][0]


@pytest.mark.parametrize("number", CALLS)
def test_a_rehearsal_of_the_quick_parts(number, tmp_path, monkeypatch):
    call = CALLS[number]
    quick = tuple(part for part in call.parts if part.name in QUICK[number])
    monkeypatch.setitem(CALLS, number, Call(call.purpose, call.limit_s, quick, call.packages))
    found = rehearse(number, tmp_path)
    assert found["machine"]["gpu"] == "no GPU (rehearsal)"
    assert [part["part"] for part in found["parts"]] == [part.name for part in quick]
    if number == 1:
        assert {row["captured"] for row in result_of(found, "graphs")["rows"]} == {True}
        assert len(result_of(found, "ceilings")["rows"]) == 5
    if number == 3:
        assert len(result_of(found, "train")["rows"]) == 2
        assert 0 < result_of(found, "profile")["busy_share"] <= 1


@pytest.mark.long
@pytest.mark.parametrize("number", CALLS)
def test_a_rehearsal_of_a_whole_call(number, tmp_path):
    found = rehearse(number, tmp_path)
    assert [part["part"] for part in found["parts"]] == [part.name for part in CALLS[number].parts]
