"""For tests of the page: a server in a thread, plain requests to it, and what every refusal looks like."""

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.processes import LIMIT_S, wait_until

ROUTES = ["/", "/page.css", "/page.js", "/gallery", "/search/upload", "/search/example", "/queries/x/match"]


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A browser that keeps its cookie, as far as these tests need one."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.cookie: str | None = None

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        sent = {} if self.cookie is None else {"Cookie": self.cookie}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=LIMIT_S)
        try:
            connection.request(method, path, body, sent | (headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def open(self, path: str = "/") -> "Client":
        """Load the page, and keep its cookie."""
        answer = self.ask("GET", path)
        assert answer.status == 200, answer.body
        self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return self

    def post(self, path: str, value: Any) -> Reply:
        return self.ask("POST", path, json.dumps(value), {"Content-Type": "application/json"})

    def upload(self, data: Any, modality: str = "infrared", among: str = "other") -> Reply:
        header = {"Content-Type": "application/octet-stream"}
        return self.ask("POST", f"/search/upload?modality={modality}&among={among}", data, header)

    @contextmanager
    def raw(self, *parts: bytes) -> Iterator[socket.socket]:
        """A connection on which these bytes were sent."""
        with socket.create_connection((self.host, self.port), timeout=LIMIT_S) as connection:
            for part in parts:
                connection.sendall(part)
            yield connection


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes the connection."""
    data = b""
    try:
        while part := connection.recv(2**16):
            data += part
    except ConnectionError:
        pass
    return data


def refused(reply: Reply, *statuses: int) -> str:
    """A refusal is a short text with all the page's headers."""
    from launch.page.guard import HEADERS

    assert reply.status in statuses, (reply.status, reply.body)
    assert reply.headers.get_content_type() == "text/plain"
    for name, value in HEADERS.items():
        assert reply.headers[name] == value
    assert b"Traceback" not in reply.body
    assert b"root:" not in reply.body
    return reply.body.decode()


def picture(colour: int = 90) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((64, 32, 3), colour, np.uint8)).save(data, "PNG")
    return data.getvalue()


@contextmanager
def served(app: Any) -> Iterator[Client]:
    """The application behind the page's own server."""
    from launch.page.server import build_server

    server = build_server(app)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield Client(*listening.getsockname())
        finally:
            server.should_exit = True
            thread.join(LIMIT_S)
    assert not thread.is_alive()
