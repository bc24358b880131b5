"""The page's routes: they take an image or an example, and return matches and pictures.

No route takes a path, and none opens or writes a file that a request names: uploads are bodies, which stay in memory;
pictures are inside the responses; everything else is a number or a random name within its session.
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
MOST_UPLOADS = 16  # being received or checked
MOST_CHECKED = 2  # uploads checked at the same time
MOST_WAITING = 8  # requests waiting for the model
SWEEP_S = 60.0

Done = TypeVar("Done")


class Page:
    """The routes for one model and album. The model runs in one thread, for which a limited number of requests wait."""

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
        """The ASGI application, which must be wrapped in a `Guard`."""
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
        search = from_address(request, SearchRequest)
        data = await self._checked_upload(request)
        return self._keep(session, *await self._run(self.responses.of_upload, data, search))

    async def search_example(self, request: Request) -> Response:
        session = _session(request)
        search = await from_body(request, ExampleRequest)
        places = self.viewer.examples(search.modality)
        if search.example >= len(places):
            raise InputError(f"example: expected a number below {len(places)}, got {search.example}")
        return self._keep(session, *await self._run(self.responses.of_example, places[search.example], search))

    async def choose_match(self, request: Request) -> Response:
        kept, match = self._kept(request), await from_body(request, MatchRequest)
        return JSONResponse(await self._run(self.responses.comparison, kept, _rank(kept, match)))

    async def choose_place(self, request: Request) -> Response:
        kept, place = self._kept(request), await from_body(request, PlaceRequest)
        return JSONResponse(await self._run(self.responses.place, kept, _rank(kept, place), place.x, place.y))

    async def _checked_upload(self, request: Request) -> bytes:
        """An uploaded image that decodes within the limits. Slow ones delay only other uploads.

        Raises HTTPException if there are too many uploads, InputError if the image cannot be used.
        """
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
        """Run this in the model's thread. Raises HTTPException if too many requests are waiting for it."""
        if self.waiting >= MOST_WAITING:
            raise HTTPException(503, "too many people are searching at the same time; try again")
        self.waiting += 1
        try:
            return await to_thread.run_sync(work, *args, limiter=self.model, abandon_on_cancel=True)
        finally:
            self.waiting -= 1

    def _keep(self, session: str, kept: KeptQuery, response: dict[str, Any]) -> Response:
        return JSONResponse({"query": self.memory.put(session, kept), **response})

    def _kept(self, request: Request) -> KeptQuery:
        kept = self.memory.find(_session(request), request.path_params["name"])
        if kept is None:
            raise HTTPException(404, "this query is no longer stored; search again")
        return kept

    def _file(self, name: str) -> Callable[[Request], Response]:
        def respond(request: Request) -> Response:
            return Response(self.files[name], media_type=FILES[name])

        return respond

    @asynccontextmanager
    async def _forgetting(self, app: Starlette) -> AsyncIterator[None]:
        """Remove old queries regularly while the application runs, even if there are no requests."""

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
