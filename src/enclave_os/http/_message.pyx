"""Request and Response: what a module is given and what it gives back. C interface in _message.pxd.

A Request owns the bytes of its head, which the parser has checked; fields, query and raw target are cut from it when they are
asked for. A Response is immutable and keeps its encoded head, so one that is returned again costs two copies.
HT6: no CR, LF, NUL or other control byte gets from a module into a head; and framing fields are ours alone to write.
"""

import ipaddress
import json

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeLatin1
from libc.string cimport memcpy

from enclave_os.errors import ConnectionGone
from enclave_os.http.errors import HTTPError

# Written by us from what we know (framing, connection, date, attestation), or given by its own argument.
cdef frozenset OWN_FIELDS = frozenset((
    "connection", "content-length", "content-type", "date", "keep-alive", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "x-privasys-attestation",
))
# A value nested deeper is refused before the recursive parser sees it (threat-model.md JW7).
JSON_DEPTH_MAX = 32

# RFC 9110 15, for the status line; an unlisted status goes without a phrase (RFC 9112 4).
cdef dict PHRASES = {
    200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content",
    205: "Reset Content", 206: "Partial Content", 300: "Multiple Choices", 301: "Moved Permanently", 302: "Found",
    303: "See Other", 304: "Not Modified", 307: "Temporary Redirect", 308: "Permanent Redirect", 400: "Bad Request",
    401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    406: "Not Acceptable", 408: "Request Timeout", 409: "Conflict", 410: "Gone", 411: "Length Required",
    412: "Precondition Failed", 413: "Content Too Large", 414: "URI Too Long", 415: "Unsupported Media Type",
    416: "Range Not Satisfiable", 417: "Expectation Failed", 421: "Misdirected Request", 422: "Unprocessable Content",
    423: "Locked", 425: "Too Early", 428: "Precondition Required", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported", 507: "Insufficient Storage",
}

# Status line and Content-Type as encoded before, by (status, content_type).
cdef dict PREFIXES = {}
cdef enum:
    PREFIXES_MAX = 64


cdef inline uint8_t lower(uint8_t byte) noexcept nogil:
    return byte | 0x20 if c"A" <= byte <= c"Z" else byte


@cython.final
cdef class Headers:
    """Header fields of a request: a read-only multi-map, names without regard to case.

    A field that occurs more than once reads as its values joined by ", " (RFC 9110 5.3); `get_all` keeps them apart.
    Values are decoded as ISO-8859-1, so no byte is lost.
    """

    def __cinit__(self):
        self.head = b""
        self.offset = 0

    def __init__(self):
        raise TypeError("Headers belong to a Request")

    cdef bint find(self, const uint8_t *name, Py_ssize_t size, uint32_t *pos, uint32_t *start, uint32_t *end) noexcept:
        # The next field from `pos` on whose name is `name` (any, when NULL: `size` is then set by no one). The head was
        # checked by the parser: CRLF lines, a colon in each, an empty line last. The bounds are kept all the same.
        cdef const uint8_t *head = <const uint8_t *>PyBytes_AS_STRING(self.head)
        cdef uint32_t limit = <uint32_t>PyBytes_GET_SIZE(self.head)
        cdef uint32_t i = pos[0]
        cdef uint32_t k, first
        cdef bint match
        while i < limit and head[i] != c"\r":
            first = i
            while i < limit and head[i] != c":":
                i += 1
            match = i - first == size
            if match:
                for k in range(<uint32_t>size):
                    if lower(head[first + k]) != name[k]:
                        match = False
                        break
            i += 1
            while i < limit and (head[i] == c" " or head[i] == c"\t"):
                i += 1
            start[0] = i
            while i < limit and head[i] != c"\r":
                i += 1
            end[0] = i
            i += 2
            if match:
                pos[0] = i
                while end[0] > start[0] and (head[end[0] - 1] == c" " or head[end[0] - 1] == c"\t"):
                    end[0] -= 1
                return True
        return False

    def get_all(self, str name not None):
        """Every value of field `name`, in order; [] when absent."""
        cdef bytes key = name.encode("latin-1", "replace").lower()    # "?" is in no name
        cdef uint32_t pos = self.offset, start = 0, end = 0
        cdef list values = []
        while self.find(<const uint8_t *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &pos, &start, &end):
            values.append(PyUnicode_DecodeLatin1(PyBytes_AS_STRING(self.head) + start, end - start, NULL))
        return values

    def get(self, str name not None, default=None):
        """The value of field `name`, or `default` when absent."""
        cdef list values = self.get_all(name)
        if not values:
            return default
        return values[0] if len(values) == 1 else ", ".join(values)

    def __getitem__(self, str name not None):
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name):
        return isinstance(name, str) and self.get(name) is not None

    def items(self):
        """[(lower-case name, value)] in the order received, repeated fields apart."""
        cdef list pairs = []
        cdef bytes line
        for line in self.head[self.offset:].split(b"\r\n"):
            if not line:
                break
            name, _, value = line.partition(b":")
            pairs.append((name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")))
        return pairs

    def __iter__(self):
        return iter(dict.fromkeys([name for name, _ in self.items()]))

    def __len__(self):
        return len(dict.fromkeys([name for name, _ in self.items()]))

    def __repr__(self):
        # Names only: values may be tokens (threat-model.md SE3).
        return f"<Headers {', '.join(self)}>"


@cython.final
@cython.freelist(64)
cdef class Request:
    """One HTTP request, complete with its body. Made by the parser; `http.make_request` makes one for tests."""

    def __init__(self):
        raise TypeError("a Request comes from the parser; http.make_request makes one for tests")

    @property
    def raw_target(self):
        """The request target as received."""
        return self.head[self.target_offset:self.target_offset + self.target_size]

    @property
    def query(self):
        """What followed "?", still percent-encoded, ASCII; "" when there was none."""
        if self.query_size == 0:
            return ""
        return PyUnicode_DecodeASCII(PyBytes_AS_STRING(self.head) + self.query_offset, self.query_size, NULL)

    @property
    def host(self):
        """The Host field as received, checked: name or address, perhaps with a port; "" in an HTTP/1.0 request without."""
        if self.host_size == 0:
            return ""
        return PyUnicode_DecodeASCII(PyBytes_AS_STRING(self.head) + self.host_offset, self.host_size, NULL)

    @property
    def hostname(self):
        """The name or address in Host, for comparing: lower case, without port, brackets and final dot; "" without Host.

        An IPv6 address is in its short form, so that it has one spelling.
        """
        return request_hostname(self)

    @property
    def connection(self):
        """The TLS connection it came by, an `http.Connection`. Raises: ConnectionGone: it came by none (a test's)."""
        if self.link is None:
            raise ConnectionGone("this request came by no connection")
        return self.link

    @connection.setter
    def connection(self, value):
        self.link = value

    @property
    def http_version(self):
        """"1.1" or "1.0"."""
        return "1.1" if self.http_minor else "1.0"

    @property
    def headers(self):
        """Header fields. Trailers are not among them: they are checked and dropped (RFC 9110 6.5.1)."""
        cdef Headers fields
        if self.fields is None:
            fields = Headers.__new__(Headers)
            fields.head = self.head
            fields.offset = self.fields_offset
            self.fields = fields
        return self.fields

    def json(self):
        """The body as JSON (RFC 8259), strictly: UTF-8 without BOM, no duplicate member, no NaN, at most 32 deep.

        Raises: HTTPError: 400, the client's fault.
        """
        return parse_json(self.body)

    def __repr__(self):
        # No query, no fields, no body: any of them may hold a secret (threat-model.md SE3).
        return f"<Request {self.method} {self.path!r}>"


cdef str request_hostname(Request request):
    cdef str host = request.host
    cdef Py_ssize_t end
    if host.startswith("["):
        # head_read let only hexadecimal digits, colons and dots pass between the brackets; that is no address yet.
        host = host[1:host.index("]")].lower()
        try:
            return ipaddress.IPv6Address(host).compressed
        except ValueError:
            return host
    end = host.find(":")
    if end >= 0:
        host = host[:end]
    return host.removesuffix(".").lower()   # ASCII: head_read let nothing else pass


cdef object unique_members(list pairs):
    cdef dict members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _unique_members(pairs):
    return unique_members(pairs)


def _no_constant(name):
    raise ValueError("not a JSON number")


cdef object encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
cdef object DECODER = json.JSONDecoder(object_pairs_hook=_unique_members, parse_constant=_no_constant)


cdef bint too_deep(const uint8_t *data, Py_ssize_t size, int depth_max) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef int depth = 0
    cdef bint quoted = False
    while i < size:
        if quoted:
            if data[i] == c"\\":
                i += 1
            elif data[i] == c'"':
                quoted = False
        elif data[i] == c'"':
            quoted = True
        elif data[i] == c"[" or data[i] == c"{":
            depth += 1
            if depth > depth_max:
                return True
        elif data[i] == c"]" or data[i] == c"}":
            depth -= 1
        i += 1
    return False


def parse_json(bytes data not None):
    """Strict JSON from client bytes; see Request.json.

    Raises: HTTPError: 400.
    """
    if too_deep(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), JSON_DEPTH_MAX):
        raise HTTPError(400, "JSON is nested too deep")
    try:
        text = data.decode("utf-8")
        # decode() of the decoder would skip a BOM check that json.loads does for str; a BOM is no JSON whitespace, so it fails.
        return DECODER.decode(text)
    except ValueError:      # also UnicodeDecodeError, JSONDecodeError, and an integer of more than 4300 digits
        raise HTTPError(400, "the body is not valid JSON") from None


cdef bytes checked_value(str value):
    cdef Py_UCS4 c
    for c in value:
        if (c < 32 and c != 9) or c == 127 or c > 255:
            raise ValueError("a header value holds a control or non-latin character")
    if value != value.strip(" \t"):
        raise ValueError("a header value starts or ends with a blank")
    return value.encode("latin-1")


cdef bytes checked_name(str name):
    cdef Py_UCS4 c
    if not name:
        raise ValueError("a header name is empty")
    for c in name:
        # RFC 9110 5.6.2
        if not (c"0" <= c <= c"9" or c"a" <= c <= c"z" or c"A" <= c <= c"Z" or c in "!#$%&'*+-.^_`|~"):
            raise ValueError("a header name holds a character that is not a token's")
    if name.lower() in OWN_FIELDS:
        raise ValueError(f"the header {name} is written by the server itself")
    return name.encode("ascii")


@cython.freelist(64)
cdef class Response:
    """An answer: status, body, fields. Immutable; keep one and return it again, its head is encoded once.

    Args:
        status: 200 to 599. 204, 205 and 304 carry no body.
        body: bytes as they are; str as UTF-8; dict or list as JSON.
        content_type: default by the body's type: application/octet-stream, text/plain or application/json.
        headers: (name, value) pairs. Content-Length, Content-Type, Connection, Date and the like are not yours to give.
    Raises:
        ValueError, TypeError: the caller's mistake, here and not when it is sent.
    """

    def __init__(self, int status=200, body=b"", str content_type=None, headers=()):
        cdef bytes data
        if not 200 <= status <= 599:
            raise ValueError("status is not 200 to 599")
        if isinstance(body, bytes):
            data = body
            default = "application/octet-stream"
        elif isinstance(body, str):
            data = body.encode("utf-8")
            default = "text/plain; charset=utf-8"
        elif isinstance(body, (dict, list)):
            data = (<str>encode_json(body)).encode("utf-8")
            default = "application/json"
        else:
            raise TypeError("body is not bytes, str, dict or list")
        if data and (status == 204 or status == 205 or status == 304):
            raise ValueError("this status carries no body")
        self.status = status
        self.body = data
        if content_type is None and data:
            content_type = default
        self.content_type = content_type
        self.streaming = False
        self.headers = tuple([(name, value) for name, value in headers]) if headers else ()
        self.head = encode_head(self)

    def __repr__(self):
        return f"<{type(self).__name__} {self.status}, {len(self.body)} bytes>"


cdef class StreamingResponse(Response):
    """An answer whose body is produced while it is sent: chunked, or until close for HTTP/1.0.

    Args:
        chunks: async iterator of bytes; each item is sent as one chunk, empty ones are skipped. Closed when the client goes.
        status, content_type, headers: as for Response.
    """

    def __init__(self, chunks, int status=200, str content_type="application/octet-stream", headers=()):
        if not hasattr(chunks, "__anext__"):
            raise TypeError("chunks is not an async iterator")
        if status == 204 or status == 205 or status == 304:
            raise ValueError("this status carries no body")
        Response.__init__(self, status, b"", content_type, headers)
        self.chunks = chunks
        self.streaming = True
        self.head = encode_head(self)


cdef bytes encode_head(Response response):
    # Everything but Date, Connection and the empty line.
    cdef bytes head = status_and_type(response.status, response.content_type)
    cdef bytes whole
    cdef uint8_t[40] line
    cdef Py_ssize_t size, line_size
    if response.headers:
        head += b"".join([
            checked_name(name) + b": " + checked_value(value) + b"\r\n" for name, value in response.headers
        ])
    # No length for 204 (must not) and 304 (need not: RFC 9110 8.6); response_write_head frames what is streamed.
    if response.streaming or response.status == 204 or response.status == 304:
        return head
    size = PyBytes_GET_SIZE(head)
    line_size = write_length(PyBytes_GET_SIZE(response.body), line)
    whole = PyBytes_FromStringAndSize(NULL, size + line_size)
    memcpy(PyBytes_AS_STRING(whole), PyBytes_AS_STRING(head), size)
    memcpy(PyBytes_AS_STRING(whole) + size, line, line_size)
    return whole


cdef bytes status_and_type(int status, str content_type):
    # Most answers of a module share these lines, so they are kept; a type made up per request cannot fill the memory.
    # For 200, by far the most common, the type alone is the key: a tuple to look up costs more than the rest of the head.
    cdef object key = content_type if status == 200 else (status, content_type)
    cdef object lines = PREFIXES.get(key)
    if lines is None:
        lines = f"HTTP/1.1 {status} {PHRASES.get(status, '')}\r\n".encode("ascii")
        if content_type is not None:
            lines += b"Content-Type: " + checked_value(content_type) + b"\r\n"
        if len(PREFIXES) < PREFIXES_MAX:
            PREFIXES[key] = lines
    return <bytes>lines


cdef Py_ssize_t write_length(uint64_t size, uint8_t *out) noexcept nogil:
    # 16 bytes of name, at most 20 digits, CRLF
    cdef uint8_t[20] digits
    cdef int n = 0
    cdef int i
    while True:
        digits[n] = c"0" + <uint8_t>(size % 10)
        n += 1
        size //= 10
        if size == 0:
            break
    memcpy(out, b"Content-Length: ", 16)
    for i in range(n):
        out[16 + i] = digits[n - 1 - i]
    out[16 + n] = c"\r"
    out[17 + n] = c"\n"
    return 18 + n


cdef Py_ssize_t response_write_head(
    Response response, bint keep_alive, bint http10, const char *lines, Py_ssize_t lines_size, uint8_t *out,
    Py_ssize_t room
) except -2:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(response.head)
    cdef uint8_t *start = out
    # 28 chunked, 24 connection, 2 empty line: the most that can follow
    if room < size + lines_size + 54:
        return RESPONSE_NO_ROOM
    memcpy(out, PyBytes_AS_STRING(response.head), size)
    out += size
    memcpy(out, lines, lines_size)
    out += lines_size
    if response.streaming:
        if http10:
            keep_alive = False      # the close is what ends the body
        else:
            memcpy(out, b"Transfer-Encoding: chunked\r\n", 28)
            out += 28
    if not keep_alive:
        memcpy(out, b"Connection: close\r\n", 19)
        out += 19
    elif http10:
        memcpy(out, b"Connection: keep-alive\r\n", 24)
        out += 24
    memcpy(out, b"\r\n", 2)
    return out + 2 - start


cdef Py_ssize_t response_write(
    Response response, bint keep_alive, bint http10, bint is_head, const char *lines, Py_ssize_t lines_size,
    uint8_t *out, Py_ssize_t room
) except -2:
    cdef Py_ssize_t size = 0 if is_head else PyBytes_GET_SIZE(response.body)
    cdef Py_ssize_t head_size
    if room < size:
        return RESPONSE_NO_ROOM
    head_size = response_write_head(response, keep_alive, http10, lines, lines_size, out, room - size)
    if head_size < 0:
        return head_size
    memcpy(out + head_size, PyBytes_AS_STRING(response.body), size)
    return head_size + size


cdef Py_ssize_t chunk_write_head(uint64_t size, uint8_t *out) noexcept nogil:
    cdef int shift = 60
    cdef Py_ssize_t n = 0
    cdef uint8_t digit
    while shift > 0 and (size >> shift) == 0:
        shift -= 4
    while shift >= 0:
        digit = (size >> shift) & 15
        out[n] = digit + (c"0" if digit < 10 else c"a" - 10)
        n += 1
        shift -= 4
    out[n] = c"\r"
    out[n + 1] = c"\n"
    return n + 2


def encode_response(Response response not None, *, bint keep_alive=True, bint http10=False, bint is_head=False,
                    str date not None="Thu, 01 Jan 1970 00:00:00 GMT"):
    """Head and body as bytes, as the ingress sends them; for a streaming response the head alone.

    Args: date: IMF-fixdate, 29 characters.
    Raises: ValueError: date of another length.
    """
    cdef bytes lines = b"Date: " + date.encode("ascii") + b"\r\n"
    cdef Py_ssize_t room = PyBytes_GET_SIZE(response.head) + PyBytes_GET_SIZE(response.body) + 128
    cdef bytes out
    cdef Py_ssize_t size
    if len(lines) != 37:
        raise ValueError("date is not an IMF-fixdate of 29 characters")
    out = PyBytes_FromStringAndSize(NULL, room)
    size = response_write(response, keep_alive, http10, is_head or response.streaming, PyBytes_AS_STRING(lines),
                          PyBytes_GET_SIZE(lines), <uint8_t *>PyBytes_AS_STRING(out), room)
    return out[:size]


def encode_chunk(bytes data not None):
    """One chunk as bytes (RFC 9112 7.1); for b"" the last chunk and the end of the body."""
    cdef uint8_t[CHUNK_HEAD_SIZE_MAX] head
    cdef Py_ssize_t size = chunk_write_head(PyBytes_GET_SIZE(data), head)
    return (<const char *>head)[:size] + data + b"\r\n"


def json_response(value, int status=200, headers=()):
    """A Response with `value` as JSON, of any JSON type.

    Raises: ValueError, TypeError: not JSON.
    """
    return Response(status, (<str>encode_json(value)).encode("utf-8"), "application/json", headers)


def error_response(int status, str message not None, headers=()):
    """`{"error": message}` with `status`. The message goes to the client: no secret, no internals."""
    return Response(status, {"error": message}, None, headers)
