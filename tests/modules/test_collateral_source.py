"""Collateral for our own quotes: fetched by the host from whoever has it, verified before anybody is shown it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote as percent
from urllib.parse import urlsplit

import pytest

from enclave_os.errors import ClockUntrusted, HostRefused
from enclave_os.evidence.collateral import Collateral
from enclave_os.ratls.attester import SimulatedAttester
from enclave_os.ratls.collateral_source import FRESH_SECONDS, RETRY_SECONDS, CollateralSource, platform_of
from enclave_os.wire.collateral_settings import Collateral as Settings
from enclave_os.wire.rpc import COLLATERAL_SIZE_MAX, PCK_AUTHORITIES
from enclave_os_host.handlers import Later, Refused
from enclave_os_host.handlers.collateral import (
    ANSWER_SIZE_MAX,
    CollateralFetcher,
    FetchError,
    collateral_handler,
    simulated_collateral,
)
from enclave_os_host.state import StateError
from tests.evidence.conftest import forge as forge  # fixtures
from tests.evidence.conftest import now as now
from tests.evidence.forge import IDENTITY, MEASUREMENT, Forge
from tests.evidence.test_appraise import IN_TIME, REAL_COLLATERAL, REAL_QUOTE

LOGGER = logging.getLogger("test")
NS = 1_000_000_000
PLATFORM = platform_of(REAL_QUOTE)
FMSPC, AUTHORITY = PLATFORM[:6], PCK_AUTHORITIES[PLATFORM[6]]


@dataclass
class Service:
    """A PCCS on this machine that has the recorded collateral of one real platform.

    Attributes:
        answers: path to (body, headers); what is missing is 404.
        asked: paths with their queries.
    """

    url: str
    answers: dict[str, tuple[bytes, dict[str, str]]]
    asked: list[str] = field(default_factory=list)

    def spoil(self, name: str, change: Callable[[bytes], bytes]) -> None:
        path = f"/sgx/certification/v4/{name}"
        body, head = self.answers[path]
        self.answers[path] = change(body), head


def recorded() -> dict[str, tuple[bytes, dict[str, str]]]:
    """As a PCS answers: the signed text inside JSON, chains percent-encoded in headers, CRLs as hex from a PCCS."""
    found = REAL_COLLATERAL
    tcb = f'{{"tcbInfo":{found.tcb_info},"signature":"{found.tcb_info_signature.hex()}"}}'
    qe = f'{{"enclaveIdentity":{found.qe_identity},"signature":"{found.qe_identity_signature.hex()}"}}'
    base = "/sgx/certification/v4/"
    return {
        f"{base}tcb": (tcb.encode(), {"TCB-Info-Issuer-Chain": percent(found.tcb_info_issuer_chain)}),
        f"{base}qe/identity": (
            qe.encode(),
            {"SGX-Enclave-Identity-Issuer-Chain": percent(found.qe_identity_issuer_chain)},
        ),
        f"{base}pckcrl": (found.pck_crl, {"SGX-PCK-CRL-Issuer-Chain": percent(found.pck_crl_issuer_chain)}),
        f"{base}rootcacrl": (found.root_ca_crl.hex().encode(), {}),
    }


@pytest.fixture
def service() -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            found = made.answers.get(urlsplit(self.path).path)
            self.send_response(200 if found else 404)
            body, head = found or (b"", {})
            for name, value in head.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    made = Service(f"http://127.0.0.1:{server.server_port}", recorded())
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


class Real:
    """An enclave on hardware, as far as its quotes go: one that was made on a real machine."""

    simulated = False
    simulated_root_der = None

    def __init__(self) -> None:
        self.taken: list[Collateral] = []

    def quote(self, report_data: bytes) -> bytes:
        return REAL_QUOTE

    def take_collateral(self, collateral: Collateral) -> None:
        self.taken.append(collateral)


def source(attester: Any, ask: Any, now_s: int = IN_TIME) -> CollateralSource:
    return CollateralSource(attester, ask, lambda: now_s * NS, LOGGER)


def through(fetcher: CollateralFetcher) -> Any:
    """The RPC channel to a host with that fetcher."""

    async def ask(platform: bytes) -> bytes:
        outcome: list[tuple[int, bytes]] = []
        done = threading.Event()

        def tell(status: int, reply: bytes) -> None:
            outcome.append((status, reply))
            done.set()

        later = fetcher.answer(platform)
        assert isinstance(later, Later)
        later.when_done(tell)
        assert await asyncio.to_thread(done.wait, 60)
        if outcome[0][0]:
            raise HostRefused("no", outcome[0][0])
        return outcome[0][1]

    return ask


def fetcher(service: Service, said: list[str] | None = None) -> CollateralFetcher:
    return CollateralFetcher(service.url, "", (said if said is not None else []).append)


def refreshed(found: CollateralSource) -> float:
    return asyncio.run(found.refresh())


def test_a_real_platforms_collateral_is_fetched_verified_and_taken(service: Service) -> None:
    attester = Real()
    assert refreshed(source(attester, through(fetcher(service)))) == FRESH_SECONDS
    assert attester.taken == [REAL_COLLATERAL]
    asked = [urlsplit(path).path.rpartition("/")[2] for path in service.asked]
    assert asked == ["tcb", "identity", "pckcrl", "rootcacrl"]
    assert service.asked[0].endswith(f"?fmspc={FMSPC.hex()}")
    assert f"ca={AUTHORITY}" in service.asked[2]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tcb", lambda body: body.replace(b"2025-07-19", b"2035-07-19", 1)),
        ("tcb", lambda body: body.replace(b'"signature":"', b'"signature":"00')),
        ("qe/identity", lambda body: body.replace(b'"isvprodid":1', b'"isvprodid":2')),
        ("pckcrl", lambda body: body[:-1] + bytes([body[-1] ^ 1])),
        ("rootcacrl", lambda body: body[:-2] + b"00"),
    ],
)
def test_what_the_host_changed_is_not_shown(service: Service, name: str, change: Callable[[bytes], bytes]) -> None:
    before = service.answers[f"/sgx/certification/v4/{name}"]
    service.spoil(name, change)
    assert service.answers[f"/sgx/certification/v4/{name}"] != before
    attester = Real()
    found = source(attester, through(fetcher(service)))
    assert refreshed(found) == RETRY_SECONDS
    assert attester.taken == []
    service.answers = recorded()
    assert refreshed(found) == FRESH_SECONDS
    assert attester.taken == [REAL_COLLATERAL]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("tcb", b""),
        ("tcb", b"not JSON"),
        ("tcb", b'{"signature":"00"}'),
        ("tcb", b'{"tcbInfo":{},"signature":5}'),
        ("tcb", b'{"tcbInfo":'),
        ("qe/identity", b"[" * 10_000),
        ("pckcrl", b"<html>"),
        ("pckcrl", b"\x30" * (ANSWER_SIZE_MAX + 1)),
    ],
)
def test_a_service_that_answers_something_else(service: Service, name: str, body: bytes) -> None:
    service.spoil(name, lambda before: body)
    said: list[str] = []
    attester = Real()
    assert refreshed(source(attester, through(fetcher(service, said)))) == RETRY_SECONDS
    assert attester.taken == []
    assert len(said) == 1
    assert service.url in said[0]


@pytest.mark.parametrize("name", ["tcb", "qe/identity", "pckcrl", "rootcacrl"])
def test_a_part_or_its_issuers_missing(service: Service, name: str) -> None:
    path = f"/sgx/certification/v4/{name}"
    body, head = service.answers.pop(path)
    with pytest.raises(FetchError, match="404"):
        fetcher(service).fetch(FMSPC, AUTHORITY)
    service.answers[path] = body, {}
    if head:
        with pytest.raises(FetchError, match="is missing"):
            fetcher(service).fetch(FMSPC, AUTHORITY)


def test_a_service_that_is_not_there(service: Service) -> None:
    with pytest.raises(FetchError):
        CollateralFetcher("http://127.0.0.1:1", "", print).fetch(FMSPC, AUTHORITY)


def test_no_more_than_the_channel_takes(service: Service) -> None:
    big = json.dumps({"x": "y" * (ANSWER_SIZE_MAX - 1000)})
    service.spoil("tcb", lambda body: f'{{"tcbInfo":{big},"signature":"00"}}'.encode())
    service.spoil("qe/identity", lambda body: f'{{"enclaveIdentity":{big},"signature":"00"}}'.encode())
    with pytest.raises(FetchError, match=str(COLLATERAL_SIZE_MAX)):
        fetcher(service).fetch(FMSPC, AUTHORITY)


# -- the enclave's half alone ------------------------------------------------------------------------------------------


def answers(text: str) -> Any:
    async def ask(platform: bytes) -> bytes:
        return text.encode()

    return ask


@pytest.mark.parametrize("now_s", [0, IN_TIME + 400 * 86400], ids=["before it", "after it"])
def test_collateral_out_of_date_is_not_shown(now_s: int) -> None:
    attester = Real()
    assert refreshed(source(attester, answers(REAL_COLLATERAL.to_json()), now_s)) == RETRY_SECONDS
    assert attester.taken == []


def test_another_platforms_collateral_is_not_shown(forge: Forge) -> None:
    attester = Real()
    for text in (forge.collateral.to_json(), "{}", "", replace(REAL_COLLATERAL, pck_crl=b"").to_json()):
        assert refreshed(source(attester, answers(text))) == RETRY_SECONDS
    assert attester.taken == []


@pytest.mark.parametrize("error", [HostRefused("no", -5), ClockUntrusted("no time")])
def test_a_host_or_clock_that_fails_is_asked_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(platform: bytes) -> bytes:
        raise error

    found = source(Real(), fail)
    for _ in range(3):
        assert refreshed(found) == RETRY_SECONDS
    assert len(caplog.records) == 1  # said once


def test_a_platform_whose_status_is_bad_is_still_said_by_its_own_collateral(forge: Forge, now: int) -> None:
    """Whether that is good enough is for the client, who reads it there."""
    attester = SimulatedAttester("simulated", forge.folder, IDENTITY, MEASUREMENT)
    outdated = forge.with_status("OutOfDate")
    assert refreshed(source(attester, answers(outdated.to_json()), now)) == FRESH_SECONDS
    assert attester.collateral() == outdated


def test_the_simulated_platform_renews_its_own(forge: Forge, now: int) -> None:
    handler = simulated_collateral(forge.folder)
    attester = SimulatedAttester("simulated", forge.folder, IDENTITY, MEASUREMENT)

    async def ask(platform: bytes) -> bytes:
        return cast(bytes, handler(platform))

    assert refreshed(source(attester, ask, now)) == FRESH_SECONDS
    assert attester.collateral() == forge.collateral


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1"])
def test_the_host_chooses_where_from(forge: Forge, url: str, tmp_path: Path) -> None:
    handler = collateral_handler(Settings(url=url), forge.folder, print)
    assert Collateral.from_json(cast(bytes, handler(PLATFORM))) == forge.collateral
    handler = collateral_handler(Settings(url=url), None, lambda line: None)
    if url:
        assert isinstance(handler(PLATFORM), Later)
    else:
        with pytest.raises(Refused):
            handler(PLATFORM)
    with pytest.raises(StateError, match=r"collateral\.ca_file"):
        collateral_handler(Settings(ca_file=str(tmp_path / "none.pem")), None, print)


def test_which_of_intels_cas_signed(forge: Forge) -> None:
    assert platform_of(REAL_QUOTE)[6] in (0, 1)
    assert len(platform_of(forge.quote())) == 7
