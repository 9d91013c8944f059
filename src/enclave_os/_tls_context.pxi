# What many connections share: TLSContext, and the ClientHello that its chooser of identities is shown. Part of _tls.pyx,
# which cimports for all its parts.

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
