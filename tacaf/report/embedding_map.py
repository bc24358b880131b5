"""A map of embeddings: the images of a few identities, drawn by the seed, as points of a plane (t-SNE)."""

from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from tacaf.draws import Stream, permutation
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.ranking import normalise
from tacaf.vocabulary import Modality

IDENTITIES = 20  # more colours could not be distinguished
IMAGES = 8  # of an identity and modality
_DRAW_IDENTITIES, _DRAW_IMAGES = 100, 101  # steps of the report's stream
_COMPONENTS = 50  # kept before t-SNE, as its authors recommend (van der Maaten and Hinton 2008)
_FEWEST = 12  # points for which t-SNE is meaningful


class EmbeddingMap(NamedTuple):
    """Points on a plane. Only which points are near each other is meaningful, not directions or scale."""

    xy_N2: np.ndarray  # float64
    pid_N: np.ndarray
    modality_N: np.ndarray  # Modality.code
    method: str  # "t-SNE", or "principal components" if there are few points


def map_embeddings(features: FeatureSet, metric: str, seed: int) -> EmbeddingMap:
    """Map up to IDENTITIES identities with both modalities and up to IMAGES images of each, drawn by the seed."""
    # Imported here, because it takes a second and a training needs it only at its end; and before the limit of threads,
    # which applies only to libraries that are already loaded.
    import sklearn.manifold  # noqa: F401

    rows = _draw_rows(features, seed)
    with threadpool_limits(limits=1):  # for so few points, more threads are slower; and one gives the same map anywhere
        xy_N2, method = _lay_out(normalise(features.features[rows], metric).astype(np.float64), seed)
    return EmbeddingMap(xy_N2, features.pid[rows], features.modality[rows], method)


def _lay_out(points_ND: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    components_NC = _principal_components(points_ND, _COMPONENTS)
    spread = float(components_NC[:, 0].std())
    if len(points_ND) < _FEWEST or spread < 1e-9 or components_NC.shape[1] < 2:
        return np.pad(components_NC, ((0, 0), (0, 2)))[:, :2], "principal components"
    from sklearn.manifold import TSNE

    made = TSNE(
        perplexity=min(30.0, (len(points_ND) - 1) / 3), init=components_NC[:, :2] / spread * 1e-4, random_state=seed
    )
    return made.fit_transform(components_NC).astype(np.float64), "t-SNE"


def _draw_rows(features: FeatureSet, seed: int) -> np.ndarray:
    codes = [modality.code for modality in Modality]
    visible, infrared = (features.pid[features.modality == code] for code in codes)
    pids = np.intersect1d(visible, infrared)
    if not pids.size:
        pids = np.unique(features.pid)
    pids = pids[permutation(len(pids), Stream.REPORT, seed, 0, _DRAW_IDENTITIES)[:IDENTITIES]]
    rows = []
    for place, pid in enumerate(np.sort(pids).tolist()):
        for code in codes:
            own = np.flatnonzero((features.pid == pid) & (features.modality == code))
            order = permutation(len(own), Stream.REPORT, seed, 0, _DRAW_IMAGES, 2 * place + code)
            rows.append(own[order[:IMAGES]])
    return np.concatenate(rows)


def _principal_components(points_ND: np.ndarray, most: int) -> np.ndarray:
    """N x at most `most`. Each component's sign is fixed by its largest entry, so that the map does not flip."""
    centred_ND = points_ND - points_ND.mean(axis=0)
    left_NC, size_C, _ = np.linalg.svd(centred_ND, full_matrices=False)
    components_NC = (left_NC * size_C)[:, :most]
    largest_C = np.abs(components_NC).argmax(axis=0)
    sign_C = np.sign(components_NC[largest_C, np.arange(components_NC.shape[1])])
    return components_NC * np.where(sign_C == 0, 1, sign_C)
