"""The commands of `tacaf`, and how one of them is started: only its module is imported, after signals are handled."""

import sys
from typing import NamedTuple, NoReturn

from tacaf.start import start


class Command(NamedTuple):
    """A command: a sentence about what it does, and how it is started."""

    text: str
    module: str
    words: tuple[str, ...] = ()  # put before the user's arguments
    signals: bool = True  # False: it handles SIGTERM and SIGUSR1 itself


COMMANDS = {
    "shards": Command("Make, pack, verify, inspect and change shard sets.", "shards.__main__"),
    "train": Command(
        "Train a model in one process; for several GPUs, run deepspeed launch/train.py.", "launch.train", signals=False
    ),
    "evaluate": Command("Score a trained model on a shard set under a protocol.", "launch.evaluate"),
    "score": Command("Score feature files of this or any other model.", "tacaf.evaluation.__main__", ("score",)),
    "schema": Command(
        "Print the JSON schema of a result, of metrics.jsonl or of environment.json.",
        "tacaf.evaluation.__main__",
        ("schema",),
    ),
    "search": Command("Find the images of a folder or an index that are nearest to a query.", "launch.search"),
    "export": Command("Export a trained model as safetensors or ONNX.", "launch.export"),
    "report": Command("Write the report of a finished run again.", "launch.report"),
    "page": Command("Serve a page for looking at a trained model.", "launch.demo_app"),
    "reproduce": Command("Train and score a data set's table, next to the published figures.", "launch.reproduce"),
    "ablate": Command("Measure what each part of the method adds, on synthetic benchmarks.", "launch.ablate"),
}


def run() -> NoReturn:
    """Start the command that the first word names; if it names none, `tacaf.__main__` prints the list or an error.

    The command finds only its own arguments in `sys.argv`, and `tacaf search` as the name of its program.
    """
    command = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is None:
        start("tacaf.__main__")
    sys.argv[:2] = ["tacaf", *command.words] if command.words else [f"tacaf {sys.argv[1]}"]
    start(command.module, command.signals)
