"""How an enclave process is started: as a plain process, or by one of Gramine's loaders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from enclave_os.wire.gramine import PlatformFiles
from enclave_os.wire.setting_table import Settings

from .doorbell import Doorbell, EventfdDoorbell, PipeDoorbell
from .enclave_process import COMMAND, EnclaveProcess
from .simulated_platform import FOLDER, open_simulated_platform, read_platform

START_SECONDS_MAX: Final = 30.0
"""From the start of a plain process to READY."""
GRAMINE_START_SECONDS_MAX: Final = 240.0
"""The same under Gramine: it hashes every file that is opened, and on SGX without EDMM all of the enclave's memory is
added page by page before the first instruction runs: minutes on a machine that pages its EPC."""
END_SECONDS_MAX: Final = 5.0
"""From `shutdown` to the end of a plain process."""
GRAMINE_END_SECONDS_MAX: Final = 30.0
"""The same under Gramine: on SGX the kernel takes the enclave apart page by page before the process is gone."""

How = Literal["simulated", "direct", "sgx"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One way to start an enclave process.

    Attributes:
        how: as `server.enclave` calls it.
        command: program by its path, and arguments.
        start_seconds_max: from the start to READY; beyond it the process is killed.
        end_seconds_max: from `shutdown` to its end; beyond it, too.
    """

    how: How
    command: Sequence[str]
    start_seconds_max: float
    end_seconds_max: float = END_SECONDS_MAX

    @property
    def gramine(self) -> bool:
        """Whether the command is Gramine's loader."""
        return self.how != "simulated"

    def platform_folder(self, settings: Settings, state_folder: Path) -> Path | None:
        """The simulated platform, made if it has to be; None on hardware, which needs none.

        Raises: StateError, OSError.
        """
        if self.how == "sgx":
            return None
        return open_simulated_platform(Path(settings.server.platform_dir or state_folder / FOLDER)).folder

    def platform_files(self, folder: Path | None) -> PlatformFiles | None:
        """The platform as text, for an enclave that can open none of our files. Raises: StateError, OSError."""
        return read_platform(folder) if self.gramine and folder else None

    def doorbell(self, on_line: Callable[[str], None], *, proxy: bool = True) -> Doorbell:
        """A new doorbell. Args: on_line: gets what an enclave under Gramine writes beside its log."""
        return PipeDoorbell(on_line, proxy=proxy) if self.gramine else EventfdDoorbell()

    def start(self, region: str, doorbell: Doorbell, platform: Path | None) -> EnclaveProcess:
        """Start a process on the region of this name. Raises: OSError: no such program, or no memory for a process."""
        folder = None if self.gramine else platform
        return EnclaveProcess(self.command, region=region, doorbell=doorbell, gramine=self.gramine, platform=folder)


SIMULATED: Final = Launch("simulated", COMMAND, START_SECONDS_MAX)
