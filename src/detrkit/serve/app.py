"""The application: routes, their documentation, and how they begin and end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from detrkit import __version__
from detrkit.detector import Detector
from detrkit.serve.access import Access, refused
from detrkit.serve.answers import Answer, ErrorAnswer
from detrkit.serve.bodies import (
    Document,
    Options,
    Threshold,
    check_options,
    invalid,
    parse_body,
    parse_document,
    read_body,
)
from detrkit.serve.images import MEDIA_TYPES
from detrkit.serve.label_studio import TasksRequest, parse_tasks, prediction, task_images
from detrkit.serve.limits import Limits
from detrkit.serve.metrics import CONTENT_TYPE, Metrics
from detrkit.serve.page import page
from detrkit.serve.refusal import Refusal
from detrkit.serve.service import Service
from detrkit.utils.ranges import check_values

_WORDS = {
    400: "A damaged image, or a malformed body.",
    401: "The token is missing or wrong.",
    403: "Asked by the page of another site.",
    408: "The body took too long.",
    413: "Too many bytes, too many pixels, or too little memory.",
    415: "A format, an encoding or a content type that is not taken.",
    421: "A name under which the server does not answer.",
    422: "Options out of range, no image, or one that does not fit the model.",
    429: "The queue is full; Retry-After says when to ask again.",
    500: "The server failed.",
    503: "The server is stopping, or not ready.",
    504: "There was no answer in time.",
}
_REFUSALS: dict[int | str, dict[str, Any]] = {s: {"model": ErrorAnswer, "description": w} for s, w in _WORDS.items()}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ROUTES = ("/", "/health", "/ready", "/metrics", "/openapi.json", "/predict", "/explain", "/setup")


class ExplainOptions(BaseModel):
    """Options of an explanation."""

    model_config = ConfigDict(extra="forbid")

    threshold: Threshold | None = None
    format: Literal["html", "json"] = Field("html", description="A page for a browser, or the numbers.")
    max_megabytes: float = Field(4.0, ge=0.2, le=50, allow_inf_nan=False, description="Size of the page at most.")


def _request_body(*, several: bool) -> dict[str, Any]:
    """Return the description of a body with images in any of the forms that are taken."""
    files = {"type": "array", "items": _BINARY["schema"], "minItems": 1} if several else _BINARY["schema"]
    form = {"type": "object", "properties": {"file": files}, "required": ["file"]}
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": {"$ref": "#/components/schemas/Document"}},
    }
    return {"requestBody": {"required": True, "content": content | dict.fromkeys(MEDIA_TYPES, _BINARY)}}


def create_app(
    detector: Detector,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Collection[str] | None = None,
    label_studio_files: str | Path | None = None,
) -> FastAPI:
    """Make the application of a detector, for any ASGI server; `detrkit serve` runs it under uvicorn.

    Under another server its limits of connections and slow clients apply; those of bodies, images and the queue are the
    application's own. Start one process for a device: the application has one thread for the model.

    Args:
        detector: that predicts; nothing else may use it meanwhile.
        limits: what is taken at most; by default `Limits()`.
        token: that clients must send as `Authorization: Bearer <token>`; None: none is needed.
        hosts: names in the Host header that are answered, without ports; None: any.
        label_studio_files: folder of Label Studio's files, which its tasks may name; None: none are read.

    Raises:
        SettingError: a limit out of range.
    """
    limits = limits or Limits()
    check_values(limits)
    metrics = Metrics()
    service = Service(detector, limits, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="detrkit serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.service = service
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Access, token=token, hosts=hosts, metrics=metrics, routes=_ROUTES)
    root = None if label_studio_files is None else Path(label_studio_files)
    _add_predict(app, service, root)
    _add_explain(app, service)
    _add_status(app, service)
    return app


def _add_predict(app: FastAPI, service: Service, root: Path | None) -> None:
    """Add the route of predictions, which is also Label Studio's, and that of its setup."""

    @app.post(
        "/predict",
        summary="Find the objects of one image or several",
        responses={**_REFUSALS, 200: {"model": Answer, "description": "What was found."}},
        openapi_extra=_request_body(several=True),
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Response:
        with service.bodies.lease() as lease:
            data = await read_body(request, service.limits, lease)
            parsed = await service.in_thread(parse_body, request.headers.get("content-type"), data, service.limits)
            if parsed.document is not None:
                return await _label_studio(service, parsed.document, options, root)
            if parsed.options:
                options = check_options({**options.model_dump(exclude_unset=True), **parsed.options})
            return Response(await service.answer(parsed.images, options), media_type="application/json")

    @app.post("/setup", summary="Label Studio asks which model answers", responses={**_REFUSALS})
    async def setup(request: Request) -> JSONResponse:
        with service.bodies.lease() as lease:
            parse_document(await read_body(request, service.limits, lease))
        return JSONResponse({"model_version": service.version()})


async def _label_studio(service: Service, document: dict[str, Any], options: Options, root: Path | None) -> Response:
    """Answer a request of Label Studio."""
    request, control = parse_tasks(document, service.limits)
    if service.detector.panoptic:
        raise Refusal(422, "panoptic", "a panoptic model has no boxes for Label Studio")
    files = await service.in_thread(task_images, request, control, root, service.limits.body_bytes)
    options = options.model_copy(update={"masks": False})
    results = (await service.predict(files, options)).results if files else []
    answers = [prediction(one.result, control, service.version()) for one in results]
    return JSONResponse({"results": answers, "model_version": service.version()})


def _add_explain(app: FastAPI, service: Service) -> None:
    """Add the route of explanations."""
    content = {"text/html": {"schema": {"type": "string"}}, "application/json": {"schema": {"type": "object"}}}

    @app.post(
        "/explain",
        summary="Show what the model attended to in one image",
        response_class=HTMLResponse,
        responses={**_REFUSALS, 200: {"description": "A page, or its numbers.", "content": content}},
        openapi_extra=_request_body(several=False),
    )
    async def explain(request: Request, options: Annotated[ExplainOptions, Query()]) -> Response:
        with service.bodies.lease() as lease:
            data = await read_body(request, service.limits, lease)
            parsed = await service.in_thread(parse_body, request.headers.get("content-type"), data, service.limits)
            if parsed.document is not None or len(parsed.images) != 1:
                raise Refusal(422, "too_many_images", "an explanation is of one image")
            if parsed.options:
                chosen = check_options(parsed.options)
                options = options.model_copy(update={"threshold": chosen.threshold})
            made = await service.explanation(parsed.images[0], options.threshold, options.format, options.max_megabytes)
        kind = "application/json" if options.format == "json" else "text/html; charset=utf-8"
        return Response(made, media_type=kind, headers={"X-Detrkit-Model": service.model["sha256"]})


def _add_status(app: FastAPI, service: Service) -> None:
    """Add the page, and the routes for programs that watch the service."""
    refusals: dict[int | str, dict[str, Any]] = {status: _REFUSALS[status] for status in (401, 421, 500)}

    detector = service.detector
    tile = None if detector.tiling is None else detector.tiling.tile
    text, policy = page(service.model, lowest=service.lowest, threshold=detector.threshold, tile=tile)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/health", summary="Whether the process works", responses={421: _REFUSALS[421]})
    async def health() -> JSONResponse:
        return JSONResponse({"status": "UP", "model_class": service.model["name"], "model": service.model})

    @app.get("/ready", summary="Whether it takes requests", responses={421: _REFUSALS[421], 503: _REFUSALS[503]})
    async def ready() -> JSONResponse:
        if service.stopping or not service.ready:
            raise Refusal(503, "not_ready", "the server is stopping, or not ready yet", retry_after=1)
        return JSONResponse({"status": "READY"})

    @app.get("/metrics", summary="Counts and times for Prometheus", responses=refusals)
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(_described(app))


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, with the schemas of bodies that the routes read themselves."""
    description = app.openapi()
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    for model in (Document, TasksRequest):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    return description


async def _on_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refused(error)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refused(invalid(error.errors()))


async def _on_http(_: Request, error: Exception) -> Response:
    """Answer what Starlette itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing under this path", 405: "this path has other methods"}
    body = {"error": {"code": "http", "message": words.get(error.status_code, "refused"), "image": None}}
    return Response(json.dumps(body), error.status_code, dict(error.headers or {}), "application/json")
