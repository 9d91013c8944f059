"""Bearer tokens: ES256 JWTs of the issuers that the configuration names (RFC 6750, 7519, 8725; threat-model.md E).

What is accepted is decided here and never by the token: one algorithm, keys from the configuration, claims by our own
rules and our own clock. PyJWT checks the signature and nothing else, over text that was found canonical before; a
token that comes again is known by its exact text, and only its times are looked at.

A token is judged as a whole: every check runs, whichever failed, the clock is read once and exactly one signature is
verified (a decoy's, when there is nothing to verify), and each failure gets the same 401. A token's identity is its
`jti`; the signature's bytes are no identity, since (r, n-s) verifies as well as (r, s) (JW3).
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from enclave_os.errors import ClockUntrusted, ConfigError, UsageError
from enclave_os.evidence.protocol import b64url, read_b64url
from enclave_os.http import HTTPError, Request, Response, error_response, parse_json
from enclave_os.modules.api import MANAGER, MONITORING, Clock, Token
from enclave_os.modules.issuer_keys import IssuerKey, keys_of
from enclave_os.modules.spent_tokens import SpentTokens, spent_name
from enclave_os.modules.tokens import SKEW_S_MAX, Spend, Spending
from enclave_os.wire.setting_issuers import Issuer

TOKEN_SIZE_MAX: Final = 16 * 1024
LIFETIME_S_MAX: Final = 24 * 3600
# An issuer's clock may be ahead of ours by this much; expiry has no such grace.
NUMERIC_DATE_MAX: Final = 2**53  # JSON numbers are exact up to here (RFC 8259 6)
SIGNATURE_SIZE: Final = 64  # r || s of P-256 (RFC 7518 3.4)
KEY_ID_SIZE_MAX: Final = 256
SUBJECT_SIZE_MAX: Final = 256
KEPT_MAX: Final = 1024
"""Tokens whose signatures were verified, kept by their exact text. Times are asked again with each use."""
KEPT_SIZE_MAX: Final = 4096  # characters of one
TOKEN_ID_SIZE_MAX: Final = 256
ROLES_MAX: Final = 64
ROLE_SIZE_MAX: Final = 64
SCOPES_SIZE_MAX: Final = 4096  # characters of the whole claim

ONE_TIME: Final = "one_time"
"""The claim by which an issuer marks a token that is good for one request: true. It needs a `jti`."""
DEFAULT_ROLES: Final = "roles"
REALM_ROLES: Final = "realm_access.roles"
"""Where Keycloak lists roles; looked at when the configuration names no claim and the token has no `roles`."""

# Each would let the token choose its key or change how it is read (JW2).
REFUSED_HEADERS: Final = frozenset({"jku", "x5u", "jwk", "x5c", "crit", "b64", "zip", "enc"})
TOKEN_TYPES: Final = frozenset({"jwt", "at+jwt"})  # RFC 8725 3.11, RFC 9068 2.1

REASONS: Final = {
    401: "a valid bearer token is required",
    403: "no token issuer is configured; add [[auth.issuers]] with issuer, audience and public_key_pem to "
    "enclave-os.toml (enclave-os token keygen prints one)",
    503: "whether the one-time token was spent cannot be known now: try again later",
}
UNAUTHORIZED: Final = error_response(401, REASONS[401], (("WWW-Authenticate", 'Bearer realm="enclave-os"'),))
FORBIDDEN: Final = error_response(403, "the token does not carry the role that this route needs")
UNCONFIGURED: Final = error_response(403, REASONS[403])
UNREACHED: Final = error_response(503, REASONS[503], (("Retry-After", "1"),))
FULL: Final = error_response(503, REASONS[503], (("Retry-After", "60"),))

_NS_PER_SECOND: Final = 1_000_000_000
_SCOPE: Final = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]*\Z", re.ASCII)  # RFC 6749 3.3
_MISSING: Final = object()
_DECOY: Final = "e30.e30"
# The algorithm itself, and no look at the header: what a token says of its algorithm decides nothing (RFC 8725 3.1).
_ES256: Final = ECAlgorithm(ECAlgorithm.SHA256)

_SPENDING: Final[dict[Spending, Response | None]] = {
    Spending.TAKEN: None,
    Spending.REFUSED: UNAUTHORIZED,
    Spending.UNREACHED: UNREACHED,
    Spending.FULL: FULL,
}

Verify = Callable[[str, ec.EllipticCurvePublicKey], bool]


@dataclass(frozen=True, slots=True)
class _TrustedKey:
    entry: Issuer
    names: frozenset[str]
    key: ec.EllipticCurvePublicKey


def verify_es256(token: str, key: ec.EllipticCurvePublicKey) -> bool:
    """Whether the signature of a compact JWS is `key`'s, by ES256 and nothing else."""
    signed, _, signature = token.rpartition(".")
    try:
        return _ES256.verify(signed.encode("ascii"), key, read_b64url(signature))
    except ValueError:  # also UnicodeEncodeError
        return False


class Authenticator:
    """Judges bearer tokens; `modules.api.Tokens` is its part for modules.

    Args:
        issuers: the configuration's `[[auth.issuers]]`. One issuer may have several keys; then the token's `kid` must
            be the key's thumbprint (RFC 7638) or the `kid` that its JWK has.
        clock: asked once a token.
        verify: checks one signature.
        spend: takes a one-time token where all workers' are remembered; None: in a memory of this one's own.
        scope: what these tokens are for, where it is not the whole server.
    Raises:
        ConfigError: a key that is no P-256 public key, or that is there twice.
    """

    def __init__(
        self,
        issuers: Iterable[Issuer],
        clock: Clock,
        verify: Verify = verify_es256,
        *,
        spend: Spend | None = None,
        scope: str = "",
    ) -> None:
        self._clock = clock
        self._verify = verify
        self._spent = SpentTokens(clock)
        self.spend = self._spent.spend if spend is None else spend
        self._scope = scope
        self._keys: dict[str, list[_TrustedKey]] = {}
        self._kept: dict[str, Token] = {}
        for entry in issuers:
            self.set_keys(entry, keys_of(entry))
        # What is verified when a token gives nothing to verify, so that every refusal costs the same. The private half
        # is forgotten here.
        private = ec.generate_private_key(ec.SECP256R1())
        self._decoy = private.public_key()
        self._decoy_token = f"{_DECOY}.{b64url(_ES256.sign(_DECOY.encode(), private))}"

    def set_keys(self, entry: Issuer, keys: Iterable[IssuerKey]) -> None:
        """Trust these keys of an issuer, and no others that the same entry had before.

        Raises: ConfigError: two have one name; nothing has changed then.
        """
        trusted = [other for other in self._keys.get(entry.issuer, []) if other.entry is not entry]
        for found in keys:
            if any(not other.names.isdisjoint(found.names) for other in trusted):
                raise ConfigError(f"auth.issuers: {entry.issuer}: the same key is there twice")
            trusted.append(_TrustedKey(entry, found.names, found.key))
        self._keys[entry.issuer] = trusted
        self._kept.clear()  # what was verified with a key that is not trusted any more

    def authorize(self, request: Request, role: str) -> Response | Awaitable[Response | None] | None:
        """None lets the request pass, with `request.principal` set; a Response refuses it.

        Awaitable for a one-time token that another worker remembers, and for nothing else.
        """
        found = self._admitted(bearer(request) or "", role, None)
        return self._settle(request, found) if isinstance(found, Token | Response) else self._later(request, found)

    def authorize_at(self, request: Request, role: str, moments: Sequence[int]) -> Response | None:
        """As `authorize`, for a token that must be good at each of `moments` and whatever our clock says.

        For what settles the clock itself: nothing else may be decided so. One-time tokens are not taken here: when they
        may be forgotten is what the clock would say.

        Args: moments: seconds since the Unix epoch, at least one.
        Raises: UsageError: none.
        """
        if not moments:
            raise UsageError("a token is judged at a time")
        return self._settle(request, self._judged(bearer(request) or "", role, moments))

    async def verify(self, request: Request) -> Token:
        """The request's token; see `modules.api.Tokens`. Raises: HTTPError."""
        found = request.principal
        if isinstance(found, Token):
            return found
        token = await self.verify_text(bearer(request) or "")
        request.principal = token
        return token

    async def verify_text(self, token: str) -> Token:
        """A token as text; see `modules.api.Tokens`. Raises: HTTPError."""
        found = self._admitted(token, None, None)
        if not isinstance(found, Token | Response):
            found = await found
        if isinstance(found, Response):
            raise HTTPError(found.status, REASONS[found.status], found.headers)
        return found

    def refusal(self, token: str) -> Response | None:
        """What a token would be answered that does not stand up; None: it does. It is spent by nothing here."""
        found = self._judged(token, None, None)
        return found if isinstance(found, Response) else None

    def _settle(self, request: Request, found: Token | Response) -> Response | None:
        if isinstance(found, Response):
            return found
        request.principal = found
        return None

    async def _later(self, request: Request, found: Awaitable[Token | Response]) -> Response | None:
        return self._settle(request, await found)

    def _judged(self, text: str, role: str | None, moments: Sequence[int] | None) -> Token | Response:
        """The token, if it stands up and carries `role`; a one-time token may have been spent."""
        if not self._keys:
            return UNCONFIGURED
        token = self.judge(text, moments) if text else None
        if token is None or (token.one_time and moments is not None):
            return UNAUTHORIZED
        if role is not None and role not in token.roles:
            return FORBIDDEN
        return token

    def _admitted(
        self, text: str, role: str | None, moments: Sequence[int] | None
    ) -> Token | Response | Awaitable[Token | Response]:
        """As `_judged`, and a one-time token is spent by this."""
        found = self._judged(text, role, moments)
        if isinstance(found, Response) or not found.one_time:
            return found
        spending = self.spend(spent_name(found, self._scope), found.claims["iat"], found.expires_at)
        if isinstance(spending, Spending):
            return _SPENDING[spending] or found
        return self._after(found, spending)

    async def _after(self, token: Token, spending: Awaitable[Spending]) -> Token | Response:
        return _SPENDING[await spending] or token

    def judge(self, token: str, moments: Sequence[int] | None = None) -> Token | None:
        """Who `token` proves; None when any check fails. It is spent by nothing here.

        Args: moments: when it must be good, seconds since the Unix epoch; None: now, by our clock.
        """
        if moments is not None:
            return self._judge(token, moments)
        now = self._now()
        kept = self._kept.get(token)
        if kept is not None and _is_timely(kept.claims, now[0]):
            return kept
        found = self._judge(token, now)
        if found is not None and not found.one_time and len(token) <= KEPT_SIZE_MAX:
            self._kept[token] = found
            if len(self._kept) > KEPT_MAX:
                del self._kept[next(iter(self._kept))]
        return found

    def lacks_key_of(self, token: str) -> bool:
        """Whether a token names an issuer that is known and, by `kid`, a key that is not. Nothing of it is verified."""
        header, claims = _read(token)
        issuer, key_id = claims.get("iss"), header.get("kid")
        if not _header_is_ours(header) or type(issuer) is not str or type(key_id) is not str:
            return False
        return issuer in self._keys and all(key_id not in trusted.names for trusted in self._keys[issuer])

    def _judge(self, token: str, moments: Sequence[int]) -> Token | None:
        header, claims = _read(token)
        shaped = _header_is_ours(header)
        trusted = self._find(claims.get("iss"), header.get("kid"))
        usable = shaped and trusted is not None
        signed = self._verify(
            token if usable else self._decoy_token, trusted.key if usable and trusted is not None else self._decoy
        )
        timely = all(_is_timely(claims, moment) for moment in moments)
        subject = claims.get("sub")
        named = type(subject) is str and 0 < len(subject) <= SUBJECT_SIZE_MAX
        token_id = claims.get("jti", "")
        identified = type(token_id) is str and len(token_id) <= TOKEN_ID_SIZE_MAX
        one_time = claims.get(ONE_TIME, False)
        marked = one_time is False or (one_time is True and token_id != "")
        meant = trusted is not None and _is_for(claims.get("aud"), trusted.entry.audience)
        roles = _roles(claims, trusted.entry.roles_claim if trusted is not None else DEFAULT_ROLES)
        scopes = _scopes(claims.get("scope", ""))
        if not (usable and signed and timely and named and identified and marked and meant):
            return None
        if roles is None or scopes is None:
            return None
        if MANAGER in roles:
            roles |= {MONITORING}
        return Token(claims["iss"], claims["sub"], token_id, roles, claims["exp"], scopes, claims, one_time)

    def _now(self) -> tuple[int]:
        try:
            return (self._clock.trusted_ns() // _NS_PER_SECOND,)
        except ClockUntrusted:
            return (-1,)

    def _find(self, issuer: object, key_id: object) -> _TrustedKey | None:
        """The key that a token names, from the map that the configuration made; its names lead nowhere else."""
        if type(issuer) is not str or type(key_id) not in (str, type(None)):
            return None
        keys = self._keys.get(issuer, [])
        for trusted in keys:
            if key_id in trusted.names:
                return trusted
        return keys[0] if len(keys) == 1 else None


def _canonical(segment: str) -> bytes | None:
    """The bytes of one segment: base64url without padding, blanks or stray trailing bits (RFC 7515 2, JW4)."""
    try:
        return read_b64url(segment) or None
    except ValueError:
        return None


def _object(data: bytes | None) -> dict[str, Any]:
    """A JSON object read strictly, {} for anything else: an empty one fails every check that follows."""
    if data is None:
        return {}
    try:
        value = parse_json(data)
    except HTTPError:
        return {}
    return value if isinstance(value, dict) else {}


def _read(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a compact JWS, ({}, {}) unless its form is perfect."""
    segments = token.split(".") if len(token) <= TOKEN_SIZE_MAX else []
    if len(segments) != 3:
        return {}, {}
    header, claims, signature = (_canonical(segment) for segment in segments)
    if header is None or claims is None or signature is None or len(signature) != SIGNATURE_SIZE:
        return {}, {}
    return _object(header), _object(claims)


def _header_is_ours(header: dict[str, Any]) -> bool:
    kind = header.get("typ", "JWT")
    key_id = header.get("kid", "")
    return (
        header.get("alg") == "ES256"
        and type(kind) is str
        and kind.lower() in TOKEN_TYPES
        and type(key_id) is str
        and len(key_id) <= KEY_ID_SIZE_MAX
        and REFUSED_HEADERS.isdisjoint(header)
    )


def _is_timely(claims: Mapping[str, Any], now: int) -> bool:
    """Whether exp, iat and nbf are whole numbers that allow `now`, seconds since the Unix epoch; -1 is never."""
    expires, issued = _numeric_date(claims.get("exp")), _numeric_date(claims.get("iat"))
    begins = _numeric_date(claims.get("nbf", issued))
    return (
        min(expires, issued, begins) >= 0
        and 0 < now < expires
        and issued <= now + SKEW_S_MAX
        and begins <= now + SKEW_S_MAX
        and 0 < expires - issued <= LIFETIME_S_MAX
        and 0 < expires - begins <= LIFETIME_S_MAX
    )


def _numeric_date(value: object) -> int:
    """A NumericDate that is a whole number (RFC 7519 2 allows fractions; ours and every issuer's are whole), or -1."""
    return value if type(value) is int and 0 <= value <= NUMERIC_DATE_MAX else -1


def _is_for(audience: object, ours: str) -> bool:
    if type(audience) is str:
        return audience == ours
    return type(audience) is list and all(type(name) is str for name in audience) and ours in audience


def _roles(claims: dict[str, Any], name: str) -> frozenset[str] | None:
    """The roles of a token; None when they are not a list of names.

    `name` is looked for as it stands (some issuers use URLs), then as a path of members joined by dots.
    """
    claim = claims.get(name, _MISSING)
    if claim is _MISSING:
        claim = _at(claims, (REALM_ROLES if name == DEFAULT_ROLES else name).split("."))
    if claim is _MISSING:
        return frozenset()
    if type(claim) is not list or len(claim) > ROLES_MAX:
        return None
    if not all(type(role) is str and 0 < len(role) <= ROLE_SIZE_MAX for role in claim):
        return None
    return frozenset(claim)


def _at(claims: dict[str, Any], path: Sequence[str]) -> object:
    found: object = claims
    for name in path:
        if type(found) is not dict:
            return _MISSING
        found = found.get(name, _MISSING)
    return found


def _scopes(claim: object) -> frozenset[str] | None:
    """The words of a scope claim (RFC 6749 3.3); None when it is no text of words."""
    if type(claim) is not str or len(claim) > SCOPES_SIZE_MAX:
        return None
    if not _SCOPE.match(claim):
        return None
    return frozenset(claim.split(" ")) - {""}


def bearer(request: Request) -> str | None:
    """The token of a request, whatever it is worth; None: it has none. To judge, "" is as good as none."""
    # Repeated fields come joined by ", ", and a token has no comma: two of them are none.
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else None
