"""Extraction: every image once, in the order of the index, whatever the batches; each modality by its own stem."""

import numpy as np
import pytest
import torch

from tacaf.evaluation.extract import extract
from tacaf.vocabulary import InputError, Modality

COLUMNS = {
    "pid": np.array([5, 5, 6, 6, 9, 9, 9]),
    "camid": np.array([1, 3, 1, 6, 2, 3, 3]),
    "modality": np.array([0, 1, 0, 1, 0, 1, 1], np.uint8),
    "number": np.array([1, 1, 4, 2, 1, 1, 2]),
}


def embed(images: torch.Tensor, modality: Modality) -> torch.Tensor:
    """(the image's own value, which stem)."""
    return torch.stack([images[:, 0, 0, 0], torch.full((len(images),), float(modality.code))], dim=1)


def image_of(rows) -> torch.Tensor:
    return torch.as_tensor(rows, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)


@pytest.mark.parametrize("batches", [[range(7)], [[6, 0, 3], [2, 5], [1, 4]], [[6], [5, 4], [3, 2, 1, 0], [6, 6]]])
def test_the_set_is_the_same_whatever_the_batches(batches):
    found = extract(embed, [(image_of(list(b)), torch.tensor(list(b))) for b in batches], COLUMNS, np.arange(7))
    assert found.features[:, 0].tolist() == list(range(7))
    assert found.features[:, 1].tolist() == COLUMNS["modality"].tolist()
    assert found.features.dtype == np.float32
    for name in ("pid", "camid", "modality", "number"):
        assert np.array_equal(getattr(found, name), COLUMNS[name]), name


def test_a_missing_image_and_no_image_are_named():
    with pytest.raises(InputError, match=r"7 images, got 6 \(row 4"):
        extract(embed, [(image_of([0, 1, 2, 3, 5, 6]), torch.tensor([0, 1, 2, 3, 5, 6]))], COLUMNS, np.arange(7))
    with pytest.raises(InputError, match="expected images to extract features from, got none"):
        extract(embed, [], COLUMNS)
