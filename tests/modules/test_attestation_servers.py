"""The attestation servers that the operator names: one spelling, sealed, in every certificate and in the tree."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.evidence import oids
from enclave_os.http import HTTPError, make_request
from enclave_os.modules.attestation_servers import SERVERS_MAX, AttestationServers, canonical_url
from enclave_os.modules.registry import Registry
from tests.enclave.module_services import DenyAll, answer, make_services

LOGGER = logging.getLogger("test")


class Sealed:
    """Where the list would be sealed."""

    def __init__(self) -> None:
        self.servers: tuple[str, ...] = ()

    def attestation_servers(self) -> tuple[str, ...]:
        return self.servers

    async def name_attestation_servers(self, servers: tuple[str, ...]) -> None:
        self.servers = servers


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("https://a.example", "https://a.example"),
        ("HTTPS://A.Example:443/", "https://a.example"),
        ("https://a.example:8443/Verify/", "https://a.example:8443/Verify/"),
        ("https://[2001:DB8::1]:444", "https://[2001:db8::1]:444"),
    ],
)
def test_one_spelling(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical_url(canonical) == canonical


@pytest.mark.parametrize(
    "url",
    [
        None, 1, [], "", "http://a.example", "https://", "https://a b", "https://u@a.example", "https://a.example?q=1",
        "https://a.example#f", "https://a.example:0", "https://a.example:65536", "https://a.example/\n",
        "https://ä.example", "https://a.example/ä", "https://a.example/a b", "https://" + "a" * 600,
    ],
)  # fmt: skip
def test_what_is_no_url(url: object) -> None:
    with pytest.raises(HTTPError) as refused:
        canonical_url(url)
    assert refused.value.status == 400


@given(st.text(max_size=80) | st.from_regex(r"https://[a-z.]{1,20}(:[0-9]{1,5})?(/[ -~]{0,20})?", fullmatch=True))
def test_any_text_is_one_spelling_on_one_line_or_refused(text: str) -> None:
    try:
        found = canonical_url(text)
    except HTTPError:
        return
    assert canonical_url(found) == found
    assert found.isascii()
    assert found.isprintable()
    assert " " not in found


def test_the_list_is_hashed_sorted_and_whole() -> None:
    sealed = Sealed()
    module = AttestationServers(sealed)
    made = Registry([module], DenyAll(allows=True), LOGGER)
    asyncio.run(made.start(lambda found: make_services(modules=made.names)))
    assert (module.custom_oids(), module.config_leaves()) == ({}, {})

    def put(document: object) -> tuple[int, object]:
        reply = answer(made, make_request("PUT", "/attestation-servers", body=json.dumps(document).encode()))
        return reply.status, json.loads(reply.body)

    assert put({"servers": ["https://b.example/", "https://A.example", "https://a.example:443"]}) == (
        200, {"servers": ["https://a.example", "https://b.example"]},
    )  # fmt: skip
    text = b"https://a.example\nhttps://b.example"
    assert module.config_leaves() == {"servers": text}
    assert module.custom_oids() == {oids.ATTESTATION_SERVERS: hashlib.sha256(text).digest()}
    mistakes: tuple[object, ...] = (
        [], {}, {"servers": "https://a.example"}, {"servers": [], "more": 1}, {"servers": [{"url": "x"}]},
        {"servers": [f"https://{n}.example" for n in range(SERVERS_MAX + 1)]},
    )  # fmt: skip
    for wrong in mistakes:
        assert put(wrong)[0] == 400
    assert module.config_leaves() == {"servers": text}
    assert put({"servers": []}) == (200, {"servers": []})
    assert module.custom_oids() == {}


def test_a_manager_alone_changes_it() -> None:
    sealed = Sealed()
    guard = DenyAll()
    made = Registry([AttestationServers(sealed)], guard, LOGGER)
    asyncio.run(made.start(lambda found: make_services(modules=made.names)))
    assert answer(made, make_request("PUT", "/attestation-servers", body=b"{}")).status == 403
    assert answer(made, make_request("GET", "/attestation-servers")).status == 200
    assert guard.asked == ["manager"]
