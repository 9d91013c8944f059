# What OpenSSL calls: the BIO through which it reads and writes, and what is asked while a handshake goes on. Part of
# _tls.pyx, which cimports for all its parts: one module, so that each call is direct.
#
# Callbacks raise nothing: what Python raised is kept for the connection's owner (`keep_error`), and OpenSSL is told no.

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
