"""inspect: the tables say what was packed, the contact sheet is one file that loads nothing, damage is refused."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from shards.inspect import open_set, summary_text, tables, write_contact_sheet
from shards.sources import sysu_mm01
from tacaf.vocabulary import InputError
from tests.shards.raw import column, write_sysu


def test_the_tables_count_what_was_packed(tmp_path):
    """Ids 1, 2 train, 3 val, 4 test; two images of each in cameras 1, 2, 3, 6."""
    found = tables(open_set(sysu_mm01.pack(write_sysu(tmp_path / "raw"), tmp_path / "set").folder))
    splits = {(row[0], str(row[1])): row[2:4] for row in found["Splits"][1:]}
    assert splits["train", "visible"] == splits["train", "infrared"] == ["2", "8"]
    assert splits["test", "infrared"] == ["1", "4"]
    cameras = {row[0]: row for row in found["Cameras"][1:]}
    assert set(cameras) == {"1", "2", "3", "6"}
    assert cameras["2"][1] == cameras["3"][1] == "2", "cameras 2 and 3 share a location"
    assert all(row[3:] == ["4", "8"] for row in cameras.values())
    assert found["Image sizes"][1][1:] == ["24"] * 3
    assert found["Shards"][1][1] == "32"


def test_the_text_has_every_table(sysu_shards):
    text = summary_text(open_set(sysu_shards))
    for word in ("split", "camera", "width", "height", "sysu_mm01-000000.tar", str(len(column(sysu_shards, "pid")))):
        assert word in text


def test_the_contact_sheet_is_one_file_that_loads_nothing(sysu_shards, tmp_path):
    path = tmp_path / "new" / "sheet.html"
    write_contact_sheet(open_set(sysu_shards), path, identities=3)
    page = path.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', page)
    assert "<script" not in page
    assert page.count('<section class="person">') == 3
    pictures = re.findall(r'alt="(visible|infrared)_', page)
    assert set(pictures) == {"visible", "infrared"}
    assert [one.name for one in path.parent.iterdir()] == ["sheet.html"]


def test_names_from_the_data_set_are_escaped(sysu_shards, tmp_path):
    shard_set = open_set(sysu_shards)
    named = shard_set.index.model_copy(update={"name": "<b>x</b>"})
    write_contact_sheet(replace(shard_set, index=named), tmp_path / "sheet.html", identities=1)
    assert "<b>x</b>" not in (tmp_path / "sheet.html").read_text()


def test_a_damaged_set_is_refused_and_an_older_sheet_stays(sysu_shards, tmp_path):
    folder = shutil.copytree(sysu_shards, tmp_path / "set")
    shard_set = open_set(folder)
    tar = folder / "sysu_mm01-000000.tar"
    sheet = tmp_path / "sheet.html"
    sheet.write_text("kept")
    tar.write_bytes(tar.read_bytes()[: int(np.median(column(folder, "offset")))])
    with pytest.raises(InputError, match="verify"):
        write_contact_sheet(shard_set, sheet)
    assert sheet.read_text() == "kept"
    with pytest.raises(InputError, match="has 1 problem"):
        open_set(folder)
    with pytest.raises(InputError, match="--identities"):
        write_contact_sheet(open_set(sysu_shards), sheet, identities=0)
