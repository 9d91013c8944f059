"""Keys that issuers publish: fetched from where the configuration says, kept for a while; no token asks for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enclave_os.modules.auth import Authenticator
from enclave_os.modules.fetched_keys import KEPT_SECONDS, SIZE_MAX
from enclave_os.runtime.published_keys import PublishedKeys
from enclave_os.wire.policy import differences, policy_of
from enclave_os.wire.setting_issuers import Auth, Issuer
from enclave_os.wire.setting_table import Settings
from enclave_os.wire.settings import check
from tests.enclave.tokens import CLAIMS, HEADER, FixedClock, token
from tests.modules.published_keys import KEY, NEXT, STRANGER, UNUSABLE, URL, Web
from tests.modules.test_issuer_keys import jwk


class Rig:
    def __init__(self) -> None:
        self.web, self.now = Web(), 1000.0
        self.issuer = Issuer(issuer=CLAIMS["iss"], audience=CLAIMS["aud"], jwks_url=URL)
        self.keeper = Authenticator([self.issuer], FixedClock())
        egress: Any = self.web
        self.published = PublishedKeys([self.issuer], egress, self.keeper, lambda: self.now)

    def refresh(self) -> bool:
        return asyncio.run(self.published.refresh())

    def takes(self, key: Any, kid: str | None = None) -> bool:
        return self.keeper.judge(token(key, header=HEADER | ({"kid": kid} if kid else {}))) is not None


def test_no_token_is_good_before_the_keys_are_there() -> None:
    rig = Rig()
    assert not rig.takes(KEY)
    assert rig.refresh()
    assert rig.takes(KEY)
    assert not rig.takes(STRANGER)
    assert rig.web.asked == [
        ("GET", URL, {"headers": {"Accept": "application/json"}, "timeout": 15.0, "size_max": SIZE_MAX})
    ]


def test_a_token_makes_nobody_look() -> None:
    """JW2: neither an unknown kid nor a jku."""
    rig = Rig()
    rig.refresh()
    for header in ({"kid": "two"}, {"jku": "https://evil.example/keys"}, {"kid": "https://evil.example"}):
        rig.keeper.judge(token(STRANGER, header=HEADER | header))
    assert len(rig.web.asked) == 1


def test_keys_change_with_their_issuer_and_old_tokens_end() -> None:
    rig = Rig()
    rig.refresh()
    assert rig.takes(KEY, "one")
    rig.web.answers = {"keys": [jwk(KEY, kid="one"), jwk(NEXT, kid="two")]}
    assert rig.refresh()
    assert rig.takes(KEY, "one")
    assert rig.takes(NEXT, "two")
    rig.web.answers = {"keys": [jwk(NEXT, kid="two")]}
    assert rig.refresh()
    assert not rig.takes(KEY, "one")  # also the one that was verified before
    assert rig.takes(NEXT, "two")


@pytest.mark.parametrize(("answers", "status"), UNUSABLE, ids=str)
def test_what_cannot_be_used_leaves_the_old_keys_for_a_day(answers: Any, status: int) -> None:
    rig = Rig()
    rig.refresh()
    rig.web.answers, rig.web.status = answers, status
    assert not rig.refresh()
    assert rig.takes(KEY)
    assert not rig.takes(NEXT)
    rig.now += KEPT_SECONDS + 1
    assert not rig.refresh()
    assert not rig.takes(KEY)
    rig.web.answers, rig.web.status = {"keys": [jwk(KEY, kid="one")]}, 200
    assert rig.refresh()
    assert rig.takes(KEY)


def test_where_they_are_published_is_part_of_the_sealed_policy() -> None:
    """KV13."""

    def policy(url: str) -> bytes:
        issuer = Issuer(issuer="i", audience="a", jwks_url=url)
        return policy_of(Settings(auth=Auth(issuers=(issuer,))))

    changed = differences(policy(URL), policy("https://evil.example/keys.json"))
    assert [change.key.split()[0] for change in changed] == ["auth.issuers", "auth.issuers"]
    assert "evil.example" in changed[0].after + changed[1].after


@pytest.mark.parametrize(
    "url", ["http://login.example/k", "https://login.example", "https://a@login.example/k", "file:///etc/passwd",
            "https://login.example/k#f", "https://login.example/k k", "login.example/k"],
)  # fmt: skip
def test_urls_that_cannot_be(url: str) -> None:
    table = {"issuer": "i", "audience": "a", "jwks_url": url}
    with pytest.raises(Exception, match="jwks_url"):
        check({"auth": {"issuers": [table]}})
