"""HTTP/1.1 request parsing without I/O; the state diagram and the C interface are in _parser.pxd.

The head's rules are in _head.pyx. Here: sizes (HT3), and the framing of bodies (HT1, HT2; RFC 9112 6 and 7).
It does not: decode content, follow an Upgrade, or say what a route is.
"""

cimport cython
cimport cpython.bytes as cpython_bytes
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from enclave_os.http._head cimport (
    METHOD_HEAD, head_is_token_byte, head_no_method, head_no_version, head_path, head_read, head_t, head_too_long,
    head_without_ours, http_limits_t,
)
from enclave_os.http._llhttp cimport (
    F_CHUNKED, F_CONTENT_LENGTH, HPE_INVALID_METHOD, HPE_INVALID_VERSION, HPE_OK, HPE_PAUSED, LLHTTP_DELETE, LLHTTP_GET,
    LLHTTP_HEAD, LLHTTP_OPTIONS, LLHTTP_PATCH, LLHTTP_POST, LLHTTP_PUT, LLHTTP_REQUEST, llhttp_execute,
    llhttp_get_error_pos, llhttp_init, llhttp_reset, llhttp_resume, llhttp_settings_init, llhttp_settings_t, llhttp_t,
)
from enclave_os.http._message cimport Request

from enclave_os.errors import InternalError


cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize(const char *data, Py_ssize_t size)
    char *PyBytes_AS_STRING(PyObject *value)
    int _PyBytes_Resize(PyObject **value, Py_ssize_t size)
    void PyErr_Clear()


# Inside a chunked body (RFC 9112 7.1), what the next byte belongs to.
cdef enum:
    PHASE_SIZE_LINE = 0
    PHASE_DATA = 1
    PHASE_DATA_END = 2
    PHASE_TRAILERS = 3
    # What llhttp's callbacks saw.
    EVENT_CHUNK = 1
    EVENT_COMPLETE = 2
    # A size line of up to 8 digits, its CRLF and the one after the data: what is longer counts as overhead.
    SIZE_LINE_FREE = 12
    BODY_ROOM_FIRST = 65536             # a declared body costs memory as it comes, not when it is announced

cdef llhttp_settings_t SETTINGS

METHOD_NAMES = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
cdef tuple METHODS = METHOD_NAMES
# The same in llhttp's numbers.
cdef uint8_t[7] LLHTTP_METHODS = [
    LLHTTP_GET, LLHTTP_HEAD, LLHTTP_POST, LLHTTP_PUT, LLHTTP_PATCH, LLHTTP_DELETE, LLHTTP_OPTIONS
]


cdef int on_headers_complete(llhttp_t *parser) noexcept nogil:
    return HPE_PAUSED       # so that execute stops at the head's last byte and says where that is


cdef int on_chunk_header(llhttp_t *parser) noexcept nogil:
    (<http_parser_t *>parser.data).event = EVENT_CHUNK
    return 0


cdef int on_message_complete(llhttp_t *parser) noexcept nogil:
    (<http_parser_t *>parser.data).event = EVENT_COMPLETE
    return HPE_PAUSED


cdef int refuse(http_parser_t *p, uint16_t status, const char *reason) noexcept:
    # Memory goes at once: a refused connection only waits for its answer to leave.
    let_go(p)
    p.state = HTTP_AT_REFUSAL
    p.status = status
    p.reason = reason
    p.keep_alive = False
    return HTTP_REFUSED


cdef void let_go(http_parser_t *p) noexcept:
    free(p.partial)
    p.partial = NULL
    p.partial_size = p.partial_room = 0
    Py_XDECREF(p.request)
    Py_XDECREF(p.body)
    p.request = p.body = NULL
    p.body_size = p.body_room = p.body_left = 0


cdef int http_parser_init(http_parser_t *p, const http_limits_t *limits) noexcept:
    memset(p, 0, sizeof(http_parser_t))
    p.limits = limits
    llhttp_init(&p.llhttp, LLHTTP_REQUEST, &SETTINGS)      # leaves every leniency flag at 0
    return 0


cdef void http_parser_free(http_parser_t *p) noexcept:
    let_go(p)


cdef void http_parser_next(http_parser_t *p) noexcept:
    if p.state == HTTP_AT_REFUSAL:
        return
    let_go(p)
    llhttp_reset(&p.llhttp)
    p.state = HTTP_AT_START
    p.blank = 0
    p.keep_alive = p.is_head = p.chunked = False


cdef int http_parser_feed(http_parser_t *p, const uint8_t *data, size_t size, size_t *used) noexcept:
    cdef size_t pos = 0
    cdef int result
    used[0] = 0
    if p.state >= HTTP_DONE:
        return HTTP_REQUEST if p.state == HTTP_DONE else HTTP_REFUSED
    if p.state == HTTP_AT_START:
        # RFC 9112 2.2: a server should ignore at least one CRLF before the request line. Exactly one; llhttp would
        # take any number, and bare LF too.
        while pos < size and p.blank < 2 and (data[pos] == c"\r" or p.blank == 1):
            if p.blank == 1 and data[pos] != c"\n":
                return refuse(p, 400, b"bare CR before the request line")
            p.blank += 1
            pos += 1
    if pos == size:
        used[0] = pos
        return HTTP_NEED_DATA
    if p.state == HTTP_AT_START:
        if data[pos] == c"\r" or data[pos] == c"\n":
            return refuse(p, 400, b"empty lines before the request line")
        p.state = HTTP_IN_HEAD
    if p.state == HTTP_IN_HEAD:
        result = feed_head(p, data, size, &pos)
        if result != HTTP_REQUEST or p.state == HTTP_DONE:
            used[0] = pos
            return result
    if p.chunked:
        result = feed_chunked(p, data, size, &pos)
    else:
        result = feed_declared(p, data, size, &pos)
    used[0] = pos
    return result


cdef int feed_head(http_parser_t *p, const uint8_t *data, size_t size, size_t *pos) noexcept:
    # HTTP_REQUEST here means: head complete, go on with the state that it set.
    cdef size_t n = size - pos[0]
    cdef size_t taken
    cdef const uint8_t *start = data + pos[0]
    cdef const char *reason
    cdef uint16_t status
    cdef int error
    if n > p.limits.head_size_max - p.partial_size:
        n = p.limits.head_size_max - p.partial_size
    error = llhttp_execute(&p.llhttp, <const char *>start, n)
    if error == HPE_OK:
        pos[0] += n
        if not keep_partial(p, start, n):
            return refuse(p, 503, b"out of memory")
        if p.partial_size < p.limits.head_size_max:
            return HTTP_NEED_DATA
        reason = head_too_long(p.partial, p.partial_size, p.limits, &status)
        return refuse(p, status, reason)
    taken = llhttp_get_error_pos(&p.llhttp) - <const char *>start
    if error == HPE_INVALID_VERSION or error == HPE_INVALID_METHOD:
        # error_pos is the byte that fits no method; of a version it may be the one behind, so only what is before counts.
        if not keep_partial(p, start, taken if error == HPE_INVALID_VERSION else min(taken + 1, n)):
            return refuse(p, 503, b"out of memory")
        if error == HPE_INVALID_METHOD:
            reason = head_no_method(p.partial, p.partial_size, &status)
        else:
            reason = head_no_version(p.partial, p.partial_size, &status)
        return refuse(p, status, reason)
    if error != HPE_PAUSED:
        return refuse(p, 400, b"malformed request")
    pos[0] += taken
    try:
        if p.partial_size == 0:
            return begin_body(p, cpython_bytes.PyBytes_FromStringAndSize(<const char *>start, taken))
        if not keep_partial(p, start, taken):
            return refuse(p, 503, b"out of memory")
        return begin_body(p, cpython_bytes.PyBytes_FromStringAndSize(<const char *>p.partial, p.partial_size))
    except MemoryError:
        return refuse(p, 503, b"out of memory")


cdef bint keep_partial(http_parser_t *p, const uint8_t *data, size_t size) noexcept:
    # False: out of memory. partial_size + size <= head_size_max by feed_head.
    cdef size_t need = p.partial_size + size
    cdef size_t room = p.partial_room
    cdef uint8_t *bigger
    if need > room:
        room = 512 if room == 0 else room
        while room < need:
            room *= 2
        bigger = <uint8_t *>realloc(p.partial, room)
        if bigger == NULL:
            return False
        p.partial = bigger
        p.partial_room = <uint32_t>room
    memcpy(p.partial + p.partial_size, data, size)
    p.partial_size = <uint32_t>need
    return True


cdef int begin_body(http_parser_t *p, bytes head) except? -2:
    # The Request is made here, where the head is at hand; the body joins it at the end.
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(<PyObject *>head)
    cdef uint32_t size = <uint32_t>len(head)
    cdef Request request
    cdef PyObject *path
    cdef head_t h
    free(p.partial)
    p.partial = NULL
    p.partial_size = p.partial_room = 0
    if not head_read(&h, data, size, p.limits):
        return refuse(p, h.status, h.reason)
    if not agrees(&p.llhttp, &h):
        return refuse(p, 400, b"ambiguous request")
    p.header_count = h.header_count
    p.overhead = size
    if h.has_ours:
        head = head_without_ours(head, h.fields_offset)
        data = <const uint8_t *>PyBytes_AS_STRING(<PyObject *>head)
        if not head_read(&h, data, <uint32_t>len(head), p.limits):
            return refuse(p, h.status, h.reason)
    path = head_path(&h, data)
    if path == NULL:
        return refuse(p, 400, b"malformed request target")
    request = Request.__new__(Request)
    request.method = <str>METHODS[h.method]
    request.path = <str>path
    Py_XDECREF(path)        # the Request holds it
    request.body = b""
    request.head = head
    request.target_offset = h.target_offset
    request.target_size = h.target_size
    request.query_offset = h.query_offset
    request.query_size = h.query_size
    request.fields_offset = h.fields_offset
    request.host_offset = h.host_offset
    request.host_size = h.host_size
    request.http_minor = h.http_minor
    Py_INCREF(request)
    p.request = <PyObject *>request
    p.keep_alive = h.keep_alive
    p.is_head = h.method == METHOD_HEAD
    p.http10 = h.http_minor == 0
    p.chunked = h.chunked
    if h.chunked:
        p.phase = PHASE_SIZE_LINE
        p.line_size = 0
        p.before = 0
        llhttp_resume(&p.llhttp)
    elif h.length:
        p.body_left = h.length
    else:
        p.state = HTTP_DONE
        return HTTP_REQUEST
    p.state = HTTP_IN_BODY
    return HTTP_CONTINUE if h.expects else HTTP_REQUEST


cdef bint agrees(const llhttp_t *llhttp, const head_t *h) noexcept nogil:
    # llhttp's opinion of the same head. A difference is a bug in one of the two, and a way to smuggle; so it is refused.
    return (
        llhttp.method == LLHTTP_METHODS[h.method] and llhttp.http_major == 1 and llhttp.http_minor == h.http_minor
        and ((llhttp.flags & F_CHUNKED) != 0) == h.chunked
        and ((llhttp.flags & F_CONTENT_LENGTH) != 0) == h.has_length
        and (not h.has_length or llhttp.content_length == h.length)
    )


cdef bint make_room(http_parser_t *p, uint64_t size) noexcept:
    # Room for `size` more body bytes; at most body_size_max in all, by the callers. False: out of memory.
    cdef uint64_t need = p.body_size + size
    cdef uint64_t room
    if need <= p.body_room:
        return True
    if p.chunked:
        room = p.body_room * 2 if p.body_room else BODY_ROOM_FIRST if need > 1024 else 1024
        while room < need:
            room *= 2
    else:
        room = p.body_size + p.body_left
        if room > BODY_ROOM_FIRST:
            room = min(room, max(2 * need, <uint64_t>BODY_ROOM_FIRST))
    if p.body == NULL:
        p.body = PyBytes_FromStringAndSize(NULL, room)
    else:
        _PyBytes_Resize(&p.body, room)      # sole owner; sets NULL when it fails. Big ones move by mremap, not by copy
    if p.body == NULL:
        PyErr_Clear()
        return False
    p.body_room = room
    return True


cdef int finish(http_parser_t *p) noexcept:
    if p.body != NULL and p.body_room != p.body_size:
        _PyBytes_Resize(&p.body, p.body_size)
        if p.body == NULL:
            PyErr_Clear()
            return refuse(p, 503, b"out of memory")
        p.body_room = p.body_size
    p.state = HTTP_DONE
    return HTTP_REQUEST


cdef int feed_declared(http_parser_t *p, const uint8_t *data, size_t size, size_t *pos) noexcept:
    # Content-Length: llhttp is not asked, there is nothing to parse.
    cdef uint64_t n = size - pos[0]
    if n > p.body_left:
        n = p.body_left
    if n:
        if not make_room(p, n):
            return refuse(p, 503, b"out of memory")
        memcpy(PyBytes_AS_STRING(p.body) + p.body_size, data + pos[0], n)
        p.body_size += n
        p.body_left -= n
        pos[0] += n
    return finish(p) if p.body_left == 0 else HTTP_NEED_DATA


cdef int feed_chunked(http_parser_t *p, const uint8_t *data, size_t size, size_t *pos) noexcept:
    cdef uint64_t n
    cdef int result
    p.llhttp.data = p       # here, because the struct may have moved since the last call
    while pos[0] < size:
        if p.phase == PHASE_DATA:
            n = min(<uint64_t>(size - pos[0]), p.body_left)
            if not make_room(p, n):
                return refuse(p, 503, b"out of memory")
            memcpy(PyBytes_AS_STRING(p.body) + p.body_size, data + pos[0], n)
            if llhttp_execute(&p.llhttp, <const char *>data + pos[0], n) != HPE_OK:
                return refuse(p, 400, b"malformed chunk")
            p.body_size += n
            p.body_left -= n
            pos[0] += n
            if p.body_left == 0:
                p.phase = PHASE_DATA_END
                p.before = 0
        else:
            result = feed_framing(p, data + pos[0])
            pos[0] += 1
            if result != HTTP_NEED_DATA:
                return result
    return HTTP_NEED_DATA


cdef int feed_framing(http_parser_t *p, const uint8_t *data) noexcept:
    # One byte of a size line, of the CRLF after chunk data, or of the trailers. One at a time, so that every limit strikes at
    # the same byte however the stream was cut; framing is a few bytes a chunk, the data above goes in bulk.
    cdef uint8_t byte = data[0]
    cdef int error
    # What llhttp might let pass (HT2): only CRLF ends a line, no control bytes, no blanks in a size line, no fold.
    if byte == c"\n":
        if p.before != c"\r":
            return refuse(p, 400, b"bare LF in chunked body")
    elif p.before == c"\r":
        return refuse(p, 400, b"bare CR in chunked body")
    elif byte != c"\r" and ((byte < c" " and byte != c"\t") or byte == 127):
        return refuse(p, 400, b"control byte in chunked body")
    elif byte == c" " or byte == c"\t":
        if p.phase != PHASE_TRAILERS or p.line_size == 0:
            return refuse(p, 400, b"blank in chunk framing")
    elif p.phase == PHASE_SIZE_LINE and (p.before == c";" or p.before == c"=") and not head_is_token_byte(byte) and (
        p.before == c";" or byte != c'"'
    ):
        return refuse(p, 400, b"malformed chunk extension")
    p.before = byte
    p.line_size += 1
    if p.phase == PHASE_TRAILERS or (p.phase == PHASE_SIZE_LINE and p.line_size > SIZE_LINE_FREE):
        p.overhead += 1
        if p.overhead > p.limits.head_size_max:
            return refuse(p, 431, b"trailers or chunk extensions too large")
    if byte == c"\n":
        if p.phase == PHASE_TRAILERS and p.line_size > 2:
            p.header_count += 1
            if p.header_count > p.limits.header_count_max:
                return refuse(p, 431, b"too many trailer fields")
        p.line_size = 0
    p.event = 0
    error = llhttp_execute(&p.llhttp, <const char *>data, 1)
    if p.event == EVENT_COMPLETE and error == HPE_PAUSED:
        return finish(p)
    if error != HPE_OK:
        return refuse(p, 400, b"malformed chunk" if p.phase != PHASE_TRAILERS else b"malformed trailer")
    if p.event == EVENT_CHUNK:
        # The size line is complete. content_length is the chunk's size, and overflow was refused by llhttp.
        if p.llhttp.content_length > p.limits.body_size_max - p.body_size:
            return refuse(p, 413, b"request body too large")
        p.body_left = p.llhttp.content_length
        p.phase = PHASE_DATA if p.body_left else PHASE_TRAILERS
        p.before = 0
        p.line_size = 0
    elif p.phase == PHASE_DATA_END and byte == c"\n":
        p.phase = PHASE_SIZE_LINE
        p.before = 0
    return HTTP_NEED_DATA


cdef Request http_take_request(http_parser_t *p):
    cdef Request request
    if p.state != HTTP_DONE or p.request == NULL:
        raise InternalError("there is no complete request to take")
    request = <Request>p.request
    if p.body != NULL:
        request.body = <bytes>p.body
    let_go(p)
    return request


@cython.final
cdef class RequestParser:
    """The C parser for Python: bytes in, events out. For tests, benchmarks and code that has no ingress.

    Args:
        head_size_max: bytes of request line, fields and their ends.
        header_count_max: number of fields.
        target_size_max: bytes of the request target.
        body_size_max: bytes of the body, declared or chunked.
    """

    cdef http_parser_t parser
    cdef http_limits_t limits

    def __cinit__(
        self,
        uint32_t head_size_max=16384,
        uint32_t header_count_max=100,
        uint32_t target_size_max=8192,
        uint64_t body_size_max=16777216,
    ):
        self.limits = http_limits_t(head_size_max, header_count_max, target_size_max, body_size_max)
        http_parser_init(&self.parser, &self.limits)

    def __dealloc__(self):
        http_parser_free(&self.parser)

    def feed(self, const uint8_t[::1] data not None):
        """Take bytes up to the end of one request.

        Returns: (result, used): NEED_DATA, REQUEST, CONTINUE or REFUSED, and how many bytes were taken.
        """
        cdef size_t used = 0
        cdef int result = http_parser_feed(&self.parser, &data[0] if data.shape[0] else NULL, data.shape[0], &used)
        return result, used

    def take(self):
        """The complete request, once. Raises: InternalError: there is none."""
        return http_take_request(&self.parser)

    def next(self):
        """Forget the finished request; a refusal stays."""
        http_parser_next(&self.parser)

    @property
    def state(self):
        """AT_START, IN_HEAD, IN_BODY, DONE or AT_REFUSAL."""
        return self.parser.state

    @property
    def keep_alive(self):
        """Whether the client allows another request on this connection."""
        return bool(self.parser.keep_alive)

    @property
    def is_head(self):
        """Whether the complete head is a HEAD request."""
        return bool(self.parser.is_head)

    @property
    def body_size(self):
        """Body bytes buffered so far."""
        return self.parser.body_size

    @property
    def status(self):
        """Status to answer a refused request with; 0 when not refused."""
        return self.parser.status

    @property
    def reason(self):
        """Why it was refused; "" when not refused."""
        return self.parser.reason.decode("ascii") if self.parser.reason != NULL else ""


NEED_DATA = HTTP_NEED_DATA
REQUEST = HTTP_REQUEST
CONTINUE = HTTP_CONTINUE
REFUSED = HTTP_REFUSED
AT_START = HTTP_AT_START
IN_HEAD = HTTP_IN_HEAD
IN_BODY = HTTP_IN_BODY
DONE = HTTP_DONE
AT_REFUSAL = HTTP_AT_REFUSAL
PARSER_SIZE = sizeof(http_parser_t)

llhttp_settings_init(&SETTINGS)
SETTINGS.on_headers_complete = on_headers_complete
SETTINGS.on_chunk_header = on_chunk_header
SETTINGS.on_message_complete = on_message_complete
