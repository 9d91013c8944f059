"""docs/modules.md does what it says: its files are written, installed, tested and asked."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "modules.md"


def files() -> dict[str, str]:
    """The files that the guide shows: a path in a line of its own, then a block."""
    text = GUIDE.read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w./-]+)`\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guide's files, and the package installed into `site` beside them."""
    folder = tmp_path_factory.mktemp("guide")
    for path, text in files().items():
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(folder / "site"), str(folder / "greeter")], check=True, timeout=100)
    return folder


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])))
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_guide_has_the_files() -> None:
    assert set(files()) == {
        "greeter/pyproject.toml",
        "greeter/enclave_os_greeter.py",
        "greeter/test_greeter.py",
        "enclave-os.toml",
    }


def test_its_tests_pass(installed: Path) -> None:
    assert "4 passed" in run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "greeter")


def test_its_code_is_clean(installed: Path) -> None:
    """By our own rules, and by mypy's strict ones for the module (its tests are shown shorter than they would be)."""
    run(installed, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "greeter")
    run(installed, "-m", "ruff", "format", "--check", "--config", str(ROOT / "pyproject.toml"), "greeter")


def test_it_is_found_and_answers(installed: Path) -> None:
    settings = tomllib.loads(files()["enclave-os.toml"])
    script = f"""
import asyncio, logging
from enclave_os.http import make_request
from enclave_os.modules.api import Services, Status
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.registry import Registry, load_modules
from enclave_os.runtime.clock import Clock

settings = {settings!r}
clock, logger = Clock(), logging.getLogger("guide")
registry = Registry(load_modules(settings["modules"]["enabled"]), Authenticator([], clock), logger)
status = Status("simulated", "none", "development", 0, 1, True, 0.0)
asyncio.run(registry.start(lambda module: Services(
    clock=clock, random=bytes, logger=logger, config=settings["module"].get(module.name, {{}}), modules=registry.names,
    status=lambda: status, counters=dict, request_stop=lambda: None, attestation=None, tokens=None,
    config_changed=lambda: None,
)))
print(registry.respond(make_request("GET", "/greet/Ada")).body.decode(), end="")
print(asyncio.run(registry.respond(make_request("POST", "/greet", body=b'["Ada"]'))).body.decode())
print(asyncio.run(registry.respond(make_request("POST", "/greet", body=b'5'))).status)
print(registry.respond(make_request("GET", "/greet")).status)
print(registry.respond(make_request("GET", "/hello")).body.decode())
"""
    first, second, *rest = run(installed, "-c", script).splitlines()
    assert f"    {first}\n" in GUIDE.read_text(encoding="utf-8")  # what curl is shown to print
    assert json.loads(second) == ["Good day, Ada!"]
    assert rest == ["422", "403", "world"]
