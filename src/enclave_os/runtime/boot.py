"""From a started process to a serving enclave: attach, take the entries, build, run, end.

Order matters and each step needs the one before: nothing secret exists before the process is hardened, nothing is
served before the configuration was parsed whole, and READY is said last.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import uvloop

from enclave_os.border.channel import Channel, attach_channel
from enclave_os.border.control import ControlBlock
from enclave_os.border.doorbell import Doorbell, open_doorbell
from enclave_os.border.region import Region
from enclave_os.errors import AttestationError, EnclaveError, HostRefused
from enclave_os.modules.registry import ENTRY_POINT_GROUP
from enclave_os.ratls.attester import (
    ATTESTATION_TYPE,
    DEVICE_ROOT,
    Attester,
    DeviceAttester,
    SimulatedAttester,
    SimulatedIdentity,
    platform_folder,
)
from enclave_os.ratls.measurement import find_packages, measure, measure_frozen
from enclave_os.runtime.allocator import keep_memory
from enclave_os.runtime.context import Context, ExitCode, Mode
from enclave_os.runtime.frozen import Frozen, read_frozen
from enclave_os.runtime.hardening import harden
from enclave_os.runtime.log import escape_line
from enclave_os.runtime.serve import serve
from enclave_os.wire.errors import HostProtocolError, PeerProtocolError, WireError
from enclave_os.wire.layout import CONFIG_SIZE_MAX, ChannelGeometry, EntryResult, Slot
from enclave_os.wire.settings import ConfigError, EnclaveSettings, parse_enclave_document

SIMULATED: Final = "simulated"
GRAMINE: Final = "gramine"
"""The two words of `ENCLAVE_OS_MODE`. The manifest fixes the second one; what it means the CPU says, not the host."""


def run_enclave(environment: Mapping[str, str]) -> int:
    """The whole life of an enclave process; returns its exit code. Errors before the log works go to stderr."""
    harden()
    keep_memory()
    try:
        context = attach(environment)
    except PeerProtocolError as error:
        return _complain(HostProtocolError.from_peer(error), ExitCode.PROTOCOL)
    except (ConfigError, AttestationError) as error:
        return _complain(error, ExitCode.CONFIG)
    try:
        code = uvloop.run(serve(context))
    except PeerProtocolError as error:
        context.control.answer(Slot.RUN, EntryResult.FAILED)
        return _complain(HostProtocolError.from_peer(error), ExitCode.PROTOCOL)
    except HostRefused as error:
        # The host did not answer in time: a busy machine, which the next start may find at rest.
        context.control.answer(Slot.RUN, EntryResult.FAILED)
        return _complain(error, ExitCode.HOST_SLOW)
    except (EnclaveError, WireError) as error:
        context.control.answer(Slot.RUN, EntryResult.BAD_CONFIGURATION)
        return _complain(error, ExitCode.CONFIG)
    if code == ExitCode.OK:
        context.control.answer(Slot.SHUTDOWN, EntryResult.OK)
    logging.shutdown()
    return code


def attach(environment: Mapping[str, str]) -> Context:
    """Map the region and take the three entries that the host called before it started us.

    Raises: HostProtocolError, PeerProtocolError: region, geometry or doorbell. ConfigError: the document, or what the
    build for Gramine left.
    AttestationError: nothing here attests us.
    """
    mode = find_mode(environment.get("ENCLAVE_OS_MODE", ""))
    frozen = None if mode == "simulated" else read_frozen()
    doorbell = open_doorbell(environment.get("ENCLAVE_OS_DOORBELL", ""))
    region = Region(environment.get("ENCLAVE_OS_REGION", ""))
    control = ControlBlock(region)
    rpc_channel, rpc = _take_channel(control, region, doorbell, Slot.INIT_CHANNEL, None)
    data_channel, _ = _take_channel(control, region, doorbell, Slot.INIT_DATA_CHANNEL, rpc)
    entry = control.wait(Slot.RUN, doorbell)
    try:
        if entry.size > CONFIG_SIZE_MAX:
            raise HostProtocolError(f"a configuration document of {entry.size} bytes")
        settings = parse_enclave_document(region.copy(entry.offset, entry.size))
        attester = _make_attester(mode, environment, settings, frozen)
    except (PeerProtocolError, ConfigError, AttestationError):
        control.answer(Slot.RUN, EntryResult.BAD_CONFIGURATION)
        raise
    points = None if frozen is None else frozen.modules
    return Context(mode, region, control, doorbell, rpc_channel, data_channel, attester, settings, points)


def find_mode(word: str, device: Path = DEVICE_ROOT) -> Mode:
    """How we run. Under Gramine it is SGX exactly where Gramine has attestation files, which the host cannot take away
    from an enclave nor give to a plain process.

    Raises: HostProtocolError: no such word.
    """
    if word == SIMULATED:
        return "simulated"
    if word == GRAMINE:
        return "sgx" if (device / ATTESTATION_TYPE).exists() else "direct"
    raise HostProtocolError(f"ENCLAVE_OS_MODE is neither {SIMULATED} nor {GRAMINE}")


def _make_attester(
    mode: Mode, environment: Mapping[str, str], settings: EnclaveSettings, frozen: Frozen | None
) -> Attester:
    if mode == "sgx":
        return DeviceAttester()
    simulated = settings.simulated
    identity = SimulatedIdentity(
        mr_signer=bytes.fromhex(simulated.mr_signer), isv_prod_id=simulated.isv_prod_id, isv_svn=simulated.isv_svn
    )
    if frozen is not None:
        if settings.platform is None:
            raise AttestationError("the host gave no simulated platform, and there is no other here", "no_platform")
        return SimulatedAttester(mode, settings.platform, identity, measure_frozen(frozen.files_sha256))
    names = ["enclave_os", *(point.value for point in entry_points(group=ENTRY_POINT_GROUP))]
    packages = find_packages(name.partition(":")[0] for name in names)
    return SimulatedAttester(mode, platform_folder(environment), identity, measure(packages))


def _take_channel(
    control: ControlBlock, region: Region, doorbell: Doorbell, slot: Slot, before: ChannelGeometry | None
) -> tuple[Channel, ChannelGeometry]:
    entry = control.wait(slot, doorbell)
    try:
        geometry = control.channel(entry, () if before is None else (before.to_enclave, before.to_host))
        channel = attach_channel(region, geometry)
    except PeerProtocolError:
        control.answer(slot, EntryResult.BAD_GEOMETRY)
        raise
    control.answer(slot, EntryResult.OK)
    return channel, geometry


def _complain(error: Exception, code: ExitCode) -> int:
    for line in str(error).splitlines() or [type(error).__name__]:
        print(escape_line(f"enclave[{os.getpid()}]: {line}"), file=sys.stderr, flush=True)
    return code
