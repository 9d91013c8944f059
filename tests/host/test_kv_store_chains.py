"""Batches of several ranges in one queue: each chain follows itself, and a refusal is its own."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from enclave_os.wire import kv
from enclave_os.wire.rpc import Status
from enclave_os_host import kv_store

from .test_kv_store import NS, Rig, no_space, put, rig

__all__ = ["rig"]


def test_chains_do_not_disturb_each_other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each range of the store counts for itself, and all are in one queue."""
    ours, others, last = 0, 5 << kv.CHAIN_SHIFT, (kv.RANGES_MAX - 1) << kv.CHAIN_SHIFT
    assert rig.write(put(b"o", b"1"), number=ours + 7) == Status.OK
    assert rig.write(put(b"p", b"1"), number=others + 1, follows=True) == Status.OK, "the first of its chain"
    assert rig.write(put(b"p", b"2"), number=others + 8, follows=True) == Status.OUT_OF_TURN, "7 is another chain's"
    for step in (1, 2, 3):
        assert rig.write(put(b"p", b"%d" % step), number=others + 1 + step, follows=True) == Status.OK
        assert rig.write(put(b"l", b"%d" % step), number=last + step) == Status.OK
        assert rig.write(put(b"o", b"%d" % step), number=ours + 7 + step, follows=True) == Status.OK
    write = rig.store._write
    monkeypatch.setattr(rig.store, "_write", no_space)
    assert rig.write(put(b"o", b"4"), number=ours + 11, follows=True) == Status.NO_SPACE
    monkeypatch.setattr(rig.store, "_write", write)
    assert rig.write(put(b"p", b"5"), number=others + 5, follows=True) == Status.OK
    assert rig.write(put(b"o", b"5"), number=ours + 12, follows=True) == Status.OUT_OF_TURN, "it would leave a gap"
    assert rig.write(put(b"l", b"4"), number=last + 4, follows=True) == Status.OK
    assert rig.store.multi_get(NS, [b"o", b"p", b"l"]) == [b"3", b"5", b"4"]


def test_a_refused_one_of_a_group_refuses_its_own_chain_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", "group")
    chains = 0, 1 << kv.CHAIN_SHIFT
    for chain in chains:
        assert rig.write(put(b"first", b""), number=chain + 4) == Status.OK
    done: queue.SimpleQueue[tuple[int, Status]] = queue.SimpleQueue()

    def write(number: int) -> kv_store._Write:
        row = [put(number.to_bytes(8, "big"), b"x")]
        return kv_store._Write(row, 2, False, lambda status: done.put((number, status)), number, True)

    numbers = [chains[0] + 6, chains[1] + 5, chains[0] + 7, chains[1] + 6, chains[0] + 5, chains[1] + 7]
    with rig.store._changed:  # all wait before the first is taken
        rig.store._queue.extend(map(write, numbers))
        rig.store._wake_thread()
    told = dict(done.get(timeout=20) for _ in numbers)
    refused = {number for number, status in told.items() if status == Status.OUT_OF_TURN}
    assert refused == {chains[0] + 6, chains[0] + 7}
    assert set(told.values()) == {Status.OK, Status.OUT_OF_TURN}
    rig.store.close()
