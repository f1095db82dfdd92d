"""Addresses of cameras: what may be shown of one, how to ask for it, and secrets kept elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

from edge.errors import CameraError
from edge.files import plain_text

__all__ = ["bare_address", "check_login", "filled_in", "public_name"]

# One word of a command or pipeline that holds an address, up to a space or a quote.
_ADDRESS = re.compile(r"(?<=://)[^\s\"']+")
# Names of parameters whose values nobody should read: ?usr=me&pwd=..., user-pw=... of rtspsrc.
_SECRET = re.compile(
    r"(?i)((?<![a-z])[\w-]*(?:pw|pwd|psw|pass|passwd|passwort|password|passphrase|loginpas|token|"
    r"secret|key|auth|authorization|credentials?|sig|signature|jwt|session|sid)=)"
    r"(\"[^\"]*\"|'[^']*'|[^&\s\"']+)"
)
_PLACEHOLDER = re.compile(r"\{(env|file):([^{}]+)\}")
_LONGEST_SECRET = 4096


def public_name(address: str) -> str:
    """Return an address or pipeline without its users and passwords, for logs and pages.

    A password that holds `/`, `?`, `#` or `@` without being percent-encoded is removed too, at the
    price of a part of the path where the two cannot be told apart.
    """
    shown = _ADDRESS.sub(lambda found: found[0][_login_end(found[0]) :], address)
    return plain_text(_SECRET.sub(r"\1***", shown))


def _login_end(rest: str) -> int:
    """Return where the user and password end in what follows `://`, wherever they might."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    at = authority.rfind("@")
    if at < 0 and ":" not in authority:
        return 0
    path, _, _ = rest.partition("=")
    # A password may hold / ? and #; an @ behind = is the value of a parameter.
    return max(at, path.rfind("@")) + 1


def bare_address(address: str) -> str:
    """Return an address without its user and password, as it is asked for (RFC 3986)."""
    return re.sub(r"(?<=://)[^/?#\s\"']*@", "", address)


def check_login(address: str) -> None:
    """Check that a user and password, if there are any, end where the address says.

    Raises:
        CameraError: the password holds `/`, `?` or `#`, which end the part that names the host.
    """
    rest = address.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if _login_end(rest) > len(authority) and not re.fullmatch(r".*:\d{1,5}|.*@.*", authority):
        raise CameraError(
            f"{public_name(address)}: the password holds / ? or #; write them as %2F %3F %23, or "
            "take the password from a variable or file: rtsp://USER:{env:NAME}@HOST/"
        )


def filled_in(text: str) -> str:
    """Return `text` with each `{env:NAME}` and `{file:PATH}` replaced by what they hold.

    In an address what comes in is percent-encoded, in a GStreamer pipeline it is quoted, so that a
    password may hold any character. Other users of a machine see command lines; they see neither
    the variables nor the files of yours.

    Raises:
        CameraError: there is no such variable or file, or it is empty.
    """
    pipeline = text.startswith("gst:")

    def value(found: re.Match[str]) -> str:
        secret = _secret(found[1], found[2])
        behind = re.search(r"://[^\s\"']*$", text[: found.start()])
        if pipeline and not behind:
            return '"' + re.sub(r'(["\\])', r"\\\1", secret) + '"'
        return quote(secret, safe="") if "://" in text else secret

    return _PLACEHOLDER.sub(value, text)


def _secret(kind: str, name: str) -> str:
    if kind == "env":
        found = os.environ.get(name, "")
        where = f"the variable {name}"
    else:
        where = name
        try:
            with Path(name).expanduser().open(encoding="utf-8") as file:
                found = file.read(_LONGEST_SECRET).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise CameraError(f"{name}: cannot be read: {reason}") from error
    if not found:
        raise CameraError(f"{where} is not set or empty; it should hold a camera's password")
    return found
