"""The page's server on an untrained model, for all tests of the page."""

import os
import sys

import pytest

from launch.page.viewer import Viewer
from tacaf.search.album import Album
from tacaf.search.embedder import Embedder
from tests.launch.page.page_server import served


@pytest.fixture(scope="session")
def viewer(untrained_run, sysu_shards):
    embedder = Embedder.load(untrained_run)
    return Viewer(embedder, Album.open(embedder, str(sysu_shards), "test", most=16, seed=0))


@pytest.fixture(scope="module")
def page(viewer):
    pytest.importorskip("starlette", reason="pip install -e '.[app]'", exc_type=ImportError)
    pytest.importorskip("uvicorn", reason="pip install -e '.[app]'", exc_type=ImportError)
    from launch.page.app import Page

    return Page(viewer)


@pytest.fixture(scope="module")
def client(page):
    from launch.page.guard import Guard
    from launch.page.incoming import MOST_UPLOAD

    with served(Guard(page.app(), "127.0.0.1", None, MOST_UPLOAD)) as client:
        yield client.open()


@pytest.fixture
def opened():
    """Paths that this process opens or removes while the test runs."""
    paths: list[str] = []
    active = [True]

    def watch(event, args):
        if active[0] and event in ("open", "os.remove", "os.rename", "os.listdir", "os.scandir"):
            paths.append(os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else "")

    sys.addaudithook(watch)
    yield paths
    active[0] = False
