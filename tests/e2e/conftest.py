"""The server under test: one for all tests that only ask, and a maker of others for those that need their own."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_os_host.gramine.installed import INSTALL, find_gramine
from tests.e2e.image import make_image
from tests.e2e.installation import install
from tests.e2e.server import Overrides, Server, everywhere

HERE = Path(__file__).parent
StartServer = Callable[..., Server]
UNDER_GRAMINE_SECONDS = 900
"""For a test that starts several servers, each of which takes seconds there, and many times that beside other work."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --enclave direct deadlines are longer than those of plain processes; without Gramine nothing runs."""
    if config.getoption("--enclave") == "simulated":
        return
    nothing = pytest.mark.skip(reason=f"gramine-direct is not on the path, so nothing ran under Gramine: {INSTALL}")
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        if find_gramine() is None:
            item.add_marker(nothing)
        marker = item.get_closest_marker("timeout")
        seconds = max(UNDER_GRAMINE_SECONDS, *(marker.args if marker is not None else (0,)))
        item.add_marker(pytest.mark.timeout(seconds), append=False)


@pytest.fixture(scope="session", autouse=True)
def _descriptors() -> None:
    """Thousands of clients live in this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an installation with the module `trial`."""
    return install(tmp_path_factory.mktemp("installation") / "venv")


@pytest.fixture(scope="session", autouse=True)
def _how(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With --enclave direct: an image of everything that these tests enable, and every server started from it."""
    if request.config.getoption("--enclave") == "simulated" or find_gramine() is None:
        yield
        return
    python: Path = request.getfixturevalue("python")
    image = make_image(python, tmp_path_factory.mktemp("image"))
    everywhere.update({"server": {"enclave": "direct"}, "gramine": {"image": str(image)}})
    yield
    everywhere.clear()


@pytest.fixture(autouse=True)
def _skip_under_gramine(request: pytest.FixtureRequest) -> None:
    """Tests of the plain process itself say why they are not for the other one."""
    marker = request.node.get_closest_marker("under_gramine")
    if marker is not None and request.config.getoption("--enclave") != "simulated":
        pytest.skip(marker.kwargs["reason"])


@pytest.fixture(scope="session")
def server(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shared server, with the defaults that an operator gets."""
    running = Server(python, tmp_path_factory.mktemp("shared-server") / "server")
    yield running
    running.stop()


@pytest.fixture
def start_server(python: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers with settings of their own; those still running are stopped and checked at the end."""
    started: list[Server] = []

    def start(settings: Overrides | None = None, more: str = "") -> Server:
        started.append(Server(python, tmp_path / f"server-{len(started)}", settings, more))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.stop()
