"""`python -m shards VERB`: make, pack, verify, inspect and change shard sets."""

from tacaf.start import start

if __name__ == "__main__":
    start("shards.__main__")

import argparse
from collections.abc import Sequence

from shards import inspect
from shards.packers import PACKERS
from shards.pedestrians import benchmarks, synth
from shards.remove import remove
from shards.sources import manifest, sysu_mm01
from shards.sources.manifest_file import MODALITIES
from shards.verify import verify
from shards.writer import PackOptions
from tacaf.command import Parser, entry, program, to_path
from tacaf.files import shown
from tacaf.images import given_scale
from tacaf.vocabulary import InputError, Modality

SYNTH_OPTIONS = {"layout": sysu_mm01.NAME, "identities": 64, "seed": 0, "images_per_camera": 4, "height": 256}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Returns 0 on success, 1 if `verify` found problems, 2 after printing `error: ...` to stderr."""
    args = _parser().parse_args(argv)
    return args.run(args)


def _synth(args: argparse.Namespace) -> int:
    if args.benchmark is not None:
        changed = [name for name, default in SYNTH_OPTIONS.items() if getattr(args, name) != default]
        if changed:
            raise InputError(
                f"expected --benchmark {args.benchmark} alone, because it fixes every other option, got --{changed[0]}"
                " too; leave one out"
            )
        made = benchmarks.make(args.benchmark, args.out, args.workers)
        print(f"{shown(args.out)}: benchmark {args.benchmark}, {_listed(made)}")
        return 0
    made = synth.synthesise(
        args.out,
        layout=args.layout,
        identities=args.identities,
        seed=args.seed,
        images_per_camera=args.images_per_camera,
        height=args.height,
        workers=args.workers,
    )
    print(f"{shown(args.out)}: {_listed(made)}")
    return 0


def _listed(made: dict[str, int | str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in made.items())


def _pack(args: argparse.Namespace) -> int:
    _, pack = PACKERS[args.data_set]
    print(pack(args.root, args.out, **_options(args)).summary())
    return 0


def _pack_manifest(args: argparse.Namespace) -> int:
    packed = manifest.pack(
        args.root,
        args.out,
        args.csv or args.jsonl,
        jsonl=args.csv is None,
        name=args.name,
        test_share=args.test_share,
        val_share=args.val_share,
        seed=args.seed,
        **_options(args),
    )
    print(packed.summary())
    return 0


def _options(args: argparse.Namespace) -> PackOptions:
    return PackOptions(
        shard_mib=args.shard_mib,
        skip_bad=args.skip_bad,
        overwrite=args.overwrite,
        workers=args.workers,
        thermal_range=given_scale(args.thermal_range, "--thermal-range"),
    )


def _verify(args: argparse.Namespace) -> int:
    problems = verify(args.shards, quick=args.quick, workers=args.workers)
    for problem in problems:
        print(problem)
    checked = "structure, columns, counts and sizes" if args.quick else "hashes, members, facts and images"
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    result = count if problems else "sound"
    print(f"{shown(args.shards)}: {result} ({checked} checked)")
    return 1 if problems else 0


def _remove(args: argparse.Namespace) -> int:
    print(remove(args.shards, args.pid).summary())
    return 0


def _inspect(args: argparse.Namespace) -> int:
    shard_set = inspect.open_set(args.shards)
    print(inspect.summary_text(shard_set))
    if args.html is not None:
        inspect.write_contact_sheet(shard_set, args.html, identities=args.identities)
        print(f"contact sheet: {shown(args.html)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program("shards"),
        description="Pack images into shards that plain WebDataset and DALI can read; check and change such shards.",
        epilog="Usual order: synth (or a real data set), pack, verify, inspect.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    _synth_parser(verbs)
    pack = verbs.add_parser(
        "pack",
        help="pack a data set's folders into shards",
        description="Pack images into shards, which hold the original bytes; the same input gives the same shards. "
        "The shard set appears in --out only when it is complete. An interrupted packing keeps its finished shards in "
        "a folder beside --out, and the same command resumes from them.",
    )
    data_sets = pack.add_subparsers(metavar="DATA_SET", dest="data_set", required=True, parser_class=Parser)
    for name, (holds, _) in PACKERS.items():
        _pack_parser(data_sets.add_parser(name, help=f"folder with {holds}"), holds)
    _manifest_parser(data_sets)
    _verify_parser(verbs)
    _inspect_parser(verbs)
    _remove_parser(verbs)
    return parser


def _synth_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    text = "write a procedural visible-infrared set in the folder layout of a public set"
    verb = verbs.add_parser("synth", help=text, description=text)
    verb.add_argument("--out", type=to_path, required=True, metavar="RAW", help="new or empty folder")
    verb.add_argument("--layout", choices=tuple(PACKERS), help="folder layout (default %(default)s)")
    verb.add_argument("--identities", type=int, metavar="N", help="number of people, 8 to 9999 (default 64)")
    verb.add_argument(
        "--benchmark",
        choices=tuple(benchmarks.BENCHMARKS),
        help="one of the fixed benchmarks, instead of --layout, --identities and the options below",
    )
    verb.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same files (default 0)")
    verb.add_argument(
        "--images-per-camera", type=int, metavar="N", help="images of each identity in each camera (default 4)"
    )
    verb.add_argument("--height", type=int, metavar="PX", help="typical image height in pixels (default 256)")
    verb.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    verb.set_defaults(run=_synth, **SYNTH_OPTIONS)


def _pack_parser(data_set: argparse.ArgumentParser, holds: str) -> None:
    data_set.add_argument("--root", type=to_path, required=True, metavar="RAW", help=f"folder with {holds}")
    data_set.add_argument("--out", type=to_path, required=True, metavar="SHARDS", help="new or empty folder")
    data_set.add_argument(
        "--overwrite", action="store_true", help="replace the shard set in --out once the new one is complete"
    )
    data_set.add_argument("--skip-bad", action="store_true", help="leave unreadable images out and list them")
    data_set.add_argument(
        "--shard-mib", type=int, default=256, metavar="N", help="size of a shard in MiB (default 256)"
    )
    data_set.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    data_set.add_argument(
        "--thermal-range",
        nargs="+",
        metavar=("LOW", "HIGH"),
        help="grey values that become black and white in infrared images of more than 8 bits, or the word per-image, "
        "which measures each image for itself (default: one range, measured from the set)",
    )
    data_set.set_defaults(run=_pack)


def _manifest_parser(data_sets: "argparse._SubParsersAction[Parser]") -> None:
    also = {
        modality: ", ".join(word for word, meant in MODALITIES.items() if meant is modality and word != modality)
        for modality in Modality
    }
    parser = data_sets.add_parser(
        "manifest",
        help="any data set, from a list of its images",
        description="Pack any data set from a list of its images. Columns (or JSON keys): path, relative to --root; "
        f"pid, a number or a name; modality, visible (also {also[Modality.VISIBLE]}) or infrared "
        f"(also {also[Modality.INFRARED]}); optionally camid, a number (0 if absent), and split: train, val or test. "
        "Other columns are ignored. Without the column split, the identities are divided into train, test and, with "
        "--val-share, val at random.",
    )
    listed = parser.add_mutually_exclusive_group(required=True)
    listed.add_argument("--csv", type=to_path, metavar="FILE", help="the list, UTF-8, with a header")
    listed.add_argument("--jsonl", type=to_path, metavar="FILE", help="the list, one JSON object per line")
    parser.add_argument("--name", help="prefix of the shards' names (default: the list's name)")
    share, seed = manifest.TEST_SHARE, manifest.SEED
    parser.add_argument(
        "--test-share", type=float, metavar="P", help=f"share of the identities that are for the test (default {share})"
    )
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="P",
        help="share of the identities that are for validation, which launch/ablate.py needs (default: none are)",
    )
    parser.add_argument("--seed", type=int, metavar="S", help=f"seed of that random division (default {seed})")
    _pack_parser(parser, "the images")
    parser.set_defaults(run=_pack_manifest)


def _verify_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    text = "check counts, hashes and images of a shard set; exit status 1 if a problem was found"
    verb = verbs.add_parser("verify", help=text, description=text)
    verb.add_argument("shards", type=to_path, metavar="SHARDS")
    verb.add_argument("--quick", action="store_true", help="structure, counts and sizes only; does not read the tars")
    verb.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    verb.set_defaults(run=_verify)


def _inspect_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    text = "show what a shard set holds, as a table and a contact sheet"
    verb = verbs.add_parser("inspect", help=text, description=text)
    verb.add_argument("shards", type=to_path, metavar="SHARDS")
    verb.add_argument("--html", type=to_path, metavar="FILE", help="write a contact sheet to FILE")
    verb.add_argument("--identities", type=int, default=12, metavar="N", help="identities on the sheet (default 12)")
    verb.set_defaults(run=_inspect)


def _remove_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    verb = verbs.add_parser(
        "remove",
        help="remove people from a shard set",
        description="Remove people from a shard set: their images, records and names. Shards without them are kept, "
        "the others are rewritten, and the new set replaces the old one in one step. This does not touch raw folders, "
        "other copies of the set or trained models.",
    )
    verb.add_argument("shards", type=to_path, metavar="SHARDS")
    verb.add_argument(
        "--pid",
        nargs="+",
        required=True,
        metavar="N",
        help="numbers, or names if the set has names; pid=N or name=N if a word could be either",
    )
    verb.set_defaults(run=_remove)
