"""`python -m tacaf.evaluation score`: score feature files under a protocol."""

from tacaf.start import start

if __name__ == "__main__":
    start("tacaf.evaluation.__main__")

import argparse
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from tacaf.command import Parser, entry, program, to_path
from tacaf.documents import load_json
from tacaf.evaluation.circumstances import CIRCUMSTANCES, Circumstances
from tacaf.evaluation.features import load_features
from tacaf.evaluation.options import add_protocol_options, scoring_of, settings_of
from tacaf.evaluation.results import Result
from tacaf.evaluation.score import score_setting
from tacaf.evaluation.text import result_table
from tacaf.files import shown, write_json
from tacaf.run_files import MetricsLine, Starts
from tacaf.vocabulary import InputError

MOST_STATE_BYTES = 2**16
SCHEMAS: dict[str, type[BaseModel]] = {"result": Result, "metrics": MetricsLine, "environment": Starts}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.verb == "schema":
        print(json.dumps(SCHEMAS[args.file].model_json_schema(mode="serialization"), indent=1))
        return 0
    features = [load_features(path) for path in args.features]
    known = Circumstances.of(facts_of(args.state))
    [setting] = settings_of(args, every=False)
    result = score_setting(features, setting, scoring_of(args), known)
    if args.json is not None:
        write_json(args.json, result.as_json())
    print(result_table(result))
    return 0


def facts_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Arguments KEY=VALUE as a mapping. A value that is JSON (true, 3) is parsed; any other is text."""
    facts: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"expected --state KEY=VALUE, got {shown(pair)!r}; put an = between them")
        if key in facts:
            raise InputError(f"expected --state {shown(key)} once, got it twice; leave one out")
        facts[key] = _value_of(key, text)
    return facts


def _value_of(key: str, text: str) -> Any:
    """The parsed value if the text is JSON, otherwise the text. Raises InputError for NaN or JSON beyond the limits."""
    try:
        is_json = json.loads(text) is not None or text == "null"
    except RecursionError:
        is_json = True
    except ValueError:
        is_json = text.lstrip("-").isdigit()  # of thousands of digits
    return load_json(text.encode("utf-8", "replace"), f"--state {shown(key)}", MOST_STATE_BYTES) if is_json else text


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=program("tacaf.evaluation"), description="Score feature files of this or any other model.")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    text = "rank-k, mAP and mINP of a feature file under a protocol"
    score = verbs.add_parser(
        "score",
        help=text,
        description=f"Print {text}. The file is an .npz with the arrays features [n, d], pid, camid, modality (visible"
        " or infrared) and number (of the image in its pid and camera); docs/protocols.md describes them.",
    )
    score.add_argument(
        "--features",
        type=to_path,
        nargs="+",
        required=True,
        metavar="F.npz",
        help="feature file; for RegDB, one per split",
    )
    add_protocol_options(score, every=False)
    score.add_argument(
        "--state",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"a fact to record in the JSON; may be given several times: {', '.join(CIRCUMSTANCES)}",
    )
    score.add_argument("--json", type=to_path, help="write the result to this file")
    schema = verbs.add_parser("schema", help="print the JSON schema of a file that scoring or a run writes")
    schema.add_argument(
        "file",
        nargs="?",
        choices=tuple(SCHEMAS),
        default="result",
        help="result (the default): scores; metrics: a line of metrics.jsonl; environment: environment.json",
    )
    return parser
