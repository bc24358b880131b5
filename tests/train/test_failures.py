"""What goes wrong while a run is running: a rank that dies or hangs, no finite loss, no room on the disk, a signal."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tacaf.command import EXIT_LOST_RANK, EXIT_STOPPED
from tacaf.train import saving
from tacaf.train.watchdog import PERIOD_S, Watchdog
from tests.disks import fill
from tests.processes import LIMIT_S, free_port, wait_until
from tests.train.tiny_runs import ROOT, command_of, records_of, refused, start, steps_of, train


def two_ranks_of(shards: Path, folder: Path, *more: str) -> list[subprocess.Popen]:
    """Both ranks of an endless training, started without a launcher, once they are inside an epoch."""
    port, ranks = free_port(), []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in own.items()}}
        ranks.append(
            subprocess.Popen(
                [sys.executable, *command_of(shards, folder, "train.epochs=500", "evaluation.every=0", *more)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    beats = [folder / "ranks" / f"rank-{rank}.json" for rank in range(2)]
    wait_until(lambda: all(beat.exists() and '"where": "epoch' in beat.read_text() for beat in beats), *ranks)
    return ranks


@pytest.mark.parametrize(
    ("number", "state"), [(signal.SIGKILL, "has died"), (signal.SIGSTOP, "has not moved for")], ids=["dead", "hanging"]
)
def test_a_lost_rank_ends_the_run_and_is_named(sysu_shards, tmp_path, number, state):
    ranks = two_ranks_of(sysu_shards, tmp_path / "run", "train.stall_limit_s=20")
    try:
        ranks[1].send_signal(number)
        _, err = ranks[0].communicate(timeout=LIMIT_S)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert ranks[0].returncode == EXIT_LOST_RANK, err[-3000:]
    assert "Traceback" not in err
    named = {
        int(rank): (int(pid), how, place)
        for rank, pid, how, place in re.findall(r"rank (\d) \(process (\d+) on \S+\) (.*); its last place: (.*)", err)
    }
    pid, how, place = named[1]
    assert pid == ranks[1].pid
    assert how.startswith(state)
    assert re.match(r"epoch \d+, step \d|saving step \d", place)
    # The others wait for this rank alone, unless its last heartbeat came from the very place where they wait.
    assert all(other[2] == place for other in named.values()), err
    assert "--resume" in err


@pytest.mark.slow
def test_a_rank_that_moves_is_left_alone(tmp_path):
    with Watchdog(tmp_path, 0, 1, limit_s=5 * PERIOD_S) as dog:
        until = time.monotonic() + 6 * PERIOD_S
        while time.monotonic() < until:
            dog.at("place")
            time.sleep(PERIOD_S / 10)
        assert json.loads((tmp_path / "ranks" / "rank-0.json").read_text())["where"].startswith("place")
    assert json.loads((tmp_path / "ranks" / "rank-0.json").read_text())["ended"]


def test_a_rank_without_a_heartbeat_is_the_one_waited_for(tmp_path):
    with Watchdog(tmp_path, 0, 2, limit_s=60) as dog:
        dog.at("epoch 0, step 0, forward")
        assert dog.behind().startswith("rank 1")
        assert "before its first heartbeat" in dog.behind()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b'{"rank": 1}', b'{"rank": 1, "moves": "9"}', b"[" * 9999, b"x" * 2**20]
)
def test_a_heartbeat_that_cannot_be_read_counts_as_missing(tmp_path, text):
    with Watchdog(tmp_path, 0, 2, limit_s=60) as dog:
        dog.at("epoch 0, step 0, forward")
        (tmp_path / "ranks" / "rank-1.json").write_bytes(text)
        assert dog.behind().startswith("rank 1")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_that_is_no_number_stops_naming_step_terms_and_samples(sysu_shards, tmp_path, ranks):
    folder = tmp_path / "run"
    done = train(sysu_shards, folder, "optim.new_rate=1e30", ranks=ranks, check=False)
    assert done.returncode != 0
    assert "expected a finite loss and gradient" in done.stderr
    assert "Traceback" not in done.stderr
    files = list(folder.glob("nonfinite-step-*-rank-*.json"))
    assert files
    facts = json.loads(files[0].read_text())
    assert facts["samples"]
    assert all(re.match(r"(visible|infrared)_\d+_c\d_\d+$", key) for key in facts["samples"])
    assert len(steps_of(folder)) < 6


def test_steps_are_skipped_up_to_the_limit(sysu_shards, tmp_path):
    folder = tmp_path / "run"
    values = ("optim.new_rate=1e30", "evaluation.every=0", "train.on_nonfinite=skip", "train.nonfinite_limit=2")
    done = train(sysu_shards, folder, *values, check=False)
    refused(done, "the limit of 2 skipped steps is reached")
    warnings = [record["text"] for record in records_of(folder, "warning")]
    assert len([text for text in warnings if "skipped" in text]) == 2
    skipped = [step for step in steps_of(folder) if step["loss"] is None or step["gradient_norm"] is None]
    assert len(skipped) == 2


def test_a_full_disk_leaves_the_old_checkpoints_and_the_run_goes_on(sysu_shards, tmp_path):
    """A limit on the size of a file stands in for the disk: the optimiser's file does not fit."""
    folder = tmp_path / "run"
    train(sysu_shards, folder, "train.epochs=1")
    before = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    largest = max(len(data) for data in before.values())
    (folder / "model.safetensors").unlink()
    newest = max((folder / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))

    words = [sys.executable, *command_of(sysu_shards, folder, "train.epochs=1", "--resume")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"warning: checkpoint of step \d+ not saved", done.stderr)
    assert (folder / "model.safetensors").is_file()
    for path, data in before.items():
        if newest not in path.parents and path.name != "latest":
            assert path.read_bytes() == data, path
    assert not newest.exists()
    assert not list((folder / "checkpoints").glob(".tmp-*"))


def test_a_disk_that_is_full_during_the_steps_ends_the_run_in_one_line_and_it_goes_on(sysu_shards, small_disk):
    folder = small_disk / "run"
    values = ("train.epochs=500", "train.save_every_steps=3", "train.keep=1", "evaluation.every=0")
    with start(*command_of(sysu_shards, folder, *values)) as process:
        wait_until(lambda: (folder / "checkpoints" / "latest").exists(), process)
        process.send_signal(signal.SIGSTOP)  # so that it does not take the room that a save leaves for a moment
        room = fill(small_disk)
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2, err[-2000:]
    assert "Traceback" not in err
    [error] = [line for line in err.splitlines() if line.startswith("error:")]
    assert "no space left on device" in error
    assert str(folder) in error
    room.unlink()
    with start(*command_of(sysu_shards, folder, *values, "--resume")) as process:
        wait_until(lambda: len(whole_lines(folder)) > 6, process)
        process.terminate()
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == EXIT_STOPPED
    assert [step["global_step"] for step in steps_of(folder)] == list(range(1, len(steps_of(folder)) + 1))


def whole_lines(folder: Path) -> list[str]:
    """Of the metrics; the last one may be cut."""
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]


def test_a_heartbeat_that_cannot_be_written_disturbs_nothing(small_disk, capsys):
    with Watchdog(small_disk, 0, 1, limit_s=60) as dog:
        fill(small_disk)
        dog.at("place" * 2000)
        dog._beat()
        assert dog.thread.is_alive()
    assert capsys.readouterr().err == ""


def test_too_little_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    class Engine:
        module = torch.nn.Linear(1000, 1000)

        def save_checkpoint(self, *_, **__):
            raise AssertionError("nothing may be written")

    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(saving.NotSavedError, match=r"step 5.*14 MiB"):
        saving.save(Engine(), tmp_path / "checkpoints", 5, {}, keep=1)


def test_a_disk_that_fills_while_pytorch_writes_is_called_full(tmp_path):
    """PyTorch's own message is "[enforce fail at inline_container.cc] . unexpected pos 704 vs 598"."""

    class Engine:
        module = torch.nn.Linear(10, 10)

        def save_checkpoint(self, *_, **__):
            torch.save(torch.zeros(100_000), "/dev/full")

    with pytest.raises(saving.NotSavedError, match=r"step 5.*disk may be full") as problem:
        saving.save(Engine(), tmp_path / "checkpoints", 5, {}, keep=1)
    assert "inline_container" not in str(problem.value)


def test_a_signal_during_the_imports_counts(sysu_shards, tmp_path):
    folder = tmp_path / "run"
    with start(*command_of(sysu_shards, folder)) as process:
        status = Path(f"/proc/{process.pid}/status")
        wait_until(lambda: blocked(status.read_text()) >> (signal.SIGTERM - 1) & 1, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == EXIT_STOPPED, out[-2000:] + err[-2000:]
    assert "saved after step 0" in out
    assert not steps_of(folder)


def blocked(status: str) -> int:
    """The mask of signals that the system holds back from a process."""
    return int(re.search(r"SigBlk:\s*([0-9a-f]+)", status).group(1), 16)


def test_the_lock_of_a_killed_build_holds_nobody(tmp_path):
    """PyTorch's lock file stays when the process that builds DeepSpeed's op is killed."""
    built = Path(os.environ["TORCH_EXTENSIONS_DIR"]) if "TORCH_EXTENSIONS_DIR" in os.environ else None
    folder = tmp_path / "extensions"
    if built is not None and built.is_dir():
        shutil.copytree(built, folder)
    (folder / "deepspeed_shm_comm").mkdir(parents=True, exist_ok=True)
    lock = folder / "deepspeed_shm_comm" / "lock"
    lock.touch()
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "tacaf.train.engine"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stdout
    assert not lock.exists()
