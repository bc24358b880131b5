"""Whether a checkpoint is the user's own. Loading one goes through Python's pickle, so a stranger's could do harm.

A checkpoint is one's own if its files belong to the user and either of these holds:

- Its manifest is signed with the user's key, `~/.local/state/tacaf/key` (below XDG_STATE_HOME where that is set). It is
  made at the first save and never leaves its folder. So a run may be moved and copied by its user, and resumed on every
  machine that has the same home.
- It lies where it was written: the same path and the same folder on the file system. This is for containers whose home
  does not outlive them.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from tacaf.files import locked, read_bytes, write_whole
from tacaf.vocabulary import InputError

_KEY = re.compile(r"[0-9a-f]{64}")


def sign(content: bytes) -> str | None:
    """The signature of these bytes with the user's key, which is made where there is none; None without a home."""
    try:
        key = _own_key() or _new_key()
    except (InputError, OSError, RuntimeError):
        return None
    return hmac.digest(key, content, "sha256").hex()


def signed(content: bytes, signature: str | None) -> bool:
    """Whether the signature is of these bytes and the user's key."""
    try:
        key = _own_key()
    except (InputError, OSError, RuntimeError):
        return False
    if key is None or signature is None:
        return False
    return hmac.compare_digest(hmac.digest(key, content, "sha256").hex(), signature)


def place_of(folder: Path) -> str:
    """A hash of where a folder is: its path, and its number on the file system, which no copy of it has."""
    return hashlib.sha256(os.fsencode(folder.resolve()) + f"\0{folder.stat().st_ino}".encode()).hexdigest()


def stranger_of(paths: Iterable[Path]) -> str | None:
    """The user to whom one of these belongs, "user 1001", if it is not the user who runs this process."""
    for path in paths:
        owner = path.stat().st_uid
        if owner != os.geteuid():
            return f"user {owner}"
    return None


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "tacaf"


def _own_key() -> bytes | None:
    """The key, if it is there, whole, and no one else can read or have written it."""
    path = _folder() / "key"
    try:
        facts = path.stat()
    except OSError:
        return None
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        return None
    text = read_bytes(path, 100).decode("ascii", "replace").strip()
    return bytes.fromhex(text) if _KEY.fullmatch(text) else None


def _new_key() -> bytes:
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder / "key.lock"):
        found = _own_key()  # another run may have been first
        if found is not None:
            return found
        path = folder / "key"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)  # which `write_whole` keeps
        key = secrets.token_bytes(32)
        write_whole(path, key.hex() + "\n")
        return key
