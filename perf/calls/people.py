"""Makes the set that call 4 trains on: python -m perf.calls.people --into DIR

The project's benchmark plain_1, drawn and packed on the machine itself. What is there already is kept.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shards.pedestrians import benchmarks
from shards.pedestrians.synth import synthesise
from shards.sources import sysu_mm01
from tacaf.command import Parser, entry, to_path
from tacaf.vocabulary import INDEX_FILE

BENCHMARK, SMALL_IDENTITIES = "plain_1", 40


def make(folder: Path, small: bool) -> str:
    """Draw and pack the set into folder/shards; what was made."""
    raw, packed = folder / "raw", folder / "shards"
    if (packed / INDEX_FILE).exists():
        return "the set is there already"
    for old in (raw, packed):
        shutil.rmtree(old, ignore_errors=True)
    if small:
        made = synthesise(raw, layout="sysu_mm01", identities=SMALL_IDENTITIES, seed=0, height=96, workers=1)
    else:
        made = benchmarks.make(BENCHMARK, raw)
    sysu_mm01.pack(raw, packed)
    shutil.rmtree(raw)
    return ", ".join(f"{name} {value}" for name, value in made.items())


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=to_path, required=True, metavar="DIR")
    parser.add_argument("--small", action="store_true", help="a few identities, for a rehearsal")
    args = parser.parse_args(argv)
    began = time.monotonic()
    print(f"{make(args.into, args.small)}; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
