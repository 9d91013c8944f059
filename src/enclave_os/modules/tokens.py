"""Bearer tokens as a module sees them; import it from `modules.api`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Protocol

from enclave_os.http import Request

SKEW_S_MAX: Final = 5
"""By how much an issuer's clock may be ahead of ours."""


@dataclass(frozen=True, slots=True)
class Token:
    """Who a request comes from, as proved by its bearer token.

    Attributes:
        token_id: the claim `jti`; "" when the token has none.
        roles: from the issuer's roles claim; a manager is also `monitoring`.
        scopes: the words of the claim `scope` (RFC 8693 4.2).
        expires_at: seconds since the Unix epoch.
        claims: all of them, as the issuer signed them. What a claim means beyond the above is for the module to check.
        one_time: the token says so itself: it was good for this one request.
    """

    issuer: str
    subject: str
    token_id: str
    roles: frozenset[str]
    expires_at: int
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    one_time: bool = False


class Spending(IntEnum):
    """What became of a one-time token; u8 between workers."""

    TAKEN = 0
    REFUSED = 1  # spent before, or perhaps in an earlier run
    FULL = 2
    UNREACHED = 3  # whoever remembers did not say


class Spend(Protocol):
    """Takes a token, once; `spent_tokens.SpentTokens.spend` is one, and so is a call of the worker that has it."""

    def __call__(self, name: bytes, issued_at: int, expires_at: int) -> Spending | Awaitable[Spending]:
        """Args: see `SpentTokens.spend`."""


class Tokens(Protocol):
    """Bearer tokens, for what a module decides itself; `modules.auth.Authenticator` is the one there is.

    Every refusal is the same, whatever was wrong with the token.
    """

    async def verify(self, request: Request) -> Token:
        """The request's token, verified. A one-time token is spent by this; ask once a request.

        Raises: HTTPError: 401 for a token that does not stand up to every check, and for none; 403 where no issuer is
            configured; 503 for a good one-time token when it cannot be known whether it was spent.
        """

    async def verify_text(self, token: str) -> Token:
        """The same for a token that came by another way than the Authorization field."""

    @property
    def spend(self) -> Spend:
        """What takes one-time tokens: for an `Authenticator` of a module's own issuers, with a scope of its own."""
