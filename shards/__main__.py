"""`python -m shards VERB`: make, pack, check and look at shard sets."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from shards import inspect, llcm, regdb, synth, sysu_mm01
from shards.verify import verify
from shards.writer import Packed
from tacaf.vocabulary import InputError

# A data set with folders and lists of its own: what `--root` must hold, and its packer.
DATA_SETS: dict[str, tuple[str, Callable[..., Packed]]] = {
    sysu_mm01.NAME: ("cam1 to cam6 and exp/{train,val,test}_id.txt", sysu_mm01.pack),
    regdb.NAME: ("Visible, Thermal and idx/{train,test}_{visible,thermal}_{1..10}.txt", regdb.pack),
    llcm.NAME: ("vis, nir, test_vis, test_nir and idx/{train_vis,train_nir,test_id}.txt", llcm.pack),
}
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command as every other input error: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb: 0 when done, 1 when `verify` found problems, 2 after one line `error: ...` on stderr."""
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # disk full, no permission: the text names the file
        print(f"error: {error}; nothing was left half-written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was left half-written", file=sys.stderr)
        return INTERRUPTED


def _synth(args: argparse.Namespace) -> int:
    made = synth.synthesise(
        args.out,
        layout=args.layout,
        identities=args.identities,
        seed=args.seed,
        images_per_camera=args.images_per_camera,
        height=args.height,
        workers=args.workers,
    )
    print(f"{args.out}: {', '.join(f'{name} {value}' for name, value in made.items())}")
    return 0


def _pack(args: argparse.Namespace) -> int:
    _, pack = DATA_SETS[args.data_set]
    packed = pack(args.root, args.out, shard_mib=args.shard_mib, skip_bad=args.skip_bad, overwrite=args.overwrite)
    print(packed.summary())
    return 0


def _verify(args: argparse.Namespace) -> int:
    problems = verify(args.shards, quick=args.quick)
    for problem in problems:
        print(problem)
    checked = "structure, counts and sizes" if args.quick else "hashes, members, facts and images"
    result = f"{len(problems)} problems" if problems else "sound"
    print(f"{args.shards}: {result} ({checked} checked)")
    return 1 if problems else 0


def _inspect(args: argparse.Namespace) -> int:
    shard_set = inspect.open_set(args.shards)
    print(inspect.summary_text(shard_set))
    if args.html is not None:
        inspect.write_contact_sheet(shard_set, args.html, identities=args.identities)
        print(f"contact sheet: {args.html}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m shards",
        description="Raw image folders to WebDataset shards that plain WebDataset and DALI read.",
        epilog="Usual order: synth (or a real data set), pack, verify, inspect.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    _synth_parser(verbs)
    pack = verbs.add_parser(
        "pack",
        help="pack a data set's folders into shards",
        description="Pack a data set's own folders into shards: original bytes, the same input gives the same bytes, "
        "and nothing is left behind when it fails.",
    )
    data_sets = pack.add_subparsers(metavar="DATA_SET", dest="data_set", required=True, parser_class=_Parser)
    for name, (holds, _) in DATA_SETS.items():
        _pack_parser(data_sets.add_parser(name, help=f"folder with {holds}"), holds)
    _verify_parser(verbs)
    _inspect_parser(verbs)
    return parser


def _synth_parser(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    text = "write a procedural visible-infrared set in a public set's folder layout"
    verb = verbs.add_parser("synth", help=text, description=text)
    verb.add_argument("--out", type=Path, required=True, metavar="RAW", help="new or empty folder")
    verb.add_argument(
        "--layout", default=sysu_mm01.NAME, choices=tuple(DATA_SETS), help="folder layout (default %(default)s)"
    )
    verb.add_argument("--identities", type=int, default=64, metavar="N", help="how many people (default 64)")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same files (default 0)")
    verb.add_argument("--images-per-camera", type=int, default=4, metavar="N", help="of an identity (default 4)")
    verb.add_argument("--height", type=int, default=256, metavar="PX", help="usual image height (default 256)")
    verb.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    verb.set_defaults(run=_synth)


def _pack_parser(data_set: argparse.ArgumentParser, holds: str) -> None:
    data_set.add_argument("--root", type=Path, required=True, metavar="RAW", help=f"folder with {holds}")
    data_set.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="new or empty folder")
    data_set.add_argument(
        "--overwrite", action="store_true", help="replace the shard set in --out once the new is whole"
    )
    data_set.add_argument("--skip-bad", action="store_true", help="leave unreadable images out and list them")
    data_set.add_argument("--shard-mib", type=int, default=256, metavar="N", help="a shard's size in MiB (default 256)")
    data_set.set_defaults(run=_pack)


def _verify_parser(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    text = "check a shard set: recount, re-hash, decode; exit 1 names shard and sample"
    verb = verbs.add_parser("verify", help=text, description=text)
    verb.add_argument("shards", type=Path, metavar="SHARDS")
    verb.add_argument("--quick", action="store_true", help="structure, counts and sizes only; does not read the tars")
    verb.set_defaults(run=_verify)


def _inspect_parser(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    text = "show what a shard set holds, as a table and as a contact sheet"
    verb = verbs.add_parser("inspect", help=text, description=text)
    verb.add_argument("shards", type=Path, metavar="SHARDS")
    verb.add_argument("--html", type=Path, metavar="FILE", help="write a contact sheet, one file, to FILE")
    verb.add_argument("--identities", type=int, default=12, metavar="N", help="identities on the sheet (default 12)")
    verb.set_defaults(run=_inspect)


if __name__ == "__main__":
    # A polite kill ends like an error, so that the unfinished folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
