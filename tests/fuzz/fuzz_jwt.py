"""Invariant: no token that was spoilt in one place is accepted, and each costs one look at the clock and one signature.

    python -m tests.fuzz.fuzz_jwt --tokens 100000

Every token here is signed by the issuer's own key wherever that can be, so that what refuses it is the check for what
was spoilt (threat-model.md JW1 to JW4), and the second verifier below, which believes every signature, must refuse it
too.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.enclave.tokens import (
    CLAIMS,
    HEADER,
    NOW,
    P256_ORDER,
    FixedClock,
    b64,
    compact,
    hmac_token,
    issuer,
    new_key,
    pem,
    signature,
    token,
)

from enclave_os.modules.auth import REFUSED_HEADERS, Authenticator, verify_es256

KEY = new_key()
OTHER = new_key()
GOOD = token(KEY)
HEAD, BODY, SIGNATURE = GOOD.split(".")
RAW = signature(KEY, f"{HEAD}.{BODY}")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

# Leaves, and what holds them; drawn a thousand times a second, so the deep ones are given.
json_values: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            *(None, True, False, 0, 1, -1, 2**53, 2**53 + 1, 2**63, 1.0, 0.5, 1e22, float("inf"), "", "0", "ES256"),
            *([], {}, [[]], {"": []}, [None], ["ES256"], ["enclave-os"], {"a": {"b": [1, {}]}}, ["manager", 1], [""]),
            *(float(NOW), str(NOW + 600), [NOW + 600], {"exp": NOW + 600}, "manager", "https://issuer.example/"),
        ]
    ),
    st.integers(-(2**70), 2**70),
    st.text(max_size=12),
)
dates = st.integers(-(2**60), 2**60) | st.integers(NOW - 200_000, NOW + 200_000)


def is_whole(value: object) -> bool:
    return type(value) is int


def bad_date(name: str, value: Any) -> bool:
    """Whether a date of this value spoils the good claims, by the text of the threat model."""
    claims = CLAIMS | {"nbf": CLAIMS["iat"]} | {name: value}
    if not is_whole(value) or not 0 <= value <= 2**53:
        return True
    if name == "iat":
        claims["nbf"] = value
    begins = min(claims["iat"], claims["nbf"])
    return not (claims["iat"] <= NOW + 5 and claims["nbf"] <= NOW + 5 and NOW < claims["exp"] <= begins + 24 * 3600)


def as_json(value: object) -> bytes:
    """Encoded here: `token` takes None for its default."""
    return compact(value)


def with_claims(**claims: Any) -> str:
    return token(KEY, CLAIMS | claims)


def with_header(**header: Any) -> str:
    return token(KEY, header=HEADER | header)


def signed_as(raw: bytes) -> str:
    return f"{HEAD}.{BODY}.{b64(raw)}"


def not_ours(value: object, ours: object) -> bool:
    return value != ours or type(value) is not type(ours)


def inserted(text: str, at: int, what: str) -> str:
    at %= len(text) + 1
    return text[:at] + what + text[at:]


def replaced(text: str, at: int, what: str) -> str:
    at %= len(text)
    return text[:at] + what + text[at + 1 :]


def bad_audience(value: object) -> bool:
    if isinstance(value, list):
        return "enclave-os" not in value or not all(isinstance(one, str) for one in value)
    return value != "enclave-os"


# JW1: another algorithm than ours, or a signature of another kind than it says.
algorithms = st.one_of(
    (st.text(max_size=12) | json_values)
    .filter(lambda alg: not_ours(alg, "ES256"))
    .map(lambda alg: with_header(alg=alg)),
    st.sampled_from([pem(KEY).encode(), b"", b"secret"]).flatmap(
        lambda secret: st.sampled_from(["HS256", "ES256", "none"]).map(
            lambda alg: hmac_token(secret, {"alg": alg, "typ": "JWT"})
        )
    ),
    st.just(f"{b64(compact({'typ': 'JWT'}))}.{BODY}.{SIGNATURE}"),
)
# JW2: a header that would choose its key, or be read another way.
headers = st.one_of(
    st.tuples(st.sampled_from(sorted(REFUSED_HEADERS)), json_values).map(
        lambda pair: with_header(**{pair[0]: pair[1]})
    ),
    json_values.filter(lambda kid: not isinstance(kid, str)).map(lambda kid: with_header(kid=kid)),
    st.text(min_size=257, max_size=400).map(lambda kid: with_header(kid=kid)),
    (json_values | st.text(max_size=8))
    .filter(lambda typ: not isinstance(typ, str) or typ.lower() not in ("jwt", "at+jwt"))
    .map(lambda typ: with_header(typ=typ)),
    json_values.filter(lambda header: not isinstance(header, dict)).map(
        lambda header: token(KEY, header=as_json(header))
    ),
)
# JW3: bytes that are not the issuer's signature.
numbers = st.sampled_from([0, 1, P256_ORDER - 1, P256_ORDER, P256_ORDER + 1, 2**256 - 1]) | st.integers(0, 2**256 - 1)
signatures = st.one_of(
    st.binary(max_size=130).filter(lambda raw: raw != RAW).map(signed_as),
    st.tuples(numbers, numbers).map(lambda pair: signed_as(b"".join(one.to_bytes(32, "big") for one in pair))),
    st.integers(0, 511).map(
        lambda bit: signed_as(bytes(one ^ (1 << bit % 8) if at == bit // 8 else one for at, one in enumerate(RAW)))
    ),
    st.integers(0, 63).map(lambda size: signed_as(RAW[:size])),
    st.binary(min_size=1, max_size=20).map(lambda more: signed_as(RAW + more)),
    st.just(token(OTHER)),
    st.just(signed_as(RAW[32:] + RAW[:32])),
)
# JW4: claims that do not hold.
claims = st.one_of(
    st.tuples(st.sampled_from(["exp", "iat", "nbf"]), dates | json_values)
    .filter(lambda pair: bad_date(*pair))
    .map(lambda pair: with_claims(**{pair[0]: pair[1]})),
    json_values.filter(lambda value: value != CLAIMS["iss"]).map(lambda value: with_claims(iss=value)),
    (json_values | st.lists(st.sampled_from(["enclave-os", "x", 1, None]), max_size=3))
    .filter(bad_audience)
    .map(lambda value: with_claims(aud=value)),
    json_values.filter(lambda value: not isinstance(value, str) or value == "").map(
        lambda value: with_claims(sub=value)
    ),
    json_values.filter(lambda value: not isinstance(value, str)).map(lambda value: with_claims(jti=value)),
    json_values.filter(lambda value: not isinstance(value, str)).map(lambda value: with_claims(scope=value)),
    json_values.filter(lambda value: not isinstance(value, bool)).map(lambda value: with_claims(one_time=value)),
    json_values.filter(lambda value: not isinstance(value, list)).map(lambda value: with_claims(roles=value)),
    json_values.filter(lambda value: not isinstance(value, dict)).map(lambda value: token(KEY, as_json(value))),
    st.sampled_from(sorted(CLAIMS)).map(
        lambda name: token(KEY, compact(CLAIMS)[:-1] + b"," + compact({name: CLAIMS[name]})[1:])
    ),
    st.binary(min_size=1, max_size=8)
    .filter(lambda more: more.strip(b" \t\r\n") != b"")
    .map(lambda more: token(KEY, compact(CLAIMS) + more)),
    st.sampled_from(["iss", "aud", "sub", "exp", "iat"]).map(
        lambda name: token(KEY, {other: value for other, value in CLAIMS.items() if other != name})
    ),
)
# JW4: another text than three segments of canonical base64url. Whatever is changed is also no longer what was signed.
forms = st.one_of(
    st.tuples(st.integers(0), st.characters()).map(lambda pair: inserted(GOOD, pair[0], pair[1])),
    st.tuples(st.integers(0), st.sampled_from([*ALPHABET, ".", "=", " ", "\n", "+", "/"]))
    .map(lambda pair: replaced(GOOD, pair[0], pair[1]))
    .filter(lambda text: text != GOOD),
    st.integers(0, len(GOOD) - 1).map(lambda at: GOOD[:at]),
    st.integers(0, len(GOOD) - 1).map(lambda at: GOOD[:at] + GOOD[at + 1 :]),
    st.text(max_size=300),
    st.lists(st.sampled_from([HEAD, BODY, SIGNATURE, "", "=", "e30"]), max_size=6)
    .map(".".join)
    .filter(lambda text: text != GOOD),
)

bad_tokens = st.one_of(algorithms, headers, signatures, claims, forms)
unread_tokens = st.one_of(algorithms, headers, claims)
"""What must be refused whatever the signature says."""


class Counted:
    """Two authenticators, and what judging cost."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.verified = 0
        self.keeper = Authenticator([issuer(KEY)], self.clock, self._verify)
        self.believer = Authenticator([issuer(KEY)], FixedClock(), lambda text, key: True)
        self.tokens = 0

    def _verify(self, text: str, key: ec.EllipticCurvePublicKey) -> bool:
        self.verified += 1
        return verify_es256(text, key)

    def refuse(self, bad: str) -> None:
        """Judge one. Raises AssertionError when the invariant is broken."""
        self.tokens += 1
        self.verified = self.clock.asked = 0
        assert self.keeper.judge(bad) is None
        assert (self.verified, self.clock.asked) == (1, 1)


def fuzz(count: int) -> Counted:
    """Judge at least `count` spoilt tokens."""
    counted = Counted()
    quiet = settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=False
    )

    @quiet
    @given(bad_tokens)
    def judge(bad: str) -> None:
        counted.refuse(bad)

    assert counted.keeper.judge(GOOD) is not None
    while counted.tokens < count:
        judge()
    assert counted.keeper.judge(GOOD) is not None
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    arguments = parser.parse_args()
    began = time.monotonic()
    counted = fuzz(arguments.tokens)
    print(f"{counted.tokens} spoilt tokens in {time.monotonic() - began:.0f} s, 0 accepted")


if __name__ == "__main__":
    sys.exit(main())
