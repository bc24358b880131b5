"""The page in a real browser, as a person uses it: upload, matches, click, wrong file; nothing leaves the machine."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import pytest

from tests.launch.finished import write_model
from tests.processes import LIMIT_S

ROOT = Path(__file__).parent.parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def app(tmp_path_factory, sysu_shards):
    """(address, folder for its temporary files) of the page over a tiny model, ended as by a service manager."""
    pytest.importorskip("gradio", reason="pip install 'tacaf[app]'", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("page")
    write_model(folder / "run", sysu_shards)
    (folder / "tmp").mkdir()
    command = ["launch/demo_app.py", "--run", folder / "run", "--gallery", sysu_shards, "--port", "0", "--most", "16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    log = (folder / "log").open("w+")
    with log, subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
    ) as process:  # fmt: skip
        assert process.stdout
        address = next((line.split("page: ")[1].split()[0] for line in process.stdout if "page: " in line), None)
        assert address, (folder / "log").read_text()
        yield address, folder / "tmp"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=LIMIT_S) == 0
    assert not list((folder / "tmp").glob("tacaf-page-*")), "its pictures go with it"
    assert "Traceback" not in (folder / "log").read_text()


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
    page.wait_for_function("text => document.querySelector('#status textarea').value.startsWith(text)", arg=beginning)
    return page.locator("#status textarea").input_value()


def changed(page, name, before):
    page.wait_for_function("([id, old]) => document.querySelector(id + ' img')?.src !== old", arg=[f"#{name}", before])
    return page.locator(f"#{name} img").get_attribute("src")


def test_upload_matches_click_and_masks(page, app, raw_sysu):
    image = sorted((raw_sysu / "cam3").glob("*/*.jpg"))[0]
    page.locator("#upload input[type=file]").set_input_files(image)
    assert "match 1 of the nearest 12 among the visible images" in status(page, f"{image.name}, infrared")
    page.wait_for_selector("#other-mask img")
    assert page.locator("#matches .thumbnail-item img").count() == 12
    kept = [path for path in app[1].rglob("*") if path.is_file() and path.read_bytes() == image.read_bytes()]
    assert not kept, "an upload is deleted when it was read"
    heat, query = (page.locator(f"#{name} img").get_attribute("src") for name in ("heat", "query"))
    page.locator("#query").scroll_into_view_if_needed()
    box = page.locator("#query img").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.95 * box["height"])
    second = changed(page, "heat", heat)
    assert changed(page, "query", query), "the place is framed"
    page.locator("#matches .thumbnail-item").nth(3).click()
    assert status(page, "match 4 of the nearest 12")
    assert changed(page, "heat", second)


def test_an_example_within_its_own_modality(page):
    page.locator("#among label").nth(1).click()
    page.locator("#examples .thumbnail-item").nth(1).click()
    assert "among the infrared images" in status(page, "infrared_")


def test_a_wrong_file_is_refused_in_words_and_the_matches_stay(page, tmp_path):
    before = page.locator("#matches .thumbnail-item img").count()
    wrong = tmp_path / "notes <b>.jpg"
    wrong.write_text("not an image")
    page.locator("#upload button[aria-label]").first.click()  # takes the last upload away
    page.locator("#upload input[type=file]").set_input_files(wrong)
    assert "known format (JPEG" in status(page, "Refused: ")
    assert page.locator("#matches .thumbnail-item img").count() == before > 0


def test_the_server_refuses_strangers_and_large_uploads(app):
    with urllib.request.urlopen(app[0], timeout=LIMIT_S) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(app[0], headers={"Host": "evil.example"}), timeout=LIMIT_S)
    large = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(11 * 2**20)
    header = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{app[0]}/gradio_api/upload", large + b"\r\n--x--\r\n", header)
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(request, timeout=LIMIT_S)
