"""A web server for tests: a folder over HTTP, which can fail, stall, lie and vanish on request."""

import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """`asked` counts downloads by file name; `trouble` maps a file name to what goes wrong with its next answers."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, Counter[str]()
        self.trouble: dict[str, list[str]] = {}
        self.ending = threading.Event()  # what stalls does so until then
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """A client that went away is none."""


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, directory=str(args[2].folder), **kwargs)

    def do_GET(self) -> None:
        server: Server = self.server
        name = self.path.rpartition("/")[2]
        server.asked[name] += 1
        waiting = server.trouble.get(name, [])
        trouble = waiting.pop(0) if waiting else None
        if trouble is None:
            return super().do_GET()
        if trouble.startswith("to "):
            self.send_response(302)
            self.send_header("Location", trouble.removeprefix("to "))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = (server.folder / self.path.lstrip("/")).read_bytes()
        if trouble in ("endless", "bomb"):
            return self._send_endless(packed=trouble == "bomb")
        if trouble == "fail":
            return self.send_error(500)
        if trouble == "stall":
            server.ending.wait()
            return None
        sent = {"cut": data[: len(data) // 2], "change": bytes([data[0] ^ 1]) + data[1:], "grow": data + data}[trouble]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) if trouble == "cut" else len(sent)))
        self.end_headers()
        self.wfile.write(sent)
        return None

    def _send_endless(self, packed: bool) -> None:
        """Spaces without an end, or as long as the client listens; `packed` a thousand times smaller on the way."""
        self.send_response(200)
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        packer = zlib.compressobj(wbits=31)
        while not self.server.ending.is_set():
            spaces = b" " * 2**20
            self.wfile.write(packer.compress(spaces) + packer.flush(zlib.Z_FULL_FLUSH) if packed else spaces)

    def log_message(self, *args) -> None:
        """Silent."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()
            thread.join()
