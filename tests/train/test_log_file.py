"""run.log: one format, added to on resume, silent where it cannot be written, and filtered like any logger."""

import logging
from types import SimpleNamespace

import pytest

from tacaf.run_files import CHECKPOINTS_FOLDER
from tacaf.train.log_file import LOGGER, log_into, warn
from tacaf.train.saving import find_checkpoint
from tacaf.vocabulary import InputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.log"


def test_lines_of_two_ranks_and_of_a_second_start(path):
    for rank, level, text in (
        (0, logging.INFO, "begins with 10 % of it"),
        (3, logging.WARNING, "slow"),
        (0, 20, "resumes"),
    ):
        with log_into(path, rank):
            LOGGER.log(level, "%s", text)
    LOGGER.error("of no run")
    lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
    assert [rest for _, rest in lines] == [
        "rank 0 INFO begins with 10 % of it",
        "rank 3 WARNING slow",
        "rank 0 INFO resumes",
    ]
    assert len({time[:10] for time, _ in lines}) <= 2, "a date first"


def test_a_program_gets_the_lines_in_its_own_log(path, caplog):
    with log_into(path, 0):
        LOGGER.warning("heard")
    assert [record.getMessage() for record in caplog.records] == ["heard"]


def test_nothing_is_opened_until_something_is_said_and_a_lost_line_ends_nothing(tmp_path, capsys):
    absent = tmp_path / "absent" / "run.log"
    with log_into(absent, 0):
        LOGGER.info("lost")
    assert not absent.parent.exists()
    assert capsys.readouterr() == ("", "")


def test_a_level_set_before_a_run_stays_and_silences_the_terminal_too(path, capsys):
    LOGGER.setLevel(logging.ERROR)
    try:
        with log_into(path, 0):
            warn("not heard")
        assert LOGGER.level == logging.ERROR
    finally:
        LOGGER.setLevel(logging.NOTSET)
    assert not path.exists()
    assert capsys.readouterr() == ("", "")


def test_a_warning_is_printed_and_logged_once(path, capsys):
    with log_into(path, 2):
        warn("100 % heard")
    assert path.read_text().endswith(" rank 2 WARNING 100 % heard\n")
    assert capsys.readouterr() == ("", "warning: 100 % heard\n")


def test_a_run_that_fails_leaves_the_logger_as_it_was(path):
    with pytest.raises(InputError), log_into(path, 0):
        raise InputError("ends")
    assert (LOGGER.handlers, LOGGER.level) == ([], logging.NOTSET)


def test_a_damaged_checkpoint_is_named_in_the_log(path, tmp_path):
    (tmp_path / CHECKPOINTS_FOLDER / "step-00000007").mkdir(parents=True)
    with pytest.raises(InputError), log_into(path, 0):
        find_checkpoint(SimpleNamespace(run=tmp_path), {})
    assert "rank 0 WARNING" in (said := path.read_text())
    assert "step-00000007" in said
