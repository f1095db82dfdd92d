"""Who may see the dashboard: addresses, tokens, names in `Host`, and what a page may load.

On the loopback interface any program of this machine may look. A page of a foreign site that the
user has open must not: `Host` is checked, because such a site can let its own name point at
127.0.0.1 (DNS rebinding), and no answer may be embedded or framed elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from edge.files import read_file

__all__ = [
    "Address",
    "check_token",
    "choose_token",
    "may_enter",
    "own_host",
    "parse_address",
    "security_headers",
    "token_of_file",
]

_SHORTEST_TOKEN = 12


@dataclass(frozen=True)
class Address:
    """An IP address to listen on, a port (0: any free one), and the IP version."""

    host: str
    port: int
    family: socket.AddressFamily

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return ipaddress.ip_address(self.host).is_loopback

    def url(self, port: int, token: str) -> str:
        """Return what to open in a browser."""
        host = self.host
        if ipaddress.ip_address(host).is_unspecified:
            host = _outward(self.family)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}/" + (f"?token={token}" if token else "")


def parse_address(text: str) -> Address:
    """Read `HOST:PORT`, `[::1]:PORT`, `:PORT` or `PORT`; without a host the loopback interface.

    Raises:
        ValueError: it is none of these, or the host has no address.
    """
    host, colon, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535 or (colon and ":" in host and host[:1] != "["):
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8080")
    name = host.strip("[]") or "127.0.0.1"
    try:
        found = socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"{text!r}: no machine has the name {name}") from error
    family, _, _, _, place = min(found, key=lambda one: one[0] != socket.AF_INET)
    return Address(str(place[0]), int(port), family)


def check_token(wanted: str) -> str:
    """Return `wanted`, if it can serve as a token.

    Raises:
        ValueError: it is so short that it can be guessed, or cannot be part of an address.
    """
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", wanted) or len(wanted) < _SHORTEST_TOKEN:
        raise ValueError(
            f"a token has at least {_SHORTEST_TOKEN} letters, digits or . _ ~ -; leave it out for "
            "a random one"
        )
    return wanted


def token_of_file(path: Path) -> str:
    """Return the token that a file holds, without the spaces and line ends around it.

    Raises:
        ArtifactError: the file cannot be read.
        ValueError: as `check_token`.
    """
    return check_token(read_file(path, limit=4096).decode("latin-1").strip())


def choose_token(wanted: str | None, address: Address) -> str:
    """Return the token that visitors need: `wanted`, else a random one; "" on loopback.

    Raises:
        ValueError: as `check_token`.
    """
    if wanted is not None:
        return check_token(wanted)
    return "" if address.loopback else secrets.token_urlsafe(18)


def own_host(header: str, address: Address) -> bool:
    """Return whether a `Host` header is a name that nobody else can let point here."""
    try:
        name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or _is_ip(name):
        return True
    # A name server of the local network may append its domain to the name of this machine.
    own = socket.gethostname().lower().partition(".")[0]
    return not address.loopback and name.partition(".")[0] == own


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def may_enter(token: str, cookie: str, headers: Mapping[str, str], query_token: str) -> bool:
    """Return whether a request has the token: as bearer, in the cookie, or in its address.

    Each is compared in constant time.
    """
    if not token:
        return True
    kind, _, bearer = headers.get("Authorization", "").partition(" ")
    bearer = bearer.strip() if kind.lower() == "bearer" else ""
    given = [query_token, bearer, _cookie(cookie, headers)]
    return any(hmac.compare_digest(one.encode(), token.encode()) for one in given)


def _cookie(name: str, headers: Mapping[str, str]) -> str:
    try:
        jar = SimpleCookie(headers.get("Cookie", ""))
    except CookieError:
        return ""
    return jar[name].value if name in jar else ""


def security_headers(page: str = "") -> dict[str, str]:
    """Return the headers of an answer; a page may run its own script and style, by their hash."""
    allowed = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    if page:
        script, style = (_hashes(page, tag) for tag in ("script", "style"))
        allowed += f"; img-src 'self' data:; connect-src 'self'; script-src {script}"
        allowed += f"; style-src {style}"
    return {
        "Content-Security-Policy": allowed,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _hashes(page: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()) for body in bodies)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests) or "'none'"


def _outward(family: socket.AddressFamily) -> str:
    """Return this machine's address on the way out; connecting a datagram socket sends nothing."""
    # Addresses for documentation: RFC 5737, RFC 3849.
    target = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as door:
            door.connect((target, 9))
            return str(door.getsockname()[0])
    except OSError:
        return socket.gethostname()
