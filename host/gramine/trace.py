"""What an enclave process really loads: a server is started, asked, and stopped, with the enclave written down.

The trial is of the configuration that will be served, with the same modules, in a state folder of its own and on a port
of the loopback that nobody is told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import select
import signal
import ssl
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

from enclave_os.wire.setting_kinds import Endpoint, nearest
from enclave_os.wire.setting_table import Settings

from ..launch import Launch

ENTRY_POINT_GROUP: Final = "enclave_os.modules"
SCRIPT: Final = Path(__file__).with_name("traced_enclave.py")
STANDARD_ERROR: Final = 2
START_SECONDS_MAX: Final = 60.0
END_SECONDS_MAX: Final = 60.0
"""At its end the enclave imports what the trial did not: a second, or many on a machine that is busy."""
ANSWER_SECONDS_MAX: Final = 10.0
# One of each kind: an answer, a refusal, a page with evidence in it, what no module knows.
REQUESTS: Final = (
    ("GET", "/healthz", None),
    ("GET", "/readyz", None),
    ("GET", "/status", None),
    ("GET", "/metrics", None),
    ("GET", "/attestation", None),
    ("POST", "/data", b"hello"),
    ("POST", "/__privasys/attest", b'{"v":2}'),
    ("GET", "/nowhere", None),
)


class TraceError(Exception):
    """The trial run did not do what a server does; the text says what went wrong."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What one enclave process loaded.

    Attributes:
        modules: import name to the file that it came from; those that are built in have none and are left out.
        packages: which of them are packages.
        mapped: shared objects by the names under which they were opened.
        executable: files mapped executable, links resolved.
        opened: files that Python code opened to read.
    """

    modules: Mapping[str, Path]
    packages: frozenset[str]
    mapped: tuple[str, ...]
    executable: tuple[str, ...]
    opened: tuple[str, ...]


def module_points(settings: Settings) -> dict[str, EntryPoint]:
    """Entry points of the enabled modules by name. Raises: TraceError: one is not installed, or twice."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in found and found[point.name].value != point.value:
            raise TraceError(f"two installed packages ship a module named {point.name!r}")
        found[point.name] = point
    for name in settings.modules.enabled:
        if name not in found:
            raise TraceError(f"modules.enabled: no module {name!r} is installed{nearest(name, sorted(found))}")
    return {name: found[name] for name in settings.modules.enabled}


def trace(settings: Settings) -> Trace:
    """Run a server with these modules and read what its enclave loaded. Main thread only; takes a few seconds.

    Raises: TraceError. OSError.
    """
    packages = sorted({point.value.partition(".")[0].partition(":")[0] for point in module_points(settings).values()})
    with tempfile.TemporaryDirectory(prefix="enclave-os-trace-") as place:
        folder = Path(place)
        out = folder / "trace.json"
        command = (sys.executable, "-I", "-B", str(SCRIPT), str(out), *packages)
        launch = Launch("simulated", command, START_SECONDS_MAX, END_SECONDS_MAX)
        _run(_trial(settings, folder / "state"), launch, folder / "log")
        if not out.is_file():
            raise TraceError(f"the trial run's enclave took more than {END_SECONDS_MAX:g} s to end: try again")
        document: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return Trace(
        modules={name: Path(found["file"]) for name, found in document["modules"].items() if found["file"]},
        packages=frozenset(name for name, found in document["modules"].items() if found["package"]),
        mapped=tuple(document["mapped"]),
        executable=tuple(document["executable"]),
        opened=tuple(document["opened"]),
    )


def _trial(settings: Settings, state: Path) -> Settings:
    server = dataclasses.replace(
        settings.server,
        listen=(Endpoint("127.0.0.1", 0),),
        port=None,
        workers=1,
        state_dir=str(state),
        platform_dir="",
        enclave="simulated",
    )
    ca = type(settings.ca)()  # nobody is there to sign
    return dataclasses.replace(settings, server=server, ca=ca)


def _run(settings: Settings, launch: Launch, log: Path) -> None:
    """Serve in a child of this process, ask, end it. Raises: TraceError."""
    # Imported here: every command of the host describes itself, and but for this one none needs a server.
    from ..supervisor import serve

    ready, ready_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = os.EX_SOFTWARE
        try:
            os.close(ready)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.dup2(descriptor, STANDARD_ERROR)
            code = serve(settings, ready_end, launch=launch)
        finally:
            if sys.exc_info()[1] is not None:
                os.write(STANDARD_ERROR, traceback.format_exc().encode())
            os._exit(code)
    os.close(ready_end)
    try:
        if not select.select([ready], [], [], START_SECONDS_MAX)[0]:
            raise TraceError(f"the trial run was not ready within {START_SECONDS_MAX:g} s")
        line = os.read(ready, 4096).decode("ascii", "replace")
        if line.endswith("\n"):
            _ask(int(line.split()[0].rpartition(":")[2]))
    finally:
        os.close(ready)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0 or not line:
        said = log.read_text("utf-8", "replace").splitlines()[-10:]
        raise TraceError("\n".join([f"the trial run ended with exit code {code}; it said:", *said]))


def _ask(port: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is ours, and nothing secret is said
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAX, context=context)
    try:
        for method, path, body in REQUESTS:
            connection.request(method, path, body, {"Authorization": "Bearer none"})
            connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise TraceError(f"the trial run did not answer: {error}") from error
    finally:
        connection.close()
