"""The watchdog ends a run that hangs or has lost a rank, and reports which rank it was and what it was doing.

Every rank writes a heartbeat to `<run>/ranks/`. All ranks do the same things in the same order, so the ranks that the
others wait for are those with the least progress.
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

from tacaf.command import EXIT_LOST_RANK
from tacaf.documents import Count, Document, read_document
from tacaf.files import first_line, reason_of, shown
from tacaf.run_files import HEARTBEATS_FOLDER
from tacaf.vocabulary import InputError

PERIOD_S = 1.0  # between heartbeats
MOST_BYTES = 2**14  # of a heartbeat
SILENT_S = 10.0  # after this time without a heartbeat, a rank on another machine counts as dead


class Heartbeat(Document):
    """What a rank writes about itself every second."""

    rank: Count
    host: str
    pid: Count
    moves: Annotated[int, Field(ge=-1, lt=2**53, description="how many places it has reached")]
    where: str
    moved: float = Field(description="seconds since the epoch: when it reached the last place")
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
        return f"rank {self.rank} (process {self.pid} on {self.host}) {state}; its last place: {self.where}"


class LostRankError(Exception):
    """Another rank has died. The text says which one and what it was doing."""


class Watchdog:
    """A thread that writes this rank's heartbeats, and ends the process if it has not moved for `limit_s` seconds."""

    def __init__(self, run: Path, rank: int, ranks: int, limit_s: float) -> None:
        self.folder, self.rank, self.ranks, self.limit_s = run / HEARTBEATS_FOLDER, rank, ranks, limit_s
        self.moves, self.where, self.moved = 0, "the start", time.time()
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {shown(self.folder)}: {reason_of(error)}") from None
        self._beat()
        self.thread.start()
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        self.leaving.set()
        self.thread.join()
        self._beat(ended=True)

    def at(self, where: str) -> None:
        """Record that the main thread has reached `where`, text for a message. Cheap; called several times a step."""
        self.where, self.moved = where, time.time()
        self.moves += 1

    def moving(self) -> None:
        """Record progress at the same place; called after every batch of an evaluation."""
        self.moved = time.time()

    def lost(self, patience_s: float = 5.0) -> str | None:
        """After an error between ranks: a line for every rank that has died, or None if all are alive."""
        until = time.monotonic() + patience_s
        while True:
            dead = [str(one) for one in self._heartbeats() if one.rank != self.rank and one.dead]
            if dead or time.monotonic() > until:
                return "\n".join(dead) or None
            time.sleep(PERIOD_S / 4)

    def behind(self) -> str:
        """A line for every rank that the others wait for."""
        ranks = self._heartbeats()
        fewest = min(one.moves for one in ranks)
        return "\n".join(str(one) for one in ranks if one.moves == fewest or one.dead)

    def _watch(self) -> None:
        while not self.leaving.wait(PERIOD_S):
            self._beat()
            if time.time() - self.moved > self.limit_s:
                time.sleep(PERIOD_S)  # for the others' last heartbeats
                print(
                    f"error: expected progress within {self.limit_s:g} s (train.stall_limit_s), got none; rank"
                    f" {self.rank} ends the run. The others wait for:\n{self.behind()}\nCheck that machine and start"
                    " again with --resume",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_LOST_RANK)

    def _beat(self, ended: bool = False) -> None:
        heartbeat = Heartbeat(
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
        temporary = path.with_name(f".{path.name}.tmp")  # no fsync as in write_whole: it is replaced within a second
        with suppress(OSError):  # if the disk is full, other writes report it
            temporary.write_text(json.dumps(heartbeat.model_dump()))
            temporary.rename(path)

    def _heartbeats(self) -> list[Heartbeat]:
        """The heartbeats of this start's ranks; a rank without one counts as not begun."""
        heartbeats = []
        for rank in range(self.ranks):
            path = self.folder / f"rank-{rank}.json"
            try:
                heartbeats.append(read_document(path, Heartbeat, MOST_BYTES))
            except InputError:
                heartbeats.append(_not_begun(rank))
        return heartbeats


def _not_begun(rank: int) -> Heartbeat:
    where = "before its first heartbeat"
    return Heartbeat(rank=rank, host="unknown host", pid=0, moves=-1, where=where, moved=0.0, seen=0.0, ended=False)


@contextmanager
def naming_lost_ranks(dog: Watchdog) -> Iterator[None]:
    """Turn the error of a collective call whose partner has died into LostRankError; pass on any other error."""
    try:
        yield
    except RuntimeError as error:
        lost = dog.lost() if dog.ranks > 1 else None
        if lost is None:
            raise
        raise LostRankError(f"{lost}\nThe others stop ({first_line(error)}); start again with --resume") from None


def _is_zombie(pid: int) -> bool:
    """Whether the process is dead but not yet reaped by its launcher."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
