"""Rows that follow what was imported: copied once, whole or not at all, and nobody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enclave_os_host.imported_rows import PARTIAL, bring_rows
from enclave_os_host.state import StateError

GIVER, RECEIVER = "ab" * 32, "cd" * 32


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A giver with rows, and a receiver that waits for them."""
    store = tmp_path / "sealed" / GIVER / "store" / "deeper"
    store.mkdir(parents=True)
    (store / "rows").write_bytes(b"opaque")
    (store.parent / "CURRENT").write_bytes(b"x")
    receiver = tmp_path / "sealed" / RECEIVER
    receiver.mkdir()
    (receiver / "imported-from").write_text(GIVER)
    return tmp_path / "sealed"


def bring(sealed: Path) -> list[str]:
    said: list[str] = []
    bring_rows(sealed.parent, said.append)
    return said


def test_they_are_copied_once_and_stay_where_they_were(sealed: Path) -> None:
    assert len(bring(sealed)) == 1
    for owner in (GIVER, RECEIVER):
        assert (sealed / owner / "store" / "deeper" / "rows").read_bytes() == b"opaque"
    assert not (sealed / RECEIVER / "imported-from").exists()
    (sealed / RECEIVER / "store" / "deeper" / "rows").write_bytes(b"newer")
    assert bring(sealed) == []
    assert (sealed / RECEIVER / "store" / "deeper" / "rows").read_bytes() == b"newer"


def test_a_copy_that_did_not_end_is_begun_anew(sealed: Path) -> None:
    (sealed / RECEIVER / PARTIAL).mkdir()
    (sealed / RECEIVER / PARTIAL / "half").write_bytes(b"")
    assert len(bring(sealed)) == 1
    assert not (sealed / RECEIVER / "store" / "half").exists()


def test_nothing_is_copied_over_a_store(sealed: Path) -> None:
    (sealed / RECEIVER / "store").mkdir()
    (sealed / RECEIVER / "store" / "own").write_bytes(b"")
    assert bring(sealed) == []
    assert os.listdir(sealed / RECEIVER / "store") == ["own"]


def test_rows_that_are_not_there_yet_are_waited_for(sealed: Path) -> None:
    store = sealed / GIVER / "store"
    store.rename(sealed / "away")
    assert bring(sealed) == []
    (sealed / "away").rename(store)
    assert len(bring(sealed)) == 1


@pytest.mark.parametrize("text", ["", "..", f"../{GIVER}", GIVER.upper(), f"{GIVER}\n", "\xff"])
def test_a_note_that_is_none(sealed: Path, text: str) -> None:
    (sealed / RECEIVER / "imported-from").write_text(text, encoding="latin-1")
    with pytest.raises(StateError, match="names no measurement"):
        bring(sealed)
    assert not (sealed / RECEIVER / "store").exists()


def test_no_state_holds_no_note(tmp_path: Path) -> None:
    bring_rows(tmp_path, lambda line: None)
