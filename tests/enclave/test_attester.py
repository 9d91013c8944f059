"""Attesters: Gramine's device files, played by a folder, and the simulated platform."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from enclave_os.errors import AttestationError, UsageError
from enclave_os.evidence.quote import encode_body, parse_quote
from enclave_os.ratls import attester as attesters
from enclave_os.ratls.attester import DeviceAttester, SimulatedAttester
from enclave_os_host.simulated_platform import read_platform
from tests.evidence.forge import IDENTITY, MEASUREMENT, Forge

REAL = (Path(__file__).parents[1] / "vectors" / "dcap" / "sgx_quote").read_bytes()


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    return Forge(tmp_path_factory.mktemp("attester") / "platform")


class Device:
    """A folder that answers as Gramine's /dev/attestation does: the quote is over what was written last."""

    def __init__(self, folder: Path, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.forge = forge
        self.spoil: Any = lambda quote: quote
        (folder / "keys").mkdir()
        (folder / "attestation_type").write_bytes(b"dcap")
        (folder / "user_report_data").write_bytes(bytes(64))
        (folder / "quote").write_bytes(b"")
        (folder / "report").write_bytes(encode_body(forge.attester.body) + bytes(48))
        (folder / "keys" / "_sgx_mrenclave").write_bytes(bytes(range(16)))
        whole: Callable[..., IO[Any]] = Path.open

        def open_file(path: Path, *arguments: Any, **options: Any) -> IO[Any]:
            if path == folder / "quote":
                made = forge.quote((folder / "user_report_data").read_bytes())
                with whole(path, "wb") as file:
                    file.write(self.spoil(made))
            return whole(path, *arguments, **options)

        monkeypatch.setattr(Path, "open", open_file)


@pytest.fixture
def device(tmp_path: Path, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(tmp_path, forge, monkeypatch)


class TestDevice:
    def test_a_quote_is_over_what_was_asked(self, device: Device) -> None:
        attester = DeviceAttester(device.folder)
        assert attester.body.mr_enclave == MEASUREMENT
        assert (attester.simulated, attester.mode, attester.collateral()) == (False, "sgx", None)
        assert parse_quote(attester.quote(b"r" * 64)).body.report_data == b"r" * 64

    def test_many_threads_get_each_its_own(self, device: Device) -> None:
        attester = DeviceAttester(device.folder)
        wrong: list[int] = []

        def ask(number: int) -> None:
            for turn in range(20):
                data = hashlib.sha512(f"{number} {turn}".encode()).digest()
                if parse_quote(attester.quote(data)).body.report_data != data:
                    wrong.append(number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    @pytest.mark.parametrize(
        "spoil", [lambda quote: b"", lambda quote: quote[:-1], lambda quote: REAL, lambda quote: bytes(20_000)]
    )
    def test_what_the_host_gives_instead_is_refused(self, device: Device, spoil: Any) -> None:
        """The quote comes from AESM through the host: garbage, a cut, somebody else's."""
        attester = DeviceAttester(device.folder)
        device.spoil = spoil
        with pytest.raises(AttestationError):
            attester.quote(b"r" * 64)

    @pytest.mark.parametrize(
        "changes", [{"mr_enclave": bytes(32)}, {"mr_signer": bytes(32)}, {"isv_svn": 99}, {"attributes": bytes(16)}]
    )
    def test_a_quote_of_another_enclave_is_never_taken_for_ours(self, device: Device, changes: dict[str, Any]) -> None:
        """A lying host answers the first quote: it cannot choose what we take ourselves for, and seal under."""
        device.spoil = lambda quote: device.forge.quote(parse_quote(quote).body.report_data, **changes)
        with pytest.raises(AttestationError, match="another report"):
            DeviceAttester(device.folder)

    @pytest.mark.parametrize("size", [0, 383, 384, 431, 433])
    def test_a_report_of_another_size_is_none(self, device: Device, size: int) -> None:
        (device.folder / "report").write_bytes(bytes(size))
        with pytest.raises(AttestationError):
            DeviceAttester(device.folder)

    @pytest.mark.parametrize("size", [0, 1, 63, 65, 128])
    def test_report_data_is_64_bytes(self, device: Device, size: int) -> None:
        attester = DeviceAttester(device.folder)
        with pytest.raises(UsageError):
            attester.quote(bytes(size))

    def test_without_dcap_there_is_no_start(self, device: Device, tmp_path: Path) -> None:
        (device.folder / "attestation_type").write_bytes(b"none")
        with pytest.raises(AttestationError, match=r"sgx\.remote_attestation"):
            DeviceAttester(device.folder)
        with pytest.raises(AttestationError, match="attestation_type"):
            DeviceAttester(tmp_path / "nowhere")

    def test_the_sealing_key_is_derived_and_must_be_there(self, device: Device) -> None:
        attester = DeviceAttester(device.folder)
        key = attester.sealing_key()
        assert len(key) == 32
        assert bytes(range(16)) not in key
        assert key == DeviceAttester(device.folder).sealing_key()
        for bad in (b"", bytes(16), bytes(range(15)), bytes(range(17))):
            (device.folder / "keys" / "_sgx_mrenclave").write_bytes(bad)
            with pytest.raises(AttestationError):
                attester.sealing_key()


class TestSimulated:
    def test_a_quote_is_over_what_was_asked(self, forge: Forge) -> None:
        quote = parse_quote(forge.attester.quote(b"r" * 64))
        assert quote.body.report_data == b"r" * 64
        assert (quote.body.mr_enclave, quote.body.mr_signer) == (MEASUREMENT, IDENTITY.mr_signer)
        assert (quote.body.isv_prod_id, quote.body.isv_svn, quote.body.debug) == (3, 7, False)
        assert forge.attester.simulated
        with pytest.raises(UsageError):
            forge.attester.quote(b"r" * 63)

    def test_the_sealing_key_names_the_measurement(self, forge: Forge) -> None:
        other = SimulatedAttester("simulated", forge.folder, IDENTITY, bytes(32))
        assert len({forge.attester.sealing_key(), other.sealing_key()}) == 2
        assert other.sealing_key() == SimulatedAttester("direct", forge.folder, IDENTITY, bytes(32)).sealing_key()

    def test_the_sealing_key_changes_with_the_microcode(self, forge: Forge, tmp_path: Path) -> None:
        for file in ("collateral.json", "seal.key"):
            (tmp_path / file).write_bytes((forge.folder / file).read_bytes())
        (tmp_path / "platform.json").write_text(json.dumps(forge.platform | {"cpu_svn": "06" * 16}))
        updated = SimulatedAttester("simulated", tmp_path, IDENTITY, MEASUREMENT)
        assert updated.body.cpu_svn == b"\x06" * 16
        assert updated.sealing_key() != forge.attester.sealing_key()

    @pytest.mark.parametrize("name", ["platform.json", "collateral.json", "seal.key"])
    @pytest.mark.parametrize("content", [None, b"", b"{}", b"null", b"x" * 1_000_000, b"[" * 60_000])
    def test_a_broken_platform_stops_the_start(
        self, forge: Forge, tmp_path: Path, name: str, content: bytes | None
    ) -> None:
        for file in ("platform.json", "collateral.json", "seal.key"):
            (tmp_path / file).write_bytes((forge.folder / file).read_bytes())
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(AttestationError) as caught:
            SimulatedAttester("simulated", tmp_path, IDENTITY, MEASUREMENT)
        assert caught.value.code in ("no_platform", "bad_collateral")

    def test_another_format_is_refused(self, forge: Forge, tmp_path: Path) -> None:
        for file in ("collateral.json", "seal.key"):
            (tmp_path / file).write_bytes((forge.folder / file).read_bytes())
        (tmp_path / "platform.json").write_text(json.dumps(forge.platform | {"format": 2}))
        with pytest.raises(AttestationError):
            SimulatedAttester("simulated", tmp_path, IDENTITY, MEASUREMENT)

    @pytest.mark.parametrize(
        "changes",
        [
            {"qe_svn": "8"}, {"qe_svn": 0x10000}, {"pce_svn": None}, {"cpu_svn": "00"}, {"cpu_svn": 5},
            {"attestation_key_pem": 5}, {"attestation_key_pem": "a key"}, {"qe_report": "00"}, {"qe_report": ["00"]},
            {"qe_auth_data": "00" * 70_000}, {"qe_report_signature": "zz"}, {"pck_chain_pem": "é"},
            {"pck_chain_pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        ],
        ids=lambda changes: str(changes)[:40],
    )  # fmt: skip
    def test_a_member_of_another_kind_is_a_broken_platform(
        self, forge: Forge, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        """The file is the host's: whatever it holds, one typed error says that it is no platform."""
        for file in ("collateral.json", "seal.key"):
            (tmp_path / file).write_bytes((forge.folder / file).read_bytes())
        (tmp_path / "platform.json").write_text(json.dumps(forge.platform | changes))
        with pytest.raises(AttestationError, match="no simulated platform") as caught:
            SimulatedAttester("simulated", tmp_path, IDENTITY, MEASUREMENT)
        assert caught.value.code == "no_platform"


class TestFiles:
    def test_a_platform_that_came_as_text_is_the_same(self, forge: Forge) -> None:
        files = read_platform(forge.folder)
        made = SimulatedAttester("direct", files, IDENTITY, MEASUREMENT)
        assert made.mode == "direct"
        assert made.simulated
        assert made.sealing_key() == SimulatedAttester("direct", forge.folder, IDENTITY, MEASUREMENT).sealing_key()
        assert "key" not in repr(files)

    @pytest.mark.parametrize("name", ["platform", "collateral", "seal_key"])
    @pytest.mark.parametrize("text", ["", "[]", "ff", "zz", "[" * 100_000, "\ud800"])
    def test_text_that_is_none(self, forge: Forge, name: str, text: str) -> None:
        files = dataclasses.replace(read_platform(forge.folder), **{name: text})
        with pytest.raises(AttestationError):
            SimulatedAttester("direct", files, IDENTITY, MEASUREMENT)

    @pytest.mark.parametrize("folder", [None, "", "platform", "../platform"])
    def test_a_plain_process_is_told_a_folder(self, folder: str | None) -> None:
        environment = {} if folder is None else {attesters.PLATFORM_VARIABLE: folder}
        with pytest.raises(AttestationError, match="names no folder"):
            attesters.platform_folder(environment)
