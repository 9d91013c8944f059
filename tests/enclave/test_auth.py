"""Bearer tokens: what is accepted, and the shape of every refusal (threat-model.md JW1 to JW5, JW7)."""

import base64
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os.errors import ClockUntrusted, ConfigError
from enclave_os.http import Request, make_request
from enclave_os.modules.api import Token
from enclave_os.modules.auth import (
    FORBIDDEN,
    UNAUTHORIZED,
    UNCONFIGURED,
    Authenticator,
    bearer,
    verify_es256,
)
from enclave_os.modules.issuer_keys import load_es256_key, thumbprint
from enclave_os.wire.setting_issuers import Issuer
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

KEY = new_key()
OTHER = new_key()


def authenticator(*issuers: Issuer, clock: FixedClock | None = None) -> Authenticator:
    return Authenticator(issuers or [issuer(KEY)], clock or FixedClock())


def bearing(value: str, scheme: str = "Bearer") -> Request:
    return make_request("GET", "/status", [("Authorization", f"{scheme} {value}")])


def without(claim: str) -> dict[str, Any]:
    return {name: value for name, value in CLAIMS.items() if name != claim}


def test_a_good_token() -> None:
    request = bearing(token(KEY))
    assert authenticator().authorize(request, "manager") is None
    assert request.principal == Token(
        "https://issuer.example", "operator", "token-1", frozenset({"manager", "monitoring"}), NOW + 600
    )


@pytest.mark.parametrize(
    "change",
    [
        {"aud": ["other", "enclave-os"]},
        {"nbf": NOW},
        {"iat": NOW + 5},
        {"nbf": NOW + 5},
        {"iat": NOW - 3600, "exp": NOW + 23 * 3600},
        {"exp": NOW + 1},
        {"jti": ""},
        {"sub": "\u00e9" * 256},
        {"unknown": {"deep": [1, 2.5, None]}},
    ],
    ids=str,
)
def test_good_claims(change: dict[str, Any]) -> None:
    assert authenticator().judge(token(KEY, CLAIMS | change)) is not None


@pytest.mark.parametrize(
    "header", [{"alg": "ES256"}, HEADER | {"typ": "at+jwt"}, HEADER | {"kid": "anything"}], ids=str
)
def test_good_headers(header: dict[str, Any]) -> None:
    assert authenticator().judge(token(KEY, header=header)) is not None


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_has_no_case(scheme: str) -> None:
    found = authenticator().judge(bearer(bearing(token(KEY), scheme)) or "")
    assert found is not None
    assert found.subject == "operator"


@pytest.mark.parametrize(
    ("roles", "role", "passes"),
    [
        (["manager"], "manager", True),
        (["manager"], "monitoring", True),
        (["monitoring"], "monitoring", True),
        (["monitoring"], "manager", False),
        ([], "monitoring", False),
        (["Manager"], "manager", False),
        (["vault-reader"], "vault-reader", True),
        (["manager"], "vault-reader", False),
    ],
)
def test_roles(roles: list[str], role: str, passes: bool) -> None:
    answer = authenticator().authorize(bearing(token(KEY, CLAIMS | {"roles": roles})), role)
    assert answer is (None if passes else FORBIDDEN)


def test_no_roles_claim_is_no_role() -> None:
    assert authenticator().authorize(bearing(token(KEY, without("roles"))), "monitoring") is FORBIDDEN


def test_roles_claim_of_another_name() -> None:
    keeper = authenticator(issuer(KEY, roles_claim="groups"))
    assert keeper.authorize(bearing(token(KEY)), "manager") is FORBIDDEN
    assert keeper.authorize(bearing(token(KEY, CLAIMS | {"groups": ["manager"]})), "manager") is None


def test_without_issuers_nothing_is_open() -> None:
    keeper = Authenticator([], FixedClock())
    answer = keeper.authorize(bearing(token(KEY)), "monitoring")
    assert answer is UNCONFIGURED
    assert answer.status == 403
    assert "[[auth.issuers]]" in json.loads(answer.body)["error"]
    assert "enclave-os token keygen" in json.loads(answer.body)["error"]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Basic dTpw")],
        [("Authorization", f"Bearer  {token(KEY)}")],
        [("Authorization", f"Bearer {token(KEY)} x")],
        [("Authorization", f"Bearer {token(KEY)}, Bearer {token(KEY)}")],
        [("Authorization", f"Bearer {token(KEY)}"), ("Authorization", f"Bearer {token(KEY)}")],
        [("Authorization", f"Bearer\t{token(KEY)}")],
        [("X-Authorization", f"Bearer {token(KEY)}")],
    ],
    ids=range(10),
)
def test_fields_that_bring_no_token(headers: list[tuple[str, str]]) -> None:
    assert authenticator().authorize(make_request("GET", "/status", headers), "monitoring") is UNAUTHORIZED


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


JW1_ALGORITHMS = {
    **{f"alg {alg!r}": token(KEY, header={"typ": "JWT", "alg": alg}) for alg in ("none", "None", "nOnE", "", "es256")},
    **{f"alg {alg!r}": token(KEY, header={"typ": "JWT", "alg": alg}) for alg in ("RS256", "ES384", "ES256K", "HS256")},
    **{f"alg {alg!r}": token(KEY, header={"typ": "JWT", "alg": alg}) for alg in (["ES256"], None, 256, {"a": 1}, True)},
    "alg missing": token(KEY, header={"typ": "JWT"}),
    "alg none, no signature": f"{b64(compact({'alg': 'none'}))}.{b64(compact(CLAIMS))}.",
    "alg ES256, no signature": f"{b64(compact(HEADER))}.{b64(compact(CLAIMS))}.",
    "HS256 with the PEM": hmac_token(pem(KEY).encode(), {"alg": "HS256", "typ": "JWT"}),
    "HS256 with the PEM, said to be ES256": hmac_token(pem(KEY).encode(), HEADER),
    "HS256 with the DER": hmac_token(spki(KEY), {"alg": "HS256"}),
    "HS256 with the thumbprint": hmac_token(thumbprint(KEY.public_key()).encode(), {"alg": "HS256"}),
    "HS256 with nothing": hmac_token(b"", {"alg": "HS256"}),
}

JW2_HEADERS = {
    **{
        name: token(KEY, header=HEADER | {name: value})
        for name, value in (
            ("jku", "https://evil.example/keys"),
            ("x5u", "https://evil.example/cert"),
            ("jwk", {"kty": "EC", "crv": "P-256", "x": b64(b"x" * 32), "y": b64(b"y" * 32)}),
            ("x5c", ["MII"]),
            ("crit", ["exp"]),
            ("b64", False),
            ("zip", "DEF"),
            ("enc", "A256GCM"),
        )
    },
    "crit empty": token(KEY, header=HEADER | {"crit": []}),
    "b64 true": token(KEY, header=HEADER | {"b64": True}),
    "kid array": token(KEY, header=HEADER | {"kid": ["a"]}),
    "kid number": token(KEY, header=HEADER | {"kid": 1}),
    "kid null": token(KEY, header=HEADER | {"kid": None}),
    "kid long": token(KEY, header=HEADER | {"kid": "a" * 257}),
    "kid 64 KiB": token(KEY, header=HEADER | {"kid": "a" * 65536}),
    "typ JWE": token(KEY, header=HEADER | {"typ": "JWE"}),
    "typ array": token(KEY, header=HEADER | {"typ": ["JWT"]}),
    "header array": token(KEY, header=[HEADER]),
    "header string": token(KEY, header="ES256"),
    "header empty": token(KEY, header=b""),
    "header with BOM": token(KEY, header=b"\xef\xbb\xbf" + compact(HEADER)),
    "header with duplicate": token(KEY, header=b'{"alg":"none","alg":"ES256"}'),
    "header not UTF-8": token(KEY, header=b'{"alg":"ES256","x":"\xff"}'),
    "header in UTF-16": token(KEY, header=json.dumps(HEADER).encode("utf-16-le")),
    "header deep": token(KEY, header=b'{"alg":"ES256","x":' + b"[" * 40 + b"]" * 40 + b"}"),
}


def resigned(make: Callable[[bytes], bytes]) -> str:
    """A good token whose signature's bytes are replaced by `make` of them."""
    signed = f"{b64(compact(HEADER))}.{b64(compact(CLAIMS))}"
    return f"{signed}.{b64(make(signature(KEY, signed)))}"


def number(value: int) -> bytes:
    return value.to_bytes(32, "big")


def der(key: ec.EllipticCurvePrivateKey) -> str:
    signed = f"{b64(compact(HEADER))}.{b64(compact(CLAIMS))}"
    return f"{signed}.{b64(key.sign(signed.encode(), ec.ECDSA(SHA256())))}"


def by_other_hash() -> str:
    signed = f"{b64(compact(HEADER))}.{b64(compact(CLAIMS))}"
    return f"{signed}.{b64(signature(KEY, signed, SHA384()))}"


JW3_SIGNATURES = {
    "other key": token(OTHER),
    "63 bytes": resigned(lambda s: s[:63]),
    "65 bytes": resigned(lambda s: s + b"\0"),
    "32 bytes": resigned(lambda s: s[:32]),
    "96 bytes": resigned(lambda s: s + b"\0" * 32),
    "DER": der(KEY),
    "zeros": resigned(lambda _: bytes(64)),
    "r zero": resigned(lambda s: bytes(32) + s[32:]),
    "s zero": resigned(lambda s: s[:32] + bytes(32)),
    "r = n": resigned(lambda s: number(P256_ORDER) + s[32:]),
    "s = n": resigned(lambda s: s[:32] + number(P256_ORDER)),
    "r = s = n": resigned(lambda _: number(P256_ORDER) * 2),
    "r > n": resigned(lambda s: b"\xff" * 32 + s[32:]),
    "s > n": resigned(lambda s: s[:32] + b"\xff" * 32),
    "swapped": resigned(lambda s: s[32:] + s[:32]),
    "ones": resigned(lambda _: number(1) * 2),
    "bit flipped": resigned(lambda s: s[:-1] + bytes([s[-1] ^ 1])),
    "other hash": by_other_hash(),
}


def moved(text: str) -> str:
    """The last character replaced by one that decodes to the same bytes: only its unused trailing bits differ."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


GOOD = token(KEY)
HEAD_PART, CLAIM_PART, SIGNATURE_PART = GOOD.split(".")

JW4_CLAIMS = {
    **{
        f"{name} {value!r}": token(KEY, CLAIMS | {name: value})
        for name, values in {
            "exp": (NOW, NOW - 1, 0, -1, float(NOW + 600), str(NOW + 600), True, None, [NOW + 600], 2**53 + 1, 2**63),
            "iat": (NOW + 6, NOW + 3600, -1, float(NOW), str(NOW), True, None, NOW - 24 * 3600),
            "nbf": (NOW + 6, NOW + 3600, -1, float(NOW), str(NOW), True, None, NOW - 24 * 3600),
            "iss": ("https://other.example", "https://issuer.example/", "", None, 1, ["https://issuer.example"]),
            "aud": ("other", "enclave-os ", "", None, 1, [], ["other"], ["enclave-os", 1], {"enclave-os": 1}),
            "sub": ("", None, 1, ["operator"], "a" * 257),
            "jti": (None, 1, ["token-1"]),
            "roles": ("manager", None, {"manager": True}, [1], [["manager"]], [""], ["a" * 65], ["a"] * 65),
        }.items()
        for value in values
    },
    **{f"{name} missing": token(KEY, without(name)) for name in ("exp", "iat", "iss", "aud", "sub")},
    "exp 1e400": token(KEY, compact(CLAIMS).replace(b'"exp":1795000600', b'"exp":1e400')),
    "exp 1e10": token(KEY, compact(CLAIMS).replace(b'"exp":1795000600', b'"exp":1.7950006e9')),
    "exp NaN": token(KEY, compact(CLAIMS).replace(b'"exp":1795000600', b'"exp":NaN')),
    "exp Infinity": token(KEY, compact(CLAIMS).replace(b'"exp":1795000600', b'"exp":Infinity')),
    "exp of 10,000 digits": token(KEY, compact(CLAIMS).replace(b'"exp":1795000600', b'"exp":' + b"9" * 10_000)),
    "iat ahead, nbf not": token(KEY, CLAIMS | {"iat": NOW + 60, "nbf": NOW - 60}),
    "nbf ahead, iat not": token(KEY, CLAIMS | {"iat": NOW - 60, "nbf": NOW + 60}),
    "more than a day since iat": token(KEY, CLAIMS | {"iat": NOW - 24 * 3600, "nbf": NOW}),
    "more than a day since nbf": token(KEY, CLAIMS | {"iat": NOW, "nbf": NOW - 24 * 3600}),
    "more than a day": token(KEY, CLAIMS | {"iat": NOW - 10, "exp": NOW + 24 * 3600}),
    "exp before iat": token(KEY, CLAIMS | {"iat": NOW + 4, "exp": NOW + 3}),
    "exp twice": token(KEY, compact(CLAIMS)[:-1] + b',"exp":1795000601}'),
    "sub twice": token(KEY, compact(CLAIMS)[:-1] + b',"sub":"operator"}'),
    "member twice, deep": token(KEY, compact(CLAIMS)[:-1] + b',"x":{"a":1,"a":2}}'),
    "claims with BOM": token(KEY, b"\xef\xbb\xbf" + compact(CLAIMS)),
    "claims array": token(KEY, [CLAIMS]),
    "claims string": token(KEY, "operator"),
    "claims empty": token(KEY, b""),
    "claims no JSON": token(KEY, b"sub=operator"),
    "claims with rest": token(KEY, compact(CLAIMS) + b"{}"),
    "claims deep": token(KEY, compact(CLAIMS)[:-1] + b',"x":' + b"[" * 32 + b"]" * 32 + b"}"),
    "claims very deep": token(KEY, compact(CLAIMS)[:-1] + b',"x":' + b"[" * 5000),
    "two segments": f"{HEAD_PART}.{CLAIM_PART}",
    "one segment": HEAD_PART,
    "four segments": GOOD + ".AAAA",
    "five segments (JWE)": GOOD + ".AAAA.AAAA",
    "empty segment": f"{HEAD_PART}..{SIGNATURE_PART}",
    "empty": "",
    "dots": "..",
    "leading dot": "." + GOOD,
    "JSON serialization": compact(
        {"protected": HEAD_PART, "payload": CLAIM_PART, "signature": SIGNATURE_PART}
    ).decode(),
    "padding": f"{HEAD_PART}.{CLAIM_PART}.{SIGNATURE_PART}==",
    "padding in the header": token(KEY).replace(".", "=.", 1),
    "blank before": " " + GOOD,
    "blank after": GOOD + " ",
    "line end": GOOD + "\n",
    "blank inside": GOOD.replace(".", " .", 1),
    "base64 of the other alphabet": f"{HEAD_PART}.{CLAIM_PART}.{'+/' * 43}",
    "trailing bits in the signature": f"{HEAD_PART}.{CLAIM_PART}.{moved(SIGNATURE_PART)}",
    "length 1 mod 4": f"{HEAD_PART}.{CLAIM_PART}.{SIGNATURE_PART}AAA",
    "not ASCII": GOOD + "\u00e9",
    "fullwidth": GOOD.replace("e", "\uff45", 1),
    "over 16 KiB": token(KEY, CLAIMS | {"x": "a" * 16384}),
    "over 16 KiB of dots": "." * 20000,
}

REFUSED = {
    f"{section}: {name}": value
    for section, tokens in (
        ("JW1", JW1_ALGORITHMS),
        ("JW2", JW2_HEADERS),
        ("JW3", JW3_SIGNATURES),
        ("JW4", JW4_CLAIMS),
    )
    for name, value in tokens.items()
}


@pytest.mark.parametrize("bad", REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_same_steps(bad: str) -> None:
    """Whatever is wrong: None, one look at the clock, one signature verified (JW5)."""
    verified: list[str] = []
    clock = FixedClock()

    def counted(text: str, key: ec.EllipticCurvePublicKey) -> bool:
        verified.append(text)
        return verify_es256(text, key)

    keeper = Authenticator([issuer(KEY)], clock, counted)
    assert keeper.judge(bad) is None
    assert len(verified) == 1
    assert clock.asked == 1


UNREAD = {
    name: value
    for name, value in REFUSED.items()
    if not name.startswith("JW3")
    or name.removeprefix("JW3: ") in ("63 bytes", "65 bytes", "32 bytes", "96 bytes", "DER")
}


@pytest.mark.parametrize("bad", UNREAD.values(), ids=UNREAD.keys())
def test_our_own_checks_refuse_it_whatever_the_signature_says(bad: str) -> None:
    """PyJWT refuses many of these too; nothing rests on that."""
    keeper = Authenticator([issuer(KEY)], FixedClock(), lambda text, key: True)
    assert keeper.judge(bad) is None


@pytest.mark.parametrize(
    "bad", ["." * 10**6, "a" * 10**6, JW4_CLAIMS["exp of 10,000 digits"], JW4_CLAIMS["claims very deep"]]
)
def test_jw7_refused_soon(bad: str) -> None:
    """5 ms, and tenfold for a busy machine."""
    keeper = authenticator()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        assert keeper.judge(bad) is None
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05


def test_the_tables_are_not_refused_for_another_reason() -> None:
    """The unspoilt token passes, so each case above fails for what it spoils."""
    assert authenticator().judge(GOOD) is not None
    assert authenticator().judge(resigned(lambda s: s)) is not None
    assert moved(SIGNATURE_PART) != SIGNATURE_PART


def test_the_malleated_signature_verifies_and_is_the_same_token() -> None:
    """JW3: (r, n-s) is valid by the standard; so the identity is `jti`, which does not change with it."""
    keeper = authenticator()
    malleated = resigned(lambda s: s[:32] + number(P256_ORDER - int.from_bytes(s[32:], "big")))
    first, second = keeper.judge(GOOD), keeper.judge(malleated)
    assert first is not None
    assert first == second
    assert first.token_id == CLAIMS["jti"]


def test_one_body_for_every_reason() -> None:
    keeper = authenticator()
    answers = {id(keeper.authorize(bearing(bad), "manager")) for bad in list(REFUSED.values()) if sendable(bad)}
    answers.add(id(keeper.authorize(make_request("GET", "/status"), "manager")))
    assert answers == {id(UNAUTHORIZED)}
    assert UNAUTHORIZED.status == 401
    assert dict(UNAUTHORIZED.headers)["WWW-Authenticate"].startswith("Bearer ")
    assert json.loads(UNAUTHORIZED.body).keys() == {"error"}


def sendable(text: str) -> bool:
    return len(text) < 8000 and text.isascii() and text == text.strip() and "\n" not in text and text != ""


@pytest.mark.parametrize("error", [ClockUntrusted("no"), None])
def test_a_clock_that_is_not_trusted_denies(error: Exception | None) -> None:
    keeper = authenticator(clock=FixedClock(error=error))
    assert (keeper.authorize(bearing(GOOD), "manager") is UNAUTHORIZED) == (error is not None)


@pytest.mark.parametrize(
    ("now", "passes"), [(NOW + 599, True), (NOW + 600, False), (NOW - 65, True), (NOW - 66, False)]
)
def test_our_clock_decides(now: int, passes: bool) -> None:
    assert (authenticator(clock=FixedClock(now)).judge(GOOD) is not None) == passes


def test_several_issuers_keep_to_themselves() -> None:
    keeper = authenticator(issuer(KEY), issuer(OTHER, issuer="https://other.example", audience="elsewhere"))
    other = CLAIMS | {"iss": "https://other.example"}
    assert keeper.judge(GOOD) is not None
    assert keeper.judge(token(OTHER)) is None
    assert keeper.judge(token(KEY, other | {"aud": "elsewhere"})) is None
    assert keeper.judge(token(OTHER, other)) is None  # the audience of the first issuer
    assert keeper.judge(token(OTHER, other | {"aud": "elsewhere"})) is not None


def test_two_keys_of_one_issuer_are_told_apart_by_thumbprint() -> None:
    keeper = authenticator(issuer(KEY), issuer(OTHER))
    names = {key: thumbprint(key.public_key()) for key in (KEY, OTHER)}
    for key in (KEY, OTHER):
        assert keeper.judge(token(key, header=HEADER | {"kid": names[key]})) is not None
        assert keeper.judge(token(key)) is None
        assert keeper.judge(token(key, header=HEADER | {"kid": "../" + names[key]})) is None
    assert keeper.judge(token(KEY, header=HEADER | {"kid": names[OTHER]})) is None


def test_thumbprint_of_a_known_key() -> None:
    """Against the members in the order of RFC 7638 3.2, spelled out."""
    point = KEY.public_key().public_numbers()
    members = {"crv": "P-256", "kty": "EC", "x": b64(number(point.x)), "y": b64(number(point.y))}
    digest = hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest()
    assert base64.urlsafe_b64decode(thumbprint(KEY.public_key()) + "=") == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no key",
        pem(new_key(ec.SECP384R1())),
        pem(new_key(ec.SECP256K1())),
        rsa.generate_private_key(65537, 2048)
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode(),
        pem(KEY).replace("PUBLIC KEY", "CERTIFICATE"),
        pem(KEY)[:-40],
    ],
    ids=("empty", "words", "P-384", "secp256k1", "RSA", "certificate", "cut"),
)
def test_keys_that_are_no_es256_keys(text: str) -> None:
    with pytest.raises(ConfigError, match=r"auth\.issuers"):
        authenticator(issuer(KEY, public_key_pem=text))


def test_a_key_off_the_curve_is_refused_at_load() -> None:
    data = bytearray(spki(KEY))
    data[-1] ^= 1
    text = f"-----BEGIN PUBLIC KEY-----\n{base64.encodebytes(data).decode()}-----END PUBLIC KEY-----\n"
    with pytest.raises(ConfigError):
        load_es256_key(text, "test")


def test_the_same_key_twice_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="twice"):
        authenticator(issuer(KEY), issuer(KEY))


def test_a_principal_shows_no_token() -> None:
    principal = authenticator().judge(GOOD)
    assert SIGNATURE_PART not in repr(principal)
    assert GOOD not in repr(bearing(GOOD))
    assert SIGNATURE_PART not in repr(bearing(GOOD).headers)
