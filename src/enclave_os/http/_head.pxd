# The head of a request, read by our own rules: the C interface, for the parser.
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

# The methods that are served; their names are METHOD_NAMES in _parser.pyx, in this order.
cdef enum:
    METHOD_GET = 0
    METHOD_HEAD = 1
    METHOD_POST = 2
    METHOD_PUT = 3
    METHOD_PATCH = 4
    METHOD_DELETE = 5
    METHOD_OPTIONS = 6

# head_t.path_form
cdef enum:
    PATH_PLAIN = 0          # the span is the path
    PATH_ENCODED = 1        # has "%", or a segment that begins with a dot: head_path decodes and checks it
    PATH_ROOT = 2           # "/", which an absolute-form left out
    PATH_ASTERISK = 3       # "*": OPTIONS for the server as a whole

cdef struct http_limits_t:
    uint32_t head_size_max      # bytes of request line and fields with their ends; trailers and chunk extensions count too
    uint32_t header_count_max   # fields, and trailers
    uint32_t target_size_max    # bytes of the request target
    uint64_t body_size_max      # bytes, declared or chunked

cdef struct head_t:
    uint64_t length             # declared body bytes, 0 when not has_length
    const char *reason          # static text, why it is refused
    uint32_t target_offset      # all offsets are from the head's first byte
    uint32_t target_size
    uint32_t path_offset
    uint32_t path_size
    uint32_t query_offset       # first byte after "?"
    uint32_t query_size
    uint32_t fields_offset      # first byte after the request line
    uint32_t host_offset
    uint32_t host_size
    uint32_t header_count
    uint16_t status             # to refuse it with
    uint8_t method
    uint8_t http_minor          # 0 or 1
    uint8_t path_form
    bint has_host
    bint has_length
    bint chunked
    bint expects                # "Expect: 100-continue"
    bint has_ours               # a field that only the server says: head_without_ours, and read again
    bint wants_close
    bint keep_alive             # what the client wants, by version and Connection

# Read a complete head of `size` bytes, with a NUL behind it. False: refused, see status and reason.
cdef bint head_read(head_t *h, const uint8_t *head, uint32_t size, const http_limits_t *limits) noexcept nogil

# The head without the fields that are the server's alone to say; `fields_offset` as head_read found it.
cdef bytes head_without_ours(bytes head, uint32_t fields_offset)

# The path as a new str reference, percent-decoded once; NULL when it is none that names one resource (400).
cdef PyObject *head_path(const head_t *h, const uint8_t *head) noexcept

# Why a head that is not complete at the limit is refused: its target (RFC 9110 15.5.15), or its fields.
cdef const char *head_too_long(
    const uint8_t *head, uint32_t size, const http_limits_t *limits, uint16_t *status
) noexcept nogil

# Why a head is refused whose first `size` bytes begin no known method: not implemented if they are a token, else malformed.
cdef const char *head_no_method(const uint8_t *head, uint32_t size, uint16_t *status) noexcept nogil

# Why a head is refused in which llhttp read no version behind these `size` bytes: a version that is not ours, or malformed.
cdef const char *head_no_version(const uint8_t *head, uint32_t size, uint16_t *status) noexcept nogil

# RFC 9110 5.6.2 tchar
cdef bint head_is_token_byte(uint8_t byte) noexcept nogil
