"""The page's server, asked over plain sockets as an attacker would: files, names, origins, sizes, and who sees what."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from launch.page.viewer import Viewer
from tacaf.child_processes import child_environment
from tacaf.search.album import Album
from tacaf.search.embedder import Embedder
from tests.launch.page.page_server import read_all, served
from tests.processes import LIMIT_S, wait_until
from tests.test_image_bombs import progressive, run_length_bmp
from tests.train.finished import write_model

pytest.importorskip("starlette", reason="pip install -e '.[app]'", exc_type=ImportError)
pytest.importorskip("uvicorn", reason="pip install -e '.[app]'", exc_type=ImportError)

from launch.page.app import MOST_UPLOADS, MOST_WAITING, Page
from launch.page.guard import HEADERS, Guard
from launch.page.incoming import MOST_JSON, MOST_UPLOAD
from launch.page.memory import AGE_S, MOST, MOST_OF_SESSION, KeptQuery, Memory
from launch.page.server import Connection

pytestmark = pytest.mark.slow  # each image is checked in a process of its own
UPLOAD = b"POST /search/upload?modality=infrared&among=other HTTP/1.1\r\nContent-Type: application/octet-stream\r\n"
ROUTES = ["/", "/page.css", "/page.js", "/gallery", "/search/upload", "/search/example", "/queries/x/match"]
FOREIGN = "http://evil.example"


def picture(colour: int = 90) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((64, 32, 3), colour, np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory, sysu_shards):
    run = tmp_path_factory.mktemp("runs") / "run"
    write_model(run, sysu_shards)
    embedder = Embedder.load(run)
    return Viewer(embedder, Album.open(embedder, str(sysu_shards), "test", most=16, seed=0))


@pytest.fixture(scope="module")
def page(viewer):
    return Page(viewer)


@pytest.fixture(scope="module")
def client(page):
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


def refused(reply, *statuses):
    """A refusal is a short text with all the page's headers."""
    assert reply.status in statuses, (reply.status, reply.body)
    assert reply.headers.get_content_type() == "text/plain"
    for name, value in HEADERS.items():
        assert reply.headers[name] == value
    assert b"Traceback" not in reply.body
    assert b"root:" not in reply.body
    return reply.body.decode()


def test_a_query_its_matches_and_its_places(client):
    found = client.upload(picture()).json()
    assert (found["modality"], found["searched"], len(found["matches"])) == ("infrared", "visible", 12)
    first = found["comparison"]
    assert (first["rank"], sorted(first["pictures"])) == (0, ["heat", "mask", "other-mask", "query"])
    address = f"/queries/{found['query']}"
    second = client.post(f"{address}/match", {"rank": 3}).json()
    assert second["pictures"]["heat"] != first["pictures"]["heat"]
    place = client.post(f"{address}/place", {"rank": 3, "x": 1, "y": 1.0}).json()
    assert place["position"] == first["rows"] * first["columns"] - 1
    shown = place["pictures"]["query"].removeprefix("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(shown)), formats=["WEBP"]) as image:
        assert image.height == 384
    example = client.post("/search/example", {"modality": "visible", "among": "same", "example": 1}).json()
    assert example["searched"] == "visible"
    assert all(match["caption"][0] in "✓✗" for match in example["matches"])


@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_has_strict_headers(client, path):
    reply = client.ask("GET", path)
    for name, value in HEADERS.items():
        assert reply.headers[name] == value
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "Server" not in reply.headers


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/docs",
        "/redoc",
        "/config",
        "/info",
        "/gradio_api/info",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/queue/join",
        "/gradio_api/upload",
        "/file=/etc/passwd",
        "/static/../../../etc/passwd",
        "/metrics",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.html",
        "/page.css/..%2fguard.py",
        "//etc/passwd",
        "/gallery/",
        "/app.py",
        "/%c3%a4",
        "/%ff",
        "/%00",
        "/page.js%00",
        "/queries",
        "/.git/config",
    ],
)
def test_nothing_else_is_served(client, opened, path):
    for method in ("GET", "POST", "PUT", "DELETE"):
        refused(client.ask(method, path, b"{}" if method != "GET" else None), 404)
    assert not [name for name in opened if "passwd" in name]


@pytest.mark.parametrize("path", ROUTES)
def test_unknown_methods(client, path):
    methods = ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "X" * 300]
    for method in [*methods, *(["GET"] if path.startswith(("/search", "/queries")) else ["POST"])]:
        reply = client.ask(method, path)
        refused(reply, 405)
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]


PASSWD = [
    "/etc/passwd",
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    ["/etc/passwd"],
    True,
    None,
    -1,
    12,
    1e400,
    10**400,
    0.5,
    "1",
    "file:///etc/passwd",
    float("nan"),
    "../../etc/passwd",
]


@pytest.mark.parametrize("value", PASSWD, ids=lambda value: str(value)[:30])
def test_a_path_in_any_field_opens_nothing(client, opened, value):
    own = client.upload(picture()).json()["query"]
    before = len(opened)
    example = {"modality": "visible", "among": "other", "example": 0}
    place = {"rank": 0, "x": 0.5, "y": 0.5}
    bodies = [("/search/example", example | {key: value}) for key in [*example, "path", "data"]]
    for address in (f"/queries/{own}/place", f"/queries/{own}/match"):
        bodies += [(address, place | {key: value}) for key in [*place, "path"]]
    for address, body in bodies:
        if value == 0.5 and address.endswith("place") and body.keys() == place.keys() and body["rank"] == 0:
            continue  # that is a place
        refused(client.post(address, body), 400)
        refused(client.post(address, value), 400)
    for field in ("modality", "among"):
        wanted = {"modality": "infrared", "among": "other"} | {field: "/etc/passwd"}
        refused(client.upload(picture(), **wanted), 400)
    assert not [name for name in opened[before:] if "passwd" in name]


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


@pytest.mark.parametrize("path", ROUTES)
def test_foreign_hosts_and_origins_are_refused(client, path):
    method = "GET" if path == "/gallery" or path.startswith("/page") or path == "/" else "POST"
    port = client.port
    hosts = [
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "localhost.",
        "",
        "[::2]",
        "127.0.0.1@evil.example",
        "127.0.0.1:80:80",
        "2130706433",
        "0.0.0.0",
    ]
    for host in hosts:
        refused(client.ask(method, path, headers={"Host": host}), 400)
    origins = [
        FOREIGN,
        "null",
        "http://127.0.0.1",
        f"http://127.0.0.1:{port + 1}",
        f"http://localhost:{port}",
        "file://",
        f"http://127.0.0.1:{port}.evil.example",
        "",
    ]
    for origin in origins:
        refused(client.ask(method, path, headers={"Origin": origin}), 403)
    for site in ("cross-site", "same-site"):
        refused(client.ask(method, path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}), 403)


def test_its_own_names_are_answered(client):
    port = client.port
    for host in ("127.0.0.1", f"LOCALHOST:{port}", "[::1]:99"):
        own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert client.ask("GET", "/gallery", headers=own).status == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.ask("GET", "/", headers=link).status == 200, "a link may lead here"
    refused(client.ask("GET", "/gallery", headers=link), 403)
    refused(client.ask("GET", "/", headers=link | {"Sec-Fetch-Dest": "iframe"}), 403)


def test_raw_requests_without_or_with_two_hosts_and_websockets(client):
    key = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"
    cases = [
        (b"GET / HTTP/1.0\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b" 400 "),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", b" 400 "),
        (b"GET /socket HTTP/1.1\r\nHost: localhost\r\n" + key + b"\r\n", b" 404 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n" + key + b"\r\n", b" 403 "),
        (b"GET / HTTP/1.1\r\nHost: [::1]\r\nOrigin: http://[::1]\r\nOrigin: null\r\n\r\n", b" 403 "),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 400 "),
        (b"\x16\x03\x01\x02\x00", None),
        (b"GET " + b"/a" * 40000, b" 400 "),
        (b"POST /search/example HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", b" 400 "),
        (b"POST /search/example HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1" + b"0" * 17 + b"\r\n\r\n", b" 413 "),
    ]
    for request, status in cases:
        with client.raw(request) as connection:
            if status is None:  # cut in time, whatever it is
                continue
            answer = read_all(connection)
        assert status in answer.partition(b"\r\n")[0], (request[:80], answer[:80])


def test_sessions_do_not_see_each_other(client):
    found = client.upload(picture()).json()["query"]
    other = type(client)(client.host, client.port).open()
    assert other.cookie != client.cookie
    for path, value in (("match", {"rank": 1}), ("place", {"rank": 0, "x": 0.5, "y": 0.5})):
        refused(other.post(f"/queries/{found}/{path}", value), 404)
        assert client.post(f"/queries/{found}/{path}", value).status == 200
    name, _, signed = client.cookie.partition("=")
    session, _, signature = signed.partition(".")
    for forged in (
        None,
        f"{name}=",
        f"{name}=x",
        f"{name}={session}.",
        f"{name}={session}.{signature[:-1]}g",
        "a=b",
        f"{name}={session[:-1]}_.{signature}",
        f"other={signed}",
        f"{name}=\u00ff.\u00ff",
    ):
        other.cookie = forged
        refused(other.post(f"/queries/{found}/match", {"rank": 0}), 403)
        refused(other.upload(picture()), 403)


def test_a_cookie_is_out_of_reach_for_scripts_and_other_sites(client):
    stranger = type(client)(client.host, client.port)
    cookie = stranger.ask("GET", "/").headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert client.ask("GET", "/").headers["Set-Cookie"] is None, "a session stays"


@pytest.mark.parametrize("name", ["x", "..", "%2e%2e", "a" * 5000, "%2fetc%2fpasswd", "%00", "__class__", "*"])
def test_other_names_of_queries(client, name):
    refused(client.post(f"/queries/{name}/match", {"rank": 0}), 404)


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


def test_the_queue_for_the_model_is_bounded(client, page, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(page.responses, "place", lambda *_: {"done": go.wait(900)})
    query = client.upload(picture()).json()["query"]
    place = {"rank": 0, "x": 0.5, "y": 0.5}
    with ThreadPoolExecutor(MOST_WAITING) as pool:
        waiting = [pool.submit(client.post, f"/queries/{query}/place", place) for _ in range(MOST_WAITING)]
        try:
            wait_until(lambda: page.waiting == MOST_WAITING)
            refused(client.upload(picture()), 503)
            assert client.ask("GET", "/gallery").status == 200
        finally:
            go.set()
        assert [one.result().json() for one in waiting] == [{"done": True}] * MOST_WAITING
    assert client.upload(picture()).status == 200


def test_an_unexpected_error_is_one_line_and_the_page_goes_on(client, page, monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(page.responses, "place", fail)
    query = client.upload(picture()).json()["query"]
    for _ in range(30):
        answer = client.post(f"/queries/{query}/place", {"rank": 0, "x": 0.5, "y": 0.5})
        assert "secret" not in refused(answer, 500)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 10
    assert len(list(tmp_path.iterdir())) == len(lines), "the disk does not fill"
    assert client.upload(picture()).status == 200


def test_an_image_of_the_gallery_that_is_gone_is_named_without_its_folder(viewer, tmp_path):
    (tmp_path / "visible").mkdir()
    odd = "b\udcff\u202e.png"
    for number, name in enumerate(["a.png", odd, "c.png"]):
        (tmp_path / "visible" / name).write_bytes(picture(50 + 50 * number))
    own = Viewer(viewer.embedder, Album.open(viewer.embedder, str(tmp_path), "test", 9, 0))
    with served(Guard(Page(own).app(), "127.0.0.1", None, MOST_UPLOAD)) as client:
        found = client.open().upload(picture(100)).json()
        assert any(r"b\xff\u202e.png" in match["caption"] for match in found["matches"]), "escaped"
        names = [match["caption"].partition(" ")[0] for match in found["matches"]]
        (tmp_path / "visible" / "c.png").unlink()
        answer = client.post(f"/queries/{found['query']}/match", {"rank": names.index("visible/c.png")})
        text = refused(answer, 400)
        assert "visible/c.png" in text
        assert str(tmp_path) not in text
        for path in (tmp_path / "visible").iterdir():
            path.unlink()
        again = client.upload(picture(100)).json()
        assert [match["picture"] for match in again["matches"]] == [None] * 3
        assert str(tmp_path) not in again["comparison"]["problem"]
        gone = client.post("/search/example", {"modality": "visible", "among": "same", "example": 0})
        assert str(tmp_path) not in refused(gone, 400)


def test_a_token_guards_every_route(page):
    with served(Guard(page.app(), "0.0.0.0", "s3cret", MOST_UPLOAD)) as client:
        for path in [
            *ROUTES,
            "/unknown",
            "/?token=",
            "/?token=s3cre",
            "/?token=S3CRET",
            "/?token=%ff%00",
            "/?tokens=s3cret",
            "/gallery?token=s3cret",
            "/?token=s3cre&token=x",
        ]:
            refused(client.ask("POST" if path.startswith(("/search", "/queries")) else "GET", path), 403)
        client.open("/?token=s3cret")
        assert client.ask("GET", "/").status == client.ask("GET", "/page.js").status == 200
        assert client.upload(picture()).status == 200
        for host, status in (("192.168.7.7:7860", 200), ("[fe80::1]", 200), ("localhost", 200), ("evil.example", 400)):
            assert client.ask("GET", "/", headers={"Host": host}).status == status
        refused(client.ask("GET", "/?token=s3cret", headers={"Origin": FOREIGN}), 403)


def test_memory_is_bounded_by_session_in_total_and_in_age():
    now = [0.0]
    memory = Memory(lambda: now[0])
    names = [memory.put("one", KeptQuery(None)) for _ in range(MOST_OF_SESSION + 1)]
    assert memory.find("one", names[0]) is None
    assert all(memory.find("one", name) for name in names[1:])
    for number in range(2 * MOST):
        memory.put(f"session {number}", KeptQuery(None))
    assert len(memory) == MOST
    assert memory.find("one", names[1]) is None, "the oldest make room"
    name = memory.put("two", KeptQuery(None))
    now[0] = AGE_S + 1
    assert memory.find("two", name) is None
    assert len(memory) == 0


def test_old_queries_go_when_nobody_asks(viewer, monkeypatch):
    monkeypatch.setattr("launch.page.app.SWEEP_S", 0.01)
    page = Page(viewer)
    now = [0.0]
    page.memory = Memory(lambda: now[0])
    with served(Guard(page.app(), "127.0.0.1", None, MOST_UPLOAD)) as client:
        assert client.open().upload(picture()).status == 200
        assert len(page.memory) == 1
        now[0] = AGE_S + 1
        wait_until(lambda: len(page.memory) == 0)


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
