"""docs/shard_format.md: the reader on the page, which uses nothing of ours, reads a set."""

import re
from pathlib import Path

from tacaf.shard_set import IndexFile
from tacaf.vocabulary import COLUMNS
from tests.shards.raw import column, samples

PAGE = Path(__file__).parents[2] / "docs/shard_format.md"


def page_code() -> dict:
    """What the page's Python blocks define."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_the_reader_on_the_page_reads_a_set(sysu_shards):
    found = list(page_code()["images"](sysu_shards))
    assert [data for *_, data in found] == [image for _, _, image, _ in samples(sysu_shards)]
    assert [pid for pid, *_ in found] == column(sysu_shards, "pid").tolist()
    assert [camid for _, camid, *_ in found] == column(sysu_shards, "camid").tolist()
    assert [modality for _, _, modality, _ in found] == [facts["modality"] for *_, facts in samples(sysu_shards)]


def test_the_seal_on_the_page_is_the_index_files(sysu_shards):
    data = (sysu_shards / "index.json").read_bytes()
    is_sealed = page_code()["is_sealed"]
    assert is_sealed(data)
    assert not is_sealed(data.replace(b'"images": 192', b'"images": 193', 1))


def test_the_page_has_every_key_and_column():
    cells = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert cells == {*IndexFile.model_fields, *COLUMNS}
