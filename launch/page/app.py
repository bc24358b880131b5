"""The page's routes: an image or an example in, matches and pictures out.

No route takes a path, and none opens or writes a file that a request names: uploads are bodies, which stay in memory;
pictures travel inside the responses; everything else is a number or a random name of its session.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from launch.page.check_image import problem_of
from launch.page.guard import SESSION
from launch.page.incoming import (
    MOST_UPLOAD,
    ExampleRequest,
    MatchRequest,
    PlaceRequest,
    SearchRequest,
    body_of,
    expect_type,
    from_address,
    from_body,
)
from launch.page.memory import KeptQuery, Memory
from launch.page.responses import Responses
from launch.page.viewer import Viewer
from tacaf.files import shown
from tacaf.vocabulary import InputError

FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
MOST_UPLOADS = 16  # that arrive or are checked
MOST_CHECKED = 2  # at the same time
MOST_WAITING = 8  # for the model
SWEEP_S = 60.0

Done = TypeVar("Done")


class Page:
    """The routes over one model and album. The model runs in one thread, for a bounded number of waiting requests."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.responses = Responses(viewer)
        self.memory = Memory()
        self.files = {name: Path(__file__).with_name(name).read_bytes() for name in FILES}
        self.gallery = self.responses.gallery()
        self.uploads = 0
        self.waiting = 0
        self.model = CapacityLimiter(1)
        self.checks = CapacityLimiter(MOST_CHECKED)

    def app(self) -> Starlette:
        """The ASGI application. It belongs behind a `Guard`."""
        routes = [
            *(Route(f"/{'' if name == 'page.html' else name}", self._file(name)) for name in FILES),
            Route("/gallery", self.show_gallery),
            Route("/search/upload", self.search_upload, methods=["POST"]),
            Route("/search/example", self.search_example, methods=["POST"]),
            Route("/queries/{name}/match", self.choose_match, methods=["POST"]),
            Route("/queries/{name}/place", self.choose_place, methods=["POST"]),
        ]
        app = Starlette(routes=routes, exception_handlers={InputError: _refuse}, lifespan=self._forgetting)
        app.router.redirect_slashes = False
        return app

    async def show_gallery(self, request: Request) -> Response:
        return JSONResponse(self.gallery)

    async def search_upload(self, request: Request) -> Response:
        session = _session(request)
        expect_type(request, "application/octet-stream")
        wanted = from_address(request, SearchRequest)
        data = await self._checked_upload(request)
        return self._keep(session, *await self._run(self.responses.of_upload, data, wanted))

    async def search_example(self, request: Request) -> Response:
        session = _session(request)
        wanted = await from_body(request, ExampleRequest)
        places = self.viewer.examples(wanted.modality)
        if wanted.example >= len(places):
            raise InputError(f"example: expected a number below {len(places)}, got {wanted.example}")
        return self._keep(session, *await self._run(self.responses.of_example, places[wanted.example], wanted))

    async def choose_match(self, request: Request) -> Response:
        kept, match = self._kept(request), await from_body(request, MatchRequest)
        return JSONResponse(await self._run(self.responses.comparison, kept, _rank(kept, match)))

    async def choose_place(self, request: Request) -> Response:
        kept, place = self._kept(request), await from_body(request, PlaceRequest)
        return JSONResponse(await self._run(self.responses.place, kept, _rank(kept, place), place.x, place.y))

    async def _checked_upload(self, request: Request) -> bytes:
        """An image that decodes within bounds. Slow ones hold up other uploads at most, and no other request."""
        if self.uploads >= MOST_UPLOADS:
            raise HTTPException(503, "too many uploads at the same time; try again")
        self.uploads += 1
        try:
            data = await body_of(request, MOST_UPLOAD)
            async with self.checks:
                problem = await problem_of(data)
        finally:
            self.uploads -= 1
        if problem is not None:
            raise InputError(f"the image cannot be used: {problem}")
        return data

    async def _run(self, work: Callable[..., Done], *args: Any) -> Done:
        """Have the model's one thread do this. HTTPException if too many wait for it already."""
        if self.waiting >= MOST_WAITING:
            raise HTTPException(503, "too many people search at the same time; try again")
        self.waiting += 1
        try:
            return await to_thread.run_sync(work, *args, limiter=self.model, abandon_on_cancel=True)
        finally:
            self.waiting -= 1

    def _keep(self, session: str, kept: KeptQuery, found: dict[str, Any]) -> Response:
        return JSONResponse({"query": self.memory.put(session, kept), **found})

    def _kept(self, request: Request) -> KeptQuery:
        kept = self.memory.find(_session(request), request.path_params["name"])
        if kept is None:
            raise HTTPException(404, "this query is forgotten; ask again")
        return kept

    def _file(self, name: str) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            return Response(self.files[name], media_type=FILES[name])

        return answer

    @asynccontextmanager
    async def _forgetting(self, app: Starlette) -> AsyncIterator[None]:
        """Old queries go also when nobody asks for anything."""

        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP_S)
                self.memory.forget_old()

        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()


def _session(request: Request) -> str:
    session = request.scope[SESSION]
    if session is None:
        raise HTTPException(403, "load the page again; its session has ended")
    return session


def _rank(kept: KeptQuery, match: MatchRequest) -> int:
    if match.rank >= len(kept.query.matches):
        raise InputError(f"rank: expected a number below {len(kept.query.matches)}, got {match.rank}")
    return match.rank


async def _refuse(request: Request, problem: Exception) -> Response:
    return PlainTextResponse(shown(problem), 400)
