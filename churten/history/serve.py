"""A local web server for the pages: read-only, on loopback unless told otherwise.

Any web page a user visits can send his browser to a port of his own machine. So a request must name this server in its Host header (a foreign name that
was made to point here does not), only GET and HEAD are known, nothing may be framed or scripted, and no other site may read an answer.
"""

from __future__ import annotations

import http.server
import ipaddress
import socket
import typing as t
import urllib.parse

from . import ingest, pages, store
from .place import Place, Unusable

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TIMEOUT_S = 30.0


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class Server(http.server.ThreadingHTTPServer):
    """Serves one history. `names`: further names it may be called by, beside its address and localhost."""

    daemon_threads = True

    def __init__(self, place: Place, address: str, port: int, names: t.Sequence[str] = ()) -> None:
        """Raises OSError if it cannot listen."""
        self.place = place
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)
        self.names = {name.lower() for name in (*names, "localhost", "127.0.0.1", "[::1]", f"[{address}]" if ":" in address else address)}

    @property
    def url(self) -> str:
        """Where it is."""
        address, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"

    def server_bind(self) -> None:
        """Without the look-up of the machine's name that the base class does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "churten"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """A page."""
        status, text = self._answer()
        data = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        """Every answer, errors of the base class too, has the headers."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _answer(self) -> tuple[int, str]:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self._is_me(hosts[0]):
            return 421, "This server is not called that. Use its address, or start it with --name NAME.\n"
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return 403, "Not from another site.\n"
        try:
            split = urllib.parse.urlsplit(self.path)
            try:
                ingest.runs(self.server.place, wait_s=0.0)
            except Unusable:
                pass  # what is there is shown
            with store.opened(self.server.place) as db:
                return 200, pages.page(db, urllib.parse.unquote(split.path), split.query)
        except (pages.NoPage, ValueError):
            return 404, "No such page.\n"
        except Unusable:
            self.log_error("the history cannot be read")
            return 500, "The history cannot be read: churten history list says why.\n"

    def _is_me(self, host: str) -> bool:
        name, colon, port = host.strip().lower().rpartition(":")
        if not colon or host.endswith("]"):
            name, port = host.strip().lower(), "80"
        return name in self.server.names and port == str(self.server.server_port)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: paths hold nothing of interest."""
