"""The run over processors: the limits take effect, the load is there, and one red run is enough for its status."""

import os

import pytest

from tests import processors

CASE = """
import os
import torch

def test_of_one_setting():
    wanted = os.environ.get("ATEN_CPU_CAPABILITY")
    assert wanted is None or torch.backends.cpu.get_cpu_capability().lower() == wanted
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    assert (wanted, torch.get_num_threads()) != ("default", 2), "the red one"
"""


def table_of(words: list[str], capfd: pytest.CaptureFixture) -> tuple[int, dict[str, str]]:
    """Exit status, and what the table says of each setting."""
    status = processors.main(["-p", "no:cacheprovider", *words])
    rows = capfd.readouterr().out.split(processors.processor())[1].splitlines()[1:]
    return status, {row[:48].strip(): row[48:].strip() for row in rows}


@pytest.mark.slow
def test_every_setting_is_run_and_a_red_one_is_named(tmp_path, monkeypatch, capfd):
    """Three of them: the interpreter and torch start anew in each."""
    monkeypatch.setattr(processors, "ROOT", tmp_path)
    monkeypatch.setattr(processors, "SETTINGS", [*processors.SETTINGS[1:3], processors.SETTINGS[-1]])
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    (tmp_path / "test_case.py").write_text(CASE)
    status, rows = table_of(["test_case.py"], capfd)
    assert status == 1
    assert list(rows) == [setting.name for setting in processors.SETTINGS]
    red = rows.pop("SSE4, 2 threads")
    assert red.startswith("red (status 1)")
    assert "1 failed" in red
    assert all(row.startswith("green") and "1 passed" in row for row in rows.values())


@pytest.mark.slow
def test_green_everywhere_is_status_0(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(processors, "ROOT", tmp_path)
    monkeypatch.setattr(processors, "SETTINGS", processors.SETTINGS[:2])
    (tmp_path / "test_case.py").write_text("def test_nothing(): pass")
    status, rows = table_of(["test_case.py"], capfd)
    assert status == 0
    assert len(rows) == 2


@pytest.mark.slow
def test_the_load_ends_with_its_run():
    with processors.load(2):
        children = {int(pid) for pid in _children()}
        assert len(children) >= 2
    assert len(set(_children())) <= len(children) - 2


def _children() -> list[str]:
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return file.read().split()
