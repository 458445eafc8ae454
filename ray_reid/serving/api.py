"""The HTTP API of a gallery: an image in, the nearest gallery images out, as JSON.

`create_api` is plain FastAPI over anything that searches; docs/serving.md shows its use.
"""

import base64
import json
import math
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, Protocol

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from ray_reid import images
from ray_reid.gallery.gallery import Hit
from ray_reid.gallery.searcher import UnknownCameraError

FIELDS = ("image", "k", "camera", "refine")
KINDS = ("clothes",)
"""What a search may be refined by."""
JSON = "application/json"
MULTIPART = "multipart/form-data"
DEFAULT_K = 10
MAX_K = 1000
# What a message repeats of a value that someone sent.
SHOWN = 40
JPEG_START = b"\xff\xd8"


class Store(Protocol):
    """What the API needs of a gallery."""

    dimension: int

    def __len__(self) -> int:
        """Images in it."""

    def image(self, observation_id: str) -> bytes:
        """The encoded image of an observation; ValueError if there is none."""


class Search(Protocol):
    """What the API needs of a searcher."""

    @property
    def gallery(self) -> Store:
        """What is searched."""

    @property
    def name(self) -> str:
        """The model's name."""

    def search(self, encoded: bytes, k: int, *, camera: str | None) -> list[Hit]:
        """The k nearest, nearest first; ValueError if it refuses the image or the camera."""


class RefinedAnswer(Protocol):
    """What a refined search gives."""

    @property
    def hits(self) -> list[Hit]:
        """In the order of the refinement."""

    @property
    def refinement(self) -> Any:
        """Whether it was refined, and why: a dataclass."""


class RefinedSearch(Protocol):
    """What the API needs to refine a search."""

    def search(self, encoded: bytes, k: int, *, camera: str | None) -> RefinedAnswer:
        """As `Search.search`; `UnavailableError` if no variants can be had."""


class UnavailableError(Exception):
    """What makes variants has no time for this query, or fails; says so in one sentence."""


@dataclass(frozen=True)
class Query:
    """A request, read."""

    image: bytes
    k: int
    camera: str | None
    refine: str | None


@dataclass(frozen=True)
class SearchResult:
    """Answer of `POST /v1/search`."""

    hits: list[Hit]
    """Nearest first."""
    model: str
    gallery_size: int
    took_ms: float
    """Embedding and search, without the transfer."""
    refinement: dict[str, Any] | None = None
    """What became of the refinement; null if none was asked for."""


@dataclass(frozen=True)
class Health:
    """Answer of `GET /health`."""

    status: str
    gallery_size: int
    model: str
    dimension: int


def create_api(
    searcher: Search, max_upload_mb: float, refiner: RefinedSearch | str = "nothing refines here"
) -> FastAPI:
    """Build the API over a searcher.

    Args:
        searcher: Answers.
        max_upload_mb: Most MiB that a request body may hold.
        refiner: Answers requests to refine, or why none are answered.
    """
    api = FastAPI(title="ray-reid", description=__doc__)
    api.add_exception_handler(StarletteHTTPException, _refuse)
    # These wait for variants and would hold the threads of all others; Serve limits their number.
    refined = CapacityLimiter(math.inf)

    @api.get("/health")
    async def health() -> Health:
        return Health("ok", len(searcher.gallery), searcher.name, searcher.gallery.dimension)

    @api.post("/v1/search", openapi_extra={"requestBody": _request_body()})
    async def search(request: Request) -> SearchResult:
        query = await _read_query(request, int(max_upload_mb * 2**20))
        if query.refine is not None and isinstance(refiner, str):
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, f"refine: {refiner}")
        started = time.perf_counter()
        try:
            # Embedding takes a core for a while, and /health must still answer.
            hits, told = await to_thread.run_sync(
                _answer, searcher, refiner, query, limiter=refined if query.refine else None
            )
        except UnknownCameraError as error:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        except ValueError as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"image: {error}") from error
        except UnavailableError as error:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, f"refine: {error}") from error
        took_ms = round(1000 * (time.perf_counter() - started), 2)
        return SearchResult(hits, searcher.name, len(searcher.gallery), took_ms, told)

    @api.get("/v1/observations/{observation_id}/image", response_class=Response)
    def observation_image(observation_id: str) -> Response:
        try:
            encoded = searcher.gallery.image(observation_id)
        except ValueError as error:
            raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from error
        if not encoded.startswith(JPEG_START):
            encoded = images.encode(images.decode(encoded))
        return Response(encoded, media_type="image/jpeg")

    return api


def _answer(
    searcher: Search, refiner: RefinedSearch | str, query: Query
) -> tuple[list[Hit], dict[str, Any] | None]:
    """Hits, and what became of the refinement if one was asked for."""
    if query.refine is None or isinstance(refiner, str):
        return searcher.search(query.image, query.k, camera=query.camera), None
    found = refiner.search(query.image, query.k, camera=query.camera)
    return found.hits, asdict(found.refinement)


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _read_query(request: Request, limit: int) -> Query:
    """The fields of either kind of request."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, MULTIPART):
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"content type {kind[:SHOWN]!r} is not one of {[JSON, MULTIPART]}",
        )
    body = await _bounded_body(request, limit)
    if kind == JSON:
        fields = _json_fields(body)
        image = _decode_base64(fields["image"])
    else:
        fields = await _form_fields(request, body)
        image = fields["image"]
    if not isinstance(image, bytes):
        raise HTTPException(HTTPStatus.BAD_REQUEST, "field 'image' is text; it must be a file")
    return Query(
        image,
        _whole_k(fields.get("k", DEFAULT_K)),
        _named_camera(fields.get("camera")),
        _known_kind(fields.get("refine")),
    )


async def _bounded_body(request: Request, limit: int) -> bytes:
    """Read the body, giving up as soon as it is known to be too large."""
    too_large = HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request is larger than the limit of {limit / 2**20:g} MiB",
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _json_fields(body: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is not JSON") from error
    if not isinstance(fields, dict):
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    return _checked(fields)


async def _form_fields(request: Request, body: bytes) -> Mapping[str, Any]:
    """Text fields as text, files as bytes."""

    async def chunks() -> AsyncGenerator[bytes]:
        yield body

    parser = MultiPartParser(request.headers, chunks(), max_files=1, max_fields=len(FIELDS))
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(
            HTTPStatus.BAD_REQUEST, f"the form is not readable: {error.message}"
        ) from error
    fields = {
        name: await value.read() if isinstance(value, UploadFile) else value
        for name, value in form.items()
    }
    await form.close()
    return _checked(fields)


def _checked(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = sorted(fields.keys() - set(FIELDS))
    if unknown:
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"unknown field {unknown[0][:SHOWN]!r}; choose from {list(FIELDS)}",
        )
    if not fields.get("image"):
        raise HTTPException(HTTPStatus.BAD_REQUEST, "field 'image' is missing or empty")
    return fields


def _decode_base64(text: Any) -> bytes:
    """Decode base64 or a `data:...;base64,` URI; line breaks are allowed."""
    try:
        if not isinstance(text, str):
            raise ValueError(f"it is of type {type(text).__name__}")
        if text.startswith("data:"):
            head, comma, text = text.partition(",")
            if not comma or not head.endswith(";base64"):
                raise ValueError("the data URI has no ';base64,'")
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise HTTPException(
            HTTPStatus.BAD_REQUEST, f"field 'image' is not base64 or a data URI: {error}"
        ) from error


def _whole_k(value: Any) -> int:
    k = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 9 else value
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"k is {repr(value)[:SHOWN]}; it must be a whole number from 1 to {MAX_K}",
        )
    return k


def _named_camera(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and all(value.partition(":"))):
        return value
    raise HTTPException(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"camera is {repr(value)[:SHOWN]}; it must be named source:camera, as in hits",
    )


def _known_kind(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value in KINDS):
        return value
    raise HTTPException(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"refine is {repr(value)[:SHOWN]}; choose from {list(KINDS)}, or leave it out",
    )


def _request_body() -> dict[str, Any]:
    """The OpenAPI description of the two kinds of request, which are parsed by hand above."""
    k = {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": DEFAULT_K}
    camera = {"type": "string", "description": "source:camera that took the image"}
    refine = {
        "type": "string",
        "enum": list(KINDS),
        "description": "also ask with the person in other clothes, if the run can make them",
    }
    kinds = {JSON: "byte", MULTIPART: "binary"}
    return {
        "required": True,
        "content": {
            kind: {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": form},
                        "k": k,
                        "camera": camera,
                        "refine": refine,
                    },
                }
            }
            for kind, form in kinds.items()
        },
    }
