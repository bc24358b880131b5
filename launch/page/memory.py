"""The page's memory: the latest queries of each session, within limits. Nothing is written to the disk."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from launch.page.viewer import Pair, Query

MOST_OF_SESSION = 4
MOST = 64  # about 1 MB each
AGE_S = 3600.0


class KeptQuery:
    """A query and its latest comparison with a match, because people click many points for one match."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self._last: tuple[int, Pair] | None = None

    def pair(self, rank: int, compare: Callable[[Query, int], Pair]) -> Pair:
        """The comparison with the match of this rank, computed by `compare` unless it is the latest one."""
        if self._last is None or self._last[0] != rank:
            self._last = rank, compare(self.query, rank)
        return self._last[1]


class _Entry(NamedTuple):
    since: float
    kept: KeptQuery


class Memory:
    """Queries by session and a random name; the oldest make room for new ones. Only one thread may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._clock = clock

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, session: str, kept: KeptQuery) -> str:
        """Store a query. Returns the name with which only this session can find it."""
        self.forget_old()
        own = [key for key in self._kept if key[0] == session]
        for key in own[: max(0, len(own) - MOST_OF_SESSION + 1)]:
            del self._kept[key]
        while len(self._kept) >= MOST:
            self._kept.popitem(last=False)
        name = secrets.token_urlsafe(16)
        self._kept[session, name] = _Entry(self._clock(), kept)
        return name

    def find(self, session: str, name: str) -> KeptQuery | None:
        """The query with this name in this session; None if it is no longer stored."""
        self.forget_old()
        entry = self._kept.get((session, name))
        if entry is None:
            return None
        self._kept.move_to_end((session, name))
        return entry.kept

    def forget_old(self) -> None:
        """Remove queries that are older than AGE_S."""
        until = self._clock() - AGE_S
        for key in [key for key, entry in self._kept.items() if entry.since < until]:
            del self._kept[key]
