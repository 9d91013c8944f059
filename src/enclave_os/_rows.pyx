# Batches, multi-gets and their replies, written and read in one pass each; `Wanted` takes a row straight out of a reply.
#
# Who owns what: everything here works on private `bytes`. Whoever reads shared memory copies first, then decodes. Each
# size is checked against the end, and against its maximum, before anything is made from it.
#
# Cost: 0.1 us an operation written, 0.3 read. It does not: touch shared memory, know what a row means, or log.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy


_new = tuple.__new__


def limits():
    """The numbers that the C code was compiled with, by their names in `wire.kv`."""
    return {
        "KV_NAMESPACE_SIZE": NAMESPACE_SIZE, "KV_KEY_SIZE_MAX": KEY_MAX, "KV_VALUE_SIZE_MAX": VALUE_MAX,
        "KV_MESSAGE_SIZE_MAX": MESSAGE_MAX, "KV_OPERATIONS_MAX": COUNT_MAX,
    }


# -- batches: u8 flags, u8 namespaces, u16 operations; u64 number if NUMBERED; the namespaces; u8 kind, u8 namespace,
#    u16 key size, u32 value size, key, value for each ------------------------------------------------------------------

def encode_operations(operations not None, uint8_t flags, uint64_t number=0):
    """BATCH's request. Args: operations: (kind, namespace, key, value) each. number: 0: it has none. Raises: UsageError."""
    cdef list taken = list(operations)
    cdef dict places = {}
    cdef size_t size = 4
    cdef uint8_t kind
    cdef uint16_t count, key_size
    cdef uint32_t value_size
    cdef uint8_t *to
    cdef bytes namespace, key, value, payload
    if number:
        flags |= FLAG_NUMBERED
        size += 8
    if not _flags_agree(flags):
        raise UsageError(f"no such flags: {flags}")
    if not 1 <= len(taken) <= COUNT_MAX:
        raise UsageError(f"a batch has 1 to {COUNT_MAX} operations, not {len(taken)}")
    for one in taken:
        kind, namespace, key, value = one
        _own_namespace(namespace)
        _own_key(key)
        if not KIND_PUT <= kind <= KIND_DELETE_RANGE:
            raise UsageError(f"there is no operation {kind}")
        if value is None or PyBytes_GET_SIZE(value) > _value_max(kind):
            raise UsageError(f"the value of operation {kind} has at most {_value_max(kind)} bytes")
        if kind == KIND_DELETE_RANGE and not _below(key, value):
            raise UsageError("a range ends after it begins")
        if namespace not in places:
            places[namespace] = len(places)
        size += 8 + PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(value)
    size += NAMESPACE_SIZE * len(places)
    if size > MESSAGE_MAX or len(places) > NAMESPACES_MAX:
        raise UsageError(f"a batch of {size} bytes in {len(places)} namespaces, more than one message takes")
    payload = PyBytes_FromStringAndSize(NULL, size)
    to = <uint8_t *>PyBytes_AS_STRING(payload)
    to[0], to[1] = flags, <uint8_t>len(places)
    count = <uint16_t>len(taken)
    memcpy(to + 2, &count, 2)
    to += 4
    if number:
        memcpy(to, &number, 8)
        to += 8
    for namespace in places:
        memcpy(to, PyBytes_AS_STRING(namespace), NAMESPACE_SIZE)
        to += NAMESPACE_SIZE
    for one in taken:
        kind, namespace, key, value = one
        key_size, value_size = <uint16_t>PyBytes_GET_SIZE(key), <uint32_t>PyBytes_GET_SIZE(value)
        to[0], to[1] = kind, <uint8_t>places[namespace]
        memcpy(to + 2, &key_size, 2)
        memcpy(to + 4, &value_size, 4)
        memcpy(to + 8, PyBytes_AS_STRING(key), key_size)
        memcpy(to + 8 + key_size, PyBytes_AS_STRING(value), value_size)
        to += 8 + key_size + value_size
    return payload


def split_operations(operations not None, size_t size_max):
    """The operations in their order, as lists of which each fits a payload of `size_max` bytes. Raises: UsageError."""
    cdef list pieces = [], piece = []
    cdef set seen = set()
    cdef size_t size = 4, more
    for one in operations:
        _, namespace, key, value = one
        more = 8 + <size_t>len(key) + <size_t>len(value) + (0 if namespace in seen else NAMESPACE_SIZE)
        if piece and (size + more > size_max or len(piece) == COUNT_MAX or len(seen) == NAMESPACES_MAX):
            pieces.append(piece)
            piece, seen = [], set()
            size, more = 4, 8 + <size_t>len(key) + <size_t>len(value) + NAMESPACE_SIZE
        if size + more > size_max:
            raise UsageError(f"an operation of {more} bytes, more than one message takes")
        piece.append(one)
        seen.add(namespace)
        size += more
    if not piece:
        raise UsageError("a batch has at least one operation")
    pieces.append(piece)
    return pieces


def decode_operations(bytes payload not None, tuple kinds not None, type make not None):
    """BATCH's request: a `make` of (kind, namespace, key, value) for each, the flags, and the number or 0.

    Args: kinds: the kinds as they are to stand there, by number. make: a class of tuples.
    Raises: PeerProtocolError.
    """
    cdef rows_reader_t reader = rows_reader_t(<const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
    cdef const uint8_t *head = rows_take(&reader, 4)
    cdef uint8_t flags = head[0], namespace_count = head[1], kind, place
    cdef uint16_t count, key_size
    cdef uint32_t value_size
    cdef uint64_t number = 0
    cdef list namespaces = [], operations = []
    cdef bytes key, value
    memcpy(&count, head + 2, 2)
    if not _flags_agree(flags):
        raise PeerProtocolError("a flag that does not exist, or not beside another")
    _bounded_count(count)
    if flags & FLAG_NUMBERED:
        memcpy(&number, rows_take(&reader, 8), 8)
        if not number:
            raise PeerProtocolError("a batch of number 0")
    for _ in range(namespace_count):
        namespaces.append(_bytes(rows_take(&reader, NAMESPACE_SIZE), NAMESPACE_SIZE))
    for _ in range(count):
        head = rows_take(&reader, 8)
        kind, place = head[0], head[1]
        memcpy(&key_size, head + 2, 2)
        memcpy(&value_size, head + 4, 4)
        if not KIND_PUT <= kind <= KIND_DELETE_RANGE:
            raise PeerProtocolError(f"operation {kind}, which does not exist")
        if place >= namespace_count:
            raise PeerProtocolError("an operation in a namespace that the batch does not name")
        if value_size > _value_max(kind):
            raise PeerProtocolError("a value larger than its declared maximum")
        key = _key(&reader, key_size)
        value = _bytes(rows_take(&reader, value_size), value_size)
        if kind == KIND_DELETE_RANGE and not _below(key, value):
            raise PeerProtocolError("a range that ends before it begins")
        operations.append(_new(make, (kinds[kind], namespaces[place], key, value)))  # a NamedTuple's own is Python
    _end(&reader)
    return operations, flags, number


# -- multi-gets: namespace, u16 keys; u16 size, key for each -------------------------------------------------------------

def encode_keys(bytes namespace not None, keys not None):
    """MULTI_GET's request. Raises: UsageError."""
    cdef list taken = list(keys)
    cdef size_t size = NAMESPACE_SIZE + 2
    cdef uint16_t count, key_size
    cdef bytes key, payload
    cdef uint8_t *to
    _own_namespace(namespace)
    if not 1 <= len(taken) <= COUNT_MAX:
        raise UsageError(f"a multi-get has 1 to {COUNT_MAX} keys, not {len(taken)}")
    for key in taken:
        _own_key(key)
        size += 2 + PyBytes_GET_SIZE(key)
    if size > MESSAGE_MAX:
        raise UsageError(f"a payload of more than {MESSAGE_MAX} bytes")
    payload = PyBytes_FromStringAndSize(NULL, size)
    to = <uint8_t *>PyBytes_AS_STRING(payload)
    memcpy(to, PyBytes_AS_STRING(namespace), NAMESPACE_SIZE)
    count = <uint16_t>len(taken)
    memcpy(to + NAMESPACE_SIZE, &count, 2)
    to += NAMESPACE_SIZE + 2
    for key in taken:
        key_size = <uint16_t>PyBytes_GET_SIZE(key)
        memcpy(to, &key_size, 2)
        memcpy(to + 2, PyBytes_AS_STRING(key), key_size)
        to += 2 + key_size
    return payload


def decode_keys(bytes payload not None):
    """MULTI_GET's request: namespace and keys. Raises: PeerProtocolError."""
    cdef rows_reader_t reader = rows_reader_t(<const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
    cdef bytes namespace = _bytes(rows_take(&reader, NAMESPACE_SIZE), NAMESPACE_SIZE)
    cdef uint16_t count, key_size
    cdef list keys = []
    memcpy(&count, rows_take(&reader, 2), 2)
    _bounded_count(count)
    for _ in range(count):
        memcpy(&key_size, rows_take(&reader, 2), 2)
        keys.append(_key(&reader, key_size))
    _end(&reader)
    return namespace, keys


# -- their replies: u16 values; u8 found, u32 size, value for each -------------------------------------------------------

def encode_values(values not None):
    """MULTI_GET's reply with as many of the values as fit, and how many those are."""
    cdef list taken = list(values)
    cdef size_t size = 2, more
    cdef uint16_t count = 0
    cdef uint32_t value_size
    cdef bytes value, payload
    cdef uint8_t *to
    for value in taken:
        more = 5 + (0 if value is None else PyBytes_GET_SIZE(value))
        if size + more > MESSAGE_MAX or count == COUNT_MAX:
            break
        size += more
        count += 1
    payload = PyBytes_FromStringAndSize(NULL, size)
    to = <uint8_t *>PyBytes_AS_STRING(payload)
    memcpy(to, &count, 2)
    to += 2
    for value in taken[:count]:
        value_size = 0 if value is None else <uint32_t>PyBytes_GET_SIZE(value)
        to[0] = value is not None
        memcpy(to + 1, &value_size, 4)
        if value_size:
            memcpy(to + 5, PyBytes_AS_STRING(value), value_size)
        to += 5 + value_size
    return payload, count


def decode_values(bytes payload not None, Py_ssize_t asked):
    """MULTI_GET's reply: the first values of those asked for, in that order. Raises: PeerProtocolError."""
    cdef rows_reader_t reader = rows_reader_t(<const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
    cdef const uint8_t *head
    cdef uint16_t count
    cdef uint32_t value_size
    cdef list values = []
    memcpy(&count, rows_take(&reader, 2), 2)
    if not 1 <= count <= asked:
        raise PeerProtocolError(f"{count} values in answer to {asked} keys")
    for _ in range(count):
        head = rows_take(&reader, 5)
        value_size = _value_size(head)
        value = _bytes(rows_take(&reader, value_size), value_size)
        values.append(value if head[0] else None)
    _end(&reader)
    return values


# -- rows in their place: what a reply brings goes to who waits for it, without becoming a Python object first ----------

cdef class Wanted:
    """A row that is asked for. `key`: by which. See _rows.pxd; this one takes nothing."""

    def refuse(self, error):
        """There is no answer: `error` says why. What was answered stays."""
        raise NotImplementedError

    cdef int take(self, const uint8_t *value, size_t size, bint found) except -1:
        raise NotImplementedError


@cython.final
cdef class WantedValue(Wanted):
    """A row whose value is wanted as it is: `future` gets it, None: there is no row."""

    cdef object _future

    def __cinit__(self, bytes key not None, future not None):
        self.key = key
        self._future = future

    def refuse(self, error):
        if not self._future.done():
            self._future.set_exception(error)

    cdef int take(self, const uint8_t *value, size_t size, bint found) except -1:
        if not self._future.done():
            self._future.set_result(_bytes(value, size) if found else None)
        return 0


def take_values(wanted not None, bytes record not None, Py_ssize_t start):
    """MULTI_GET's reply, from `start` on, for those who asked, in their order. Returns how many it answered, at least one.

    The whole reply is checked before anybody gets a row. Raises: PeerProtocolError: nobody got one.
    """
    cdef list taken = list(wanted)
    cdef rows_reader_t reader = _reader(record, start)
    cdef rows_reader_t again
    cdef const uint8_t *head
    cdef uint16_t count
    cdef uint32_t size
    cdef Py_ssize_t index
    memcpy(&count, rows_take(&reader, 2), 2)
    if not 1 <= count <= len(taken):
        raise PeerProtocolError(f"{count} values in answer to {len(taken)} keys")
    again = reader
    for _ in range(count):
        rows_take(&reader, _value_size(rows_take(&reader, 5)))
    _end(&reader)
    for index in range(count):
        head = rows_take(&again, 5)
        size = _value_size(head)
        (<Wanted?>taken[index]).take(rows_take(&again, size), size, head[0])
    return count


def take_value(Wanted wanted not None, bytes record not None, Py_ssize_t start):
    """GET's reply, from `start` on, for who asked. Returns 1. Raises: PeerProtocolError: it got nothing."""
    cdef rows_reader_t reader = _reader(record, start)
    cdef uint8_t found = rows_take(&reader, 1)[0]
    if found > 1:
        raise PeerProtocolError(f"a yes or no that is {found}")
    if not found:
        _end(&reader)
    elif reader.left > VALUE_MAX:
        raise PeerProtocolError("a value larger than its declared maximum")
    wanted.take(reader.at, reader.left, found)
    return 1


# -- fields -----------------------------------------------------------------------------------------------------------

cdef const uint8_t *rows_take(rows_reader_t *reader, size_t size) except NULL:
    """The one bounds check: `size` bytes, or the error."""
    cdef const uint8_t *at = reader.at
    if size > reader.left:
        raise PeerProtocolError("a payload that ends before its fields do")
    reader.at += size
    reader.left -= size
    return at


cdef rows_reader_t _reader(bytes record, Py_ssize_t start) except *:
    """From `start` on: our caller's number, which lies in the record."""
    if not 0 <= start <= PyBytes_GET_SIZE(record):
        raise UsageError(f"no record of {len(record)} bytes has a payload at {start}")
    return rows_reader_t(<const uint8_t *>PyBytes_AS_STRING(record) + start, PyBytes_GET_SIZE(record) - start)


cdef uint32_t _value_size(const uint8_t *head) except? <uint32_t>-1:
    """Of one value in a reply, by its five bytes of head; none has a size that an error could be taken for."""
    cdef uint32_t size
    if head[0] > 1:
        raise PeerProtocolError(f"a yes or no that is {head[0]}")
    memcpy(&size, head + 1, 4)
    if size > (VALUE_MAX if head[0] else 0):
        raise PeerProtocolError("a field larger than its declared maximum")
    return size


cdef int _end(const rows_reader_t *reader) except -1:
    if reader.left:
        raise PeerProtocolError("a payload with bytes after its last field")
    return 0


cdef inline bytes _bytes(const uint8_t *at, size_t size):
    return PyBytes_FromStringAndSize(<const char *>at, size)


cdef bytes _key(rows_reader_t *reader, uint16_t size):
    if not 1 <= size <= KEY_MAX:
        raise PeerProtocolError(f"a key of {size} bytes")
    return _bytes(rows_take(reader, size), size)


cdef bint _flags_agree(uint8_t flags) noexcept:
    """A batch is deferred, or has a number, with or without the one before it, or nothing of it."""
    return flags <= FLAG_NUMBERED or flags == FLAG_NUMBERED | FLAG_FOLLOWS


cdef int _bounded_count(uint16_t count) except -1:
    if not 1 <= count <= COUNT_MAX:
        raise PeerProtocolError(f"a count of {count}")
    return 0


cdef int _own_namespace(bytes namespace) except -1:
    if namespace is None or PyBytes_GET_SIZE(namespace) != NAMESPACE_SIZE:
        raise UsageError(f"a namespace has {NAMESPACE_SIZE} bytes")
    return 0


cdef int _own_key(bytes key) except -1:
    if key is None or not 1 <= PyBytes_GET_SIZE(key) <= KEY_MAX:
        raise UsageError(f"a key has 1 to {KEY_MAX} bytes")
    return 0


cdef inline uint32_t _value_max(uint8_t kind) noexcept:
    return VALUE_MAX if kind == KIND_PUT else KEY_MAX if kind == KIND_DELETE_RANGE else 0


cdef inline bint _below(bytes one, bytes other) noexcept:
    cdef size_t size = PyBytes_GET_SIZE(one), other_size = PyBytes_GET_SIZE(other)
    cdef int order = memcmp(PyBytes_AS_STRING(one), PyBytes_AS_STRING(other), min(size, other_size))
    return order < 0 or (order == 0 and size < other_size)


# Last, as in `_ring.pyx`: whoever imports this module first comes here again through the door.
from enclave_os.wire.errors import PeerProtocolError, UsageError
