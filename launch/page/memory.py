"""What the page remembers, within limits: the latest queries of each session. Nothing is ever written to the disk."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from launch.page.viewer import Pair, Query

MOST_OF_SESSION = 4
MOST = 64  # about 1 MB each
AGE_S = 3600.0


@dataclass
class KeptQuery:
    """A query, and the match that it was compared with last."""

    query: Query
    rank: int = -1
    pair: Pair | None = None
    since: float = 0.0


class Memory:
    """Queries by session and a random name; the oldest make room for new ones. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept: OrderedDict[tuple[str, str], KeptQuery] = OrderedDict()
        self._clock = clock

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, session: str, kept: KeptQuery) -> str:
        """Remember a query; the name to find it by, in this session alone."""
        self.forget_old()
        own = [key for key in self._kept if key[0] == session]
        for key in own[: max(0, len(own) - MOST_OF_SESSION + 1)]:
            del self._kept[key]
        while len(self._kept) >= MOST:
            self._kept.popitem(last=False)
        name = secrets.token_urlsafe(16)
        kept.since = self._clock()
        self._kept[session, name] = kept
        return name

    def find(self, session: str, name: str) -> KeptQuery | None:
        """The query of that name in this session; None once it is forgotten."""
        self.forget_old()
        kept = self._kept.get((session, name))
        if kept is not None:
            self._kept.move_to_end((session, name))
        return kept

    def forget_old(self) -> None:
        """Drop the queries of more than AGE_S ago."""
        until = self._clock() - AGE_S
        for key in [key for key, kept in self._kept.items() if kept.since < until]:
            del self._kept[key]
