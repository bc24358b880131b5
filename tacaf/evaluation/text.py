"""Results as text: everything that determines the scores on one line, then the scores in per cent."""

from collections.abc import Sequence
from typing import Any

from tacaf.evaluation.circumstances import Origin
from tacaf.evaluation.ranking import MEASURES
from tacaf.evaluation.rerank import Reranking
from tacaf.evaluation.results import Result


def result_tables(results: Sequence[Result]) -> str:
    """Several results, separated by empty lines."""
    return "\n\n".join(map(result_table, results))


def result_table(result: Result) -> str:
    """The result as a few lines: the protocol in full, then per cent, mean ± sample standard deviation."""
    names = {name: name.replace("rank", "rank-") for name in MEASURES}
    cells = {name: cell(result, name) for name in MEASURES}
    widths = {name: max(len(cells[name]), len(names[name])) for name in MEASURES}
    lines = [
        protocol_text(result),
        "  ".join(names[name].rjust(widths[name]) for name in MEASURES),
        "  ".join(cells[name].rjust(widths[name]) for name in MEASURES),
        f"per cent; chance rank-1 {100 * result.chance_rank1:.2f}; {result.valid_queries} of {result.queries} "
        f"queries have a match; gallery {result.gallery}",
    ]
    lines += [f"note: {result.gallery_draw_note}"] if result.gallery_draw_note else []
    return "\n".join(lines + [f"warning: {text}" for text in result.warnings])


def cell(result: Result, measure: str) -> str:
    """Mean and sample standard deviation of a measure in per cent."""
    spread = result.std[measure]
    return f"{100 * result.mean[measure]:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def protocol_text(result: Result) -> str:
    """Everything that determines what the scores mean, on one line. Unknown facts are left out."""
    trials = len(result.trials)
    facts: list[Any] = [result.protocol, result.mode, result.direction]
    facts += [f"split {_first_and_last(result.split)}" if result.split is not None else None]
    facts += [_count(result.shots, "shot") if result.shots else "whole gallery"]
    facts += [f"{result.gallery_draw} draw" if result.gallery_draw else None]
    facts += [_count(trials, "trial"), result.metric]
    facts += [f"excluded: {result.exclusion}", "each pid once" if result.unique_ids else "per image"]
    facts += [f"{result.embedding or 'embedding'} {result.embedding_width} wide"]
    facts += [f"parts weighted {result.part_weight:g}" if result.part_weight not in (None, 1) else None]
    facts += [
        f"of {listed['images']} listed {side} images"
        for side, listed in (("query", result.query_list), ("gallery", result.gallery_list))
        if listed
    ]
    facts += ["flip" if result.flip else None, _reranking(result.rerank) if result.rerank else None]
    facts += [f"trained on {_training(result.trained_on)}" if result.trained_on is not None else None]
    facts += [f"seed {_first_and_last(result.seed)}" if result.seed is not None else None]
    return ", ".join(str(fact) for fact in facts if fact is not None)


def search_label(search: str, shots: int | None) -> str:
    """A mode or direction in words, with the number of shots: `all search, 10 shots`."""
    return search.replace("_", " ") + (f", {_count(shots, 'shot')}" if shots else "")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _reranking(numbers: Reranking) -> str:
    return f"re-ranked (k1 {numbers['k1']}, k2 {numbers['k2']}, lambda {numbers['lambda']})"


def _first_and_last(value: Any) -> str:
    """A value, or the first and the last of a list."""
    return f"{value[0]} to {value[-1]}" if isinstance(value, list) else str(value)


def _training(trained_on: Origin) -> str:
    """`trained_on` in words: the values of a mapping, with hashes shortened."""
    if isinstance(trained_on, list):
        splits = _first_and_last([one.get("split") for one in trained_on])
        return f"{len(trained_on)} splits, one model each: {splits}"
    if not isinstance(trained_on, dict):
        return str(trained_on)
    return " ".join(_fact_of_training(key, value) for key, value in trained_on.items())


def _fact_of_training(key: str, value: Any) -> str:
    if key == "negatives" and isinstance(value, float):
        return f"with {100 * value:g} % of the negatives"
    return str(value)[:12] if key == "sha256" else str(value)
