"""What is sent to the page: bodies, images and uploads that are damaged, hostile, too large, slow or endless."""

import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tacaf.child_processes import child_environment
from tests.launch.page.page_server import picture, read_all, refused
from tests.processes import LIMIT_S, wait_until
from tests.test_image_bombs import progressive, run_length_bmp

pytest.importorskip("starlette", reason="pip install -e '.[app]'", exc_type=ImportError)
pytest.importorskip("uvicorn", reason="pip install -e '.[app]'", exc_type=ImportError)

from launch.page.app import MOST_UPLOADS
from launch.page.incoming import MOST_JSON, MOST_UPLOAD
from launch.page.server import Connection

pytestmark = pytest.mark.slow  # each image is checked in a process of its own
UPLOAD = b"POST /search/upload?modality=infrared&among=other HTTP/1.1\r\nContent-Type: application/octet-stream\r\n"


BODIES = [
    b"",
    b"null",
    b"[]",
    b"{",
    b"\xff\xfe",
    b"\0" * 50,
    b"[" * 1000,
    b'{"rank": 0, "rank": 1}',
    b'{"rank": NaN}',
    b'{"rank": ' + b"9" * 900 + b"}",
    b"a=b",
    json.dumps({"rank": "\ud800"}).encode(),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:12]))
def test_garbage_bodies(client, body):
    own = client.upload(picture()).json()["query"]
    for address in ("/search/example", f"/queries/{own}/match", f"/queries/{own}/place"):
        refused(client.ask("POST", address, body, {"Content-Type": "application/json"}), 400)
        refused(client.ask("POST", address, body, {"Content-Type": "application/x-www-form-urlencoded"}), 415)
    refused(client.upload(body), 400)


def test_hostile_images_are_refused(client):
    bomb = io.BytesIO()
    Image.new("1", (20000, 20000)).save(bomb, "PNG")
    icon = io.BytesIO()
    Image.new("RGB", (32, 32)).save(icon, "GIF")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    refused(client.upload(progressive(4096, 200)), 400)
    refused(client.upload(run_length_bmp(2**24)), 400)
    for data in (bomb.getvalue(), icon.getvalue(), postscript, picture()[:-30], b"BM" + bytes(100)):
        refused(client.upload(data), 400)
    assert client.upload(picture()).status == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [("launch.page.check_image.WAIT_S", 0.001), ("sys.executable", "/bin/false")],
    ids=["too slow", "a crash"],
)
def test_an_image_whose_check_does_not_end_well_is_refused(client, page, monkeypatch, name, value):
    with monkeypatch.context() as changed:
        changed.setattr(name, value)
        with ThreadPoolExecutor(3) as pool:
            for upload in [pool.submit(client.upload, picture()) for _ in range(3)]:
                refused(upload.result(), 400)
    assert client.upload(picture()).status == 200
    assert page.uploads == 0


@pytest.mark.parametrize("work", ["while True: pass", "bytearray(2**32)"])
def test_the_check_cannot_take_the_machine(work):
    script = f"from launch.page.check_image import limit; limit(1)\n{work}"
    environment = child_environment(OPENBLAS_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=LIMIT_S)
    assert done.returncode in (1, -signal.SIGXCPU, -signal.SIGKILL)


def test_uploads_are_bounded_in_size_with_and_without_a_length(client):
    assert "10 MiB" in refused(client.upload(bytes(MOST_UPLOAD + 1)), 413)
    refused(client.upload(iter([b"x" * 2**20] * 11)), 413)
    refused(client.ask("POST", "/unknown", bytes(MOST_UPLOAD + 1)), 413)
    refused(client.post("/search/example", "x" * MOST_JSON), 413)
    refused(client.ask("POST", "/search/example", iter([b" " * 600] * 2), {"Content-Type": "application/json"}), 413)
    huge = {"Content-Length": str(10**15), "Content-Type": "application/octet-stream", "Expect": "100-continue"}
    refused(client.ask("POST", "/search/upload?modality=visible&among=other", b"", huge), 413)


def test_an_endless_upload_is_ended(client):
    cookie = client.cookie.encode()
    start = UPLOAD + b"Host: localhost\r\nCookie: " + cookie + b"\r\nTransfer-Encoding: chunked\r\n\r\n"

    def send_for_ever(connection):
        while True:
            connection.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")

    with client.raw(start) as connection, pytest.raises(ConnectionError):
        send_for_ever(connection)


def test_slow_uploads_are_bounded_in_number_and_hold_up_nobody(client, page):
    start = UPLOAD + b"Host: localhost\r\nCookie: " + client.cookie.encode() + b"\r\nContent-Length: 1000\r\n\r\n"
    example = {"modality": "visible", "among": "other", "example": 0}
    held = [client.raw(start, b"\x89PNG") for _ in range(MOST_UPLOADS)]
    try:
        for connection in held:
            connection.__enter__()
        wait_until(lambda: page.uploads == MOST_UPLOADS)
        refused(client.upload(picture()), 503)
        assert client.post("/search/example", example).status == 200
        assert client.ask("GET", "/").status == 200
    finally:
        for connection in held:
            connection.__exit__(None, None, None)
    wait_until(lambda: page.uploads == 0)
    assert client.upload(picture()).status == 200


def test_a_slow_upload_and_a_silent_connection_are_cut(client, monkeypatch):
    monkeypatch.setattr("launch.page.incoming.BODY_S", 0.2)
    start = UPLOAD + b"Host: localhost\r\nCookie: " + client.cookie.encode() + b"\r\nContent-Length: 1000\r\n\r\n"
    with client.raw(start) as connection:
        assert b" 408 " in read_all(connection).partition(b"\r\n")[0]
    monkeypatch.setattr(Connection, "headers_s", 0.2)
    with client.raw(b"GET / HTTP/1.1\r\nHost: loc") as connection:
        assert read_all(connection) == b""
    monkeypatch.setattr(Connection, "headers_s", 60.0)
    monkeypatch.setattr(Connection, "request_s", 0.2)
    monkeypatch.setattr("launch.page.incoming.BODY_S", 60.0)
    with client.raw(start) as connection:
        assert read_all(connection) == b""


def damaged(data, draw):
    """A few bits flipped, bytes left out or put in, or the end cut off."""
    for _ in range(draw.integers(1, 4)):
        place, size = int(draw.integers(len(data) + 1)), int(draw.integers(1, 20))
        kind = draw.integers(4)
        if kind == 0 and place < len(data):
            data = data[:place] + bytes([data[place] ^ 1 << int(draw.integers(8))]) + data[place + 1 :]
        elif kind == 1:
            data = data[:place] + data[place + size :]
        elif kind == 2:
            data = data[:place] + draw.bytes(size) + data[place:]
        elif kind == 3:
            data = data[:place]
    return data


def test_damaged_requests_are_refused_or_harmless(client, opened, capsys, monkeypatch):
    monkeypatch.setattr("launch.page.incoming.BODY_S", 0.1)  # of some the end never comes
    monkeypatch.setattr(Connection, "headers_s", 0.1)
    monkeypatch.setattr("launch.page.guard._DRAIN_S", 0.1)
    cookie = f"Host: localhost\r\nCookie: {client.cookie}\r\n"
    bodies = {
        "/search/example": json.dumps({"modality": "visible", "among": "other", "example": 0}).encode(),
        "/queries/x/place": json.dumps({"rank": 0, "x": 0.5, "y": 0.5}).encode(),
        "/search/upload?modality=infrared&among=other": picture(),
    }
    valid = [f"GET {path} HTTP/1.1\r\n{cookie}\r\n".encode() for path in ("/", "/gallery", "/page.js")]
    for path, body in bodies.items():
        kind = "octet-stream" if "upload" in path else "json"
        start = (
            f"POST {path} HTTP/1.1\r\n{cookie}Content-Type: application/{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        valid.append(start.encode() + body)
    draw = np.random.default_rng(0)
    for number in range(int(os.environ.get("TACAF_MUTATIONS", "120"))):
        request = damaged(valid[number % len(valid)], draw)
        with client.raw(request) as connection:
            answer = read_all(connection)
        status = answer.split(b" ", 2)[1:2]
        assert not answer or status[0] in (b"200", b"400", b"403", b"404", b"405", b"408", b"413", b"415"), request
    assert capsys.readouterr().err == ""
    assert not [name for name in opened if "passwd" in name]
    assert client.ask("GET", "/").status == 200
