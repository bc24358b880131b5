"""Ranked lists for the report: queries of the first trial, drawn by seed, with their images read from the shards."""

import numpy as np

from launch.config import Config
from tacaf.data.index import ShardIndex
from tacaf.data.reader import ShardReader
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.report import Match, RankedList, choose_ranked_lists
from tacaf.evaluation.trials import make_trials

SHOWN = 10


def ranked_lists(features: FeatureSet, rows: np.ndarray, index: ShardIndex, config: Config) -> list[RankedList]:
    """The config's number of lists of what is asked first; `rows` are the index rows of the features."""
    evaluation = config.evaluation
    setting = evaluation.setting(evaluation.asked()[0])
    trial = make_trials(features, setting, 1)[0]
    reader = ShardReader(index)

    def image(row: int) -> bytes:
        return reader.read(int(rows[row])).tobytes()

    return [
        RankedList(
            image(choice.query),
            int(features.pid[choice.query]),
            [
                Match(
                    image(row),
                    int(features.pid[row]),
                    float(distance),
                    bool(features.pid[row] == features.pid[choice.query]),
                )
                for row, distance in choice.matches
            ],
        )
        for choice in choose_ranked_lists(trial, evaluation.metric, evaluation.ranked_lists, SHOWN, config.seed)
    ]
