# One connection: the C interface of _tls.pxd, in the order in which it lives. Part of _tls.pyx, which cimports for all its
# parts.

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
