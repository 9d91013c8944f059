"""What requests of the vault say, read strictly: paths, query members, numbers, base64url."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from enclave_os.evidence.protocol import b64url, read_b64url
from enclave_os.http import HTTPError, Request
from enclave_os.modules.vault.policy_document import PATH_SIZE_MAX

NUMBER_MAX: Final = 2**53
NUMBERS_MAX: Final = 64
LIST_MAX: Final = 1000
LIST_DEFAULT: Final = 100
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,15}\Z", re.ASCII)


class Listed(NamedTuple):
    """What of a list is asked for."""

    prefix: str
    after: str
    limit: int


def path_of(request: Request) -> str:
    """The path that the route took from the request."""
    return (request.params or {})["path"]


def query_of(request: Request, known: Collection[str]) -> dict[str, str]:
    """The query's members. Raises: HTTPError: 400: one that is not known, or is there twice."""
    if not request.query:
        return {}
    pairs = [_pair(part) for part in request.query.split("&")]
    found = dict(pairs)
    unknown = sorted(found.keys() - set(known))
    if unknown or len(found) != len(pairs):
        raise HTTPError(400, f"the query has at most, and each once: {', '.join(sorted(known))}")
    return found


def _pair(part: str) -> tuple[str, str]:
    """One member, as forms write it; the parser has looked at the percent signs already (HT5)."""
    name, equals, value = part.partition("=")
    if not equals:
        raise HTTPError(400, "the query is not of the form name=value&name=value")
    return _unquoted(name), _unquoted(value)


def _unquoted(text: str) -> str:
    plain, *rest = text.replace("+", " ").encode().split(b"%")
    try:
        return (plain + b"".join(bytes((int(part[:2], 16),)) + part[2:] for part in rest)).decode("utf-8")
    except ValueError:  # also UnicodeDecodeError
        raise HTTPError(400, "the query is not UTF-8") from None


def number(text: str, name: str, least: int, most: int) -> int:
    """A decimal number. Raises: HTTPError: 400."""
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise HTTPError(400, f"{name} is a number from {least} to {most}")
    return int(text)


def numbers(text: str, name: str) -> frozenset[int]:
    """Numbers of versions, joined by commas. Raises: HTTPError: 400."""
    parts = text.split(",")
    if len(parts) > NUMBERS_MAX:
        raise HTTPError(400, f"{name} names at most {NUMBERS_MAX} versions")
    return frozenset(number(part, name, 1, NUMBER_MAX) for part in parts)


def version_of(request: Request) -> int:
    """The one version that the query names, and nothing else; 0: none. Raises: HTTPError: 400."""
    query = query_of(request, ("version",))
    return number(query["version"], "version", 1, NUMBER_MAX) if "version" in query else 0


def versions_of(request: Request) -> frozenset[int]:
    """The versions that the query names, and nothing else; empty: none. Raises: HTTPError: 400."""
    query = query_of(request, ("versions",))
    return numbers(query["versions"], "versions") if "versions" in query else frozenset()


def listed(request: Request) -> Listed:
    """What the query asks of a list. Raises: HTTPError: 400."""
    query = query_of(request, ("prefix", "after", "limit"))
    limit = number(query["limit"], "limit", 1, LIST_MAX) if "limit" in query else LIST_DEFAULT
    prefix, after = query.get("prefix", ""), query.get("after", "")
    if len(prefix) > PATH_SIZE_MAX or len(after) > PATH_SIZE_MAX:
        raise HTTPError(400, f"prefix and after have at most {PATH_SIZE_MAX} characters")
    return Listed(prefix, after, limit)


def members_of(request: Request, known: Collection[str]) -> dict[str, Any]:
    """The members of a body that is a JSON object. Raises: HTTPError: 400."""
    found = request.json()
    if not isinstance(found, dict) or not found.keys() <= set(known):
        raise HTTPError(400, f"the body is a JSON object with the members {', '.join(sorted(known))}")
    return found


def text_member(members: dict[str, Any], name: str, size_max: int, default: str | None = None) -> str:
    """A member that is a text. Raises: HTTPError: 400."""
    value = members.get(name, default)
    if not isinstance(value, str) or len(value) > size_max:
        raise HTTPError(400, f"{name} is a text of at most {size_max} characters")
    return value


def bytes_member(members: dict[str, Any], name: str, size_max: int, default: bytes | None = None) -> bytes:
    """A member that is bytes in base64url or base64, with padding or without. Raises: HTTPError: 400."""
    if name not in members and default is not None:
        return default
    data = decoded(members.get(name))
    if data is None or len(data) > size_max:
        raise HTTPError(400, f"{name} is base64url of at most {size_max} bytes")
    return data


def decoded(value: object) -> bytes | None:
    """Base64url or base64 of a text, with padding or without; None: it is neither."""
    if not isinstance(value, str):
        return None
    try:
        return read_b64url(value.rstrip("=").replace("+", "-").replace("/", "_"))
    except ValueError:
        return None


def encoded(data: bytes) -> str:
    """Base64url without padding."""
    return b64url(data)
