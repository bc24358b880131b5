"""The page's HTTP server: one request per connection, with limits on the number and duration of connections."""

from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 100
HEADERS_S = 10.0  # until a request's headers are complete
REQUEST_S = 180.0  # until the response is sent and read


class Connection(H11Protocol):
    """A connection that is closed if it takes too long; the guard closes it after one response."""

    headers_s, request_s = HEADERS_S, REQUEST_S

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.limits = [
            self.loop.call_later(self.headers_s, self._cut_if_silent),
            self.loop.call_later(self.request_s, transport.abort),
        ]

    def connection_lost(self, exc: Exception | None) -> None:
        for limit in self.limits:
            limit.cancel()
        super().connection_lost(exc)

    def _cut_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()


def build_server(app: ASGIApp) -> uvicorn.Server:
    """A server that stops at SIGINT or SIGTERM and then raises the signal again for its caller."""
    settings = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="critical",  # malformed requests from outside should not fill the log
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(settings)
