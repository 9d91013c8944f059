"""The head of an HTTP/1.1 request, read by our own rules: pure functions over bytes that are complete and private.

Narrower than RFC 9112 where clients do not need its width (threat-model.md G): CRLF only, token names, no fold, no blanks in the
request line (HT2); one Content-Length of digits or exactly `Transfer-Encoding: chunked`, never both (HT1, 6.3); a target
in origin form, decoded once, without dot segments or hidden separators (HT5; 3.2, RFC 3986 6.2.2).
Every scan ends at the NUL behind the head, which is in no byte class.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

cdef extern from "Python.h":
    PyObject *PyUnicode_DecodeUTF8(const char *data, Py_ssize_t size, const char *errors)
    PyObject *PyUnicode_DecodeASCII(const char *data, Py_ssize_t size, const char *errors)
    void PyErr_Clear()

cdef enum:
    CONTENT_LENGTH_DIGITS_MAX = 19      # < 2**64, so the sum below cannot wrap
    HOST_SIZE_MAX = 261                 # a DNS name of 255 bytes, ":" and a port

# Byte classes; a byte is judged by one load from this table.
cdef enum:
    IS_TOKEN = 1        # RFC 9110 5.6.2 tchar
    IS_VALUE = 2        # RFC 9110 5.5: SP, HTAB, VCHAR, obs-text
    IS_PATH = 4         # RFC 3986 3.3 pchar and "/", without "%"
    IS_QUERY = 8        # VCHAR without #, ", <, >, \ : what clients send, not only what RFC 3986 3.4 allows
    IS_HEX = 16
    IS_DIGIT = 32
    IS_HOST = 64        # of a reg-name; neither "%" nor the sub-delims, which no DNS name has

# What we say about a connection on every answer. From a client it would be a lie that a module might believe (RT12).
cdef const char *OURS = "x-privasys-attestation"

cdef uint8_t[256] CLASS


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


cdef bint head_is_token_byte(uint8_t byte) noexcept nogil:
    return CLASS[byte] & IS_TOKEN


cdef const char *head_too_long(
    const uint8_t *head, uint32_t size, const http_limits_t *limits, uint16_t *status
) noexcept nogil:
    cdef uint32_t i = 0
    cdef uint32_t start
    while i < size and CLASS[head[i]] & IS_TOKEN:
        i += 1
    start = i = i + 1
    while i < size and head[i] > c" ":
        i += 1
    if i > start and i - start > limits.target_size_max:
        status[0] = 414
        return b"request target too long"
    status[0] = 431
    return b"request head too large"


cdef const char *head_no_method(const uint8_t *head, uint32_t size, uint16_t *status) noexcept nogil:
    cdef uint32_t i
    for i in range(size):
        if not CLASS[head[i]] & IS_TOKEN and not (i > 0 and head[i] == c" "):
            status[0] = 400
            return b"malformed request line"
    status[0] = 501
    return b"method not implemented"


cdef const char *head_no_version(const uint8_t *head, uint32_t size, uint16_t *status) noexcept nogil:
    # The last 9 bytes are SP HTTP/d.d; of one that llhttp knows, it is what follows that it could not read.
    cdef const uint8_t *last = head + (size - 9 if size > 9 else 0)
    cdef bint whole = (
        size > 9 and last[0] == c" " and same(last + 1, b"http/", 5)
        and CLASS[last[6]] & IS_DIGIT and last[7] == c"." and CLASS[last[8]] & IS_DIGIT
    )
    if whole and not (
        (last[6] == c"1" and last[8] <= c"1") or (last[6] == c"2" and last[8] == c"0")
        or (last[6] == c"0" and last[8] == c"9")
    ):
        status[0] = 505
        return b"HTTP version not supported"
    status[0] = 400
    return b"malformed request line"


cdef inline bint refuse(head_t *h, uint16_t status, const char *reason) noexcept nogil:
    h.status = status
    h.reason = reason
    return False


cdef bint head_read(head_t *h, const uint8_t *head, uint32_t size, const http_limits_t *limits) noexcept nogil:
    memset(h, 0, sizeof(head_t))
    if not read_request_line(h, head, limits) or not read_fields(h, head, size, limits):
        return False
    if h.chunked and h.has_length:
        return refuse(h, 400, b"both Content-Length and Transfer-Encoding")
    if h.chunked and h.http_minor == 0:
        return refuse(h, 400, b"Transfer-Encoding in HTTP/1.0")     # RFC 9112 6.1: faulty framing
    if not h.has_host and h.http_minor == 1:
        return refuse(h, 400, b"missing Host")                      # RFC 9112 3.2
    if h.has_host and not host_is_valid(head + h.host_offset, h.host_size):
        return refuse(h, 400, b"malformed Host")
    if not read_target(h, head):
        return False
    if h.length > limits.body_size_max:
        return refuse(h, 413, b"request body too large")
    return True


cdef bint read_request_line(head_t *h, const uint8_t *head, const http_limits_t *limits) noexcept nogil:
    # method SP target SP HTTP/1.x CRLF, with single spaces (RFC 9112 3).
    cdef uint32_t i = 0
    while CLASS[head[i]] & IS_TOKEN:
        i += 1
    if not read_method(h, head, i):
        return refuse(h, 501, b"method not implemented")
    if head[i] != c" ":
        return refuse(h, 400, b"malformed request line")
    i += 1
    h.target_offset = i
    while head[i] > c" ":
        i += 1
    h.target_size = i - h.target_offset
    if not (head[i] == c" " and head[i + 1] == c"H" and head[i + 2] == c"T" and head[i + 3] == c"T"
            and head[i + 4] == c"P" and head[i + 5] == c"/" and CLASS[head[i + 6]] & IS_DIGIT and head[i + 7] == c"."
            and CLASS[head[i + 8]] & IS_DIGIT and head[i + 9] == c"\r" and head[i + 10] == c"\n"):
        return refuse(h, 400, b"malformed request line")
    if head[i + 6] != c"1" or head[i + 8] > c"1":
        return refuse(h, 505, b"HTTP version not supported")
    h.http_minor = head[i + 8] - c"0"
    if h.target_size > limits.target_size_max:
        return refuse(h, 414, b"request target too long")
    h.fields_offset = i + 11
    return True


cdef bint read_fields(head_t *h, const uint8_t *head, uint32_t size, const http_limits_t *limits) noexcept nogil:
    cdef uint32_t i = h.fields_offset
    cdef uint32_t start, name_size, end
    cdef const uint8_t *name
    h.keep_alive = h.http_minor == 1
    while head[i] != c"\r":
        h.header_count += 1
        if h.header_count > limits.header_count_max:
            return refuse(h, 431, b"too many header fields")
        name = head + i
        start = i
        while CLASS[head[i]] & IS_TOKEN:
            i += 1
        name_size = i - start
        if name_size == 0 or head[i] != c":":
            return refuse(h, 400, b"malformed header field name")
        i += 1
        while head[i] == c" " or head[i] == c"\t":
            i += 1
        start = i
        while CLASS[head[i]] & IS_VALUE:
            i += 1
        end = i
        if head[i] != c"\r" or head[i + 1] != c"\n":
            return refuse(h, 400, b"malformed header field value")
        i += 2
        while end > start and (head[end - 1] == c" " or head[end - 1] == c"\t"):
            end -= 1
        if not take_field(h, name, name_size, head, start, end - start):
            return False
    if h.wants_close:
        h.keep_alive = False
    if head[i + 1] != c"\n" or i + 2 != size:
        return refuse(h, 400, b"malformed request")
    return True


cdef bint take_field(
    head_t *h, const uint8_t *name, uint32_t name_size, const uint8_t *head, uint32_t offset, uint32_t size
) noexcept nogil:
    # The fields that decide where this request ends and for whom it is; each at most once.
    cdef const uint8_t *value = head + offset
    if name_size == 4 and same(name, b"host", 4):
        if h.has_host:
            return refuse(h, 400, b"more than one Host")
        h.has_host = True
        h.host_offset = offset
        h.host_size = size
    elif name_size == 6 and same(name, b"expect", 6):
        if h.http_minor == 0:
            return True         # RFC 9110 10.1.1: ignored in HTTP/1.0
        if h.expects or size != 12 or not same(value, b"100-continue", 12):
            return refuse(h, 417, b"expectation not supported")
        h.expects = True
    elif name_size == 7 and same(name, b"upgrade", 7):
        return refuse(h, 501, b"protocol upgrade is not offered")
    elif name_size == 10 and same(name, b"connection", 10):
        read_connection(h, value, size)
    elif name_size == 14 and same(name, b"content-length", 14):
        if h.has_length:
            return refuse(h, 400, b"more than one Content-Length")
        h.has_length = True
        if not read_length(h, value, size):
            return refuse(h, 400, b"malformed Content-Length")
    elif name_size == 17 and same(name, b"transfer-encoding", 17):
        if h.chunked or size != 7 or not same(value, b"chunked", 7):
            return refuse(h, 400, b"Transfer-Encoding other than chunked")
        h.chunked = True
    elif name_size == 22 and same(name, OURS, 22):
        h.has_ours = True
    return True


cdef bytes head_without_ours(bytes head, uint32_t fields_offset):
    # A checked head: its lines end in CRLF, and nothing else in it does.
    cdef bytes line
    lines = head[fields_offset:].split(b"\r\n")
    kept = [line for line in lines if line.partition(b":")[0].lower() != OURS]
    return head[:fields_offset] + b"\r\n".join(kept)


cdef inline uint8_t lower(uint8_t byte) noexcept nogil:
    return byte | 0x20 if c"A" <= byte <= c"Z" else byte


cdef inline bint same(const uint8_t *data, const char *text, uint32_t size) noexcept nogil:
    # Without regard to ASCII case; `text` is lower case.
    cdef uint32_t i
    for i in range(size):
        if lower(data[i]) != <uint8_t>text[i]:
            return False
    return True


cdef bint read_method(head_t *h, const uint8_t *head, uint32_t size) noexcept nogil:
    # Methods are case-sensitive (RFC 9110 9.1). CONNECT and TRACE are not ours to serve.
    if size == 3:
        if head[0] == c"G" and head[1] == c"E" and head[2] == c"T":
            h.method = METHOD_GET
            return True
        if head[0] == c"P" and head[1] == c"U" and head[2] == c"T":
            h.method = METHOD_PUT
            return True
    elif size == 4:
        if head[0] == c"P" and head[1] == c"O" and head[2] == c"S" and head[3] == c"T":
            h.method = METHOD_POST
            return True
        if head[0] == c"H" and head[1] == c"E" and head[2] == c"A" and head[3] == c"D":
            h.method = METHOD_HEAD
            return True
    elif size == 5:
        if head[0] == c"P" and head[1] == c"A" and head[2] == c"T" and head[3] == c"C" and head[4] == c"H":
            h.method = METHOD_PATCH
            return True
    elif size == 6:
        if head[0] == c"D" and head[1] == c"E" and head[2] == c"L" and head[3] == c"E" and head[4] == c"T" and (
            head[5] == c"E"
        ):
            h.method = METHOD_DELETE
            return True
    elif size == 7:
        if head[0] == c"O" and head[1] == c"P" and head[2] == c"T" and head[3] == c"I" and head[4] == c"O" and (
            head[5] == c"N" and head[6] == c"S"
        ):
            h.method = METHOD_OPTIONS
            return True
    return False


cdef void read_connection(head_t *h, const uint8_t *value, uint32_t size) noexcept nogil:
    # A list of tokens (RFC 9110 7.6.1); only close and keep-alive mean something to us, and close wins.
    cdef uint32_t i = 0
    cdef uint32_t start
    while i < size:
        while i < size and (value[i] == c"," or value[i] == c" " or value[i] == c"\t"):
            i += 1
        start = i
        while i < size and CLASS[value[i]] & IS_TOKEN:
            i += 1
        if i - start == 5 and same(value + start, b"close", 5):
            h.wants_close = True
        elif i - start == 10 and same(value + start, b"keep-alive", 10):
            h.keep_alive = True
        while i < size and value[i] != c",":
            i += 1


cdef bint read_length(head_t *h, const uint8_t *value, uint32_t size) noexcept nogil:
    # 1*DIGIT and nothing else (RFC 9110 8.6): no sign, no list, no 0x.
    cdef uint32_t i
    if size == 0 or size > CONTENT_LENGTH_DIGITS_MAX:
        return False
    for i in range(size):
        if not CLASS[value[i]] & IS_DIGIT:
            return False
        h.length = h.length * 10 + (value[i] - c"0")
    return True


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


# ---- target


cdef bint read_target(head_t *h, const uint8_t *head) noexcept nogil:
    # origin-form, absolute-form for our own authority, or "*" (RFC 9112 3.2). Sets the spans of path and query.
    cdef uint32_t i = h.target_offset
    cdef uint32_t end = i + h.target_size
    cdef uint8_t byte
    if h.target_size == 1 and head[i] == c"*" and h.method == METHOD_OPTIONS:
        h.path_form = PATH_ASTERISK
        return True
    if head[i] != c"/":
        if not skip_authority(h, head, &i):
            return refuse(h, 400, b"request target for another authority")
    h.path_offset = i
    h.path_form = PATH_PLAIN
    while i < end:
        byte = head[i]
        if CLASS[byte] & IS_PATH:
            if byte == c"." and head[i - 1] == c"/":
                h.path_form = PATH_ENCODED      # perhaps a dot segment: looked at by decode_path
        elif byte == c"%":
            h.path_form = PATH_ENCODED
        else:
            break
        i += 1
    h.path_size = i - h.path_offset
    h.query_offset = end
    if i < end:
        h.query_offset = i + 1
        h.query_size = end - i - 1
        if head[i] != c"?" or not query_is_valid(head + h.query_offset, h.query_size):
            return refuse(h, 400, b"malformed request target")
    if h.path_size == 0:
        # absolute-form without a path (RFC 9110 4.2.3); for OPTIONS it means the server (RFC 9112 3.2.4)
        h.path_form = PATH_ASTERISK if h.method == METHOD_OPTIONS and i == end else PATH_ROOT
    return True


cdef bint skip_authority(head_t *h, const uint8_t *head, uint32_t *pos) noexcept nogil:
    # absolute-form must be accepted (RFC 9112 3.2.2). We are an origin of https, so it must say so, and what Host says.
    cdef uint32_t start = h.target_offset + 8
    cdef uint32_t end = h.target_offset + h.target_size
    cdef uint32_t i = start
    cdef uint32_t k
    if h.target_size < 9 or not same(head + h.target_offset, b"https://", 8):
        return False
    while i < end and head[i] != c"/" and head[i] != c"?":
        i += 1
    if not h.has_host or i - start != h.host_size:
        return False
    for k in range(h.host_size):
        if lower(head[start + k]) != lower(head[h.host_offset + k]):
            return False
    pos[0] = i
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


cdef PyObject *head_path(const head_t *h, const uint8_t *head) noexcept:
    if h.path_form == PATH_PLAIN:
        return made(PyUnicode_DecodeASCII(<const char *>head + h.path_offset, h.path_size, NULL))
    if h.path_form == PATH_ENCODED:
        return decode_path(head + h.path_offset, h.path_size)
    return made(PyUnicode_DecodeASCII("*" if h.path_form == PATH_ASTERISK else "/", 1, NULL))


cdef inline PyObject *made(PyObject *text) noexcept:
    if text == NULL:
        PyErr_Clear()
    return text


cdef PyObject *decode_path(const uint8_t *path, uint32_t size) noexcept:
    # Once, strictly. What would be a separator, a control or the end of a string after decoding is refused, and so is
    # every dot segment: a path that was normalised here and not by a router would be two routes (RFC 3986 6.2.2.3).
    cdef uint8_t *out = <uint8_t *>malloc(size)
    cdef PyObject *text = NULL
    cdef uint32_t i = 0
    cdef uint32_t n = 0
    cdef uint32_t segment = 0
    cdef uint8_t byte
    if out == NULL:
        return NULL
    while i < size:
        byte = path[i]
        if byte == c"%":
            if not (i + 2 < size and CLASS[path[i + 1]] & IS_HEX and CLASS[path[i + 2]] & IS_HEX):
                break
            byte = hex_value(path[i + 1]) << 4 | hex_value(path[i + 2])
            i += 2
            if byte < c" " or byte == 127 or byte == c"/" or byte == c"\\":
                break
        elif byte == c"/":
            if is_dot_segment(out + segment, n - segment):
                break
            segment = n + 1
        out[n] = byte
        n += 1
        i += 1
    if i == size and not is_dot_segment(out + segment, n - segment):
        text = made(PyUnicode_DecodeUTF8(<const char *>out, n, NULL))       # strict: no overlong form, no surrogate
    free(out)
    return text


cdef inline bint is_dot_segment(const uint8_t *segment, uint32_t size) noexcept nogil:
    return (size == 1 or (size == 2 and segment[1] == c".")) and segment[0] == c"."


build_class()
