"""The simulated platform: made once, kept, renewed, shared."""

from __future__ import annotations

import datetime
import json
import stat
import threading
from pathlib import Path

import pytest

from enclave_os_host import simulated_platform as platforms
from enclave_os_host.simulated_platform import open_simulated_platform
from enclave_os_host.state import StateError

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
FILES = ("root.pem", "root.key", "platform.json", "collateral.json", "seal.key")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_it_is_made_once(tmp_path: Path) -> None:
    first = open_simulated_platform(tmp_path / "p", lambda: NOW)
    before = contents(first.folder)
    again = open_simulated_platform(tmp_path / "p", lambda: NOW)
    assert (first.created, again.created) == (True, False)
    assert contents(again.folder) == before
    assert again.root_file.read_bytes() == before["root.pem"]


def test_secrets_are_for_its_owner(tmp_path: Path) -> None:
    folder = open_simulated_platform(tmp_path / "p", lambda: NOW).folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("root.key", "platform.json", "seal.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert len((folder / "seal.key").read_bytes()) == 32


@pytest.mark.parametrize(("days", "renewed"), [(0, False), (22, False), (24, True), (40, True)])
def test_collateral_is_renewed_before_it_ends(tmp_path: Path, days: int, renewed: bool) -> None:
    folder = open_simulated_platform(tmp_path / "p", lambda: NOW).folder
    before = contents(folder)
    later = NOW + datetime.timedelta(days=days)
    open_simulated_platform(folder, lambda: later)
    after = contents(folder)
    assert (before["collateral.json"] != after["collateral.json"]) is renewed
    assert {name for name in FILES if before[name] != after[name]} <= {"collateral.json"}
    info = json.loads(json.loads(after["collateral.json"])["tcb_info"])
    assert datetime.datetime.fromisoformat(info["nextUpdate"]) > later + datetime.timedelta(days=6)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_not_made_anew(tmp_path: Path, name: str) -> None:
    folder = open_simulated_platform(tmp_path / "p", lambda: NOW).folder
    (folder / name).unlink()
    with pytest.raises(StateError, match=name.replace(".", r"\.")):
        open_simulated_platform(folder, lambda: NOW)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"tcb_info": "x"}'])
def test_unreadable_collateral_is_said(tmp_path: Path, content: bytes) -> None:
    folder = open_simulated_platform(tmp_path / "p", lambda: NOW).folder
    (folder / "collateral.json").write_bytes(content)
    with pytest.raises(StateError, match="cannot be read"):
        open_simulated_platform(folder, lambda: NOW)


def test_several_at_once_make_one(tmp_path: Path) -> None:
    made: list[platforms.SimulatedPlatform] = []
    threads = [
        threading.Thread(target=lambda: made.append(open_simulated_platform(tmp_path / "p", lambda: NOW)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(platform.created for platform in made) == [False, False, False, True]
