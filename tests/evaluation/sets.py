"""A feature set that the tests of the report's parts share: noisy copies of each identity's own direction."""

import numpy as np

from tacaf.evaluation.features import FeatureSet
from tacaf.vocabulary import Modality


def feature_set(pids: int = 6, seed: int = 0, noise: float = 1.0, width: int = 16) -> FeatureSet:
    """Two images of every pid in every SYSU-MM01 camera; noisy copies of the pid's own direction."""
    dice = np.random.default_rng(seed)
    rows = [(pid, camid, number) for pid in range(1, pids + 1) for camid in range(1, 7) for number in (1, 2)]
    pid, camid, number = np.array(rows).T
    directions = dice.normal(size=(pids + 1, width))
    codes = np.where(np.isin(camid, (3, 6)), Modality.INFRARED.code, Modality.VISIBLE.code).astype(np.uint8)
    features = (directions[pid] + noise * dice.normal(size=(len(rows), width))).astype(np.float32)
    return FeatureSet(features, pid, camid, codes, number)
