"""Albums: what is nearest and in which order, and what is left out, with a model that gives the pixels themselves."""

import numpy as np
import pytest
import torch

from tacaf.search.album import Album, AlbumImage
from tacaf.vocabulary import InputError, Modality

VISIBLE = Modality.VISIBLE


class Pixels:
    """An embedder whose descriptor of an image is its first row."""

    def read(self, image_D, modality):
        if image_D is None:
            raise InputError("no image")
        return torch.tensor(image_D)

    def embed_each(self, images_D, modality):
        return np.stack([*map(np.asarray, images_D)] or [np.zeros(0, np.float32)])


def album_of(*rows):
    images = [AlbumImage(f"{place}", None, lambda row=row: row) for place, row in enumerate(rows)]
    return Album.of(Pixels(), {VISIBLE: images}, left_out=["before"])


def unit(angle: float) -> list[float]:
    return [float(np.cos(angle)), float(np.sin(angle))]


def test_the_nearest_come_first_and_equal_ones_in_the_albums_order():
    album = album_of(unit(0.5), unit(0.1), unit(0.5), unit(0.0), unit(1.0))
    query_D = np.array(unit(0.0))
    assert [found.place for found in album.search(query_D, VISIBLE, 4)] == [3, 1, 0, 2]
    assert [found.place for found in album.search(query_D, VISIBLE, 4, without=3)] == [1, 0, 2, 4]
    assert [found.place for found in album.search(query_D, VISIBLE, 99)] == [3, 1, 0, 2, 4]
    assert album.search(query_D, VISIBLE, 1)[0].distance == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_read_is_named_and_nothing_left_is_an_error():
    album = album_of(unit(0), None, unit(1))
    assert [image.name for image in album.images[VISIBLE]] == ["0", "2"]
    assert album.descriptors[VISIBLE].shape == (2, 2)
    assert album.left_out == ["before", "1: no image"]
    with pytest.raises(InputError, match="before"):
        album_of(None)
