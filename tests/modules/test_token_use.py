"""What tokens bring beside roles, and those that are good once."""

import base64
import json
from typing import Any

import pytest

from enclave_os.http import HTTPError
from enclave_os.modules.auth import FORBIDDEN, OTHER_WORKER, UNAUTHORIZED, Authenticator
from enclave_os.modules.spent_tokens import Spending, SpentTokens
from tests.enclave.test_auth import GOOD, KEY, OTHER, authenticator, bearing, number, without
from tests.enclave.tokens import CLAIMS, NOW, P256_ORDER, FixedClock, b64, issuer, token

ONE_TIME = CLAIMS | {"one_time": True}


def test_a_token_brings_its_claims_and_scopes() -> None:
    found = authenticator().verify_text(token(KEY, CLAIMS | {"scope": "kv:a:read kv:b:write", "extra": {"a": 1}}))
    assert found.scopes == {"kv:a:read", "kv:b:write"}
    assert found.claims["extra"] == {"a": 1}
    assert not found.one_time
    assert "extra" not in repr(found)  # a claim may be a secret


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({"realm_access": {"roles": ["manager"]}}, {"manager", "monitoring"}),
        ({"roles": [], "realm_access": {"roles": ["manager"]}}, set()),
        ({"realm_access": {}}, set()),
        ({"realm_access": ["manager"]}, set()),
        ({"realm_access": {"roles": "manager"}}, None),
    ],
    ids=str,
)
def test_keycloak_roles(claims: dict[str, Any], roles: set[str] | None) -> None:
    found = authenticator().judge(token(KEY, without("roles") | claims))
    assert (None if found is None else found.roles) == roles


def test_a_configured_roles_claim_is_a_name_or_a_path() -> None:
    for name, claims in (
        ("https://example.com/roles", {"https://example.com/roles": ["a"]}),
        ("resource_access.vault.roles", {"resource_access": {"vault": {"roles": ["a"]}}}),
        ("a.b", {"a.b": ["a"], "a": {"b": ["c"]}}),
    ):
        found = authenticator(issuer(KEY, roles_claim=name)).judge(token(KEY, CLAIMS | claims))
        assert found is not None
        assert found.roles == {"a"}


@pytest.mark.parametrize("scope", [1, None, ["a"], 'a"b', "a\\b", "a\tb", "\u00e9", "a" * 4097], ids=repr)
def test_a_scope_that_is_no_text_of_words(scope: object) -> None:
    assert authenticator().judge(token(KEY, CLAIMS | {"scope": scope})) is None


def test_verify_answers_as_a_refused_route_does() -> None:
    with pytest.raises(HTTPError) as refused:
        authenticator().verify(bearing(token(OTHER)))
    assert (refused.value.status, refused.value.headers) == (401, UNAUTHORIZED.headers)
    assert json.loads(UNAUTHORIZED.body)["error"] == refused.value.message
    with pytest.raises(HTTPError) as unconfigured:
        Authenticator([], FixedClock()).verify(bearing(GOOD))
    assert unconfigured.value.status == 403


def test_a_request_is_verified_once() -> None:
    keeper, request = authenticator(), bearing(token(KEY, ONE_TIME))
    keeper._spent.begin(NOW - 60)
    assert keeper.verify(request) is keeper.verify(request)


def test_a_one_time_token_is_taken_once_whatever_its_signature() -> None:
    keeper = authenticator()
    first = token(KEY, ONE_TIME)
    signed, _, last = first.rpartition(".")
    raw = base64.urlsafe_b64decode(last + "==")
    malleated = f"{signed}.{b64(raw[:32] + number(P256_ORDER - int.from_bytes(raw[32:], 'big')))}"
    keeper._spent.begin(NOW - 60)
    assert keeper.verify_text(first).one_time
    for again in (first, malleated, token(KEY, ONE_TIME)):
        assert keeper.authorize(bearing(again), "manager") is UNAUTHORIZED
    assert keeper.authorize(bearing(token(KEY, ONE_TIME | {"jti": "token-2"})), "manager") is None


def test_a_role_that_is_missing_spends_nothing() -> None:
    keeper = authenticator()
    keeper._spent.begin(NOW - 60)
    assert keeper.authorize(bearing(token(KEY, ONE_TIME)), "nobody") is FORBIDDEN
    assert keeper.authorize(bearing(token(KEY, ONE_TIME)), "manager") is None


@pytest.mark.parametrize("claims", [{"one_time": True, "jti": ""}, {"one_time": 1}, {"one_time": None}], ids=str)
def test_a_mark_that_is_none(claims: dict[str, Any]) -> None:
    assert authenticator().judge(token(KEY, CLAIMS | claims)) is None


def test_a_one_time_token_from_before_the_run_is_refused() -> None:
    keeper = authenticator()
    keeper.begin()
    assert keeper.authorize(bearing(token(KEY, ONE_TIME)), "manager") is UNAUTHORIZED
    assert keeper.authorize(bearing(token(KEY, ONE_TIME | {"iat": NOW})), "manager") is None


def test_one_time_tokens_do_not_settle_the_clock() -> None:
    keeper = authenticator()
    keeper._spent.begin(0)
    assert keeper.authorize_at(bearing(token(KEY, ONE_TIME)), "manager", (NOW,)) is UNAUTHORIZED


def test_one_worker_alone_takes_a_one_time_token() -> None:
    keepers = [Authenticator([issuer(KEY)], FixedClock(), worker_index=n, worker_count=3) for n in range(3)]
    taken = [0, 0, 0]
    for keeper in keepers:
        keeper._spent.begin(0)
    for number_ in range(30):
        text = token(KEY, ONE_TIME | {"jti": f"token-{number_}"})
        answers = [keeper.authorize(bearing(text), "manager") for keeper in keepers]
        assert sorted((answer is None, answer is OTHER_WORKER) for answer in answers) == [
            (False, True), (False, True), (True, False),
        ]  # fmt: skip
        taken[answers.index(None)] += 1
    assert all(taken)


def test_a_full_memory_refuses_until_something_expires() -> None:
    spent = SpentTokens(size_max=2)
    keeper = authenticator()

    def spend(name: str, now: int, expires: int = NOW + 600) -> Spending:
        found = keeper.judge(token(KEY, ONE_TIME | {"jti": name, "exp": expires}))
        assert found is not None
        return spent.spend(found, now)

    spent.begin(0)
    assert spend("a", NOW, NOW + 10) is Spending.TAKEN
    assert spend("b", NOW) is Spending.TAKEN
    assert spend("c", NOW) is Spending.FULL
    assert spend("c", NOW + 9) is Spending.FULL
    assert spend("c", NOW + 10) is Spending.TAKEN
    assert len(spent) == 2
    assert spend("b", NOW + 10) is Spending.REFUSED
