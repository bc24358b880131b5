"""A remote set reads like a local one; the cache fetches once, checks, survives kills and keeps to its limit."""

import dataclasses
import fcntl
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from tacaf.data import reader, storage
from tacaf.data.index import ShardIndex
from tacaf.data.pipeline import FetchAhead
from tacaf.data.reader import ShardReader
from tacaf.data.storage import GIB, CachedStore, CacheFullError, File, RemoteConfig, open_store
from tacaf.vocabulary import INDEX_FILE, InputError
from tests.data.server import serving
from tests.processes import LIMIT_S, free_port, wait_until


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
    with pytest.raises(InputError, match=rf"{server.address}/{shard.name}, got .*2 attempts"):
        open_store(server.address, config.model_copy(update={"timeout_s": 0.5})).open(shard)
    assert not whole_files(config)
    assert not list(config.cache.glob("*.part"))


def test_a_missing_shard_and_a_missing_set_are_named(local, server, config):
    with pytest.raises(InputError, match="which the index names, found none"):
        open_store(server.address, config).open(File("sysu_mm01-000099.tar", 10, "0" * 64))
    with pytest.raises(InputError, match=r"found no index\.json"):
        ShardIndex.open(f"{server.address}/elsewhere", config)


def test_a_server_that_is_not_there(config):
    with pytest.raises(InputError, match="check the server"):
        ShardIndex.open(f"http://127.0.0.1:{free_port()}/set", config)


def test_an_address_nobody_reads(config):
    with pytest.raises(InputError, match="expected an address that an installed package reads, got carrier-pigeon"):
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
    with store.open(local.shards[0]), pytest.raises(CacheFullError, match=r"raise data\.remote\.limit_gib"):
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
    with pytest.raises(InputError, match="cannot write the cache"):
        CachedStore("http://127.0.0.1:9", RemoteConfig(cache=tmp_path / "file" / "cache"))


def test_a_server_that_vanishes_is_named_and_what_was_fetched_stays(local, config):
    with serving(local.store.folder) as server:
        own = ShardReader(ShardIndex.open(server.address, config))
        here, there = (int(rows_of_shard(local, shard)[0]) for shard in (0, 1))
        own.read(here)
    assert own.read(here + 1).tobytes() == ShardReader(local).read(here + 1).tobytes()
    with pytest.raises(InputError, match=rf"{local.shards[1].name}, got .*check the server"):
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
    with pytest.raises(InputError, match="the set was replaced while in use"):
        ShardReader(index).read(int(rows_of_shard(local, 0)[0]))


def test_shards_are_fetched_ahead(local, server, config):
    ahead = FetchAhead(ShardReader(ShardIndex.open(server.address, config)))
    ahead.want(np.array([0, 1]))
    wanted = {f"{local.shards[shard].sha256}.whole" for shard in (0, 1)}
    wait_until(lambda: wanted <= whole_files(config))
    assert local.shards[2].name not in server.asked
