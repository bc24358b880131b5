"""Packing grey images of more than 8 bits: the range that is measured or given, and what the user is told of it."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from shards import shard_job
from shards.__main__ import main
from shards.inspect import open_set, summary_text, write_contact_sheet
from shards.remove import remove
from shards.sources import manifest, sysu_mm01
from shards.sources.record import Record
from shards.verify import verify
from tacaf.images import PER_IMAGE, GreyScale, decode, measured, sample_of
from tacaf.shard_set import read_index
from tacaf.vocabulary import InputError, Modality, Split
from tests.shards.raw import edited, image_bytes, samples, snapshot, write_sysu
from tests.test_images import colour_16
from tests.thermal import HIGH, LOW, counts, encoded, write_manifest

IR = Modality.INFRARED


def pack(root, out, infrared, **options):
    return manifest.pack(root, out, write_manifest(root, infrared), **options)


def thermal(people: int = 6, **ranges: int) -> dict[str, bytes]:
    """By turns PNG and TIFF; the test images, every second one, are warmer than the others."""
    found = {}
    for seed in range(people):
        values = counts(seed, **ranges) + np.uint16(500 * (seed % 2))
        kind = "PNG" if seed < people // 2 else "TIFF"
        found[f"{seed}.{'png' if kind == 'PNG' else 'tif'}"] = encoded(values, kind)
    return found


def test_the_range_is_measured_from_the_images_that_are_not_test_images(tmp_path):
    packed = pack(tmp_path / "raw", tmp_path / "set", thermal())
    expected = measured([sample_of(counts(seed)) for seed in (0, 2, 4)])
    assert packed.index.scales == {IR: expected}
    assert packed.warnings == ()
    assert LOW <= expected.low < LOW + 60
    assert HIGH - 60 < expected.high <= HIGH
    assert read_index(tmp_path / "set").scales == packed.index.scales
    assert verify(tmp_path / "set") == []
    kept = {facts["source"]: image for _, _, image, facts in samples(tmp_path / "set")}
    assert all(kept[name] == data for name, data in thermal().items()), "the original bytes"


def test_a_set_of_test_images_alone_is_measured_all_the_same(tmp_path):
    listed = write_manifest(tmp_path / "raw", thermal(), ("test",))
    scale = manifest.pack(tmp_path / "raw", tmp_path / "set", listed).index.scales[IR]
    assert scale.high > HIGH + 300


@pytest.mark.slow
def test_any_number_of_workers_and_an_interruption_give_the_same_bytes(tmp_path):
    raw = tmp_path / "raw"
    infrared = {name: data + bytes(2**20) for name, data in thermal(8).items()}  # an identity fills a shard of 1 MiB
    listed = write_manifest(raw, infrared)
    sets = []
    for workers in (1, 3):
        sets.append(manifest.pack(raw, tmp_path / f"set{workers}", listed, workers=workers, shard_mib=1).folder)
    last, facts = raw / "7.tif", (raw / "7.tif").stat()
    whole = last.read_bytes()
    last.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"7\.tif"):
        manifest.pack(raw, tmp_path / "again", listed, shard_mib=1)
    waiting = list((tmp_path / "again.packing" / "shards").glob("*.json"))
    assert len(waiting) >= 6
    last.write_bytes(whole)
    os.utime(last, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    sets.append(manifest.pack(raw, tmp_path / "again", listed, shard_mib=1).folder)
    first = snapshot(sets[0])
    assert IR in read_index(sets[0]).scales
    assert all(snapshot(other) == first for other in sets[1:])


def test_a_finished_shard_whose_samples_are_damaged_is_packed_again(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(counts(1), "PNG"))
    records = [Record(tmp_path / "a.png", 1, 0, IR, Split.TRAIN, 1)]
    (job,) = shard_job.plan(records, tmp_path, tmp_path, 2**40, skip_bad=False)
    done = shard_job.write_shard(job, lambda images: None)
    assert done.samples.keys() == {0}
    assert shard_job.finished(job) == done
    for samples_of in ({"99": done.samples[0]}, {"-1": done.samples[0]}, {"0": "no base64"}, {"0": "AAA"}):
        text = json.loads(done.model_dump_json()) | {"samples": samples_of}
        job.file(".json").write_text(json.dumps(text))
        assert shard_job.finished(job) is None


def test_the_user_may_give_the_range(tmp_path, capsys):
    listed = write_manifest(tmp_path / "raw", thermal())
    command = ["pack", "manifest", "--csv", str(listed), "--root", str(tmp_path / "raw")]
    assert main([*command, "--out", str(tmp_path / "given"), "--thermal-range", "7000", "8600"]) == 0
    assert read_index(tmp_path / "given").scales == {IR: GreyScale(kind="given", low=7000, high=8600)}
    assert main([*command, "--out", str(tmp_path / "each"), "--thermal-range", "per-image"]) == 0
    assert read_index(tmp_path / "each").scales == {IR: PER_IMAGE}
    assert "warning" not in capsys.readouterr().out
    for words in (["8600", "7000"], ["7000"], ["a", "b"], ["nan", "1"]):
        assert main([*command, "--out", str(tmp_path / "wrong"), "--thermal-range", *words]) == 2
        assert "--thermal-range" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_every_data_set_has_the_option(tmp_path, capsys):
    root = write_sysu(tmp_path / "raw")
    for path in (root / "cam3").rglob("*.jpg"):
        path.rename(path.with_suffix(".png"))
        path.with_suffix(".png").write_bytes(encoded(counts(1), "PNG"))
    packed = sysu_mm01.pack(root, tmp_path / "set", thermal_range=PER_IMAGE)
    assert packed.index.scales == {IR: PER_IMAGE}
    assert "infrared images of more than 8 bits: 8; of 8 bits" in packed.summary()
    for data_set in ("sysu_mm01", "regdb", "llcm", "manifest"):
        assert main(["pack", data_set, "--help"]) == 0
        assert "--thermal-range" in capsys.readouterr().out


def test_images_that_use_little_of_the_range_are_counted_and_the_first_is_named(tmp_path):
    infrared = thermal()
    infrared["1.png"] = infrared["4.tif"] = encoded(counts(9, 7500, 7540), "PNG")
    packed = pack(tmp_path / "raw", tmp_path / "set", infrared)
    (text,) = packed.warnings
    assert "less than 10% of the range" in text
    assert "2, the first is 1.png" in text
    every = pack(
        tmp_path / "raw2", tmp_path / "set2", thermal(), thermal_range=GreyScale(kind="given", low=0, high=65535)
    )
    assert "0 to 65535 (given): 6, the first is 0.png" in every.warnings[0]


def test_8_bits_beside_more_and_16_bits_in_colour_are_told(tmp_path):
    infrared = thermal(4) | {"8.png": encoded(Image.new("L", (9, 9), 7), "PNG"), "9.tif": colour_16(counts(3))}
    texts = pack(tmp_path / "raw", tmp_path / "set", infrared).warnings
    assert len(texts) == 2
    assert "more than 8 bits: 4" in texts[0]
    assert "2, the first is 8.png" in texts[0]
    assert "1, the first is 9.tif" in texts[1]


def test_a_set_of_8_bits_has_no_scale_and_a_range_for_it_is_told_to_be_idle(tmp_path):
    infrared = {f"{n}.png": image_bytes(n, "PNG") for n in range(4)}
    plain = pack(tmp_path / "raw", tmp_path / "set", infrared)
    assert plain.index.scales == {}
    assert plain.warnings == ()
    given = pack(tmp_path / "raw", tmp_path / "set2", infrared, thermal_range=PER_IMAGE)
    assert given.index.scales == {}
    assert "--thermal-range" in given.warnings[0]
    assert snapshot(tmp_path / "set") == snapshot(tmp_path / "set2")


def test_wide_visible_images_have_a_range_of_their_own(tmp_path):
    listed = write_manifest(tmp_path / "raw", thermal(4))
    for n in range(4):
        (tmp_path / "raw" / f"visible{n}.jpg").unlink()
        (tmp_path / "raw" / f"visible{n}.png").write_bytes(encoded(counts(n, 0, 4000), "PNG"))
    listed.write_text(listed.read_text().replace(".jpg", ".png"))
    scales = manifest.pack(tmp_path / "raw", tmp_path / "set", listed, thermal_range=PER_IMAGE).index.scales
    assert scales[IR] == PER_IMAGE
    assert scales[Modality.VISIBLE].kind == "measured"
    assert scales[Modality.VISIBLE].high < 4001


def test_an_image_without_a_finite_value_is_a_bad_image(tmp_path):
    infrared = thermal(4) | {"8.tif": encoded(np.full((9, 9), np.nan, np.float32), "TIFF")}
    with pytest.raises(InputError, match=r"8\.tif .*finite"):
        pack(tmp_path / "raw", tmp_path / "set", infrared)
    packed = pack(tmp_path / "raw", tmp_path / "set", infrared, skip_bad=True)
    assert [(entry.path, entry.reason) for entry in packed.index.left_out] == [("8.tif", "no finite grey value")]


def test_removing_and_replacing_keep_the_scale(tmp_path):
    packed = pack(tmp_path / "raw", tmp_path / "set", thermal())
    remove(tmp_path / "set", ["2"])
    assert read_index(tmp_path / "set").scales == packed.index.scales
    assert verify(tmp_path / "set") == []
    again = pack(tmp_path / "raw", tmp_path / "set", thermal(), overwrite=True, thermal_range=PER_IMAGE)
    assert again.index.scales == {IR: PER_IMAGE}
    assert verify(tmp_path / "set") == []


def test_inspect_shows_the_range_and_pictures_that_use_it(tmp_path, monkeypatch):
    packed = pack(tmp_path / "raw", tmp_path / "set", thermal())
    scale, seen = packed.index.scales[IR], []
    monkeypatch.setattr("shards.inspect.decode", lambda data, scale: seen.append(scale) or decode(data, scale))
    shard_set = open_set(tmp_path / "set")
    assert scale.describe() in summary_text(shard_set)
    write_contact_sheet(shard_set, tmp_path / "sheet.html")
    assert f"{scale.low:g} to {scale.high:g} (measured)" in (tmp_path / "sheet.html").read_text()
    assert seen.count(scale) == 6
    assert seen.count(None) == 6


def test_a_set_from_before_there_were_ranges_is_told(tmp_path):
    folder = pack(tmp_path / "raw", tmp_path / "set", {f"{n}.png": encoded(counts(n), "PNG") for n in range(4)}).folder
    edited(folder, scales={})
    assert "0 to 65535 (packed before" in summary_text(open_set(folder))
    assert verify(folder) == []


def test_verify_reads_grey_values_as_the_trainer_does(tmp_path):
    """A float has no meaning without a range: a set that lost it is not sound."""
    folder = pack(tmp_path / "raw", tmp_path / "set", {f"{n}.tif": floats(n) for n in range(4)}).folder
    assert verify(folder) == []
    edited(folder, scales={})
    problems = verify(folder)
    assert len(problems) == 4
    assert all("range is unknown" in problem for problem in problems)


def floats(seed: int) -> bytes:
    return encoded((counts(seed) / 10).astype(np.float32), "TIFF")
