"""Checks whether features can be those of a protocol's data set: errors, and warnings for the result."""

from collections.abc import Sequence

import numpy as np

from tacaf.evaluation.features import FeatureSet, same_features
from tacaf.evaluation.protocols import Layout, Protocol
from tacaf.evaluation.setting import one_of
from tacaf.vocabulary import InputError, Modality

_MOST_LISTED = 10  # cameras in a warning


def warnings_about(features: FeatureSet, protocol: Protocol) -> tuple[str, ...]:
    """A sentence for each reason to doubt the scores of these features.

    Reads all features once, which takes time for a large set. Raises InputError if they cannot be scored at all.
    """
    return (*_about_zeros(features, features.zero_rows()), *_about_cameras(features, protocol))


def refuse_twins(sets: Sequence[FeatureSet]) -> None:
    """Raise InputError if two sets have the same features, in any order of rows and any type: they are one split."""
    for later, one in enumerate(sets):
        for earlier in range(later):
            if same_features(one, sets[earlier]):
                raise InputError(
                    "expected one feature file per split, each from its own model, got the same features in file"
                    f" {earlier + 1} and file {later + 1}; leave one out"
                )


def check_cameras(features: FeatureSet, protocol: Protocol) -> None:
    """Raise InputError if an image's camera does not take images of its modality in the protocol's data set."""
    for modality, cameras in protocol.cameras.items():
        wrong = (features.modality == modality.code) & ~np.isin(features.camid, cameras)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"expected {modality} images from cameras {one_of(cameras)} under {protocol.name}, got camera "
                f"{features.camid[row]} in row {row}; check camid and modality, or use another protocol"
            )


def _about_zeros(features: FeatureSet, zero: np.ndarray) -> tuple[str, ...]:
    """A sentence about these rows, whose features are all zero."""
    if not zero.size:
        return ()
    row = int(zero[0])
    return (
        f"{zero.size} of {len(features)} images have features that are all zero (first row {row}: pid"
        f" {features.pid[row]}, camera {features.camid[row]}, number {features.number[row]}); their ranks are"
        " meaningless",
    )


def _about_cameras(features: FeatureSet, protocol: Protocol) -> tuple[str, ...]:
    """A sentence if the cameras cannot be those of the protocol's data set, whatever their numbers."""
    visible, infrared = (
        np.unique(features.camid[features.modality == modality.code]).tolist() for modality in Modality
    )
    if protocol.layout is Layout.ONE_A_MODALITY and max(len(visible), len(infrared)) > 1:
        expected = "one camera per modality"
    elif protocol.layout is Layout.SHARED and visible and infrared and not set(visible) & set(infrared):
        expected = "cameras that each give images of both modalities"
    else:
        return ()
    return (
        f"these features are not of the data set {protocol.name}, which has {expected}: the visible images come from"
        f" cameras {_listed(visible)}, the infrared ones from {_listed(infrared)}; do not compare the figures with"
        f" results of {protocol.name}",
    )


def _listed(cameras: Sequence[int]) -> str:
    return ", ".join(map(str, cameras[:_MOST_LISTED])) + (", ..." if len(cameras) > _MOST_LISTED else "")
