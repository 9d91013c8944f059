# HTTP/1.1 requests out of bytes: the C interface, for the ingress. No I/O, no clock, no log.
#
#   AT_START --byte--> IN_HEAD --head complete--> IN_BODY --last byte--> DONE --http_parser_next--> AT_START
#       |                 |            `--no body-----------------------^
#       `-----------------+--------------- refused ---> REFUSED (for good: nothing after it is ever parsed, HT1)
#
# Two parsers must agree on every head: llhttp sees each byte first, in its strict mode, then _head reads the whole
# head again by our own, narrower rules (RFC 9112 2.2, 3, 5, 6). What either refuses is refused, and so is a head on which the
# two differ about method, version or framing. Chunked bodies are framed by llhttp, watched byte by byte from outside.
#
# The verdict depends on the bytes only, never on how they were cut: llhttp is never given a byte past a limit.
#
# Memory: nothing but the struct while idle; a partial head is malloc'ed (at most head_size_max); the finished head and the
# body are bytes objects that the Request takes over without a copy. So every function needs the GIL.
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from enclave_os.http._head cimport http_limits_t
from enclave_os.http._llhttp cimport llhttp_t
from enclave_os.http._message cimport Request

# What http_parser_feed returns.
cdef enum:
    HTTP_NEED_DATA = 0      # weather: all was taken, more is needed
    HTTP_REQUEST = 1        # one request is complete: http_take_request, then http_parser_next
    HTTP_CONTINUE = 2       # the head is complete and asks for "100 Continue" (RFC 9110 10.1.1); reported once, stops at the head's end
    HTTP_REFUSED = -1       # `status` and `reason` say why; answer, then close

# http_parser_t.state
cdef enum:
    HTTP_AT_START = 0       # between requests: idle
    HTTP_IN_HEAD = 1
    HTTP_IN_BODY = 2
    HTTP_DONE = 3
    HTTP_AT_REFUSAL = 4

cdef struct http_parser_t:
    llhttp_t llhttp
    const http_limits_t *limits     # borrowed: outlives the parser
    # in flight only
    uint8_t *partial                # malloc'ed head so far, NULL when a head came whole
    PyObject *request               # owned Request, from the end of its head on
    PyObject *body                  # owned bytes of body_room, NULL when there is no body yet
    uint64_t body_size              # bytes buffered so far
    uint64_t body_room              # bytes that `body` can hold
    uint64_t body_left              # bytes still to come of the declared body, or of this chunk
    const char *reason              # static text; NULL when not refused
    uint32_t partial_size
    uint32_t partial_room
    uint32_t overhead               # bytes of trailers and of over-long chunk size lines, on top of the head
    uint32_t line_size              # bytes of this chunk size line or trailer line so far
    uint32_t header_count
    uint16_t status                 # of the refusal
    uint8_t state
    uint8_t blank                   # of the one CRLF allowed before a request line: 0 none, 1 CR, 2 CRLF
    uint8_t phase                   # PHASE_* inside a chunked body
    uint8_t before                  # the framing byte before this one
    uint8_t event                   # set by llhttp's callbacks
    bint keep_alive                 # what the client wants, by version and Connection
    bint http10
    bint is_head                    # HEAD: the response carries no body
    bint chunked

# Prepare `p` (any memory); `limits` is borrowed. Returns 0.
cdef int http_parser_init(http_parser_t *p, const http_limits_t *limits) noexcept

# Let go of all that is in flight; `p` may be initialised again.
cdef void http_parser_free(http_parser_t *p) noexcept

# Take bytes up to the end of one request, never past it. `data` is borrowed for the call; `used` is how much was taken.
# At DONE it takes nothing and repeats HTTP_REQUEST; after a refusal it takes nothing and repeats HTTP_REFUSED.
cdef int http_parser_feed(http_parser_t *p, const uint8_t *data, size_t size, size_t *used) noexcept

# Forget the finished request; ready for the next. Not after a refusal, which stays.
cdef void http_parser_next(http_parser_t *p) noexcept

# The request at DONE, once; it takes the head and body over. Peer, sni and principal are the caller's to set.
cdef Request http_take_request(http_parser_t *p)
