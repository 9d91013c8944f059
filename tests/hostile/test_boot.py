"""A host that lies to the enclave while it starts: each word of its environment, each slot, each document.

Every lie ends the start with one typed line, the exit code of the guilty party and, where there is a slot to answer in,
the result in that slot. Nothing hangs, nothing is a traceback.
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.enclave.fake_host import FakeHost
from tests.enclave.ingress_harness import development_authority

from enclave_os.border.control import ControlBlock
from enclave_os.border.doorbell import EventfdDoorbell
from enclave_os.border.region import Region
from enclave_os.runtime import boot
from enclave_os.runtime.context import ExitCode
from enclave_os.wire import decode_frame, decode_rpc_request, encode_rpc_reply
from enclave_os.wire.errors import HostProtocolError, PeerProtocolError
from enclave_os.wire.frames import FrameKind
from enclave_os.wire.kv import encode_scan_reply
from enclave_os.wire.layout import (
    CONFIG_OFFSET,
    CONFIG_SIZE_MAX,
    DESCRIPTOR_SIZE,
    REGION_FOLDER,
    SLOT_STATE,
    EntryResult,
    Slot,
    SlotState,
    descriptor_offset,
    encode_descriptor,
    slot_offset,
)
from enclave_os.wire.rpc import Method
from enclave_os.wire.settings import CertificateAuthority, ConfigError, check, enclave_document
from enclave_os_host.simulated_platform import open_simulated_platform

SECONDS = 30.0  # of patience with a real process; none of these tests uses it up unless it fails


def document() -> bytes:
    """What an honest host gives to `run`."""
    authority = development_authority()
    ca = CertificateAuthority(
        certificate_pem=authority.certificate_pem.decode(), key_pem=authority.key_pem.decode(), key_origin="imported"
    )
    return enclave_document(check({}), 0, 1, ca)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    host = FakeHost(tmp_path)
    host.fill_channels()
    host.fill_run(document())
    yield host
    host.close()


@functools.cache
def platform() -> str:
    """The simulated platform of every enclave in this file; goes with the process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return str(open_simulated_platform(Path(folder.name) / "platform").folder)


def environment(host: FakeHost) -> dict[str, str]:
    return {
        "ENCLAVE_OS_MODE": "simulated",
        "ENCLAVE_OS_DOORBELL": host.doorbell,
        "ENCLAVE_OS_REGION": host.name,
        "ENCLAVE_OS_PLATFORM": platform(),
    }


@pytest.fixture
def attach(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """`boot.attach` on this host's region."""
    monkeypatch.setattr(boot, "Region", functools.partial(Region, folder=str(host.folder)))
    return lambda: boot.attach(environment(host))


class TestSlots:
    def test_an_honest_host_is_taken_at_its_word(self, host: FakeHost, attach: Callable[[], object]) -> None:
        attach()
        for slot in (Slot.INIT_CHANNEL, Slot.INIT_DATA_CHANNEL):
            assert host.slot(slot) == (SlotState.TAKEN, EntryResult.OK)
        assert host.slot(Slot.RUN)[0] == SlotState.FILLED  # answered when it serves

    @pytest.mark.parametrize("slot", [Slot.INIT_CHANNEL, Slot.INIT_DATA_CHANNEL])
    @pytest.mark.parametrize("word", range(DESCRIPTOR_SIZE // 8))
    @pytest.mark.parametrize("value", [1, 7, 2**31, 2**63, 2**64 - 8, 2**64 - 1])
    def test_a_channel_that_cannot_be(
        self, host: FakeHost, attach: Callable[[], object], slot: Slot, word: int, value: int
    ) -> None:
        host.words[descriptor_offset(slot) // 8 + word] = value
        with pytest.raises(PeerProtocolError):
            attach()
        assert host.slot(slot) == (SlotState.TAKEN, EntryResult.BAD_GEOMETRY)

    @pytest.mark.parametrize(
        ("offset", "size"), [(0, 0), (2**64 - 8, DESCRIPTOR_SIZE), (0x401, DESCRIPTOR_SIZE), (0x400, 2**64 - 1)]
    )
    @pytest.mark.parametrize("slot", [Slot.INIT_CHANNEL, Slot.INIT_DATA_CHANNEL])
    def test_an_argument_that_is_not_there(
        self, host: FakeHost, attach: Callable[[], object], slot: Slot, offset: int, size: int
    ) -> None:
        host.fill(slot, offset, size)
        with pytest.raises(HostProtocolError):
            attach()
        assert host.slot(slot) == (SlotState.TAKEN, EntryResult.BAD_GEOMETRY)

    def test_two_channels_in_one_place(self, host: FakeHost, attach: Callable[[], object]) -> None:
        at = descriptor_offset(Slot.INIT_DATA_CHANNEL)
        encoded = encode_descriptor(host.layout.rpc)
        host.buffer[at : at + len(encoded)] = encoded
        with pytest.raises(PeerProtocolError):
            attach()
        assert host.slot(Slot.INIT_DATA_CHANNEL) == (SlotState.TAKEN, EntryResult.BAD_GEOMETRY)

    @pytest.mark.parametrize("ring", range(4))
    @pytest.mark.parametrize("offset", [0, 128])
    def test_rings_that_are_not_fresh(
        self, host: FakeHost, attach: Callable[[], object], ring: int, offset: int
    ) -> None:
        host.words[(host.rings[ring].header_offset + offset) // 8] = 8
        with pytest.raises(PeerProtocolError):
            attach()

    @pytest.mark.parametrize("slot", [Slot.INIT_CHANNEL, Slot.INIT_DATA_CHANNEL, Slot.RUN])
    def test_a_slot_taken_back_after_it_was_seen(self, host: FakeHost, slot: Slot) -> None:
        class Flipping(Region):
            def read_word(self, offset: int) -> int:
                value = super().read_word(offset)
                if offset == slot_offset(slot) + SLOT_STATE:
                    host.words[offset // 8] = SlotState.FREE
                return value

        entry = ControlBlock(Flipping(host.name, str(host.folder))).wait(slot, EventfdDoorbell(host.doorbell))
        assert entry.size > 0


class TestDocument:
    @pytest.mark.parametrize(
        ("offset", "size"),
        [(CONFIG_OFFSET, CONFIG_SIZE_MAX + 1), (CONFIG_OFFSET, 2**64 - 1), (2**64 - 8, 16), (2**63, 1)],
    )
    def test_one_that_leaves_the_region(
        self, host: FakeHost, attach: Callable[[], object], offset: int, size: int
    ) -> None:
        host.fill(Slot.RUN, offset, size)
        with pytest.raises(HostProtocolError):
            attach()
        assert host.slot(Slot.RUN) == (SlotState.TAKEN, EntryResult.BAD_CONFIGURATION)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"{}",
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b"9" * 100_000,
            b"1e400",
            b"NaN",
            b'{"format":1,"format":1}',
            b"\xef\xbb\xbf{}",
            b"\0" * 100,
            b"\xff\xfe{\0}\0",
            b'"' + b"\\ud800" * 1000 + b'"',
            document()[:-1],
            document() + b" ",
            document().replace(b'"format":1', b'"format":true'),
            document().replace(b'"format":1', b'"format":1.0'),
            document().replace(b'"index":0', b'"index":-1'),
            document().replace(b'"index":0', b'"index":1'),
        ],
        ids=lambda data: repr(data[:12]),
    )
    def test_one_that_cannot_be(self, host: FakeHost, attach: Callable[[], object], data: bytes) -> None:
        host.fill_run(data)
        with pytest.raises(ConfigError):
            attach()
        assert host.slot(Slot.RUN) == (SlotState.TAKEN, EntryResult.BAD_CONFIGURATION)

    def test_a_bit_flipped_anywhere_is_refused_or_read_as_what_it_says(
        self, host: FakeHost, attach: Callable[[], object]
    ) -> None:
        data = document()
        for at in range(0, len(data), 37):
            changed = bytearray(data)
            changed[at] ^= 1 << at % 8
            for slot in (Slot.INIT_CHANNEL, Slot.INIT_DATA_CHANNEL):
                host.fill(slot, descriptor_offset(slot), DESCRIPTOR_SIZE)
            host.fill_run(bytes(changed))
            try:
                attach()
            except (ConfigError, HostProtocolError):
                assert host.slot(Slot.RUN) == (SlotState.TAKEN, EntryResult.BAD_CONFIGURATION)


class Enclave:
    """A real enclave process, as the supervisor starts it."""

    def __init__(self, host: FakeHost, pass_fds: tuple[int, ...] = (), **changes: str | None) -> None:
        words = environment(host) | {"LANG": "C.UTF-8"} | changes
        self.host = host
        self.asked: list[Method] = []  # of its calls
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-m", "enclave_os"],
            env={name: value for name, value in words.items() if value is not None},
            pass_fds=pass_fds or (host.to_enclave_bell, host.data_bell, host.rpc_bell),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self) -> tuple[int, list[str]]:
        """Its exit code and what it said to stderr, after its lifeline was cut."""
        output, errors = self.process.communicate(timeout=SECONDS)
        assert output == b""
        return self.process.returncode, errors.decode().splitlines()

    def wait(self) -> tuple[int, list[str]]:
        """The same for one that ends by itself, its lifeline still whole."""
        self.process.wait(SECONDS)
        return self.end()

    def answered_to_the_end(self) -> tuple[int, list[str]]:
        """`wait`, playing an honest dispatcher meanwhile: the last calls are answered as well."""
        due = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < due
            self.answer_calls()
            self.host.rpc_to_host.arm()
            for bell in select.select([self.host.rpc_bell], [], [], 0.05)[0]:
                os.eventfd_read(bell)
        return self.end()

    def answer_calls(self) -> int:
        """Play an honest dispatcher that has nothing sealed, for what has been asked so far. Returns: calls
        answered."""
        host, answered = self.host, 0
        for record in host.rpc_to_host.consume_many(100, 1 << 20):
            req_id, method, _ = decode_rpc_request(record)
            self.asked.append(Method(method))
            reply = {
                Method.TIME: time.time_ns().to_bytes(8, "little"), Method.SEAL_LOAD: b"\0", Method.SEAL_STORE: b"",
                Method.KV_SCAN: encode_scan_reply([], more=False),
            }.get(Method(method))  # fmt: skip
            if reply is not None:
                host.rpc_to_enclave.produce(encode_rpc_reply(req_id, 0, reply))
                answered += 1
        host.rpc_to_host.release()
        if answered:
            host.rpc_to_enclave.publish()
            host.ring_enclave()
        return answered

    def answer_time(self) -> None:
        """Play the dispatcher until the first call came and was answered."""
        due = time.monotonic() + SECONDS
        while not self.answer_calls():
            self.host.rpc_to_host.arm()
            self._sleep(due)

    def ready(self) -> Enclave:
        """Wait for READY."""
        host, due = self.host, time.monotonic() + SECONDS
        while True:
            self.answer_calls()
            record = host.data_to_host.consume()
            if record is not None:
                host.data_to_host.release()
                assert decode_frame(record)[0] == FrameKind.READY
                return self
            host.data_to_host.arm()
            host.rpc_to_host.arm()
            self._sleep(due)

    def _sleep(self, due: float) -> None:
        # Armed just before: look at the rings again at once if the enclave was faster.
        assert self.process.poll() is None, self.end()
        assert time.monotonic() < due
        bells = [self.host.data_bell, self.host.rpc_bell]
        for bell in select.select(bells, [], [], 0.05)[0]:
            os.eventfd_read(bell)


@pytest.fixture
def shared_host() -> Iterator[FakeHost]:
    """A host whose region lies where a real enclave looks for it."""
    folder = Path(REGION_FOLDER)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    host = FakeHost(folder)
    host.fill_channels()
    host.fill_run(document())
    yield host
    host.close()


class TestEnvironment:
    @pytest.mark.parametrize(
        ("word", "value"),
        [
            ("ENCLAVE_OS_MODE", None),
            ("ENCLAVE_OS_MODE", "SGX"),
            ("ENCLAVE_OS_MODE", "sgx\n"),
            ("ENCLAVE_OS_DOORBELL", None),
            ("ENCLAVE_OS_DOORBELL", "eventfd:0,1,2"),
            ("ENCLAVE_OS_DOORBELL", "eventfd:900,901,902"),
            ("ENCLAVE_OS_DOORBELL", "eventfd:" + "9" * 5000),
            ("ENCLAVE_OS_REGION", None),
            ("ENCLAVE_OS_REGION", ""),
            ("ENCLAVE_OS_REGION", "../../etc/passwd"),
            ("ENCLAVE_OS_REGION", "absent-" + secrets.token_hex(8)),
        ],
    )
    def test_a_lie_is_one_line_and_the_code_of_the_host(
        self, shared_host: FakeHost, word: str, value: str | None
    ) -> None:
        code, lines = Enclave(shared_host, (), **{word: value}).wait()
        assert code == ExitCode.PROTOCOL
        assert len(lines) == 1
        assert lines[0].startswith("enclave[")
        assert "the host broke the contract" in lines[0]

    @pytest.mark.parametrize("value", [None, "", "platform", "/nonexistent", "/" + "x" * 5000, "/dev/null"])
    def test_without_a_platform_there_is_nothing_that_attests_us(
        self, shared_host: FakeHost, value: str | None
    ) -> None:
        """Missing evidence refuses: the enclave does not start without."""
        code, lines = Enclave(shared_host, ENCLAVE_OS_PLATFORM=value).wait()
        assert code == ExitCode.CONFIG
        assert len(lines) == 1
        assert "platform" in lines[0].lower()

    @pytest.mark.parametrize("kind", ["file", "folder"])
    @pytest.mark.parametrize("place", [0, 2])
    def test_a_doorbell_that_is_none(self, shared_host: FakeHost, tmp_path: Path, kind: str, place: int) -> None:
        (tmp_path / "file").touch()
        odd = os.open(tmp_path if kind == "folder" else tmp_path / "file", os.O_RDONLY)
        bells = [shared_host.to_enclave_bell, shared_host.data_bell, shared_host.rpc_bell]
        bells[place] = odd
        shared_host.rpc_to_host.arm()  # a dispatcher that sleeps, so that it must be rung
        spec = "eventfd:" + ",".join(str(bell) for bell in bells)
        code, lines = Enclave(shared_host, pass_fds=(*bells,), ENCLAVE_OS_DOORBELL=spec).wait()
        os.close(odd)
        assert code == ExitCode.PROTOCOL
        assert len(lines) == 1
        assert "the host broke the contract" in lines[0]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("PYTHONSTARTUP", "/nonexistent"),
            ("PYTHONPATH", "/nonexistent"),
            ("PYTHONINSPECT", "1"),
            ("PYTHONDEVMODE", "1"),
            ("PYTHONWARNINGS", "error"),
            ("PYTHONASYNCIODEBUG", "1"),
            ("PYTHONFAULTHANDLER", "1"),
            ("SSLKEYLOGFILE", "{}/keys"),
            ("OPENSSL_CONF", "{}/openssl.cnf"),
        ],
    )
    def test_words_that_would_steer_python_or_tls_do_nothing(
        self, shared_host: FakeHost, tmp_path: Path, name: str, value: str
    ) -> None:
        (tmp_path / "openssl.cnf").write_text("openssl_conf = init\n[init]\nengines = nowhere\n")
        enclave = Enclave(shared_host, (), **{name: value.format(tmp_path)}).ready()
        assert enclave.end() == (ExitCode.HOST_GONE, [])
        assert not (tmp_path / "keys").exists()


class TestWholeLife:
    def test_shutdown_ends_it_in_order(self, shared_host: FakeHost) -> None:
        enclave = Enclave(shared_host).ready()
        assert shared_host.slot(Slot.RUN) == (SlotState.TAKEN, EntryResult.OK)
        shared_host.fill(Slot.SHUTDOWN, 0, 0)
        shared_host.ring_enclave()
        assert enclave.answered_to_the_end() == (ExitCode.OK, [])
        assert shared_host.slot(Slot.SHUTDOWN) == (SlotState.TAKEN, EntryResult.OK)
        # A store of one range asks for what it asked for before there were ranges: its journal and its catalog.
        told = (Method.LOG, Method.COLLATERAL)
        assert [one.name for one in enclave.asked if one not in told] == [
            "TIME", "SEAL_LOAD", "SEAL_STORE", "KV_SCAN", "KV_SCAN", "SEAL_STORE",
        ]  # fmt: skip

    def test_it_ends_with_its_host(self, shared_host: FakeHost) -> None:
        assert Enclave(shared_host).ready().end() == (ExitCode.HOST_GONE, [])

    def test_it_ends_with_its_host_before_it_is_ready(self, shared_host: FakeHost) -> None:
        enclave = Enclave(shared_host)
        assert enclave.end()[0] == ExitCode.HOST_GONE

    @pytest.mark.parametrize("lie", ["frame", "cursor", "reply"])
    def test_a_lie_ends_it_with_one_line_that_holds_no_secret(self, shared_host: FakeHost, lie: str) -> None:
        enclave = Enclave(shared_host).ready()
        if lie == "frame":
            shared_host.data_to_enclave.produce(b"\x63" + bytes(7))
            shared_host.data_to_enclave.publish()
        elif lie == "cursor":
            shared_host.words[shared_host.layout.data.to_enclave.header_offset // 8] = 2**63
        else:
            shared_host.rpc_to_enclave.produce(encode_rpc_reply(2**40, 0, b""))
            shared_host.rpc_to_enclave.publish()
        shared_host.ring_enclave()
        code, lines = enclave.wait()
        assert code == ExitCode.PROTOCOL
        assert len(lines) == 1
        assert "the host broke the contract" in lines[0]
        key = development_authority().key_pem.decode().splitlines()[1]
        assert key not in lines[0]

    def test_a_configuration_it_cannot_serve_is_its_own_code(self, shared_host: FakeHost) -> None:
        shared_host.fill_run(b"{}")
        code, lines = Enclave(shared_host).wait()
        assert code == ExitCode.CONFIG
        assert lines
        assert all(line.startswith("enclave[") for line in lines)
