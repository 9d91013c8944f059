"""A JWK set as text, in one form: what host and enclave compute as part of the policy must be the same bytes.

Nothing is known here of keys and curves; what the keys are worth, the enclave finds out (`modules.issuer_keys`).
"""

from __future__ import annotations

import json
from typing import Any, Final

PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518 6.2.2, 6.3.2, 6.4


def canonical_jwks(text: str) -> str:
    """The same keys with sorted members and no spaces.

    Raises: ValueError: no JSON object, a member twice, or a private key; the text says which.
    """
    try:
        document = json.loads(text, object_pairs_hook=_members, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg}, line {error.lineno}") from None
    if not isinstance(document, dict):
        raise ValueError("is no JSON object")
    keys = document.get("keys", [document])
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise ValueError("has no list of keys")
    if any(not PRIVATE_MEMBERS.isdisjoint(key) for key in keys):
        raise ValueError("holds a private key, which nobody but the issuer may have; give the public ones")
    return json.dumps(document, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("has a member twice")
    return members


def _no_number(name: str) -> None:
    raise ValueError(f"holds {name}, which is no number of JSON")
