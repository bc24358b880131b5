"""The outcome of one try: refused, harmless, or a finding."""

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tacaf.vocabulary import InputError

MOST_SECONDS = 60.0
Verdict = str  # "refused", "same", "accepted": held; "traceback", "silent", "slow", "said badly": findings
HELD = ("refused", "same", "accepted")


class Try(NamedTuple):
    """What was tried, and how it ended."""

    group: str
    name: str
    verdict: Verdict
    detail: str = ""

    @property
    def held(self) -> bool:
        return self.verdict in HELD


def read_damaged(group: str, name: str, read: Callable[[], Any], sound: Any, sealed: bool) -> Try:
    """Read a damaged file in this process.

    It is held if the reader raises an InputError of one line or returns what equals `sound`. If the file is not
    `sealed`, which means that a user writes it, any other value that passes the checks is held as well.
    """
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = read()
    except InputError as error:
        if time.monotonic() - began > MOST_SECONDS:
            return Try(group, name, "slow", f"{time.monotonic() - began:.0f} s")
        text = str(error)
        return Try(group, name, "said badly" if len(text.splitlines()) > 1 or not text else "refused", text[:300])
    except BaseException as error:  # KeyboardInterrupt too, because a damaged file must not cause one
        if isinstance(error, KeyboardInterrupt):
            raise
        return Try(group, name, "traceback", f"{type(error).__name__}: {error}"[:300])
    if found == sound:
        return Try(group, name, "same")
    if sealed:
        return Try(group, name, "silent", "another content was read without a word")
    return Try(group, name, "accepted")


def command_ended(
    group: str, name: str, status: int | None, out: str, errors: str, allowed: tuple[int, ...] = (2,)
) -> Try:
    """Judge how a command with bad input ended; it must end with an allowed status and one line of error."""
    if "Traceback (most recent call last)" in out + errors or "unexpected " in errors:
        return Try(group, name, "traceback", errors[-300:])
    if status is None:
        return Try(group, name, "slow", "it did not end")
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    if status not in allowed:
        return Try(group, name, "silent", f"status {status}: {errors[-200:]}")
    if status == 1 and not errors and out:  # `verify` prints a set's problems on standard output
        return Try(group, name, "refused", out[:300])
    if status and len(lines) != 1:
        return Try(group, name, "said badly", errors[-300:])
    return Try(group, name, "refused" if status else "accepted", lines[0][:300] if lines else "")
