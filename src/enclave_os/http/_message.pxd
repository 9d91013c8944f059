# Requests and responses: the C interface, for the parser (which fills a Request) and the ingress (which sends a Response).
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    RESPONSE_NO_ROOM = -1
    CHUNK_HEAD_SIZE_MAX = 18        # 16 hex digits and CRLF

cdef class Headers:
    # The fields of a checked head: nothing is parsed or copied before somebody asks.
    cdef bytes head
    cdef uint32_t offset            # of the first field line in `head`
    cdef bint find(self, const uint8_t *name, Py_ssize_t size, uint32_t *pos, uint32_t *start, uint32_t *end) noexcept

cdef class Request:
    cdef readonly str method
    cdef readonly str path          # percent-decoded once
    cdef readonly bytes body
    # set by the ingress
    cdef public str peer            # "ip:port" as the host alleges it, "" when unknown
    cdef public str sni             # from the TLS handshake; None: no TLS, or no SNI
    cdef object link                # what `connection` gives; None: none was set
    # set by the registry
    cdef public object principal    # modules.auth.Principal, None: nobody proved who they are
    cdef public dict params         # of a pattern route, else None
    # spans in `head`
    cdef bytes head
    cdef Headers fields
    cdef uint32_t target_offset
    cdef uint32_t target_size
    cdef uint32_t query_offset
    cdef uint32_t query_size
    cdef uint32_t fields_offset
    cdef uint32_t host_offset
    cdef uint32_t host_size
    cdef uint8_t http_minor

cdef class Response:
    cdef readonly int status
    cdef readonly bytes body
    cdef readonly str content_type
    cdef readonly tuple headers
    cdef readonly bint streaming    # a StreamingResponse: body is empty, `chunks` has it
    cdef bytes head                 # everything before Date, encoded once

cdef class StreamingResponse(Response):
    cdef readonly object chunks     # async iterator of bytes

# Write status line and fields, to the empty line inclusive. Returns the bytes written, or RESPONSE_NO_ROOM.
#   keep_alive  False writes "Connection: close"; a streaming response to HTTP/1.0 closes whatever was asked
#   http10      the request was HTTP/1.0: keep-alive must be said
#   lines       whole field lines that every answer carries, Date among them, `lines_size` bytes
# The body is not written: send `response.body`, unless the request was HEAD or `response_has_body` is false.
cdef Py_ssize_t response_write_head(
    Response response, bint keep_alive, bint http10, const char *lines, Py_ssize_t lines_size, uint8_t *out,
    Py_ssize_t room
) except -2

# Head and body at once when both fit: one TLS record. `is_head`: the request was HEAD. Not for a streaming response.
cdef Py_ssize_t response_write(
    Response response, bint keep_alive, bint http10, bint is_head, const char *lines, Py_ssize_t lines_size,
    uint8_t *out, Py_ssize_t room
) except -2

# The Host field without port, brackets and final dot, in lower case, an IPv6 address in its short form; "" without Host.
cdef str request_hostname(Request request)

# Size line of one chunk (RFC 9112 7.1), after it `size` bytes and CRLF. `out` has CHUNK_HEAD_SIZE_MAX. Returns bytes written.
# size 0 is the last chunk: a CRLF after it ends the body.
cdef Py_ssize_t chunk_write_head(uint64_t size, uint8_t *out) noexcept nogil
