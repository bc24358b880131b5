"""The environment of child processes: they import this source tree first, then whatever their parent can import."""

import os

from tacaf.checkout import ROOT

__all__ = ["ROOT", "child_environment"]


def child_environment(**variables: str) -> dict[str, str]:
    """A copy of our environment for a child process, with `variables` on top.

    The source tree is put in front of the caller's PYTHONPATH and does not replace it: packages that are installed in a
    folder of their own are found through it.
    """
    theirs = (path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(ROOT))
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(ROOT), *theirs])}
