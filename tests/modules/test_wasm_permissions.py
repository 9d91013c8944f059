"""Tokens of an app's own issuer, when they are good for one call."""

from __future__ import annotations

import asyncio
import dataclasses

from enclave_os.errors import ClockUntrusted
from enclave_os.http import HTTPError
from enclave_os.modules.wasm.permissions import AppTokens, Permissions
from tests.enclave.module_services import STATUS, make_services
from tests.enclave.tokens import CLAIMS, NOW, FixedClock, issuer, new_key, token

KEY = new_key()
OIDC = {"issuer": CLAIMS["iss"], "audience": CLAIMS["aud"], "public_key_pem": issuer(KEY).public_key_pem}
PERMISSIONS = Permissions.read({"version": 1, "oidc": OIDC})


def judge(index: int = 0, count: int = 1, clock: FixedClock | None = None) -> AppTokens:
    status = dataclasses.replace(STATUS, worker_index=index, worker_count=count)
    services = dataclasses.replace(make_services(status=lambda: status), clock=clock or FixedClock())
    made = PERMISSIONS.tokens(services, lambda line: None)
    assert made is not None
    return made


def once(number: int, issued: int = NOW) -> str:
    return token(KEY, CLAIMS | {"one_time": True, "jti": str(number), "iat": issued, "nbf": issued, "exp": issued + 60})


def takes(worker: AppTokens, text: str) -> bool:
    try:
        asyncio.run(worker.verify_text(text))
    except HTTPError:
        return False
    return True


def test_one_worker_of_several_takes_it_once() -> None:
    workers = [judge(index, 3) for index in range(3)]
    for number in range(20):
        text = once(number)
        assert sum(takes(worker, text) for worker in [*workers, *workers]) == 1


def test_what_was_issued_before_the_app_was_there_may_have_been_spent() -> None:
    clock = FixedClock()
    worker = judge(clock=clock)
    assert not takes(worker, once(1, NOW - 1))
    clock.now += 5
    assert takes(worker, once(2, NOW + 1))  # also the first that is asked for, and not at once


def test_a_clock_in_doubt_does_not_keep_an_app_from_being_loaded() -> None:
    clock = FixedClock(error=ClockUntrusted("a test says so"))
    assert not takes(judge(clock=clock), once(1))
