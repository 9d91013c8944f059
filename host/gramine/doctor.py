"""What this machine has for each way to run the enclave, what it lacks, and what to do about it.

Every check reads below one folder, which tests replace by one of their own, and does nothing but look.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from enclave_os.wire.layout import REGION_FOLDER
from enclave_os.wire.setting_table import Settings

from ..launch import How
from ..shared_memory import region_layout
from .build import ImageError, read_image
from .image import Image
from .installed import INSTALL, LOADERS, find_gramine
from .signature import SignatureError, read_signature

Status = Literal["ok", "warn", "fail"]
EVERY: Final[tuple[How, ...]] = ("simulated", "direct", "sgx")
GRAMINE: Final[tuple[How, ...]] = ("direct", "sgx")
SGX: Final[tuple[How, ...]] = ("sgx",)

KERNEL_SGX: Final = (5, 11)
KERNEL_EDMM: Final = (6, 0)
GRAMINE_VERSION: Final = (1, 8)
"""The first that enforces the list of trusted files also without SGX, and takes our form of `loader.entrypoint`."""
DESCRIPTORS: Final = 4096
CONNECT_SECONDS: Final = 2.0
COMMAND_SECONDS: Final = 10.0
MIB: Final = 1 << 20
AESM_SOCKET: Final = "var/run/aesmd/aesm.socket"
FEATURES: Final = ("avx", "fsgsbase")
OTHER_DRIVERS: Final = ("dev/isgx", "dev/sgx/enclave")
"""Devices of Intel's drivers from before the kernel had one; distributions' Gramine does not use them."""
QUOTE_PROVIDERS: Final = (
    "usr/lib/x86_64-linux-gnu/libdcap_quoteprov.so.1",
    "usr/lib64/libdcap_quoteprov.so.1",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. Attributes: needed_for: the ways to run that a failure rules out; remedy: empty when it is fine."""

    name: str
    status: Status
    found: str
    needed_for: tuple[How, ...]
    remedy: str = ""


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), CONNECT_SECONDS).close()


def _reach(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(CONNECT_SECONDS)
        asking.connect(str(path))


def _version(loader: str) -> str:
    return subprocess.run(
        [loader, "--version"], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    ).stdout


@dataclass(frozen=True, slots=True)
class Machine:
    """What is looked at.

    Attributes:
        root: in place of /; search: in place of $PATH.
        connect, reach, version: ask a server by TCP, one by its socket, and a loader.
        descriptors: the hard limit.
    """

    root: Path = Path("/")
    search: str | None = None
    connect: Callable[[str, int], None] = _connect
    reach: Callable[[Path], None] = _reach
    version: Callable[[str], str] = _version
    descriptors: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[1])

    def path(self, name: str) -> Path:
        """A path of the machine, below `root`."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """What a small file holds; empty when it is not there or not ours to read."""
        try:
            return self.path(name).read_text("utf-8", "replace")
        except OSError:
            return ""


def examine(machine: Machine, settings: Settings, image: Image) -> list[Check]:
    """Every check, in the order in which one would set a machine up."""
    return [
        *_processor(machine), _kernel(machine, settings), *_devices(machine), _epc(machine, settings),
        *_quoting(machine), _gramine(machine, "direct"), _gramine(machine, "sgx"), *_image(image),
        _shared_memory(machine, settings), _descriptors(machine),
    ]  # fmt: skip


def ways(checks: list[Check]) -> list[How]:
    """The ways to run that nothing rules out."""
    return [how for how in EVERY if not any(c.status == "fail" and how in c.needed_for for c in checks)]


def _processor(machine: Machine) -> Iterator[Check]:
    flags = re.search(r"^flags\s*:(.*)$", machine.text("proc/cpuinfo"), re.MULTILINE)
    words = flags[1].split() if flags else []
    if "sgx" not in words:
        yield Check(
            "processor", "fail", "no SGX", SGX,
            "Xeon Scalable of the third generation or newer (or E-2300) has it: set SGX to Enabled in the firmware, "
            "with memory reserved for it; in a virtual machine the hypervisor must pass it through",
        )  # fmt: skip
        return
    yield Check("processor", "ok", "SGX", SGX)
    if "sgx_lc" not in words:
        yield Check(
            "launch control", "fail", "no flexible launch control", SGX,
            "DCAP needs it: set SGX Launch Control to Unlocked in the firmware",
        )  # fmt: skip
    if lacking := [name for name in FEATURES if name not in words]:
        yield Check(
            "processor features", "fail", f"no {', '.join(lacking)}", SGX,
            "Gramine needs fsgsbase, and the manifest asks for avx: take nofsgsbase and clearcpuid= off the kernel's "
            "command line; in a virtual machine the hypervisor must pass both through",
        )  # fmt: skip


def _kernel(machine: Machine, settings: Settings) -> Check:
    release = machine.text("proc/sys/kernel/osrelease").strip()
    found = re.match(r"(\d+)\.(\d+)", release)
    have = (int(found[1]), int(found[2])) if found else (0, 0)
    need = KERNEL_EDMM if settings.gramine.edmm else KERNEL_SGX
    if have >= need:
        return Check("kernel", "ok", f"Linux {release}", SGX)
    why = " (gramine.edmm)" if settings.gramine.edmm else ""
    return Check(
        "kernel", "fail", f"Linux {release or 'unknown'}", SGX, f"Linux {need[0]}.{need[1]} or newer is needed{why}"
    )


def _devices(machine: Machine) -> Iterator[Check]:
    enclave = machine.path("dev/sgx_enclave")
    others = [f"/{name}" for name in OTHER_DRIVERS if machine.path(name).exists()]
    if not enclave.exists() and others:
        yield Check(
            "SGX device", "fail", f"{others[0]}, which is not the kernel's", SGX,
            "Gramine's packages use the kernel's own driver: remove Intel's (dkms remove), and restart",
        )  # fmt: skip
    elif not enclave.exists():
        yield Check(
            "SGX device", "fail", "no /dev/sgx_enclave", SGX,
            "the kernel's driver (CONFIG_X86_SGX) makes it when processor and firmware have SGX",
        )  # fmt: skip
    elif not os.access(enclave, os.R_OK | os.W_OK):
        yield Check(
            "SGX device", "fail", "/dev/sgx_enclave may not be opened", SGX,
            "add the user that serves to the device's group: usermod -aG sgx USER",
        )  # fmt: skip
    else:
        yield Check("SGX device", "ok", "/dev/sgx_enclave", SGX)
    if not machine.path("dev/sgx_provision").exists():
        yield Check(
            "provisioning device", "fail", "no /dev/sgx_provision", SGX,
            "the kernel's driver makes it beside /dev/sgx_enclave; aesmd opens it to make quotes",
        )  # fmt: skip


def _epc(machine: Machine, settings: Settings) -> Check:
    nodes = sorted(machine.path("sys/devices/system/node").glob("node*/x86/sgx_total_bytes"))
    total = sum(int(text) for node in nodes if (text := node.read_text().strip()).isdigit())
    wanted = settings.gramine.enclave_size * settings.server.workers
    if not total:
        remedy = "Linux 5.17 or newer says how much there is"
        return Check("enclave memory", "warn", "not told by the kernel", (), remedy)
    found = f"{total // MIB} MiB of EPC"
    if settings.gramine.edmm or total >= wanted:
        return Check("enclave memory", "ok", found, ())
    return Check(
        "enclave memory", "warn", f"{found}, {wanted // MIB} MiB wanted", (),
        "more is paged, slowly: lower gramine.enclave_size or server.workers, set gramine.edmm, or reserve more in the "
        "firmware (PRMRR size)",
    )  # fmt: skip


def _quoting(machine: Machine) -> Iterator[Check]:
    yield _aesm(machine)
    if not any(machine.path(name).exists() for name in QUOTE_PROVIDERS):
        yield Check(
            "quote provider", "fail", "no libdcap_quoteprov.so.1", SGX, "install libsgx-dcap-default-qpl (Intel's)"
        )
    yield _pccs(machine)


def _aesm(machine: Machine) -> Check:
    path = machine.path(AESM_SOCKET)
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return Check(
            "AESM", "fail", f"no /{AESM_SOCKET}", SGX,
            "install sgx-aesm-service and libsgx-aesm-quote-ex-plugin (Intel's SGX packages), then: systemctl enable "
            "--now aesmd",
        )  # fmt: skip
    try:
        machine.reach(path)
    except PermissionError:
        return Check(
            "AESM", "fail", f"/{AESM_SOCKET} may not be opened", SGX,
            "let the user that serves reach it: Intel's package makes it for everybody (mode 0777), a unit of your own "
            "must too",
        )  # fmt: skip
    except OSError as error:
        return Check(
            "AESM", "fail", f"/{AESM_SOCKET}: {error.strerror or error}", SGX,
            "nobody answers there: systemctl restart aesmd; journalctl -u aesmd says why it ended",
        )  # fmt: skip
    return Check("AESM", "ok", f"/{AESM_SOCKET}", SGX)


def _pccs(machine: Machine) -> Check:
    text = machine.text("etc/sgx_default_qcnl.conf")
    found = re.search(r'^\s*"?pccs_url"?\s*[:=]\s*"?([^",\s]+)', text, re.MULTILINE | re.IGNORECASE)
    if not found:
        return Check(
            "PCCS", "fail", "no pccs_url in /etc/sgx_default_qcnl.conf", SGX,
            "name your PCCS, or your cloud's, there: quotes need the certificates of this processor from it",
        )  # fmt: skip
    parts = urlsplit(found[1])
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        machine.connect(parts.hostname or "", port)
    except OSError as error:
        return Check(
            "PCCS", "fail", f"{found[1]}: {error.strerror or error}", SGX,
            "start it (systemctl start pccs), or name one that answers in /etc/sgx_default_qcnl.conf",
        )  # fmt: skip
    return Check("PCCS", "ok", found[1], SGX)


def _gramine(machine: Machine, how: How) -> Check:
    name = LOADERS[how]
    loader = shutil.which(name, path=machine.search)
    if loader is None or find_gramine(machine.search) is None:
        return Check(
            name, "fail", "not on the path" if loader is None else f"{loader}, without its library OS", (how,),
            f"install Gramine: {INSTALL}",
        )  # fmt: skip
    try:
        said = machine.version(loader)
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name, "fail", f"{loader}: {error}", (how,), f"install Gramine anew: {INSTALL}")
    found = re.search(r"(\d+)\.(\d+)", said)
    if not found or (int(found[1]), int(found[2])) < GRAMINE_VERSION:
        remedy = f"Gramine {'.'.join(map(str, GRAMINE_VERSION))} or newer is needed: {INSTALL}"
        return Check(name, "fail", said.strip()[:80] or "no version", (how,), remedy)
    return Check(name, "ok", f"{loader}, {found[0]}", (how,))


def _image(image: Image) -> Iterator[Check]:
    try:
        files = read_image(image)
    except ImageError as error:
        yield Check("enclave image", "fail", str(image.folder), GRAMINE, str(error))
        return
    found = f"{image.folder}: {files.count} files, {files.size // MIB} MiB, hash {files.sha256[:16]}..."
    if problem := image.missing("direct"):
        yield Check("enclave image", "fail", found, GRAMINE, problem)
        return
    yield Check("enclave image", "ok", found, GRAMINE)
    if problem := image.missing("sgx"):
        yield Check("signature", "fail", "not signed", SGX, problem)
        return
    try:
        signature = read_signature(image.signature)
    except (SignatureError, OSError) as error:
        yield Check("signature", "fail", str(image.signature), SGX, str(error))
        return
    if signature.debug:
        remedy = "no client accepts it: set gramine.debug = false, make and sign anew"
        yield Check("signature", "warn", "a debug enclave", (), remedy)
    else:
        yield Check("signature", "ok", f"MRENCLAVE {signature.mr_enclave.hex()[:16]}...", SGX)


def _shared_memory(machine: Machine, settings: Settings) -> Check:
    folder = machine.path(REGION_FOLDER).parent
    wanted = region_layout(settings.rings).size * settings.server.workers
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        found = f"{Path(REGION_FOLDER).parent} may not be written"
        return Check("shared memory", "fail", found, EVERY, "mount a tmpfs there, mode 1777")
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if free < wanted:
        return Check(
            "shared memory", "fail", f"{free // MIB} MiB free in /dev/shm, {wanted // MIB} MiB needed", EVERY,
            "lower the rings' sizes or server.workers, or enlarge it: mount -o remount,size=1G /dev/shm",
        )  # fmt: skip
    return Check("shared memory", "ok", f"{wanted // MIB} MiB of /dev/shm", EVERY)


def _descriptors(machine: Machine) -> Check:
    if machine.descriptors == resource.RLIM_INFINITY or machine.descriptors >= DESCRIPTORS:
        found = "unlimited" if machine.descriptors == resource.RLIM_INFINITY else str(machine.descriptors)
        return Check("open files", "ok", found, EVERY)
    return Check(
        "open files", "warn", str(machine.descriptors), (),
        "each client is one: raise the hard limit (LimitNOFILE= of the service, or ulimit -Hn)",
    )  # fmt: skip


def as_json(checks: list[Check], target: How) -> str:
    """The findings for machines."""
    document = {
        "target": target,
        "possible": ways(checks),
        "checks": [
            {
                "name": check.name,
                "status": check.status,
                "found": check.found,
                "needed_for": list(check.needed_for),
                "remedy": check.remedy,
            }
            for check in checks
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def as_table(checks: list[Check], target: How) -> str:
    """The findings for people; what rules the target out is marked."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = {"ok": "ok  ", "warn": "look", "fail": "no  "}[check.status]
        lines.append(f"{mark}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            lines.append(f"      {'':<{width}}  -> {check.remedy}")
    possible = ways(checks)
    lines.append("")
    lines.append(f"this machine can run the enclave: {', '.join(possible) or 'in no way'}")
    if target not in possible:
        wrong = [check.name for check in checks if check.status == "fail" and target in check.needed_for]
        lines.append(f"--enclave {target} lacks: {', '.join(wrong)}")
    return "\n".join(lines) + "\n"
