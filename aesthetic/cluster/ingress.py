"""The address: Cog's requests and answers over HTTP, and the queue in front of the replicas.

OpenAPI's document and the answers 422 are made from Request's fields.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Optional
from uuid import uuid4

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, Field, StrictBool, create_model

from ..errors import RequestError
from ..request import FIELDS, RENAMED, base_type, checked

__all__ = ["Predict", "application"]

MAX_BODY = 100 * 2**20  # bytes, as in Cog's server
HIDDEN = ("ddim_eta",)  # which Cog's form doesn't have
RETRY_AFTER = "5"  # seconds
PLMS = "Old way to choose the scheduler: true is PNDM, false is DDIM."
DOCS = "https://github.com/replicate/cog/blob/main/docs/http.md"
Predict = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]  # inputs to Cog's answer without its id
Receive = Callable[[], Awaitable[dict[str, Any]]]


def application(predict: Predict, is_ready: Callable[[], bool], *, names: Sequence[str], most: int) -> FastAPI:
    """The ASGI application.

    predict: draws a request. Its task is canceled if the client hangs up.
    names:   of the aesthetics to choose from.
    most:    predictions that are taken at once, drawn or waiting; any more are answered with 503.
    """
    api = FastAPI(title="Aesthetic gradients", description=f"Predictions as [Cog's HTTP API]({DOCS}) has them.")
    api.add_middleware(_Limited)
    api.add_exception_handler(RequestValidationError, _refused)
    body_model, taken = _body(names), list[str]()

    @api.post("/predictions")
    async def predictions(body: body_model) -> dict[str, Any]:  # type: ignore[valid-type]
        """Draw images. Returns once they are drawn."""
        if len(taken) >= most:
            raise HTTPException(503, f"{most} predictions are waiting or being drawn", {"Retry-After": RETRY_AFTER})
        name = body.id or uuid4().hex  # type: ignore[attr-defined]
        taken.append(name)
        try:
            return {"id": name, **await predict(body.input.model_dump(exclude_unset=True))}  # type: ignore[attr-defined]
        finally:
            taken.remove(name)

    @api.get("/health-check")
    async def health_check() -> dict[str, Any]:
        """READY once a replica can draw, else STARTING."""
        return {"status": "READY" if await asyncio.to_thread(is_ready) else "STARTING", "predictions": len(taken)}

    return api


def _body(names: Sequence[str]) -> type[BaseModel]:
    """The model of a request's body: an id and the inputs."""
    kinds = {name: _kind(name) for name in FIELDS if name not in HIDDEN}
    kinds["aesthetic_embedding"] = Literal[tuple(names)]
    fields: dict[str, Any] = {}
    for name, kind in kinds.items():
        default, text = FIELDS[name].default, FIELDS[name].metadata["help"]
        fields[name] = (kind | None if default is None else kind, Field(default, description=text))
    for name, new_name in RENAMED.items():
        text = PLMS if name == "plms" else f"Old name of {new_name}."
        kind = StrictBool if name == "plms" else kinds[new_name]
        fields[name] = (kind | None, Field(None, description=text, deprecated=True))
    inputs: Any = create_model("Input", **fields)
    webhook = Field(None, description="Must be blank: Cog's own server and Replicate have asynchronous predictions.")
    optional: Any = (Optional[str], Field(None, max_length=1000))  # noqa: UP045  (made at run time)
    return create_model("PredictionRequest", id=optional, input=(inputs, inputs()), webhook=(None, webhook))


def _kind(name: str) -> Any:
    """The type of a field with its limits. Request's own check says what is wrong; a file is text, its URL."""
    spec, kind = FIELDS[name], base_type(FIELDS[name])
    if kind is Path:
        return str
    if choices := tuple(spec.metadata.get("choices", ())):
        kind = Literal[choices]
    limits = {limit: spec.metadata[limit] for limit in ("ge", "le", "max_length") if limit in spec.metadata}
    return Annotated[kind, Field(**limits), BeforeValidator(partial(_checked, name))]


def _checked(name: str, value: Any) -> Any:
    """`value` as Request takes it: 7.0 is a whole number, and "7" is none."""
    try:
        return checked(FIELDS[name], value)
    except RequestError as error:
        raise ValueError(str(error)) from error


async def _refused(request: Request, error: Exception) -> Response:
    """What is wrong, as Cog says it: 400 for a body that is not JSON, 422 for inputs."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        return JSONResponse({"detail": "the request's body is not JSON"}, 400)
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return JSONResponse({"detail": "send the request with Content-Type: application/json"}, 422)
    return JSONResponse(
        {"detail": [{"loc": one["loc"], "msg": one["msg"], "type": "value_error"} for one in found]}, 422
    )


class _Limited:
    """ASGI middleware that ends a request whose body is too large."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Any) -> None:
        size = 0

        async def counted() -> dict[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"the request is larger than {MAX_BODY:,} bytes: send files by URL")
            return message

        await self._app(scope, counted, send)
