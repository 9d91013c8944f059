"""A request's query, read strictly: `name=value` joined by `&`, any bytes by percent-encoding, each name once."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from enclave_os.http import HTTPError, Request

_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})", re.ASCII)
_PLAIN: Final = re.compile(rb"[A-Za-z0-9._~-]", re.ASCII)  # RFC 3986 2.3


def read_query(request: Request, known: Collection[str]) -> dict[str, bytes]:
    """The query's members, decoded once; a `+` is a `+`.

    The parser has seen to it that two hexadecimal digits follow each `%`.

    Raises: HTTPError: 400: a name that is not known or comes twice.
    """
    found: dict[str, bytes] = {}
    for part in request.query.split("&") if request.query else ():
        name, _, value = part.partition("=")
        if name not in known:
            raise HTTPError(400, f"the query takes {', '.join(sorted(known)) or 'nothing'}")
        if name in found:
            raise HTTPError(400, f"the query has {name} twice")
        found[name] = _ESCAPE.sub(lambda digits: bytes([int(digits[1], 16)]), value.encode("ascii"))
    return found


def read_number(query: dict[str, bytes], name: str, least: int, most: int) -> int | None:
    """A member that is a decimal number; None where there is none. Raises: HTTPError: 400."""
    text = query.get(name)
    if text is None:
        return None
    # isdigit of bytes is ASCII only; the length comes first, since long numbers cost to read.
    if not 0 < len(text) <= len(str(most)) or not text.isdigit() or not least <= int(text) <= most:
        raise HTTPError(400, f"{name} is a number from {least} to {most}")
    return int(text)


def percent_encoded(data: bytes) -> str:
    """Any bytes as text that a query takes, and a path where the bytes are text."""
    return "".join(chr(byte) if _PLAIN.match(bytes([byte])) else f"%{byte:02X}" for byte in data)
