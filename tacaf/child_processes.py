"""The environment of child processes: they import this source tree first, then whatever their parent can import."""

import os

from tacaf.checkout import ROOT

__all__ = ["ROOT", "child_environment"]


def child_environment(**variables: str) -> dict[str, str]:
    """A copy of our environment for a child process, with `variables` added.

    The source tree is put in front of the caller's PYTHONPATH and does not replace it, because some users install
    packages in folders that only PYTHONPATH names.
    """
    theirs = (path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(ROOT))
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(ROOT), *theirs])}
