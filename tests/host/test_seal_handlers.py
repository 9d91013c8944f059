"""What the host keeps for the enclave: sealed configurations, certificate requests, and letters between workers."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os.wire.rpc import SEALED_SIZE_MAX, SealLoadFlag, Status
from enclave_os_host.ca import open_development_ca
from enclave_os_host.certificates import write_whole
from enclave_os_host.handlers import Later, Refused, seal
from enclave_os_host.handlers.ca import CertificateDesk
from enclave_os_host.handlers.peers import LETTERS_MAX, Mailboxes
from enclave_os_host.handlers.seal import SealStore

MINE, OTHER = bytes(range(32)), bytes(32)


def outcome(reply: bytes | Later) -> tuple[Status, bytes]:
    if isinstance(reply, bytes):
        return Status.OK, reply
    done = threading.Event()
    found: list[tuple[Status, bytes]] = []

    def tell(status: Status, data: bytes) -> None:
        found.append((status, data))
        done.set()

    reply.when_done(tell)
    assert done.wait(30)
    return found[0]


class TestSealStore:
    def test_what_was_stored_is_loaded(self, tmp_path: Path) -> None:
        said: list[str] = []
        store = SealStore(tmp_path, said.append)
        (store.folder_of(OTHER) / "store").mkdir()
        assert store.load(OTHER) == bytes([0])
        (store.folder_of(OTHER) / "store" / "CURRENT").touch()
        assert store.load(MINE) == bytes([0])
        assert store.load(OTHER) == bytes([SealLoadFlag.STORE])
        assert outcome(store.store(MINE + b"sealed")) == (Status.OK, b"")
        assert store.load(MINE) == bytes([SealLoadFlag.BLOB]) + b"sealed"
        assert outcome(store.store(MINE + b"again")) == (Status.OK, b"")
        assert store.load(MINE)[1:] == b"again"
        file = store.folder_of(MINE) / "config.sealed"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [path.name for path in file.parent.iterdir()] == ["config.sealed"]

    def test_changed_code_is_told_where_the_former_state_lies(self, tmp_path: Path) -> None:
        said: list[str] = []
        store = SealStore(tmp_path, said.append)
        outcome(store.store(OTHER + b"former"))
        store.load(MINE)
        assert len(said) == 1
        assert OTHER.hex()[:16] in said[0]
        assert store.load(OTHER)[1:] == b"former"

    def test_a_disk_that_fails_is_a_failure_and_keeps_the_former(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = SealStore(tmp_path, print)
        outcome(store.store(MINE + b"former"))

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("enclave_os_host.handlers.seal.write_whole", fail)
        assert outcome(store.store(MINE + b"new"))[0] is Status.FAILED
        assert store.load(MINE)[1:] == b"former"

    def test_writes_land_in_the_order_of_their_calls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The enclave gave up on the first, and the disk was slow: it must not replace what came after it."""
        store = SealStore(tmp_path, print)
        go, order = threading.Event(), list[bytes]()

        def write_slowly(path: Path, data: bytes, mode: int) -> None:
            assert go.wait(30)
            order.append(data)
            write_whole(path, data, mode)

        monkeypatch.setattr(seal, "write_whole", write_slowly)
        before = threading.active_count()
        waiting = [store.store(MINE + bytes([number])) for number in range(50)]
        assert threading.active_count() <= before + 1
        go.set()
        assert [outcome(later)[0] for later in waiting] == [Status.OK] * 50
        assert order == [bytes([number]) for number in range(50)]
        assert store.load(MINE)[1:] == bytes([49])

    def test_a_folder_that_is_none_is_a_failure_and_said(self, tmp_path: Path) -> None:
        said: list[str] = []
        store = SealStore(tmp_path, said.append)
        (tmp_path / "sealed").symlink_to("elsewhere")
        with pytest.raises(Refused):
            store.load(MINE)
        assert outcome(store.store(MINE + b"sealed"))[0] is Status.FAILED
        assert said == [f"{tmp_path / 'sealed'} is not a folder"] * 2

    def test_a_file_that_grew_is_refused(self, tmp_path: Path) -> None:
        store = SealStore(tmp_path, print)
        (store.folder_of(MINE) / "config.sealed").write_bytes(bytes(SEALED_SIZE_MAX + 1))
        with pytest.raises(Refused):
            store.load(MINE)


class TestCertificateDesk:
    @staticmethod
    def request() -> bytes:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
        made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        return made.public_bytes(Encoding.DER)

    def test_the_request_is_kept_and_what_is_installed_is_the_answer(self, tmp_path: Path) -> None:
        desk = CertificateDesk(lambda _: tmp_path, None)
        asked = self.request()
        assert desk.answer(MINE + asked) == b""
        kept = x509.load_pem_x509_csr((tmp_path / "ca.csr").read_bytes())
        assert kept.public_bytes(Encoding.DER) == asked
        (tmp_path / "ca.pem").write_bytes(b"installed")
        assert desk.answer(MINE + asked) == b"installed"

    def test_the_development_root_signs_once(self, tmp_path: Path) -> None:
        signed: list[x509.CertificateSigningRequest] = []

        root = open_development_ca(tmp_path / "one")

        def sign(request: x509.CertificateSigningRequest) -> bytes:
            signed.append(request)
            return root.sign(request)

        (tmp_path / "desk").mkdir()
        desk = CertificateDesk(lambda _: tmp_path / "desk", sign, root.root)
        asked = self.request()
        assert len({desk.answer(MINE + asked) for _ in range(3)}) == 1
        assert len(signed) == 1
        desk.answer(MINE + self.request())  # the enclave lost its key: what was signed for it is of no use
        assert len(signed) == 2
        other = open_development_ca(tmp_path / "two")  # the root was made anew
        CertificateDesk(lambda _: tmp_path / "desk", sign, other.root).answer(MINE + asked)
        assert len(signed) == 3

    @pytest.mark.parametrize("request_der", [b"x", b"0" * 100])
    def test_what_is_no_request_is_refused(self, tmp_path: Path, request_der: bytes) -> None:
        with pytest.raises(Refused):
            CertificateDesk(lambda _: tmp_path, None).answer(MINE + request_der)
        assert list(tmp_path.iterdir()) == []


class TestMailboxes:
    def test_a_letter_waits_or_is_waited_for(self) -> None:
        mail = Mailboxes(3)
        assert mail.sender(1)(b"\0\0hello") == b""
        assert outcome(mail.taker(0)(b"")) == (Status.OK, b"\1\0hello")
        waiting = mail.taker(0)(b"")
        mail.sender(2)(b"\0\0later")
        assert outcome(waiting) == (Status.OK, b"\2\0later")

    def test_nobody_writes_to_himself_or_to_nobody(self) -> None:
        mail = Mailboxes(2)
        for to in (b"\1\0", b"\2\0", b"\xff\xff"):
            with pytest.raises(Refused):
                mail.sender(1)(to + b"x")

    def test_the_oldest_of_too_many_goes_and_a_new_life_begins_empty(self) -> None:
        mail = Mailboxes(2)
        for number in range(LETTERS_MAX + 1):
            mail.sender(1)(b"\0\0" + bytes([number % 256]))
        assert outcome(mail.taker(0)(b""))[1][2:] == b"\1"
        mail.reset(0)
        waiting = mail.taker(0)(b"")
        assert isinstance(waiting, Later)
        mail.reset(0)
        assert outcome(waiting)[0] is Status.FAILED

    def test_one_taker_at_a_time(self) -> None:
        mail = Mailboxes(2)
        first, second = mail.taker(0)(b""), mail.taker(0)(b"")
        assert outcome(first)[0] is Status.BUSY
        mail.sender(1)(b"\0\0x")
        assert outcome(second) == (Status.OK, b"\1\0x")
