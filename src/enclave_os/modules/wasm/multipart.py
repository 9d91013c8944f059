"""multipart/form-data (RFC 7578) in the one form that clients send: parts with names, bytes between boundaries."""

from __future__ import annotations

import re
from typing import Final

from enclave_os.http import HTTPError

BOUNDARY: Final = re.compile(
    r"""multipart/form-data\s*;\s*boundary=(?:"([^"]{1,70})"|([0-9A-Za-z'()+_,./:=?-]{1,70}))\s*\Z""", re.IGNORECASE
)
NAME: Final = re.compile(r'form-data;(?:[^"]|"[^"]*")*?\bname="([^"]{1,64})"', re.IGNORECASE)
PARTS_MAX: Final = 8
HEAD_SIZE_MAX: Final = 4096


def is_form(content_type: str) -> bool:
    """Whether a body is such a form."""
    return content_type.lower().startswith("multipart/form-data")


def parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts by name. Raises: HTTPError: 400: not of this form."""
    match = BOUNDARY.match(content_type)
    if match is None:
        raise HTTPError(400, "multipart/form-data comes with a boundary")
    mark = b"--" + (match[1] or match[2]).encode("ascii", "replace")
    if not body.startswith(mark + b"\r\n"):
        raise HTTPError(400, "the form does not begin with its boundary")
    found: dict[str, bytes] = {}
    at = len(mark) + 2
    while True:
        head_end = body.find(b"\r\n\r\n", at, at + HEAD_SIZE_MAX)
        end = body.find(b"\r\n" + mark, head_end if head_end >= 0 else at)
        if head_end < 0 or end < 0 or len(found) >= PARTS_MAX:
            raise HTTPError(400, f"the form is not complete, or has more than {PARTS_MAX} parts")
        name = _name(body[at:head_end])
        if name in found:
            raise HTTPError(400, f"the form has two parts {name!r}")
        # A part of no bytes: the blank line's own end is the boundary's beginning.
        found[name] = body[head_end + 4 : end] if end >= head_end + 4 else b""
        at = end + 2 + len(mark)
        if body[at : at + 2] == b"--":
            return found
        if body[at : at + 2] != b"\r\n":
            raise HTTPError(400, "a boundary of the form does not end its line")
        at += 2


def _name(head: bytes) -> str:
    for line in head.decode("utf-8", "replace").split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            match = NAME.match(value.strip())
            if match is not None:
                return match[1]
    raise HTTPError(400, "a part of the form has no name")
