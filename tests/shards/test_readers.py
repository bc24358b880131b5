"""Shards in the hands of others: plain WebDataset, DALI's own reader, DALI's own index tool, tar."""

import gc
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards.sources import regdb
from tests.shards.raw import column, samples, write_regdb

KINDS = [("sysu_shards", "jpg"), ("regdb_shards", "bmp")]


@pytest.mark.parametrize(("fixture", "extension"), KINDS)
def test_plain_webdataset_reads_the_shards(fixture, extension, request):
    folder = request.getfixturevalue(fixture)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():  # webdataset leaves the file of an exhausted shard to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        read = list(webdataset.WebDataset(urls, shardshuffle=False))
        gc.collect()
    found = [(sample["__key__"], sample[extension], json.loads(sample["json"])) for sample in read]
    assert found == [(key, image, facts) for key, _, image, facts in samples(folder)]
    assert [facts["pid"] for *_, facts in found] == column(folder, "pid").tolist()


@pytest.fixture(scope="module")
def regdb_shards(tmp_path_factory):
    """Bitmaps, in four shards: bytes after the end of an image make it large."""
    folder = tmp_path_factory.mktemp("regdb")
    for path in write_regdb(folder / "raw").rglob("*.bmp"):
        path.write_bytes(path.read_bytes() + bytes(2**18))
    packed = regdb.pack(folder / "raw", folder / "set", shard_mib=1)
    assert len(packed.index.shards) == 4
    return packed.folder


@pytest.mark.parametrize(("fixture", "extension"), KINDS)
def test_dali_reads_the_shards_by_our_index(fixture, extension, request):
    """Through a process of its own: DALI stays out of this one."""
    folder = request.getfixturevalue(fixture)
    script = (
        "import sys, json, glob\n"
        "from nvidia.dali import fn, types, pipeline_def\n"
        "tars = sorted(glob.glob(sys.argv[1] + '/*.tar'))\n"
        "@pipeline_def(batch_size=8, num_threads=1, device_id=None, prefetch_queue_depth=1)\n"
        "def graph():\n"
        "    image, facts = fn.readers.webdataset(paths=tars, index_paths=[tar[:-3] + 'idx' for tar in tars],\n"
        "        ext=[sys.argv[2], 'json'], missing_component_behavior='error', name='reader')\n"
        "    return fn.peek_image_shape(image), facts, image\n"
        "pipe = graph()\n"
        "pipe.build()\n"
        "size, rows = pipe.epoch_size('reader'), []\n"
        "while len(rows) < size:\n"
        "    shapes, facts, images = pipe.run()\n"
        "    rows += [[json.loads(bytes(facts.at(i))), len(images.at(i)), shapes.at(i).tolist()] for i in range(8)]\n"
        "print(json.dumps(rows[:size]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, folder, extension], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [facts for facts, _, _ in rows] == [facts for *_, facts in samples(folder)]
    assert [facts["pid"] for facts, _, _ in rows] == column(folder, "pid").tolist()
    assert [size for _, size, _ in rows] == column(folder, "size").tolist()
    assert {shape[2] for _, _, shape in rows} == {3}


def test_the_index_is_what_dalis_tool_writes(sysu_shards, tmp_path):
    tool = Path(sys.executable).with_name("wds2idx")
    for tar in sysu_shards.glob("*.tar"):
        subprocess.run([tool, tar, tmp_path / "idx"], check=True, capture_output=True)
        assert (tmp_path / "idx").read_text() == tar.with_suffix(".idx").read_text()


def test_tar_itself_lists_the_members(sysu_shards):
    tar = next(sysu_shards.glob("*.tar"))
    names = subprocess.run(["tar", "--list", "--file", tar], check=True, capture_output=True, text=True).stdout.split()
    assert names[::2] == [f"{key}.{extension}" for key, extension, _, _ in samples(sysu_shards)]


def test_columns_are_mapped_not_read(sysu_shards):
    assert isinstance(column(sysu_shards, "offset"), np.memmap)
