"""What forked.py starts: a process that imports what trainings import, and then becomes each command in a fork.

It imports nothing but small modules before `leave` is registered, so that `leave` is the last that a command does.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path

# What a training imports, some of it only when it builds its engine or its report.
PRELOADED = (
    "launch.train",
    "launch.evaluate",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "torch._dynamo",
    "sklearn.manifold",
    "matplotlib.backends.backend_svg",
)


def serve(statuses: list[int]) -> None:
    """For each line of commands a child each; writes their process numbers, and their statuses when all have ended.

    The server returns at the end of its input and a child at that of its command, each with its status in `statuses`.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # an import that prints must not answer
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or each child would go through all that was imported, and so copy it
    for line in sys.stdin:
        children = []
        for command in json.loads(line):
            children.append(os.fork())
            if children[-1] == 0:
                answers.close()
                become(**command, statuses=statuses)
                return
        print(json.dumps(children), file=answers, flush=True)
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(ended), file=answers, flush=True)
    statuses.append(0)


def become(words: list[str], environment: dict[str, str], out: str, err: str, statuses: list[int]) -> None:
    """In the child: be `python WORDS`, with its outputs in files."""
    for number, path in enumerate((os.devnull, out, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(environment)
    try:
        if words[0] == "-m":
            sys.argv[:] = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = words
            sys.path[0] = str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, str):
            statuses.append(end.code or 0)
        raise
    except Exception:
        sys.excepthook(*sys.exc_info())
        statuses.append(1)
    else:
        statuses.append(0)


def leave(statuses: list[int]) -> None:
    """End without freeing what was imported, which takes seconds, and which `gc.freeze` makes incomplete."""
    if statuses:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(statuses[0])


if __name__ == "__main__":
    found: list[int] = []
    atexit.register(leave, found)
    serve(found)
