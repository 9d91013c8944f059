# From a caller's name to its item, in one native call each way: what is the latest is looked up before the host is asked,
# and its row is judged, opened and made an item where it lies in the private copy of the reply.
#
# Invariant: an item is given only if its record was the latest when it was asked for and still is when it is opened, no
# batch under way changes it, and the anchor knows all that is there. Whatever else there is to think about (values in
# parts, what moved meanwhile, what the anchor does not know yet) goes to `again`, which thinks about it from the start.
#
# Cost: a get of 64 bytes 0.9 us in all of this file, of which 0.6 are AES-GCM (bench/bench_kv.py).
#
# It does not: talk to the host, wait, or raise what is wrong with a row: that goes to who waits for it.
cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from enclave_os._rows cimport Wanted
from enclave_os.kv._freshness cimport TAG_SIZE, Freshness, slot_t
from enclave_os.kv._record cimport NAME_MAX, Entry, Records

from enclave_os.errors import ClockUntrusted, InternalError, SealBroken
from enclave_os.wire.errors import UsageError

_new = tuple.__new__


@cython.final
cdef class Reads:
    """Begins reads of one store. Not for threads.

    Args:
        in_flight: places that batches under way change.
        anchoring: `ended`: nothing is read any more; `commits`, and then `unknown`: whether there are keys whose last
            change the anchor does not know.
        ask: `Store.read`.
        make_future: of the loop.
        trusted_ns: the trusted clock; raises ClockUntrusted.
        again: reads what cannot be answered here, whole, and tells the future.
        item: what is made of name, value and version; a class of tuples.
        unread: the value of an item of several whose value is in parts.
    """

    def __cinit__(self, Freshness fresh not None, dict in_flight not None, anchoring not None, ask not None,
                  make_future not None, trusted_ns not None, again not None, type item not None, unread not None):
        self._fresh, self._in_flight, self._anchoring, self._commits = fresh, in_flight, anchoring, anchoring.commits
        self._ask, self._make_future, self._trusted_ns, self._again = ask, make_future, trusted_ns, again
        self._item, self._unread, self._waiting = item, unread, {}

    def get(self, namespace not None, bytes name not None):
        """The future of an entry's item, None: there is none. Raises: UsageError."""
        cdef Records records = namespace.records
        if not 1 <= PyBytes_GET_SIZE(name) <= NAME_MAX:
            raise UsageError(f"a name has 1 to {NAME_MAX} bytes, not {len(name)}")
        return self._begin(namespace, records, records.name_token(name), name)

    def read(self, namespace not None, bytes token not None):
        """The same, of the entry that has this token."""
        return self._begin(namespace, namespace.records, token, None)

    def read_many(self, namespace not None, tokens not None, names):
        """Several; those that `moved` are to be read anew, once the future is done. Args: names: None: not known."""
        cdef Records records = namespace.records
        cdef ReadMany many = ReadMany.__new__(ReadMany)
        cdef slot_t *slot
        cdef Read read
        cdef Py_ssize_t index
        cdef bytes token
        cdef list reads = []
        many.items, many.moved, many.future = [None] * len(tokens), [], self._make_future()
        for index in range(len(tokens)):
            token = tokens[index]
            if self._is_elsewhere(records, token):
                many.moved.append(index)
                continue
            slot = self._fresh.slot(records.table, token)
            if slot != NULL:
                read = self._made(namespace, records, token, None if names is None else names[index], slot)
                read._many, read._index = many, index
                reads.append(read)
        many._left = len(reads)
        if many._left:
            self._ask(records.table, reads)
        else:
            many.future.set_result(None)
        return many

    cdef object _begin(self, namespace, Records records, bytes token, bytes name):
        cdef object future = self._make_future()
        cdef slot_t *slot
        cdef Read read
        cdef list waiting
        if self._anchoring.ended is not None or self._is_elsewhere(records, token):
            self._again(namespace, token, future)
            return future
        slot = self._fresh.slot(records.table, token)
        if slot == NULL:
            future.set_result(None)
            return future
        read = self._made(namespace, records, token, name, slot)
        read._future = future
        waiting = self._waiting.get(records.table)
        if waiting is None:
            waiting = self._waiting[records.table] = []
        waiting.append(read)
        if len(waiting) == 1:  # else they wait for their call already
            self._ask(records.table, waiting)
        return future

    cdef bint _is_elsewhere(self, Records records, bytes token) except -1:
        """What is the latest there, or whether it may be shown, is decided by a batch under way, or by the anchor."""
        if self._in_flight and (records.table, token) in self._in_flight:
            return True
        return self._commits and self._anchoring.unknown

    cdef Read _made(self, namespace, Records records, bytes token, bytes name, const slot_t *slot):
        cdef Read read = Read.__new__(Read)
        read.key, read._name = token, name
        read._reads, read._records, read._namespace = self, records, namespace
        read._version = slot.version
        memcpy(read._tag, slot.tag, TAG_SIZE)
        return read


@cython.final
cdef class Read(Wanted):
    """One row. `Reads` makes it."""

    def refuse(self, error):
        if self._many is None:
            if not self._future.done():
                self._future.set_exception(error)
        elif not self._many.future.done():
            self._many.future.set_exception(error)

    cdef int take(self, const uint8_t *value, size_t size, bint found) except -1:
        cdef Reads reads = self._reads
        cdef Entry entry
        cdef object item = None
        cdef slot_t *slot
        if (self._future if self._many is None else self._many.future).done():
            return 0
        slot = reads._fresh.slot(self._records.table, self.key)
        if (
            slot == NULL or slot.version != self._version or memcmp(slot.tag, self._tag, TAG_SIZE)
            or reads._is_elsewhere(self._records, self.key)
        ):
            return self._anew()
        try:
            if not found:
                raise SealBroken("the host denies a record that it was given")
            entry = self._records.open_row(self.key, value, size, self._version, self._tag, self._name)
            if entry.count and self._many is None:
                return self._anew()
            if not entry.expires_ns or reads._trusted_ns() < entry.expires_ns:
                item = _new(reads._item, (entry.name, reads._unread if entry.count else entry.value, entry.version))
        except (SealBroken, ClockUntrusted, InternalError) as error:
            self.refuse(error)
            return 0
        if self._many is None:
            self._future.set_result(item)
        else:
            self._many.items[self._index] = item
            self._count()
        return 0

    cdef int _anew(self) except -1:
        if self._many is None:
            self._reads._again(self._namespace, self.key, self._future)
        else:
            self._many.moved.append(self._index)
            self._count()
        return 0

    cdef int _count(self) except -1:
        cdef ReadMany many = self._many
        many._left -= 1
        if not many._left and not many.future.done():
            many.future.set_result(None)
        return 0


@cython.final
cdef class ReadMany:
    """Several rows that one caller waits for. `Reads` makes it."""
