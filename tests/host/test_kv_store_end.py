"""The end of the store: what was taken is finished and answered, and nothing is closed under it."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import rocksdict

from enclave_os.wire.rpc import Status
from enclave_os_host import kv_store
from enclave_os_host.kv_store import StoreSync

from .test_kv_store import NS, Rig, put


class HangingDisk:
    """A database under which an fsync does not come back before it is let."""

    def __init__(self, db: rocksdict.Rdict) -> None:
        self._db = db
        self.hangs, self.goes_on = threading.Event(), threading.Event()
        self.closed = 0

    def flush_wal(self, sync: bool) -> None:
        self.hangs.set()
        assert self.goes_on.wait(60)
        self._db.flush_wal(sync)

    def close(self) -> None:
        assert self.goes_on.is_set(), "closed under an fsync"
        self.closed += 1
        self._db.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


@pytest.mark.parametrize("sync", ["always", "group", "off"])
def test_it_is_never_closed_under_an_fsync_that_hangs(
    tmp_path: Path, sync: StoreSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_store, "CLOSE_SECONDS_MAX", 0.05)
    rig = Rig(tmp_path / "store", sync)
    assert rig.write(put(b"a", b"1")) == Status.OK
    disk = HangingDisk(rig.store._opened())
    rig.store._db = cast(rocksdict.Rdict, disk)
    done: queue.SimpleQueue[Status] = queue.SimpleQueue()
    rig.store.write([put(b"b", b"2")], done.put)
    sealing = threading.Thread(target=rig.store.make_durable)  # where `sync` is "off" the fsync is this one
    sealing.start()
    assert disk.hangs.wait(60)
    for _ in range(2):
        rig.store.close()
    assert disk.closed == 0
    assert ["left open" in text and "look at the disk" in text for text in rig.reports] == [True, True]
    assert rig.store.get(NS, b"a") == b"1"
    assert rig.write(put(b"c", b"3")) == Status.NOT_WRITABLE
    disk.goes_on.set()
    assert done.get(timeout=60) == Status.OK, "what was under way is finished and answered"
    sealing.join(60)
    monkeypatch.undo()
    rig.store.close()
    assert (disk.closed, len(rig.reports)) == (1, 2)
    again = Rig(rig.folder)
    assert again.store.multi_get(NS, [b"a", b"b", b"c"]) == [b"1", b"2", None]
    again.store.close()
