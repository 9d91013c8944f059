"""One client connection as modules see it (`http.Connection`), and the end of a connection's memory.

A Connection and its conn_t point at each other until `connection_empty` cuts both pointers: so what a module keeps can
outlive the connection, never reaches its memory then, and never the next connection to which the host gave the same
conn_id. The conn_t owns one reference, each Request that came by it another.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport free

from enclave_os._tls cimport ClientHello, tls_app, tls_conn_free, tls_export, tls_peer_spki_sha256
from enclave_os.http._parser cimport http_parser_free

from typing import get_args

from enclave_os.errors import ConnectionGone, InternalError
from enclave_os.http.connection import AttestationTag
from enclave_os.wire.errors import UsageError

cdef enum:
    LABEL_SIZE_MAX = 249        # RFC 8446 7.1: "tls13 " and the label share one byte of size
    EXPORT_SIZE_MAX = 255       # RFC 5869 would give 255 hashes; nobody needs more than a few keys

cdef tuple TAGS = get_args(AttestationTag)


@cython.final
@cython.no_gc           # its slots are emptied when the connection ends, so no cycle outlives that
cdef class Connection:
    """One client connection, alive; see `http.Connection`. Made by the ingress."""

    def __init__(self):
        raise TypeError("a Connection comes from the ingress, as request.connection")

    cdef conn_t *alive(self) except NULL:
        if self.conn == NULL:
            raise ConnectionGone("the connection has ended")
        return self.conn

    @property
    def app(self):
        """Host name of the application whose certificate is shown; None: the enclave-wide one."""
        return tls_app(self.alive().tls)

    @property
    def challenged(self):
        """Whether the client sent a nonce (extension 0xFFBB)."""
        return bool(self.alive().tls.has_challenge)

    @property
    def leaf_spki_sha256(self):
        """SHA-256 of the SubjectPublicKeyInfo that is shown, 32 bytes."""
        return PyBytes_FromStringAndSize(<char *>self.alive().tls.spki_sha256, 32)

    @property
    def leaf_generation(self):
        """Generation of the configuration that the leaf states."""
        return self.alive().tls.leaf_generation

    @property
    def peer_spki_sha256(self):
        """SHA-256 of the SubjectPublicKeyInfo of the client's own leaf, whose key it proved; None: it showed none."""
        return tls_peer_spki_sha256(self.alive().tls)

    @property
    def evidence(self):
        """What is known of an attested caller, or None. A slot: who judges evidence writes it."""
        self.alive()
        return self.kept_evidence

    @evidence.setter
    def evidence(self, value):
        self.alive()
        self.kept_evidence = value

    @property
    def attested(self):
        """What has been attested to this client. A slot of the attestation routes."""
        self.alive()
        return self.kept_attested

    @attested.setter
    def attested(self, value):
        self.alive()
        self.kept_attested = value

    @property
    def stale(self):
        """Whether what was attested on it is true no more: its requests are refused, and it ends."""
        return bool(self.alive().stale)

    @stale.setter
    def stale(self, bint value):
        self.alive().stale = value

    @property
    def tag(self):
        """What every reply says in X-Privasys-Attestation."""
        return TAGS[self.alive().tag]

    @tag.setter
    def tag(self, str value not None):
        cdef conn_t *conn = self.alive()
        if value not in TAGS:
            raise UsageError(f"a tag is one of {', '.join(TAGS)}, not {value!r}")
        conn.tag = TAGS.index(value)

    def export(self, bytes label not None, bytes context not None, Py_ssize_t size):
        """TLS exporter (RFC 8446 7.5) of `size` bytes. Raises: UsageError: see `http.Connection`."""
        cdef conn_t *conn = self.alive()
        cdef bytes out
        if not 1 <= PyBytes_GET_SIZE(label) <= LABEL_SIZE_MAX or not label.isascii():
            raise UsageError(f"an exporter label is 1 to {LABEL_SIZE_MAX} bytes of ASCII")
        if not 1 <= size <= EXPORT_SIZE_MAX:
            raise UsageError(f"an exporter gives 1 to {EXPORT_SIZE_MAX} bytes, not {size}")
        out = PyBytes_FromStringAndSize(NULL, size)
        if tls_export(conn.tls, <uint8_t *>PyBytes_AS_STRING(out), size, PyBytes_AS_STRING(label), PyBytes_GET_SIZE(label),
                      <const uint8_t *>PyBytes_AS_STRING(context), PyBytes_GET_SIZE(context)) != 0:
            raise InternalError("OpenSSL gives no exported keying material")
        return out

    def __repr__(self):
        return "<Connection, ended>" if self.conn == NULL else f"<Connection, {self.tag}>"


cdef Connection connection_object(conn_t *conn):
    cdef Connection made
    if conn.object == NULL:
        made = Connection.__new__(Connection)
        made.conn = conn
        Py_INCREF(made)
        conn.object = <void *>made
    return <Connection>conn.object


cdef int connection_keep_name(conn_t *conn) except -1:
    # The name that the client asked for, as it spelled it: raw bytes of a client, so never decoded strictly.
    name = (<ClientHello>conn.tls.hello).sni
    if name is not None:
        name = name.decode("ascii", "backslashreplace")
        Py_INCREF(name)
        conn.sni = <void *>name
    return 0


cdef inline void drop(void **owned) noexcept:
    # Py_CLEAR: the pointer first, since the last reference may run code that looks.
    cdef void *taken = owned[0]
    if taken != NULL:
        owned[0] = NULL
        Py_DECREF(<object>taken)


cdef void connection_empty(conn_t *conn) noexcept:
    cdef Connection ended
    if conn.object != NULL:
        ended = <Connection>conn.object
        ended.conn = NULL
        ended.kept_evidence = ended.kept_attested = None
        drop(&conn.object)
    if conn.tls != NULL:
        tls_conn_free(conn.tls)
        conn.tls = NULL
    http_parser_free(&conn.parser)
    connection_unhold(conn)
    free(conn.left)
    conn.left = NULL
    conn.left_size = conn.left_used = 0
    drop(&conn.peer)
    drop(&conn.sni)
    drop(&conn.body)


cdef void connection_free(conn_t *conn) noexcept:
    connection_empty(conn)
    free(conn.out)
    drop(&conn.task)
    free(conn)
