"""The README's picture: a WebP with every match; what is no infrared test image is refused by name."""

import io

import numpy as np
import pytest
from PIL import Image

from perf import readme_picture
from tests.train.finished import write_model


@pytest.fixture(scope="module")
def run(tmp_path_factory, sysu_shards):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_model(folder, sysu_shards)
    return folder


def words(run, shards, out, query):
    return ["--run", str(run), "--shards", str(shards), "--out", str(out), "--query", query]


def infrared_key(shards):
    images = readme_picture.images_of_shards(readme_picture.ShardIndex.open(shards), "test")
    return images[readme_picture.Modality.INFRARED][0].name


@pytest.mark.slow
def test_the_picture_is_drawn(run, sysu_shards, tmp_path):
    out = tmp_path / "picture.webp"
    assert readme_picture.main(words(run, sysu_shards, out, infrared_key(sysu_shards))) == 0
    picture = Image.open(io.BytesIO(out.read_bytes()))
    assert picture.format == "WEBP"
    assert np.asarray(picture).std() > 10, "not empty"


def test_a_key_that_is_not_there_is_named(run, sysu_shards, tmp_path, capsys):
    assert readme_picture.main(words(run, sysu_shards, tmp_path / "picture.webp", "visible_0001_c1_0001")) == 2
    assert "visible_0001_c1_0001" in capsys.readouterr().err
    assert not (tmp_path / "picture.webp").exists()
