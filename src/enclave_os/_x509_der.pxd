# The DER writer of _x509: from a certificate's end to its start, since each length is known when its header is written.
# Part of _x509; pure functions over private bytes, inlined there.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy
from libc.time cimport time_t, tm

cdef extern from "time.h" nogil:
    tm *gmtime_r(const time_t *instant, tm *parts)

cdef enum:
    TAG_UTC_TIME = 0x17
    TAG_GENERALIZED_TIME = 0x18

# `at` moves towards `start`. Room is reckoned by the caller, which knows every part.
cdef struct der_writer_t:
    uint8_t *start
    uint8_t *end
    uint8_t *at


cdef inline void put(der_writer_t *w, const void *data, size_t size) noexcept nogil:
    w.at -= size
    memcpy(w.at, data, size)


cdef inline void put_bytes(der_writer_t *w, bytes data) noexcept:
    put(w, PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))


cdef inline void put_header(der_writer_t *w, uint8_t tag, size_t size) noexcept nogil:
    cdef uint8_t count = 0
    cdef size_t rest = size
    if size < 0x80:
        w.at -= 1
        w.at[0] = <uint8_t>size
    else:
        while rest:
            w.at -= 1
            w.at[0] = <uint8_t>(rest & 0xFF)
            rest >>= 8
            count += 1
        w.at -= 1
        w.at[0] = 0x80 | count
    w.at -= 1
    w.at[0] = tag


cdef inline void put_decimal(uint8_t *to, int number) noexcept nogil:
    to[0] = <uint8_t>(48 + number // 10)
    to[1] = <uint8_t>(48 + number % 10)


cdef inline int put_time(der_writer_t *w, int64_t seconds) noexcept nogil:
    # RFC 5280 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050; always Zulu, always with seconds.
    cdef time_t instant = <time_t>seconds
    cdef tm parts
    cdef uint8_t text[15]
    cdef int year
    cdef int skip
    if gmtime_r(&instant, &parts) == NULL:
        return -1
    year = parts.tm_year + 1900
    if year < 1970 or year > 9999:
        return -1
    put_decimal(text, year // 100)
    put_decimal(text + 2, year % 100)
    put_decimal(text + 4, parts.tm_mon + 1)
    put_decimal(text + 6, parts.tm_mday)
    put_decimal(text + 8, parts.tm_hour)
    put_decimal(text + 10, parts.tm_min)
    put_decimal(text + 12, parts.tm_sec)
    text[14] = 90       # Z
    skip = 2 if year < 2050 else 0
    put(w, text + skip, 15 - skip)
    put_header(w, TAG_UTC_TIME if skip else TAG_GENERALIZED_TIME, 15 - skip)
    return 0
