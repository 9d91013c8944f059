"""The store: what is acknowledged is there, in the order of its keys, and a refusal says why."""

from __future__ import annotations

import os
import queue
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from enclave_os.wire import kv
from enclave_os.wire.kv import Operation, OperationKind, Scan
from enclave_os.wire.rpc import METHODS, Method, Status
from enclave_os_host import kv_store, rocksdb_errors, rocksdb_options
from enclave_os_host.handlers import Handler, Later, Refused
from enclave_os_host.handlers.kv import kv_handlers
from enclave_os_host.kv_store import KVStore, StoreSync
from enclave_os_host.rocksdb_errors import StoreError

NS, OTHER = bytes(range(16)), bytes(range(16, 32))


def put(key: bytes, value: bytes, namespace: bytes = NS) -> Operation:
    return Operation(OperationKind.PUT, namespace, key, value)


def delete(key: bytes) -> Operation:
    return Operation(OperationKind.DELETE, NS, key)


def no_space(group: Sequence[kv_store._Write]) -> None:
    raise StoreError(Status.NO_SPACE, "the disk is full")


class Rig:
    """A store, what it reported, and writes that are waited for."""

    def __init__(self, folder: Path, sync: StoreSync = "group") -> None:
        self.reports: list[str] = []
        self.folder = folder
        self.store = KVStore(folder, sync=sync, cache_bytes=8 << 20, report=self.reports.append)

    def write(self, *operations: Operation, deferred: bool = False, number: int = 0, follows: bool = False) -> Status:
        done: queue.SimpleQueue[Status] = queue.SimpleQueue()
        self.store.write(operations, done.put, deferred=deferred, number=number, follows=follows)
        return done.get(timeout=20)


@pytest.fixture(params=["always", "group", "off"])
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(tmp_path / "store", request.param)
    yield rig
    rig.store.close()


def test_rows_come_back_also_after_another_start(rig: Rig) -> None:
    assert not rig.folder.exists(), "nothing is made before it is needed"
    assert rig.store.get(NS, b"a") is None
    assert rig.write(put(b"a", b"1"), put(b"empty", b""), put(b"a", b"of another", OTHER)) == Status.OK
    assert rig.write(put(b"b", b"2"), deferred=True) == Status.OK
    rig.store.close()
    again = Rig(rig.folder)
    assert again.store.get(NS, b"a") == b"1"
    assert again.store.get(OTHER, b"a") == b"of another"
    assert again.store.multi_get(NS, [b"b", b"none", b"empty"]) == [b"2", None, b""]
    assert again.write(delete(b"a")) == Status.OK
    assert again.store.get(NS, b"a") is None
    assert again.folder.stat().st_mode & 0o777 == 0o700
    assert (rig.reports, again.reports) == ([], [])
    again.store.close()


def test_a_namespace_that_was_never_written_is_empty_and_not_made(rig: Rig) -> None:
    assert rig.store.get(OTHER, b"a") is None
    assert rig.store.multi_get(OTHER, [b"a", b"b"]) == [None, None]
    assert rig.store.scan(Scan(OTHER, b"", b"", 5)) == ([], False)
    assert rig.store._families == {}


def test_a_batch_is_in_order(rig: Rig) -> None:
    assert rig.write(put(b"a", b"1"), delete(b"a"), put(b"b", b"1"), put(b"b", b"2")) == Status.OK
    assert rig.store.multi_get(NS, [b"a", b"b"]) == [None, b"2"]
    assert rig.write(*(put(bytes((number,)), b"x") for number in range(10, 20))) == Status.OK
    assert rig.write(Operation(OperationKind.DELETE_RANGE, NS, b"\x0c", b"\x12")) == Status.OK
    rows, more = rig.store.scan(Scan(NS, b"\x0a", b"\x20", 100))
    assert ([key[0] for key, _ in rows], more) == ([10, 11, 18, 19], False)


def test_scans_page_by_count_and_by_size(rig: Rig) -> None:
    rows = [(bytes((number,)), bytes(kv.KV_VALUE_SIZE_MAX)) for number in range(5)]
    assert rig.write(*(put(key, value) for key, value in rows[:1])) == Status.OK
    for key, value in rows[1:]:
        assert rig.write(put(key, value)) == Status.OK
    assert rig.store.scan(Scan(NS, b"", b"", 3)) == (rows[:3], True)
    assert rig.store.scan(Scan(NS, b"", b"", 5)) == (rows[:4], True), "five do not fit a reply"
    assert rig.store.scan(Scan(NS, b"\3", b"\4", 3)) == (rows[3:4], False)
    assert rig.store.scan(Scan(NS, b"\4", b"", 1)) == (rows[4:], False)
    assert rig.store.scan(Scan(NS, b"\5", b"", 1)) == ([], False)


def test_a_batch_follows_only_what_was_written(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rig.write(put(b"a", b"1"), number=7, follows=True) == Status.OUT_OF_TURN, "nothing was written yet"
    assert rig.write(put(b"a", b"1"), number=7) == Status.OK
    assert rig.write(put(b"free", b"1")) == Status.OK, "what has no number is no link"
    assert rig.write(put(b"b", b"1"), number=8, follows=True) == Status.OK
    assert rig.write(put(b"d", b"1"), number=10, follows=True) == Status.OUT_OF_TURN, "9 never came"
    write = rig.store._write
    monkeypatch.setattr(rig.store, "_write", no_space)
    assert rig.write(put(b"c", b"1"), number=9, follows=True) == Status.NO_SPACE
    monkeypatch.setattr(rig.store, "_write", write)  # there is space again before the next is looked at
    assert rig.write(put(b"d", b"1"), number=10, follows=True) == Status.OUT_OF_TURN
    assert rig.store.multi_get(NS, [b"a", b"b", b"c", b"d"]) == [b"1", b"1", None, None]
    assert rig.write(put(b"c", b"1"), number=9) == Status.OK, "again: it need not follow"
    assert rig.write(put(b"d", b"1"), number=10, follows=True) == Status.OK
    assert rig.store.multi_get(NS, [b"c", b"d"]) == [b"1", b"1"]


def test_what_follows_shares_a_group_with_what_it_follows_or_its_refusal(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", "group")
    assert rig.write(put(b"first", b""), number=4) == Status.OK
    done: queue.SimpleQueue[tuple[int, Status]] = queue.SimpleQueue()

    def write(number: int) -> kv_store._Write:
        row = [put(bytes((number,)), b"x")]
        return kv_store._Write(row, 2, False, lambda status: done.put((number, status)), number, True)

    with rig.store._changed:  # all wait before the first is taken
        rig.store._queue.extend(map(write, (5, 6, 8, 7, 8)))
        rig.store._wake_thread()
    told = [done.get(timeout=20) for _ in range(5)]
    ok, refused = Status.OK, Status.OUT_OF_TURN
    assert sorted(told) == sorted([(5, ok), (6, ok), (8, refused), (7, ok), (8, ok)])
    assert rig.store.syncs == 2, "the first, and one for all that wait"
    rig.store.close()


def test_writes_that_wait_share_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    for sync in ("always", "group"):
        rig = Rig(tmp_path / sync, sync)
        assert rig.write(put(b"first", b"")) == Status.OK
        done: queue.SimpleQueue[Status] = queue.SimpleQueue()
        with rig.store._changed:  # nobody takes any before all wait
            for number in range(100):
                rig.store._queue.append(kv_store._Write([put(bytes((number,)), b"x")], 2, False, done.put))
            rig.store._wake_thread()
        assert [done.get(timeout=20) for _ in range(100)] == [Status.OK] * 100
        counts[sync] = rig.store.syncs
        rig.store.close()
    assert counts == {"always": 101, "group": 2}


def test_a_write_behind_none_is_in_the_log_when_its_call_returns(tmp_path: Path) -> None:
    """In "off" also answered: no thread has anything to do with it. In "group" one makes it durable."""
    told: queue.SimpleQueue[tuple[Status, str]] = queue.SimpleQueue()
    settled: queue.SimpleQueue[None] = queue.SimpleQueue()
    for sync, thread in (("off", None), ("group", "kv-sync")):
        rig = Rig(tmp_path / sync, cast(StoreSync, sync))
        rig.store.write([put(b"a", b"1")], lambda status: told.put((status, threading.current_thread().name)))
        assert rig.store.get(NS, b"a") == b"1"
        assert told.get(timeout=20) == (Status.OK, thread or threading.current_thread().name)
        assert rig.store._thread is None
        rig.store.settled(lambda: settled.put(None))
        settled.get(timeout=20)
        rig.store.close()


def test_a_write_that_must_wait_for_rocksdb_goes_to_the_thread_before_those_that_came_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path / "store", "off")
    told: queue.SimpleQueue[tuple[int, Status, str]] = queue.SimpleQueue()

    def write(number: int, value: bytes) -> None:
        rig.store.write([put(b"a", value)], lambda status: told.put((number, status, threading.current_thread().name)))

    rig.write(put(b"first", b""))
    write_now, stalled = rig.store._write, list[float]()

    def stalling(group: Sequence[kv_store._Write]) -> None:
        if not stalled:
            stalled.append(rig.store._patience)
            write(2, b"second")  # which comes meanwhile
            raise StoreError(Status.BUSY, "Write stall")
        write_now(group)

    monkeypatch.setattr(rig.store, "_write", stalling)
    write(1, b"first")
    assert [told.get(timeout=20) for _ in range(2)] == [(1, Status.OK, "kv-store"), (2, Status.OK, "kv-store")]
    assert rig.store.get(NS, b"a") == b"second"
    assert stalled == [0.0]
    rig.store.close()


def test_the_fsync_of_a_write_begins_before_the_next_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else both have the later one, and the first is answered late."""
    monkeypatch.setattr(kv_store, "HAND_OVER_SECONDS", 20.0)
    rig = Rig(tmp_path / "store", "group")
    assert rig.write(put(b"first", b"")) == Status.OK
    gate, told, make_durable = threading.Event(), queue.SimpleQueue[Status](), rig.store._make_durable

    def held() -> Status:
        gate.wait(20)
        return make_durable()

    monkeypatch.setattr(rig.store, "_make_durable", held)
    while rig.store._syncing:
        os.sched_yield()  # until its thread waits again
    for _ in range(2):
        rig.store.write([put(b"a", b"1")], told.put)
    assert len(rig.store._appended) == 1, "the first is under way"
    gate.set()
    assert [told.get(timeout=20) for _ in range(2)] == [Status.OK] * 2
    assert rig.store.syncs == 3
    rig.store.close()


def test_a_store_that_is_closed_refuses_and_has_made_durable_what_it_took(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", "group")
    told: queue.SimpleQueue[Status] = queue.SimpleQueue()
    for number in range(50):
        rig.store.write([put(b"%d" % number, b"x")], told.put)
    rig.store.close()
    assert [told.get(timeout=20) for _ in range(50)] == [Status.OK] * 50
    rig.store.write([put(b"late", b"x")], told.put)
    assert told.get(timeout=20) == Status.NOT_WRITABLE
    rig.store.settled(lambda: told.put(Status.OK))
    assert told.get(timeout=20) == Status.OK


def test_deferred_writes_cost_no_fsync_and_keep_their_order(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", "always")
    for number in range(10):
        assert rig.write(put(b"a", bytes((number,))), deferred=True) == Status.OK
    assert rig.store.syncs == 0
    assert rig.write(put(b"b", b"")) == Status.OK
    assert (rig.store.syncs, rig.store.get(NS, b"a")) == (1, b"\x09")
    rig.store.close()


def test_a_stall_of_compaction_delays_writes_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RocksDB stops writers that are faster than its compaction: they wait, each write goes, and the store lives."""
    monkeypatch.setattr(rocksdb_options, "WRITE_BUFFER_SIZE", 64 << 10)
    monkeypatch.setattr(kv_store, "STALL_SECONDS_MAX", 60.0)
    rig = Rig(tmp_path / "store", "off")
    stalls = []
    status = rocksdb_errors._status

    def noted(what: str, text: str) -> Status:
        stalls.append(status(what, text))
        return stalls[-1]

    monkeypatch.setattr(rocksdb_errors, "_status", noted)
    done: queue.SimpleQueue[Status] = queue.SimpleQueue()
    written = 0
    while not stalls:
        for _ in range(100):
            rig.store.write([put(b"%d" % written, bytes(30_000))], done.put)
            written += 1
        assert {done.get(timeout=60) for _ in range(100)} == {Status.OK}
        assert written < 100_000, "RocksDB never stalled: this test looks at nothing"
    assert set(stalls) == {Status.BUSY}
    assert rig.reports == []
    assert all(rig.store.get(NS, b"%d" % number) is not None for number in range(written))
    rig.store.close()


def test_namespaces_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_store, "NAMESPACES_MAX", 1)
    rig = Rig(tmp_path / "store")
    assert rig.write(put(b"a", b"1")) == Status.OK
    assert rig.write(put(b"a", b"1", OTHER)) == Status.TOO_BIG
    assert rig.write(put(b"a", b"2")) == Status.OK
    rig.store.close()


def test_after_the_end_nothing_is_taken(rig: Rig) -> None:
    assert rig.write(put(b"a", b"1")) == Status.OK
    rig.store.close()
    rig.store.close()
    assert rig.write(put(b"b", b"1")) == Status.NOT_WRITABLE
    with pytest.raises(StoreError):
        rig.store.get(NS, b"a")


def test_a_store_that_does_not_open_says_so_once_and_looks_again_later(tmp_path: Path) -> None:
    now = [0.0]
    reports: list[str] = []
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    (folder / "CURRENT").write_text("nonsense")
    store = KVStore(folder, sync="group", cache_bytes=8 << 20, report=reports.append, monotonic=lambda: now[0])
    for _ in range(3):
        with pytest.raises(StoreError):
            store.get(NS, b"a")
    assert len(reports) == 1
    assert "could not open" in reports[0]
    (folder / "CURRENT").unlink()
    now[0] = kv_store.OPEN_AGAIN_SECONDS
    assert store.get(NS, b"a") is None
    store.close()


def test_two_of_one_folder_refuse_each_other(rig: Rig) -> None:
    assert rig.write(put(b"a", b"1")) == Status.OK
    second = Rig(rig.folder)
    with pytest.raises(StoreError, match="lock"):
        second.store.get(NS, b"a")
    second.store.close()


def test_reads_beside_writes_see_whole_batches_only(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", "group")
    keys = [bytes((number,)) for number in range(5)]
    stop = threading.Event()
    assert rig.write(*(put(key, b"0") for key in keys)) == Status.OK
    acknowledged: list[Status] = []

    def write() -> None:
        for number in range(300):
            acknowledged.append(rig.write(*(put(key, b"%d" % number) for key in keys)))
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    last = 0
    while not stop.is_set():
        values = rig.store.multi_get(NS, keys)
        numbers = [int(value) for value in values if value is not None]
        assert len(numbers) == 5
        assert min(numbers) >= last, "no older one after a newer one"
        last = min(numbers)
        for key, _ in rig.store.scan(Scan(NS, b"", b"", 10))[0]:
            assert key in keys
    writer.join()
    assert acknowledged == [Status.OK] * 300
    assert rig.store.multi_get(NS, keys) == [b"299"] * 5
    rig.store.close()


def test_it_does_what_a_dictionary_does(rig: Rig) -> None:
    dice = random.Random(5)
    model: dict[bytes, bytes] = {}
    for _ in range(300):
        key = bytes((dice.randrange(20),)) * dice.randrange(1, 3)
        if dice.random() < 0.7:
            model[key] = value = dice.randbytes(dice.randrange(40))
            assert rig.write(put(key, value)) == Status.OK
        else:
            model.pop(key, None)
            assert rig.write(delete(key)) == Status.OK
        start, end = sorted(bytes((dice.randrange(20),)) for _ in range(2))
        want = sorted((key, value) for key, value in model.items() if start <= key < end)
        if end > start:
            assert rig.store.scan(Scan(NS, start, end, 1000)) == (want, False)
        assert rig.store.get(NS, key) == model.get(key)


# -- handlers ---------------------------------------------------------------------------------------------------------


def settled(handlers: dict[Method, Handler], method: Method, request: bytes) -> tuple[Status, bytes]:
    spec = METHODS[method]
    assert spec.request_size_min <= len(request) <= spec.request_size_max
    reply = handlers[method](request)
    outcome: queue.SimpleQueue[tuple[Status, bytes]] = queue.SimpleQueue()
    if isinstance(reply, Later):
        reply.when_done(lambda status, payload: outcome.put((status, payload)))
        status, payload = outcome.get(timeout=20)
    else:
        status, payload = Status.OK, reply
    if status == Status.OK:
        assert spec.reply_size_min <= len(payload) <= spec.reply_size_max
    return status, payload


def test_every_method_goes_the_whole_way(rig: Rig) -> None:
    handlers = kv_handlers(rig.store)

    def ask(method: Method, request: bytes) -> tuple[Status, bytes]:
        return settled(handlers, method, request)

    biggest = (b"k" * kv.KV_KEY_SIZE_MAX, bytes(kv.KV_VALUE_SIZE_MAX))
    assert ask(Method.KV_PUT, kv.encode_put(NS, *biggest)) == (Status.OK, b"")
    operations: Sequence[Operation] = [put(b"a", b"1"), put(b"b", b"2"), delete(b"b")]
    assert ask(Method.KV_BATCH, kv.encode_batch(operations, kv.WriteFlag.DEFERRED)) == (Status.OK, b"")
    status, reply = ask(Method.KV_GET, kv.encode_get(NS, biggest[0]))
    assert (status, kv.decode_get_reply(reply)) == (Status.OK, biggest[1])
    assert ask(Method.KV_DELETE, kv.encode_delete(NS, b"a")) == (Status.OK, b"")
    asked = [b"a", *[biggest[0]] * 5]
    status, reply = ask(Method.KV_MULTI_GET, kv.encode_multi_get(NS, asked))
    assert kv.decode_multi_get_reply(reply, 6) == [None, *[biggest[1]] * 4], "the fifth does not fit"
    scan = Scan(NS, b"", b"", 10)
    status, reply = ask(Method.KV_SCAN, kv.encode_scan(scan))
    assert kv.decode_scan_reply(reply, scan) == ([biggest], False)
    assert ask(Method.KV_SETTLED, b"") == (Status.OK, b"")


def test_a_number_of_a_chain_that_does_not_exist_is_refused(rig: Rig) -> None:
    handlers = kv_handlers(rig.store)
    flags, most = kv.WriteFlag.FOLLOWS, kv.RANGES_MAX << kv.CHAIN_SHIFT
    for number in (most, most + 1, 2**64 - 1):
        for request in (
            (Method.KV_BATCH, kv.encode_batch([put(b"a", b"1")], flags, number)),
            (Method.KV_BATCH, kv.encode_batch([put(b"a", b"1")], 0, number)),
        ):
            with pytest.raises(Refused) as refusal:
                settled(handlers, *request)
            assert refusal.value.status is Status.BAD_REQUEST
    assert rig.store.get(NS, b"a") is None
    batch = kv.encode_batch([put(b"a", b"1")], 0, most - 1)
    assert settled(handlers, Method.KV_BATCH, batch) == (Status.OK, b"")


def test_what_was_sent_before_is_settled_also_when_it_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range that is read anew begins behind what its former owner sent."""
    handlers = kv_handlers(rig.store)
    assert settled(handlers, Method.KV_SETTLED, b"") == (Status.OK, b""), "nothing was written yet"
    order: list[str] = []
    told: queue.SimpleQueue[None] = queue.SimpleQueue()

    def send() -> None:
        for key in (b"a", b"b", b"c"):
            rig.store.write([put(key, b"1")], lambda status: order.append(status.name))
        later = handlers[Method.KV_SETTLED](b"")
        assert isinstance(later, Later)
        later.when_done(lambda status, _: (order.append(f"settled {status.name}"), told.put(None))[1])
        told.get(timeout=20)

    send()
    monkeypatch.setattr(rig.store, "_write", no_space)
    send()
    assert order == [*["OK"] * 3, "settled OK", *["NO_SPACE"] * 3, "settled OK"]


def test_a_multi_get_reads_about_what_fits_its_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path / "store", "off")
    keys = [bytes((number,)) for number in range(64)]
    for key in keys:
        assert rig.write(put(key, bytes(16_000))) == Status.OK
    read: list[int] = []
    multi_get = rig.store.multi_get

    def counted(namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        read.append(len(keys))
        return multi_get(namespace, keys)

    monkeypatch.setattr(rig.store, "multi_get", counted)
    handlers = kv_handlers(rig.store)
    _, reply = settled(handlers, Method.KV_MULTI_GET, kv.encode_multi_get(NS, keys))
    assert kv.decode_multi_get_reply(reply, 64) == [bytes(16_000)] * 8
    assert sum(read) <= 16
    _, reply = settled(handlers, Method.KV_MULTI_GET, kv.encode_multi_get(NS, [b"none"] * 1000))
    assert kv.decode_multi_get_reply(reply, 1000) == [None] * 1000
    rig.store.close()


def test_a_batch_in_pieces_is_done_at_its_end_or_not_at_all(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", "group")
    handlers = kv_handlers(rig.store)

    def send(batch_id: int, index: int, end: bool, *operations: Operation) -> Status:
        method = Method.KV_BATCH_END if end else Method.KV_BATCH_PIECE
        try:
            return settled(handlers, method, kv.encode_piece(batch_id, index, operations))[0]
        except Refused as refusal:
            return refusal.status

    assert send(1, 0, False, put(b"a", b"1"), put(b"b", b"1")) == Status.OK
    assert send(2, 0, False, put(b"c", b"2")) == Status.OK, "another, in between"
    assert send(1, 1, False, put(b"c", b"1")) == Status.OK
    assert rig.store.multi_get(NS, [b"a", b"b", b"c"]) == [None] * 3
    assert send(1, 2, True, delete(b"b")) == Status.OK
    assert rig.store.multi_get(NS, [b"a", b"b", b"c"]) == [b"1", None, b"1"]
    for batch_id, index, end in [(1, 2, True), (3, 1, False), (2, 2, True), (2, 0, True)]:
        assert send(batch_id, index, end, put(b"a", b"wrong")) == Status.BAD_REQUEST
    assert send(4, 0, False, put(b"a", b"wrong")) == Status.OK
    assert send(4, 0, False, put(b"a", b"begun again")) == Status.OK
    assert send(4, 1, True, put(b"b", b"4")) == Status.OK
    assert rig.store.multi_get(NS, [b"a", b"b"]) == [b"begun again", b"4"]
    for batch_id in range(10, 10 + 9):  # one more than are kept
        assert send(batch_id, 0, False, put(b"x", b"y")) == Status.OK
    assert send(10, 1, True, put(b"x", b"y")) == Status.BAD_REQUEST
    assert send(11, 1, True, put(b"x", b"y")) == Status.OK
    assert [send(99, index, False, put(b"x", bytes(31_000))) for index in range(68)].count(Status.TOO_BIG) == 1
    rig.store.close()
