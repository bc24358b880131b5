"""Attacks the software with damaged files and hostile input: python perf/boundary.py [--tries N] [--json FILE]

Files of every format are damaged at random (bits, cuts, types, nesting, huge numbers) and read by their readers;
commands get hostile arguments and signals; the web page gets hostile requests. A try is held if it is refused with one
line, or harmless. Everything is drawn from --seed, so that a finding can be reproduced.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.boundary")

import argparse
import functools
import itertools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from perf.attacks.commands import full_disk, hostile_arguments, signals
from perf.attacks.formats import Format, damaged_copy, formats, make_sound
from perf.attacks.mutations import mutate
from perf.attacks.outcome import HELD, Try, read_damaged
from perf.attacks.requests import requests
from tacaf.command import Parser, entry, to_path
from tacaf.files import write_json
from tacaf.provenance import environment

GROUPS = ("files", "arguments", "disk", "requests", "signals")
SHOWN = 40  # findings that are printed


def damage(kind: Format, workshop: Path, tries: int, seed: int) -> Iterator[Try]:
    """Read `tries` damaged copies of one file with its reader."""
    sound = workshop / kind.folder
    data, read = (sound / kind.file).read_bytes(), kind.read(sound)
    for number in range(tries):
        what, damaged = mutate(data, seed, number)
        with tempfile.TemporaryDirectory(dir=workshop) as name:
            folder = damaged_copy(sound, Path(name) / "copy", kind.file, damaged)
            one = f"{kind.file}, try {number}: {what}"
            yield read_damaged(kind.name, one, functools.partial(kind.read, folder), read, kind.sealed)


def attack(workshop: Path, tries: int, seed: int, groups: Sequence[str] = GROUPS) -> list[Try]:
    """All tries of the groups: `tries` damaged copies, spread evenly over the files, and fewer requests and signals."""
    torch.set_num_threads(1)
    make_sound(workshop)
    kinds = formats(workshop)
    each = -(-tries // len(kinds))
    attacks = {
        "files": itertools.chain.from_iterable(damage(kind, workshop, each, seed) for kind in kinds),
        "arguments": hostile_arguments(workshop),
        "disk": full_disk(workshop),
        "requests": requests(workshop, -(-tries // 20), seed),
        "signals": signals(workshop, -(-tries // 100), seed),
    }
    return list(tqdm(itertools.chain.from_iterable(attacks[group] for group in groups), disable=None, unit=" tries"))


def summary(found: Sequence[Try]) -> list[dict[str, Any]]:
    """A row for every group: the number of tries, and how they ended."""
    rows = []
    for group in dict.fromkeys(one.group for one in found):
        ends = Counter(one.verdict for one in found if one.group == group)
        rows.append({"group": group, "tries": sum(ends.values()), "held": sum(ends[end] for end in HELD), **ends})
    return rows


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=12_000, help="damaged files (default %(default)s)")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=to_path, help="usually perf/results/boundary.json")
    args = parser.parse_args(argv)
    began, facts = time.monotonic(), {"environment": environment(1), "seed": args.seed}
    workshop = Path(tempfile.mkdtemp(prefix="tacaf-boundary-"))
    try:
        found = attack(workshop, args.tries, args.seed, args.groups)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    rows, findings = summary(found), [one._asdict() for one in found if not one.held]
    held = len(found) - len(findings)
    if args.json:
        facts |= {"seconds": round(time.monotonic() - began), "tries": len(found), "held": held}
        write_json(args.json, {**facts, "groups": rows, "findings": findings})
    for row in rows:
        print(f"{row['group']:28} {row['tries']:6} tries, {row['held']:6} held")
    for one in findings[:SHOWN]:
        print(f"{one['verdict']}: {one['group']}: {one['name']}: {one['detail']}")
    print(f"{held} of {len(found)} held ({100 * held / len(found):.2f} %)")
    return 0 if not findings else 1
