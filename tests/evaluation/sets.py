"""What the tests of the scoring and of the report share: a feature set, and a file of gallery permutations."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

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


def permutations_file(path: Path, tables: list[np.ndarray], **options: Any) -> None:
    """rand_perm_cam.mat with the permutations [trials, images] of the identities 1, 2, ... of camera 1."""
    cameras = np.empty((1, 1), object)
    cameras[0, 0] = np.empty((len(tables), 1), object)
    for place, table in enumerate(tables):
        cameras[0, 0][place, 0] = table
    scipy.io.savemat(path, {"other": "words", "rand_perm_cam": cameras}, **options)
