"""Parsing requests: typed models with exact fields, and bodies read within limits of size and time."""

import asyncio
import json
from typing import Annotated, Literal, TypeVar

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request

from launch.page.viewer import SHOWN, UPLOAD
from tacaf.documents import Document, parse
from tacaf.vocabulary import InputError, Modality

MOST_UPLOAD = int(UPLOAD.mib * 2**20)  # bytes
MOST_JSON = 1024
BODY_S = 60.0  # until a body has arrived

Share = Annotated[float, Field(ge=0, le=1)]
Parsed = TypeVar("Parsed", bound=Document)


class SearchRequest(Document):
    """The modality of a query, and which modality is searched."""

    modality: Modality
    among: Literal["other", "same"]

    @property
    def searched(self) -> Modality:
        return self.modality.other if self.among == "other" else self.modality


class ExampleRequest(SearchRequest):
    """An example, by its number among those of its modality."""

    example: Annotated[int, Field(ge=0, lt=1000)]


class MatchRequest(Document):
    """A match of a query, 0 for the nearest."""

    rank: Annotated[int, Field(ge=0, lt=SHOWN)]


class PlaceRequest(MatchRequest):
    """A point on the query as fractions of its width and height."""

    x: Share
    y: Share


def from_address(request: Request, model: type[Parsed]) -> Parsed:
    """The fields in the address's query string. Raises InputError for an unknown, wrong or repeated field."""
    fields = request.query_params.multi_items()
    if len(fields) != len(request.query_params):
        raise InputError("the address: a field is given twice")
    return parse(json.dumps(dict(fields)), model, "the address")


async def from_body(request: Request, model: type[Parsed]) -> Parsed:
    """The JSON in a request's body. Raises InputError if it does not fit the model."""
    expect_type(request, "application/json")
    return parse(await body_of(request, MOST_JSON), model, "the request", MOST_JSON)


def expect_type(request: Request, kind: str) -> None:
    """Raise HTTPException for a body of another type. A form on another page cannot send the expected types."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
        raise HTTPException(415, f"expected the content type {kind}")


async def body_of(request: Request, most: int) -> bytes:
    """A request's body, read as it arrives. Raises HTTPException if it is longer than `most` bytes or too slow."""
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise HTTPException(413, f"expected at most {most:,} bytes; send less")
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {BODY_S:g} s") from None
    return bytes(data)
