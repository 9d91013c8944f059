"""Tokens of an app's own issuer: several keys, chosen by kid, given or fetched from its jwks_uri (JW2, JW5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enclave_os.modules.fetched_keys import KEPT_SECONDS, REFRESH_SECONDS, RETRY_SECONDS, SIZE_MAX
from tests.enclave.tokens import CLAIMS, HEADER, b64, new_key, pem, token
from tests.modules import wasm_guests as guests
from tests.modules.published_keys import KEY, NEXT, STRANGER, UNUSABLE, URL, Web
from tests.modules.test_issuer_keys import jwk
from tests.modules.wasm_rig import RunningClock, Site, json_of, on_site

PLAIN = guests.plain()


class SteppedClock(RunningClock):
    """Deadlines by a clock that a test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def permissions(**oidc: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "oidc": {"issuer": CLAIMS["iss"], "audience": CLAIMS["aud"], **oidc},
        "default_policy": "authenticated",
        "schema_policy": "authenticated",
    }


def signed(key: Any, kid: str | None = None) -> str:
    return token(key, header=HEADER | ({"kid": kid} if kid else {}))


async def status(site: Site, key: Any, kid: str | None = None) -> int:
    return (await site.call("app", "hello", signed(key, kid))).status


def test_keys_of_a_set_are_chosen_by_kid() -> None:
    async def test(site: Site) -> None:
        keys = {"keys": [jwk(KEY, kid="one"), jwk(NEXT, kid="two"), {"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}
        described = await site.loaded("app", PLAIN, permissions=permissions(jwks=keys))
        assert described["permissions"]["oidc"]["jwks"] == keys
        assert await status(site, KEY, "one") == await status(site, NEXT, "two") == 200
        assert await status(site, KEY, "two") == await status(site, NEXT, "one") == 401
        assert await status(site, KEY) == 401  # which of two?
        assert await status(site, STRANGER, "three") == 401
        # The attested document is what is stored, and is read again as it is.
        again = await site.again()
        async with again:
            assert await status(again, NEXT, "two") == 200

    on_site(test)


def test_keys_are_fetched_when_the_first_token_comes_and_kept() -> None:
    web = Web()

    async def test(site: Site) -> None:
        described = await site.loaded("app", PLAIN, permissions=permissions(jwks_uri=URL))
        assert described["permissions"]["oidc"]["jwks_uri"] == URL
        assert (await site.call("app", "hello")).status == 401
        assert web.asked == []
        for _ in range(3):
            assert await status(site, KEY, "one") == 200
        ask = {"headers": {"Accept": "application/json"}, "timeout": 15.0, "size_max": SIZE_MAX}
        assert web.asked == [("GET", URL, ask)]
        assert (await site.send("GET", "/rpc/app/schema", who=signed(KEY, "one"))).status == 200
        assert (await site.call("app", "hello", "boss:manager")).status == 401  # the server's issuers do not count
        assert len(web.asked) == 1

    on_site(test, egress=web)


def test_a_key_that_is_not_known_is_looked_for_once_a_minute() -> None:
    web, clock = Web(), SteppedClock()

    async def test(site: Site) -> None:
        await site.loaded("app", PLAIN, permissions=permissions(jwks_uri=URL))
        assert await status(site, KEY, "one") == 200
        web.answers = {"keys": [jwk(KEY, kid="one"), jwk(NEXT, kid="two")]}
        assert await status(site, NEXT, "two") == 401  # the minute is not over
        clock.now += RETRY_SECONDS
        assert await status(site, NEXT, "two") == 200
        assert await status(site, KEY, "one") == 200
        assert len(web.asked) == 2
        # Whatever a stranger sends: one question a minute, and only for what looks like a token of this issuer.
        for index in range(50):
            clock.now += RETRY_SECONDS / 25
            assert await status(site, STRANGER, f"kid-{index}") == 401
        assert len(web.asked) <= 2 + 3
        asked = len(web.asked)
        clock.now += 2 * RETRY_SECONDS
        for text in ("", "a.b.c", "x" * 9000, b64(b"{}") + ".e30." + b64(bytes(64))):
            assert (await site.call("app", "hello", text)).status == 401
        other = token(STRANGER, claims=CLAIMS | {"iss": "somebody"}, header=HEADER | {"kid": "new"})
        jku = token(STRANGER, header=HEADER | {"kid": "new", "jku": "https://evil.example/keys"})
        for text in (other, jku):
            assert (await site.call("app", "hello", text)).status == 401
        assert len(web.asked) == asked
        # The issuer lets the old key go: its tokens end with the next look.
        web.answers = {"keys": [jwk(NEXT, kid="two")]}
        clock.now += REFRESH_SECONDS
        assert await status(site, KEY, "one") == 401
        assert await status(site, NEXT, "two") == 200

    on_site(test, egress=web, clock=clock)


def test_many_who_come_at_once_wait_for_one_answer() -> None:
    web = Web()

    async def test(site: Site) -> None:
        await site.loaded("app", PLAIN, permissions=permissions(jwks_uri=URL))
        web.open.clear()
        waiting = [asyncio.create_task(status(site, KEY, "one")) for _ in range(20)]
        while not web.asked:
            await asyncio.sleep(0)
        waiting[0].cancel()  # who gives up does not take it from the others
        web.open.set()
        assert set(await asyncio.gather(*waiting[1:])) == {200}
        assert len(web.asked) == 1

    on_site(test, egress=web)


def test_nobody_whose_key_is_known_waits_for_a_strangers() -> None:
    web, clock = Web(), SteppedClock()

    async def test(site: Site) -> None:
        await site.loaded("app", PLAIN, permissions=permissions(jwks_uri=URL))
        assert await status(site, KEY, "one") == 200
        clock.now += RETRY_SECONDS
        web.open.clear()
        stranger = asyncio.create_task(status(site, STRANGER, "new"))
        while len(web.asked) < 2:
            await asyncio.sleep(0)
        assert await asyncio.wait_for(status(site, KEY, "one"), 20) == 200  # the issuer is silent still
        assert not stranger.done()
        web.open.set()
        assert await stranger == 401

    on_site(test, egress=web, clock=clock)


@pytest.mark.parametrize(("answers", "code"), UNUSABLE, ids=str)
def test_without_keys_nobody_is_let_in(answers: Any, code: int) -> None:
    web, clock = Web(), SteppedClock()

    async def test(site: Site) -> None:
        await site.loaded("app", PLAIN, permissions=permissions(jwks_uri=URL))
        good, web.answers, web.status = web.answers, answers, code
        assert await status(site, KEY, "one") == 401
        lines = json_of(await site.send("GET", "/wasm/apps/app/log"))["lines"]
        assert any("were not fetched" in line for line in lines)
        web.answers, web.status = good, 200
        clock.now += RETRY_SECONDS
        assert await status(site, KEY, "one") == 200
        # What is known holds for a day, then not any more; and again when they can be had.
        web.answers, web.status = answers, code
        clock.now += REFRESH_SECONDS
        assert await status(site, KEY, "one") == 200
        clock.now += KEPT_SECONDS
        assert await status(site, KEY, "one") == 401
        web.answers, web.status = good, 200
        clock.now += RETRY_SECONDS
        assert await status(site, KEY, "one") == 200

    on_site(test, egress=web, clock=clock)


@pytest.mark.parametrize(
    "oidc",
    [
        {},
        {"public_key_pem": pem(KEY), "jwks_uri": URL},
        {"jwks_uri": "http://login.example/keys"},
        {"jwks_uri": "https://user@login.example/keys"},
        {"jwks_uri": "https://login.example"},
        {"jwks_uri": 7},
        {"jwks_uri": "https://login.example/" + "x" * 3000},
        {"jwks": "text"},
        {"jwks": {"keys": "text"}},
        {"jwks": {"keys": []}},
        {"jwks": {"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}},
        {"jwks": {"keys": [jwk(KEY, d="secret")]}},
        {"jwks": {"keys": [jwk(KEY, kid="one"), jwk(NEXT, kid="one")]}},
        {"jwks": {"keys": [jwk(new_key(), kid="x" * 200) for _ in range(60)]}},
    ],
    ids=lambda oidc: str(oidc)[:40],
)
def test_what_is_said_of_the_keys_is_checked(oidc: dict[str, Any]) -> None:
    async def test(site: Site) -> None:
        response = await site.load("app", PLAIN, permissions=permissions(**oidc))
        assert response.status == 400, response.body
        assert b"permissions.oidc" in response.body

    on_site(test)
