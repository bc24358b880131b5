"""Every way to start ranks: torchrun, deepspeed on one and two nodes, srun; and what goes wrong at the start."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import LIMIT_S, free_port, wait_until
from tests.train.tiny_runs import BIN, ROOT, command_of, run, steps_of

EPOCHS, STEPS = 8, 3  # long enough to be stopped on the way, also on a busy machine
MANY = (
    f"train.epochs={EPOCHS}",
    f"train.steps_per_epoch={STEPS}",
    "train.save_every_steps=6",
    "evaluation.every=4",  # how a run is started makes no difference to its scores
    "evaluation.modes=[all_search]",
)

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def begin(words: list, **extra: object) -> subprocess.Popen:
    own = {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    # what a rank in this process may have left would make every task the only rank of a run of its own
    outer = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    environment = {**outer, **own, **{name: str(value) for name, value in extra.items()}}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [str(word) for word in words], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def end(process: subprocess.Popen, status: int = 0) -> str:
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == status, out[-3000:] + err[-3000:]
    return out + err


def losses_of(folder: Path) -> list[tuple]:
    return [(step["global_step"], step["loss"], step["terms"]) for step in steps_of(folder)]


@pytest.fixture(scope="module")
def by_torchrun(sysu_shards, once) -> Path:
    def make(folder: Path) -> None:
        torchrun = [BIN / "torchrun", "--nnodes", 1, "--nproc_per_node", 2, "--master_port", free_port()]
        end(begin([*torchrun, *command_of(sysu_shards, folder, *MANY)]))

    folder = once("by_torchrun", make)
    assert len(losses_of(folder)) == EPOCHS * STEPS
    return folder


def test_two_nodes_of_a_hostfile(sysu_shards, by_torchrun, tmp_path):
    """Two launchers with addresses of their own, as on two machines; the loopback has 127.0.0.0/8."""
    hosts, folder, port = tmp_path / "hostfile", tmp_path / "run", free_port()
    hosts.write_text("127.0.0.2 slots=1\n127.0.0.3 slots=1\n")
    nodes = [
        begin(
            [
                BIN / "deepspeed",
                "--hostfile",
                hosts,
                "--no_ssh",
                "--node_rank",
                node,
                "--master_addr",
                "127.0.0.2",
                "--master_port",
                port,
                *command_of(sysu_shards, folder, *MANY),
            ]
        )
        for node in range(2)
    ]
    for node in nodes:
        end(node)
    assert losses_of(folder) == losses_of(by_torchrun)


@pytest.mark.long
def test_deepspeed_on_one_node(sysu_shards, by_torchrun, tmp_path):
    run(*command_of(sysu_shards, tmp_path / "run", *MANY), ranks=2, fork=False)
    assert losses_of(tmp_path / "run") == losses_of(by_torchrun)


FAKE_SRUN = r"""#!/bin/bash
# Stands in for srun: two tasks with Slurm's variables; their process numbers go into a file.
while [ "${1#--}" != "$1" ]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!)
done
echo "${pids[@]}" > "$FAKE/tasks"
worst=0
for pid in "${pids[@]}"; do wait "$pid"; status=$?; [ $status -gt $worst ] && worst=$status; done
exit $worst
"""
FAKE_SCONTROL = r"""#!/bin/bash
# Stands in for scontrol.
case "$1" in
    show) echo 127.0.0.1; echo another;;
    requeue) echo "$2" >> "$FAKE/requeued";;
esac
"""


@pytest.fixture
def slurm(tmp_path) -> dict:
    """The environment of a batch job, with stand-ins for Slurm's commands."""
    fake = tmp_path / "fake"
    fake.mkdir()
    job = free_port(range(20000 + os.getpid() % 10000, 40000)) - 20000  # slurm.sbatch makes its port of this number
    for name, text in (("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    return {
        "FAKE": fake,
        "PATH": f"{fake}:{BIN}:{os.environ['PATH']}",
        "SLURM_JOB_ID": job,
        "VENV": BIN.parent,
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_PER_TASK": 1,
    }


def test_a_slurm_job_is_asked_to_stop_queued_again_and_goes_on(sysu_shards, by_torchrun, tmp_path, slurm):
    folder = tmp_path / "run"
    # The script sets the run's folder itself, and --resume where there is something to resume.
    words = command_of(sysu_shards, folder, *MANY)[1:]
    job = ["bash", "launch/cluster/slurm.sbatch", folder, *words]
    with begin(job, **slurm) as first:
        wait_until(lambda: steps_of(folder), first)
        os.kill(int((slurm["FAKE"] / "tasks").read_text().split()[1]), signal.SIGUSR1)
        assert "queued again" in end(first, status=75)
    assert (slurm["FAKE"] / "requeued").read_text() == f"{slurm['SLURM_JOB_ID']}\n"
    assert len(steps_of(folder)) < EPOCHS * STEPS
    end(begin(job, **slurm))
    assert losses_of(folder) == losses_of(by_torchrun)


def test_the_slurm_script_wants_the_run_first(slurm):
    assert "expected the run folder first" in end(
        begin(["bash", "launch/cluster/slurm.sbatch", "--config", "x"], **slurm), 2
    )


def alone(*words: str, status: int = 2, **extra: object) -> str:
    """One rank of two, whose partner never comes; its only line of error."""
    started = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    said = end(begin([sys.executable, *words], **{**started, **extra}), status)
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({}, "2 ranks did not connect at 127.0.0.1:"),
        ({"RANK": 1}, "cannot reach the first rank at 127.0.0.1:"),
        ({"RANK": 1, "MASTER_ADDR": "no.such.host.invalid"}, "cannot reach the first rank at no.such.host.invalid:"),
    ],
    ids=["the others never come", "the first never comes", "an unknown host"],
)
def test_ranks_that_do_not_meet(sysu_shards, tmp_path, extra, says):
    words = command_of(sysu_shards, tmp_path / "run", "train.start_limit_s=3")
    assert says in alone(*words, **extra)
    assert not (tmp_path / "run").exists()


def test_a_port_in_use(sysu_shards, tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = alone(*command_of(sysu_shards, tmp_path / "run"), MASTER_PORT=port)
    assert "another program uses that port" in error
    assert str(port) in error


@pytest.mark.parametrize(
    "case",
    [
        # the first rank alone finds it, as it finds the second case
        pytest.param("resume in an empty folder", marks=pytest.mark.long),
        "two runs in one folder",
        "identities over ranks",
    ],
)
def test_what_one_rank_refuses_all_refuse_and_one_says(sysu_shards, tmp_path, case):
    folder = tmp_path / "run"
    more, says = {
        "resume in an empty folder": (("--resume",), "there is no run in"),
        "two runs in one folder": ((), "is being written by another process"),
        "identities over ranks": (
            ("data.plan={identities_per_batch: 6, images_per_identity: 2}",),
            "identities_per_batch",
        ),
    }[case]
    holder = None
    if case == "two runs in one folder":
        folder.mkdir()
        code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); input()"
        holder = subprocess.Popen(
            [sys.executable, "-c", code, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        holder.stdout.readline()
    try:
        done = run(*command_of(sysu_shards, folder, *more), ranks=2, check=False, fork=False)
    finally:
        if holder is not None:
            holder.communicate(b"\n")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert says in errors[0]


def test_the_example_hostfile_is_one(tmp_path):
    """DeepSpeed's own reader takes it."""
    code = "import sys; from deepspeed.launcher.runner import fetch_hostfile; print(dict(fetch_hostfile(sys.argv[1])))"
    words = [sys.executable, "-W", "ignore", "-c", code, "launch/cluster/hostfile.example"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "{'node1.example.org': 8, 'node2.example.org': 8}", done.stderr[-1000:]
