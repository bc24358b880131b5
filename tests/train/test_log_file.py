"""run.log: one format, added to on resume, silent where it cannot be written, and filtered like any logger."""

import logging
from types import SimpleNamespace

import pytest

from tacaf.run_files import CHECKPOINTS_FOLDER
from tacaf.train.log_file import LOGGER, close_log, open_log, warn
from tacaf.train.saving import find_checkpoint
from tacaf.vocabulary import InputError


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_log()
    logging.getLogger(LOGGER).setLevel(logging.NOTSET)


def test_lines_of_two_ranks_and_of_a_second_start(tmp_path):
    path = tmp_path / "run.log"
    open_log(path, rank=0).info("%s", "begins with 10 % of it")
    open_log(path, rank=3).warning("slow")
    open_log(path, rank=0).info("resumes")
    lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
    assert [rest for _, rest in lines] == [
        "rank 0 INFO begins with 10 % of it",
        "rank 3 WARNING slow",
        "rank 0 INFO resumes",
    ]
    assert len({time[:10] for time, _ in lines}) <= 2, "a date first"


def test_a_program_can_silence_it_and_gets_it_in_its_own_log(tmp_path, caplog):
    path = tmp_path / "run.log"
    logger = open_log(path, rank=0)
    logger.warning("heard")
    assert [record.getMessage() for record in caplog.records] == ["heard"]
    logger.setLevel(logging.CRITICAL)
    logger.warning("not heard")
    assert "not heard" not in path.read_text() + caplog.text


def test_nothing_is_opened_until_something_is_said_and_a_lost_line_ends_nothing(tmp_path, capsys):
    path = tmp_path / "absent" / "run.log"
    open_log(path, rank=0).info("lost")
    assert not path.parent.exists()
    assert capsys.readouterr() == ("", "")


def test_a_level_set_before_a_run_stays_and_silences_the_terminal_too(tmp_path, capsys):
    path = tmp_path / "run.log"
    logging.getLogger(LOGGER).setLevel(logging.ERROR)
    open_log(path, rank=0)
    warn("not heard")
    assert not path.exists()
    assert capsys.readouterr() == ("", "")


def test_a_warning_is_printed_and_logged_once(tmp_path, capsys):
    path = tmp_path / "run.log"
    open_log(path, rank=2)
    warn("100 % heard")
    assert path.read_text().endswith(" rank 2 WARNING 100 % heard\n")
    assert capsys.readouterr() == ("", "warning: 100 % heard\n")


def test_a_damaged_checkpoint_is_named_in_the_log(tmp_path):
    (tmp_path / CHECKPOINTS_FOLDER / "step-00000007").mkdir(parents=True)
    open_log(tmp_path / "run.log", rank=0)
    with pytest.raises(InputError):
        find_checkpoint(SimpleNamespace(run=tmp_path), {})
    assert "rank 0 WARNING" in (said := (tmp_path / "run.log").read_text())
    assert "step-00000007" in said
