"""What tokens bring beside roles, and those that are good once."""

import asyncio
import base64
import json
from typing import Any

import pytest

from enclave_os.errors import ClockUntrusted
from enclave_os.http import HTTPError, Request, Response
from enclave_os.modules.api import Token
from enclave_os.modules.auth import FORBIDDEN, FULL, UNAUTHORIZED, UNREACHED, Authenticator
from enclave_os.modules.spent_tokens import SpentTokens, spent_name
from enclave_os.modules.tokens import SKEW_S_MAX, Spending
from tests.enclave.test_auth import GOOD, KEY, OTHER, authenticator, bearing, number, without
from tests.enclave.tokens import CLAIMS, NOW, P256_ORDER, FixedClock, b64, issuer, token

ONE_TIME = CLAIMS | {"one_time": True}


def test_a_token_brings_its_claims_and_scopes() -> None:
    text = token(KEY, CLAIMS | {"scope": "kv:a:read kv:b:write", "extra": {"a": 1}})
    found = asyncio.run(authenticator().verify_text(text))
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
        asyncio.run(authenticator().verify(bearing(token(OTHER))))
    assert (refused.value.status, refused.value.headers) == (401, UNAUTHORIZED.headers)
    assert json.loads(UNAUTHORIZED.body)["error"] == refused.value.message
    with pytest.raises(HTTPError) as unconfigured:
        asyncio.run(Authenticator([], FixedClock()).verify(bearing(GOOD)))
    assert unconfigured.value.status == 403


def test_a_request_is_verified_once() -> None:
    keeper, request = authenticator(), bearing(token(KEY, ONE_TIME))
    keeper._spent.begin(0)
    assert asyncio.run(keeper.verify(request)) is asyncio.run(keeper.verify(request))


def test_a_one_time_token_is_taken_once_whatever_its_signature() -> None:
    keeper = authenticator()
    first = token(KEY, ONE_TIME)
    signed, _, last = first.rpartition(".")
    raw = base64.urlsafe_b64decode(last + "==")
    malleated = f"{signed}.{b64(raw[:32] + number(P256_ORDER - int.from_bytes(raw[32:], 'big')))}"
    keeper._spent.begin(0)
    assert asyncio.run(keeper.verify_text(first)).one_time
    for again in (first, malleated, token(KEY, ONE_TIME)):
        assert keeper.authorize(bearing(again), "manager") is UNAUTHORIZED
    assert keeper.authorize(bearing(token(KEY, ONE_TIME | {"jti": "token-2"})), "manager") is None


def test_a_role_that_is_missing_spends_nothing() -> None:
    keeper = authenticator()
    keeper._spent.begin(0)
    assert keeper.authorize(bearing(token(KEY, ONE_TIME)), "nobody") is FORBIDDEN
    assert keeper.authorize(bearing(token(KEY, ONE_TIME)), "manager") is None


@pytest.mark.parametrize("claims", [{"one_time": True, "jti": ""}, {"one_time": 1}, {"one_time": None}], ids=str)
def test_a_mark_that_is_none(claims: dict[str, Any]) -> None:
    assert authenticator().judge(token(KEY, CLAIMS | claims)) is None


def test_a_one_time_token_that_may_have_been_spent_in_an_earlier_run_is_refused() -> None:
    """An issuer's clock may be ahead of ours: what it issued "after" the start may be of before it all the same."""
    clock = FixedClock()
    keeper = authenticator(clock=clock)
    keeper._spent.begin()
    before = [token(KEY, ONE_TIME | {"iat": NOW + ahead}) for ahead in (-60, 0, SKEW_S_MAX)]
    after = token(KEY, ONE_TIME | {"iat": NOW + SKEW_S_MAX + 1})
    for clock.now in (NOW, NOW + 1, NOW + 60):
        for text in before:
            assert keeper.authorize(bearing(text), "manager") is UNAUTHORIZED
    assert keeper.authorize(bearing(after), "manager") is None


def test_one_time_tokens_do_not_settle_the_clock() -> None:
    keeper = authenticator()
    keeper._spent.begin(0)
    assert keeper.authorize_at(bearing(token(KEY, ONE_TIME)), "manager", (NOW,)) is UNAUTHORIZED


class Elsewhere:
    """The memory of another worker: what it says comes later, or not at all."""

    def __init__(self, memory: SpentTokens) -> None:
        self.memory = memory
        self.reached = True

    async def spend(self, name: bytes, issued_at: int, expires_at: int) -> Spending:
        await asyncio.sleep(0)
        return self.memory.spend(name, issued_at, expires_at) if self.reached else Spending.UNREACHED


async def authorized(keeper: Authenticator, request: Request) -> Response | None:
    answer = keeper.authorize(request, "manager")
    return answer if isinstance(answer, Response | None) else await answer


def test_a_one_time_token_at_several_workers_at_once_is_taken_from_one() -> None:
    async def test() -> None:
        memory = SpentTokens(FixedClock())
        memory.begin(0)
        elsewhere = Elsewhere(memory)
        keepers = [Authenticator([issuer(KEY)], FixedClock(), spend=memory.spend)]
        keepers += [Authenticator([issuer(KEY)], FixedClock(), spend=elsewhere.spend) for _ in range(2)]
        for number_ in range(10):
            text = token(KEY, ONE_TIME | {"jti": f"token-{number_}"})
            answers = await asyncio.gather(*(authorized(keeper, bearing(text)) for keeper in keepers))
            assert sorted(answer is None for answer in answers) == [False, False, True]
            assert [answer for answer in answers if answer is not None] == [UNAUTHORIZED] * 2
        text = token(KEY, ONE_TIME | {"jti": "by verify"})
        request = bearing(text)
        found = await keepers[1].verify(request)
        assert found.one_time
        assert await keepers[1].verify(request) is found, "a request is verified once"
        for keeper in keepers:
            with pytest.raises(HTTPError) as refused:
                await keeper.verify_text(text)
            assert refused.value.status == 401
        elsewhere.reached = False
        text = token(KEY, ONE_TIME | {"jti": "unreached"})
        assert await authorized(keepers[1], bearing(text)) is UNREACHED
        with pytest.raises(HTTPError) as unknown:
            await keepers[2].verify_text(text)
        assert (unknown.value.status, unknown.value.headers) == (503, UNREACHED.headers)
        assert keepers[1].authorize(bearing(token(KEY)), "manager") is None, "any other token needs nobody else"

    asyncio.run(test())


def test_a_worker_whose_clock_is_slow_gets_nothing_for_what_was_forgotten() -> None:
    """The host gives each worker a clock of its own: one that stands still takes an expired token for a good one."""
    ahead = FixedClock()
    memory = SpentTokens(ahead)
    memory.begin(0)
    slow = Authenticator([issuer(KEY)], FixedClock(), spend=memory.spend)
    text = token(KEY, ONE_TIME)
    assert slow.authorize(bearing(text), "manager") is None
    ahead.now = CLAIMS["exp"]
    other = token(KEY, ONE_TIME | {"jti": "other", "exp": CLAIMS["exp"] + 60})
    assert slow.authorize(bearing(other), "manager") is None
    assert len(memory) == 1, "the first one is forgotten"
    assert slow.authorize(bearing(text), "manager") is UNAUTHORIZED


def test_two_parts_of_a_server_with_issuers_of_their_own_do_not_spend_each_others_tokens() -> None:
    async def test() -> None:
        keeper = authenticator()
        keeper._spent.begin(0)
        text = token(KEY, ONE_TIME)
        others = [Authenticator([issuer(KEY)], FixedClock(), spend=keeper.spend, scope=scope) for scope in ("a", "b")]
        for own in (keeper, *others):
            assert (await own.verify_text(text)).one_time
            with pytest.raises(HTTPError):
                await own.verify_text(text)
        assert len(keeper._spent) == 3

    asyncio.run(test())
    names = {
        spent_name(Token(who, "s", jti, frozenset(), 0), scope)
        for scope, who, jti in (("a", "b", "c"), ("", "ab", "c"), ("ab", "", "c"), ("a", "", "bc"), ("", "", "abc"))
    }
    assert len(names) == 5


def test_nothing_is_taken_while_time_is_in_doubt() -> None:
    memory = SpentTokens(FixedClock(error=ClockUntrusted("ahead")))
    memory.begin(0)
    assert memory.spend(bytes(32), NOW, NOW + 60) is Spending.REFUSED
    assert len(memory) == 0


def test_a_full_memory_refuses_until_something_expires() -> None:
    clock = FixedClock()
    spent = SpentTokens(clock, size_max=2)

    def spend(name: str, now: int, expires: int = NOW + 600) -> Spending:
        clock.now = now
        return spent.spend(name.encode() * 32, NOW, expires)

    spent.begin(0)
    assert spend("a", NOW, NOW + 10) is Spending.TAKEN
    assert spend("b", NOW) is Spending.TAKEN
    assert spend("c", NOW) is Spending.FULL
    assert spend("c", NOW + 9) is Spending.FULL
    assert spend("c", NOW + 10) is Spending.TAKEN
    assert len(spent) == 2
    assert spend("b", NOW + 10) is Spending.REFUSED
    keeper = Authenticator([issuer(KEY)], clock, spend=spent.spend)
    assert keeper.authorize(bearing(token(KEY, ONE_TIME)), "manager") is FULL
