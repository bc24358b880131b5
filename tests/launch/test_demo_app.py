"""The page in a real browser, as a person uses it: upload, matches, click, wrong file; nothing leaves the machine."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlparse

import pytest

from tests.launch.page.page_server import Client
from tests.processes import LIMIT_S
from tests.train.finished import write_model

ROOT = Path(__file__).parent.parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, sysu_shards):
    pytest.importorskip("starlette", reason="pip install -e '.[app]'", exc_type=ImportError)
    pytest.importorskip("uvicorn", reason="pip install -e '.[app]'", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("page") / "run"
    write_model(folder, sysu_shards)
    return folder


@contextmanager
def started(run, shards, folder, number, *options):
    """(address, folder for temporary files) of the page, ended by this signal: one line, and nothing left behind."""
    (folder / "tmp").mkdir()
    command = ["launch/demo_app.py", "--run", run, "--gallery", shards, "--port", "0", "--most", "16", *options]
    folders = {"TMPDIR": str(folder / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    environment = {**os.environ, **folders, "OMP_NUM_THREADS": "1"}
    log = (folder / "log").open("w+")
    with (
        log,
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout
            address = next((line.split("page: ")[1].split()[0] for line in process.stdout if "page: " in line), None)
            assert address, (folder / "log").read_text()
            yield address, folder / "tmp"
        finally:
            process.send_signal(number)
            status = process.wait(timeout=LIMIT_S)
    assert status == 128 + number
    assert not list((folder / "tmp").iterdir())
    assert len((folder / "log").read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def app(run, tmp_path_factory, sysu_shards):
    with started(run, sysu_shards, tmp_path_factory.mktemp("app"), signal.SIGTERM) as found:
        yield found


@pytest.fixture(scope="module")
def page(app):
    if BROWSER is None:
        pytest.skip("no browser found (chromium, google-chrome); install one to test the page")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1300})
        page.set_default_timeout(1000 * LIMIT_S)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(app[0])
        page.wait_for_selector("#examples img")
        yield page
        outside = {urlparse(url).netloc for url in asked if urlparse(url).scheme not in ("data", "blob")}
        assert outside == {urlparse(app[0]).netloc}, "nothing is asked of another machine"
        browser.close()


def status(page, beginning):
    page.wait_for_function("text => document.querySelector('#status').textContent.startsWith(text)", arg=beginning)
    return page.locator("#status").inner_text()


def changed(page, name, before):
    page.wait_for_function("([id, old]) => document.querySelector(id + ' img')?.src !== old", arg=[f"#{name}", before])
    return page.locator(f"#{name} img").get_attribute("src")


def test_upload_matches_click_and_masks(page, app, raw_sysu):
    image = sorted((raw_sysu / "cam3").glob("*/*.jpg"))[0]
    page.locator("#file").set_input_files(image)
    assert "match 1 of the nearest 12 among the visible images" in status(page, f"{image.name}, infrared")
    page.wait_for_selector("#other-mask img[src]")
    assert page.locator("#matches img").count() == 12
    assert not list(app[1].iterdir()), "an upload is never written to the disk"
    heat, query = (page.locator(f"#{name} img").get_attribute("src") for name in ("heat", "query"))
    page.locator("#query").scroll_into_view_if_needed()
    box = page.locator("#query img").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.95 * box["height"])
    second = changed(page, "heat", heat)
    framed = changed(page, "query", query)
    page.locator("#query").press("ArrowUp")
    assert changed(page, "query", framed), "the keyboard moves the frame"
    page.locator("#matches button").nth(3).click()
    assert status(page, "match 4 of the nearest 12")
    assert changed(page, "heat", second)
    assert page.locator("#matches button[aria-pressed=true]").count() == 1


def test_an_example_within_its_own_modality(page):
    page.get_by_label("the same modality").check()
    page.locator("#examples button").nth(1).click()
    assert "among the infrared images" in status(page, "infrared_")
    page.get_by_label("visible", exact=True).check()
    page.wait_for_selector("#examples img[alt='visible example 1']")


def test_a_wrong_file_is_refused_in_words_and_the_matches_stay(page, tmp_path):
    before = page.locator("#matches img").count()
    wrong = tmp_path / "notes <b>.jpg"
    wrong.write_text("not an image")
    page.locator("#file").set_input_files(wrong)
    assert "JPEG" in status(page, "Refused: ")
    large = tmp_path / "large <b>.jpg"
    large.write_bytes(bytes(10 * 2**20 + 1))
    page.locator("#file").set_input_files(large)
    assert "10 MiB" in status(page, "Refused: large <b>.jpg")
    assert page.locator("#matches img").count() == before > 0


def test_every_control_has_a_name_and_the_page_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    nameless = "[...document.querySelectorAll('img[src]:not([alt])')].length"
    assert page.evaluate(nameless) == 0
    for box in page.locator("input").all():
        assert box.evaluate("box => box.labels.length") == 1


def test_an_upload_in_progress_does_not_outlive_the_server(run, sysu_shards, tmp_path):
    with ExitStack() as stack, started(run, sysu_shards, tmp_path, signal.SIGINT, "--host", "0.0.0.0") as (address, _):
        found = urlparse(address)
        assert found.query.startswith("token=")
        assert found.port
        client = Client("127.0.0.1", found.port)
        assert client.ask("GET", "/").status == 403
        client.open(f"/?{found.query}")
        assert client.ask("GET", "/gallery").status == 200
        assert client.cookie
        start = "POST /search/upload?modality=infrared&among=other HTTP/1.1\r\nContent-Type: application/octet-stream"
        more = f"Host: localhost\r\nCookie: {client.cookie}\r\nContent-Length: 1000"
        stack.enter_context(client.raw(f"{start}\r\n{more}\r\n\r\n".encode(), bytes(500)))
