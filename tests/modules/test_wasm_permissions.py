"""Tokens of an app's own issuer, when they are good for one call."""

from __future__ import annotations

import asyncio
import dataclasses

from enclave_os.errors import ClockUntrusted
from enclave_os.http import HTTPError
from enclave_os.modules.spent_tokens import SpentTokens
from enclave_os.modules.tokens import SKEW_S_MAX, Spending
from enclave_os.modules.wasm.permissions import AppTokens, Permissions
from tests.enclave.module_services import NoTokens, make_services
from tests.enclave.tokens import CLAIMS, NOW, FixedClock, issuer, new_key, token

KEY = new_key()
OIDC = {"issuer": CLAIMS["iss"], "audience": CLAIMS["aud"], "public_key_pem": issuer(KEY).public_key_pem}
PERMISSIONS = Permissions.read({"version": 1, "oidc": OIDC})


class Remembered(NoTokens):
    """The server's tokens: nobody has one, and those that are good once are remembered."""

    def __init__(self, clock: FixedClock) -> None:
        self.memory = SpentTokens(clock)

    def spend(self, name: bytes, issued_at: int, expires_at: int) -> Spending:
        return self.memory.spend(name, issued_at, expires_at)


def judge(tokens: Remembered, app: str = "notes", clock: FixedClock | None = None) -> AppTokens:
    services = dataclasses.replace(make_services(tokens=tokens), clock=clock or FixedClock())
    made = PERMISSIONS.tokens(app, services, lambda line: None)
    assert made is not None
    return made


def once(number: int, issued: int = NOW) -> str:
    return token(KEY, CLAIMS | {"one_time": True, "jti": str(number), "iat": issued, "nbf": issued, "exp": issued + 60})


def takes(worker: AppTokens, text: str) -> bool:
    try:
        return asyncio.run(worker.verify_text(text)).one_time
    except HTTPError:
        return False


def test_one_worker_of_several_takes_it_once_and_no_app_for_another() -> None:
    tokens = Remembered(FixedClock())
    tokens.memory.begin(0)
    workers = [judge(tokens) for _ in range(3)]
    for number in range(20):
        text = once(number)
        assert sum(takes(worker, text) for worker in [*workers, *workers]) == 1
        assert takes(judge(tokens, "others"), text), "the same issuer's, for an app that did not see it"


def test_an_app_that_is_loaded_again_takes_none_again() -> None:
    tokens = Remembered(FixedClock())
    tokens.memory.begin(0)
    assert takes(judge(tokens), once(1))
    assert not takes(judge(tokens), once(1))


def test_what_was_issued_before_the_server_was_there_may_have_been_spent() -> None:
    clock = FixedClock()
    tokens = Remembered(clock)
    tokens.memory.begin()
    worker = judge(tokens, clock=clock)
    assert not takes(worker, once(1, NOW - 1))
    clock.now += SKEW_S_MAX
    assert not takes(worker, once(2, NOW + SKEW_S_MAX))
    assert takes(worker, once(3, NOW + SKEW_S_MAX + 1))  # also the first that is asked for, and not at once


def test_a_clock_in_doubt_does_not_keep_an_app_from_being_loaded() -> None:
    clock = FixedClock(error=ClockUntrusted("a test says so"))
    assert not takes(judge(Remembered(clock), clock=clock), once(1))
