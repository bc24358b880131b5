"""Notices a run that stands still or has lost a rank, ends it, and says which rank it was and where it stood.

Every rank keeps a sign of life in `<run>/ranks/`. All ranks do the same in the same order, so the ranks that others
wait for are those that have come least far.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tacaf.documents import Count, Document, read_document
from tacaf.files import reason_of, shown
from tacaf.vocabulary import InputError

EXIT_CODE = 70  # EX_SOFTWARE: a rank hangs or is gone
PERIOD_S = 1.0  # between signs
MOST_BYTES = 2**14  # of a sign
SILENT_S = 10.0  # without a new sign, a rank of another machine counts as dead


class Sign(Document):
    """A rank's sign of life."""

    rank: Count
    host: str
    pid: Count
    moves: Annotated[int, Field(ge=-1, lt=2**53, description="how many places it has come to")]
    where: str
    moved: float = Field(description="seconds since the epoch: when it came there")
    seen: float = Field(description="and when this was written")
    ended: bool

    @property
    def dead(self) -> bool:
        if self.ended:
            return False
        if self.host == socket.gethostname():
            return not Path(f"/proc/{self.pid}").exists() or _is_zombie(self.pid)
        return time.time() - self.seen > SILENT_S

    def __str__(self) -> str:
        state = "has died" if self.dead else f"has not moved for {time.time() - self.moved:.0f} s"
        return f"rank {self.rank} (process {self.pid} on {self.host}) {state}; it stood at: {self.where}"


class LostRankError(Exception):
    """Another rank has died; the text says which and where it stood."""


class Watchdog:
    """A thread that signs for this rank, and ends the process when it has not moved for `limit_s` seconds."""

    def __init__(self, run: Path, rank: int, ranks: int, limit_s: float) -> None:
        self.folder, self.rank, self.ranks, self.limit_s = run / "ranks", rank, ranks, limit_s
        self.moves, self.where, self.moved = 0, "the start", time.time()
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {shown(self.folder)}: {reason_of(error)}") from None
        self._sign()
        self.thread.start()
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        self.leaving.set()
        self.thread.join()
        self._sign(ended=True)

    def at(self, where: str) -> None:
        """The main thread has come to `where`, in words for a message. Cheap; called several times a step."""
        self.where, self.moved = where, time.time()
        self.moves += 1

    def moving(self) -> None:
        """Still at the same place, and not stuck: the next batch of an evaluation."""
        self.moved = time.time()

    def lost(self, patience_s: float = 5.0) -> str | None:
        """After an error between ranks: a line for every rank that has died, or None if all live."""
        until = time.monotonic() + patience_s
        while True:
            dead = [str(sign) for sign in self._signs() if sign.rank != self.rank and sign.dead]
            if dead or time.monotonic() > until:
                return "\n".join(dead) or None
            time.sleep(PERIOD_S / 4)

    def behind(self) -> str:
        """A line for every rank that the others wait for."""
        signs = self._signs()
        fewest = min(sign.moves for sign in signs)
        return "\n".join(str(sign) for sign in signs if sign.moves == fewest or sign.dead)

    def _watch(self) -> None:
        while not self.leaving.wait(PERIOD_S):
            self._sign()
            if time.time() - self.moved > self.limit_s:
                time.sleep(PERIOD_S)  # the others' last signs
                print(
                    f"error: expected a step forward within {self.limit_s:g} s (train.stall_limit_s), got none;"
                    f" rank {self.rank} ends the run. The others wait for:\n{self.behind()}\nSee to that machine and"
                    " go on with --resume",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_CODE)

    def _sign(self, ended: bool = False) -> None:
        sign = Sign(
            rank=self.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            moves=self.moves,
            where=self.where,
            moved=self.moved,
            seen=time.time(),
            ended=ended,
        )
        path = self.folder / f"rank-{self.rank}.json"
        temporary = path.with_name(f".{path.name}.tmp")  # no fsync, as write_whole has: it is gone in a second
        with suppress(OSError):  # a full disk ends the run by what it could not write, not by this
            temporary.write_text(json.dumps(sign.model_dump()))
            temporary.rename(path)

    def _signs(self) -> list[Sign]:
        """Of this start's ranks; one that never signed counts as not begun."""
        signs = []
        for rank in range(self.ranks):
            path = self.folder / f"rank-{rank}.json"
            try:
                signs.append(read_document(path, Sign, MOST_BYTES))
            except InputError:
                signs.append(_no_sign(rank))
        return signs


def _no_sign(rank: int) -> Sign:
    where = "before its first sign"
    return Sign(rank=rank, host="unknown host", pid=0, moves=-1, where=where, moved=0.0, seen=0.0, ended=False)


@contextmanager
def naming_lost_ranks(dog: Watchdog) -> Iterator[None]:
    """Turn the error of a collective call whose partner has died into LostRankError; any other error stays itself."""
    try:
        yield
    except RuntimeError as error:
        lost = dog.lost() if dog.ranks > 1 else None
        if lost is None:
            raise
        first = str(error).strip().splitlines()[0]
        raise LostRankError(f"{lost}\nThe others stop ({first}); go on with --resume") from None


def _is_zombie(pid: int) -> bool:
    """Dead, and not yet waited for by its launcher."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
