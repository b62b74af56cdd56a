"""The dashboard as an ASGI application: routes and access control.

Only a browser that has the token gets the pages: the URL's token sets a cookie. The Host header has to be 127.0.0.1 or
localhost, so that a web site whose name resolves to 127.0.0.1 (DNS rebinding) can't read the pages. Nothing is loaded
from elsewhere, and no script or style runs but the files served here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemotron_kit.cli.runs.list import chosen_jobs
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.ui.artifact_pages import ArtifactPages
from nemotron_kit.ui.comparing import ComparingPages
from nemotron_kit.ui.page import Links, WebPage
from nemotron_kit.ui.reading import RecordReader, read_log
from nemotron_kit.ui.render import STATIC, STYLE_HASH, encoded, plotly_js, prepare, render
from nemotron_kit.ui.run_pages import RunPages

TOKEN = "token"  # noqa: S105 — the name of a query parameter
# style-src-attr, and the hash of no text: plotly.js makes empty style elements and attributes, which it fills by CSSOM.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {STYLE_HASH}",
        f"style-src-attr 'unsafe-hashes' {STYLE_HASH}",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_HOSTS = frozenset(("127.0.0.1", "localhost", "[::1]"))
_REFUSED = "This page needs the token in the address that `nemotron ui` printed: open that address.\n"
_FILES: Mapping[str, Callable[[], Path]] = {
    "ui.css": lambda: STATIC / "ui.css",
    "ui.js": lambda: STATIC / "ui.js",
    "plotly.js": plotly_js,
}


def make_app(token: str, *, cookie: str = "nemotron-ui", once: str = "") -> Starlette:
    """The application; `token` opens it, and `cookie` is the cookie that then holds it. `once` opens it one time only:
    the command line of a browser that is started with it can be read by the machine's other users."""
    reader = RecordReader()
    runs_of, several, registry = RunPages(reader, Links()), ComparingPages(reader, Links()), ArtifactPages(Links())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(prepare)
        yield
        reader.close()

    routes = [
        _page("/", lambda request: runs_of.runs(request.query_params)),
        _page("/runs/{run}", lambda request: runs_of.run(request.path_params["run"], request.query_params)),
        _page("/runs/{run}/{number:int}", lambda request: runs_of.run(_job_of(request), request.query_params)),
        Route("/runs/{run}/{number:int}/log/{name}", _log),
        _page("/compare", lambda request: several.compare(request.query_params.getlist("run"))),
        _page("/diff", lambda request: several.diff(request.query_params.getlist("run"))),
        _page("/artifacts", lambda _: registry.artifacts()),
        _page("/artifacts/{name}", lambda request: registry.artifact_name(request.path_params["name"])),
        _page(
            "/artifacts/{name}/{version:int}",
            lambda request: registry.artifact(request.path_params["name"], request.path_params["version"]),
        ),
        _page("/lineage", lambda _: registry.lineage()),
        Route("/static/{file}", _static),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Guard, token=token, cookie=cookie, once=once),
            Middleware(GZipMiddleware, minimum_size=2048, compresslevel=4),
        ],
        exception_handlers={NemotronError: _failed},
        lifespan=lifespan,
    )


def _page(path: str, make: Callable[[Request], WebPage]) -> Route:
    """The route of a page. `make` may read many records, so it is called in another thread."""

    async def shown(request: Request) -> Response:
        body = await run_in_threadpool(lambda: encoded(_rendered(request, make(request))))
        # The page asks again every few seconds: what has not changed is not sent.
        tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        headers = {"etag": tag, "cache-control": "no-store"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="text/html", headers=headers)

    return Route(path, shown)


def _rendered(request: Request, page: WebPage) -> str:
    return render(page, Links(), theme=request.cookies.get("theme", ""))


def _job_of(request: Request) -> str:
    return f"{request.path_params['run']}/{request.path_params['number']}"


async def _log(request: Request) -> Response:
    offset = request.query_params.get("from", "")

    def read() -> dict[str, object]:
        found, jobs = chosen_jobs(_job_of(request))
        its = (jobs or found.jobs())[0]
        part = read_log(found, its, request.path_params["name"], int(offset) if offset.isdecimal() else None)
        return {**part, "over": its.state().terminal}

    return JSONResponse(await run_in_threadpool(read), headers={"cache-control": "no-store"})


async def _static(request: Request) -> Response:
    found = _FILES.get(request.path_params["file"])
    if found is None:
        return Response("No such file.\n", 404, media_type="text/plain")
    return FileResponse(found(), headers={"cache-control": "private, max-age=3600"})


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, NemotronError)  # noqa: S101 — what it is registered for
    status = 404 if isinstance(error, UserError) else 500
    title = "Not found" if status == 404 else "It can't be shown"
    shown = WebPage("error.html", title, {"message": error.message, "hint": error.hint})
    return Response(_rendered(request, shown), status, media_type="text/html")


class Guard:
    """Middleware that refuses requests without the token, or with another host's name, and adds the security headers to
    every response."""

    def __init__(self, app: ASGIApp, token: str, cookie: str, once: str) -> None:
        self._app, self._token, self._cookie, self._once = app, token, cookie, once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: there is none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await (self._refusal(Request(scope)) or self._app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """The response to a request that is refused or redirected; None for one that gets the page."""
        if not is_own_host(request.headers):
            return Response("Wrong host name: this page is at http://127.0.0.1.\n", 421, media_type="text/plain")
        if request.method not in ("GET", "HEAD"):
            return Response("This page is read-only.\n", 405, media_type="text/plain")
        given = request.query_params.get(TOKEN)
        first = given is not None and bool(self._once) and _same(given, self._once)
        if given is not None and (first or _same(given, self._token)):
            self._once = "" if first else self._once
            # Out of the address, so that it is in no history and on no screen.
            kept = [(key, value) for key, value in request.query_params.multi_items() if key != TOKEN]
            answer = RedirectResponse(str(request.url.replace(scheme="", netloc="", query=str(QueryParams(kept)))), 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return answer
        if _same(request.cookies.get(self._cookie, ""), self._token):
            return None
        return Response(_REFUSED, 403, media_type="text/plain")


def _same(given: str, expected: str) -> bool:
    """Compare two texts in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def is_own_host(headers: Headers) -> bool:
    """Whether a request's Host header is a name of the loopback address. The port is ignored: an ssh tunnel may have
    another one."""
    hosts = headers.getlist("host")
    if len(hosts) != 1:
        return False
    name, colon, port = hosts[0].rpartition(":")
    if not colon or hosts[0].endswith("]"):
        name, port = hosts[0], "80"
    return name.lower() in _HOSTS and port.isdecimal()
