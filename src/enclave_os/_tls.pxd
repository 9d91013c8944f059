# TLS 1.3 over lent bytes: ciphertext in, plaintext out, no sockets, no clock. The C interface for runtime._exchange.
#
# One connection, in the order in which it lives:
#   tls_conn_new   -> handshake not done
#   conn.input/input_size = ciphertext, then tls_read until it returns TLS_WANT_INPUT, TLS_CLOSED or TLS_FAILED
#   tls_write      -> any time after handshake_done
#   tls_close      -> our close_notify, once
# A client that sent extension 0xFFBB was asked for a certificate: once handshake_done, conn.has_peer says that it showed
# one and proved its key; tls_take_verdict gives what `judge_client` made of it, tls_take_peer_chain the chain itself
# where there is no judge.
#   tls_conn_free
# After TLS_FAILED only tls_describe, tls_take_error and tls_conn_free make sense; the alert has been given to the sink.
cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from enclave_os._openssl cimport BIO_METHOD, SSL, SSL_CTX
from enclave_os._tls_hello cimport hello_walk_t
from enclave_os._x509 cimport Identity

# Copies ciphertext inside; `from_` may be shared with the host, so it is read once, here, and never by OpenSSL.
ctypedef void (*tls_copy_in_t)(uint8_t *to, const uint8_t *from_, size_t size) noexcept nogil
# Takes all of the ciphertext: 0, or -1 when the connection cannot go on.
ctypedef int (*tls_sink_t)(void *arg, const uint8_t *data, size_t size) noexcept nogil

cdef enum:
    TLS_WANT_INPUT = 0          # weather: nothing more can come out of what was lent
    TLS_CLOSED = -1             # the peer's close_notify: nothing more will come
    TLS_FAILED = -2             # for good; tls_describe says why

# Why we refused a peer that OpenSSL would have borne with.
cdef enum:
    TLS_REFUSED_NOT = 0
    TLS_REFUSED_CHALLENGE_SIZE = 1      # extension 0xFFBB of another size than 32
    TLS_REFUSED_HELLO_CHANGED = 2       # the second ClientHello differs in challenge or name
    TLS_REFUSED_HANDSHAKE_SIZE = 3      # more than TLS_HELLO_SIZE_MAX or TLS_HANDSHAKE_SIZE_MAX before our answer
    TLS_REFUSED_FLOOD = 4               # key updates or tickets without end
    TLS_REFUSED_BY_SINK = 5             # nobody's refusal: the sink could not take what we owed the peer
    TLS_REFUSED_BY_CHOOSER = 6          # the chooser of identities raised
    TLS_REFUSED_PEER_CHAIN = 7          # more than TLS_PEER_CHAIN_MAX certificates
    TLS_REFUSED_PEER_KEY = 8            # the client's key is not on P-256
    TLS_REFUSED_BY_JUDGE = 9            # `judge_client` does not take the client's evidence
    TLS_REFUSED_NONCE_SIZE = 10         # the server's CertificateRequest carries 0xFFBB of another size than 32

cdef enum:
    TLS_CHALLENGE_SIZE = 32
    TLS_HANDSHAKE_SIZE_MAX = 65536      # everything before our answer: two hellos in records of any size
    # A client's chain, all of the Certificate message: a leaf with its quote is under 6 KiB, a CA's certificate under 1.
    # OpenSSL takes apart each (30 us and more) before we can count them, so the bytes are what bounds its work.
    TLS_PEER_CHAIN_SIZE_MAX = 16384
    TLS_PEER_CHAIN_MAX = 8              # certificates; more is no chain of ours, and each would be verified
    TLS_CONTROL_MESSAGES_MAX = 32       # key updates and tickets that are free; one more for each MiB of plaintext read
    TLS_CONTROL_MESSAGES_PER_SHIFT = 20

cdef struct tls_conn_t:
    SSL *ssl                    # owned
    const uint8_t *input        # lent by the caller until tls_read has taken it; may be shared memory
    size_t input_size           # bytes not yet taken
    tls_copy_in_t copy_in
    tls_sink_t sink
    void *sink_arg
    PyObject *context           # owned reference to the TLSContext
    PyObject *hello             # owned reference to the ClientHello, until the handshake is done
    PyObject *identity          # owned reference to the Identity chosen, until the handshake is done
    PyObject *error             # owned reference to what the chooser or the judge raised
    PyObject *app               # server: owned reference to the host name of the app whose leaf is shown, or NULL
    PyObject *peer_chain        # server: owned reference to a tuple of DER, until judged or taken
    PyObject *verdict           # server: owned reference to what the judge returned, until taken
    uint64_t plaintext_size     # bytes read in all
    unsigned long reason        # OpenSSL's packed error after TLS_FAILED, or 0
    uint32_t handshake_size     # bytes taken before our answer
    uint32_t control_messages   # key updates and tickets taken
    uint16_t alert_sent         # level << 8 | description, 0 = none
    uint16_t alert_received
    uint8_t refusal             # TLS_REFUSED_*
    bint server
    bint answered               # EncryptedExtensions went out: from here on everything is encrypted
    bint handshake_done
    bint starved                # the last read wanted input, and none came since
    bint failed
    bint closed                 # the peer's close_notify was read
    bint close_sent
    bint has_challenge
    bint has_client_nonce
    bint has_peer               # server: the client showed a certificate; proven once handshake_done
    uint8_t challenge[32]
    uint64_t leaf_generation    # of the identity that this end shows
    uint8_t client_nonce[32]    # of the CertificateRequest, for the client to bind: ours as a server, else the peer's
    uint8_t spki_sha256[32]     # of the leaf that this end shows, zeros before it is chosen
    uint8_t peer_spki_sha256[32]    # server: of the client's leaf
    hello_walk_t walk           # over the plaintext records before our answer

cdef enum:
    PROTOCOLS_SIZE_MAX = 256

cdef struct tls_protocols_t:
    unsigned int size
    unsigned char data[256]     # ALPN wire format: names, each after its size

@cython.final
cdef class TLSContext:
    cdef SSL_CTX *context       # owned
    cdef BIO_METHOD *method     # owned; outlives every connection, since each holds the context
    cdef object choose          # server: ClientHello -> Identity; client: nonce or None -> Identity or None
    cdef Identity placeholder   # server: for a hello that is answered by a retry; nobody ever sees it
    cdef object judge           # server: (chain, nonce) -> verdict, or None
    cdef tls_protocols_t protocols
    cdef readonly bint is_server
    cdef readonly bint keeps_buffers
    cdef readonly bint verifies
    cdef int set_common(self, str groups, protocols) except -1
    cdef int trust(self, bytes ca_pem) except -1

@cython.final
cdef class ClientHello:
    cdef readonly bytes sni
    cdef readonly bytes challenge
    cdef readonly list alpn

cdef tls_conn_t *tls_conn_new(TLSContext context, tls_copy_in_t copy_in, tls_sink_t sink, void *sink_arg) except NULL
cdef void tls_conn_free(tls_conn_t *conn) noexcept
# Drives the handshake, then decrypts: the count of plaintext bytes put into `to` (at least 1), or a TLS_* above.
# Returns with conn.input_size == 0, or because `to` is full, or for good. room: at least 1.
cdef int tls_read(tls_conn_t *conn, uint8_t *to, size_t room) noexcept nogil
# Encrypts all of it into the sink: 0, or TLS_FAILED (also before the handshake is done, and after tls_close).
cdef int tls_write(tls_conn_t *conn, const uint8_t *data, size_t size) noexcept nogil
cdef void tls_close(tls_conn_t *conn) noexcept nogil
# Give back the record buffers of a connection that will be idle; they are taken anew when it is not.
cdef void tls_release(tls_conn_t *conn) noexcept nogil
# Could a further tls_read return something without more input: plaintext inside OpenSSL, or TLS_CLOSED or TLS_FAILED?
cdef bint tls_pending(tls_conn_t *conn) noexcept nogil
# What the chooser of identities or the judge of clients raised, handed over once, or None.
cdef object tls_take_error(tls_conn_t *conn)
# Server: what `judge_client` returned, handed over once; None before the handshake is done, or when none was shown.
cdef object tls_take_verdict(tls_conn_t *conn)
# Server: the client's chain, a tuple of DER, leaf first, handed over once; empty before the handshake is done, when no
# certificate was shown, and where there is a judge, since what was judged is not kept.
cdef tuple tls_take_peer_chain(tls_conn_t *conn)
# Server: host name of the app whose leaf this connection shows, or None: the enclave-wide leaf, or not chosen yet.
cdef object tls_app(tls_conn_t *conn)
# Server: SHA-256 over the SubjectPublicKeyInfo of the client's leaf, 32 bytes, once its key is proven; else None.
cdef bytes tls_peer_spki_sha256(tls_conn_t *conn)
# In words, for a log or an error: why the connection failed. Holds nothing secret and no bytes of the peer.
cdef str tls_describe(tls_conn_t *conn)
# TLS exporter (RFC 8446 7.5): 0, or -1 when the handshake is not done or OpenSSL refuses.
cdef int tls_export(tls_conn_t *conn, uint8_t *to, size_t size, const char *label, size_t label_size,
                    const uint8_t *context, size_t context_size) noexcept nogil

cdef struct output_t:
    uint8_t *data               # owned
    size_t size
    size_t room

@cython.final
cdef class TLSEngine:
    cdef tls_conn_t *conn       # owned
    cdef output_t output
    cdef bytes pending          # input fed and not yet taken: pending[consumed:]
    cdef Py_ssize_t consumed
    cdef readonly TLSContext context
    cdef int expect(self, str name) except -1
    cdef object failure(self)
    cdef bytes nonce(self)
