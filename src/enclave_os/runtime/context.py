"""What the border handed over at start, and how an enclave process ends. Passed by hand; nothing here is a global."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from importlib.metadata import EntryPoint
from typing import Literal

from enclave_os.border.channel import Channel
from enclave_os.border.control import ControlBlock
from enclave_os.border.doorbell import Doorbell
from enclave_os.border.region import Region
from enclave_os.ratls.attester import Attester
from enclave_os.wire.settings import EnclaveSettings

Mode = Literal["simulated", "direct", "sgx"]


class ExitCode(IntEnum):
    """How the enclave process ends (sysexits.h where it has a word for it)."""

    OK = 0  # the host called `shutdown`
    SOFTWARE = 70  # our own bug
    HOST_SLOW = 69  # the host did not answer the first call in time
    HOST_GONE = 75  # the host's end of the lifeline closed
    PROTOCOL = 76  # the host broke the contract
    CONFIG = 78  # the configuration cannot be served; starting again would not help


@dataclass(frozen=True, slots=True)
class Context:
    """One attached enclave process.

    Attributes:
        mode: "simulated", "direct" or "sgx"; what every reply about ourselves says.
        attester: proves what we are.
        settings: the configuration document, parsed strictly; alleged by the host, but well-formed.
        module_points: the only modules that may be enabled; None: those that are installed.
    """

    mode: Mode
    region: Region
    control: ControlBlock
    doorbell: Doorbell
    rpc_channel: Channel
    data_channel: Channel
    attester: Attester
    settings: EnclaveSettings
    module_points: tuple[EntryPoint, ...] | None = None
