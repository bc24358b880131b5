"""The benchmarks are what their names say: fixed pictures, fixed identities, a set name of their own."""

import json

import numpy as np
import pytest

from shards.pedestrians import benchmarks
from shards.pedestrians.benchmarks import BENCHMARKS, FACTS
from shards.pedestrians.synth import Shot, picture, synthesise
from shards.sources import sysu_mm01
from shards.verify import verify
from tacaf.vocabulary import InputError, Modality

# Mean grey levels of the four quarters of identity 7's first visible and first infrared picture, by benchmark: the form
# that the names stand for. Another figure means other pictures: a new name, not a new figure.
QUARTERS = {
    "plain_1": [112.2, 83.7, 93.1, 90.4, 181.4, 129.3, 160.5, 141.3],
    "misaligned_1": [114.9, 84.4, 94.9, 92.8, 165.8, 131.8, 172.6, 127.4],
    "occluded_1": [112.2, 83.7, 107.8, 106.4, 181.3, 129.4, 121.3, 105.7],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_pictures_of_a_name_stay_what_they_are(name):
    benchmark = BENCHMARKS[name]
    found = []
    for modality, camid in ((Modality.VISIBLE, 1), (Modality.INFRARED, 3)):
        shot = Shot(7, camid, modality, 1, location=1 if camid == 1 else 2)
        pixels, _ = picture(benchmark.seed, shot, benchmark.height, benchmark.difficulty)
        for half in np.array_split(pixels, 2, axis=0):
            found += [float(quarter.mean()) for quarter in np.array_split(half, 2, axis=1)]
    np.testing.assert_allclose(found, QUARTERS[name], atol=0.5)


def test_a_packed_benchmark_never_bears_the_public_name(tmp_path, monkeypatch):
    small = BENCHMARKS["plain_1"].__class__(**{**vars(BENCHMARKS["plain_1"]), "identities": 8, "height": 48})
    monkeypatch.setitem(benchmarks.BENCHMARKS, "plain_1", small)
    benchmarks.make("plain_1", tmp_path / "raw", workers=1)
    assert json.loads((tmp_path / "raw" / FACTS).read_text())["difficulty"]["occlusion"] == 0.05
    packed = sysu_mm01.pack(tmp_path / "raw", tmp_path / "shards")
    assert packed.index.name == "tacaf_plain_1"
    assert (tmp_path / "shards" / "tacaf_plain_1-000000.tar").is_file()
    assert verify(tmp_path / "shards") == []


def test_identities_are_disjoint_and_as_many_as_promised():
    for benchmark in BENCHMARKS.values():
        assert benchmark.identities * 6 // 10 >= 200
        assert benchmark.identities // 5 >= 100


def test_other_facts_are_refused(tmp_path):
    synthesise(tmp_path / "raw", identities=8, height=48, images_per_camera=1, workers=1)
    assert benchmarks.set_name(tmp_path / "raw") is None
    (tmp_path / "raw" / FACTS).write_text('{"name": "plain_1", "seed": 1}')
    with pytest.raises(InputError, match="benchmark"):
        sysu_mm01.pack(tmp_path / "raw", tmp_path / "shards")


def test_a_changed_generator_needs_a_new_name(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "GENERATOR_VERSION", 99)
    with pytest.raises(InputError, match=r"version 1, .*99"):
        benchmarks.make("plain_1", tmp_path / "raw")
    with pytest.raises(InputError, match="plain_1"):
        benchmarks.make("nonsense", tmp_path / "raw")
