"""Facts of the public data sets: what is derived from them, and that the protocols use them."""

import numpy as np
import pytest

from tacaf.datasets import LLCM, PUBLIC, REGDB, SYSU_MM01, own_test_split
from tacaf.evaluation.protocols import PROTOCOLS
from tacaf.vocabulary import Modality


def test_training_identities_are_of_train_with_and_without_val():
    assert {name: one.training_identities for name, one in PUBLIC.items()} == {
        "sysu_mm01": (395, 296),
        "regdb": (206,),
        "llcm": (713,),
    }


def test_cameras_and_locations_are_of_the_same_cameras():
    assert list(SYSU_MM01.modality_of_camera) == list(SYSU_MM01.locations) == [1, 2, 3, 4, 5, 6]
    assert [camid for camid, modality in SYSU_MM01.modality_of_camera.items() if modality is Modality.INFRARED] == [
        3,
        6,
    ]
    assert set(LLCM.cameras[Modality.INFRARED]) < set(LLCM.cameras[Modality.VISIBLE])


def test_every_public_set_has_its_protocol():
    assert set(PUBLIC) == set(PROTOCOLS) - {"generic"}
    assert PROTOCOLS["sysu_mm01"].location_of_camera == {3: 2}


def test_a_numbered_split_has_its_own_test_split():
    assert [own_test_split(name) for name in ("train_7", "train", "trainval")] == ["test_7", "test", "test"]
    assert own_test_split(f"train_{REGDB.numbered_splits[-1]}") == "test_10"


def test_a_modality_comes_back_from_its_code():
    codes = np.array([modality.code for modality in Modality], np.uint8)
    assert [Modality.of_code(code) for code in codes] == list(Modality)
    with pytest.raises(ValueError, match="7"):
        Modality.of_code(7)
