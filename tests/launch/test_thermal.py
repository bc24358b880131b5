"""A set of 16-bit thermal images from packing to an export: contrast survives, and everybody sees the same pixels."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from launch import export, search
from launch.demo_app import main as demo_app
from launch.evaluate import main as evaluate
from launch.evaluate import scale_warnings
from shards.sources import sysu_mm01
from tacaf.data.evaluation_pipeline import EvaluationPipeline
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.reader import ShardReader
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.images import MEAN, PER_IMAGE, STD, GreyScale
from tacaf.model.file import load_model
from tacaf.report.pictures import shrink
from tacaf.search.album import Album, images_of_folder
from tacaf.search.embedder import Embedder
from tacaf.train.config import load_config
from tacaf.vocabulary import Branch, InputError, Modality
from tests.thermal import HIGH, LOW, encoded
from tests.train.finished import DEMO, write_model, write_scores
from tests.train.tiny_runs import command_of
from tests.train.tiny_runs import run as run_command

SIZE = (96, 48)  # of the model: nothing is resized
IR = Modality.INFRARED


def counts_of(path) -> np.ndarray:
    """A picture's grey levels as counts from 7,000 to 8,020."""
    with Image.open(path) as image:
        return (LOW + 4 * np.asarray(image.convert("L").resize(SIZE[::-1])).astype(np.uint16)).astype(np.uint16)


@pytest.fixture(scope="module")
def raw(raw_sysu, tmp_path_factory):
    """`raw_sysu`, its infrared images as 16-bit PNGs and TIFFs of counts from 7,000 to 8,020."""
    root = shutil.copytree(raw_sysu, tmp_path_factory.mktemp("thermal") / "raw")
    for camera, suffix, kind in (("cam3", ".png", "PNG"), ("cam6", ".tif", "TIFF")):
        for path in sorted((root / camera).rglob("*.jpg")):
            path.with_suffix(suffix).write_bytes(encoded(counts_of(path), kind))
            path.unlink()
    return root


@pytest.fixture(scope="module")
def shards(raw):
    return sysu_mm01.pack(raw, raw.with_name("set")).folder


@pytest.fixture(scope="module")
def run(shards):
    folder = shards.with_name("run")
    write_scores(folder, write_model(folder, shards))
    return folder


@pytest.fixture(scope="module")
def index(shards):
    return ShardIndex.open(shards)


@pytest.fixture(scope="module")
def rows(index):
    """Infrared rows, some of either camera."""
    return np.flatnonzero(np.asarray(index.columns["modality"]) == IR.code)[::5]


def levels(images_BCHW: torch.Tensor) -> np.ndarray:
    """Grey levels from 0 to 255 of normalised images, [B, H, W]."""
    return (255 * (images_BCHW.permute(0, 2, 3, 1).numpy() * STD + MEAN))[..., 0]


def values_of(index: ShardIndex, rows: np.ndarray) -> np.ndarray:
    """The counts as they were packed, [B, H, W]."""
    reader = ShardReader(index)
    return np.stack([np.asarray(open_bytes(reader.original(int(row)))) for row in rows]).astype(np.float64)


def open_bytes(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_contrast_survives_where_it_was_lost_before(index, rows):
    scale, values_BHW = index.scales[IR], values_of(index, rows)
    assert LOW <= values_BHW.min() < values_BHW.max() <= HIGH
    (images_BCHW,) = (images for images, _ in EvaluationPipeline(index, rows, *SIZE, batch_size=len(rows)))
    seen_BHW, old_BHW = levels(images_BCHW), (values_BHW / 257).round()
    shares_BHW = (values_BHW - scale.low) / (scale.high - scale.low)
    assert seen_BHW.std() / 255 == pytest.approx(shares_BHW.std(), rel=0.02)
    assert np.corrcoef(seen_BHW.ravel(), values_BHW.ravel())[0, 1] > 0.999
    assert seen_BHW.std() > 30 * old_BHW.std()
    assert len(np.unique(seen_BHW.round())) > 200
    assert len(np.unique(old_BHW)) <= 5


def test_training_sees_the_same_contrast(index):
    config = load_config(DEMO, [])
    plan = Plan(
        select_training(index, "trainval"),
        config.data.plan.model_copy(update={"identities_per_batch": 4, "images_per_identity": 2}),
        seed=5,
    )
    augment = config.data.augment.model_copy(update={"height": SIZE[0], "width": SIZE[1], "pad": 0, "erase": 0.0})
    batch = next(TrainingPipeline(index, TrainingSource(plan, augment)))
    infrared = batch.branch_B == Branch.INFRARED
    values_BHW = values_of(index, batch.row_B[infrared].numpy())
    scale = index.scales[IR]
    shares_BHW = (values_BHW - scale.low) / (scale.high - scale.low)
    assert levels(batch.images_BCHW[infrared]).std() / 255 > 0.5 * shares_BHW.std()


def test_a_short_training_its_scoring_and_its_model(shards, index, rows, tmp_path):
    folder = tmp_path / "run"
    run_command(*command_of(shards, folder, "train.epochs=1", "train.steps_per_epoch=2"))
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in losses if line["kind"] == "step")
    assert list((folder / "results").glob("*.json"))
    assert load_model(folder / "model.safetensors")[1].scales == index.scales
    embedder = Embedder.load(folder)
    assert embedder.scales == index.scales
    features_BD = embedder.embed([ShardReader(index).original(int(row)) for row in rows], "infrared")
    assert np.isfinite(features_BD).all()
    assert features_BD.std(axis=0).max() > 1e-4, "the people differ"


@pytest.mark.slow
def test_everybody_sees_the_same_pixels(index, rows, run, raw, tmp_path, monkeypatch):
    """The pipeline, the embedder, a search in files, a page's gallery, the export's check, the exported model."""
    reader, embedder = ShardReader(index), Embedder.load(run)
    files = [reader.original(int(row)) for row in rows]
    expected_BCHW = torch.stack([embedder.read(data, IR) for data in files])
    (pipeline_BCHW,) = (images for images, _ in EvaluationPipeline(index, rows, *SIZE, batch_size=len(rows)))
    np.testing.assert_array_equal(levels(pipeline_BCHW).round(), levels(expected_BCHW).round())
    torch.testing.assert_close(pipeline_BCHW, expected_BCHW, atol=1e-5, rtol=0)
    arrays = [np.asarray(open_bytes(data)) for data in files]
    for sources in (arrays, [Image.fromarray(array) for array in arrays], [array.astype(float) for array in arrays]):
        assert torch.equal(torch.stack([embedder.read(source, IR) for source in sources]), expected_BCHW)

    assert export.main(["--run", str(run), "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    assert export.main(["--run", str(run), "--to", "safetensors", "--out", str(tmp_path / "plain")]) == 0
    for folder in (tmp_path / "onnx", tmp_path / "plain"):
        exported = Embedder.load(folder)
        assert exported.scales == index.scales
        assert torch.equal(torch.stack([exported.read(data, IR) for data in files]), expected_BCHW)
        np.testing.assert_allclose(exported.embed(files, IR), embedder.embed(files, IR), atol=1e-4)
    checked = export._shard_images(run, embedder)[IR]
    first = np.flatnonzero(np.asarray(index.columns["modality"]) == IR.code)[: len(checked)]
    assert torch.equal(checked, torch.stack([embedder.read(reader.original(int(row)), IR) for row in first]))

    (tmp_path / "folder" / "infrared").mkdir(parents=True)
    for place, data in enumerate(files):
        (tmp_path / "folder" / "infrared" / f"{place:03d}.png").write_bytes(data)
    held = images_of_folder(tmp_path / "folder", embedder)[IR]
    assert torch.equal(torch.stack([embedder.read(one.read(), IR) for one in held]), expected_BCHW)

    seen: list[torch.Tensor] = []
    own = Embedder.embed_prepared
    monkeypatch.setattr(
        Embedder, "embed_prepared", lambda self, images, *more: seen.append(images) or own(self, images, *more)
    )
    words = ["--gallery", tmp_path / "folder", "--query", tmp_path / "folder", "--json", tmp_path / "lists.json"]
    words += ["--gallery-modality", "infrared", "--html", tmp_path / "page.html"]
    assert search.main([str(word) for word in ("--run", run, *words)]) == 0
    found_BCHW = torch.cat(seen)
    assert torch.equal(found_BCHW[: len(files)], expected_BCHW)
    assert torch.equal(found_BCHW[len(files) :], expected_BCHW)
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text()


def test_a_gallery_of_the_set_and_pictures_of_a_report_use_its_scale(index, rows, run, shards):
    gallery = Album.open(Embedder.load(run), str(shards), "test", most=99, seed=0)
    reader = ShardReader(index)
    by_key = {index.key(int(row)): reader.pixels(int(row)) for row in range(len(index))}
    for one in gallery.images[IR]:
        np.testing.assert_array_equal(one.read(), by_key[one.name])
        assert one.read().std() > 10
    with open_bytes(shrink(reader.pixels(int(rows[0])))) as small:
        assert np.asarray(small.convert("L")).std() > 10


def test_a_search_may_be_told_another_range(run, index, rows, tmp_path, capsys):
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "a.png").write_bytes(ShardReader(index).original(int(rows[0])))
    (tmp_path / "query" / "b.tif").write_bytes(ShardReader(index).original(int(rows[-1])))
    words = ["--run", run, "--gallery", tmp_path / "query", "--query", tmp_path / "query"]
    words += ["--gallery-modality", "infrared", "--json", tmp_path / "lists.json"]
    found = {}
    for name, option in {"own": [], "other": ["--thermal-range", "6000", "9000"]}.items():
        assert search.main([str(word) for word in [*words, *option]]) == 0
        found[name] = [
            one["matches"][0]["distance"] for one in json.loads((tmp_path / "lists.json").read_text())["queries"]
        ]
    assert found["own"] != found["other"]
    assert search.main([str(word) for word in [*words, "--thermal-range", "9", "8"]]) == 2
    assert "--thermal-range" in capsys.readouterr().err


def test_a_kept_index_remembers_its_range(run, index, rows, tmp_path, capsys):
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "a.png").write_bytes(ShardReader(index).original(int(rows[0])))
    words = ["--run", run, "--gallery", tmp_path / "gallery", "--gallery-modality", "infrared"]
    words = [str(word) for word in [*words, "--index", tmp_path / "people.index"]]
    assert search.main(words) == 0
    assert search.main(words) == 0
    assert search.main([*words, "--thermal-range", "6000", "9000"]) == 2
    err = capsys.readouterr().err
    assert index.scales[IR].describe() in err
    assert "6000 to 9000 (given)" in err


def test_the_page_refuses_a_wrong_range(capsys):
    assert demo_app(["--run", "x", "--gallery", "y", "--thermal-range", "2", "1"]) == 2
    assert "--thermal-range" in capsys.readouterr().err


def test_scoring_on_a_set_of_another_range_is_told(run, index, raw, tmp_path, capsys):
    card = load_model(run / "model.safetensors")[1]
    assert scale_warnings(card, index) == []
    other = sysu_mm01.pack(raw, tmp_path / "other", thermal_range=GreyScale(kind="given", low=0, high=65535)).folder
    command = ["--run", str(run), "--protocol", "sysu_mm01", "--gallery-draw", "literature", "--split", "test"]
    assert evaluate([*command, "--shards", str(other)]) == 0
    err = capsys.readouterr().err
    assert "warning: infrared" in err
    assert "0 to 65535" in err


def test_a_model_without_a_scale_says_what_to_do(sysu_shards, index, rows, tmp_path):
    """Trained on 8 bits: what fills 16 bits is taken so, what would be flat or is no count is refused."""
    write_model(tmp_path / "run", sysu_shards)
    embedder, flat = Embedder.load(tmp_path / "run"), ShardReader(index).original(int(rows[0]))
    assert embedder.scales == {}
    celsius = (np.asarray(open_bytes(flat)).astype(np.float32) - 7500) / 10
    for source in (flat, celsius, encoded(celsius, "TIFF"), celsius.astype(np.int16)):
        with pytest.raises(InputError, match=r"images\[1\].*--thermal-range"):
            embedder.embed([np.zeros((4, 4, 3), np.uint8), source], "infrared")
    filling = (np.asarray(open_bytes(flat)).astype(np.uint16) - LOW) * 64
    assert len(np.unique(embedder.pixels(filling, IR))) > 20
    seen_HWC = embedder.pixels(flat, IR, thermal_range=(LOW, HIGH))
    assert seen_HWC.std() > 10
    np.testing.assert_array_equal(Embedder.load(tmp_path / "run", thermal_range=(LOW, HIGH)).pixels(flat, IR), seen_HWC)
    assert embedder.embed([flat], "infrared", thermal_range="per-image").shape[0] == 1
    with pytest.raises(InputError, match="thermal_range"):
        embedder.embed([flat], "infrared", thermal_range=(2, 1))
    assert Embedder.load(tmp_path / "run", thermal_range="per-image").scales == {IR: PER_IMAGE}
