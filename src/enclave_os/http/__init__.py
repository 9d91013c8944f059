"""HTTP/1.1 without I/O: bytes to `Request`, `Response` to bytes. The one Python door to `_parser` and `_message`."""

from enclave_os.http._message import (
    JSON_DEPTH_MAX,
    Headers,
    Request,
    Response,
    StreamingResponse,
    encode_chunk,
    encode_response,
    error_response,
    json_response,
    parse_json,
)
from enclave_os.http._parser import CONTINUE, NEED_DATA, REFUSED, REQUEST, RequestParser
from enclave_os.http.build import make_request
from enclave_os.http.connection import AttestationTag, Connection
from enclave_os.http.errors import HTTPError

__all__ = [
    "CONTINUE",
    "JSON_DEPTH_MAX",
    "NEED_DATA",
    "REFUSED",
    "REQUEST",
    "AttestationTag",
    "Connection",
    "HTTPError",
    "Headers",
    "Request",
    "RequestParser",
    "Response",
    "StreamingResponse",
    "encode_chunk",
    "encode_response",
    "error_response",
    "json_response",
    "make_request",
    "parse_json",
]
