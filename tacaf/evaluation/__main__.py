"""`python -m tacaf.evaluation score`: score plain feature files by a protocol."""

from tacaf.start import start

if __name__ == "__main__":
    start("tacaf.evaluation.__main__")

import argparse
import json
from collections.abc import Sequence
from typing import Any

from tacaf.command import Parser, entry, program, to_device, to_path
from tacaf.documents import load_json
from tacaf.evaluation.features import load_features
from tacaf.evaluation.protocols import PROTOCOLS, Exclusion
from tacaf.evaluation.ranking import MEASURES, METRICS
from tacaf.evaluation.rerank import Rerank
from tacaf.evaluation.score import CIRCUMSTANCES, score
from tacaf.files import shown, write_json
from tacaf.vocabulary import InputError

LISTS = ("query_list", "gallery_list")
MOST_STATE_BYTES = 2**16
MOST_NUMBER = 2**62


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when scored, 2 after one line `error: ...` on stderr."""
    _score(_parser().parse_args(argv))
    return 0


def result_table(result: dict[str, Any]) -> str:
    """The score JSON as a few lines of text: the protocol in full, then per cent, mean ± sample standard deviation."""
    names = {name: name.replace("rank", "rank-") for name in MEASURES}
    cells = {name: f"{100 * result['mean'][name]:.2f}" for name in MEASURES}
    for name in MEASURES:
        if result["std"][name] is not None:
            cells[name] += f" ± {100 * result['std'][name]:.2f}"
    widths = {name: max(len(cells[name]), len(names[name])) for name in MEASURES}
    lines = [
        protocol_text(result),
        "  ".join(names[name].rjust(widths[name]) for name in MEASURES),
        "  ".join(cells[name].rjust(widths[name]) for name in MEASURES),
        f"per cent; chance rank-1 {100 * result['chance_rank1']:.2f}; {result['valid_queries']} of {result['queries']} "
        f"queries have a match; gallery {result['gallery']}",
    ]
    lines += [f"note: {result['gallery_draw_note']}"] if result["gallery_draw_note"] else []
    return "\n".join(lines + [f"warning: {text}" for text in result.get("warnings", [])])


def protocol_text(result: dict[str, Any]) -> str:
    """Everything that decides what the figures mean, on one line. What is not known is not named."""
    facts = [result["protocol"], result["mode"], result["direction"]]
    facts += [f"split {_some(result['split'])}" if result["split"] is not None else None]
    facts += [f"{result['shots']} shot{'s' * (result['shots'] != 1)}" if result["shots"] else "whole gallery"]
    facts += [f"{result['gallery_draw']} draw" if result["gallery_draw"] else None]
    facts += [f"{len(result['trials'])} trial{'s' * (len(result['trials']) != 1)}", result["metric"]]
    facts += [f"excluded: {result['exclusion']}", "each pid once" if result["unique_ids"] else "per image"]
    facts += [f"{result['embedding'] or 'embedding'} {result['embedding_width']} wide"]
    facts += [
        f"of {result[side]['images']} listed {side.removesuffix('_list')} images" for side in LISTS if result[side]
    ]
    facts += ["flip" if result["flip"] else None, _reranking(result["rerank"])]
    facts += [f"trained on {_training(result['trained_on'])}" if result["trained_on"] is not None else None]
    facts += [f"seed {_some(result['seed'])}" if result["seed"] is not None else None]
    return ", ".join(str(fact) for fact in facts if fact is not None)


def _reranking(rerank: Any) -> str | None:
    return f"re-ranked (k1 {rerank['k1']}, k2 {rerank['k2']}, lambda {rerank['lambda']})" if rerank else None


def _some(value: Any) -> str:
    """A value, or the first and the last of several."""
    return f"{value[0]} to {value[-1]}" if isinstance(value, list) else str(value)


def _training(trained_on: Any) -> str:
    """`trained_on` as words: a mapping's values, of a hash the beginning."""
    if isinstance(trained_on, list):
        return f"{len(trained_on)} splits, a model each: " + _some([one.get("split") for one in trained_on])
    if not isinstance(trained_on, dict):
        return str(trained_on)
    return " ".join(str(value)[:12] if key == "sha256" else str(value) for key, value in trained_on.items())


def _score(args: argparse.Namespace) -> None:
    result = score(
        [load_features(path) for path in args.features],
        args.protocol,
        mode=args.mode,
        direction=args.direction,
        shots=args.shots,
        gallery_draw=args.gallery_draw,
        splits=args.splits,
        metric=args.metric,
        trials=args.trials,
        circumstances=_circumstances(args.state),
        unique_ids=args.unique_ids or None,
        rerank=None if args.rerank is None else Rerank.of(args.rerank),
        exclude=args.exclude,
        locations=locations_of(args.locations),
        query_list=args.query_list,
        gallery_list=args.gallery_list,
        device=args.device,
    )
    if args.json is not None:
        write_json(args.json, result)
    print(result_table(result))


def locations_of(pairs: Sequence[str]) -> dict[int, int]:
    """CAMID=LOCATION words as a map."""
    found: dict[int, int] = {}
    for pair in pairs:
        camera, _, place = pair.partition("=")
        try:
            camid, location = int(camera), int(place)
        except ValueError:
            raise InputError(
                f"expected CAMID=LOCATION in --locations, got {shown(pair)[:60]!r}; 1=1 2=2 3=2 is right"
            ) from None
        if max(abs(camid), abs(location)) >= MOST_NUMBER:
            raise InputError(f"expected numbers below 2**62 in --locations, got {shown(pair)[:60]}; number them again")
        if found.setdefault(camid, location) != location:
            raise InputError(f"expected one location for camera {camid}, got {found[camid]} and {location}; leave one")
    return found


def _circumstances(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words; a value is read as JSON where it is JSON (true, 3), else as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"expected --state KEY=VALUE, got {shown(pair)!r}; put an = between them")
        if key in found:
            raise InputError(f"expected --state {shown(key)} once, got it twice; leave one out")
        found[key] = _value_of(key, text)
    return found


def _value_of(key: str, text: str) -> Any:
    """JSON where it is JSON, within the limits of all that is read; else the text. InputError for NaN and the like."""
    try:
        is_json = json.loads(text) is not None or text == "null"
    except RecursionError:
        is_json = True
    except ValueError:
        is_json = text.lstrip("-").isdigit()  # of thousands of digits
    return load_json(text.encode("utf-8", "replace"), f"--state {shown(key)}", MOST_STATE_BYTES) if is_json else text


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=program("tacaf.evaluation"), description="Score plain feature files.")
    verb = parser.add_subparsers(dest="verb", required=True, parser_class=Parser).add_parser(
        "score", help="rank-k, mAP and mINP of a feature file under a protocol"
    )
    add = verb.add_argument
    add(
        "--features",
        type=to_path,
        nargs="+",
        required=True,
        metavar="F.npz",
        help="RegDB takes one file per split",
    )
    add("--protocol", required=True, choices=tuple(PROTOCOLS))
    add("--mode", help="sysu_mm01: all_search (default) or indoor_search")
    add("--direction", help="other protocols: visible_to_infrared, infrared_to_visible; generic: within one, too")
    add("--shots", type=int, default=1, help="gallery images per pid and camera (1 or 10)")
    add("--metric", default="cosine", choices=METRICS)
    add("--gallery-draw", help="official (default where rand_perm_cam.mat is found in --splits) or literature")
    add("--splits", type=to_path, help="rand_perm_cam.mat, its folder, or the folder above exp")
    add("--trials", type=int, default=10, help="gallery draws")
    add("--unique-ids", action="store_true", help="count each pid once in rank-k where the protocol leaves that open")
    add("--rerank", nargs="*", metavar="K1 K2 LAMBDA", help="k-reciprocal re-ranking; 20 6 0.3 where left out")
    add("--exclude", choices=[one.word for one in Exclusion], help="generic: out of a query's list (default none)")
    add("--locations", nargs="+", default=[], metavar="CAMID=LOCATION", help="for --exclude location")
    add("--query-list", type=to_path, metavar="FILE", help="generic: keys of the images that ask, one a line")
    add("--gallery-list", type=to_path, metavar="FILE", help="generic: keys of the images that answer")
    add("--device", type=to_device, default="cpu", help="cuda multiplies on the GPU")
    add(
        "--state",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"a fact for the JSON: {', '.join(CIRCUMSTANCES)}",
    )
    add("--json", type=to_path, help="write the result there")
    return parser
