"""What stands between visitors and Gradio: only what the page needs gets through.

Gradio has more routes than this page (it proxies, records, edits code), fetches addresses that a
visitor names in place of an upload, and, mounted, would read any file so named. What gets through
here are the page's own routes, bodies of limited size, strict JSON, and files that were uploaded.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from imagen_jax.app.address import is_loopback
from imagen_jax.app.fields import is_inside
from imagen_jax.app.limits import Limits
from imagen_jax.app.visitor_files import make_room
from imagen_jax.storage.json_file import parse

# What Starlette says where an answer has begun as if all were well: for an event that is not there.
BROKEN_OFF = "response already started"
NO_EVENT = b'event: error\ndata: {"error": "There is no such event."}\n\n'
MAX_JSON = 2**18  # bytes of a call: images are uploaded before it
FORM = 2**16  # bytes of an upload beside its files
API = "/gradio_api"
ROUTES = {
    "GET": re.compile(
        r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static)/.+"
        rf"|{API}/(info/?|startup-events|app_id/?|queue/(data|status)|upload_progress"
        r"|heartbeat/[^/]+|call/\w+/\w+|file=.+)",
        re.DOTALL,
    ),
    "POST": re.compile(rf"{API}/(queue/join|cancel|reset/?|upload|(call|run|api)/\w+/?)"),
}
ROUTES["HEAD"] = ROUTES["GET"]
# Browsers then ask no other host for anything, whatever Gradio's page names.
POLICY = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Refused(Exception):
    """A request that goes no further: (status, why, in words)."""


class Guard:
    """ASGI middleware around Gradio's application.

    folder: of uploads and results. arguments: by the number and by the name of an event, the data
    models of its values and whether it tells what was selected. local: only this machine's own
    user may come, by its own names.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        limits: Limits,
        folder: Path,
        arguments: Callable[[int | str], tuple[Sequence[Any], bool] | None],
        local: bool,
    ):
        self.app, self.limits, self.folder = app, limits, folder
        self.arguments, self.local = arguments, local
        framed = "; frame-ancestors 'none'" if local else ""
        policy = POLICY | {
            "Content-Security-Policy": f"{POLICY['Content-Security-Policy']}{framed}"
        }
        self.policy = [(k.lower().encode(), v.encode()) for k, v in policy.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no page of ours opens a web socket
            return await send({"type": "websocket.close", "code": 1008})

        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self.policy]}
            await send(message)

        try:
            self._check_head(scope)
            receive = await self._checked_body(scope, receive)
        except Refused as refused:
            return await _refuse(send_with_policy, *refused.args)
        try:
            await self.app(scope, receive, send_with_policy)
        except RuntimeError as error:
            if BROKEN_OFF not in str(error):
                raise
            await send({"type": "http.response.body", "body": NO_EVENT})

    def _check_head(self, scope: Scope) -> None:
        headers = _headers(scope)
        route = ROUTES.get(scope["method"])
        if route is None or not route.fullmatch(scope["path"]):
            raise Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")
        if self.local:
            _check_origin(headers)
        file = scope["path"].partition(f"{API}/file=")[2]
        if file and not is_inside(file, self.folder):
            raise Refused(HTTPStatus.FORBIDDEN, "There is no such file here.")

    async def _checked_body(self, scope: Scope, receive: Receive) -> Receive:
        """What gives the application the request's body."""
        if scope["method"] != "POST":
            return receive
        headers, path = _headers(scope), scope["path"]
        if path == f"{API}/upload":
            self._check_upload(headers)
            return receive
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send application/json.")
        body = await _read(receive, MAX_JSON)
        self._check_call(body, path)
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> MutableMapping[str, Any]:
            return next(given, None) or await receive()

        return again

    def _check_upload(self, headers: dict[str, str]) -> None:
        """By the length that is told: the server takes no more than that."""
        told = headers.get("content-length", "")
        if "transfer-encoding" in headers or not told.isdecimal():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Send Content-Length, and no other encoding.")
        if len(told) > 15 or int(told) > self.limits.upload_bytes + FORM:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"An upload may have {self.limits.upload_bytes / 2**20:g} MB.",
            )
        try:
            make_room(self.folder, self.limits.kept_bytes)
        except ValueError as error:
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from None

    def _check_call(self, body: bytes, path: str) -> None:
        try:
            values = parse(body)
            json.dumps(values, ensure_ascii=False).encode()  # no halves of characters
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"The request is not JSON: {error}.") from None
        if not isinstance(values, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "Send a JSON object.")
        for file in _files(values):
            if not isinstance(file, str) or not is_inside(file, self.folder):
                raise Refused(
                    HTTPStatus.BAD_REQUEST, "That file was not uploaded here: upload it first."
                )
        route, _, name = path.removeprefix(f"{API}/").rstrip("/").partition("/")
        if route in ("queue", "call", "run", "api"):
            number = None if route == "call" else values.get("fn_index")
            self._check_arguments(values, name if number is None else number)

    def _check_arguments(self, values: dict[str, Any], event: Any) -> None:
        known = isinstance(event, int | str) and not isinstance(event, bool)
        found = self.arguments(event) if known else None
        if found is None:
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such endpoint.")
        (models, selects), data, chosen = found, values.get("data"), values.get("event_data")
        if selects and not (isinstance(chosen, dict) and {"index", "value"} <= chosen.keys()):
            raise Refused(HTTPStatus.BAD_REQUEST, "Tell what is selected: its index and value.")
        if not isinstance(data, list) or len(data) != len(models):
            raise Refused(
                HTTPStatus.BAD_REQUEST, f"This endpoint takes a list of {len(models)} values."
            )
        for place, (model, value) in enumerate(zip(models, data, strict=True)):
            try:
                if model is not None and value is not None:
                    model.model_validate(value)
            except ValueError:
                raise Refused(
                    HTTPStatus.BAD_REQUEST, f"Value {place + 1} is no uploaded file."
                ) from None


def _check_origin(headers: dict[str, str]) -> None:
    """Refuses another site's page, which a browser of this machine shows: under a name that the
    site has for this address, or from its own.
    """
    host, origin = headers.get("host", "").lower(), headers.get("origin")
    if not is_loopback(re.sub(r":\d+$", "", host)):
        raise Refused(HTTPStatus.FORBIDDEN, "This page is for this machine only.")
    # A proxy's name: another site's page cannot set this header, because the preflight gets 404.
    own = (host, *headers.get("x-forwarded-host", host).lower().split(","))
    if origin is not None and urlsplit(origin.lower()).netloc not in own:
        raise Refused(HTTPStatus.FORBIDDEN, "Another site's page may not use this one.")


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _read(receive: Receive, most: int) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(HTTPStatus.BAD_REQUEST, "The request was cut short.")
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > most:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Send at most {most:,} bytes.")
    return body


def _files(value: Any) -> Iterator[Any]:
    """What is named as a file anywhere in a call: the paths and addresses of Gradio's FileData."""
    if isinstance(value, list):
        for entry in value:
            yield from _files(entry)
    elif isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        url = value.get("url")
        if url is not None:  # of the page itself, or none of ours
            yield unquote(str(url).partition(f"{API}/file=")[2])
        for entry in value.values():
            yield from _files(entry)


async def _refuse(send: Send, status: HTTPStatus, why: str) -> None:
    body = json.dumps({"detail": why, "error": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(b"connection", b"close")]  # what else was sent is not read
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
