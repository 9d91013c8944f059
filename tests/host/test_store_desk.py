"""Which store is read and written: that of the measurement that was loaded, beside its sealed configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclave_os.wire import kv
from enclave_os.wire.kv import Operation, OperationKind, Scan
from enclave_os.wire.kv_settings import KV
from enclave_os.wire.rpc import Method, SealLoadFlag, Status
from enclave_os_host.handlers import Later, Refused
from enclave_os_host.handlers.kv import PIECED_MAX, kv_handlers
from enclave_os_host.handlers.seal import SealStore
from enclave_os_host.handlers.store_desk import StoreDesk
from enclave_os_host.kv_store import KVStore, StoreSync

from .test_seal_handlers import MINE, OTHER, outcome

TABLE = bytes(16)


class Rig:
    def __init__(self, folder: Path, sync: StoreSync = "group") -> None:
        self.said: list[str] = []
        self.reads: list[None] = []
        self.told: list[str] = []
        self.seal = SealStore(folder, self.said.append, lambda: self.desk.make_durable())
        self.desk = StoreDesk(self.seal, KV(sync=sync), self.said.append, self.told.append)
        self.handlers = self.desk.handlers(lambda: self.reads.append(None))

    def load(self, measurement: bytes) -> bytes:
        return outcome(self.desk.load(measurement))[1]

    def put(self, key: bytes, value: bytes) -> Status:
        return outcome(self.handlers[Method.KV_PUT](kv.encode_put(TABLE, key, value)))[0]

    def get(self, key: bytes) -> bytes | None:
        return kv.decode_get_reply(outcome(self.handlers[Method.KV_GET](kv.encode_get(TABLE, key)))[1])


def test_each_measurement_has_its_own_and_says_whether_it_exists(tmp_path: Path) -> None:
    """KV5: the host tells of a store as soon as anything lies there."""
    rig = Rig(tmp_path)
    with pytest.raises(Refused):
        rig.put(b"k", b"early")
    assert rig.load(MINE) == bytes([0])
    assert rig.load(MINE) == bytes([0])  # nothing was stored
    assert rig.put(b"k", b"mine") is Status.OK
    assert rig.load(MINE) == bytes([SealLoadFlag.STORE])
    assert rig.get(b"k") == b"mine"
    assert rig.load(OTHER) == bytes([0])
    assert rig.get(b"k") is None
    assert rig.load(MINE) == bytes([SealLoadFlag.STORE])
    assert rig.get(b"k") == b"mine"
    assert rig.reads == []
    assert (tmp_path / "sealed" / MINE.hex() / "store" / "CURRENT").is_file()
    scan = rig.handlers[Method.KV_SCAN](kv.encode_scan(Scan(TABLE, b"", b"", 10)))
    assert kv.decode_scan_reply(outcome(scan)[1], Scan(TABLE, b"", b"", 10)) == ([(b"k", b"mine")], False)
    assert rig.reads == [None]
    rig.desk.close()
    former = [line for line in rig.said if "the former state lies untouched" not in line]
    assert former == []


def test_every_method_of_rows_is_answered(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.load(MINE)
    assert kv_handlers(rig.desk._store).keys() | {Method.KV_BACKUP} == rig.handlers.keys()  # type: ignore[arg-type]  # loaded
    rig.desk.close()


def test_a_worker_begins_behind_what_another_wrote(tmp_path: Path) -> None:
    """Whoever takes over a range reads it when nothing of its former owner waits any more."""
    rig = Rig(tmp_path)
    successor = rig.desk.handlers(lambda: None)
    with pytest.raises(Refused):
        successor[Method.KV_SETTLED](b"")
    rig.load(MINE)
    order: list[str] = []
    for number in range(50):
        written = rig.handlers[Method.KV_PUT](kv.encode_put(TABLE, b"%d" % number, bytes(1000)))
        assert isinstance(written, Later)
        written.when_done(lambda status, _: order.append(status.name))
    settled = successor[Method.KV_SETTLED](b"")
    assert isinstance(settled, Later)
    settled.when_done(lambda status, _: order.append("settled"))
    assert rig.put(b"last", b"") is Status.OK
    assert order == ["OK"] * 50 + ["settled"]
    rig.desk.close()


def test_pieces_of_one_worker_push_out_none_of_another(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.load(MINE)
    other = rig.desk.handlers(lambda: None)

    def piece(batch_id: int, index: int, key: bytes) -> bytes:
        return kv.encode_piece(batch_id, index, [Operation(OperationKind.PUT, TABLE, key, b"x")])

    assert rig.handlers[Method.KV_BATCH_PIECE](piece(1, 0, b"a")) == b""
    for batch_id in range(1, PIECED_MAX + 2):
        assert other[Method.KV_BATCH_PIECE](piece(batch_id, 0, b"theirs")) == b""
    assert outcome(rig.handlers[Method.KV_BATCH_END](piece(1, 1, b"b"))) == (Status.OK, b"")
    with pytest.raises(Refused):
        other[Method.KV_BATCH_END](piece(1, 1, b"theirs"))
    assert (rig.get(b"a"), rig.get(b"b"), rig.get(b"theirs")) == (b"x", b"x", None)
    rig.desk.close()


def test_a_start_begins_behind_what_the_former_life_wrote(tmp_path: Path) -> None:
    """An enclave that was killed may have a batch in the store's queue: the next one reads rows when that is done."""
    rig = Rig(tmp_path)
    rig.load(MINE)
    put = rig.handlers[Method.KV_PUT]
    order: list[str] = []
    for number in range(50):
        written = put(kv.encode_put(TABLE, b"%d" % number, bytes(1000)))
        assert isinstance(written, Later)
        written.when_done(lambda status, _: order.append(status.name))
    loaded = rig.desk.load(MINE)
    assert isinstance(loaded, Later)
    loaded.when_done(lambda status, _: order.append("loaded"))
    assert rig.load(MINE)[:1] == bytes([SealLoadFlag.STORE])
    assert order == ["OK"] * 50 + ["loaded"]
    rig.desk.close()


def test_a_blob_never_knows_of_more_than_the_disk_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sync = "off"`: a checkpoint that outlives a write that does not would refuse every start from then on."""
    rig = Rig(tmp_path, "off")
    rig.desk.load(MINE)
    assert rig.put(b"k", b"mine") is Status.OK
    order: list[str] = []
    durable, whole = KVStore.make_durable, "enclave_os_host.handlers.seal.write_whole"
    monkeypatch.setattr(KVStore, "make_durable", lambda store: (order.append("store"), durable(store))[1])
    monkeypatch.setattr(whole, lambda path, data, mode: (order.append("blob"), path.write_bytes(data))[1])
    assert outcome(rig.seal.store(MINE + b"sealed")) == (Status.OK, b"")
    assert order == ["store", "blob"]
    rig.desk.close()


def test_a_log_that_cannot_be_made_durable_keeps_the_blob_from_being_written(tmp_path: Path) -> None:
    def refuse() -> None:
        raise OSError("no disk")

    store = SealStore(tmp_path, print, refuse)
    assert outcome(store.store(MINE + b"sealed")) == (Status.FAILED, b"")
    assert store.load(MINE) == bytes([0])


def named(version: int) -> bytes:
    return version.to_bytes(8, "little") + b"the root"


def test_a_backup_is_a_store_of_its_own_beside_its_configuration(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    backup = rig.handlers[Method.KV_BACKUP]
    with pytest.raises(Refused):
        backup(named(1))
    rig.load(MINE)
    assert rig.put(b"k", b"first") is Status.OK
    outcome(rig.seal.store(MINE + b"sealed"))
    assert outcome(backup(named(1))) == (Status.OK, b"")
    assert rig.put(b"k", b"second") is Status.OK
    assert outcome(backup(named(1))) == (Status.OK, b"")  # asked again: it is there
    outcome(rig.seal.store(MINE + b"later"))
    folder = rig.seal.folder_of(MINE) / "backups"
    assert [path.name for path in folder.iterdir()] == ["1-74686520726f6f74"]
    assert (folder / "1-74686520726f6f74" / "config.sealed").read_bytes() == b"sealed"
    copy = KVStore(folder / "1-74686520726f6f74" / "store", sync="group", cache_bytes=8 << 20, report=rig.said.append)
    assert (copy.get(TABLE, b"k"), rig.get(b"k")) == (b"first", b"second")
    copy.close()
    (folder / "2").write_text("in the way")
    (folder.parent / "config.sealed").unlink()
    assert outcome(backup(named(3))) == (Status.FAILED, b"")
    assert "could not be copied" in rig.said[-1]
    assert sorted(path.name for path in folder.iterdir()) == ["1-74686520726f6f74", "2"]
    rig.desk.close()
