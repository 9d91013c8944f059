"""The doctor on machines made of files: each thing that can be missing is named, with what to do about it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from enclave_os.wire.setting_table import Settings
from enclave_os.wire.settings import check
from enclave_os_host import cli
from enclave_os_host.gramine.build import FileList
from enclave_os_host.gramine.doctor import Machine, as_json, as_table, examine, ways
from enclave_os_host.gramine.image import Image

SETTINGS = check({})


def connect(host: str, port: int) -> None:
    assert (host, port) == ("pccs.example", 8081)


def refuse(host: str, port: int) -> None:
    raise ConnectionRefusedError(111, "Connection refused")


class Fake:
    """A machine that has everything; tests take things away."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "machine"
        self.write("proc/cpuinfo", "processor : 0\nflags\t\t: fpu avx avx2 fsgsbase sgx sgx_lc aes\n")
        self.write("proc/sys/kernel/osrelease", "6.8.0-45-generic\n")
        self.write("dev/sgx_enclave", "")
        self.write("dev/sgx_provision", "")
        self.write("sys/devices/system/node/node0/x86/sgx_total_bytes", f"{4 << 30}\n")
        self.write("usr/lib/x86_64-linux-gnu/libdcap_quoteprov.so.1", "")
        self.write("etc/sgx_default_qcnl.conf", '{\n  // ours\n  "pccs_url": "https://pccs.example:8081/v4/",\n}\n')
        (self.root / "dev" / "shm").mkdir()
        aesm = self.root / "var/run/aesmd"
        aesm.mkdir(parents=True)
        # A path of at most 108 bytes binds: so it is made where we stand.
        here = os.getcwd()
        os.chdir(aesm)
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("aesm.socket")
        finally:
            os.chdir(here)
        self.reached: list[Path] = []
        for name in ("gramine-direct", "gramine-sgx"):
            self.write(f"usr/bin/{name}", "#!/bin/sh\n").chmod(0o755)
        self.write("usr/lib/x86_64-linux-gnu/gramine/libsysdb.so", "")
        (self.root / "usr/lib/x86_64-linux-gnu/gramine/runtime/glibc").mkdir(parents=True)
        self.image = Image(folder / "image")
        (self.image.root / "enclave-os").mkdir(parents=True)
        self.image.files.write_text(json.dumps({"files": [], "c_library": []}))
        self.image.manifest.write_text("")
        self.image.signed_manifest.write_text("")
        signature = bytearray(1808)
        signature[:16] = bytes.fromhex("06000000E10000000000010000000000")
        self.image.signature.write_bytes(signature)
        self.machine = Machine(
            self.root,
            str(self.root / "usr/bin"),
            connect,
            self.reached.append,
            lambda loader: "Gramine 1.9 (abc)\n",
            65536,
        )

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def found(self, settings: Settings = SETTINGS, **changes: object) -> dict[str, tuple[str, str]]:
        """Status and remedy by check."""
        machine = dataclasses.replace(self.machine, **changes)  # type: ignore[arg-type]
        return {check.name: (check.status, check.remedy) for check in examine(machine, settings, self.image)}

    def ways(self, settings: Settings = SETTINGS, **changes: object) -> list[str]:
        machine = dataclasses.replace(self.machine, **changes)  # type: ignore[arg-type]
        return list(ways(examine(machine, settings, self.image)))


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_a_machine_that_has_everything(fake: Fake) -> None:
    assert {status for status, _ in fake.found().values()} == {"ok"}
    assert fake.ways() == ["simulated", "direct", "sgx"]


@pytest.mark.parametrize(
    ("taken", "name", "remedy"),
    [
        ("dev/sgx_enclave", "SGX device", "CONFIG_X86_SGX"),
        ("dev/sgx_provision", "provisioning device", "aesmd"),
        ("var/run/aesmd/aesm.socket", "AESM", "systemctl enable --now aesmd"),
        ("usr/lib/x86_64-linux-gnu/libdcap_quoteprov.so.1", "quote provider", "libsgx-dcap-default-qpl"),
        ("etc/sgx_default_qcnl.conf", "PCCS", "name your PCCS"),
        ("proc/cpuinfo", "processor", "firmware"),
        ("proc/sys/kernel/osrelease", "kernel", "5.11"),
        ("usr/bin/gramine-sgx", "gramine-sgx", "install Gramine"),
    ],
)
def test_what_sgx_lacks_is_named_with_what_to_do(fake: Fake, taken: str, name: str, remedy: str) -> None:
    (fake.root / taken).unlink()
    status, told = fake.found()[name]
    assert status == "fail"
    assert remedy in told
    assert fake.ways() == ["simulated", "direct"]


@pytest.mark.parametrize(
    ("name", "text", "check_name"),
    [
        ("proc/cpuinfo", "flags : fpu sgxx notsgx\n", "processor"),
        ("proc/cpuinfo", "flags : fpu sgx\n", "launch control"),
        ("proc/cpuinfo", "flags : fpu avx sgx sgx_lc\n", "processor features"),
        ("proc/cpuinfo", "flags : fpu avx2 fsgsbase sgx sgx_lc\n", "processor features"),
        ("proc/sys/kernel/osrelease", "5.10.0\n", "kernel"),
        ("etc/sgx_default_qcnl.conf", '{"other": 1}', "PCCS"),
    ],
)
def test_what_is_there_and_is_not_enough(fake: Fake, name: str, text: str, check_name: str) -> None:
    fake.write(name, text)
    assert fake.found()[check_name][0] == "fail"
    assert "sgx" not in fake.ways()


@pytest.mark.parametrize("device", ["dev/isgx", "dev/sgx/enclave"])
def test_a_driver_from_before_the_kernel_had_one(fake: Fake, device: str) -> None:
    fake.write(device, "")
    assert fake.found()["SGX device"][0] == "ok"
    (fake.root / "dev/sgx_enclave").unlink()
    status, remedy = fake.found()["SGX device"]
    assert status == "fail"
    assert "kernel's own driver" in remedy


def test_edmm_wants_a_newer_kernel(fake: Fake) -> None:
    fake.write("proc/sys/kernel/osrelease", "5.15.0\n")
    assert fake.found()["kernel"][0] == "ok"
    status, remedy = fake.found(check({"gramine": {"edmm": True}}))["kernel"]
    assert (status, remedy) == ("fail", "Linux 6.0 or newer is needed (gramine.edmm)")


def test_too_little_enclave_memory_is_slow_and_no_more(fake: Fake) -> None:
    fake.write("sys/devices/system/node/node0/x86/sgx_total_bytes", f"{128 << 20}\n")
    status, remedy = fake.found()["enclave memory"]
    assert status == "warn"
    assert "gramine.enclave_size" in remedy
    assert "sgx" in fake.ways()


def test_a_pccs_that_does_not_answer(fake: Fake) -> None:
    status, remedy = fake.found(connect=refuse)["PCCS"]
    assert status == "fail"
    assert "systemctl start pccs" in remedy


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "systemctl restart aesmd"),
        (TimeoutError("timed out"), "journalctl -u aesmd"),
        (PermissionError(13, "Permission denied"), "let the user that serves reach it"),
    ],
)
def test_an_aesm_that_does_not_answer(fake: Fake, error: OSError, remedy: str) -> None:
    """Its socket stays behind when it ends."""

    def refuse(path: Path) -> None:
        raise error

    assert fake.found()["AESM"] == ("ok", "")
    assert fake.reached == [fake.root / "var/run/aesmd/aesm.socket"]
    status, told = fake.found(reach=refuse)["AESM"]
    assert status == "fail"
    assert remedy in told
    assert fake.ways(reach=refuse) == ["simulated", "direct"]


def test_a_real_socket_that_nobody_listens_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("aesm.socket")
        with pytest.raises(ConnectionRefusedError):
            Machine().reach(Path("aesm.socket"))
        made.listen()
        Machine().reach(Path("aesm.socket"))


@pytest.mark.parametrize("said", ["Gramine 1.7\n", "", "what?"])
def test_a_gramine_that_is_too_old(fake: Fake, said: str) -> None:
    assert fake.ways(version=lambda loader: said) == ["simulated"]


def test_a_loader_that_does_not_run(fake: Fake) -> None:
    def broken(loader: str) -> str:
        raise PermissionError(13, "Permission denied")

    assert fake.ways(version=broken) == ["simulated"]


def test_no_gramine_at_all(fake: Fake) -> None:
    assert fake.ways(search="/nonexistent") == ["simulated"]


def test_an_image_that_is_missing_unsigned_or_for_debugging(fake: Fake) -> None:
    fake.image.signature.write_bytes(bytes(5))
    assert fake.found()["signature"][0] == "fail"
    data = bytearray(1808)
    data[:16] = bytes.fromhex("06000000E10000000000010000000000")
    data[928] = 2
    fake.image.signature.write_bytes(data)
    assert fake.found()["signature"] == (
        "warn", "no client accepts it: set gramine.debug = false, make and sign anew",
    )  # fmt: skip
    fake.image.signature.unlink()
    assert "enclave-os gramine sign" in fake.found()["signature"][1]
    assert fake.ways() == ["simulated", "direct"]
    fake.image.files.unlink()
    assert "enclave-os gramine manifest" in fake.found()["enclave image"][1]
    assert fake.ways() == ["simulated"]


def test_nobody_can_serve_without_shared_memory(fake: Fake) -> None:
    (fake.root / "dev" / "shm").rmdir()
    assert fake.found()["shared memory"][0] == "fail"
    assert fake.ways() == []


def test_shared_memory_that_is_too_small_says_what_to_lower(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=100, f_frsize=4096))
    status, remedy = fake.found()["shared memory"]
    assert status == "fail"
    assert "mount -o remount" in remedy
    assert "server.workers" in remedy


def test_every_finding_that_is_not_fine_says_what_to_do(fake: Fake) -> None:
    """A machine that has nothing at all."""
    for name in ("usr", "proc", "etc", "var", "sys", "dev"):
        shutil.rmtree(fake.root / name, ignore_errors=True)
    shutil.rmtree(fake.image.folder)
    found = fake.found(search="/nonexistent", descriptors=256)
    fine = {name for name, (status, _) in found.items() if status == "ok"}
    assert fine == set()
    assert all(remedy for _, remedy in found.values())
    assert set(found) == {
        "processor", "kernel", "SGX device", "provisioning device", "enclave memory", "AESM", "quote provider", "PCCS",
        "gramine-direct", "gramine-sgx", "enclave image", "shared memory", "open files",
    }  # fmt: skip


def test_few_descriptors_are_worth_a_look(fake: Fake) -> None:
    status, remedy = fake.found(descriptors=1024)["open files"]
    assert status == "warn"
    assert "LimitNOFILE" in remedy


def test_people_and_machines_are_told_the_same(fake: Fake) -> None:
    (fake.root / "dev/sgx_enclave").unlink()
    checks = examine(fake.machine, SETTINGS, fake.image)
    document = json.loads(as_json(checks, "sgx"))
    table = as_table(checks, "sgx")
    assert document["target"] == "sgx"
    assert document["possible"] == ["simulated", "direct"]
    assert [entry["name"] for entry in document["checks"]] == [check.name for check in checks]
    for entry in document["checks"]:
        assert entry["name"] in table
        assert entry["remedy"] in table
        assert bool(entry["remedy"]) == (entry["status"] != "ok")
    assert table.endswith("--enclave sgx lacks: SGX device\n")


def test_the_commands_exit_code_is_for_the_way_that_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    state = ["--state-dir", str(tmp_path / "state")]
    assert cli.main(["doctor", *state]) == os.EX_OK
    assert cli.main(["doctor", "--enclave", "direct", *state]) == os.EX_UNAVAILABLE
    capsys.readouterr()
    assert cli.main(["doctor", "--enclave", "sgx", "--json", *state]) == os.EX_UNAVAILABLE
    assert json.loads(capsys.readouterr().out)["target"] == "sgx"


def test_the_fake_is_what_it_says(fake: Fake) -> None:
    assert stat.S_ISSOCK((fake.root / "var/run/aesmd/aesm.socket").stat().st_mode)
    assert FileList((), ()).count == 0
