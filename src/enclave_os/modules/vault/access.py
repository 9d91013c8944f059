"""The door of every operation: who asks, what the rules say, and an entry in the audit before any answer.

    caller (401)  ->  rules of the section, and those of the secret or key (403)  ->  it is there (404)  ->  the work

What is refused tells nothing of what is there: where the caller may not make or list anything at a path, one 403
answers for a secret that is not his and for one that is not there, after the same reads of the store. Each refusal of
somebody known is audited; a bad token's is not, since nobody is known, and a flood of them must cost nothing that
lasts.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from enclave_os.errors import ClockUntrusted, SealBroken, VersionConflict
from enclave_os.http import HTTPError, Request
from enclave_os.modules.api import Services, Table, Token, Write
from enclave_os.modules.vault.audit import AuditTrail, Event
from enclave_os.modules.vault.policy import Caller, Decision, Rule, decide
from enclave_os.modules.vault.turns import Turns

DENIED: Final = "not allowed, or not there"
ABSENT: Final = "not there"
UNTIMED: Final = "the clock is not trusted now, so nothing that rests on time is done"
ATTEMPTS_MAX: Final = 8  # of an operation that reads, then writes, while others write the same
PATH_TOKEN_SIZE: Final = 16

Result = TypeVar("Result")


class Refused(Exception):
    """An operation that is not done: for the audit in one word, for the caller as status and text."""

    def __init__(self, status: int, text: str, outcome: str) -> None:
        super().__init__(outcome)
        self.status = status
        self.text = text
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Who:
    """The caller of one request.

    Attributes: token: None when evidence alone speaks.
    """

    caller: Caller
    token: Token | None

    @property
    def key(self) -> bytes:
        """A name for this caller that is no other's."""
        if self.token is not None:
            return caller_key(self.caller.issuer, self.caller.subject)
        return enclave_key(b"" if self.caller.enclave is None else self.caller.enclave.mr_enclave)

    @property
    def name(self) -> str:
        """For `created_by`."""
        if self.token is not None:
            return self.caller.subject
        return "enclave" if self.caller.enclave is None else self.caller.enclave.mr_enclave.hex()


def caller_key(issuer: str, subject: str) -> bytes:
    """The `Who.key` of whoever has a token of that subject; the size keeps two parts from being another two."""
    return hashlib.sha256(f"token {len(issuer)}:{issuer}{subject}".encode()).digest()


def enclave_key(mr_enclave: bytes) -> bytes:
    """The `Who.key` of an enclave without a token."""
    return hashlib.sha256(b"enclave " + mr_enclave).digest()


class PathTokens:
    """What paths are called in the audit: auditors need not learn the names of secrets. `open` makes it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    async def open(cls, table: Table, random: Callable[[int], bytes]) -> PathTokens:
        """With the key of the first start."""
        name = b"path-token-key"
        item = await table.get(name)
        if item is None:
            with contextlib.suppress(VersionConflict):  # another worker was first
                await table.put(name, random(32), expected=0)
            item = await table.get(name)
        if item is None:
            raise SealBroken("what was just written is not there")
        return cls(item.value)

    def of(self, kind: str, path: str) -> str:
        """The name of a path; "" stays ""."""
        if not path:
            return ""
        return hmac.digest(self._key, f"{kind}\0{path}".encode(), "sha256")[:PATH_TOKEN_SIZE].hex()


class Access:
    """Decides, audits, and lets operations in.

    Args: rules: of the section.
    """

    def __init__(
        self, services: Services, rules: Sequence[Rule], trail: AuditTrail, path_tokens: PathTokens, spent: Table
    ) -> None:
        self._services = services
        self._rules = rules
        self._trail = trail
        self._paths = path_tokens
        self._spent = spent
        self._turns = Turns()

    # -- who asks ------------------------------------------------------------------------------------------------------

    async def who(self, request: Request) -> Who:
        """The caller, by token, by evidence for this TLS session, or both. Raises: HTTPError: 401."""
        peer = self._services.attestation.peer(request)
        if peer is not None and peer.tier != "session":
            peer = None  # the handshake says who, and authorises nothing (RT15)
        if peer is not None and "authorization" not in request.headers:
            return Who(Caller(enclave=peer), None)
        token = await self._services.tokens.verify(request)
        await self._spend(token)
        return Who(Caller(token.issuer, token.subject, token.roles, token.scopes, peer), token)

    async def who_by_text(self, text: str) -> Who:
        """The caller whose token came in the body."""
        token = await self._services.tokens.verify_text(text)
        await self._spend(token)
        return Who(Caller(token.issuer, token.subject, token.roles, token.scopes), token)

    async def _spend(self, token: Token) -> None:
        """A one-time token is remembered in the sealed store as well: a restart does not give it back."""
        if not token.one_time:
            return
        name = caller_key(token.issuer, token.token_id)
        try:
            await self._spent.put(name, token.expires_at.to_bytes(8, "big"), expected=0)
        except VersionConflict:
            raise HTTPError(401, "a valid bearer token is required") from None

    # -- what the rules say --------------------------------------------------------------------------------------------

    def allows(self, who: Who, action: str, path: str, rules: Sequence[Rule] = ()) -> bool:
        """Whether the rules of the section and those of the secret or key, together, let the caller do it."""
        return decide((*self._rules, *rules), who.caller, action, path) is Decision.ALLOWED

    def check(
        self, who: Who, action: str, path: str, rules: Sequence[Rule] | None, granted: Rule | None = None
    ) -> None:
        """Let pass, or raise.

        Args:
            rules: of the secret or key; None: it is not there.
            granted: what holds of this caller beside the section's rules.
        Raises: Refused: 403; 404 only for whom the section lets make or list things at that path.
        """
        more = () if granted is None else (granted,)
        if rules is not None:
            if self.allows(who, action, path, (*rules, *more)):
                return
        elif any(self.allows(who, f"{action.partition('.')[0]}.{verb}", path, more) for verb in ("create", "list")):
            raise Refused(404, ABSENT, "absent")
        raise Refused(403, DENIED, "denied")

    # -- the audit -----------------------------------------------------------------------------------------------------

    async def record(
        self,
        who: Who,
        action: str,
        path: str,
        writes: Sequence[Write] = (),
        *,
        outcome: str = "allowed",
        version: int = 0,
        detail: str = "",
    ) -> None:
        """Audit, with what the operation writes; returns when both are durable. Raises: see `AuditTrail.record`."""
        token_id = "" if who.token is None else who.token.token_id
        path_token = self._paths.of(action.partition(".")[0], path)
        await self._trail.record(Event(who.caller, action, path_token, outcome, token_id, version, detail), writes)

    async def change(self, who: Who, action: str, path: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """`run` what writes a secret or key, one after the other for each."""
        async with self._turns.of(f"{action.partition('.')[0]} {path}"):
            return await self.run(who, action, path, work)

    async def run(self, who: Who, action: str, path: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do one operation, again while others write the same; audit it when it is refused.

        `work` calls `check` and, when it is done, `record`.

        Raises: HTTPError: what the caller is told. What the store raises goes through.
        """
        try:
            for _ in range(ATTEMPTS_MAX):
                with contextlib.suppress(VersionConflict):
                    return await work()
            raise Refused(409, "it is written all the time: try again", "conflict")
        except Refused as refused:
            try:
                await self.record(who, action, path, outcome=refused.outcome)
            except ClockUntrusted as error:
                raise HTTPError(503, UNTIMED) from error
            raise HTTPError(refused.status, refused.text) from None
        except ClockUntrusted as error:
            raise HTTPError(503, UNTIMED) from error

    def path_token(self, kind: str, path: str) -> str:
        """What a path is called in the audit: for those who may see the path."""
        return self._paths.of(kind, path)
