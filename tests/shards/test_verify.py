"""verify: a sound set has no problem; every kind of damage is named with its shard, and its sample if one's."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest

from shards.index_file import read_index
from shards.verify import verify
from tacaf.vocabulary import InputError
from tests.shards.raw import column, samples

TAR = "sysu_mm01-000000.tar"
VICTIM = 20  # a row somewhere inside


@pytest.fixture
def damaged(sysu_shards, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(sysu_shards, tmp_path / "set")


def key_of(folder, row=VICTIM):
    return samples(folder)[row][0]


def flip_a_byte(folder):
    with (folder / TAR).open("r+b") as file:
        file.seek(int(column(folder, "offset")[VICTIM]) + int(column(folder, "size")[VICTIM]) // 2)
        byte = file.read(1)
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


def zero_an_image(folder):
    with (folder / TAR).open("r+b") as file:
        file.seek(int(column(folder, "offset")[VICTIM]))
        file.write(bytes(int(column(folder, "size")[VICTIM])))


def cut_the_tar(folder):
    (folder / TAR).write_bytes((folder / TAR).read_bytes()[: int(column(folder, "offset")[VICTIM]) + 10])


def change_the_facts(folder):
    data = (folder / TAR).read_bytes()
    facts = json.dumps(samples(folder)[VICTIM][3]).encode()
    start = data.index(b'{"', int(column(folder, "offset")[VICTIM]) + int(column(folder, "size")[VICTIM]))
    pid = data.index(b'"pid"', start)
    digit = next(i for i in range(pid, pid + len(facts)) if data[i : i + 1].isdigit())
    (folder / TAR).write_bytes(data[:digit] + b"9" + data[digit + 1 :])


def rename_a_member(name):
    def change(folder):
        data = (folder / TAR).read_bytes()
        with tarfile.open(folder / TAR) as tar:
            member = tar.getmembers()[2 * VICTIM]
            header = member.offset
            member.name = name
        block = member.tobuf(tarfile.USTAR_FORMAT)
        assert len(block) == 512
        (folder / TAR).write_bytes(data[:header] + block + data[header + 512 :])

    return change


def edit_index(change):
    def edit(folder):
        path = folder / "index.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return edit


def change_a_column(folder):
    values = np.load(folder / "columns/pid.npy")
    values[VICTIM] += 1000
    np.save(folder / "columns/pid.npy", values)


def shift_the_offsets(folder):
    values = np.load(folder / "columns/offset.npy")
    np.save(folder / "columns/offset.npy", values + 512)


# damage -> (words of a problem, whether it names the sample, whether --quick sees it)
DAMAGE = {
    "flipped byte": (flip_a_byte, f"{TAR}: its sha256 is not the one", False, False),
    "undecodable image": (zero_an_image, "does not decode", True, False),
    "cut shard": (cut_the_tar, f"{TAR}: expected", False, True),
    "missing shard": (lambda f: (f / TAR).unlink(), f"{TAR}: expected this shard, found none", False, True),
    "missing idx": (lambda f: (f / TAR).with_suffix(".idx").unlink(), "expected DALI's index", False, True),
    "cut idx": (lambda f: (f / TAR).with_suffix(".idx").write_text("v1.2 3\n"), "lines, got", False, True),
    "extra shard": (lambda f: shutil.copy(f / TAR, f / "more.tar"), "more.tar: a shard that index.json", False, True),
    "other facts": (change_the_facts, "its facts state pid", True, False),
    "member outside": (rename_a_member("../evil.jpg"), "../evil.jpg", False, False),
    "absolute member": (rename_a_member("/evil.jpg"), "/evil.jpg", False, False),
    "strange member": (rename_a_member("stranger.jpg"), "stranger.jpg", True, False),
    "changed column": (change_a_column, "columns", False, True),
    "missing column": (lambda f: (f / "columns/size.npy").unlink(), "size.npy", False, True),
    "shifted places": (shift_the_offsets, TAR.replace(".tar", ""), False, True),
    "counts": (edit_index(lambda v: v.update(images=v["images"] + 1)), "expected (193,)", False, True),
    "split": (edit_index(lambda v: v["splits"]["test"].append(4242)), "4242", False, True),
    "no JSON": (lambda f: (f / "index.json").write_text("{"), "index.json", False, True),
    "no index": (lambda f: (f / "index.json").unlink(), "index.json", False, True),
    "future version": (edit_index(lambda v: v.update(format_version=99)), "format_version", False, True),
}


def test_a_sound_set_has_no_problem(sysu_shards):
    assert verify(sysu_shards) == []
    assert verify(sysu_shards, quick=True) == []


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(damaged, name):
    spoil, words, names_the_sample, quick_sees_it = DAMAGE[name]
    key = key_of(damaged)
    spoil(damaged)
    problems = verify(damaged)
    assert any(words in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)
    if names_the_sample:
        assert any(key in problem for problem in problems), problems
    assert bool(verify(damaged, quick=True)) == quick_sees_it


def test_what_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="expected the folder of a shard set"):
        verify(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert len(verify(tmp_path / "empty")) == 1


def test_the_index_names_its_own_hashes(sysu_shards):
    index = read_index(sysu_shards)
    assert [len(shard.sha256) for shard in index.shards] == [64]
    assert sum(shard.images for shard in index.shards) == index.images == len(samples(sysu_shards))
