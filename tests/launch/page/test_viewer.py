"""The page without a browser: galleries of sets and folders, matches, where a click lands, and refused commands."""

import socket

import numpy as np
import pytest

from launch.demo_app import main
from launch.page.viewer import PANEL, Pair, Query, Viewer, landing, position_at
from tacaf.search.album import Album
from tacaf.vocabulary import InputError, Modality
from tests.launch.page.page_server import picture


@pytest.fixture(scope="module")
def embedder(viewer):
    return viewer.embedder


def test_matches_are_the_nearest_of_the_searched_modality(viewer, embedder):
    held = viewer.album.images[Modality.VISIBLE]
    assert len(held) == 16, "as many as asked"
    query = viewer.search(picture(), Modality.INFRARED, Modality.VISIBLE)
    own_D = embedder.embed([picture()], "infrared")[0].astype(np.float64)
    others_GD = embedder.embed([one.read() for one in held], "visible").astype(np.float64)
    distance_G = [1 - float(row @ own_D) for row in others_GD]
    assert [found.distance for found in query.matches] == pytest.approx(sorted(distance_G)[:12], abs=1e-5)
    for found in query.matches:
        assert found.distance == pytest.approx(distance_G[found.place], abs=1e-5)
    assert query.pid is None
    assert not viewer.caption(query, 0).startswith(("✓", "✗")), "nobody knows who an upload shows"


def test_an_example_does_not_find_itself(viewer):
    place = viewer.examples(Modality.VISIBLE)[1]
    held = viewer.album.images[Modality.VISIBLE][place]
    within = viewer.search(held.read(), Modality.VISIBLE, Modality.VISIBLE, place)
    assert place not in [found.place for found in within.matches]
    stranger = viewer.search(held.read(), Modality.VISIBLE, Modality.VISIBLE)
    assert stranger.matches[0].place == place, "as an upload it does"
    for rank, found in enumerate(within.matches):
        same = viewer.album.images[Modality.VISIBLE][found.place].pid == held.pid
        assert viewer.caption(within, rank).startswith("✓" if same else "✗")


def test_an_image_compared_with_itself_lands_on_itself(viewer):
    place = viewer.examples(Modality.VISIBLE)[0]
    held = viewer.album.images[Modality.VISIBLE][place]
    query = viewer.search(held.read(), Modality.VISIBLE, Modality.VISIBLE)
    pair = viewer.compare(query, 0)
    np.testing.assert_allclose(pair.query_mask_L, pair.match_mask_L, atol=1e-4)
    strong = pair.query_mask_L > 0.05  # where there are features at all
    own = np.diagonal(pair.matching_LL)
    assert (own[strong] >= pair.matching_LL.max(axis=1)[strong] - 1e-4).all()
    assert pair.match_panel_HWC.shape == (PANEL, PANEL // 2, 3)


def test_a_click_frames_its_position_and_lights_where_it_lands():
    matching_LL = np.zeros((6, 6))
    matching_LL[4, 1] = 1.0
    grey = np.full((90, 60, 3), 50, np.uint8)
    pair = Pair(matching_LL, *[np.ones(6)] * 3, 3, grey)
    assert position_at(pair, 0.1, 0.7) == 4
    assert position_at(pair, 1.0, 1.0) == 5
    framed, heat = landing(Query(grey, None, None, None, None, []), pair, 4)
    changed = np.argwhere((framed != 50).any(axis=2))
    assert changed.min(axis=0).tolist() == [60, 0]
    assert changed.max(axis=0).tolist() == [89, 29]
    brightest = np.unravel_index(heat[..., 0].argmax(), (90, 60))
    assert brightest[0] < 30
    assert brightest[1] >= 30
    assert (grey == 50).all(), "the query's own picture stays"


def test_a_folder_of_unlabelled_images_with_one_that_is_none(embedder, tmp_path):
    (tmp_path / "visible" / "deep").mkdir(parents=True)
    (tmp_path / "visible" / "deep" / "a.png").write_bytes(picture())
    (tmp_path / "visible" / "b.jpg").write_text("no image")
    (tmp_path / "visible" / "c.heic").write_text("another kind")
    album = Album.open(embedder, str(tmp_path), "test", 9, 0)
    viewer = Viewer(embedder, album)
    assert [held.name for held in viewer.album.images[Modality.VISIBLE]] == ["visible/deep/a.png"]
    assert sorted(text.partition(": ")[0].rpartition("/")[2] for text in album.left_out) == ["b.jpg", "c.heic"]
    query = viewer.search(picture(), Modality.INFRARED, Modality.VISIBLE)
    assert viewer.caption(query, 0).startswith("visible/deep/a.png · ")
    with pytest.raises(InputError, match="infrared images"):
        viewer.search(picture(), Modality.VISIBLE, Modality.INFRARED)
    with pytest.raises(InputError, match="no visible image other than the query"):
        viewer.search(picture(), Modality.VISIBLE, Modality.VISIBLE, example=0)
    (tmp_path / "visible" / "deep" / "a.png").unlink()
    with pytest.raises(InputError, match=r"visible/b\.jpg|c\.heic"):
        Album.open(embedder, str(tmp_path), "test", 9, 0)


def test_what_cannot_be_started_says_why_in_one_line(untrained_run, sysu_shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            ([str(untrained_run), str(sysu_shards), "--port", port], port),
            (
                [str(untrained_run), str(sysu_shards), "--port", "0", "--host", "example.com"],
                "example.com",
            ),
            ([str(tmp_path), str(sysu_shards), "--port", "0"], "model.safetensors"),
            ([str(untrained_run), str(tmp_path), "--port", "0"], "index.json"),
            ([str(untrained_run), str(sysu_shards), "--port", "0", "--split", "tset"], "tset"),
            ([str(untrained_run), str(sysu_shards), "--port", "0", "--most", "0"], "--most"),
            ([str(untrained_run), str(sysu_shards), "--port", "0", "--seed", "-1"], "--seed"),
            ([str(untrained_run), str(sysu_shards), "--port", "0", "--device", "cuda"], "cuda"),
            ([str(untrained_run), str(sysu_shards), "--port", "0", "--device", "meta"], "--device"),
            ([str(untrained_run), str(sysu_shards), "--port", "-1"], "--port"),
            ([str(untrained_run), str(sysu_shards), "--port", "0", "--host", "a\nb"], "--port"),
            ([str(untrained_run), "", "--port", "0"], "expected a path"),
            ([str(untrained_run), "a\0b", "--port", "0"], "expected a path"),
            ([str(untrained_run), "a" * 5000, "--port", "0"], "aaa"),
        ]
        for (model, gallery, *more), says in cases:
            assert main(["--run", model, "--gallery", gallery, *more]) == 2
            error = capsys.readouterr().err
            assert says in error
            assert error.count("\n") == 1
