"""The demo's server: a page and its answers, from the standard library, for the browser on this machine.

A POST is answered by events, one JSON object a line, as soon as they are there; the last is ``done``, ``error`` or
``superseded``. Pages of other sites get nothing: the header Host must name this machine (a foreign name that leads
here does not), and that of Origin the same. No path comes from the client: pages are in a table, pictures and files
are found by ids that cannot be guessed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import json
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from string import Template
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from gic.bitstream.container import SUFFIX
from gic.demo.turns import Check, SupersededError, Turns
from gic.demo.work import Tell, Wish, Work
from gic.errors import ConfigError, GicError, out_of_memory

PORT = 8421
"""Port if none is named."""
WISH_BYTES = 1 << 16
"""Largest request that is no picture, in bytes."""
PATIENCE = 60.0
"""Seconds that the server waits for the next bytes of a request."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_PARTS = {
    "/base.css": ("pages/base.css", "text/css"),
    "/stage.css": ("pages/stage.css", "text/css"),
    "/stage.js": ("pages/stage.js", "text/javascript"),
    "/demo.css": ("demo/page/demo.css", "text/css"),
    "/demo.js": ("demo/page/demo.js", "text/javascript"),
}
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_local(host: str) -> bool:
    """Whether a name or address is of this machine alone.

    >>> is_local("localhost"), is_local("127.0.0.1"), is_local("0.0.0.0")
    (True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_this_machine(header: str | None, bound: str) -> bool:
    """Whether the header Host of a request is of this server, not of a foreign name that leads here.

    Args:
        header: The header, with or without a port.
        bound: What the server listens to. Beyond this machine it is reached by addresses and by its own name.

    >>> names_this_machine("127.0.0.1:8421", "127.0.0.1"), names_this_machine("evil.example:8421", "127.0.0.1")
    (True, False)
    """
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    if name in _LOCAL_NAMES or name == bound.lower():
        return True
    if is_local(bound):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == socket.gethostname().lower()
    return True


def _part(name: str) -> str:
    return (files("gic") / name).read_text(encoding="utf-8")


@cache
def page() -> str:
    """The page."""
    parts = {name: _part(f"pages/{name}.html") for name in ("stage", "sides")}
    return Template(_part("demo/page/demo.html")).substitute(parts)


class DemoServer(ThreadingHTTPServer):
    """Serves the page; :meth:`serve_forever` runs it, :meth:`stop` ends it.

    Args:
        work: What computes.
        host: Name or address to listen to.
        port: Port, 0 for one that is free; None for :data:`PORT`, or one that is free where that is taken.
        max_bytes: Largest picture that is read, in bytes of its file.

    Raises:
        ConfigError: If the server cannot listen there.
    """

    daemon_threads = True

    def __init__(self, work: Work, host: str = "127.0.0.1", port: int | None = None, max_bytes: int = 1 << 32) -> None:
        self.work, self.host, self.max_bytes = work, host, max_bytes
        self.turns = Turns()
        self.reading = threading.Lock()  # one upload at a time is in memory
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            try:
                super().__init__((host, PORT if port is None else port), _Handler)
            except OSError as error:
                if port is not None or error.errno != errno.EADDRINUSE:
                    raise
                super().__init__((host, 0), _Handler)
        except socket.gaierror as error:
            raise ConfigError(f"{host} is no name or address of this machine: leave out --host") from error
        except OverflowError as error:
            raise ConfigError(f"a port lies in 0 to 65535, not {port}") from error
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ConfigError(f"cannot listen to port {port} of {host} ({why}): name another, or --port 0") from error

    def server_bind(self) -> None:
        """Bind without asking for the host's name in the network, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def url(self) -> str:
        """Address for a browser on this machine."""
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
        host = anywhere.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def stop(self) -> None:
        """End what is computed, and close the socket."""
        self.server_close()
        self.turns.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show errors of the program; that a browser has gone is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class _RefusedError(Exception):
    """A request that is answered with a status and no more."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    timeout = PATIENCE
    server_version = "gic"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page says what matters."""

    # --- reading --------------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        """Hand out the page, its parts, pictures and files."""
        try:
            self._check_host()
            path = urlsplit(self.path).path
            if path == "/":
                self._send(page().encode(), "text/html; charset=utf-8")
            elif path in _PARTS:
                name, kind = _PARTS[path]
                self._send(_part(name).encode(), f"{kind}; charset=utf-8")
            elif path == "/api/about":
                about = {**self.server.work.about(), "max_bytes": self.server.max_bytes}
                self._send(json.dumps(about).encode(), "application/json")
            elif path.startswith("/pictures/") and (image := self.server.work.shown(_id(path, ".png"))) is not None:
                self._send(_png(image), "image/png")
            elif path.startswith("/files/") and (data := self.server.work.file(_id(path, SUFFIX))) is not None:
                self._send(data, "application/octet-stream", {"Content-Disposition": "attachment"})
            else:
                raise _RefusedError(HTTPStatus.NOT_FOUND, "there is no such page, or it is no longer kept")
        except _RefusedError as refused:
            self._refuse(refused)

    def do_POST(self) -> None:
        """Take a picture, or answer a wish."""
        try:
            self._check_host()
            if urlsplit(self.headers.get("Origin", "")).netloc != self.headers.get("Host"):
                raise _RefusedError(HTTPStatus.FORBIDDEN, "this request is not from gic's own page")
            url = urlsplit(self.path)
            work = self.server.work
            if url.path == "/api/pictures":
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                length = self._length(self.server.max_bytes)
                with self.server.reading:
                    data = self._body(length)
                    self._answer(query, lambda tell, check: work.add(data, query.get("whole") == "1", tell))
                return
            given = self._json()
            jobs: dict[str, Callable[[Tell, Check], None]] = {
                "/api/examples": lambda tell, check: work.example(given.get("example"), bool(given.get("whole")), tell),
                "/api/compare": lambda tell, check: work.compare(Wish.of(given), tell, check),
                "/api/judge": lambda tell, check: work.judge(list(given.get("pictures") or ())[:2], tell, check),
            }
            if url.path not in jobs:
                raise _RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")
            self._answer(given, jobs[url.path])
        except _RefusedError as refused:
            self._refuse(refused)

    def _check_host(self) -> None:
        if not names_this_machine(self.headers.get("Host"), self.server.host):
            raise _RefusedError(HTTPStatus.FORBIDDEN, f"gic demo answers to {self.server.url} alone")

    def _length(self, most: int) -> int:
        """Bytes of the request, which are not read yet."""
        given = self.headers.get("Content-Length", "")
        if not (given.isascii() and given.isdecimal()) or len(given) > 18:
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "a request must say its size")
        if int(given) > most:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {most} bytes are not taken")
        return int(given)

    def _body(self, length: int) -> bytes:
        data = self.rfile.read(length)
        if len(data) < length:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the request is cut short")
        return data

    def _json(self) -> dict[str, Any]:
        try:
            given = json.loads(self._body(self._length(WISH_BYTES)))
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the request is no JSON object")
        return given

    # --- answering ------------------------------------------------------------------------------------------------

    def _headers(self, status: HTTPStatus, kind: str, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, data: bytes, kind: str, more: Mapping[str, str] | None = None) -> None:
        self._headers(HTTPStatus.OK, kind, {"Content-Length": str(len(data)), **(more or {})})
        self.wfile.write(data)

    def _refuse(self, refused: _RefusedError) -> None:
        text = f"{refused}\n".encode()
        self._headers(refused.status, "text/plain; charset=utf-8", {"Content-Length": str(len(text))})
        self.wfile.write(text)

    def _answer(self, given: Mapping[str, Any], job: Callable[[Tell, Check], None]) -> None:
        """Do a job in its turn and send its events; an error is one, in plain words."""
        try:
            page, number = str(given["page"])[:64], int(given["number"])
        except (KeyError, TypeError, ValueError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the request has no page or number") from None
        self._headers(HTTPStatus.OK, "application/x-ndjson")

        def tell(event: Mapping[str, Any]) -> None:
            try:
                self.wfile.write(json.dumps(event, allow_nan=False).encode() + b"\n")
            except OSError:  # the page is gone
                raise SupersededError from None

        with contextlib.suppress(SupersededError):
            tell(self._done(page, number, job, tell))

    def _done(self, page: str, number: int, job: Callable[[Tell, Check], None], tell: Tell) -> Mapping[str, Any]:
        """Do a job; the last event of its answer."""
        try:
            with self.server.turns.take(page, number) as check:
                job(tell, check)
            return {"event": "done"}
        except SupersededError:
            return {"event": "superseded"}
        except GicError as error:
            return {"event": "error", "text": str(error)}
        except Exception as error:
            if out_of_memory(error):
                return {"event": "error", "text": "the memory does not suffice for this picture: take a smaller one"}
            traceback.print_exc()
            return {
                "event": "error",
                "text": f"this is an error of gic itself ({type(error).__name__}): the terminal shows more",
            }


def _id(path: str, suffix: str) -> str:
    """The id in the path of a picture or file."""
    return path.rpartition("/")[2].removesuffix(suffix)


def _png(image: Image.Image) -> bytes:
    """A picture as a file, quickly made: it does not leave the machine."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
