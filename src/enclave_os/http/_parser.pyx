"""HTTP/1.1 request parsing without I/O; the state diagram and the C interface are in _parser.pxd.

Strictness, and whose rule it is (threats.md G): HT1 framing (RFC 9112 6.3: one Content-Length of digits, or exactly
`Transfer-Encoding: chunked`, never both), HT2 bytes (5.1, 2.2: CRLF only, token names, no fold), HT3 sizes, HT5 targets
(RFC 9112 3.2 and 3986 6.2.2: decoded once, no dot segment, no hidden separator).
It does not: decode a body, follow an Upgrade, or say what a route is.
"""

cimport cython
from cpython.ref cimport Py_XDECREF
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from enclave_os.http._message cimport Request


cdef extern from "llhttp.h" nogil:
    ctypedef struct llhttp_settings_t:
        int (*on_headers_complete)(llhttp_t *) noexcept
        int (*on_message_complete)(llhttp_t *) noexcept
        int (*on_chunk_header)(llhttp_t *) noexcept

    enum:
        LLHTTP_REQUEST "HTTP_REQUEST"
        HPE_OK
        HPE_INVALID_METHOD
        HPE_INVALID_VERSION
        HPE_PAUSED
        F_CHUNKED
        LLHTTP_DELETE "HTTP_DELETE"
        LLHTTP_GET "HTTP_GET"
        LLHTTP_HEAD "HTTP_HEAD"
        LLHTTP_POST "HTTP_POST"
        LLHTTP_PUT "HTTP_PUT"
        LLHTTP_OPTIONS "HTTP_OPTIONS"
        LLHTTP_PATCH "HTTP_PATCH"

    void llhttp_init(llhttp_t *parser, int type, const llhttp_settings_t *settings)
    void llhttp_reset(llhttp_t *parser)
    void llhttp_settings_init(llhttp_settings_t *settings)
    int llhttp_execute(llhttp_t *parser, const char *data, size_t size)
    void llhttp_resume(llhttp_t *parser)
    const char *llhttp_get_error_pos(const llhttp_t *parser)

cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize(const char *data, Py_ssize_t size)
    char *PyBytes_AS_STRING(PyObject *value)
    int _PyBytes_Resize(PyObject **value, Py_ssize_t size)
    PyObject *PyUnicode_DecodeUTF8(const char *data, Py_ssize_t size, const char *errors)
    PyObject *PyUnicode_DecodeASCII(const char *data, Py_ssize_t size, const char *errors)
    void PyErr_Clear()


# Inside a chunked body (RFC 9112 7.1), what the next byte belongs to.
cdef enum:
    PHASE_SIZE_LINE = 0
    PHASE_DATA = 1
    PHASE_DATA_END = 2
    PHASE_TRAILERS = 3

cdef enum:
    EVENT_CHUNK = 1
    EVENT_COMPLETE = 2
    # A size line of up to 8 digits, its CRLF and the one after the data: what is longer counts as overhead.
    SIZE_LINE_FREE = 12
    CONTENT_LENGTH_DIGITS_MAX = 19      # < 2**64, so the sum below cannot wrap
    HOST_SIZE_MAX = 261                 # a DNS name of 255 bytes, ":" and a port
    BODY_ROOM_FIRST = 65536             # a declared body costs memory as it comes, not when it is announced

# Byte classes; a byte is judged by one load from this table.
cdef enum:
    IS_TOKEN = 1        # RFC 9110 5.6.2 tchar
    IS_VALUE = 2        # RFC 9110 5.5: SP, HTAB, VCHAR, obs-text
    IS_PATH = 4         # RFC 3986 3.3 pchar and "/", without "%"
    IS_QUERY = 8        # VCHAR without #, ", <, >, \ : what clients send, not only what RFC 3986 3.4 allows
    IS_HEX = 16
    IS_DIGIT = 32
    IS_HOST = 64        # of a reg-name; neither "%" nor the sub-delims, which no DNS name has

cdef uint8_t[256] CLASS
cdef llhttp_settings_t SETTINGS

METHOD_NAMES = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
cdef tuple METHODS = METHOD_NAMES


cdef void build_class() noexcept:
    cdef int i
    cdef bytes token = b"!#$%&'*+-.^_`|~"
    cdef bytes path = b"-._~!$&'()*+,;=:@/"
    memset(CLASS, 0, sizeof(CLASS))
    for i in range(256):
        if c"0" <= i <= c"9":
            CLASS[i] |= IS_TOKEN | IS_PATH | IS_HEX | IS_DIGIT | IS_HOST
        elif c"a" <= (i | 0x20) <= c"z" and i < 128:
            CLASS[i] |= IS_TOKEN | IS_PATH | IS_HOST
            if (i | 0x20) <= c"f":
                CLASS[i] |= IS_HEX
        if i == 9 or (i >= 32 and i != 127):
            CLASS[i] |= IS_VALUE
        if 32 < i < 127 and i != c"#" and i != c'"' and i != c"<" and i != c">" and i != c"\\":
            CLASS[i] |= IS_QUERY
    for i in range(len(token)):
        CLASS[<uint8_t>token[i]] |= IS_TOKEN
    for i in range(len(path)):
        CLASS[<uint8_t>path[i]] |= IS_PATH
    for i in (c"-", c".", c"_", c"~"):
        CLASS[i] |= IS_HOST


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
    Py_XDECREF(p.head)
    Py_XDECREF(p.path)
    Py_XDECREF(p.body)
    p.head = p.path = p.body = NULL
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
    if p.state == HTTP_AT_REFUSAL:
        return HTTP_REFUSED
    if p.state == HTTP_DONE:
        return HTTP_REQUEST
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


# ---- head


cdef int feed_head(http_parser_t *p, const uint8_t *data, size_t size, size_t *pos) noexcept:
    # HTTP_REQUEST here means: head complete, go on with the state that it set.
    cdef size_t n = size - pos[0]
    cdef size_t taken
    cdef const uint8_t *start = data + pos[0]
    cdef int error
    if n > p.limits.head_size_max - p.partial_size:
        n = p.limits.head_size_max - p.partial_size
    error = llhttp_execute(&p.llhttp, <const char *>start, n)
    if error == HPE_OK:
        if p.partial_size + n == p.limits.head_size_max:
            return refuse_long_head(p, start, n)
        if not keep_partial(p, start, n):
            return refuse(p, 503, b"out of memory")
        pos[0] += n
        return HTTP_NEED_DATA
    taken = llhttp_get_error_pos(&p.llhttp) - <const char *>start
    if error != HPE_PAUSED:
        return refuse_llhttp(p, error, start, min(taken + 1, n))
    if p.partial_size:
        if not keep_partial(p, start, taken):
            return refuse(p, 503, b"out of memory")
        p.head = PyBytes_FromStringAndSize(<const char *>p.partial, p.partial_size)
        free(p.partial)
        p.partial = NULL
        n = p.partial_size
        p.partial_size = p.partial_room = 0
    else:
        p.head = PyBytes_FromStringAndSize(<const char *>start, taken)
        n = taken
    pos[0] += taken
    if p.head == NULL:
        PyErr_Clear()
        return refuse(p, 503, b"out of memory")
    return read_head(p, <const uint8_t *>PyBytes_AS_STRING(p.head), <uint32_t>n)


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


cdef int refuse_long_head(http_parser_t *p, const uint8_t *data, size_t size) noexcept:
    # The limit is reached and the head is not complete. If the request line is the culprit, say so (RFC 9110 15.5.15).
    cdef uint32_t spaces = 0
    cdef size_t i
    cdef size_t target = 0
    cdef uint8_t byte
    for i in range(p.partial_size + size):
        byte = p.partial[i] if i < p.partial_size else data[i - p.partial_size]
        if byte == c"\r":
            break
        if byte == c" ":
            spaces += 1
        elif spaces == 1:
            target += 1
    if target > p.limits.target_size_max:
        return refuse(p, 414, b"request target too long")
    return refuse(p, 431, b"request head too large")


cdef int refuse_llhttp(http_parser_t *p, int error, const uint8_t *data, size_t size) noexcept:
    # The last of the `size` bytes is the one that llhttp refused.
    cdef size_t i
    cdef uint8_t byte
    if error == HPE_INVALID_VERSION:
        return refuse(p, 505, b"HTTP version not supported")
    if error == HPE_INVALID_METHOD:
        # A method that is a token is one that we do not know (501); anything else is no request at all (400).
        for i in range(p.partial_size + size):
            byte = p.partial[i] if i < p.partial_size else data[i - p.partial_size]
            if not CLASS[byte] & IS_TOKEN and not (byte == c" " and i > 0):
                return refuse(p, 400, b"malformed request line")
        return refuse(p, 501, b"method not implemented")
    return refuse(p, 400, b"malformed request")


cdef int read_head(http_parser_t *p, const uint8_t *head, uint32_t size) noexcept:
    # `head` ends in CRLF CRLF (llhttp) and NUL (bytes object): NUL is in no class, so no scan below can leave it.
    cdef uint32_t i = 0
    cdef uint32_t start, name_size, end
    cdef uint32_t count = 0
    cdef uint64_t length = 0
    cdef bint has_host = False, has_length = False, has_coding = False, has_expect = False
    cdef bint wants_close = False, wants_keep = False
    cdef int authority
    cdef const uint8_t *name
    cdef uint32_t authority_offset = 0, authority_size = 0

    p.host_offset = p.host_size = 0
    # Request line: method SP target SP HTTP/1.x CRLF, with single spaces (RFC 9112 3).
    while CLASS[head[i]] & IS_TOKEN:
        i += 1
    if not read_method(p, head, i):
        return refuse(p, 501, b"method not implemented")
    if head[i] != c" ":
        return refuse(p, 400, b"malformed request line")
    i += 1
    p.target_offset = i
    while head[i] > c" ":
        i += 1
    p.target_size = i - p.target_offset
    if not (head[i] == c" " and head[i + 1] == c"H" and head[i + 2] == c"T" and head[i + 3] == c"T"
            and head[i + 4] == c"P" and head[i + 5] == c"/" and CLASS[head[i + 6]] & IS_DIGIT and head[i + 7] == c"."
            and CLASS[head[i + 8]] & IS_DIGIT and head[i + 9] == c"\r" and head[i + 10] == c"\n"):
        return refuse(p, 400, b"malformed request line")
    if head[i + 6] != c"1" or head[i + 8] > c"1":
        return refuse(p, 505, b"HTTP version not supported")
    p.http_minor = head[i + 8] - c"0"
    if p.target_size > p.limits.target_size_max:
        return refuse(p, 414, b"request target too long")
    i += 11
    p.fields_offset = i

    while head[i] != c"\r":
        count += 1
        if count > p.limits.header_count_max:
            return refuse(p, 431, b"too many header fields")
        name = head + i
        start = i
        while CLASS[head[i]] & IS_TOKEN:
            i += 1
        name_size = i - start
        if name_size == 0 or head[i] != c":":
            return refuse(p, 400, b"malformed header field name")
        i += 1
        while head[i] == c" " or head[i] == c"\t":
            i += 1
        start = i
        while CLASS[head[i]] & IS_VALUE:
            i += 1
        end = i
        if head[i] != c"\r" or head[i + 1] != c"\n":
            return refuse(p, 400, b"malformed header field value")
        i += 2
        while end > start and (head[end - 1] == c" " or head[end - 1] == c"\t"):
            end -= 1
        # The fields that decide where this request ends and for whom it is; each at most once.
        if name_size == 4 and same(name, b"host", 4):
            if has_host:
                return refuse(p, 400, b"more than one Host")
            has_host = True
            p.host_offset = start
            p.host_size = end - start
        elif name_size == 6 and same(name, b"expect", 6):
            if p.http_minor == 0:
                continue        # RFC 9110 10.1.1: ignored in HTTP/1.0
            if has_expect or end - start != 12 or not same(head + start, b"100-continue", 12):
                return refuse(p, 417, b"expectation not supported")
            has_expect = True
        elif name_size == 7 and same(name, b"upgrade", 7):
            return refuse(p, 501, b"protocol upgrade is not offered")
        elif name_size == 10 and same(name, b"connection", 10):
            read_connection(head + start, end - start, &wants_close, &wants_keep)
        elif name_size == 14 and same(name, b"content-length", 14):
            if has_length:
                return refuse(p, 400, b"more than one Content-Length")
            has_length = True
            if not read_length(head + start, end - start, &length):
                return refuse(p, 400, b"malformed Content-Length")
        elif name_size == 17 and same(name, b"transfer-encoding", 17):
            if has_coding or end - start != 7 or not same(head + start, b"chunked", 7):
                return refuse(p, 400, b"Transfer-Encoding other than chunked")
            has_coding = True
    if head[i + 1] != c"\n" or i + 2 != size:
        return refuse(p, 400, b"malformed request")

    if has_coding and has_length:
        return refuse(p, 400, b"both Content-Length and Transfer-Encoding")
    if has_coding and p.http_minor == 0:
        return refuse(p, 400, b"Transfer-Encoding in HTTP/1.0")     # RFC 9112 6.1: faulty framing
    if not agrees(p, has_coding, has_length, length):
        return refuse(p, 400, b"ambiguous request")
    if not has_host and p.http_minor == 1:
        return refuse(p, 400, b"missing Host")                      # RFC 9112 3.2
    if has_host and not host_is_valid(head + p.host_offset, p.host_size):
        return refuse(p, 400, b"malformed Host")
    authority = read_authority(p, head, &authority_offset, &authority_size)
    if authority < 0 or (authority and not (
        has_host and authority_size == p.host_size
        and same_bytes(head + authority_offset, head + p.host_offset, p.host_size)
    )):
        return refuse(p, 400, b"request target for another authority")
    if not read_path(p, head, authority_offset + authority_size if authority else p.target_offset):
        return refuse(p, 400, b"malformed request target")

    p.header_count = count
    p.overhead = size
    p.keep_alive = not wants_close and (p.http_minor == 1 or wants_keep)
    p.is_head = p.method == METHOD_HEAD
    p.chunked = has_coding
    if has_length and length > p.limits.body_size_max:
        return refuse(p, 413, b"request body too large")
    if has_coding:
        p.state = HTTP_IN_BODY
        p.phase = PHASE_SIZE_LINE
        p.line_size = 0
        p.before = 0
        llhttp_resume(&p.llhttp)
    elif length:
        p.state = HTTP_IN_BODY
        p.body_left = length
    else:
        p.state = HTTP_DONE
        return HTTP_REQUEST
    return HTTP_CONTINUE if has_expect else HTTP_REQUEST


cdef inline bint same(const uint8_t *data, const char *lower, uint32_t size) noexcept nogil:
    # ASCII case-insensitive against a lower-case constant. | 0x20 folds letters; the other bytes that it folds onto
    # letters and "-" ("@" to "`", CR to "-", ...) are either no tokens or, for values, refused before or after.
    cdef uint32_t i
    cdef uint8_t byte
    for i in range(size):
        byte = data[i]
        if c"A" <= byte <= c"Z":
            byte |= 0x20
        if byte != <uint8_t>lower[i]:
            return False
    return True


cdef bint same_bytes(const uint8_t *a, const uint8_t *b, uint32_t size) noexcept nogil:
    cdef uint32_t i
    cdef uint8_t x, y
    for i in range(size):
        x = a[i]
        y = b[i]
        if c"A" <= x <= c"Z":
            x |= 0x20
        if c"A" <= y <= c"Z":
            y |= 0x20
        if x != y:
            return False
    return True


cdef bint read_method(http_parser_t *p, const uint8_t *head, uint32_t size) noexcept nogil:
    # Methods are case-sensitive (RFC 9110 9.1). CONNECT and TRACE are not ours to serve.
    if size == 3:
        if head[0] == c"G" and head[1] == c"E" and head[2] == c"T":
            p.method = METHOD_GET
            return True
        if head[0] == c"P" and head[1] == c"U" and head[2] == c"T":
            p.method = METHOD_PUT
            return True
    elif size == 4:
        if head[0] == c"P" and head[1] == c"O" and head[2] == c"S" and head[3] == c"T":
            p.method = METHOD_POST
            return True
        if head[0] == c"H" and head[1] == c"E" and head[2] == c"A" and head[3] == c"D":
            p.method = METHOD_HEAD
            return True
    elif size == 5:
        if head[0] == c"P" and head[1] == c"A" and head[2] == c"T" and head[3] == c"C" and head[4] == c"H":
            p.method = METHOD_PATCH
            return True
    elif size == 6:
        if head[0] == c"D" and head[1] == c"E" and head[2] == c"L" and head[3] == c"E" and head[4] == c"T" and (
            head[5] == c"E"
        ):
            p.method = METHOD_DELETE
            return True
    elif size == 7:
        if head[0] == c"O" and head[1] == c"P" and head[2] == c"T" and head[3] == c"I" and head[4] == c"O" and (
            head[5] == c"N" and head[6] == c"S"
        ):
            p.method = METHOD_OPTIONS
            return True
    return False


cdef void read_connection(const uint8_t *value, uint32_t size, bint *close, bint *keep) noexcept nogil:
    # A list of tokens (RFC 9110 7.6.1); only close and keep-alive mean something to us.
    cdef uint32_t i = 0
    cdef uint32_t start
    while i < size:
        while i < size and (value[i] == c"," or value[i] == c" " or value[i] == c"\t"):
            i += 1
        start = i
        while i < size and CLASS[value[i]] & IS_TOKEN:
            i += 1
        if i - start == 5 and same(value + start, b"close", 5):
            close[0] = True
        elif i - start == 10 and same(value + start, b"keep-alive", 10):
            keep[0] = True
        while i < size and value[i] != c",":
            i += 1


cdef bint read_length(const uint8_t *value, uint32_t size, uint64_t *length) noexcept nogil:
    # 1*DIGIT and nothing else (RFC 9110 8.6): no sign, no list, no 0x.
    cdef uint32_t i
    cdef uint64_t total = 0
    if size == 0 or size > CONTENT_LENGTH_DIGITS_MAX:
        return False
    for i in range(size):
        if not CLASS[value[i]] & IS_DIGIT:
            return False
        total = total * 10 + (value[i] - c"0")
    length[0] = total
    return True


cdef bint agrees(http_parser_t *p, bint coding, bint has_length, uint64_t length) noexcept nogil:
    # llhttp's opinion of the same head. A difference is a bug in one of the two, and a way to smuggle; so it is refused.
    cdef uint8_t method
    if p.method == METHOD_GET:
        method = LLHTTP_GET
    elif p.method == METHOD_HEAD:
        method = LLHTTP_HEAD
    elif p.method == METHOD_POST:
        method = LLHTTP_POST
    elif p.method == METHOD_PUT:
        method = LLHTTP_PUT
    elif p.method == METHOD_PATCH:
        method = LLHTTP_PATCH
    elif p.method == METHOD_DELETE:
        method = LLHTTP_DELETE
    else:
        method = LLHTTP_OPTIONS
    return (
        p.llhttp.method == method and p.llhttp.http_major == 1 and p.llhttp.http_minor == p.http_minor
        and ((p.llhttp.flags & F_CHUNKED) != 0) == coding
        and (not has_length or p.llhttp.content_length == length)
    )


cdef bint host_is_valid(const uint8_t *host, uint32_t size) noexcept nogil:
    # uri-host [ ":" port ] (RFC 9110 7.2). https needs a host, so an empty one is refused (RFC 9110 4.2.2).
    cdef uint32_t i = 0
    cdef uint32_t start
    cdef uint32_t port = 0
    if size == 0 or size > HOST_SIZE_MAX:
        return False
    if host[0] == c"[":
        i = 1
        while i < size and (CLASS[host[i]] & IS_HEX or host[i] == c":" or host[i] == c"."):
            i += 1
        if i < 4 or i == size or host[i] != c"]":       # shortest: [::
            if not (i == 3 and i < size and host[i] == c"]"):
                return False
        i += 1
    else:
        while i < size and CLASS[host[i]] & IS_HOST:
            i += 1
        if i == 0:
            return False
    if i == size:
        return True
    if host[i] != c":" or size - i > 6 or size - i < 2:
        return False
    start = i + 1
    for i in range(start, size):
        if not CLASS[host[i]] & IS_DIGIT:
            return False
        port = port * 10 + (host[i] - c"0")
    return port <= 65535


cdef int read_authority(http_parser_t *p, const uint8_t *head, uint32_t *offset, uint32_t *size) noexcept nogil:
    # 0: not absolute-form. 1: absolute-form, its authority is at offset, size. -1: a form or scheme not for us.
    # RFC 9112 3.2.2: absolute-form must be accepted; we are the origin of https only, behind no proxy.
    cdef const uint8_t *target = head + p.target_offset
    cdef uint32_t i
    if p.target_size == 0:
        return -1
    if target[0] == c"/" or target[0] == c"*":
        return 0
    if p.target_size < 9 or not same(target, b"https://", 8):
        return -1
    i = 8
    while i < p.target_size and target[i] != c"/" and target[i] != c"?":
        i += 1
    offset[0] = p.target_offset + 8
    size[0] = i - 8
    return 1


cdef bint read_path(http_parser_t *p, const uint8_t *head, uint32_t i) noexcept:
    # Decode the path once into p.path, and note where the query is. False: not a target that names one resource (HT5).
    cdef uint32_t end = p.target_offset + p.target_size
    cdef uint32_t start = i
    cdef bint plain = True
    cdef uint8_t byte
    p.query_offset = end
    p.query_size = 0
    if i < end and head[i] == c"*":
        if p.target_size != 1 or p.method != METHOD_OPTIONS:
            return False
        return keep_path(p, b"*", 1)
    while i < end:
        byte = head[i]
        if CLASS[byte] & IS_PATH:
            if byte == c"." and head[i - 1] == c"/":
                plain = False
        elif byte == c"%":
            plain = False
        else:
            break
        i += 1
    if i < end:
        if head[i] != c"?":
            return False
        p.query_offset = i + 1
        p.query_size = end - i - 1
        if not query_is_valid(head + p.query_offset, p.query_size):
            return False
    if i == start:      # absolute-form without a path (RFC 9110 4.2.3); for OPTIONS it is "*" (RFC 9112 3.2.4)
        if p.method == METHOD_OPTIONS and p.query_offset == end:
            return keep_path(p, b"*", 1)
        return keep_path(p, b"/", 1)
    if plain:
        return keep_path(p, <const char *>head + start, i - start)
    return decode_path(p, head + start, i - start)


cdef bint keep_path(http_parser_t *p, const char *path, Py_ssize_t size) noexcept:
    p.path = PyUnicode_DecodeASCII(path, size, NULL)
    if p.path == NULL:
        PyErr_Clear()
        return False
    return True


cdef inline uint8_t hex_value(uint8_t byte) noexcept nogil:
    return byte - c"0" if byte <= c"9" else (byte | 0x20) - c"a" + 10


cdef bint query_is_valid(const uint8_t *query, uint32_t size) noexcept nogil:
    # The query stays encoded: only its bytes and its percent triplets are checked.
    cdef uint32_t i
    for i in range(size):
        if not CLASS[query[i]] & IS_QUERY:
            return False
        if query[i] == c"%" and not (
            i + 2 < size and CLASS[query[i + 1]] & IS_HEX and CLASS[query[i + 2]] & IS_HEX
        ):
            return False
    return True


cdef bint decode_path(http_parser_t *p, const uint8_t *path, uint32_t size) noexcept:
    # Once, strictly. What would be a separator, a control or the end of a string after decoding is refused, and so is
    # every dot segment: a path that was normalised here and not by a router would be two routes (RFC 3986 6.2.2.3).
    cdef uint8_t *out = <uint8_t *>malloc(size)
    cdef uint32_t i = 0
    cdef uint32_t n = 0
    cdef uint32_t segment = 0
    cdef uint8_t byte
    cdef bint good = True
    if out == NULL:
        return False
    while i < size:
        byte = path[i]
        if byte == c"%":
            # path is inside the head, which goes on after the target: two bytes ahead are always readable.
            if not (i + 2 < size and CLASS[path[i + 1]] & IS_HEX and CLASS[path[i + 2]] & IS_HEX):
                good = False
                break
            byte = hex_value(path[i + 1]) << 4 | hex_value(path[i + 2])
            i += 2
            if byte < c" " or byte == 127 or byte == c"/" or byte == c"\\":
                good = False
                break
            out[n] = byte
        else:
            if byte == c"/":
                if is_dot_segment(out + segment, n - segment):
                    good = False
                    break
                segment = n + 1
            out[n] = byte
        n += 1
        i += 1
    if good and not is_dot_segment(out + segment, n - segment):
        p.path = PyUnicode_DecodeUTF8(<const char *>out, n, NULL)       # strict: no overlong form, no surrogate
        if p.path == NULL:
            PyErr_Clear()
    free(out)
    return p.path != NULL


cdef inline bint is_dot_segment(const uint8_t *segment, uint32_t size) noexcept nogil:
    return (size == 1 or (size == 2 and segment[1] == c".")) and segment[0] == c"."


# ---- body


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
    elif byte != c"\r" and not CLASS[byte] & IS_VALUE:
        return refuse(p, 400, b"control byte in chunked body")
    elif byte == c" " or byte == c"\t":
        if p.phase != PHASE_TRAILERS or p.line_size == 0:
            return refuse(p, 400, b"blank in chunk framing")
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


# ---- the request


cdef Request http_take_request(http_parser_t *p):
    cdef Request request
    if p.state != HTTP_DONE or p.head == NULL:
        raise RuntimeError("no complete request to take")       # our caller's bug
    request = Request.__new__(Request)
    request.method = <str>METHODS[p.method]
    request.path = <str>p.path
    request.head = <bytes>p.head
    request.body = <bytes>p.body if p.body != NULL else b""
    request.target_offset = p.target_offset
    request.target_size = p.target_size
    request.query_offset = p.query_offset
    request.query_size = p.query_size
    request.fields_offset = p.fields_offset
    request.host_offset = p.host_offset
    request.host_size = p.host_size
    request.http_minor = p.http_minor
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
        cdef int result
        cdef uint8_t empty = 0
        if data.shape[0]:
            result = http_parser_feed(&self.parser, &data[0], data.shape[0], &used)
        else:
            result = http_parser_feed(&self.parser, &empty, 0, &used)
        return result, used

    def take(self):
        """The complete request, once. Raises RuntimeError when there is none."""
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

build_class()
llhttp_settings_init(&SETTINGS)
SETTINGS.on_headers_complete = on_headers_complete
SETTINGS.on_chunk_header = on_chunk_header
SETTINGS.on_message_complete = on_message_complete
