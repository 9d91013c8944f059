"""One enclave process that takes what another enclave has sealed, and ends: no port, no proxy, no worker beside it.

It runs beside the server that gives, also on the same state folder: each measurement has a folder of its own there, and
this one writes to no other. What goes between the two enclaves is TLS that ends inside both; here it is only carried.
"""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Final

from enclave_os.wire.authority import CertificateAuthority
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.rpc import LogLevel, Method
from enclave_os.wire.setting_table import Settings
from enclave_os.wire.settings import enclave_document
from enclave_os.wire.start import Start

from .enclave_process import EnclaveProcess, describe_exit
from .handlers import Handler
from .handlers.carry import Carrier
from .handlers.collateral import collateral_handler
from .handlers.log import Log, log_handler
from .handlers.seal import SealStore
from .handlers.time import tell_time
from .launch import SIMULATED, Launch
from .rpc_dispatcher import Registry, RPCDispatcher
from .shared_memory import Region, region_folder, region_label, region_layout
from .state import StateFolder

LOCK_FILE: Final = "import.lock"
SECONDS_MAX: Final = 300.0
"""For all of it: up to 64 connections until worker 0 of the giver is reached, each with a quote of either side."""
INDEX: Final = 0


def run(
    settings: Settings,
    host: str,
    port: int,
    giver: str,
    *,
    launch: Launch = SIMULATED,
    folder: Path | None = None,
) -> tuple[int, str]:
    """Have an enclave import from the server at `host`:`port`.

    Args:
        settings: the configuration that the new enclave will serve with.
        giver: MRENCLAVE of the enclave there, hexadecimal.
        launch: how the enclave process is started.
        folder: where regions lie: only tests give another.
    Returns: its exit code, 0 for done (the enclave said why not on standard error), and what the host saw go wrong.
    Raises: StateTaken, StateError, ConfigError, OSError.
    """
    log = Log(json_lines=settings.log.format == "json", level=LogLevel[settings.log.level.upper()])
    with StateFolder(Path(settings.server.state_dir), LOCK_FILE) as state:
        platform = launch.platform_folder(settings, state.path)
        # Who signs the CA of the receiver is a question for its first start: what is taken has a CA.
        start = Start(kind="import", giver=giver)
        files = launch.platform_files(platform)
        document = enclave_document(settings, INDEX, 1, CertificateAuthority(), start, files)
        regions = region_folder(folder) if folder else region_folder()
        region = Region(regions, region_label(state.path, INDEX), region_layout(settings.rings))
        try:
            region.call_channels()
            region.call_run(document)
            seal = SealStore(state.path, log.warning, imports_from=giver)
            collateral = collateral_handler(settings.collateral, platform, log.warning)
            return _run(region, seal, collateral, log, Carrier(host, port), launch, platform)
        finally:
            region.unlink()
            log.flush()


def _run(
    region: Region,
    seal: SealStore,
    collateral: Handler,
    log: Log,
    carrier: Carrier,
    launch: Launch,
    platform: Path | None,
) -> tuple[int, str]:
    problems: list[str] = []
    doorbell = launch.doorbell(lambda line: log.write(LogLevel.ERROR, INDEX, line), proxy=False)
    dispatcher = RPCDispatcher(
        lambda _, error: problems.append(str(PeerProtocolError.from_peer(error, "the RPC channel"))),
        lambda: problems.append("the RPC dispatcher ended by a bug of the host"),
    )
    try:
        dispatcher.start()
        registry = Registry(
            {
                Method.TIME: tell_time,
                Method.SEAL_LOAD: seal.load,
                Method.SEAL_STORE: seal.store,
                Method.SEAL_CARRY: carrier.carry,
                Method.COLLATERAL: collateral,
                Method.LOG: log_handler(log, INDEX),
            }
        )
        dispatcher.add_worker(INDEX, region, doorbell, registry)
        process = launch.start(region.name, doorbell, platform)
        code = _wait(process, problems)
    finally:
        dispatcher.stop()
        carrier.close()
        doorbell.close()
    if carrier.problem:
        problems.append(carrier.problem)
    if code < 0:
        problems.append(f"the enclave {describe_exit(code)}")
    return (code if code >= 0 else os.EX_SOFTWARE), "; ".join(problems)


def _wait(process: EnclaveProcess, problems: list[str]) -> int:
    """Its exit code. It is reaped whatever happens, ^C for one."""
    code = os.EX_SOFTWARE
    try:
        if not select.select([process.pidfd], [], [], SECONDS_MAX)[0]:
            problems.append(f"it did not end within {SECONDS_MAX:.0f} s")
    finally:
        process.kill()  # which is nothing to one that has ended
        code = process.reap()
    return code
