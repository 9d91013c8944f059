"""What a client remembers of a store: older and forked states are refused, and its file is never lost silently."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import AttestationError
from enclave_os.evidence.exchange import STATE_NUMBER_MAX
from enclave_os.evidence.store_state import StoreState
from enclave_os_client import memory as memory_file
from enclave_os_client.memory import MemoryFileError, StateMemory, refuse_older

SERVER = "enclave.example:443"
SEEN = StoreState(boot=7, boot_nonce=b"n" * 32, version=40, root=b"r" * 32)
NEXT_BOOT = {"boot": 8, "boot_nonce": b"m" * 32}
# Few values, so that two drawn states are often alike in all but one member.
NUMBERS = st.integers(0, 3) | st.just(STATE_NUMBER_MAX)
VALUES = st.sampled_from([b"a" * 32, b"b" * 32])
STATES = st.builds(StoreState, NUMBERS, VALUES, NUMBERS, st.none() | VALUES)


def changed(**members: object) -> StoreState:
    return dataclasses.replace(SEEN, **members)  # type: ignore[arg-type] # what each test gives


@pytest.fixture
def remembered(tmp_path: Path) -> StateMemory:
    memory = StateMemory(tmp_path / "seen.json")
    assert memory.check(SERVER, SEEN) is False
    return memory


@pytest.mark.parametrize(
    "now",
    [
        SEEN,
        changed(version=41, root=b"s" * 32),
        changed(**NEXT_BOOT),
        changed(**NEXT_BOOT, version=41, root=b"s" * 32),
        changed(version=STATE_NUMBER_MAX, root=b"s" * 32),
    ],
)
def test_what_goes_on_is_accepted_and_becomes_what_is_remembered(remembered: StateMemory, now: StoreState) -> None:
    assert remembered.check(SERVER, now) is True
    assert remembered.check(SERVER, now) is True
    if now != SEEN:
        with pytest.raises(AttestationError):
            remembered.check(SERVER, SEEN)


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (changed(boot=6), "rolled_back"),
        (changed(boot=6, version=50), "rolled_back"),  # a long life after an old copy is an old copy's
        (changed(boot_nonce=b"m" * 32), "forked"),
        (changed(boot_nonce=b"m" * 32, version=50, root=b"s" * 32), "forked"),  # two clones of one state
        (changed(version=39), "rolled_back"),
        (changed(**NEXT_BOOT, version=39), "rolled_back"),  # yesterday's disk under today's boot count
        (changed(root=b"s" * 32), "forked"),
        (changed(**NEXT_BOOT, root=b"s" * 32), "forked"),
        (changed(root=None), "forked"),
    ],
)
def test_older_and_forked_states_are_refused_and_change_nothing(
    remembered: StateMemory, now: StoreState, code: str
) -> None:
    before = remembered.path.read_bytes()
    with pytest.raises(AttestationError) as caught:
        remembered.check(SERVER, now)
    assert caught.value.code == code
    assert remembered.path.read_bytes() == before


def test_a_server_that_says_nothing(remembered: StateMemory) -> None:
    for server, text in ((SERVER, "and once did"), ("other.example:443", "does not say")):
        with pytest.raises(AttestationError, match=text) as caught:
            remembered.check(server, None)
        assert caught.value.code == "no_state"


def test_servers_are_told_apart(remembered: StateMemory) -> None:
    assert remembered.check("enclave.example:8443", changed(boot=1, version=0)) is False
    assert remembered.check(SERVER, SEEN) is True


@given(STATES, STATES)
def test_no_two_states_accept_each_other(before: StoreState, now: StoreState) -> None:
    """Of two different states at most one follows the other: nobody swings between two branches unseen."""
    accepted = 0
    for first, second in ((before, now), (now, before)):
        try:
            refuse_older(first, second)
        except AttestationError:
            continue
        accepted += 1
    assert accepted <= 1 or before == now


@given(STATES)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, state: StoreState) -> None:
    memory = StateMemory(tmp_path_factory.mktemp("memory") / "seen.json")
    memory.check(SERVER, state)
    assert memory.check(SERVER, state) is True


def test_the_file_is_the_owners_and_nothing_lies_beside_it(remembered: StateMemory) -> None:
    assert remembered.path.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in remembered.path.parent.iterdir()} == {"seen.json", "seen.json.lock"}


def test_a_write_that_fails_leaves_the_old_file(remembered: StateMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    before = remembered.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        remembered.check(SERVER, changed(version=41))
    assert remembered.path.read_bytes() == before
    assert {path.name for path in remembered.path.parent.iterdir()} == {"seen.json", "seen.json.lock"}


ENTRY = {"boot": 1, "boot_nonce": "00" * 32, "version": 1, "root": "00" * 32}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "\xff",
        json.dumps({"format": 2, "servers": {}}),
        json.dumps({"format": 1, "servers": []}),
        json.dumps({"format": 1, "servers": {}, "more": 1}),
        '{"format":1,"servers":{},"servers":{}}',
        *(
            json.dumps({"format": 1, "servers": {SERVER: entry}})
            for entry in (
                None,
                {},
                {**ENTRY, "more": 1},
                {**ENTRY, "boot": -1},
                {**ENTRY, "boot": True},
                {**ENTRY, "boot": 1.0},
                {**ENTRY, "version": STATE_NUMBER_MAX + 1},
                {**ENTRY, "boot_nonce": "00"},
                {**ENTRY, "boot_nonce": None},
                {**ENTRY, "boot_nonce": "zz" * 32},
                {**ENTRY, "root": 0},
                {**ENTRY, "root": " " * 64},
                {**ENTRY, "root": "AA" * 32},
            )
        ),
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    memory = StateMemory(tmp_path / "seen.json")
    memory.path.write_text(text, encoding="latin-1")
    with pytest.raises(MemoryFileError, match="damaged"):
        memory.check(SERVER, SEEN)
    assert memory.path.read_text(encoding="latin-1") == text


def test_too_big_a_file_and_too_many_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = StateMemory(tmp_path / "seen.json")
    memory.path.write_bytes(b" " * (memory_file.FILE_SIZE_MAX + 1))
    with pytest.raises(MemoryFileError, match="too big"):
        memory.check(SERVER, SEEN)
    memory.path.unlink()
    monkeypatch.setattr(memory_file, "SERVERS_MAX", 1)
    memory.check(SERVER, SEEN)
    with pytest.raises(MemoryFileError, match="full"):
        memory.check("other.example:443", SEEN)


def test_a_lock_that_nobody_lets_go_ends_the_wait(tmp_path: Path) -> None:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    memory = StateMemory(tmp_path / "seen.json", monotonic=lambda: clock[0], sleep=sleep)
    with (tmp_path / "seen.json.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(MemoryFileError, match="another process"):
            memory.check(SERVER, SEEN)
    assert clock[0] == pytest.approx(memory_file.LOCK_SECONDS, rel=0.01)
    assert memory.check(SERVER, SEEN) is False


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "seen.json.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        StateMemory(tmp_path / "seen.json").check(SERVER, SEEN)
    assert not (tmp_path / "elsewhere").exists()
