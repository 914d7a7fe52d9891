"""Offers any critic over HTTP, by the contract of `milr.critics.remote.wire`, to milr elsewhere and to other programs.

One batch is scored at a time, on one thread: critics need not be thread-safe. Of the requests behind it a few may wait;
the rest are told to come again before their bodies are read, so memory stays flat. Without a token only requests to a
loopback address are answered (the Host header is checked: a web page must not reach the service by a name of its own).
"""

import asyncio
import hmac
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from milr import registry
from milr.critics import naming
from milr.critics.base import Critic, Place, judge
from milr.critics.remote import wire
from milr.critics.service import TOKEN, check_variable, token_in
from milr.drafts import UserError
from milr.network import is_loopback
from milr.version import __version__

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request as AnyRequest
    from starlette.types import ASGIApp, Receive, Scope, Send
    from uvicorn import Config

PORT = 9000
WAITING = 16  # requests that may wait; each may hold a body of Limits.bytes
BODY_SECONDS = 60.0  # a slow sender must not keep a place for ever
LONGEST_RETRY = 60
STOP_SECONDS = 30  # what is being scored may be finished


def create_app(
    critic: Critic,
    *,
    token: str | None = None,
    summary: str = "",
    limits: wire.Limits = wire.Limits(),  # noqa: B008 (frozen)
    waiting: int = WAITING,
) -> "FastAPI":
    """The service of this critic, for any ASGI server. With a token, all but the health check needs it."""
    try:
        from fastapi import FastAPI, Request, Response
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
    except ImportError as error:
        raise UserError(
            f"Serving needs the package '{error.name}'; install it with pip install 'milr[serve]'."
        ) from error

    info = wire.Info(critic.name, summary, f"milr {__version__}", limits)
    worker = ThreadPoolExecutor(1, "critic")
    turn = asyncio.Lock()  # first come, first served
    places = waiting + 1
    taken, batch_seconds = 0, 1.0

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(wait=False, cancel_futures=True)

    # No pages for people: they would load their scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, openapi_url=wire.SCHEMA, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.openapi = lambda: wire.schema(info, token is not None)  # type: ignore[method-assign]

    def say(content: bytes) -> Response:
        return Response(content, media_type="application/json")

    @app.get(wire.HEALTH)
    async def health() -> Response:
        return say(b'{"status": "ok"}')

    @app.get(wire.INFO)
    async def tell_info() -> Response:
        return say(wire.write_info(info))

    @app.post(wire.SCORE)
    async def score(request: Request) -> Response:
        nonlocal taken, batch_seconds
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a web page can send anything else without being asked first
            raise wire.Refused(415, "unsupported_media_type", "The body must be declared as application/json.")
        if taken == places:
            seconds = min(LONGEST_RETRY, max(1, round(batch_seconds)))
            raise wire.Refused(
                429, "busy", f"All {places} places are taken; come again.", {"Retry-After": str(seconds)}
            )
        taken += 1
        try:
            body = await _read_body(request, limits.bytes)
            async with turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                started = time.monotonic()
                reply = await asyncio.get_running_loop().run_in_executor(worker, _answer, critic, body, limits)
                batch_seconds = time.monotonic() - started
        finally:
            taken -= 1
        return say(reply)

    def refuse(refused: wire.Refused) -> Response:
        content = wire.write_error(refused.code, refused.message)
        return Response(content, refused.status, refused.headers, "application/json")

    @app.exception_handler(wire.Refused)
    async def refused(request: Request, error: wire.Refused) -> Response:
        return refuse(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        sentence = f"{error.detail}; the service has {wire.HEALTH}, {wire.INFO}, {wire.SCORE} and {wire.SCHEMA}."
        return refuse(wire.Refused(error.status_code, code, sentence, error.headers))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return refuse(wire.Refused(500, "internal", "A fault of the service; its own output says more."))

    app.add_middleware(_Guard, token=token, refuse=refuse)
    return app


async def _read_body(request: "AnyRequest", most: int) -> bytearray:
    """The body, of which never more than `most` bytes are held."""
    too_large = wire.Refused(413, "too_large", f"The body has more than {most:,} bytes.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                if len(body) + len(chunk) > most:
                    raise too_large
                body += chunk
    except TimeoutError as error:
        raise wire.Refused(408, "slow", f"The body did not arrive within {BODY_SECONDS:g} seconds.") from error
    return body


def _answer(critic: Critic, body: bytearray, limits: wire.Limits) -> bytes:
    """The reply to one body; runs on the critic's own thread."""
    seen, tasks = wire.read_request(body, limits)
    try:
        return wire.write_scores(critic.name, judge(critic, [one.image for one in seen], tasks), seen)
    except UserError as error:
        raise wire.Refused(503, wire.STOPPED, str(error)) from error


class _Guard:
    """Lets nobody in without the token or, where there is none, by another name than a loopback address."""

    def __init__(self, app: "ASGIApp", token: str | None, refuse: Callable[[wire.Refused], Any]) -> None:
        self._app, self._token, self._refuse = app, token, refuse

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        refused = self._objection(scope) if scope["type"] == "http" else None
        await (self._app if refused is None else self._refuse(refused))(scope, receive, send)

    def _objection(self, scope: "Scope") -> wire.Refused | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._token is None:
            host = headers.get(b"host", b"").decode("latin-1")
            if is_loopback(re.sub(r":\d*$", "", host).strip("[]")):
                return None
            return wire.Refused(
                403, "forbidden_host", "Without a token, only requests to a loopback address are answered."
            )
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scope["path"] == wire.HEALTH:
            return None
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token.encode()):
            return None
        return wire.Refused(
            401, "unauthorized", "Send the service's token: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"}
        )


# --- The command ----------------------------------------------------------------------------------------------


def serve(
    critic: str,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token_env: str = TOKEN,
    model: str = "lab",
    device: str = "auto",
    dtype: str = "auto",
    max_judge_cost: float | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve a critic by its name until the process is told to stop. Raises UserError before a model is loaded.

    Args:
        port: 0 takes any free one; `tell` is told the address.
        token_env: environment variable that holds the token; without one only loopback addresses are served.
        model, device, dtype: the drawing model, loaded only for critics that ask it (`self`).
    """
    named = naming.find(critic)
    naming.settings_of(named)
    check_variable(token_env)
    token = token_in(token_env)
    if token is None and token_env != TOKEN:
        raise UserError(f"The environment variable {token_env} is not set; put the service's token into it.")
    if token is None and not is_loopback(host):
        raise UserError(
            f"Serving at {host}, where others can reach it, needs a token; put one into the environment variable "
            f"{token_env}, e.g. export {token_env}=$(openssl rand -hex 24)."
        )
    try:
        import uvicorn
    except ImportError as error:
        raise UserError("Serving needs the package 'uvicorn'; install it with pip install 'milr[serve]'.") from error
    with _listen(host, port) as listening:
        backbone = None
        if needs_backbone(named):
            from milr.backbones import load

            backbone = load(model, device=device, dtype=dtype)
        made = naming.make(named, backbone, Place(max_judge_cost=max_judge_cost))
        app = create_app(made, token=token, summary=named.part.summary)
        config = configure(app)
        shown = f"[{host}]" if ":" in host else host
        tell(f"the critic '{made.name}' answers at http://{shown}:{listening.getsockname()[1]} (Ctrl-C stops it)")
        uvicorn.Server(config).run([listening])


def configure(app: "ASGIApp", **options: Any) -> "Config":
    """How a service runs under uvicorn; `options` are uvicorn's own and win."""
    import uvicorn

    from milr.serve.deadline import Deadline

    usual: dict[str, Any] = {
        "http": Deadline, "ws": "none", "lifespan": "on", "log_level": "warning", "access_log": False,
        "server_header": False, "proxy_headers": False, "timeout_graceful_shutdown": STOP_SECONDS,
    }  # fmt: skip
    return uvicorn.Config(app, **{**usual, **options})


def needs_backbone(critic: str | naming.Named) -> bool:
    """Whether a critic, or a part of a mix, asks the model that draws. One with a model of its own does not, unless its
    settings say so (`asks_backbone`, as those of `vqa-score,model=backbone`)."""
    named = naming.find(critic) if isinstance(critic, str) else critic
    module, settings = registry.load(named.part), naming.settings_of(named)
    components = getattr(module, "components", None)
    if components is not None:
        return any(needs_backbone(one) for one in components(settings))
    return bool(getattr(module, "NEEDS_BACKBONE", True) or getattr(settings, "asks_backbone", False))


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound already, so that a taken port is found before a model is loaded."""
    if not 0 <= port <= 65_535:
        raise UserError(f"There is no port {port}; ports go from 0 (any free one) to 65535.")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        why = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]  # the rest repeats the address
        raise UserError(f"Cannot listen at {host}, port {port} ({why}); choose another --host or --port.") from error
