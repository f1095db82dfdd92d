"""Why a stream cannot be opened: OpenCV says only that it could not."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from apps.source_frame import bare_address

__all__ = ["probe_rtsp"]

_PATIENCE_S = 2.0


def probe_rtsp(address: str) -> str:
    """What an RTSP server says to a DESCRIBE without credentials, or why there is no answer.

    A camera with a password says `401 Unauthorized` whatever the password is.
    """
    try:
        parts = urlsplit(address)
        place = (parts.hostname or "", parts.port or (322 if parts.scheme == "rtsps" else 554))
    except ValueError as error:
        return f"no address: {error}"
    if not place[0]:
        return "no address: it names no host"
    try:
        with socket.create_connection(place, _PATIENCE_S) as door:
            if parts.scheme == "rtsps":
                return f"{place[0]} answers on port {place[1]}, but gives no stream"
            request = f"DESCRIBE {bare_address(address)} RTSP/1.0\r\nCSeq: 1\r\n\r\n"
            door.sendall(request.encode())
            line = door.recv(1024).split(b"\r\n", 1)[0].decode("latin-1").strip()
    except OSError as error:
        return f"no answer from {place[0]} port {place[1]}: {error.strerror or error}"
    kind, _, status = line.partition(" ")
    if not kind.startswith("RTSP/"):
        return f"what answers on port {place[1]} does not speak RTSP"
    return f"the camera answers {status[:80]}"
