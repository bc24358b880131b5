"""The command-line options of scoring, shared by every command that scores."""

import argparse
from collections.abc import Mapping, Sequence

from tacaf.command import to_device, to_path
from tacaf.evaluation.protocols import PROTOCOLS, Exclusion
from tacaf.evaluation.ranking import METRICS
from tacaf.evaluation.rerank import Rerank
from tacaf.evaluation.setting import TRIALS, Choices, Scoring, Setting, choose_setting
from tacaf.files import shown
from tacaf.vocabulary import InputError

_LARGEST_NUMBER = 2**62


def add_protocol_options(parser: argparse.ArgumentParser, every: bool) -> None:
    """Add the options that `settings_of` and `scoring_of` read. `every`: as for `settings_of`."""
    default = "default: all of them" if every else "default: the first"
    add = parser.add_argument
    add("--protocol", required=True, choices=tuple(PROTOCOLS))
    add("--mode", help=f"sysu_mm01: all_search or indoor_search; {default}")
    add(
        "--direction",
        help="other protocols: visible_to_infrared or infrared_to_visible; generic: also within one modality, such as"
        f" visible_to_visible; {default} between the modalities",
    )
    add("--shots", type=int, help=f"sysu_mm01: 1 or 10 gallery images of each identity and camera; {default}")
    add(
        "--gallery-draw",
        choices=("official", "literature"),
        help="how the gallery is drawn (default: official if --splits is given, otherwise literature)",
    )
    add("--splits", type=to_path, help="the authors' rand_perm_cam.mat, its folder, or the folder that contains exp")
    add("--trials", type=int, default=TRIALS, help="number of gallery draws (default: %(default)s)")
    add("--metric", default="cosine", choices=METRICS, help="distance between embeddings (default: %(default)s)")
    add(
        "--unique-ids",
        action="store_true",
        help="count each identity once in rank-k, if the protocol leaves that open",
    )
    add("--rerank", nargs="*", metavar="K1 K2 LAMBDA", help="k-reciprocal re-ranking; 20 6 0.3 if no numbers are given")
    add(
        "--exclude",
        choices=[one.word for one in Exclusion],
        help="generic: which gallery images are left out of a query's list (default: none)",
    )
    add(
        "--locations",
        nargs="+",
        default=[],
        metavar="CAMID=LOCATION",
        help="for --exclude location; default: those of the shard set, if it has them",
    )
    add(
        "--query-list",
        type=to_path,
        metavar="FILE",
        help="generic: file with the keys of the query images, one per line",
    )
    add(
        "--gallery-list",
        type=to_path,
        metavar="FILE",
        help="generic: file with the keys of the gallery images, one per line",
    )
    add(
        "--device",
        type=to_device,
        default="cpu",
        help="where distances are computed: cpu or cuda (default: %(default)s)",
    )


def settings_of(
    args: argparse.Namespace, *, every: bool, own_locations: Mapping[int, int] | None = None
) -> list[Setting]:
    """The settings that the options name. Raises InputError for choices that the protocol does not have.

    every: without a named search or number of shots, use all that the protocol has instead of only the first.
    own_locations: the shard set's, used for --exclude location without --locations.
    """
    table = PROTOCOLS[args.protocol]
    named = args.mode if table.selector == "mode" else args.direction
    both_lists = args.query_list is not None and args.gallery_list is not None
    searches = table.default_searches if every and named is None and not both_lists else (named,)
    shots = (args.shots,) if args.shots is not None else (table.shots or (1,)) if every else (1,)
    locations = locations_of(args.locations)
    if args.exclude == Exclusion.LOCATION.word and not locations:
        locations = dict(own_locations or {})
    settings = []
    for search in searches:
        for number in shots:
            choices = Choices(
                mode=search if table.selector == "mode" else args.mode,
                direction=search if table.selector == "direction" else args.direction,
                shots=number,
                gallery_draw=args.gallery_draw,
                splits=args.splits,
                unique_ids=args.unique_ids or None,
                exclude=args.exclude,
                locations=locations,
                query_list=args.query_list,
                gallery_list=args.gallery_list,
            )
            settings.append(choose_setting(args.protocol, **choices))
    return settings


def scoring_of(args: argparse.Namespace) -> Scoring:
    """How features are compared, according to the options."""
    rerank = None if args.rerank is None else Rerank.of(args.rerank)
    return Scoring(metric=args.metric, trials=args.trials, rerank=rerank, device=args.device)


def locations_of(pairs: Sequence[str]) -> dict[int, int]:
    """Arguments CAMID=LOCATION as a mapping. Raises InputError for anything else, or two locations of one camera."""
    location_of: dict[int, int] = {}
    for pair in pairs:
        left, _, right = pair.partition("=")
        try:
            camid, location = int(left), int(right)
        except ValueError:
            raise InputError(
                f"expected CAMID=LOCATION in --locations, got {shown(pair)[:60]!r}; write 1=1 2=2 3=2"
            ) from None
        if max(abs(camid), abs(location)) >= _LARGEST_NUMBER:
            raise InputError(f"expected numbers below 2**62 in --locations, got {shown(pair)[:60]}; renumber them")
        if location_of.setdefault(camid, location) != location:
            raise InputError(
                f"expected one location for camera {camid} in --locations, got {location_of[camid]} and {location};"
                " leave one out"
            )
    return location_of
