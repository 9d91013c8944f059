# What a caller hands in is checked, and sealed into the rows of its batch, in one native call each.
#
# Who owns what: a `Waiting` holds what its caller gave; nothing of it is altered.
#
# Cost: a put of 64 bytes 0.4 us to check, of which 0.3 are its token; 0.9 to seal, of which 0.6 are AES-GCM.
#
# It does not: decide which writes share a batch (`SealedKV` does), know what is the latest, or talk to anybody.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from enclave_os.kv._record cimport TAG_SIZE, Records

from enclave_os.wire.errors import UsageError

_new = tuple.__new__
ACCEPT, DROP, STOP = range(3)
cdef uint64_t EXPIRY_MAX = (<uint64_t>1 << 63) - 1


def limits():
    """The numbers that the C code was compiled with, by their names in `kv.record` and `kv.batch`."""
    return {
        "NAME_SIZE_MAX": NAME_SIZE_MAX, "INLINE_SIZE_MAX": INLINE_SIZE_MAX, "VALUE_SIZE_MAX": VALUE_SIZE_MAX,
        "BATCH_SIZE_MAX": BATCH_SIZE_MAX, "CHANGES_MAX": CHANGES_MAX, "TABLES_MAX": TABLES_MAX,
    }


@cython.final
@cython.freelist(64)
cdef class Waiting:
    """A write that waits for its batch. `checked` makes it."""

    def __repr__(self):
        return f"<Waiting {len(self.places)} changes>"


def checked(changes not None, make_future not None):
    """A write that may wait. Args: changes: kept. make_future: of the loop. Raises: UsageError."""
    cdef Waiting waiting = Waiting.__new__(Waiting)
    cdef Records records
    cdef bytes name, value
    cdef Py_ssize_t count = len(changes), value_size
    waiting.changes, waiting.places = changes, []
    for namespace, name, value, expected, expires_ns in changes:
        if name is None or not 1 <= PyBytes_GET_SIZE(name) <= NAME_SIZE_MAX:
            raise UsageError(f"a name has 1 to {NAME_SIZE_MAX} bytes, not {len(name)}")
        waiting.size += CHANGE_SIZE + PyBytes_GET_SIZE(name) + len(namespace.app) + len(namespace.name)
        if value is not None:
            value_size = PyBytes_GET_SIZE(value)
            waiting.held += value_size
            if value_size <= INLINE_SIZE_MAX:
                waiting.size += value_size
            elif value_size <= VALUE_SIZE_MAX:
                waiting.large = True
            else:
                raise UsageError(f"a value has at most {VALUE_SIZE_MAX} bytes, not {value_size}")
        if expected is not None:
            waiting.conditional = True
        if not 0 <= expires_ns <= EXPIRY_MAX:
            raise UsageError("an entry's expiry is not a time")
        records = namespace.records
        waiting.places.append((records.table, records.name_token(name)))
    if not count or (count > 1 and len(set(waiting.places)) != count):
        raise UsageError("a batch has at least one change, and each key once")
    if count > TABLES_MAX and len({table for table, _ in waiting.places}) > TABLES_MAX:
        raise UsageError(f"a batch writes to at most {TABLES_MAX} namespaces")
    if waiting.size > BATCH_SIZE_MAX or count > CHANGES_MAX:
        raise UsageError(f"a batch has at most {CHANGES_MAX} changes and {BATCH_SIZE_MAX} bytes")
    waiting.future = make_future()
    return waiting


def pick(queue not None, dict in_flight not None, Py_ssize_t share, Py_ssize_t left, judge not None,
         list accepted not None):
    """Move writes that may share a batch from the queue's front to `accepted`: at most `share`, as far as they fit.

    Args:
        in_flight: places that batches under way change: who writes to one waits.
        left: rows that may still be added, with a namespace's row for each.
        judge: asked about a write that is given up, expects a version, or may add more rows than are left, with what is
            left for it and whether others are accepted already: ACCEPT; DROP: it was told; STOP: it waits.
    """
    cdef set places = set(), tables = set(), own
    cdef Waiting waiting
    cdef Py_ssize_t size = 0, count
    while len(accepted) < share and queue:
        waiting = queue[0]
        count = len(waiting.places)
        size += waiting.size
        if accepted and (size > BATCH_SIZE_MAX or len(places) + count > CHANGES_MAX):
            return
        for place in waiting.places:
            if place in places or place in in_flight:
                return
        own = {(<tuple>place)[0] for place in waiting.places}
        own -= tables
        if len(tables) + len(own) > TABLES_MAX:
            return
        if waiting.conditional or 2 * (len(places) + count) > left or waiting.future.done():
            verdict = judge(waiting, left - 2 * len(places), bool(accepted))
            if verdict == STOP:
                return
            if verdict == DROP:
                queue.popleft()
                continue
        queue.popleft()
        tables |= own
        places.update(waiting.places)
        accepted.append(waiting)


def seal_changes(batch not None, entered not None, enter not None, dict former not None, type make not None,
                 tuple kinds not None, parts_range not None):
    """The rows of all that waits for the batch, and what they are the latest of, in its `operations`, `latest`, `parts`.

    Args:
        entered: tables that are known to be in the catalog; `enter` has the batch enter one.
        former: ids of the parts that entries have now, by place: they are deleted.
        make: of operations, a class of tuples; kinds: PUT, DELETE, DELETE_RANGE.
        parts_range: where the parts of an entry lie, by its token and their id.
    """
    cdef list operations = batch.operations
    cdef dict latest = batch.latest, new_parts = batch.parts
    cdef uint64_t version = batch.version
    cdef object number = batch.version
    cdef Waiting waiting
    cdef Records records
    cdef tuple place
    cdef bytes table, token, name, value, record
    cdef Py_ssize_t index
    put, delete, delete_range = kinds
    for waiting in batch.waiting:
        index = 0
        for namespace, name, value, _, expires_ns in waiting.changes:
            place = waiting.places[index]
            table, token = place
            parts = None if waiting.parts is None else waiting.parts.get(index)
            index += 1
            if value is None:
                operations.append(_new(make, (delete, table, token, b"")))
                latest[place] = None
            else:
                if table not in entered:
                    enter(batch, namespace)
                records = namespace.records
                if parts is None:
                    record = records.seal_row(token, version, name, expires_ns, value, 0, 0)
                else:
                    record = records.seal_row(
                        token, version, name, expires_ns, parts.digest, parts.parts_id, len(parts.rows))
                operations.append(_new(make, (put, table, token, record)))
                latest[place] = (number, PyBytes_FromStringAndSize(
                    PyBytes_AS_STRING(record) + PyBytes_GET_SIZE(record) - TAG_SIZE, TAG_SIZE))
            if former or parts is not None:
                _replace(operations, new_parts, place, former.get(place), parts, make, delete_range, parts_range)


cdef int _replace(list operations, dict new_parts, tuple place, former, parts, type make, delete_range,
                  parts_range) except -1:
    """Delete the parts that an entry had, and remember those that it has, 0: none."""
    if former is not None:
        first, end = parts_range(place[1], former)
        operations.append(_new(make, (delete_range, place[0], first, end)))
    if former is not None or parts is not None:
        new_parts[place] = 0 if parts is None else parts.parts_id
    return 0
