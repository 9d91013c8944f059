"""Errors of the HTTP storey: what ends one request, not the connection."""

from enclave_os.errors import ClientProtocolError


class HTTPError(ClientProtocolError):
    """The request cannot be served, and the client is to be told why.

    A module may raise it instead of returning an error response; it is answered, not logged.

    Args:
        status: 400 to 599.
        message: for the client, in the body's `error`; no secret and no internals.
        headers: further (name, value) pairs of the response.
    """

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        if not 400 <= status <= 599:
            raise ValueError("status of an HTTPError is 400 to 599")
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
