# What _tls reads of a client's first words by itself: sizes before OpenSSL makes room for them, names after it took them
# apart. Part of _tls; pure functions over private bytes, inlined there.
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    # A ClientHello with every extension known is under 4 KiB. OpenSSL makes room for what a header announces, 16 KiB to
    # begin with and up to 128 KiB, and zeroes it: nine bytes from each of many clients would hold gigabytes.
    TLS_HELLO_SIZE_MAX = 16384
    RECORD_HEAD_SIZE = 5
    MESSAGE_HEAD_SIZE = 4
    RECORD_HANDSHAKE = 22

cdef struct hello_walk_t:
    uint8_t record_head[5]
    uint8_t record_head_size    # bytes of it seen; 0 while inside a record, too
    uint8_t message_head[4]
    uint8_t message_head_size
    uint16_t record_left        # bytes of the record to come
    uint32_t message_left       # bytes of the handshake message to come


cdef inline bint messages_fit(hello_walk_t *walk, const uint8_t *data, size_t size) noexcept nogil:
    # Walks records (RFC 8446 5.1) and the handshake messages in them (4), which may be cut anywhere, over the private
    # copy. Judges nothing but the size that a message announces: all else is OpenSSL's.
    cdef size_t at = 0
    cdef size_t step
    while at < size:
        if walk.record_left == 0:
            walk.record_head[walk.record_head_size] = data[at]
            walk.record_head_size += 1
            at += 1
            if walk.record_head_size == RECORD_HEAD_SIZE:
                walk.record_head_size = 0
                walk.record_left = <uint16_t>(<uint16_t>walk.record_head[3] << 8 | walk.record_head[4])
            continue
        step = min(<size_t>walk.record_left, size - at)
        if walk.record_head[0] == RECORD_HANDSHAKE:
            if walk.message_left == 0:
                step = 1
                walk.message_head[walk.message_head_size] = data[at]
                walk.message_head_size += 1
                if walk.message_head_size == MESSAGE_HEAD_SIZE:
                    walk.message_head_size = 0
                    walk.message_left = <uint32_t>walk.message_head[1] << 16
                    walk.message_left |= <uint32_t>walk.message_head[2] << 8 | walk.message_head[3]
                    if walk.message_left > TLS_HELLO_SIZE_MAX:
                        return False
            else:
                step = min(step, <size_t>walk.message_left)
                walk.message_left -= <uint32_t>step
        at += step
        walk.record_left -= <uint16_t>step
    return True


cdef inline bytes server_name(const uint8_t *data, size_t size):
    # ServerNameList with one host_name (RFC 6066 3). Anything else: None; OpenSSL refuses it after us.
    if (
        size < 5
        or (<size_t>data[0] << 8 | data[1]) != size - 2
        or data[2] != 0
        or (<size_t>data[3] << 8 | data[4]) != size - 5
    ):
        return None
    return PyBytes_FromStringAndSize(<const char *>data + 5, size - 5)


cdef inline list protocol_names(const uint8_t *data, size_t size):
    # ProtocolNameList (RFC 7301 3.1). Malformed: what could be read; OpenSSL refuses it after us.
    cdef list names = []
    cdef size_t at = 2
    while at < size and 1 + <size_t>data[at] <= size - at:
        names.append(PyBytes_FromStringAndSize(<const char *>data + at + 1, data[at]))
        at += 1 + data[at]
    return names
