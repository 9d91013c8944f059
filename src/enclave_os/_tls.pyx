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


# -- the BIO: where OpenSSL meets the lent bytes and the sink ---------------------------------------------------------

cdef int on_bio_read(BIO *bio, char *to, int room) noexcept nogil:
    cdef tls_conn_t *conn = <tls_conn_t *>BIO_get_data(bio)
    cdef size_t size = conn.input_size
    BIO_clear_retry_flags(bio)
    if conn.refusal != TLS_REFUSED_NOT or room <= 0:
        return -1
    if size == 0:
        conn.starved = True
        BIO_set_retry_read(bio)
        return -1
    if size > <size_t>room:
        size = <size_t>room
    if not conn.answered and not conn.handshake_done:
        # Before our answer nothing limits the peer but this.
        conn.handshake_size += <uint32_t>size
        if conn.handshake_size > TLS_HANDSHAKE_SIZE_MAX:
            conn.refusal = TLS_REFUSED_HANDSHAKE_SIZE
            return -1
    conn.copy_in(<uint8_t *>to, conn.input, size)
    conn.input += size
    conn.input_size -= size
    if conn.server and not conn.answered and not messages_fit(&conn.walk, <const uint8_t *>to, size):
        conn.refusal = TLS_REFUSED_HANDSHAKE_SIZE
        return -1
    return <int>size


cdef int on_bio_write(BIO *bio, const char *data, int size) noexcept nogil:
    cdef tls_conn_t *conn = <tls_conn_t *>BIO_get_data(bio)
    BIO_clear_retry_flags(bio)
    if size <= 0 or conn.refusal == TLS_REFUSED_BY_SINK:
        return -1
    if conn.server and conn.answered and conn.identity == NULL and not conn.handshake_done:
        conn.refusal = TLS_REFUSED_BY_CHOOSER       # an answer with the placeholder: never, see on_certificate
        return -1
    if conn.sink(conn.sink_arg, <const uint8_t *>data, <size_t>size) != 0:
        conn.refusal = TLS_REFUSED_BY_SINK
        return -1
    return size


cdef long on_bio_ctrl(BIO *bio, int command, long number, void *pointer) noexcept nogil:
    return command == BIO_CTRL_FLUSH or command == BIO_CTRL_DUP


# -- callbacks of a handshake -----------------------------------------------------------------------------------------

cdef inline tls_conn_t *connection_of(SSL *ssl) noexcept nogil:
    # By its BIO: an SSL's application data would cost each connection another allocation.
    cdef BIO *bio = SSL_get_rbio(ssl)
    return <tls_conn_t *>BIO_get_data(bio) if bio != NULL else NULL


cdef void on_message(int written, int version, int content_type, const void *data, size_t size, SSL *ssl,
                     void *arg) noexcept nogil:
    # Every alert and every handshake message passes here, in both directions, decrypted.
    cdef tls_conn_t *conn = connection_of(ssl)
    cdef const uint8_t *message = <const uint8_t *>data
    cdef uint64_t allowed
    if conn == NULL:
        return
    if content_type == RECORD_ALERT and size == 2:
        if written:
            conn.alert_sent = <uint16_t>(message[0] << 8 | message[1])
        else:
            conn.alert_received = <uint16_t>(message[0] << 8 | message[1])
    elif content_type == RECORD_HANDSHAKE and size > 0:
        if written:
            if message[0] == MESSAGE_ENCRYPTED_EXTENSIONS:
                conn.answered = True
        elif message[0] == MESSAGE_KEY_UPDATE or message[0] == MESSAGE_NEW_SESSION_TICKET:
            # Each costs us a key schedule (10 us) and may oblige us to answer; OpenSSL does not count them.
            conn.control_messages += 1
            allowed = TLS_CONTROL_MESSAGES_MAX + (conn.plaintext_size >> TLS_CONTROL_MESSAGES_PER_SHIFT)
            if conn.control_messages > allowed:
                conn.refusal = TLS_REFUSED_FLOOD


cdef void keep_error(tls_conn_t *conn, object error) noexcept:
    Py_XDECREF(conn.error)
    Py_INCREF(error)
    conn.error = <PyObject *>error


cdef int on_client_hello(SSL *ssl, int *alert, void *arg) noexcept nogil:
    # First thing after a ClientHello was put together from its records, however they were cut, and again for the second
    # one after a HelloRetryRequest.
    cdef tls_conn_t *conn = connection_of(ssl)
    cdef const unsigned char *data = NULL
    cdef size_t size = 0
    cdef bint has_challenge = SSL_client_hello_get0_ext(ssl, CHALLENGE_EXTENSION, &data, &size) == 1
    alert[0] = SSL_AD_ILLEGAL_PARAMETER
    if has_challenge and size != TLS_CHALLENGE_SIZE:
        # 17 or 64 chosen bytes could imitate the other bindings of evidence, so there is no other size.
        conn.refusal = TLS_REFUSED_CHALLENGE_SIZE
        return SSL_CLIENT_HELLO_ERROR
    if conn.hello != NULL:
        # RFC 8446 4.1.2: a second ClientHello may change only what the retry asks for. Evidence bound to a nonce that
        # the peer may still change would be bound to nothing.
        if has_challenge != conn.has_challenge or (
            has_challenge and memcmp(data, conn.challenge, TLS_CHALLENGE_SIZE) != 0
        ):
            conn.refusal = TLS_REFUSED_HELLO_CHANGED
            return SSL_CLIENT_HELLO_ERROR
    conn.has_challenge = has_challenge
    if has_challenge:
        memcpy(conn.challenge, data, TLS_CHALLENGE_SIZE)
        if not conn.has_client_nonce and RAND_bytes(conn.client_nonce, TLS_CHALLENGE_SIZE) != 1:
            alert[0] = ALERT_INTERNAL_ERROR
            return SSL_CLIENT_HELLO_ERROR
        conn.has_client_nonce = True
        SSL_set_verify(ssl, SSL_VERIFY_PEER, NULL)      # may answer with nothing: FAIL_IF_NO_PEER_CERT is not set
    with gil:
        return keep_hello(conn, ssl)


cdef int keep_hello(tls_conn_t *conn, SSL *ssl) noexcept:
    cdef const unsigned char *data = NULL
    cdef size_t size = 0
    cdef ClientHello hello
    cdef bytes name = None
    try:
        if SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_server_name, &data, &size) == 1:
            name = server_name(data, size)
        if conn.hello != NULL:
            if (<ClientHello>conn.hello).sni != name:
                conn.refusal = TLS_REFUSED_HELLO_CHANGED
                return SSL_CLIENT_HELLO_ERROR
            return SSL_CLIENT_HELLO_SUCCESS
        hello = ClientHello.__new__(ClientHello)
        hello.sni = name
        hello.challenge = (
            PyBytes_FromStringAndSize(<char *>conn.challenge, TLS_CHALLENGE_SIZE) if conn.has_challenge else None
        )
        hello.alpn = []
        if SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &data, &size) == 1:
            hello.alpn = protocol_names(data, size)
        Py_INCREF(hello)
        conn.hello = <PyObject *>hello
        return SSL_CLIENT_HELLO_SUCCESS
    except BaseException as error:
        keep_error(conn, error)
        conn.refusal = TLS_REFUSED_BY_CHOOSER
        return SSL_CLIENT_HELLO_ERROR


cdef int on_certificate(SSL *ssl, void *arg) noexcept nogil:
    # After version, cipher, group and name were agreed, so that a hello which is refused anyway costs no certificate.
    cdef tls_conn_t *conn = connection_of(ssl)
    cdef EVP_PKEY *share = NULL
    if SSL_get_peer_tmp_key(ssl, &share) != 1:
        # No key share that we can use: a HelloRetryRequest goes out, and the client may still change what it must not.
        # OpenSSL wants a certificate of the right kind even so. The true one, and its quote, wait for the second hello.
        with gil:
            return use_placeholder(conn, ssl)
    EVP_PKEY_free(share)
    with gil:
        return use_identity(conn, ssl)


cdef int use_placeholder(tls_conn_t *conn, SSL *ssl) noexcept:
    cdef Identity none = (<TLSContext>conn.context).placeholder
    return SSL_use_cert_and_key(ssl, none.leaf, none.key, none.chain, 1)


cdef int use_identity(tls_conn_t *conn, SSL *ssl) noexcept:
    try:
        return show(conn, ssl, (<TLSContext>conn.context).choose(<ClientHello>conn.hello))
    except BaseException as error:
        # Kept for tls_take_error: the handshake ends with internal_error, and the caller learns why.
        keep_error(conn, error)
        conn.refusal = TLS_REFUSED_BY_CHOOSER
        return 0


cdef int show(tls_conn_t *conn, SSL *ssl, object chosen) except -1:
    # 1: from here on this connection shows the identity chosen.
    cdef Identity identity
    if not isinstance(chosen, Identity):
        raise InternalError(f"the chooser gave a {type(chosen).__name__}, not an Identity")
    identity = <Identity>chosen
    if identity.leaf == NULL or identity.key == NULL:
        raise InternalError("the chooser gave an empty Identity")
    if SSL_use_cert_and_key(ssl, identity.leaf, identity.key, identity.chain, 1) != 1:
        raise InternalError("OpenSSL does not take the certificate")
    memcpy(conn.spki_sha256, identity.spki_digest, 32)
    conn.leaf_generation = identity.generation
    Py_INCREF(identity)
    conn.identity = <PyObject *>identity
    if identity.app is not None:
        Py_INCREF(identity.app)
        conn.app = <PyObject *>identity.app
    return 1


cdef int on_client_certificate(SSL *ssl, void *arg) noexcept nogil:
    # Client: the server asked for a certificate; its nonce, if there is one, was read before.
    with gil:
        return use_client_identity(connection_of(ssl), ssl)


cdef int use_client_identity(tls_conn_t *conn, SSL *ssl) noexcept:
    cdef bytes nonce = None
    try:
        if conn.has_client_nonce:
            nonce = PyBytes_FromStringAndSize(<char *>conn.client_nonce, TLS_CHALLENGE_SIZE)
        chosen = (<TLSContext>conn.context).choose(nonce)
        if chosen is None:
            return 1        # an empty Certificate: this client does not say who it is
        return show(conn, ssl, chosen)
    except BaseException as error:
        keep_error(conn, error)
        conn.refusal = TLS_REFUSED_BY_CHOOSER
        return 0


# -- a client's certificate, for its server ---------------------------------------------------------------------------

cdef int on_peer_chain(X509_STORE_CTX *verification, void *arg) noexcept nogil:
    # Stands where OpenSSL would look for a path to its own trusted roots.
    cdef SSL *ssl = <SSL *>X509_STORE_CTX_get_ex_data(verification, SSL_get_ex_data_X509_STORE_CTX_idx())
    cdef int error
    with gil:
        error = judge_peer(connection_of(ssl), X509_STORE_CTX_get0_untrusted(verification))
    ERR_clear_error()
    if error == X509_V_OK:
        error = slim_down(verification)
    X509_STORE_CTX_set_error(verification, error)   # becomes the alert: ssl_x509err2alert
    return error == X509_V_OK


cdef bint is_p256(EVP_PKEY *key) noexcept nogil:
    cdef char group[16]
    cdef size_t size = 0
    return (
        key != NULL and EVP_PKEY_get_base_id(key) == EVP_PKEY_EC
        and EVP_PKEY_get_group_name(key, group, sizeof(group), &size) == 1
        and size == 10 and memcmp(group, b"prime256v1", 10) == 0
    )


cdef int judge_peer(tls_conn_t *conn, STACK_OF_X509 *sent) noexcept:
    cdef EVP_PKEY *key
    cdef bytes spki
    cdef bytes nonce
    cdef tuple chain
    cdef int index
    try:
        if sk_X509_num(sent) > TLS_PEER_CHAIN_MAX:
            conn.refusal = TLS_REFUSED_PEER_CHAIN
            return X509_V_ERR_CERT_REJECTED
        key = X509_get0_pubkey(sk_X509_value(sent, 0))
        if not is_p256(key):
            conn.refusal = TLS_REFUSED_PEER_KEY
            return X509_V_ERR_INVALID_PURPOSE       # unsupported_certificate
        spki = subject_public_key_info(key)
        sha256(<const uint8_t *>PyBytes_AS_STRING(spki), <size_t>PyBytes_GET_SIZE(spki), conn.peer_spki_sha256)
        chain = tuple([certificate_der(sk_X509_value(sent, index)) for index in range(sk_X509_num(sent))])
        judge = (<TLSContext>conn.context).judge
        if judge is None:
            Py_INCREF(chain)
            conn.peer_chain = <PyObject *>chain
        else:
            nonce = PyBytes_FromStringAndSize(<char *>conn.client_nonce, TLS_CHALLENGE_SIZE)
            verdict = judge(chain, nonce)
            Py_INCREF(verdict)
            conn.verdict = <PyObject *>verdict
        conn.has_peer = True
        return X509_V_OK
    except AttestationError as error:
        keep_error(conn, error)
        conn.refusal = TLS_REFUSED_BY_JUDGE
        return X509_V_ERR_CERT_REJECTED             # bad_certificate
    except BaseException as error:
        keep_error(conn, error)
        conn.refusal = TLS_REFUSED_BY_JUDGE
        return X509_V_ERR_UNSPECIFIED               # internal_error


cdef int slim_down(X509_STORE_CTX *verification) noexcept nogil:
    # What OpenSSL keeps of a client for the life of the connection is this stack: 10 KiB and more for a leaf with its
    # quote. All that it still needs is the leaf's key, for CertificateVerify, so a certificate that holds nothing else
    # takes the leaf's place, and those above it go.
    cdef STACK_OF_X509 *sent = X509_STORE_CTX_get0_untrusted(verification)
    cdef X509 *slim = X509_new()
    cdef X509 *leaf = sk_X509_value(sent, 0)
    if slim == NULL or X509_set_pubkey(slim, X509_get0_pubkey(leaf)) != 1:
        X509_free(slim)
        ERR_clear_error()
        return X509_V_ERR_UNSPECIFIED
    while sk_X509_num(sent) > 1:
        X509_free(sk_X509_pop(sent))
    sk_X509_set(sent, 0, slim)
    X509_STORE_CTX_set_cert(verification, slim)
    X509_free(leaf)
    return X509_V_OK


cdef int on_alpn(SSL *ssl, const unsigned char **chosen, unsigned char *chosen_size, const unsigned char *offer,
                 unsigned int offer_size, void *arg) noexcept nogil:
    # RFC 7301 3.2: a client that offers only what we do not speak gets no_application_protocol.
    cdef tls_protocols_t *ours = <tls_protocols_t *>arg
    if SSL_select_next_proto(<unsigned char **>chosen, chosen_size, ours.data, ours.size, offer,
                             offer_size) != OPENSSL_NPN_NEGOTIATED:
        return SSL_TLSEXT_ERR_ALERT_FATAL
    return SSL_TLSEXT_ERR_OK


cdef int on_add_challenge(SSL *ssl, unsigned int type, unsigned int where, const unsigned char **data, size_t *size,
                          X509 *certificate, size_t index, int *alert, void *arg) noexcept nogil:
    # In the ClientHello: the client's challenge, if it has one. In the CertificateRequest, which only a client that sent
    # one gets: the nonce for the client's own evidence.
    cdef tls_conn_t *conn = connection_of(ssl)
    if not conn.has_challenge:
        return 0
    data[0] = &conn.client_nonce[0] if where & SSL_EXT_TLS1_3_CERTIFICATE_REQUEST else &conn.challenge[0]
    size[0] = TLS_CHALLENGE_SIZE
    return 1


cdef int on_parse_challenge(SSL *ssl, unsigned int type, unsigned int where, const unsigned char *data, size_t size,
                            X509 *certificate, size_t index, int *alert, void *arg) noexcept nogil:
    # A client reads the nonce out of the CertificateRequest; a server has judged the ClientHello's in on_client_hello.
    cdef tls_conn_t *conn = connection_of(ssl)
    if conn.server:
        return 1
    if size != TLS_CHALLENGE_SIZE:
        conn.refusal = TLS_REFUSED_NONCE_SIZE
        alert[0] = SSL_AD_ILLEGAL_PARAMETER
        return 0
    memcpy(conn.client_nonce, data, TLS_CHALLENGE_SIZE)
    conn.has_client_nonce = True
    return 1


cdef int refuse_password(char *to, int room, int writing, void *arg) noexcept nogil:
    # Without a callback OpenSSL would ask the terminal for the password of an encrypted block.
    return -1


# -- contexts ---------------------------------------------------------------------------------------------------------

@cython.final
cdef class ClientHello:
    """What a client said before a certificate is chosen. All of it is the client's word.

    Attributes:
        sni: the host name as sent: any case, a final dot, an IP address, empty; None when absent.
        challenge: the 32 bytes of extension 0xFFBB, or None.
        alpn: the protocols offered, in order.
    """

    def __repr__(self):
        return f"<ClientHello sni={self.sni!r} challenge={self.challenge is not None} alpn={self.alpn!r}>"


@cython.final
cdef class TLSContext:
    """How connections of one kind are made: TLS 1.3 only, no resumption of any sort. Made by `server` or `client`.

    Attributes:
        is_server: which end.
        verifies: whether a peer's certificate is checked (clients).
    """

    def __dealloc__(self):
        SSL_CTX_free(self.context)
        BIO_meth_free(self.method)

    @staticmethod
    def server(choose not None, *, protocols=(HTTP_1_1,), str groups not None=GROUPS, bint keep_buffers=False,
               judge_client=None):
        """The serving end.

        Args:
            choose: called with the `ClientHello` once per connection, returns the `Identity` to show. What it raises
                ends that handshake with internal_error and is kept for whoever runs the connection.
            protocols: ALPN names served; a client that offers only others gets no_application_protocol. None of them:
                what a client offers is ignored.
            groups: key agreement groups, OpenSSL names joined by colons, preferred first.
            keep_buffers: a connection keeps its two record buffers (33 KiB) between records, until `tls_release`. For
                who knows when a connection is idle; else they are given back after each record.
            judge_client: called with the chain of a client that answered our CertificateRequest (a tuple of DER, leaf
                first, at most PEER_CHAIN_MAX, its leaf's key on P-256) and the 32 bytes which that request carried.
                What it returns can be taken once the handshake is done, that is, once the client has proven that it
                holds the leaf's key. AttestationError from it ends the handshake with bad_certificate, anything else
                with internal_error. None: the chain is kept for whoever takes it.
        """
        cdef TLSContext self = TLSContext.__new__(TLSContext)
        self.is_server = True
        self.keeps_buffers = keep_buffers
        self.choose = choose
        self.placeholder = placeholder_identity()
        self.judge = judge_client
        self.context = SSL_CTX_new(TLS_server_method())
        self.set_common(groups, protocols)
        SSL_CTX_set_cert_verify_callback(self.context, on_peer_chain, NULL)
        if SSL_CTX_set1_client_sigalgs_list(self.context, CLIENT_SIGNATURES) != 1:
            ERR_clear_error()
            raise InternalError("OpenSSL does not take the clients' signature scheme")
        SSL_CTX_set_client_hello_cb(self.context, on_client_hello, NULL)
        SSL_CTX_set_cert_cb(self.context, on_certificate, NULL)
        if self.protocols.size:
            SSL_CTX_set_alpn_select_cb(self.context, on_alpn, &self.protocols)
        SSL_CTX_set_verify(self.context, SSL_VERIFY_NONE, NULL)
        return self

    @staticmethod
    def client(*, bytes ca_pem=None, TLSContext roots=None, protocols=(HTTP_1_1,), str groups not None=GROUPS,
               choose_client=None, bint dangerously_skip_verification=False, bint tls_1_2=False):
        """The connecting end.

        Args:
            ca_pem: one or more CA certificates that a server's chain must lead to. No other is trusted: the system's
                list is not read.
            roots: a client context of whose CAs the same holds, in place of `ca_pem`: they are shared, not read anew
                (a list of 130 takes 30 ms).
            protocols: ALPN names offered; empty offers none.
            groups: key agreement groups, preferred first; a key share is sent for the first.
            choose_client: called when the server asks for a certificate, with the 32 bytes of extension 0xFFBB in its
                request or None, returns the `Identity` to show or None. What it raises ends that handshake.
            dangerously_skip_verification: take any certificate. Whoever says so checks it by other means, or not at
                all.
            tls_1_2: agree to TLS 1.2 with a server that speaks no 1.3, with ECDHE and an AEAD.
        Raises:
            UsageError: not exactly one of `ca_pem`, `roots` and the dangerous flag; `roots` verifies nothing itself.
            ConfigError: `ca_pem` holds no certificate, or one that cannot be read.
        """
        cdef TLSContext self = TLSContext.__new__(TLSContext)
        if (ca_pem is not None) + (roots is not None) + dangerously_skip_verification != 1:
            raise UsageError("a client context takes one of ca_pem, roots and dangerously_skip_verification=True")
        if roots is not None and not roots.verifies:
            raise UsageError("roots are those of a client context that verifies")
        self.verifies = not dangerously_skip_verification
        self.choose = choose_client
        self.context = SSL_CTX_new(TLS_client_method())
        self.set_common(groups, protocols)
        if choose_client is not None:
            SSL_CTX_set_cert_cb(self.context, on_client_certificate, NULL)
        if ca_pem is not None:
            self.trust(ca_pem)
        if roots is not None:
            SSL_CTX_set1_cert_store(self.context, SSL_CTX_get_cert_store(roots.context))
        SSL_CTX_set_security_level(self.context, SECURITY_LEVEL)
        if tls_1_2 and (
            SSL_CTX_set_min_proto_version(self.context, TLS1_2_VERSION) != 1
            or SSL_CTX_set_cipher_list(self.context, CIPHERS_1_2) != 1
        ):
            ERR_clear_error()
            raise InternalError("OpenSSL does not take the TLS 1.2 settings")
        if self.protocols.size and SSL_CTX_set_alpn_protos(self.context, self.protocols.data, self.protocols.size) != 0:
            raise InternalError("OpenSSL does not take the protocols")
        SSL_CTX_set_verify(self.context, SSL_VERIFY_PEER if self.verifies else SSL_VERIFY_NONE, NULL)
        return self

    cdef int set_common(self, str groups, protocols) except -1:
        cdef bytes wire
        if self.context == NULL:
            ERR_clear_error()
            raise InternalError("OpenSSL gives no TLS context: a configuration of its own may forbid what we need")
        self.method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, b"enclave-os connection")
        if self.method == NULL:
            raise MemoryError
        BIO_meth_set_read(self.method, on_bio_read)
        BIO_meth_set_write(self.method, on_bio_write)
        BIO_meth_set_ctrl(self.method, on_bio_ctrl)
        if (
            SSL_CTX_set_min_proto_version(self.context, TLS1_3_VERSION) != 1
            or SSL_CTX_set_max_proto_version(self.context, TLS1_3_VERSION) != 1
            or SSL_CTX_set_ciphersuites(self.context, CIPHER_SUITES) != 1
            or SSL_CTX_set_num_tickets(self.context, 0) != 1
            or SSL_CTX_set_max_early_data(self.context, 0) != 1
        ):
            ERR_clear_error()
            raise InternalError("OpenSSL does not take the TLS 1.3 settings")
        if SSL_CTX_set1_groups_list(self.context, groups.encode()) != 1:
            ERR_clear_error()
            raise UsageError(f"groups that OpenSSL does not know: {groups!r}")
        SSL_CTX_set_session_cache_mode(self.context, SSL_SESS_CACHE_OFF)
        SSL_CTX_set_options(self.context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION
                            | SSL_OP_CIPHER_SERVER_PREFERENCE)
        # RELEASE_BUFFERS: an idle connection holds no 16 KiB buffers, whoever runs it. NO_AUTO_CHAIN: we say what is sent; OpenSSL would
        # otherwise build and verify a chain in every handshake. read_ahead: one BIO read per input, not two per record.
        SSL_CTX_set_mode(self.context, SSL_MODE_NO_AUTO_CHAIN | (0 if self.keeps_buffers else SSL_MODE_RELEASE_BUFFERS))
        SSL_CTX_set_read_ahead(self.context, 1)
        SSL_CTX_set_max_cert_list(self.context, TLS_PEER_CHAIN_SIZE_MAX if self.is_server else TLS_HANDSHAKE_SIZE_MAX)
        SSL_CTX_set_msg_callback(self.context, on_message)
        # A server must register it too, though only clients add it: OpenSSL shows the hello callback no extension that
        # nobody registered.
        if SSL_CTX_add_custom_ext(
            self.context, CHALLENGE_EXTENSION,
            SSL_EXT_TLS1_3_ONLY | SSL_EXT_CLIENT_HELLO | SSL_EXT_TLS1_3_CERTIFICATE_REQUEST,
            on_add_challenge, NULL, NULL, on_parse_challenge, NULL,
        ) != 1:
            raise InternalError("OpenSSL does not take the challenge extension")
        for name in protocols:
            if not 1 <= len(name) <= 255:
                raise UsageError(f"an ALPN name has 1 to 255 bytes: {name!r}")
        wire = b"".join([bytes((len(name),)) + name for name in protocols])
        if len(wire) > PROTOCOLS_SIZE_MAX:
            raise UsageError(f"ALPN names of more than {PROTOCOLS_SIZE_MAX} bytes")
        memcpy(self.protocols.data, PyBytes_AS_STRING(wire), PyBytes_GET_SIZE(wire))
        self.protocols.size = <unsigned int>PyBytes_GET_SIZE(wire)
        return 0

    cdef int trust(self, bytes ca_pem) except -1:
        cdef BIO *bio = BIO_new_mem_buf(PyBytes_AS_STRING(ca_pem), <int>PyBytes_GET_SIZE(ca_pem))
        cdef X509_STORE *store = SSL_CTX_get_cert_store(self.context)
        cdef X509 *certificate
        cdef int count = 0
        if X509_STORE_set_flags(store, X509_V_FLAG_X509_STRICT) != 1:
            raise InternalError("OpenSSL does not check certificates strictly")
        if bio == NULL:
            raise MemoryError
        while True:
            certificate = PEM_read_bio_X509(bio, NULL, refuse_password, NULL)
            if certificate == NULL:
                break
            if X509_STORE_add_cert(store, certificate) == 1:
                count += 1
            X509_free(certificate)
        BIO_free(bio)
        ERR_clear_error()
        if count == 0:
            raise ConfigError("no CA certificate in the PEM text")
        if count < ca_pem.count(BEGIN_CERTIFICATE):
            # Reading stops at what it cannot read; trusting only what stood before it would surprise whoever wrote it.
            raise ConfigError(f"certificate {count + 1} of the PEM text cannot be read")
        return 0


# -- connections ------------------------------------------------------------------------------------------------------

cdef tls_conn_t *tls_conn_new(TLSContext context, tls_copy_in_t copy_in, tls_sink_t sink, void *sink_arg) except NULL:
    cdef tls_conn_t *conn = <tls_conn_t *>calloc(1, sizeof(tls_conn_t))
    cdef BIO *bio = NULL
    if conn == NULL:
        raise MemoryError
    conn.copy_in = copy_in
    conn.sink = sink
    conn.sink_arg = sink_arg
    conn.server = context.is_server
    Py_INCREF(context)
    conn.context = <PyObject *>context
    conn.ssl = SSL_new(context.context)
    bio = BIO_new(context.method)
    if conn.ssl == NULL or bio == NULL:
        BIO_free(bio)
        tls_conn_free(conn)
        ERR_clear_error()
        raise MemoryError
    BIO_set_data(bio, conn)
    BIO_set_init(bio, 1)
    SSL_set_bio(conn.ssl, bio, bio)
    if conn.server:
        SSL_set_accept_state(conn.ssl)
    else:
        SSL_set_connect_state(conn.ssl)
    return conn


cdef void tls_conn_free(tls_conn_t *conn) noexcept:
    if conn == NULL:
        return
    SSL_free(conn.ssl)
    Py_XDECREF(conn.hello)
    Py_XDECREF(conn.identity)
    Py_XDECREF(conn.error)
    Py_XDECREF(conn.app)
    Py_XDECREF(conn.peer_chain)
    Py_XDECREF(conn.verdict)
    Py_XDECREF(conn.context)
    free(conn)


cdef inline void clean_queue() noexcept nogil:
    # SSL_get_error would take for ours what another user of OpenSSL left in this thread. Looking first, since clearing
    # walks all sixteen entries, empty or not: 840 instructions in OpenSSL 3.0, twice a request.
    if ERR_peek_error() != 0:
        ERR_clear_error()


cdef int fail(tls_conn_t *conn) noexcept nogil:
    # The one way to fail: note the reason, leave the queue clean, and see that the peer got an alert.
    cdef uint8_t alert[7]
    conn.failed = True
    conn.input_size = 0
    if conn.reason == 0:
        conn.reason = ERR_peek_error()
    ERR_clear_error()
    if (
        conn.server and not conn.answered and conn.alert_sent == 0 and conn.alert_received == 0
        and conn.refusal != TLS_REFUSED_BY_SINK
    ):
        # OpenSSL stays silent towards what does not look like TLS, and knows nothing of our own bound. No keys yet, so
        # a plaintext alert is what the peer can read (RFC 8446 6 and 5.1: type 21, version 0x0303, 2 bytes).
        alert[0] = RECORD_ALERT
        alert[1] = 3
        alert[2] = 3
        alert[3] = 0
        alert[4] = 2
        alert[5] = ALERT_FATAL
        alert[6] = ALERT_ILLEGAL_PARAMETER if conn.refusal == TLS_REFUSED_HANDSHAKE_SIZE else ALERT_DECODE_ERROR
        conn.alert_sent = <uint16_t>(alert[5] << 8 | alert[6])
        if conn.sink(conn.sink_arg, alert, sizeof(alert)) != 0:
            conn.refusal = TLS_REFUSED_BY_SINK
    return TLS_FAILED


cdef void finish_handshake(tls_conn_t *conn) noexcept nogil:
    # What only the handshake needed goes: certificate, key and chain are shared, and an idle connection stays small.
    conn.handshake_done = True
    SSL_certs_clear(conn.ssl)
    if conn.hello != NULL or conn.identity != NULL:
        with gil:
            Py_XDECREF(conn.hello)
            Py_XDECREF(conn.identity)
            conn.hello = NULL
            conn.identity = NULL


cdef int tls_read(tls_conn_t *conn, uint8_t *to, size_t room) noexcept nogil:
    cdef size_t taken = 0
    cdef size_t part
    cdef int got
    cdef int error
    if conn.failed:
        conn.input_size = 0     # whatever came after is nobody's
        return TLS_FAILED
    if room > INT_SIZE_MAX:
        room = INT_SIZE_MAX
    clean_queue()
    if conn.input_size:
        conn.starved = False
    while taken < room:
        part = room - taken
        got = SSL_read(conn.ssl, to + taken, <int>part)
        if not conn.handshake_done and SSL_is_init_finished(conn.ssl):
            finish_handshake(conn)
        if got > 0 and conn.refusal == TLS_REFUSED_NOT:
            taken += <size_t>got
            conn.plaintext_size += <size_t>got
            if conn.input_size == 0 and SSL_has_pending(conn.ssl) == 0:
                conn.starved = True     # spares OpenSSL the look into an empty input
                return <int>taken
            continue
        error = SSL_get_error(conn.ssl, got)
        if error == SSL_ERROR_WANT_READ and conn.refusal == TLS_REFUSED_NOT:
            return <int>taken           # TLS_WANT_INPUT when nothing came
        if error == SSL_ERROR_ZERO_RETURN and conn.refusal == TLS_REFUSED_NOT:
            conn.closed = True
            conn.input_size = 0         # RFC 8446 6.1: what follows a close_notify is ignored
            return <int>taken if taken else TLS_CLOSED
        # Plaintext of whole records before the one that broke is true; the caller hears of the failure next time.
        fail(conn)
        return <int>taken if taken else TLS_FAILED
    return <int>taken


cdef int tls_write(tls_conn_t *conn, const uint8_t *data, size_t size) noexcept nogil:
    cdef size_t written = 0
    if conn.failed or not conn.handshake_done or conn.close_sent:
        return TLS_FAILED
    if size == 0:
        return 0
    clean_queue()
    if SSL_write_ex(conn.ssl, data, size, &written) != 1 or written != size:
        return fail(conn)
    return 0


cdef void tls_close(tls_conn_t *conn) noexcept nogil:
    if conn.failed or not conn.handshake_done or conn.close_sent:
        return
    conn.close_sent = True
    clean_queue()
    if SSL_shutdown(conn.ssl) < 0:
        fail(conn)


cdef void tls_release(tls_conn_t *conn) noexcept nogil:
    # Only between records: before 3.0.14 OpenSSL freed a buffer in whose midst it was (CVE-2024-4741), and told by
    # itself only when unread bytes were left. "RH": the next thing to read is a record's header.
    if not conn.failed and SSL_has_pending(conn.ssl) == 0 and SSL_rstate_string(conn.ssl)[1] == c"H":
        SSL_free_buffers(conn.ssl)


cdef bint tls_pending(tls_conn_t *conn) noexcept nogil:
    if conn.failed or conn.closed:
        return True
    return conn.input_size != 0 or (not conn.starved and SSL_has_pending(conn.ssl) == 1)


cdef object take(PyObject **owned):
    # What the slot holds, once; None for an empty one.
    cdef object taken
    if owned[0] == NULL:
        return None
    taken = <object>owned[0]
    Py_XDECREF(owned[0])
    owned[0] = NULL
    return taken


cdef object tls_take_error(tls_conn_t *conn):
    return take(&conn.error)


cdef object tls_take_verdict(tls_conn_t *conn):
    return take(&conn.verdict) if conn.handshake_done and not conn.failed else None


cdef tuple tls_take_peer_chain(tls_conn_t *conn):
    return (take(&conn.peer_chain) if conn.handshake_done and not conn.failed else None) or ()


cdef bytes tls_peer_spki_sha256(tls_conn_t *conn):
    # Only what CertificateVerify has proven.
    if not conn.has_peer or not conn.handshake_done:
        return None
    return PyBytes_FromStringAndSize(<char *>conn.peer_spki_sha256, 32)


cdef object tls_app(tls_conn_t *conn):
    return <object>conn.app if conn.app != NULL else None


cdef dict REFUSALS = {
    TLS_REFUSED_CHALLENGE_SIZE: "the challenge (extension 0xFFBB) is not exactly 32 bytes",
    TLS_REFUSED_HELLO_CHANGED: "the second ClientHello differs from the first in challenge or server name",
    TLS_REFUSED_HANDSHAKE_SIZE: "a hello of more than 16 KiB, or 64 KiB before the handshake was answered",
    TLS_REFUSED_FLOOD: "a flood of key updates or tickets",
    TLS_REFUSED_BY_SINK: "the ciphertext could not be passed on",
    TLS_REFUSED_BY_CHOOSER: "no identity could be chosen",
    TLS_REFUSED_PEER_CHAIN: "a client's chain of more than 8 certificates",
    TLS_REFUSED_PEER_KEY: "the key of a client's certificate is not on P-256",
    TLS_REFUSED_BY_JUDGE: "the client's certificate was refused",
    TLS_REFUSED_NONCE_SIZE: "the nonce of the server's request (extension 0xFFBB) is not exactly 32 bytes",
}


cdef str alert_name(uint16_t alert):
    return SSL_alert_desc_string_long(alert).decode().replace(" ", "_")


cdef str tls_describe(tls_conn_t *conn):
    cdef const char *reason
    parts = []
    if conn.refusal != TLS_REFUSED_NOT:
        parts.append(REFUSALS[conn.refusal])
    elif conn.reason:
        reason = ERR_reason_error_string(conn.reason)
        parts.append(reason.decode() if reason != NULL else "an error without a name")
        if not conn.server and SSL_get_verify_result(conn.ssl) != X509_V_OK:
            parts.append(X509_verify_cert_error_string(SSL_get_verify_result(conn.ssl)).decode())
    if conn.alert_received:
        parts.append(f"alert received: {alert_name(conn.alert_received)}")
    if conn.alert_sent:
        parts.append(f"alert sent: {alert_name(conn.alert_sent)}")
    return ", ".join(parts) or "nothing is wrong"


cdef int tls_export(tls_conn_t *conn, uint8_t *to, size_t size, const char *label, size_t label_size,
                    const uint8_t *context, size_t context_size) noexcept nogil:
    cdef int done
    if not conn.handshake_done:
        return -1
    ERR_clear_error()
    done = SSL_export_keying_material(conn.ssl, to, size, label, label_size, context, context_size, 1)
    ERR_clear_error()
    return 0 if done == 1 else -1


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
