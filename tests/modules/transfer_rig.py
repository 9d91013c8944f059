"""Two enclaves and the host between them, without processes: one gives what is sealed, the other takes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os.errors import ClientProtocolError
from enclave_os.evidence.protocol import EXPORT_PATH
from enclave_os.http import NEED_DATA, REFUSED, REQUEST, HTTPError, RequestParser, Response, error_response
from enclave_os.ratls.attester import SimulatedAttester
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.exporting import Exporting
from enclave_os.runtime.importing import Importing
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.sealing.transfer import Giver
from enclave_os.wire.errors import HostProtocolError
from enclave_os.wire.rpc import CARRY_HEADER_SIZE, CARRY_SIZE_MAX, MEASUREMENT_SIZE, Method, SealLoadFlag
from tests.enclave.attested import Connection, Enclave
from tests.enclave.certificates import Authority
from tests.enclave.sealing import FakePlatform
from tests.evidence.forge import IDENTITY, MEASUREMENT, Forge

Bytes = Callable[[bytes], bytes | None]
LOGGER = logging.getLogger("test")


class Stored:
    """A host's disk, as far as sealed configurations go; `rpc` is the channel to it."""

    def __init__(self) -> None:
        self.blob = b""
        self.writes = 0

    async def call(self, method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
        if method is Method.SEAL_LOAD:
            return bytes([SealLoadFlag.BLOB if self.blob else 0]) + self.blob
        assert method is Method.SEAL_STORE
        self.writes += 1
        self.blob = payload[MEASUREMENT_SIZE:]
        return b""


class Giving:
    """The enclave that gives, serving connections whose bytes somebody else carries.

    Args:
        rig: its attesting half; its measurement is the rig's platform's.
        config: what it has sealed.
    """

    def __init__(self, rig: Enclave, config: SealedConfig) -> None:
        self.rig = rig
        self.disk = Stored()
        self.keeper = SealKeeper(cast(Any, self.disk), FakePlatform(MEASUREMENT), config.policy, len(config.kv_states))
        self.keeper.adopt(config)
        self.changes: list[SealedConfig] = []
        self.served: list[tuple[int, str]] = []
        self.exporting = Exporting(
            own=Giver(rig.body, simulated=True, simulated_root_der=rig.simulated_root_der),
            keeper=self.keeper,
            sessions=rig.sessions,
            clock=cast(Any, rig),
            logger=LOGGER,
            give=lambda measurement: self.give(measurement),
        )
        self._context = TLSContext.server(rig.choose, judge_client=rig.judge.handshake)

    async def give(self, measurement: bytes) -> None:
        """Seal that it is given, as worker 0 does."""
        self.changes.append(await self.keeper.change(lambda held: held.given(measurement)))

    def accept(self) -> Served:
        """One connection of a client's."""
        return Served(self, TLSEngine(self._context))


class Served:
    """One connection to the giving enclave."""

    def __init__(self, giving: Giving, engine: TLSEngine) -> None:
        self._giving = giving
        self._engine = engine
        self._parser = RequestParser()
        self._connection: Connection | None = None
        self.ended = False

    async def exchange(self, data: bytes) -> bytes:
        """What the enclave answers to these TLS bytes."""
        self._engine.feed(data)
        try:
            while not self.ended:
                plaintext = self._engine.read()
                if plaintext is None:
                    break
                if plaintext:
                    await self._take(plaintext)
                else:
                    self.ended = True
        except ClientProtocolError:
            self.ended = True
        return self._engine.take_output()

    async def _take(self, plaintext: bytes) -> None:
        if self._connection is None:
            self._connection = Connection(self._engine, self._giving.rig.tree.generation)
        while plaintext:
            result, used = self._parser.feed(plaintext)
            plaintext = plaintext[used:]
            if result == REQUEST:
                request = self._parser.take()
                self._parser.next()
                assert (request.method, request.path) == ("POST", EXPORT_PATH)
                await self._answer(request.body)
            elif result == REFUSED:
                self.ended = True
                return
            else:
                assert result == NEED_DATA

    async def _answer(self, body: bytes) -> None:
        assert self._connection is not None
        try:
            response = await self._giving.exporting.answer(cast(Any, self._connection), body)
        except HTTPError as error:
            response = error_response(error.status, error.message, error.headers)
        self._giving.served.append((response.status, _text(response)))
        head = f"HTTP/1.1 {response.status} Said\r\ncontent-length: {len(response.body)}\r\nserver: test\r\n\r\n"
        self._engine.write(head.encode() + response.body)


def _text(response: Response) -> str:
    return response.body.decode("latin-1") if response.status != 200 else ""


@dataclass
class Carrier:
    """The receiving host: its disk, and what it does to the bytes that it carries.

    Attributes:
        accept: connects to whom it likes.
        up, down: what becomes of the bytes of one turn towards the giver, and back; None: it hangs up.
    """

    accept: Callable[[], Any]
    up: Bytes = bytes
    down: Bytes = bytes
    disk: Stored = field(default_factory=Stored)
    connections: dict[int, Any] = field(default_factory=dict)
    turns: int = 0
    lies: list[str] = field(default_factory=list)
    raw: Callable[[bytes], bytes] | None = None

    async def call(self, method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
        """The RPC channel of the receiver."""
        if method is not Method.SEAL_CARRY:
            return await self.disk.call(method, payload, deadline=deadline)
        assert len(payload) <= CARRY_HEADER_SIZE + CARRY_SIZE_MAX
        self.turns += 1
        number = int.from_bytes(payload[: CARRY_HEADER_SIZE - 1], "little")
        if number not in self.connections:
            self.connections[number] = self.accept()
        wait, data = payload[CARRY_HEADER_SIZE - 1], self.up(payload[CARRY_HEADER_SIZE:])
        if data is None:
            return b"\1"
        came = self.down(await self.connections[number].exchange(data))
        if self.raw is not None:
            return self.raw(came or b"")
        if not wait:
            assert not came
            return b"\0"
        return b"\0" + came if came else b"\1"

    def accuse(self, reason: str) -> HostProtocolError:
        """As `rpc.client`."""
        self.lies.append(reason)
        return HostProtocolError(reason)


class Receiving:
    """The enclave that takes."""

    def __init__(
        self,
        forge: Forge,
        carrier: Carrier,
        measurement: bytes,
        policy: bytes,
        *,
        named: bytes = MEASUREMENT,
        identity: Any = IDENTITY,
        now_ns: int,
    ) -> None:
        self.attester = SimulatedAttester("simulated", forge.folder, identity, measurement)
        self.clock = Clock(lambda: now_ns)
        self.keeper = SealKeeper(cast(Any, carrier), FakePlatform(measurement, b"n" * 32), policy)
        self.importing = Importing(
            named,
            rpc=cast(Any, carrier),
            keeper=self.keeper,
            attester=self.attester,
            clock=self.clock,
            policy=policy,
            logger=LOGGER,
        )

    def run(self) -> SealedConfig:
        """Take it."""
        return asyncio.run(self.importing.run())


def giving(forge: Forge, config: SealedConfig, **changes: Any) -> Giving:
    """An enclave of the forge's platform that serves nobody but receivers."""
    rig = Enclave(forge, Authority.make("Giver's root"), client_mr_enclaves=(), **changes)
    return Giving(rig, config)
