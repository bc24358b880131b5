"""verify: a sound set has no problem; every kind of damage is named with its shard, and its sample if one's."""

import hashlib
import io
import json
import shutil
import tarfile

import numpy as np
import pytest

from shards.pedestrians.synth import synthesise
from shards.sources import sysu_mm01
from shards.tar import add_member, index_text
from shards.verify import verify
from shards.writer import pack
from tacaf.shard_set import read_index
from tacaf.vocabulary import InputError
from tests.shards.raw import column, edited, noise_records, noise_splits, samples

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
    return lambda folder: edited(folder, change)


def change_a_column(folder):
    values = np.load(folder / "columns/pid.npy")
    values[VICTIM] += 1000
    np.save(folder / "columns/pid.npy", values)


def shift_the_offsets(folder):
    values = np.load(folder / "columns/offset.npy")
    np.save(folder / "columns/offset.npy", values + 512)


def change_the_type(kind):
    def change(folder):
        with tarfile.open(folder / TAR) as tar:
            member = tar.getmembers()[2 * VICTIM]
        member.type = kind
        data = (folder / TAR).read_bytes()
        block = member.tobuf(tarfile.USTAR_FORMAT)
        (folder / TAR).write_bytes(data[: member.offset] + block + data[member.offset + 512 :])

    return change


def rename_by_extension(folder):
    """A header before the member that gives it another name (PAX), as long as the image was."""
    with tarfile.open(folder / TAR) as tar:
        image, facts = tar.getmembers()[2 * VICTIM : 2 * VICTIM + 2]
    record = b"20 path=../evil.jpg\n"
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    start = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    image.size = facts.offset - image.offset - len(start) - 512
    data = (folder / TAR).read_bytes()
    block = start + image.tobuf(tarfile.USTAR_FORMAT)
    (folder / TAR).write_bytes(data[: image.offset] + block + data[image.offset + len(block) :])


def move_a_place(folder):
    """One image's place is stated 512 bytes too early and its size as much too large."""
    for name, by in (("offset", -512), ("size", 512)):
        values = np.load(folder / f"columns/{name}.npy")
        values[VICTIM] += by
        np.save(folder / f"columns/{name}.npy", values)


def state_hashes(folder, values, length):
    values["shards"][0].update(bytes=length, sha256=hashlib.sha256((folder / TAR).read_bytes()).hexdigest())
    for name, facts in values["columns"].items():
        facts["sha256"] = hashlib.sha256((folder / f"columns/{name}.npy").read_bytes()).hexdigest()


def agreed(spoil, idx=False):
    """The damage with every hash and size made to agree, as who means harm would; `idx` makes DALI's index agree."""

    def change(folder):
        spoil(folder)
        data = (folder / TAR).read_bytes()
        length = max(len(data), read_index(folder).shards[0].bytes)
        (folder / TAR).write_bytes(data.ljust(length, b"x"))  # long enough for the columns, with a hole
        edited(folder, lambda values: state_hashes(folder, values, length))
        if idx:
            path = (folder / TAR).with_suffix(".idx")
            lines = path.read_text().splitlines()
            words = lines[VICTIM + 1].split(" ")
            words[1:3] = [str(int(words[1]) - 512), str(int(words[2]) + 512)]
            lines[VICTIM + 1] = " ".join(words)
            path.write_text("\n".join(lines) + "\n")

    return change


def nest_the_facts(folder):
    """Facts of 60 KiB of brackets, in a tar and an index that agree with them."""
    with tarfile.open(folder / TAR) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    members[2 * VICTIM + 1] = (members[2 * VICTIM + 1][0], b"[" * 60_000)
    places = []
    with (folder / TAR).open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            key, _, extension = name.partition(".")
            places.append(add_member(tar, key, extension, data))
    (folder / TAR).with_suffix(".idx").write_text(index_text(list(zip(places[::2], places[1::2], strict=True))))
    np.save(folder / "columns/offset.npy", np.array([place.offset for place in places[::2]]))
    edit_index(lambda v: v["shards"][0].update(bytes=(folder / TAR).stat().st_size))(folder)


def swap(folder, *names):
    """Files of another set of the same name and structure."""
    other = folder.with_name("other")
    synthesise(folder.with_name("raw"), identities=12, seed=3, images_per_camera=3, height=96, workers=1)
    sysu_mm01.pack(folder.with_name("raw"), other)
    for name in names:
        if (other / name).is_dir():
            shutil.rmtree(folder / name)
        (shutil.copytree if (other / name).is_dir() else shutil.copy)(other / name, folder / name)


# damage -> (words of a problem, whether it names the sample, whether --quick sees it)
DAMAGE = {
    "flipped byte": (flip_a_byte, f"{TAR}: its sha256 is not the one", False, False),
    "undecodable image": (zero_an_image, "does not decode", True, False),
    "cut shard": (cut_the_tar, f"{TAR} is truncated", False, True),
    "missing shard": (lambda f: (f / TAR).unlink(), f"{TAR} is missing", False, True),
    "missing idx": (lambda f: (f / TAR).with_suffix(".idx").unlink(), "idx is missing", False, True),
    "cut idx": (lambda f: (f / TAR).with_suffix(".idx").write_text("v1.2 3\n"), "lines, got", False, True),
    "extra shard": (lambda f: shutil.copy(f / TAR, f / "more.tar"), "more.tar does not belong", False, True),
    "other facts": (change_the_facts, "its facts state pid", True, False),
    "member outside": (rename_a_member("../evil.jpg"), "../evil.jpg", False, False),
    "absolute member": (rename_a_member("/evil.jpg"), "/evil.jpg", False, False),
    "strange member": (rename_a_member("stranger.jpg"), "stranger.jpg", True, False),
    "changed column": (change_a_column, "columns", False, True),
    "missing column": (lambda f: (f / "columns/size.npy").unlink(), "size.npy", False, True),
    "shifted places": (shift_the_offsets, TAR.replace(".tar", ""), False, True),
    "counts": (edit_index(lambda v: v.update(images=v["images"] + 1)), "images: is 193", False, True),
    "split": (edit_index(lambda v: v["splits"]["test"].append(4242)), "4242", False, True),
    "no JSON": (lambda f: (f / "index.json").write_text("{"), "index.json", False, True),
    "no index": (lambda f: (f / "index.json").unlink(), "index.json", False, True),
    "future version": (
        edit_index(lambda v: v.update(format_version=99, more="?")),
        "expected format_version 2, got 99",
        False,
        True,
    ),
    "member with folders": (rename_a_member("a/b.jpg"), "expected a plain file", False, False),
    "member with backslashes": (rename_a_member("a\\b.jpg"), "expected a plain file", False, False),
    "member without a key": (rename_a_member(".jpg"), "expected a plain file", False, False),
    "member with a line feed": (rename_a_member("a\n\x1b[2Jb.jpg"), "expected a plain file", False, False),
    "long name by extension": (rename_by_extension, "'../evil.jpg': expected a plain file", False, False),
    "link": (change_the_type(tarfile.SYMTYPE), "expected a plain file", False, False),
    "device": (change_the_type(tarfile.CHRTYPE), "expected a plain file", False, False),
    "folder": (change_the_type(tarfile.DIRTYPE), "expected a plain file", False, False),
    "cut, and the index agrees": (agreed(cut_the_tar), "172 images unread", True, False),
    "one place wrong": (move_a_place, "the line does not agree with the columns", True, True),
    "one place wrong, and all agree": (agreed(move_a_place, idx=True), "the columns state", True, False),
    "facts too deep": (nest_the_facts, "its facts: ", True, True),
    "idx of another set": (lambda f: swap(f, f"{TAR[:-3]}idx"), "lines, got", False, True),
    "index of another set": (lambda f: swap(f, "index.json"), "expected", False, True),
    "index and columns of another set": (
        lambda f: swap(f, "index.json", "columns"),
        f"{TAR} is truncated",
        False,
        True,
    ),
    "column of another set": (lambda f: swap(f, "columns/size.npy"), "columns/size.npy: expected 192", False, True),
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
    with pytest.raises(InputError, match="absent"):
        verify(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert len(verify(tmp_path / "empty")) == 1


def test_the_index_names_its_own_hashes(sysu_shards):
    index = read_index(sysu_shards)
    assert [len(shard.sha256) for shard in index.shards] == [64]
    assert sum(shard.images for shard in index.shards) == index.images == len(samples(sysu_shards))


@pytest.mark.slow
def test_any_number_of_workers_finds_the_same(tmp_path):
    records = noise_records(tmp_path / "raw", pids=6)
    for record in records[::4]:
        record.path.write_bytes(record.path.read_bytes() + bytes(2**20))
    options = {"root": tmp_path / "raw", "source": "noise", "shard_mib": 1}
    folder = pack(records, tmp_path / "set", "noise", noise_splits(6), **options).folder
    assert verify(folder, workers=3) == []
    for row in (1, 6, 7, 22):
        shard, offset = int(column(folder, "shard")[row]), int(column(folder, "offset")[row])
        with (folder / f"noise-{shard:06d}.tar").open("r+b") as file:
            file.seek(offset)
            file.write(bytes(100))
    (folder / "noise-000004.idx").write_text("v1.2 0\n")
    (folder / "noise-000002.tar").unlink()
    problems = verify(folder, workers=1)
    assert verify(folder, workers=3) == problems
    numbers = [problem[:12].removeprefix("noise-") for problem in problems]
    assert [number.lstrip("0") or "0" for number in numbers] == list("2011445015"), problems
    with pytest.raises(InputError, match="--workers"):
        verify(folder, workers=0)
