"""Whether a checkpoint is the user's own. Loading one uses Python's pickle, so a checkpoint from others can run code.

A checkpoint is the user's own if its files belong to the user and either of these is true:

- Its manifest is signed with the user's key, `~/.local/state/tacaf/key` (below XDG_STATE_HOME if that is set). The key
  is made at the first save and never leaves its folder. So users may move and copy their runs, and resume them on every
  machine that shares the home folder.
- It is where it was written: the same path and the same folder on the file system. This is for containers whose home
  folder is temporary.
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
    """The signature of these bytes with the user's key, which is made if there is none; None if it cannot be kept."""
    try:
        key = _own_key() or _new_key()
    except (InputError, OSError, RuntimeError):
        return None
    return hmac.digest(key, content, "sha256").hex()


def signed(content: bytes, signature: str | None) -> bool:
    """Whether the signature is that of these bytes with the user's key."""
    try:
        key = _own_key()
    except (InputError, OSError, RuntimeError):
        return False
    if key is None or signature is None:
        return False
    return hmac.compare_digest(hmac.digest(key, content, "sha256").hex(), signature)


def place_of(folder: Path) -> str:
    """A hash of a folder's location: its path and its inode number, which a copy does not share."""
    return hashlib.sha256(os.fsencode(folder.resolve()) + f"\0{folder.stat().st_ino}".encode()).hexdigest()


def stranger_of(paths: Iterable[Path]) -> str | None:
    """The first owner of these, as "user 1001", who is not the user of this process. Returns None if all are ours."""
    for path in paths:
        owner = path.stat().st_uid
        if owner != os.geteuid():
            return f"user {owner}"
    return None


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "tacaf"


def _own_key() -> bytes | None:
    """The key, or None if it is missing, damaged, or another user owns it or could read it."""
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
        existing = _own_key()  # another run may have been first
        if existing is not None:
            return existing
        path = folder / "key"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)  # `write_whole` keeps this mode
        key = secrets.token_bytes(32)
        write_whole(path, key.hex() + "\n")
        return key
