"""The page's guard: hosts, origins, headers and the token, asked over plain sockets as an attacker would."""

import pytest

from tests.launch.page.page_server import ROUTES, picture, read_all, refused, served

pytest.importorskip("starlette", reason="pip install -e '.[app]'", exc_type=ImportError)
pytest.importorskip("uvicorn", reason="pip install -e '.[app]'", exc_type=ImportError)

from launch.page.guard import HEADERS, Guard
from launch.page.incoming import MOST_UPLOAD

pytestmark = pytest.mark.slow  # each image is checked in a process of its own
FOREIGN = "http://evil.example"


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
