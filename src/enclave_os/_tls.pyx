# TLS 1.3 on OpenSSL over lent bytes: ciphertext goes in, plaintext comes out; no sockets, no clock, no log.
#
# OpenSSL sees the world through one BIO per connection. Its read side copies out of the lent input (which may lie in
# memory that the host can change at any time) into OpenSSL's private buffer; its write side hands each finished TLS
# record to the sink. So OpenSSL never holds a pointer into shared memory, and there is one copy each way.
#
# What is switched off, and stays off (threat-model.md TL1, TL2): every version but 1.3 (a client may be told to take 1.2 of
# the outside world, with ECDHE and an AEAD), tickets, session cache,
# resumption, 0-RTT, renegotiation, compression, post-handshake authentication. A client's PSK offer finds no session
# and becomes a full handshake, so that each connection is attested.
#
# Bounds (TL3): a ClientHello 16 KiB, and 64 KiB with its records and its retry; 32 empty records in a row and 16 KiB of
# refused early data (OpenSSL's own); key updates and tickets 32, and one more for each MiB of plaintext read; a client's
# certificates 16 KiB and 8.
#
# Mutual RA-TLS: only a client whose hello carries 0xFFBB gets a CertificateRequest, with 32 random bytes in the same
# extension; everybody else's handshake is the same, byte for byte, as without it. Which chain is good is not X.509's to
# say, but the judge's, who reads evidence; that the client holds the leaf's key is OpenSSL's to check (CertificateVerify)
# before the handshake is done and the verdict may be read. The judge comes first, as a chain's check does in every TLS:
# only so can a refusal still be told to the client, in a bad_certificate.
#
# Every refusal reaches the peer as an alert (TL4): OpenSSL sends its own; where it sends none (bytes that are not TLS,
# and our own bound before there are keys) we write the seven bytes of a plaintext alert.
#
# Parts, each included below as if it stood there, so that the compiler sees one module: _tls_handshake.pxi, what OpenSSL
# calls; _tls_context.pxi, what connections share; _tls_connection.pxi, one connection; and here, what Python has of one.
#
# Invariant: a connection that failed once stays failed, and says whose fault it was.
# Cost: 100 bytes read and 200 written, 1.6 us, of which OpenSSL has nearly all; an idle connection, 14 KiB, likewise.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from posix.types cimport time_t
from libc.string cimport memcmp, memcpy

from enclave_os._openssl cimport (
    BIO, BIO_clear_retry_flags, BIO_CTRL_DUP, BIO_CTRL_FLUSH, BIO_free, BIO_get_data, BIO_meth_free, BIO_meth_new,
    BIO_meth_set_ctrl, BIO_meth_set_read, BIO_meth_set_write, BIO_new, BIO_new_mem_buf, BIO_set_data, BIO_set_init,
    BIO_set_retry_read, BIO_TYPE_SOURCE_SINK, ERR_clear_error, ERR_peek_error, ERR_reason_error_string,
    OBJ_nid2sn, OPENSSL_init_crypto, OPENSSL_INIT_NO_LOAD_CONFIG, OPENSSL_NPN_NEGOTIATED,
    OpenSSL_version, OPENSSL_VERSION, PEM_read_bio_X509, sk_X509_num, sk_X509_value, SSL, SSL_AD_ILLEGAL_PARAMETER,
    SSL_alert_desc_string_long, SSL_certs_clear, SSL_CIPHER_standard_name, SSL_CLIENT_HELLO_ERROR,
    SSL_client_hello_get0_ext, SSL_CLIENT_HELLO_SUCCESS, SSL_CTX_add_custom_ext, SSL_CTX_free, SSL_CTX_get_cert_store,
    SSL_CTX_set_cert_verify_callback, SSL_CTX_set1_cert_store, SSL_CTX_set1_client_sigalgs_list, SSL_EXT_TLS1_3_CERTIFICATE_REQUEST,
    SSL_get_ex_data_X509_STORE_CTX_idx, SSL_set_verify, EVP_PKEY, EVP_PKEY_EC, EVP_PKEY_free, EVP_PKEY_get_base_id,
    EVP_PKEY_get_group_name, RAND_bytes,
    sk_X509_pop, sk_X509_set, X509_get0_pubkey, X509_new, X509_set_pubkey, X509_STORE_CTX, X509_STORE_CTX_get0_untrusted,
    X509_STORE_CTX_get_ex_data, X509_STORE_CTX_set_cert, X509_STORE_CTX_set_error, X509_V_ERR_CERT_REJECTED,
    X509_V_ERR_INVALID_PURPOSE, X509_V_ERR_UNSPECIFIED,
    SSL_CTX_new, SSL_CTX_set1_groups_list, SSL_CTX_set_alpn_protos, SSL_CTX_set_alpn_select_cb, SSL_CTX_set_cert_cb,
    SSL_CTX_set_ciphersuites, SSL_CTX_set_client_hello_cb, SSL_CTX_set_max_cert_list, SSL_CTX_set_max_early_data,
    SSL_CTX_set_max_proto_version, SSL_CTX_set_min_proto_version, SSL_CTX_set_mode, SSL_CTX_set_msg_callback,
    SSL_CTX_set_num_tickets, SSL_CTX_set_options, SSL_CTX_set_read_ahead, SSL_CTX_set_session_cache_mode,
    SSL_CTX_set_cipher_list, SSL_CTX_set_security_level, SSL_CTX_set_verify, SSL_ERROR_WANT_READ, SSL_ERROR_ZERO_RETURN, SSL_export_keying_material, SSL_EXT_CLIENT_HELLO,
    SSL_EXT_TLS1_3_ONLY, SSL_free, SSL_free_buffers, SSL_get0_alpn_selected, SSL_get0_param, SSL_get0_peer_certificate,
    SSL_get_current_cipher, SSL_get_error, SSL_get_negotiated_group, SSL_get_peer_cert_chain, SSL_get_peer_tmp_key, SSL_get_rbio,
    SSL_get_verify_result, SSL_get_version, SSL_has_pending, SSL_is_init_finished, SSL_key_update, SSL_KEY_UPDATE_NOT_REQUESTED,
    SSL_KEY_UPDATE_REQUESTED, SSL_MODE_NO_AUTO_CHAIN, SSL_MODE_RELEASE_BUFFERS, SSL_new,
    SSL_OP_CIPHER_SERVER_PREFERENCE, SSL_OP_NO_COMPRESSION, SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_TICKET, SSL_read, SSL_rstate_string,
    SSL_select_next_proto, SSL_SESS_CACHE_OFF, SSL_set_accept_state, SSL_set_bio, SSL_set_connect_state,
    SSL_set_hostflags, SSL_set_tlsext_host_name, SSL_shutdown, SSL_TLSEXT_ERR_ALERT_FATAL, SSL_TLSEXT_ERR_OK,
    SSL_use_cert_and_key, SSL_VERIFY_NONE, SSL_VERIFY_PEER, SSL_write_ex, STACK_OF_X509, TLS1_2_VERSION, TLS1_3_VERSION,
    TLS_client_method, TLS_server_method, TLSEXT_TYPE_application_layer_protocol_negotiation, TLSEXT_TYPE_server_name,
    X509, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, X509_free, X509_STORE,
    X509_STORE_add_cert, X509_STORE_set_flags, X509_V_FLAG_X509_STRICT, X509_V_OK, X509_verify_cert_error_string,
    X509_PURPOSE_SSL_SERVER, X509_VERIFY_PARAM_set1_host, X509_VERIFY_PARAM_set1_ip_asc, X509_VERIFY_PARAM_set_purpose,
    X509_VERIFY_PARAM_set_time,
)
from enclave_os._tls_hello cimport RECORD_HANDSHAKE, messages_fit, protocol_names, server_name
from enclave_os._x509 cimport Identity, certificate_der, placeholder_identity, sha256, subject_public_key_info

import ipaddress

from enclave_os.errors import AttestationError, ClientProtocolError, ConfigError, InternalError, ServerProtocolError
from enclave_os.wire.errors import UsageError

cdef enum:
    CHALLENGE_EXTENSION = 0xFFBB
    RECORD_ALERT = 21
    MESSAGE_NEW_SESSION_TICKET = 4
    MESSAGE_ENCRYPTED_EXTENSIONS = 8
    MESSAGE_KEY_UPDATE = 24
    ALERT_FATAL = 2
    ALERT_ILLEGAL_PARAMETER = 47
    ALERT_DECODE_ERROR = 50
    ALERT_INTERNAL_ERROR = 80
    INT_SIZE_MAX = 0x7FFFFFFF

GROUPS = "X25519:P-256"
cdef const char *CIPHER_SUITES = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
# For servers of the outside world that speak no 1.3: forward secrecy and an AEAD, or nothing.
cdef bytes BEGIN_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
cdef const char *CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
# 112 bits: no RSA key under 2048 bits, no SHA-1 in a chain (OpenSSL, SSL_CTX_set_security_level(3)).
cdef int SECURITY_LEVEL = 2
HTTP_1_1 = b"http/1.1"
CHALLENGE_SIZE = TLS_CHALLENGE_SIZE
PEER_CHAIN_SIZE_MAX = TLS_PEER_CHAIN_SIZE_MAX
PEER_CHAIN_MAX = TLS_PEER_CHAIN_MAX
# What a client's leaf must be signed with to be asked for: RA-TLS leaves are on P-256.
cdef const char *CLIENT_SIGNATURES = "ECDSA+SHA256"

include "_tls_handshake.pxi"
include "_tls_context.pxi"
include "_tls_connection.pxi"


# -- the engine: one connection for Python ----------------------------------------------------------------------------

cdef void copy_private(uint8_t *to, const uint8_t *from_, size_t size) noexcept nogil:
    memcpy(to, from_, size)


cdef int append_output(void *arg, const uint8_t *data, size_t size) noexcept nogil:
    cdef output_t *output = <output_t *>arg
    cdef size_t room = output.room
    cdef uint8_t *grown
    if output.size + size > room:
        while room < output.size + size:
            room = room * 2 if room else 4096
        grown = <uint8_t *>realloc(output.data, room)
        if grown == NULL:
            return -1
        output.data = grown
        output.room = room
    memcpy(output.data + output.size, data, size)
    output.size += size
    return 0


@cython.final
cdef class TLSEngine:
    """One TLS 1.3 connection without a socket: bytes of the peer in, bytes for the peer out.

    Feed what arrived, read until None, and send what `take_output` gives, after every call of any method. A client's
    first `read` makes its ClientHello. Not thread-safe.
    """

    def __cinit__(self, TLSContext context not None, str server_hostname=None, bytes challenge=None, time=None):
        """Make one connection.

        Args:
            context: server or client.
            server_hostname: client: the DNS name or IP address to check and, for a name, to send as SNI. Required
                when the context verifies.
            challenge: client: 32 bytes for extension 0xFFBB.
            time: client: seconds since the Unix epoch at which certificates must be valid. None: the system's clock,
                which inside an enclave is the host's.
        Raises:
            UsageError: an argument that this context cannot use.
        """
        if context.context == NULL:
            raise UsageError("a TLSContext is made by TLSContext.server or TLSContext.client")
        self.context = context
        if context.is_server and (server_hostname is not None or challenge is not None):
            raise UsageError("server_hostname and challenge are for client contexts")
        if context.verifies and server_hostname is None:
            raise UsageError("a verifying client needs the server's name")
        if challenge is not None and len(challenge) != TLS_CHALLENGE_SIZE:
            raise UsageError(f"a challenge is {TLS_CHALLENGE_SIZE} bytes, not {len(challenge)}")
        self.pending = b""
        self.conn = tls_conn_new(context, copy_private, append_output, &self.output)
        if challenge is not None:
            self.conn.has_challenge = True
            memcpy(self.conn.challenge, PyBytes_AS_STRING(challenge), TLS_CHALLENGE_SIZE)
        if server_hostname is not None:
            self.expect(server_hostname)
        if time is not None:
            X509_VERIFY_PARAM_set_time(SSL_get0_param(self.conn.ssl), <time_t>time)

    def __dealloc__(self):
        tls_conn_free(self.conn)
        free(self.output.data)

    cdef int expect(self, str name) except -1:
        cdef bytes encoded
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            address = None
        try:
            encoded = name.encode("ascii")
        except UnicodeEncodeError:
            raise UsageError(f"a host name in ASCII is needed (IDNA is the caller's): {name!r}") from None
        if not encoded or b"\0" in encoded:
            raise UsageError(f"not a host name: {name!r}")
        if X509_VERIFY_PARAM_set_purpose(SSL_get0_param(self.conn.ssl), X509_PURPOSE_SSL_SERVER) != 1:
            raise InternalError("OpenSSL knows no purpose of servers")
        if address is not None:
            if X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(self.conn.ssl), encoded) != 1:
                raise UsageError(f"not an address: {name!r}")
            return 0
        # RFC 9525 2: names stand in subjectAltName, never in the common name.
        SSL_set_hostflags(self.conn.ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT)
        if (
            X509_VERIFY_PARAM_set1_host(SSL_get0_param(self.conn.ssl), encoded, len(encoded)) != 1
            or SSL_set_tlsext_host_name(self.conn.ssl, encoded) != 1
        ):
            ERR_clear_error()
            raise UsageError(f"not a host name: {name!r}")
        return 0

    def feed(self, data not None):
        """Take ciphertext that arrived; nothing happens before the next `read`."""
        self.pending = self.pending[self.consumed:] + bytes(data)
        self.consumed = 0

    def read(self, Py_ssize_t size_max=16384):
        """Go on with the handshake, then decrypt.

        Args:
            size_max: the most plaintext bytes to return, 1 to 1 GiB.
        Returns:
            bytes: plaintext; empty when the peer has closed its direction (close_notify).
            None: more input is needed.
        Raises:
            ClientProtocolError: as a server: the client broke TLS or was refused.
            ServerProtocolError: as a client: the server did, or its certificate does not verify.
            InternalError: this side could not go on.
            Exception: what `choose`, `choose_client` or `judge_client` raised.
        """
        cdef bytes plaintext
        cdef bytes pending = self.pending
        cdef int got
        if not 1 <= size_max <= 1 << 30:
            raise UsageError("read takes 1 to 2**30 bytes")
        plaintext = PyBytes_FromStringAndSize(NULL, size_max)
        self.conn.input = <const uint8_t *>PyBytes_AS_STRING(pending) + self.consumed
        self.conn.input_size = <size_t>(PyBytes_GET_SIZE(pending) - self.consumed)
        got = tls_read(self.conn, <uint8_t *>PyBytes_AS_STRING(plaintext), <size_t>size_max)
        self.consumed = PyBytes_GET_SIZE(pending) - <Py_ssize_t>self.conn.input_size
        self.conn.input_size = 0
        if self.consumed == PyBytes_GET_SIZE(pending):
            self.pending = b""
            self.consumed = 0
        if got > 0:
            return plaintext[:got]
        if got == TLS_WANT_INPUT:
            return None
        if got == TLS_CLOSED:
            return b""
        raise self.failure()

    cdef object failure(self):
        error = tls_take_error(self.conn)
        if isinstance(error, AttestationError) and self.conn.refusal == TLS_REFUSED_BY_JUDGE:
            refused = ClientProtocolError(f"TLS: {tls_describe(self.conn)}: {error}")
            refused.__cause__ = error
            return refused
        if error is not None:
            return error
        ours = self.conn.alert_sent == (ALERT_FATAL << 8 | ALERT_INTERNAL_ERROR)
        if ours or self.conn.refusal == TLS_REFUSED_BY_SINK:
            return InternalError("TLS: " + tls_describe(self.conn))
        return (ClientProtocolError if self.conn.server else ServerProtocolError)("TLS: " + tls_describe(self.conn))

    def write(self, const uint8_t[::1] data not None):
        """Encrypt all of `data`.

        Raises:
            UsageError: the handshake is not done, or `close` was called.
            ClientProtocolError, ServerProtocolError: the connection has failed.
        """
        if not self.conn.failed and (not self.conn.handshake_done or self.conn.close_sent):
            raise UsageError("write before the handshake is done, or after close")
        if data.shape[0] and tls_write(self.conn, &data[0], <size_t>data.shape[0]) != 0:
            raise self.failure()

    def take_output(self):
        """All bytes that are to go to the peer since the last call."""
        cdef bytes data = PyBytes_FromStringAndSize(<char *>self.output.data, self.output.size)
        free(self.output.data)
        self.output.data = NULL
        self.output.size = 0
        self.output.room = 0
        return data

    def close(self):
        """Say close_notify, once; reading may go on. Says nothing before the handshake is done, or after a failure."""
        tls_close(self.conn)

    def update_keys(self, *, bint ask_peer=False):
        """Change our sending key at the next write (RFC 8446 4.6.3), and ask the peer to change its own."""
        if not self.conn.handshake_done or self.conn.failed or self.conn.close_sent:
            raise UsageError("no key update before the handshake is done, or after close")
        ERR_clear_error()
        if SSL_key_update(self.conn.ssl, SSL_KEY_UPDATE_REQUESTED if ask_peer else SSL_KEY_UPDATE_NOT_REQUESTED) != 1:
            fail(self.conn)
            raise self.failure()

    def export_keying_material(self, str label not None, bytes context not None, Py_ssize_t size):
        """TLS exporter (RFC 8446 7.5): equal on both ends of this connection, and of no other.

        Args:
            label: ASCII.
            context: may be empty; an absent context is the same as an empty one in TLS 1.3.
            size: bytes wanted, 1 to 255.
        Raises:
            UsageError: the handshake is not done, or an argument is out of range.
        """
        cdef bytes name = label.encode("ascii")
        cdef bytes material
        if not 1 <= size <= 255:
            raise UsageError("an exporter gives 1 to 255 bytes")
        material = PyBytes_FromStringAndSize(NULL, size)
        if tls_export(self.conn, <uint8_t *>PyBytes_AS_STRING(material), <size_t>size, name, len(name),
                      <const uint8_t *>PyBytes_AS_STRING(context), <size_t>PyBytes_GET_SIZE(context)) != 0:
            raise UsageError("no exporter before the handshake is done")
        return material

    @property
    def handshake_done(self):
        """Whether both Finished messages were exchanged."""
        return bool(self.conn.handshake_done)

    @property
    def pending_plaintext(self):
        """Whether a further `read` may return something without another `feed`."""
        return self.consumed < len(self.pending) or bool(tls_pending(self.conn))

    @property
    def alert_sent(self):
        """Description number of the last alert sent (RFC 8446 6), or None. 0 is close_notify."""
        return self.conn.alert_sent & 0xFF if self.conn.alert_sent else None

    @property
    def alert_received(self):
        """Description number of the last alert received, or None."""
        return self.conn.alert_received & 0xFF if self.conn.alert_received else None

    @property
    def description(self):
        """In words: why the connection failed."""
        return tls_describe(self.conn)

    @property
    def cipher_suite(self):
        """IANA name of the cipher suite, or None before it is agreed."""
        if not self.conn.handshake_done:
            return None
        return SSL_CIPHER_standard_name(SSL_get_current_cipher(self.conn.ssl)).decode()

    @property
    def version(self):
        """"TLSv1.3" or "TLSv1.2", or None before it is agreed."""
        return SSL_get_version(self.conn.ssl).decode() if self.conn.handshake_done else None

    @property
    def verify_result(self):
        """As a client: OpenSSL's number for what it found of the server's certificate (X509_V_*); 0: nothing wrong."""
        return 0 if self.conn.server else SSL_get_verify_result(self.conn.ssl)

    @property
    def group(self):
        """OpenSSL's short name of the key agreement group, or None."""
        if not self.conn.handshake_done:
            return None
        return OBJ_nid2sn(SSL_get_negotiated_group(self.conn.ssl)).decode()

    @property
    def protocol(self):
        """The ALPN protocol agreed, or None."""
        cdef const unsigned char *name = NULL
        cdef unsigned int size = 0
        SSL_get0_alpn_selected(self.conn.ssl, &name, &size)
        return PyBytes_FromStringAndSize(<const char *>name, size) if size else None

    @property
    def leaf_spki_sha256(self):
        """SHA-256 over the SubjectPublicKeyInfo of the leaf that this end shows; None before, or when it shows none."""
        cdef bytes digest = PyBytes_FromStringAndSize(<char *>self.conn.spki_sha256, 32)
        return digest if any(digest) else None

    @property
    def app(self):
        """As a server: the host name of the app whose leaf this connection shows; None: the enclave-wide one."""
        return tls_app(self.conn)

    @property
    def client_nonce(self):
        """As a server: the 32 bytes that our CertificateRequest carried for the client to bind, or None."""
        return self.nonce() if self.conn.server else None

    @property
    def server_nonce(self):
        """As a client: the 32 bytes that the server's CertificateRequest carried for us to bind, or None."""
        return None if self.conn.server else self.nonce()

    cdef bytes nonce(self):
        if not self.conn.has_client_nonce:
            return None
        return PyBytes_FromStringAndSize(<char *>self.conn.client_nonce, TLS_CHALLENGE_SIZE)

    @property
    def peer_spki_sha256(self):
        """As a server: SHA-256 over the SubjectPublicKeyInfo of the client's leaf, once its key is proven, or None."""
        return tls_peer_spki_sha256(self.conn)

    def take_verdict(self):
        """As a server: what `judge_client` returned, once, after the handshake; None when no client was judged."""
        return tls_take_verdict(self.conn)

    def take_peer_chain(self):
        """As a server without a judge: the client's chain, a tuple of DER, leaf first, once, after the handshake."""
        return tls_take_peer_chain(self.conn)

    @property
    def peer_certificate_der(self):
        """As a client: the server's leaf certificate, DER, or None."""
        cdef X509 *certificate = NULL if self.conn.server else SSL_get0_peer_certificate(self.conn.ssl)
        return None if certificate == NULL else certificate_der(certificate)

    @property
    def peer_chain_der(self):
        """As a client: what the server sent, as a list of DER, its leaf first."""
        cdef STACK_OF_X509 *chain = NULL if self.conn.server else SSL_get_peer_cert_chain(self.conn.ssl)
        cdef int index
        if chain == NULL:
            return []
        return [certificate_der(sk_X509_value(chain, index)) for index in range(sk_X509_num(chain))]


def ignore_openssl_configuration():
    """Keep libcrypto from reading openssl.cnf, which could load code; to be called before anything else uses libcrypto.

    The file, and OPENSSL_CONF, which may name another one, are the host's. For the enclave's entry only: whoever uses
    the client has a right to a configuration of their own.

    Raises:
        InternalError: libcrypto cannot be initialised.
    """
    if OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL) != 1:
        raise InternalError("libcrypto cannot be initialised")


def openssl_version():
    """The version text of the libcrypto in use."""
    return OpenSSL_version(OPENSSL_VERSION).decode()
