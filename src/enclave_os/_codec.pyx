# Frame and RPC headers for Python, and a bounds-checked cursor over private bytes for their payloads. Layout and the C
# interface are in _codec.pxd.
#
# Who owns what: everything here works on private `bytes`. Whoever reads shared memory copies first, then decodes.
#
# Cost: one call, one bytes object or tuple. It does not: touch shared memory, know connections or methods, or log.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from enclave_os cimport _limits
from enclave_os._limits cimport FRAME_HEADER_SIZE, RING_CAPACITY_MAX, RPC_METHOD_MAX

# A record never exceeds half the largest ring; no encoder makes a larger one.
cdef enum:
    RECORD_SIZE_MAX = (RING_CAPACITY_MAX >> 1) - _limits.RECORD_HEADER_SIZE


def limits():
    """The numbers that the C code was compiled with, by the names of `wire.limits`."""
    return {
        "RING_CAPACITY_MIN": _limits.RING_CAPACITY_MIN,
        "RING_CAPACITY_MAX": _limits.RING_CAPACITY_MAX,
        "RING_CAPACITY_FLOOR": _limits.RING_CAPACITY_FLOOR,
        "RING_HEADER_SIZE": _limits.RING_HEADER_SIZE,
        "RECORD_HEADER_SIZE": _limits.RECORD_HEADER_SIZE,
        "RECORD_ALIGN": _limits.RECORD_ALIGN,
        "FRAME_HEADER_SIZE": _limits.FRAME_HEADER_SIZE,
        "RPC_HEADER_SIZE": _limits.RPC_HEADER_SIZE,
        "CONN_SLOT_BITS": _limits.CONN_SLOT_BITS,
        "CONN_GENERATION_MAX": _limits.CONN_GENERATION_MAX,
        "CONN_ID_INGRESS_MAX": _limits.CONN_ID_INGRESS_MAX,
        "FRAMES_PER_TURN_MAX": _limits.FRAMES_PER_TURN_MAX,
        "TCP_READ_SIZE_MAX": _limits.TCP_READ_SIZE_MAX,
        "PEER_ADDRESS_SIZE_MAX": _limits.PEER_ADDRESS_SIZE_MAX,
        "CLOSE_PAYLOAD_SIZE": _limits.CLOSE_PAYLOAD_SIZE,
        "CONNECT_TARGET_SIZE_MAX": _limits.CONNECT_TARGET_SIZE_MAX,
        "RPC_RING_CAPACITY_MIN": _limits.RPC_RING_CAPACITY_MIN,
        "RPC_METHOD_MAX": _limits.RPC_METHOD_MAX,
    }


# -- data frames ------------------------------------------------------------------------------------------------------

def encode_frame(kind, conn_id, bytes payload not None=b""):
    """One ring record of the data channel: 8 header bytes, then the payload.

    Args: kind: a `FrameKind`. conn_id: u32; 0 only where the frame belongs to no connection.
    Raises: UsageError: a field out of range.
    """
    cdef bytes record
    if not 1 <= kind <= FRAME_KIND_MAX or not 0 <= conn_id <= 0xFFFFFFFF:
        raise UsageError(f"no frame has kind {kind}, conn_id {conn_id}")
    record = _new_record(FRAME_HEADER_SIZE, payload)
    _put_word(record, 0, frame_word(<uint8_t>kind, <uint32_t>conn_id))
    return record


def decode_frame(bytes record not None):
    """(kind, conn_id, payload) of a private copy of a data record; whether it may come this way is `is_frame_allowed`.

    Raises: PeerProtocolError: cut short, unknown kind, or a field that must be zero is not.
    """
    cdef frame_t frame
    if PyBytes_GET_SIZE(record) < FRAME_HEADER_SIZE or not frame_decode(_word(record, 0), &frame):
        raise PeerProtocolError(Lie.FRAME)
    return frame.kind, frame.conn_id, record[FRAME_HEADER_SIZE:]


def is_frame_allowed(kind, conn_id, payload_size, *, bint to_enclave):
    """Whether such a frame may come this way: `frame_allowed` of the C interface; a test holds FRAME_RULES equal."""
    cdef frame_t frame
    if not 0 <= kind <= 0xFF or not 0 <= conn_id <= 0xFFFFFFFF or not 0 <= payload_size <= 0xFFFFFFFF:
        raise UsageError("a field does not fit the wire")
    frame.kind, frame.flags, frame.conn_id = <uint8_t>kind, 0, <uint32_t>conn_id
    return bool(frame_allowed(&frame, <uint32_t>payload_size, to_enclave))


# -- RPC --------------------------------------------------------------------------------------------------------------

def encode_rpc_request(req_id, method, bytes payload not None=b""):
    """One ring record of `rpc.to_host`: 16 header bytes, then the payload.

    Args: req_id: u64. method: u16.
    Raises: UsageError: a field out of range.
    """
    cdef bytes record
    if not 0 <= req_id < 1 << 64 or not 0 <= method <= RPC_METHOD_MAX:
        raise UsageError(f"no request has req_id {req_id}, method {method}")
    record = _new_record(RPC_HEADER_SIZE, payload)
    _put_word(record, 0, <uint64_t>req_id)
    _put_word(record, 8, rpc_request_word(<uint16_t>method, <uint32_t>PyBytes_GET_SIZE(payload)))
    return record


def decode_rpc_request(bytes record not None):
    """(req_id, method, payload) of a private copy of a request's record.

    Raises: PeerProtocolError: cut short, a size that is not the payload's, or a zero field that is not.
    """
    cdef rpc_request_t request
    if (PyBytes_GET_SIZE(record) < RPC_HEADER_SIZE or PyBytes_GET_SIZE(record) > RECORD_SIZE_MAX or not
            rpc_request_decode(_word(record, 0), _word(record, 8), <uint32_t>PyBytes_GET_SIZE(record), &request)):
        raise PeerProtocolError(Lie.RPC_HEADER)
    return request.req_id, request.method, record[RPC_HEADER_SIZE:]


def encode_rpc_reply(req_id, status, bytes payload not None=b""):
    """One ring record of `rpc.to_enclave`: 16 header bytes, then the payload.

    Args: req_id: u64, the request's. status: i32.
    Raises: UsageError: a field out of range.
    """
    cdef bytes record
    if not 0 <= req_id < 1 << 64 or not INT32_MIN <= status <= INT32_MAX:
        raise UsageError(f"no reply has req_id {req_id}, status {status}")
    record = _new_record(RPC_HEADER_SIZE, payload)
    _put_word(record, 0, <uint64_t>req_id)
    _put_word(record, 8, rpc_reply_word(<int32_t>status, <uint32_t>PyBytes_GET_SIZE(payload)))
    return record


def decode_rpc_reply(bytes record not None):
    """(req_id, status, payload) of a private copy of a reply's record. All three are what the peer says, no more.

    Raises: PeerProtocolError: cut short, or a size that is not the payload's.
    """
    return *decode_rpc_reply_head(record), record[RPC_HEADER_SIZE:]


def decode_rpc_reply_head(bytes record not None):
    """(req_id, status) of the same, for who reads the payload in its place, from RPC_HEADER_SIZE on. Raises: the same."""
    cdef rpc_reply_t reply
    if (PyBytes_GET_SIZE(record) < RPC_HEADER_SIZE or PyBytes_GET_SIZE(record) > RECORD_SIZE_MAX or not
            rpc_reply_decode(_word(record, 0), _word(record, 8), <uint32_t>PyBytes_GET_SIZE(record), &reply)):
        raise PeerProtocolError(Lie.RPC_HEADER)
    return reply.req_id, reply.status


cdef inline uint64_t _word(bytes record, Py_ssize_t position) noexcept:
    # The caller checked that eight bytes are there.
    cdef uint64_t word
    memcpy(&word, PyBytes_AS_STRING(record) + position, 8)
    return word


cdef inline void _put_word(bytes record, Py_ssize_t position, uint64_t word) noexcept:
    # Only into a record that nobody else has seen yet.
    memcpy(PyBytes_AS_STRING(record) + position, &word, 8)


cdef bytes _new_record(Py_ssize_t header_size, bytes payload):
    cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
    if size > RECORD_SIZE_MAX - header_size:
        raise UsageError(f"no record has {size} payload bytes")
    cdef bytes record = PyBytes_FromStringAndSize(NULL, header_size + size)
    memcpy(PyBytes_AS_STRING(record) + header_size, PyBytes_AS_STRING(payload), <size_t>size)
    return record


# -- payloads ---------------------------------------------------------------------------------------------------------

@cython.final
cdef class FrameReader:
    """A cursor over a private copy of a payload; all integers are little endian.

    Every read is checked against the end first. Too short, or too long at `end`, is the peer's fault.
    """

    cdef bytes _payload
    cdef Py_ssize_t _position   # 0 <= _position <= _size
    cdef Py_ssize_t _size

    def __cinit__(self, bytes payload not None):
        self._payload = payload
        self._position = 0
        self._size = PyBytes_GET_SIZE(payload)

    @property
    def remaining(self):
        """Bytes not read yet."""
        return self._size - self._position

    cdef const uint8_t *_take(self, Py_ssize_t size) except NULL:
        # The one bounds check: `size` bytes, or the error.
        cdef Py_ssize_t position = self._position
        if size < 0:
            raise UsageError("a size is not negative")
        if size > self._size - position:
            raise PeerProtocolError("a payload that ends before its fields do")
        self._position = position + size
        return <const uint8_t *>PyBytes_AS_STRING(self._payload) + position

    def read_u8(self):
        """One byte."""
        return self._take(1)[0]

    def read_u16(self):
        """Two bytes."""
        cdef uint16_t value
        memcpy(&value, self._take(2), 2)
        return value

    def read_u32(self):
        """Four bytes."""
        cdef uint32_t value
        memcpy(&value, self._take(4), 4)
        return value

    def read_u64(self):
        """Eight bytes."""
        cdef uint64_t value
        memcpy(&value, self._take(8), 8)
        return value

    def read_i32(self):
        """Four bytes, two's complement."""
        cdef int32_t value
        memcpy(&value, self._take(4), 4)
        return value

    def read_i64(self):
        """Eight bytes, two's complement."""
        cdef int64_t value
        memcpy(&value, self._take(8), 8)
        return value

    def read_zeros(self, Py_ssize_t size):
        """Skip `size` bytes that must be zero."""
        cdef const uint8_t *source = self._take(size)
        cdef Py_ssize_t index
        for index in range(size):
            if source[index]:
                raise PeerProtocolError("a reserved field that is not zero")

    def read_bytes(self, Py_ssize_t size):
        """The next `size` bytes."""
        cdef const uint8_t *source = self._take(size)
        return PyBytes_FromStringAndSize(<const char *>source, size)

    def read_sized(self, uint32_t size_max):
        """u32 size, then that many bytes; a larger size than `size_max` is a lie even when the bytes are there."""
        cdef uint32_t size
        memcpy(&size, self._take(4), 4)
        if size > size_max:
            raise PeerProtocolError("a field larger than its declared maximum")
        return self.read_bytes(size)

    def read_rest(self):
        """All that is left."""
        return self.read_bytes(self._size - self._position)

    def end(self):
        """Nothing may be left."""
        if self._position != self._size:
            raise PeerProtocolError("a payload with bytes after its last field")


@cython.final
cdef class FrameWriter:
    """Builds a payload of at most `size_max` bytes; all integers are little endian.

    Raises, in every call: UsageError: a value out of its range, or the payload would exceed `size_max`.
    """

    cdef bytearray _payload
    cdef Py_ssize_t _size_max

    def __cinit__(self, Py_ssize_t size_max):
        if not 0 <= size_max <= RECORD_SIZE_MAX:
            raise UsageError(f"no payload has {size_max} bytes")
        self._payload = bytearray()
        self._size_max = size_max

    @property
    def size(self):
        """Bytes written so far."""
        return len(self._payload)

    cdef int _put(self, const void *source, Py_ssize_t size) except -1:
        # The one bounds check.
        if size > self._size_max - len(self._payload):
            raise UsageError(f"a payload of more than {self._size_max} bytes")
        self._payload += (<const char *>source)[:size]
        return 0

    def write_u8(self, value):
        """One byte."""
        cdef uint8_t field = <uint8_t>_in_range(value, 0, 0xFF)
        self._put(&field, 1)

    def write_u16(self, value):
        """Two bytes."""
        cdef uint16_t field = <uint16_t>_in_range(value, 0, 0xFFFF)
        self._put(&field, 2)

    def write_u32(self, value):
        """Four bytes."""
        cdef uint32_t field = <uint32_t>_in_range(value, 0, 0xFFFFFFFF)
        self._put(&field, 4)

    def write_u64(self, value):
        """Eight bytes."""
        cdef uint64_t field = <uint64_t>_in_range(value, 0, 0xFFFFFFFFFFFFFFFF)
        self._put(&field, 8)

    def write_i32(self, value):
        """Four bytes, two's complement."""
        cdef int32_t field = <int32_t>_in_range(value, INT32_MIN, INT32_MAX)
        self._put(&field, 4)

    def write_i64(self, value):
        """Eight bytes, two's complement."""
        cdef int64_t field = <int64_t>_in_range(value, INT64_MIN, INT64_MAX)
        self._put(&field, 8)

    def write_zeros(self, Py_ssize_t size):
        """`size` zero bytes."""
        if size < 0:
            raise UsageError("a size is not negative")
        if size > self._size_max - len(self._payload):
            raise UsageError(f"a payload of more than {self._size_max} bytes")
        self._payload += bytes(size)

    def write_bytes(self, bytes data not None):
        """The bytes as they are."""
        self._put(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def write_sized(self, bytes data not None):
        """u32 size, then the bytes; all or nothing."""
        if PyBytes_GET_SIZE(data) + 4 > self._size_max - len(self._payload):
            raise UsageError(f"a payload of more than {self._size_max} bytes")
        self.write_u32(PyBytes_GET_SIZE(data))
        self.write_bytes(data)

    def finish(self):
        """The payload, as bytes; the writer starts over, empty."""
        payload = bytes(self._payload)
        self._payload = bytearray()
        return payload


cdef object _in_range(object value, object low, object high):
    if not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{value!r} is not an integer in {low} .. {high}")
    return value


# Last, for the reason given at the end of _ring.pyx.
from enclave_os.wire.errors import Lie, PeerProtocolError, UsageError
