# C-speed loops over the C interfaces of parser and messages, for bench/bench_http.py. Not part of the package.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from enclave_os._native cimport eos_monotonic_ns
from enclave_os.http._message cimport Response, response_write
from enclave_os.http._parser cimport *


def parse(const uint8_t[::1] raw not None, size_t piece, uint64_t count):
    """Parse the one request in `raw`, given in pieces of `piece` bytes, `count` times. Returns nanoseconds a request."""
    cdef http_limits_t limits = http_limits_t(16384, 100, 8192, 1 << 24)
    cdef http_parser_t parser
    cdef uint64_t began, done
    cdef size_t pos, n, used = 0
    cdef size_t size = raw.shape[0]
    cdef int result = HTTP_NEED_DATA
    cdef Request request
    http_parser_init(&parser, &limits)
    began = eos_monotonic_ns()
    for done in range(count):
        pos = 0
        while pos < size:
            n = min(piece, size - pos)
            result = http_parser_feed(&parser, &raw[pos], n, &used)
            pos += used
        if result != HTTP_REQUEST:
            raise RuntimeError("raw is not one request")
        request = http_take_request(&parser)
        http_parser_next(&parser)
    began = eos_monotonic_ns() - began
    http_parser_free(&parser)
    return began / count


def write(Response response not None, uint64_t count):
    """Write head and body of `response` `count` times. Returns nanoseconds a response."""
    cdef uint8_t[4096] out
    cdef const char *lines = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    cdef uint64_t began = eos_monotonic_ns()
    cdef uint64_t done
    for done in range(count):
        if response_write(response, True, False, False, lines, 37, out, sizeof(out)) < 0:
            raise RuntimeError("the response is larger than the buffer")
    return (eos_monotonic_ns() - began) / count
