"""JSON that others wrote, read so that two readers cannot understand it differently."""

from __future__ import annotations

import json
from typing import Any


def load_object(data: bytes) -> dict[str, Any]:
    """One JSON object in UTF-8 (RFC 8259), no member twice, no NaN or Infinity.

    Raises: ValueError: it is none; also when it nests too deeply.
    """
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_no_member_twice, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _no_member_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _no_constant(text: str) -> object:
    raise ValueError(text)
