"""The server of the page: loopback only, a token in the address, known paths alone."""

import hmac
import json
import os
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit

from distae.errors import DistaeError, UserError
from distae.report.explorer.answers import MOST_IMAGE_BYTES, Explorer
from distae.runtime import files

HOST = "127.0.0.1"
NAMES = frozenset({HOST, "localhost"})
"""Of this machine: any other name in a request is another site's, which resolves to this address (DNS rebinding)."""
MOST_BYTES = MOST_IMAGE_BYTES * 4 // 3 + (1 << 16)
"""Of a request's body, which may hold an image in base64."""
IDLE_SECONDS = 60
"""After which a connection is closed."""
HEADERS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip


class RejectedError(Exception):
    """A request that is not answered."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Server(ThreadingMixIn, TCPServer):
    """Serves a page and what an explorer answers to it."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, explorer: Explorer, page: bytes, port: int = 0) -> None:
        """Port 0 is any free one. Raises UserError if it is taken."""
        self.explorer, self.page, self.token = explorer, page, os.urandom(16).hex()
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {files.in_words(error)}; --port 0 takes any free one") from error

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection, or sends nothing for a while, is not worth a line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            sys.stderr.write(f"distae: {type(error).__name__}: {error}\n")


class Handler(BaseHTTPRequestHandler):
    """One connection, which may send several requests."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "distae", ""
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True  # else an answer waits up to 40 ms for the acknowledgement of its headers

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def _get(self) -> tuple[str, bytes]:
        if name := self._name():
            raise RejectedError(HTTPStatus.METHOD_NOT_ALLOWED, f"{name} takes POST")
        return "text/html; charset=utf-8", self.server.page

    def _post(self) -> tuple[str, bytes]:
        closes, self.close_connection = self.close_connection, True  # while there is a body that is not read
        if not (name := self._name()):
            raise RejectedError(HTTPStatus.METHOD_NOT_ALLOWED, "the page takes GET")
        body, explorer = self._body(), self.server.explorer
        self.close_connection = closes
        answer = explorer.answer(name, files.decode(body, explorer.routes[name][0]))
        return "application/json", json.dumps(answer).encode()

    def _answered(self, work: Any) -> None:
        """Send what `work` returns, or why there is no answer."""
        status = HTTPStatus.OK
        try:
            kind, body = work()
        except RejectedError as error:
            status, why = error.status, str(error)
        except (DistaeError, ValueError) as error:
            status, why = HTTPStatus.BAD_REQUEST, str(error)
        except OSError:
            raise
        except Exception as error:
            sys.stderr.write(f"distae: {self.path.rpartition('/')[2]}: {type(error).__name__}: {error}\n")
            status, why = HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}"
        if status is not HTTPStatus.OK:
            kind, body = "application/json", json.dumps({"error": why}).encode()
        self._send(status, kind, body)

    def _name(self) -> str:
        """What is asked for; empty of the page. Raises RejectedError unless it is of this page, by a name of this machine."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        token, slash, name = self.path[1:].partition("/")
        if host not in NAMES or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise RejectedError(HTTPStatus.FORBIDDEN, "open the address that distae explore printed")
        if not slash or (name and name not in self.server.explorer.routes):
            raise RejectedError(HTTPStatus.NOT_FOUND, f"there is no {name[:80]!r} here")
        return name

    def _body(self) -> bytes:
        """Raises RejectedError on one that is too large, or of unknown size."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise RejectedError(HTTPStatus.LENGTH_REQUIRED, "the request has no Content-Length")
        size = int(length[:18])
        if size > MOST_BYTES:
            self._discard(min(size, 4 * MOST_BYTES))
            raise RejectedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MOST_IMAGE_BYTES >> 20} MiB are taken")
        return self.rfile.read(size)

    def _discard(self, size: int) -> None:
        """Read what is not used, since a client that is still sending does not see an answer."""
        while size > 0 and (part := self.rfile.read(min(size, 1 << 20))):
            size -= len(part)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library rejects by itself, such as other methods."""
        self.close_connection = True
        self._send(HTTPStatus(code), "application/json", json.dumps({"error": message or HTTPStatus(code).phrase}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass
