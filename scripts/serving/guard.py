"""Who may ask, and how much they may send: checked before anything else looks at a request."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response

from model.serving.latencies import Latencies
from scripts.serving.bodies import limited, most_bytes, refusal

COOKIE = "lightningdot"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass
class Guard:
    """An ASGI application around another one.

    Args:
        app: what answers
        host: the address that is listened at
        token: what a request must know; empty: nothing
        latencies: is told how requests ended
    """

    app: object
    host: str
    token: str
    latencies: Latencies
    names: set[str] = field(init=False)  # of this machine, that a request may call it by

    def __post_init__(self):
        self.names = {"localhost", self.host.lower()}
        if not is_loopback(self.host):
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message):
            if message["type"] == "http.response.start":
                self.latencies.count(str(message["status"]))
                added = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    added[name] = value
                added.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._refusal(scope, headers)
        await (answer or self.app)(scope, limited(receive, headers), send_guarded)

    def _refusal(self, scope, headers: Headers) -> Response | None:
        """What a request is answered with that does not come through."""
        if not self._knows_host(headers.get("host", "")):
            return refusal(421, "the Host of the request is no name of this service")
        if scope["method"] not in ("GET", "HEAD") and _is_cross_site(headers):
            return refusal(403, "requests from pages of other sites are refused")
        if self.token:
            asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            given = next((value for name, value in asked if name == "token"), None)
            if given is not None and scope["method"] in ("GET", "HEAD") and self._is_token(given):
                left = urlencode([pair for pair in asked if pair[0] != "token"])
                path = "/" + scope["path"].lstrip("/\\")  # never another host
                answer = RedirectResponse(path + f"?{left}" * bool(left), 303)
                answer.set_cookie(COOKIE, self._session, httponly=True, samesite="lax", path="/")
                return answer
            if not self._is_known(headers):
                return refusal(401, "an access token is needed: open /?token=TOKEN once, or send Authorization: Bearer TOKEN")
        size = headers.get("content-length", "0")
        if size.isdecimal() and int(size[:16]) > most_bytes(headers):
            return refusal(413, f"the body has {size if len(size) > 16 else f'{int(size):,}'} bytes, expected at most {most_bytes(headers):,}")
        return None

    def _knows_host(self, given: str) -> bool:
        try:
            name = (urlsplit(f"//{given}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.names or is_loopback(name):
            return True
        if is_loopback(self.host):
            return False
        try:
            ipaddress.ip_address(name)  # an address cannot be bound anew to another machine, a name can
            return True
        except ValueError:
            return False

    @property
    def _session(self) -> str:
        """What the cookie holds, from which the token cannot be told."""
        return hashlib.sha256(b"session " + self.token.encode()).hexdigest()

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self.token.encode())

    def _is_known(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._session.encode())


def _is_cross_site(headers: Headers) -> bool:
    """Whether the page of another site sent it; what is not a browser says nothing of that kind."""
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True
