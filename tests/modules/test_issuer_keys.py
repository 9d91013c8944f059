"""Keys of issuers as JSON: which count, what is refused, and how tokens choose among them (JW2, JW5, KV13)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_os.errors import ConfigError
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.issuer_keys import KEYS_MAX, read_jwks, thumbprint
from enclave_os.wire.policy import differences, policy_of, read_policy
from enclave_os.wire.setting_issuers import Auth, Issuer
from enclave_os.wire.setting_table import Settings
from enclave_os.wire.settings import check
from tests.enclave.tokens import CLAIMS, HEADER, FixedClock, b64, new_key, pem, token

KEY, OTHER, STRANGER = new_key(), new_key(), new_key()


def jwk(key: ec.EllipticCurvePrivateKey, **members: Any) -> dict[str, Any]:
    point = key.public_key().public_numbers()
    size = (key.curve.key_size + 7) // 8
    curve = {256: "P-256", 384: "P-384"}[key.curve.key_size]
    x, y = (b64(number.to_bytes(size, "big")) for number in (point.x, point.y))
    return {"kty": "EC", "crv": curve, "x": x, "y": y, **members}


def issuer_with(document: object, **changes: str) -> Issuer:
    return Issuer(issuer=CLAIMS["iss"], audience=CLAIMS["aud"], jwks=json.dumps(document), **changes)


RSA = {"kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "sig", "kid": "rsa"}
SET = {
    "keys": [
        RSA,
        jwk(KEY, kid="one", use="sig", alg="ES256"),
        jwk(OTHER, kid="two"),
        jwk(STRANGER, kid="three", use="enc"),
        jwk(new_key(ec.SECP384R1()), kid="four"),
        jwk(STRANGER, kid="five", alg="ES384"),
        jwk(STRANGER, kid="six", key_ops=["sign"]),
    ]
}


def test_a_set_has_the_keys_that_are_for_es256() -> None:
    found = read_jwks(json.dumps(SET), "test")
    assert [one.names for one in found] == [
        {"one", thumbprint(KEY.public_key())},
        {"two", thumbprint(OTHER.public_key())},
    ]


def test_tokens_choose_by_kid_among_what_the_configuration_has() -> None:
    keeper = Authenticator([issuer_with(SET)], FixedClock())
    for key, name in ((KEY, "one"), (OTHER, "two")):
        for kid in (name, thumbprint(key.public_key())):
            assert keeper.judge(token(key, header=HEADER | {"kid": kid})) is not None
        assert keeper.judge(token(key)) is None  # which of two?
    for key, kid in ((KEY, "two"), (OTHER, "one"), (STRANGER, "three"), (STRANGER, "one"), (KEY, "rsa")):
        assert keeper.judge(token(key, header=HEADER | {"kid": kid})) is None


def test_a_single_jwk() -> None:
    keeper = Authenticator([issuer_with(jwk(KEY))], FixedClock())
    assert keeper.judge(token(KEY)) is not None
    assert keeper.judge(token(OTHER)) is None


def test_an_issuer_may_have_a_set_and_a_key_beside_it() -> None:
    beside = Issuer(issuer=CLAIMS["iss"], audience=CLAIMS["aud"], public_key_pem=pem(STRANGER))
    keeper = Authenticator([issuer_with(SET), beside], FixedClock())
    assert keeper.judge(token(STRANGER, header=HEADER | {"kid": thumbprint(STRANGER.public_key())})) is not None
    with pytest.raises(ConfigError, match="twice"):
        Authenticator([issuer_with(SET), issuer_with(jwk(KEY))], FixedClock())


def off_the_curve() -> dict[str, Any]:
    spoilt = jwk(KEY)
    spoilt["y"] = jwk(OTHER)["y"]
    return spoilt


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "no JSON object"),
        ({}, "no key for ES256"),
        ({"keys": []}, "no key for ES256"),
        ({"keys": {}}, "list"),
        ({"keys": ["x"]}, "no object"),
        ({"keys": [RSA]}, "no key for ES256"),
        ({"keys": [jwk(KEY)] * (KEYS_MAX + 1)}, "at most"),
        (jwk(KEY, d="AAAA"), "private key"),
        ({"keys": [jwk(KEY), {"kty": "oct", "k": "c2VjcmV0"}]}, "private key"),
        ({"keys": [jwk(KEY, kid="a"), jwk(OTHER, kid="a")]}, "one name"),
        ({"keys": [jwk(KEY), jwk(KEY)]}, "one name"),
        (off_the_curve(), "coordinate"),
        (jwk(KEY, x="AAAA"), "coordinate"),
        (jwk(KEY, x=None), "coordinate"),
        (jwk(KEY, x=jwk(KEY)["x"] + "="), "coordinate"),
        (jwk(KEY, kid=5), "kid"),
        (jwk(KEY, kid="a" * 257), "kid"),
    ],
    ids=str,
)
def test_sets_that_are_refused(document: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_jwks(json.dumps(document), "test")


# -- in the configuration -----------------------------------------------------------------


def settings_of(document: object) -> Settings:
    return Settings(auth=Auth(issuers=(issuer_with(document),)))


def test_the_keys_are_part_of_the_sealed_policy_in_one_form() -> None:
    """KV13: another set is another policy; the same keys written otherwise are not."""
    first = policy_of(settings_of({"keys": [jwk(KEY, kid="one")]}))
    again = policy_of(settings_of({"keys": [dict(reversed(jwk(KEY, kid="one").items()))]}))
    other = policy_of(settings_of({"keys": [jwk(OTHER, kid="one")]}))
    assert first == again
    assert differences(first, again) == ()
    assert [change.key.split()[0] for change in differences(first, other)] == ["auth.issuers", "auth.issuers"]
    assert read_policy(first)["issuers"][0]["roles_claim"] == "roles"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"public_key_pem": pem(KEY)}, "give either"),
        ({"jwks_file": "x"}, "give either"),
        ({"jwks": ""}, "give either"),
        ({"jwks": "{"}, "not JSON"),
        ({"jwks": "[]"}, "no JSON object"),
        ({"jwks": '{"a":1,"a":2}'}, "twice"),
        ({"jwks": '{"a":NaN}'}, "NaN"),
        ({"jwks": json.dumps(jwk(KEY, d="x"))}, "private key"),
        ({"jwks": "[" * 9000}, "not JSON|too deep"),
    ],
    ids=str,
)
def test_configurations_that_cannot_be(changes: dict[str, str], says: str) -> None:
    table = {"issuer": "i", "audience": "a", "jwks": json.dumps(jwk(KEY)), **changes}
    with pytest.raises(Exception, match=says):
        check({"auth": {"issuers": [table]}})
