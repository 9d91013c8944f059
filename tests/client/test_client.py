"""The httpx clients: nothing goes out before the server was accepted, and nothing goes past the transport that asks."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from enclave_os.errors import AttestationError, ConfigError, ServerProtocolError, UsageError
from enclave_os.evidence.protocol import ATTEST_PATH, b64url
from enclave_os.evidence.store_state import StoreState
from enclave_os.verifier import connect
from enclave_os.verifier.tls_stream import TLSStream
from enclave_os_client import client as attesting
from enclave_os_client.client import AsyncClient, Client, Demands, Mode, attestation_of
from enclave_os_client.examine import examine
from enclave_os_client.memory import StateMemory
from tests.client.served import AsyncBackend, AsyncServed, Backend, Served
from tests.enclave.attested import POLICY, ClientEnclave, Enclave
from tests.enclave.certificates import Authority
from tests.evidence.forge import Forge

URL = "https://enclave.example/hello"
BAD_CERTIFICATE, UNKNOWN_CA = 42, 48  # RFC 8446 6.2


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Enclave:
    return Enclave(Forge(tmp_path_factory.mktemp("client") / "platform"), Authority.make("Operator's root"))


@pytest.fixture
def demands() -> Demands:
    return Demands(policy=POLICY)


def use(monkeypatch: pytest.MonkeyPatch, *connections: Served) -> None:
    """Let the next clients connect to these."""
    monkeypatch.setattr(httpcore, "SyncBackend", lambda: Backend(*connections))
    monkeypatch.setattr(httpcore, "AnyIOBackend", lambda: AsyncBackend(*connections))


@pytest.mark.parametrize("mode", list(Mode))
def test_attest_then_ask(enclave: Enclave, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    served = Served(enclave)
    use(monkeypatch, served)
    with Client(Demands(policy=POLICY, mode=mode, ca_pem=enclave.authority.certificate_pem)) as client:
        answer = client.get(URL)
        assert answer.text == "world"
        assert attestation_of(answer).accepted
        assert client.get(URL).text == "world"
    assert served.requests == [ATTEST_PATH, "/hello", "/hello"]
    assert served.closed


def test_one_byte_at_a_time(enclave: Enclave, monkeypatch: pytest.MonkeyPatch, demands: Demands) -> None:
    use(monkeypatch, Served(enclave, piece=1))
    with Client(demands) as client:
        assert client.get(URL).text == "world"


def test_async(enclave: Enclave, monkeypatch: pytest.MonkeyPatch, demands: Demands) -> None:
    served = Served(enclave)
    refused = Served(enclave, tamper=lambda reply: reply.update(quote="AAAA"))
    use(monkeypatch, served, refused)

    async def ask() -> None:
        async with AsyncClient(demands) as client:
            assert (await client.get(URL)).text == "world"
            with pytest.raises(AttestationError):
                await client.get("https://other.example/hello")
            with pytest.raises(UsageError):
                await client.get("http://enclave.example/hello")

    asyncio.run(ask())
    assert served.requests == [ATTEST_PATH, "/hello"]
    assert refused.requests == [ATTEST_PATH]
    assert served.closed
    assert refused.closed


@pytest.mark.parametrize(
    "tamper",
    [
        lambda reply: reply.update(quote="AAAA"),
        lambda reply: reply.update(quote=reply["quote"][:-4] + "AAAA"),
        lambda reply: reply.pop("quote"),
        lambda reply: reply.update(v=1),
        lambda reply: reply.update(mode="deterministic"),
        lambda reply: reply.pop("collateral"),
        lambda reply: reply["collateral"].pop("tcb_info"),
        lambda reply: reply["collateral"].update(pck_certificate_chain="x"),
        lambda reply: reply.clear(),
    ],
)
def test_no_byte_of_a_request_after_a_bad_answer(
    enclave: Enclave, monkeypatch: pytest.MonkeyPatch, demands: Demands, tamper: Any
) -> None:
    served = Served(enclave, tamper=tamper)
    use(monkeypatch, served)
    with Client(demands) as client, pytest.raises(AttestationError) as caught:
        client.post(URL, content=b"a secret")
    assert caught.value.code
    assert served.requests == [ATTEST_PATH]
    assert served.closed


@pytest.mark.parametrize("made", [Client, AsyncClient])
@pytest.mark.parametrize(
    "arguments",
    [
        {"proxy": "http://localhost:1"},
        {"mounts": {"all://": httpx.HTTPTransport(verify=False)}},
        {"transport": httpx.HTTPTransport(verify=False)},
        {"verify": False},
        {"cert": "x"},
        {"trust_env": True},
        {"http2": True},
    ],
)
def test_no_argument_leads_around_the_examination(made: Any, demands: Demands, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        made(demands, **arguments)


def test_proxies_of_the_environment_are_not_looked_at(
    enclave: Enclave, monkeypatch: pytest.MonkeyPatch, demands: Demands
) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://localhost:1")
    use(monkeypatch, Served(enclave))
    with Client(demands) as client:
        assert client.get(URL).text == "world"


def test_the_pool_has_the_limits_that_were_given(demands: Demands) -> None:
    with Client(demands, limits=httpx.Limits(max_connections=3, max_keepalive_connections=2)) as client:
        pool: Any = client._transport._pool  # type: ignore[attr-defined] # httpx has no public way to it
        assert (pool._max_connections, pool._max_keepalive_connections) == (3, 2)


def test_evidence_that_ages_between_the_pools_look_and_the_first_byte(
    enclave: Enclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request goes out once, over a connection that was attested anew."""
    clock = [0.0]
    first, second = Served(enclave), Served(enclave)
    use(monkeypatch, first, second)
    with Client(Demands(policy=POLICY, monotonic=lambda: clock[0])) as client:
        assert client.get(URL).text == "world"
        look = TLSStream.get_extra_info

        def aged(stream: TLSStream, info: str) -> Any:
            found = look(stream, info)
            if info == "is_readable" and not second.requests:
                clock[0] = 301.0
            return found

        monkeypatch.setattr(TLSStream, "get_extra_info", aged)
        assert client.post(URL, content=b"once").text == "world"
    assert first.requests == [ATTEST_PATH, "/hello"]
    assert second.requests == [ATTEST_PATH, "/hello"]


class TestHandshake:
    def test_a_slow_peer_does_not_outlast_the_deadline(self, enclave: Enclave) -> None:
        clock = [0.0]
        served = Served(enclave, piece=1)

        def later() -> None:
            clock[0] += 1.0

        served.on_read = later
        demands = Demands(policy=POLICY, attest_seconds=30, monotonic=lambda: clock[0])
        with pytest.raises(httpcore.ReadTimeout, match="too long"):
            connect.open_stream(served, "enclave.example", "enclave.example:443", demands)
        assert clock[0] == 30.0
        assert served.closed

    def test_connecting_and_examining_share_one_deadline(
        self, enclave: Enclave, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock, waits = [0.0], []
        served = Served(enclave)

        def connect_tcp(backend: object, host: str, port: int, timeout: float) -> Served:
            waits.append(timeout)
            clock[0] += 20.0
            if len(waits) == 1:
                raise httpcore.ConnectTimeout("the first address is silent")
            return served

        def read(max_bytes: int, timeout: float | None = None) -> bytes:
            assert timeout is not None
            waits.append(timeout)
            return Served.read(served, max_bytes, timeout)

        served.read = read  # type: ignore[method-assign]
        addresses = [(0, 0, 0, "", ("192.0.2.1", 443)), (0, 0, 0, "", ("192.0.2.2", 443))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: addresses)
        monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect_tcp)
        demands = Demands(policy=POLICY, attest_seconds=50, monotonic=lambda: clock[0])
        assert examine("enclave.example", 443, demands).accepted
        assert waits[:2] == [50.0, 30.0]
        assert set(waits[2:]) == {10.0}

        waits.clear()
        clock[0] = 0.0
        with pytest.raises(httpcore.ConnectTimeout, match="too long"):
            examine("enclave.example", 443, dataclasses.replace(demands, attest_seconds=15))
        assert waits == [15.0]

    @pytest.mark.parametrize("size", [0, 1, 5, 100, 1000])
    def test_a_peer_that_ends_within_it(self, enclave: Enclave, demands: Demands, size: int) -> None:
        served = Served(enclave, cut_after=size)
        with pytest.raises(ServerProtocolError, match="within the handshake"):
            connect.open_stream(served, "enclave.example", "enclave.example:443", demands)
        assert served.closed

    def test_a_peer_that_ends_within_the_proof(self, enclave: Enclave, demands: Demands) -> None:
        whole = Served(enclave)
        connect.open_stream(whole, "enclave.example", "enclave.example:443", demands)
        served = Served(enclave, cut_after=8000)  # the handshake takes some 6,000 bytes, the answer 20,000 more
        with pytest.raises(httpcore.RemoteProtocolError, match="close_notify"):
            connect.open_stream(served, "enclave.example", "enclave.example:443", demands)
        assert served.closed

    def test_another_ca_and_another_name(self, enclave: Enclave, demands: Demands) -> None:
        strange = dataclasses.replace(demands, ca_pem=Authority.make("Somebody else").certificate_pem)
        known = dataclasses.replace(demands, ca_pem=enclave.authority.certificate_pem)
        for asked, host, alert in ((strange, "enclave.example", UNKNOWN_CA), (known, "other.example", BAD_CERTIFICATE)):
            served = Served(enclave)
            with pytest.raises(connect.CertificateRefused):
                connect.open_stream(served, host, f"{host}:443", asked)
            assert served.closed
            assert served.alert == alert
            assert served.requests == []

    def test_arguments_that_no_connection_can_be_made_with(self, enclave: Enclave, demands: Demands) -> None:
        broken = dataclasses.replace(demands, ca_pem=b"no certificate")
        for asked, host, error in ((broken, "enclave.example", ConfigError), (demands, "\0", UsageError)):
            served = Served(enclave)
            with pytest.raises(error):
                connect.open_stream(served, host, "enclave.example:443", asked)
            assert served.closed

        async def open_async() -> Served:
            served = Served(enclave)
            with pytest.raises(ConfigError):
                await connect.open_async_stream(AsyncServed(served), "enclave.example", "enclave.example:443", broken)
            return served

        assert asyncio.run(open_async()).closed


class TestState:
    """`--state`: what a server says of its store, against what it said before."""

    def found(self, enclave: Enclave, memory: StateMemory, state: StoreState | None) -> Any:
        def alleged(reply: dict[str, Any]) -> None:
            reply["state"] = None if state is None else {
                "boot": state.boot, "boot_nonce": b64url(state.boot_nonce), "version": state.version,
                "root": None if state.root is None else b64url(state.root),
            }  # fmt: skip

        served = Served(enclave, tamper=alleged)
        demands = Demands(policy=POLICY, memory=memory)
        return connect.open_stream(served, "enclave.example", "enclave.example:443", demands)[1]

    def test_two_clones_and_a_restored_state(self, enclave: Enclave, tmp_path: Path) -> None:
        memory = StateMemory(tmp_path / "seen.json")
        seen = StoreState(3, b"a" * 32, 10, b"r" * 32)
        clone = dataclasses.replace(seen, boot_nonce=b"b" * 32)
        restored = StoreState(4, b"c" * 32, 9, b"q" * 32)
        for state, code in (
            (seen, None), (seen, None), (clone, "forked"), (restored, "rolled_back"), (None, "no_state"),
        ):  # fmt: skip
            found = self.found(enclave, memory, state)
            assert (found.failure.code if found.failure else None) == code
            if code:
                with pytest.raises(AttestationError) as caught:
                    found.require()
                assert caught.value.code == code

    def test_an_enclave_that_was_not_accepted_is_not_remembered(self, enclave: Enclave, tmp_path: Path) -> None:
        memory = StateMemory(tmp_path / "seen.json")
        served = Served(enclave, tamper=lambda reply: reply.update(quote="AAAA"))
        demands = Demands(policy=POLICY, memory=memory)
        assert not connect.open_stream(served, "enclave.example", "enclave.example:443", demands)[1].accepted
        assert not memory.path.exists()


@pytest.mark.parametrize("mode", list(Mode))
def test_a_client_with_an_identity(enclave: Enclave, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    """Its hello carries a challenge in every mode, or the server would not ask: the leaf binds that, not a minute."""
    use(monkeypatch, Served(enclave))
    with Client(Demands(policy=POLICY, mode=mode, identity=ClientEnclave(enclave.forge))) as client:
        answer = client.get(URL)
        assert answer.text == "world"
        assert attestation_of(answer).accepted


def test_what_came_otherwise_has_no_attestation() -> None:
    with pytest.raises(UsageError):
        attesting.attestation_of(httpx.Response(200))
