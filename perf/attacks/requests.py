"""Attacks the web page with hostile and damaged requests. It runs in a process of its own, as a user starts it."""

import io
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from perf.attacks.mutations import mutate
from perf.attacks.outcome import Try
from tacaf.child_processes import ROOT, child_environment

SECRET = Path("/etc/passwd")
ANSWERS_S = 3.0  # the page may wait for the rest of a damaged request for ever
SOUND_S = 60.0  # a sound request is answered in far less, also on a busy machine
FORBIDDEN_ROUTES = (
    "/openapi.json",
    "/docs",
    "/redoc",
    "/config",
    "/info",
    "/gradio_api/info",
    "/gradio_api/queue/join",
    "/metrics",
    "/gradio_api/file=/etc/passwd",
    "/file=/etc/passwd",
    "/static/../../../../etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//etc/passwd",
    "/.git/config",
    "/server-status",
    "/gallery/../../etc/passwd",
    "/queries/../../../etc/passwd/match",
    "/queries/x/match",
    "/page.js/..",
    "/page.js%00",
    "/favicon.ico",
)
HOSTILE_HEADERS = (
    "Host: evil.example",
    "Host: localhost.evil.example",
    "Origin: http://evil.example",
    "Origin: null",
    "Sec-Fetch-Site: cross-site",
    "Host: 127.0.0.1@evil.example",
    "Content-Length: -1",
    "Content-Length: 99999999999999",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Upgrade: websocket\r\nConnection: Upgrade",
    "Cookie: " + "a=b; " * 5000,
    "X: " + "y" * 100_000,
)


@contextmanager
def running_page(workshop: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Yields the process of the page for the workshop's run and set, and its port."""
    process = subprocess.Popen(
        [
            sys.executable,
            "launch/demo_app.py",
            "--run",
            str(workshop / "run"),
            "--gallery",
            str(workshop / "set"),
            "--most",
            "8",
            "--port",
            "0",
        ],
        cwd=ROOT,
        env=child_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background processes ignore it
    )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://[0-9.]+:([0-9]+)", line):
                break
        else:
            raise RuntimeError(f"the page did not start: {process.communicate()[1][-1000:]}")
        try:
            yield process, int(found[1])
        finally:
            process.send_signal(signal.SIGINT)


def requests(workshop: Path, tries: int, seed: int) -> Iterator[Try]:
    """Every fixed attack and `tries` damaged requests; the page must still respond afterwards, and print no error."""
    with running_page(workshop) as (process, port):
        cookie = _cookie(port)
        sound = _sound(cookie)
        for name, request in itertools.chain(_fixed(cookie), _damaged(sound, tries, seed)):
            yield _judged(name, _answer(port, request))
        alive = _answer(port, sound[0], SOUND_S).startswith(b"HTTP/1.1 200")
        yield Try("requests", "the page still answers", "refused" if alive else "silent")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        quiet = errors.strip() == "error: interrupted" and process.returncode == 130
        yield Try("requests", "the page ends with one line", "refused" if quiet else "said badly", errors[-300:])


def _fixed(cookie: str) -> Iterator[tuple[str, bytes]]:
    """Paths in every place, foreign pages, other routes and methods, bodies that are too large or of another type."""
    head = f"Host: localhost\r\nCookie: {cookie}\r\n"
    for route in FORBIDDEN_ROUTES:
        yield f"GET {route}", f"GET {route} HTTP/1.1\r\n{head}\r\n".encode()
    for header in HOSTILE_HEADERS:
        own = "" if header.startswith("Host") else "Host: localhost\r\n"
        yield f"GET / with {header[:40]}", f"GET /gallery HTTP/1.1\r\n{own}{header}\r\n\r\n".encode()
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "HEAD", "X" * 3000):
        yield f"{method[:10]} /gallery", f"{method} /gallery HTTP/1.1\r\n{head}\r\n".encode()
    path = {"path": str(SECRET), "meta": {"_type": "gradio.FileData"}}
    common = {"modality": "visible", "among": "other"}
    values = (
        path,
        [path],
        str(SECRET),
        f"file://{SECRET}",
        {"modality": path},
        {"modality": "visible", "among": path},
        {**common, "example": path},
        {"example": str(SECRET)},
        None,
        True,
        10**400,
        {**common, "example": -1},
        {"rank": 10**9, "x": "NaN", "y": []},
    )
    for target in ("/search/example", "/queries/a/match", "/queries/..%2f..%2fetc%2fpasswd/place", "/gradio_api/run"):
        for value in values:
            body = json.dumps(value).encode()
            yield f"POST {target} {str(value)[:40]}", _post(target, body, head, "application/json")
    upload = "/search/upload?modality=infrared&among=other"
    for kind, body in _bodies():
        yield f"upload of {kind}", _post(upload, body, head, "application/octet-stream")
        yield f"form with {kind}", _post(upload, body, head, "multipart/form-data; boundary=x")
    one = "modality=infrared&among=other"
    for query in (f"modality={SECRET}&among=other", "modality=infrared", f"{one}&path={SECRET}", "a" * 9000):
        body = _post(f"/search/upload?{query}", _picture(), head, "application/octet-stream")
        yield f"upload with ?{query[:30]}", body


def _bodies() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "text", b"root:x:0:0"
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "a GIF", b"GIF89a" + bytes(100)
    yield "half an image", _picture()[:60]
    yield "too much", bytes(11 * 2**20)


def _damaged(sound: list[bytes], tries: int, seed: int) -> Iterator[tuple[str, bytes]]:
    for number in range(tries):
        what, data = mutate(sound[number % len(sound)], seed, number)
        yield f"damaged, try {number}: {what}", data


def _sound(cookie: str) -> list[bytes]:
    head = f"Host: localhost\r\nCookie: {cookie}\r\n"
    example = json.dumps({"modality": "visible", "among": "other", "example": 0}).encode()
    return [
        f"GET /gallery HTTP/1.1\r\n{head}\r\n".encode(),
        _post("/search/example", example, head, "application/json"),
        _post("/queries/abc/place", b'{"rank": 0, "x": 0.5, "y": 0.5}', head, "application/json"),
        _post("/search/upload?modality=infrared&among=other", _picture(), head, "application/octet-stream"),
    ]


def _post(target: str, body: bytes, head: str, kind: str) -> bytes:
    lines = (f"POST {target} HTTP/1.1\r\n{head}Content-Type: {kind}", f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


def _picture() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((48, 24, 3), 90, np.uint8)).save(data, "PNG")
    return data.getvalue()


def _cookie(port: int) -> str:
    answer = _answer(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", SOUND_S).decode("latin-1")
    found = re.search(r"(?im)^set-cookie: ([^;\r]+)", answer)
    if found is None:
        raise RuntimeError(f"the page gave no cookie: {answer[:500]}")
    return found[1]


def _answer(port: int, request: bytes, most_s: float = ANSWERS_S) -> bytes:
    """Everything that the page sends until it closes the connection, or until it sends nothing for `most_s` seconds."""
    data = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=most_s) as connection:
            connection.sendall(request)
            while part := connection.recv(2**16):
                data += part
    except (ConnectionError, TimeoutError):
        pass
    return data


def _judged(name: str, answer: bytes) -> Try:
    """It is held if the page sends no response, or one without a file of the disk, a traceback or a server error."""
    status = answer[9:12].decode("latin-1")
    first = SECRET.read_bytes().splitlines()[0]
    if first in answer or b"Traceback" in answer:
        return Try("requests", name, "silent" if first in answer else "traceback", answer[:200].decode("latin-1"))
    if status.startswith("5") and status != "503":
        return Try("requests", name, "traceback", answer[:200].decode("latin-1"))
    return Try("requests", name, "accepted" if status.startswith("2") else "refused", status)
