"""Access control of the page: checks of every request before a route gets it, and headers of every response.

A request must name the page's own address (Host), come from the page itself in a browser (Origin, Sec-Fetch-Site), and,
if other machines can reach the page, belong to a session that was begun with the token in its address. Each browser
gets a session: a random name in a cookie, signed so that only names issued here are accepted.
"""

import asyncio
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tacaf.command import UNEXPECTED, say, unexpected

SESSION = "tacaf.session"  # in a request's scope: the name of its session, or None
# Only the page's own files may be loaded; pictures are inside the responses.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Connection": "close",
}
_HOST = re.compile(r"(?P<name>[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?")
_DRAIN_S = 2.0
_REPORTED = 10  # unexpected errors that are reported with a traceback; more could fill the disk


class Guard:
    """An ASGI application that wraps another one."""

    def __init__(self, app: ASGIApp, host: str, token: str | None, most_bytes: int) -> None:
        """`host`: the numeric address that the page listens at; `token`: the token that its URL must contain, or None;
        `most_bytes`: the limit of a request's body."""
        self.app, self.token, self.most_bytes = app, token, most_bytes
        self.address = ipaddress.ip_address(host)
        self.names = {"localhost"}
        if not self.address.is_loopback:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        # Cookies do not distinguish ports, so two pages on one machine need different names.
        self.cookie = f"tacaf-{secrets.token_hex(4)}"
        self.key = secrets.token_bytes(32)
        self.reported = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        connection = HTTPConnection(scope)
        problem, cookie = self._problem(connection), None
        if problem is None:
            session = self._session(connection.cookies.get(self.cookie, ""))
            if session is None and self._may_begin(connection):
                session = secrets.token_urlsafe(24)
                cookie = f"{self.cookie}={self._signed(session)}; HttpOnly; Path=/; SameSite=Strict"
            if session is None and self.token is not None:
                problem = 403, "open the page with the whole address that the command printed"
            scope[SESSION] = session
        exchange = _Exchange(scope, receive, send, cookie)
        try:
            app = self.app if problem is None else PlainTextResponse(problem[1], problem[0])
            await app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except Exception as error:  # the response with status 500 is already being sent
            self._report(error)

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this page, and not another name that resolves to this machine (DNS rebinding).

        Any port is accepted, because a tunnel has its own.
        """
        parts = _HOST.fullmatch(host.lower())
        if parts is None:
            return False
        name = parts["name"].strip("[]")
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or address == self.address or self.address.is_unspecified

    def _problem(self, connection: HTTPConnection) -> tuple[int, str] | None:
        """The status and the reason if a request is refused for any route, or None."""
        headers = connection.headers
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.is_own(hosts[0]):
            return 400, "the page can only be opened with its own address, which the command printed"
        own = {f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")}
        if not {origin.lower() for origin in headers.getlist("origin")} <= own or not _from_itself(connection):
            return 403, "other pages may not send requests to this page"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self.most_bytes:
            return 413, f"expected at most {self.most_bytes / 2**20:g} MiB; send a smaller file"
        return None

    def _may_begin(self, connection: HTTPConnection) -> bool:
        """Whether this request begins a session: it opens the page, with its token if there is one."""
        if connection.scope["method"] != "GET" or connection.scope["path"] != "/":
            return False
        given = connection.query_params.get("token", "")
        return self.token is None or hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    def _signed(self, session: str) -> str:
        return f"{session}.{hmac.digest(self.key, session.encode(), 'sha256').hex()}"

    def _session(self, cookie: str) -> str | None:
        session = cookie.partition(".")[0]
        signed = self._signed(session).encode()
        return session if hmac.compare_digest(cookie.encode("utf-8", "replace"), signed) else None

    def _report(self, error: Exception) -> None:
        self.reported += 1
        if self.reported <= _REPORTED:
            say(error, unexpected(error), UNEXPECTED)


def _from_itself(connection: HTTPConnection) -> bool:
    """Whether, according to the browser, the page itself sent the request. Other pages may only link to the page."""
    headers = connection.headers
    if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return True
    opened = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return opened == ("navigate", "document") and (connection.scope["method"], connection.scope["path"]) == ("GET", "/")


class _Exchange:
    """One request and its response: adds the headers, and keeps receiving a refused upload for a moment.

    If the connection was closed while the browser is still sending, the response with the reason would be lost.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, cookie: str | None) -> None:
        """`cookie`: the cookie that the response sets, or None."""
        self._receive, self._send, self._cookie = receive, send, cookie
        self.more = "expect" not in Headers(scope=scope)

    async def receive(self) -> Message:
        message = await self._receive()
        self.more = self.more and message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                await self._drain()
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if self._cookie is not None:
                headers["Set-Cookie"] = self._cookie
        await self._send(message)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(_DRAIN_S):
                while self.more:
                    await self.receive()
        except TimeoutError:
            pass
