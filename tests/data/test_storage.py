"""A remote set reads like a local one; the cache fetches once, checks, survives kills and keeps to its limit."""

import dataclasses
import fcntl
import hashlib
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from pydantic import ValidationError

from tacaf.data import reader, storage
from tacaf.data.fetch_ahead import FetchAhead
from tacaf.data.index import ShardIndex
from tacaf.data.reader import ShardReader
from tacaf.data.storage import GIB, CachedStore, CacheFullError, File, RemoteConfig, open_store
from tacaf.vocabulary import INDEX_FILE, InputError
from tests.data.server import serving
from tests.processes import LIMIT_S, free_port, wait_until
from tests.shards.raw import edited, snapshot


@pytest.fixture(scope="module")
def local(sysu_shards_many) -> ShardIndex:
    return ShardIndex.open(sysu_shards_many)


@pytest.fixture
def server(local):
    with serving(local.store.folder) as running:
        yield running


@pytest.fixture
def config(tmp_path) -> RemoteConfig:
    return RemoteConfig(cache=tmp_path / "cache", timeout_s=60, attempts=2)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.0)


def rows_of_shard(index: ShardIndex, shard: int) -> np.ndarray:
    return np.flatnonzero(index.columns["shard"] == shard)


def whole_files(config: RemoteConfig) -> set[str]:
    return {path.name for path in config.cache.glob("*.whole")}


def test_a_remote_set_reads_like_the_local_one(local, server, config):
    remote = ShardIndex.open(server.address, config)
    assert (remote.sha256, remote.splits, len(remote)) == (local.sha256, local.splits, len(local))
    readers = ShardReader(local), ShardReader(remote)
    for row in range(0, len(local), 7):
        assert readers[0].read(row).tobytes() == readers[1].read(row).tobytes()
    assert server.address in readers[1].where(0)
    before = dict(server.asked)
    again = ShardReader(ShardIndex.open(server.address, config))
    again.read(0)
    fetched_again = {name for name, count in server.asked.items() if count > before.get(name, 0)}
    assert fetched_again == {INDEX_FILE}, "everything else comes from the cache"


def test_only_what_is_read_is_fetched(local, server, config):
    remote = ShardIndex.open(server.address, config)
    assert not any(name.endswith(".tar") for name in server.asked)
    ShardReader(remote).read(int(rows_of_shard(local, 1)[0]))
    assert [name for name in server.asked if name.endswith(".tar")] == [local.shards[1].name]


def test_the_reader_of_a_remote_set_can_be_sent_to_a_worker(server, config):
    own = ShardReader(ShardIndex.open(server.address, config))
    expected = own.read(3).tobytes()
    assert pickle.loads(pickle.dumps(own)).read(3).tobytes() == expected
    assert len(pickle.dumps(own)) < 20_000, "columns travel as file names"


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["fail", "stall", "cut", "change", "grow"])
def test_a_passing_trouble_is_asked_again(local, server, config, trouble):
    shard = local.shards[0]
    server.trouble[shard.name] = [trouble]
    # The second answer comes within this limit on a slow machine too.
    patient = config.model_copy(update={"timeout_s": 3.0}) if trouble == "stall" else config
    with open_store(server.address, patient).open(shard) as file:
        assert file.read() == (local.store.folder / shard.name).read_bytes()
    assert server.asked[shard.name] >= 2


@pytest.mark.parametrize("trouble", ["fail", "stall", "cut", "change", "grow"])
def test_a_lasting_trouble_is_named_and_leaves_nothing(local, server, config, trouble):
    shard = local.shards[0]
    server.trouble[shard.name] = [trouble] * 20
    with pytest.raises(InputError, match=rf"{server.address}/{shard.name}\b.*\b2 "):
        open_store(server.address, config.model_copy(update={"timeout_s": 0.5})).open(shard)
    assert not whole_files(config)
    assert not list(config.cache.glob("*.part"))


def test_a_missing_shard_and_a_missing_set_are_named(local, server, config):
    with pytest.raises(InputError, match=r"sysu_mm01-000099\.tar, which the index names, does not exist"):
        open_store(server.address, config).open(File("sysu_mm01-000099.tar", 10, "0" * 64))
    with pytest.raises(InputError, match=r"index\.json"):
        ShardIndex.open(f"{server.address}/elsewhere", config)


def test_a_server_that_is_not_there(config):
    with pytest.raises(InputError, match="check the server"):
        ShardIndex.open(f"http://127.0.0.1:{free_port()}/set", config)


def test_an_address_nobody_reads(config):
    with pytest.raises(InputError, match="carrier-pigeon"):
        ShardIndex.open("carrier-pigeon://set", config)


def test_the_limit_is_kept_and_the_longest_unused_goes_first(local, server, config):
    sizes = [shard.size for shard in local.shards[:3]]
    small = config.model_copy(update={"limit_gib": (sizes[0] + sizes[1] + sizes[2] - 1) / GIB})
    store = open_store(server.address, small)
    for shard in (local.shards[0], local.shards[1], local.shards[0], local.shards[2]):
        store.open(shard).close()
        time.sleep(0.01)
        assert sum(path.stat().st_size for path in config.cache.glob("*.whole")) <= small.limit_gib * GIB
    assert whole_files(config) == {f"{local.shards[kept].sha256}.whole" for kept in (0, 2)}


def test_what_is_open_is_not_removed(local, server, config):
    small = config.model_copy(update={"limit_gib": (local.shards[0].size + 1) / GIB})
    store = open_store(server.address, small)
    with store.open(local.shards[0]), pytest.raises(CacheFullError, match=r"data\.remote\.limit_gib"):
        store.open(local.shards[1])
    store.open(local.shards[1]).close()
    assert whole_files(config) == {f"{local.shards[1].sha256}.whole"}


def test_a_reader_makes_room_by_letting_go_of_its_own_shards(local, server, config):
    columns = ShardIndex.open(server.address, config)
    used = sum(path.stat().st_size for path in config.cache.glob("*.whole"))
    largest = max(shard.size for shard in local.shards)
    small = config.model_copy(update={"limit_gib": (used + largest + 1) / GIB})
    own = ShardReader(ShardIndex.open(server.address, small))
    for shard in range(len(local.shards)):
        row = int(rows_of_shard(local, shard)[0])
        assert own.read(row).tobytes() == ShardReader(local).read(row).tobytes()
    assert len(columns) == len(local)


def test_two_processes_that_ask_at_once_fetch_once(local, server, config):
    shard = local.shards[0]
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        sizes = pool.starmap(fetch, [(server.address, config, shard)] * 3)
    assert sizes == [shard.size] * 3
    assert server.asked[shard.name] == 1


def fetch(address: str, config: RemoteConfig, file: File) -> int:
    with open_store(address, config).open(file) as opened:
        return len(opened.read())


def test_a_kill_in_mid_download_leaves_no_half_file(local, server, config):
    shard = local.shards[0]
    server.trouble[shard.name] = ["stall"]
    slow = config.model_copy(update={"timeout_s": 2 * LIMIT_S})
    process = multiprocessing.get_context("spawn").Process(target=fetch, args=(server.address, slow, shard))
    process.start()
    part = config.cache / f"{shard.sha256}.part"
    wait_until(lambda: (server.asked[shard.name] and part.exists()) or not process.is_alive())
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert part.exists(), "the kill came in mid-download"
    assert not whole_files(config)
    assert fetch(server.address, config, shard) == shard.size
    assert not part.exists()


def test_what_a_kill_left_is_removed_to_make_room(local, server, config):
    small = config.model_copy(update={"limit_gib": (local.shards[1].size + 1) / GIB})
    store = CachedStore(server.address, small)
    part = config.cache / f"{local.shards[0].sha256}.part"
    part.write_bytes(bytes(local.shards[0].size))
    store.open(local.shards[1]).close()
    assert not part.exists()


def test_a_download_under_way_keeps_its_room(local, server, config):
    small = config.model_copy(update={"limit_gib": (local.shards[1].size + 1) / GIB})
    store = CachedStore(server.address, small)
    part = config.cache / f"{local.shards[0].sha256}.part"
    part.write_bytes(bytes(local.shards[0].size))
    with part.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CacheFullError):
            store.open(local.shards[1])
    assert part.exists()


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cache"):
        CachedStore("http://127.0.0.1:9", RemoteConfig(cache=tmp_path / "file" / "cache"))


def test_a_server_that_vanishes_is_named_and_what_was_fetched_stays(local, config):
    with serving(local.store.folder) as server:
        own = ShardReader(ShardIndex.open(server.address, config))
        here, there = (int(rows_of_shard(local, shard)[0]) for shard in (0, 1))
        own.read(here)
    assert own.read(here + 1).tobytes() == ShardReader(local).read(here + 1).tobytes()
    with pytest.raises(InputError, match=rf"{local.shards[1].name}\b"):
        own.read(there)


def test_a_reader_waits_for_another_to_leave_its_window(local, server, config):
    """As two ranks of a node: what one still holds cannot be removed until it has gone on."""
    store = open_store(server.address, config)
    index = dataclasses.replace(local, store=store)
    ahead, behind = ShardReader(index), ShardReader(index)
    rows = [int(rows_of_shard(local, shard)[0]) for shard in (0, 1)]
    behind.read(rows[0])
    limit = max(local.shards[0].size, local.shards[1].size) + 1
    small = CachedStore(server.address, config.model_copy(update={"limit_gib": limit / GIB}))
    ahead.index = dataclasses.replace(local, store=small)
    left = threading.Event()

    def leave() -> None:
        left.set()
        behind.keep_only(np.array([1]))

    leaving = threading.Timer(0.5, leave)
    leaving.start()
    assert ahead.read(rows[1]).tobytes() == ShardReader(local).read(rows[1]).tobytes()
    assert left.is_set(), "it had to wait"
    leaving.join()


def test_a_reader_does_not_wait_for_ever(local, server, config, monkeypatch):
    monkeypatch.setattr(reader, "WAIT_FOR_ROOM_S", 0.2)
    small = CachedStore(server.address, config.model_copy(update={"limit_gib": (local.shards[0].size + 1) / GIB}))
    index = dataclasses.replace(local, store=small)
    holding, asking = ShardReader(index), ShardReader(index)
    holding.read(int(rows_of_shard(local, 0)[0]))
    with pytest.raises(CacheFullError, match="two windows"):
        asking.read(int(rows_of_shard(local, 1)[0]))


def test_a_local_shard_of_another_length_is_refused(local, sysu_shards_many, tmp_path):
    index = ShardIndex.open(shutil.copytree(sysu_shards_many, tmp_path / "set"))
    path = tmp_path / "set" / index.shards[0].name
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(InputError, match="changed its length"):
        ShardReader(index).read(int(rows_of_shard(local, 0)[0]))


def test_shards_are_fetched_ahead(local, server, config):
    ahead = FetchAhead(ShardReader(ShardIndex.open(server.address, config)))
    ahead.want(np.array([0, 1]))
    wanted = {f"{local.shards[shard].sha256}.whole" for shard in (0, 1)}
    wait_until(lambda: wanted <= whole_files(config))
    assert local.shards[2].name not in server.asked


def test_shards_are_fetched_in_the_order_they_are_wanted(local):
    fetched: list[int] = []

    class Reader(ShardReader):
        def fetch(self, shard: int) -> None:
            fetched.append(shard)

    ahead = FetchAhead(Reader(local))
    ahead.want(np.array([3, 0, 2, 1]))
    wait_until(lambda: len(fetched) == 4)
    assert fetched == [3, 0, 2, 1]


@pytest.fixture
def hostile(sysu_shards_many, tmp_path):
    """A copy of a set, on a server that its owner means harm with."""
    folder = shutil.copytree(sysu_shards_many, tmp_path / "hostile")
    (tmp_path / "victim").mkdir()
    for suffix in ("lock", "part", "whole"):
        (tmp_path / f"victim/project.{suffix}").write_text("years")
    with serving(folder) as running:
        yield running


def refused(server, config, tmp_path) -> str:
    """The one error of opening the set and reading from it; nothing but the cache has changed by then."""
    before = {name: data for name, data in snapshot(tmp_path).items() if not name.startswith("cache")}
    with pytest.raises(InputError) as raised:
        ShardReader(ShardIndex.open(server.address, config)).read(0)
    assert {name: data for name, data in snapshot(tmp_path).items() if not name.startswith("cache")} == before
    assert not list(config.cache.glob("*.part"))
    return str(raised.value)


@pytest.mark.parametrize("name", ["../victim/project", "/etc/passwd", "..", "", "0" * 63, "0" * 64 + "\n", "A" * 64])
@pytest.mark.parametrize("where", ["shards", "columns"])
def test_a_hash_of_a_hostile_server_names_no_file(hostile, config, tmp_path, name, where):
    facts = {"shards": lambda v: v["shards"][0], "columns": lambda v: v["columns"]["shard"]}[where]
    edited(hostile.folder, lambda values: facts(values).update(sha256=name))
    assert "sha256" in refused(hostile, config, tmp_path)
    assert not any(".npy" in asked or ".tar" in asked for asked in hostile.asked)
    with pytest.raises(InputError, match="sha256"):
        open_store(hostile.address, config).open(File("x.tar", 10, name))


@pytest.mark.parametrize("name", ["../victim/project.tar", "/etc/passwd", "x-000000.tar?a=b", "file:///x-000000.tar"])
def test_a_shard_of_a_hostile_server_lies_in_its_set(hostile, config, tmp_path, name):
    edited(hostile.folder, lambda values: values["shards"][0].update(name=name))
    assert "shards.0.name" in refused(hostile, config, tmp_path)


@pytest.mark.parametrize("trouble", ["endless", "bomb"])
@pytest.mark.parametrize("name", [INDEX_FILE, "pid.npy"])
def test_endless_answers_end(hostile, config, tmp_path, monkeypatch, trouble, name):
    monkeypatch.setattr("tacaf.data.index.MOST_INDEX_BYTES", 2**22)
    hostile.trouble[name] = [trouble] * 20
    assert name in refused(hostile, config, tmp_path)
    assert sum(path.stat().st_size for path in config.cache.iterdir()) < 2**22


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/index.json", "//", "http://[", "data:,{}"]
)
@pytest.mark.parametrize("name", [INDEX_FILE, "pid.npy"])
def test_a_redirection_leads_to_no_file_of_ours(hostile, config, tmp_path, target, name):
    hostile.trouble[name] = [f"to {target}"] * 100
    refused(hostile, config, tmp_path)


@pytest.mark.parametrize("size", [2**53 - 1, 2**46, 1])
def test_a_lie_about_a_shards_size(hostile, config, tmp_path, size, monkeypatch):
    monkeypatch.setattr(reader, "WAIT_FOR_ROOM_S", 0.2)
    edited(hostile.folder, lambda values: values["shards"][0].update(bytes=size))
    refused(hostile, config.model_copy(update={"limit_gib": 2.0**19}), tmp_path)


def test_a_column_of_another_form_with_the_right_hash(hostile, config, tmp_path):
    data = (hostile.folder / "columns/pid.npy").read_bytes().replace(b"<i8", b"<f8")
    (hostile.folder / "columns/pid.npy").write_bytes(data)
    edited(hostile.folder, lambda v: v["columns"]["pid"].update(sha256=hashlib.sha256(data).hexdigest()))
    assert "pid.npy" in refused(hostile, config, tmp_path)
    (hostile.folder / "columns/pid.npy").write_bytes(b"")
    edited(hostile.folder, lambda v: v["columns"]["pid"].update(sha256=hashlib.sha256(b"").hexdigest()))
    assert "pid.npy" in refused(hostile, config, tmp_path)


def test_columns_that_contradict_the_index(hostile, config, tmp_path):
    values = np.load(hostile.folder / "columns/offset.npy")
    values[-1] = 2**40
    np.save(hostile.folder / "columns/offset.npy", values)
    data = (hostile.folder / "columns/offset.npy").read_bytes()
    edited(hostile.folder, lambda v: v["columns"]["offset"].update(sha256=hashlib.sha256(data).hexdigest()))
    assert "not inside the shard" in refused(hostile, config, tmp_path)


def test_a_lock_file_in_the_cache_is_not_emptied(local, server, config, tmp_path):
    """It may be a link of somebody else's."""
    config.cache.mkdir()
    for name in ("room.lock", f"{local.shards[0].sha256}.lock"):
        (tmp_path / name).write_text("years")
        (config.cache / name).symlink_to(tmp_path / name)
    open_store(server.address, config).open(local.shards[0]).close()
    assert {path.read_text() for path in tmp_path.glob("*.lock")} == {"years"}


@pytest.mark.parametrize("field", [{"limit_gib": float("inf")}, {"timeout_s": float("nan")}, {"attempts": 10**6}])
def test_settings_without_a_bound_are_refused(field):
    with pytest.raises(ValidationError):
        RemoteConfig(**field)


def test_a_home_folder_is_found(sysu_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").symlink_to(sysu_shards)
    assert len(ShardIndex.open("~/set")) == len(ShardIndex.open(f"file://{sysu_shards}"))


@pytest.mark.parametrize("location", ["", "a\0b", "x" * 5000, "file://", "~nobody_of_that_name/x"])
def test_a_place_that_is_none(location):
    with pytest.raises(InputError):
        ShardIndex.open(location)
