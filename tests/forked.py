"""Commands without the seconds of their imports: each is forked from a process that has imported everything already.

A training of a few steps takes 9 seconds of processor time, of which 6 are imports and 2 free what was imported. A
forked command runs the same script as `python SCRIPT` does, with the same arguments, environment, exit handlers and
status. Three things differ: modules are imported already, nothing is freed at the end, and strings have the same hashes
in every command of one test worker. Tests that send signals, measure, need a launcher, or check what is imported use a
Python of their own, and so do the trainings that others are compared with.
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tests.processes import LIMIT_S, fresh_port

ROOT = Path(__file__).parent.parent


def forkable(words: Sequence[str]) -> bool:
    """Whether `run_forked` can run these words: a script or a module, on a machine where no fork inherits a GPU."""
    return (words[0].endswith(".py") or words[0] == "-m") and not torch.cuda.is_available()


def run_forked(words: Sequence[str], *environments: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` in the repository's root to its end, once for each environment and all at the same time.

    The status is the first that is not 0; the outputs follow each other in the order of the environments.
    """
    return _server().run(words, environments)


def run_ranks(
    words: Sequence[str], ranks: int, environment: Mapping[str, str], fork: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` on so many ranks of this machine: forked, with what a launcher would set, or by torchrun."""
    if not (fork and forkable(words)):
        # without the -- torchrun takes a script's --run for its own --run-path
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--"]
        command = [sys.executable, *launcher, *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    meeting = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(fresh_port())}
    own = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks))
    return run_forked(words, *({**environment, **meeting, **one} for one in own))


class _Server:
    """The process that has imported everything, and the line to it. It ends when this process does."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "tests.fork_server"]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._one_at_a_time = threading.Lock()
        atexit.register(self._process.communicate)  # closes its input, which ends it

    def run(self, words: Sequence[str], environments: Sequence[Mapping[str, str]]) -> subprocess.CompletedProcess[str]:
        with self._one_at_a_time, tempfile.TemporaryDirectory() as folder:
            commands = [
                {"words": list(words), "environment": dict(one), "out": f"{folder}/out{i}", "err": f"{folder}/err{i}"}
                for i, one in enumerate(environments)
            ]
            self._send(commands)
            children = self._answer()
            limit = threading.Timer(LIMIT_S, _kill, [children])
            limit.start()
            try:
                statuses = self._answer()
            finally:
                limit.cancel()
            out, err = ("".join(Path(one[name]).read_text() for one in commands) for name in ("out", "err"))
        return subprocess.CompletedProcess(list(words), next(filter(None, statuses), 0), out, err)

    def _send(self, commands: list[dict]) -> None:
        self._process.stdin.write(json.dumps(commands) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> list[int]:
        line = self._process.stdout.readline()
        assert line, f"tests.fork_server ended with status {self._process.wait()}"
        return json.loads(line)


@functools.cache
def _server() -> _Server:
    return _Server()


def _kill(children: Sequence[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)
