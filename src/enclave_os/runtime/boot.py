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
from typing import Final

import uvloop

from enclave_os.border.channel import Channel, attach_channel
from enclave_os.border.control import ControlBlock
from enclave_os.border.doorbell import Doorbell
from enclave_os.border.region import Region
from enclave_os.errors import AttestationError, EnclaveError, HostRefused
from enclave_os.modules.registry import ENTRY_POINT_GROUP
from enclave_os.ratls.attester import Attester, SimulatedIdentity, make_attester
from enclave_os.ratls.measurement import find_packages
from enclave_os.runtime.allocator import keep_memory
from enclave_os.runtime.context import Context, ExitCode, Mode
from enclave_os.runtime.hardening import harden
from enclave_os.runtime.log import escape_line
from enclave_os.runtime.serve import serve
from enclave_os.wire.errors import HostProtocolError, PeerProtocolError, WireError
from enclave_os.wire.layout import CONFIG_SIZE_MAX, ChannelGeometry, EntryResult, Slot
from enclave_os.wire.settings import ConfigError, EnclaveSettings, parse_enclave_document

MODES: Final[Mapping[str, Mode]] = {"simulated": "simulated", "direct": "direct", "sgx": "sgx"}


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

    Raises: HostProtocolError, PeerProtocolError: region, geometry or doorbell. ConfigError: the document.
    AttestationError: nothing here attests us.
    """
    mode = MODES.get(environment.get("ENCLAVE_OS_MODE", ""))
    if mode is None:
        raise HostProtocolError(f"ENCLAVE_OS_MODE is none of {', '.join(MODES)}")
    doorbell = Doorbell(environment.get("ENCLAVE_OS_DOORBELL", ""))
    region = Region(environment.get("ENCLAVE_OS_REGION", ""))
    control = ControlBlock(region)
    rpc_channel, rpc = _take_channel(control, region, doorbell, Slot.INIT_CHANNEL, None)
    data_channel, _ = _take_channel(control, region, doorbell, Slot.INIT_DATA_CHANNEL, rpc)
    entry = control.wait(Slot.RUN, doorbell)
    try:
        if entry.size > CONFIG_SIZE_MAX:
            raise HostProtocolError(f"a configuration document of {entry.size} bytes")
        settings = parse_enclave_document(region.copy(entry.offset, entry.size))
        attester = _make_attester(mode, environment, settings)
    except (PeerProtocolError, ConfigError, AttestationError):
        control.answer(Slot.RUN, EntryResult.BAD_CONFIGURATION)
        raise
    return Context(mode, region, control, doorbell, rpc_channel, data_channel, attester, settings)


def _make_attester(mode: Mode, environment: Mapping[str, str], settings: EnclaveSettings) -> Attester:
    simulated = settings.simulated
    identity = SimulatedIdentity(
        mr_signer=bytes.fromhex(simulated.mr_signer), isv_prod_id=simulated.isv_prod_id, isv_svn=simulated.isv_svn
    )
    names = ["enclave_os", *(point.value for point in entry_points(group=ENTRY_POINT_GROUP))]
    packages = {} if mode == "sgx" else find_packages(name.partition(":")[0] for name in names)
    return make_attester(mode, environment, identity, packages)


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
