# Leaf certificates, minted fresh for a connection: key, DER by hand, signature by the issuer.
#
# A TBSCertificate is a concatenation of parts of which all but serial, validity and public key are the same from leaf
# to leaf. So they are encoded once, in LeafMinter, and a leaf is written from its end to its start (each length is
# known when its header is written) into one buffer:
#
#   Certificate = SEQUENCE { TBSCertificate, ecdsa-with-SHA256, BIT STRING signature }          RFC 5280 4.1
#   TBSCertificate = SEQUENCE { [0] v3, serial, ecdsa-with-SHA256, issuer, validity, subject, SPKI, [3] extensions }
#
# Invariant: what is signed is what was written here; nothing of a peer enters a certificate.
# It does not: read a clock, choose names, parse certificates of others, or hand out a private key.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from enclave_os._openssl cimport (
    ASN1_OCTET_STRING, ASN1_STRING_get0_data, ASN1_STRING_length, d2i_AutoPrivateKey, d2i_X509, EC_GROUP_free,
    EC_GROUP, EC_GROUP_new_by_curve_name, EC_KEY, EC_KEY_free, EC_KEY_generate_key, EC_KEY_METHOD, EC_KEY_METHOD_new,
    EC_KEY_new, EC_KEY_OpenSSL, EC_KEY_set_group, EC_KEY_set_method, ERR_clear_error, EVP_PKEY, EVP_PKEY_assign,
    EVP_PKEY_CTX_free, EVP_PKEY_CTX_new, EVP_PKEY_EC, EVP_PKEY_free, EVP_PKEY_get1_encoded_public_key,
    EVP_PKEY_get_base_id, EVP_PKEY_get_group_name, EVP_PKEY_new, EVP_PKEY_sign, EVP_PKEY_sign_init, i2d_PUBKEY,
    i2d_X509, i2d_X509_NAME, i2o_ECPublicKey, NID_X9_62_prime256v1, OPENSSL_free, OSSL_LIB_CTX_free, OSSL_LIB_CTX_new,
    OSSL_PROVIDER_load, OSSL_PROVIDER_unload, OSSL_STACK_OF_X509_free, RAND_bytes, SHA256_CTX, SHA256_Final,
    SHA256_Init, SHA256_Update, sk_X509_new_null, sk_X509_num, sk_X509_push, sk_X509_value, STACK_OF_X509, X509,
    X509_check_ca, X509_check_private_key, X509_check_purpose, X509_d2i_under, X509_free, X509_get0_pubkey,
    EVP_sha256, X509_new, X509_sign, X509_get0_subject_key_id, X509_get_subject_name, X509_set_pubkey, X509_up_ref,
)
from enclave_os._x509_der cimport der_writer_t, put, put_bytes, put_header, put_time

import ipaddress

from enclave_os.errors import ConfigError, InternalError
from enclave_os.wire.errors import UsageError

cdef enum:
    TAG_INTEGER = 0x02
    TAG_BIT_STRING = 0x03
    TAG_OCTET_STRING = 0x04
    TAG_OID = 0x06
    TAG_UTF8 = 0x0C
    TAG_SEQUENCE = 0x30
    TAG_SET = 0x31
    TAG_EXPLICIT_3 = 0xA3
    SERIAL_SIZE = 20            # RFC 5280 4.1.2.2: at most 20 octets
    POINT_SIZE = 65             # an uncompressed point of P-256
    SPKI_SIZE = 91
    KEY_ID_SIZE = 20
    COMMON_NAME_SIZE_MAX = 64   # ub-common-name, RFC 5280 appendix A.1
    DNS_NAME_SIZE_MAX = 253     # RFC 1035 2.3.4, without the final dot
    TBS_FIXED_SIZE_MAX = 512    # all of a TBSCertificate that is not one of the variable parts, generously
    SIGNATURE_SIZE_MAX = 160    # ECDSA on at most P-384, DER: 104

# OpenSSL's own EC functions under another name. A key whose method is not the default one is used where it is, by the
# same code, instead of being exported to a provider first. Constant, and never freed: keys point to it.
cdef const EC_KEY_METHOD *LEAF_KEY_METHOD = EC_KEY_METHOD_new(EC_KEY_OpenSSL())

LIFETIME_S_MAX = 398 * 86400
"""What browsers accept at most (CA/Browser Forum baseline requirements 6.3.2); ours are far shorter."""

cdef bytes ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
cdef bytes SPKI_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
cdef bytes VERSION_3 = bytes.fromhex("a003020102")
# basicConstraints: critical, an empty sequence (cA is FALSE by default, and DER omits defaults). keyUsage: critical,
# digitalSignature only. extKeyUsage: serverAuth and clientAuth, since a leaf may also prove us as a client.
cdef bytes FIXED_EXTENSIONS = bytes.fromhex(
    "300c0603551d130101ff04023000"
    "300e0603551d0f0101ff040403020780"
    "301d0603551d250416301406082b0601050507030106082b06010505070302"
)
cdef bytes KEY_ID_PREFIX = bytes.fromhex("301d0603551d0e04160414")


# -- DER --------------------------------------------------------------------------------------------------------------

cdef bytes der(uint8_t tag, bytes content):
    """One DER element: tag, shortest definite length, content."""
    cdef Py_ssize_t size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


cdef bytes der_oid(str text):
    """An OBJECT IDENTIFIER from its dotted decimal form."""
    arcs = text.split(".")
    if len(arcs) < 2 or not all(arc.isascii() and arc.isdigit() and len(arc) < 20 for arc in arcs):
        raise UsageError(f"not an object identifier: {text!r}")
    numbers = [int(arc) for arc in arcs]
    if numbers[0] > 2 or (numbers[0] < 2 and numbers[1] > 39):
        raise UsageError(f"not an object identifier: {text!r}")
    content = bytearray()
    for number in [numbers[0] * 40 + numbers[1], *numbers[2:]]:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        content += bytes(reversed(groups))
    return der(TAG_OID, bytes(content))


cdef bytes der_extension(str oid, bytes value):
    """A non-critical extension whose extnValue holds `value` as it is."""
    return der(TAG_SEQUENCE, der_oid(oid) + der(TAG_OCTET_STRING, value))


cdef bytes QUOTE_OID = der_oid("1.2.840.113741.1.13.1.0")


cdef bytes der_subject(str common_name):
    """A Name with nothing but a common name."""
    text = common_name.encode()
    if not 1 <= len(common_name) <= COMMON_NAME_SIZE_MAX or not common_name.isprintable():
        raise UsageError(f"a common name has 1 to {COMMON_NAME_SIZE_MAX} printable characters: {common_name!r}")
    attribute = der(TAG_SEQUENCE, der_oid("2.5.4.3") + der(TAG_UTF8, text))
    return der(TAG_SEQUENCE, der(TAG_SET, attribute))


cdef bytes der_general_name(str name):
    """dNSName or iPAddress (RFC 5280 4.2.1.6)."""
    try:
        return der(0x87, ipaddress.ip_address(name).packed)
    except ValueError:
        pass
    labels = name.removeprefix("*.").split(".")
    if (
        not 1 <= len(name) <= DNS_NAME_SIZE_MAX
        or not name.isascii()
        or not all(
            1 <= len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() and label.strip("-") == label
            for label in labels
        )
    ):
        raise UsageError(f"neither a DNS name (at most 253 letters, digits, '-', '_', '.') nor an IP address: {name!r}")
    return der(0x82, name.encode())


cdef bytes der_alternative_names(names):
    """The subjectAltName extension for DNS names and IP addresses."""
    unique = list(dict.fromkeys(names))
    if not unique:
        raise UsageError("a leaf needs at least one name")
    return der_extension("2.5.29.17", der(TAG_SEQUENCE, b"".join([der_general_name(name) for name in unique])))


cdef tuple name_parts(str name):
    """Subject and subjectAltName extension of a leaf of one name."""
    subject = der_subject(name if len(name) <= COMMON_NAME_SIZE_MAX else "Enclave OS RA-TLS")
    return subject, der_alternative_names([name])


cdef void sha256(const uint8_t *data, size_t size, uint8_t *digest) noexcept nogil:
    # Without a fetch of the algorithm: 0.1 us, not 0.5, for the few hundred bytes that are hashed here.
    cdef SHA256_CTX state
    SHA256_Init(&state)
    SHA256_Update(&state, data, size)
    SHA256_Final(digest, &state)


# -- reading what the operator or a test hands us ---------------------------------------------------------------------

cdef X509 *read_certificate(bytes data) except NULL:
    cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef const unsigned char *end = at + PyBytes_GET_SIZE(data)
    cdef X509 *certificate = d2i_X509(NULL, &at, PyBytes_GET_SIZE(data))
    ERR_clear_error()
    if certificate == NULL:
        raise ConfigError("not a certificate in DER")
    if at != end:
        X509_free(certificate)
        raise ConfigError("bytes follow the certificate")
    return certificate


cdef EVP_PKEY *read_private_key(bytes data) except NULL:
    cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef const unsigned char *end = at + PyBytes_GET_SIZE(data)
    cdef EVP_PKEY *key = d2i_AutoPrivateKey(NULL, &at, PyBytes_GET_SIZE(data))
    ERR_clear_error()
    if key == NULL:
        raise ConfigError("not a private key in DER")
    if at != end:
        EVP_PKEY_free(key)
        raise ConfigError("bytes follow the private key")
    return key


cdef bytes subject_public_key_info(EVP_PKEY *key):
    cdef unsigned char *data = NULL
    cdef int size = i2d_PUBKEY(key, &data)
    ERR_clear_error()
    if size <= 0:
        raise InternalError("a public key cannot be encoded")
    try:
        return PyBytes_FromStringAndSize(<char *>data, size)
    finally:
        OPENSSL_free(data)


cdef int push(STACK_OF_X509 *chain, X509 *certificate) except -1:
    # Takes a reference of its own.
    X509_up_ref(certificate)
    if sk_X509_push(chain, certificate) == 0:
        X509_free(certificate)
        raise MemoryError
    return 0


cdef int push_all(STACK_OF_X509 *chain, certificates) except -1:
    cdef X509 *certificate
    for data in certificates:
        certificate = read_certificate(data)
        try:
            push(chain, certificate)
        finally:
            X509_free(certificate)
    return 0


cdef bytes key_identifier(const uint8_t *point, size_t size):
    # RFC 7093 2 (1): the first 160 bits of SHA-256 over the public key; nothing needs SHA-1 for this.
    cdef uint8_t digest[32]
    sha256(point, size, digest)
    return PyBytes_FromStringAndSize(<char *>digest, KEY_ID_SIZE)


# -- identities -------------------------------------------------------------------------------------------------------

@cython.final
cdef class Identity:
    """What a TLS endpoint proves itself with: private key, leaf certificate, and the chain above it.

    Immutable, and shared by any number of connections. Made by `Identity.from_der` or `LeafMinter.mint`.
    The private key cannot be read out of it.

    Attributes:
        leaf_der: the leaf certificate, DER.
        app: host name of the app that the leaf speaks for; None: the enclave as a whole.
        generation: of the configuration that the leaf states; 0 unless its maker said more.
        chain_der: the certificates above it, DER each, the leaf's issuer first.
        spki_sha256: SHA-256 over the leaf's SubjectPublicKeyInfo in DER, 32 bytes: what evidence is bound to.
    """

    def __cinit__(self):
        self.chain = sk_X509_new_null()
        if self.chain == NULL:
            raise MemoryError

    def __dealloc__(self):
        X509_free(self.leaf)
        EVP_PKEY_free(self.key)
        OSSL_STACK_OF_X509_free(self.chain)

    @staticmethod
    def from_der(bytes leaf_der not None, bytes key_der not None, chain_der=(), str app=None):
        """Read an identity.

        Args:
            leaf_der: the certificate, DER.
            key_der: its private key, PKCS#8 or SEC 1 DER.
            chain_der: certificates above it, DER each, in order.
            app: host name of the app that it speaks for.
        Raises:
            ConfigError: something is not DER of what it should be, or the key is not the certificate's.
        """
        cdef Identity identity = Identity.__new__(Identity)
        cdef const uint8_t *data
        identity.leaf = read_certificate(leaf_der)
        identity.key = read_private_key(key_der)
        if X509_check_purpose(identity.leaf, -1, 0) != 1:
            ERR_clear_error()
            raise ConfigError("the certificate's extensions contradict RFC 5280")
        if X509_check_private_key(identity.leaf, identity.key) != 1:
            ERR_clear_error()
            raise ConfigError("the private key does not belong to the certificate")
        push_all(identity.chain, chain_der)
        spki = subject_public_key_info(X509_get0_pubkey(identity.leaf))
        data = <const uint8_t *>PyBytes_AS_STRING(spki)
        sha256(data, <size_t>PyBytes_GET_SIZE(spki), identity.spki_digest)
        identity.leaf_der = leaf_der
        identity.app = app
        return identity

    @property
    def spki_sha256(self):
        return PyBytes_FromStringAndSize(<char *>self.spki_digest, 32)

    @property
    def chain_der(self):
        return [certificate_der(sk_X509_value(self.chain, index)) for index in range(sk_X509_num(self.chain))]

    def __repr__(self):
        return f"<Identity spki_sha256={self.spki_sha256.hex()}>"


cdef bytes certificate_der(X509 *certificate):
    cdef unsigned char *data = NULL
    cdef int size = i2d_X509(certificate, &data)
    if size <= 0:
        ERR_clear_error()
        raise InternalError("a certificate cannot be encoded")
    try:
        return PyBytes_FromStringAndSize(<char *>data, size)
    finally:
        OPENSSL_free(data)


cdef int generate_key(Identity identity, EC_GROUP *group, const EC_KEY_METHOD *method, uint8_t *point) except -1:
    # A P-256 key for `identity`, and its public point, POINT_SIZE bytes. `method`: NULL for OpenSSL's own.
    cdef EC_KEY *key = EC_KEY_new()
    cdef uint8_t *at = point
    identity.key = EVP_PKEY_new()
    if group == NULL or key == NULL or identity.key == NULL:
        EC_KEY_free(key)
        raise MemoryError
    if (
        EC_KEY_set_group(key, group) != 1
        or (method != NULL and EC_KEY_set_method(key, method) != 1)
        or EC_KEY_generate_key(key) != 1
        or i2o_ECPublicKey(key, &at) != POINT_SIZE
        or EVP_PKEY_assign(identity.key, EVP_PKEY_EC, key) != 1
    ):
        EC_KEY_free(key)
        ERR_clear_error()
        raise InternalError("no fresh key")
    return 0


cdef Identity placeholder_identity():
    cdef Identity identity = Identity.__new__(Identity)
    cdef EC_GROUP *group = EC_GROUP_new_by_curve_name(NID_X9_62_prime256v1)
    cdef uint8_t point[POINT_SIZE]
    try:
        generate_key(identity, group, NULL, point)
    finally:
        EC_GROUP_free(group)
    identity.leaf = X509_new()
    if identity.leaf == NULL:
        raise MemoryError
    if X509_set_pubkey(identity.leaf, identity.key) != 1 or X509_sign(identity.leaf, identity.key, EVP_sha256()) <= 0:
        ERR_clear_error()
        raise InternalError("no placeholder for a leaf")
    return identity


# -- minting ----------------------------------------------------------------------------------------------------------

@cython.final
cdef class LeafMinter:
    """Makes leaf certificates under one issuer: a fresh P-256 key and a signature for each.

    Everything that does not change between leaves is encoded here, once.
    """

    def __dealloc__(self):
        EVP_PKEY_CTX_free(self.signer)
        EC_GROUP_free(self.group)
        if self.null_provider != NULL:
            OSSL_PROVIDER_unload(self.null_provider)
        OSSL_LIB_CTX_free(self.nothing)
        EVP_PKEY_free(self.issuer_key)
        OSSL_STACK_OF_X509_free(self.chain)

    def __cinit__(self, bytes issuer_certificate_der not None, bytes issuer_key_der not None, names, extensions=(),
                  str common_name not None="Enclave OS RA-TLS", chain_der=()):
        """Prepare to mint.

        Args:
            issuer_certificate_der: a CA certificate, DER; sent after each leaf, whose issuer it is.
            issuer_key_der: its private key, PKCS#8 or SEC 1 DER, on P-256 or P-384.
            names: DNS names and IP addresses of the subjectAltName, at least one.
            extensions: (dotted OID, raw extnValue content) pairs that every leaf carries, non-critical.
            common_name: of the subject, 1 to 64 characters.
            chain_der: CA certificates above the issuer's, DER each, in order; sent after it.
        Raises:
            ConfigError: issuer certificate or key cannot sign leaves.
            UsageError: a name, OID or common name is not one, or an OID comes twice.
        """
        cdef X509 *issuer
        self.chain = sk_X509_new_null()
        if self.chain == NULL:
            raise MemoryError
        extensions = list(extensions)
        issuer = read_certificate(issuer_certificate_der)
        try:
            self.issuer_key = read_private_key(issuer_key_der)
            self.take_issuer(issuer)
            self.prepare_keys()
        finally:
            X509_free(issuer)
            ERR_clear_error()
        push_all(self.chain, chain_der)
        self.subject = der_subject(common_name)
        self.names = der_alternative_names(names)
        self.prepared = {}
        self.custom_oids = frozenset()
        self.custom = self.encode_extensions(extensions)
        self.custom_oids = frozenset(oid for oid, _ in extensions)

    cdef int take_issuer(self, X509 *issuer) except -1:
        cdef char group[32]
        cdef size_t group_size = 0
        cdef unsigned char *data = NULL
        cdef const ASN1_OCTET_STRING *key_id
        cdef int size
        if X509_check_private_key(issuer, self.issuer_key) != 1:
            raise ConfigError("the CA's private key does not belong to its certificate")
        if X509_check_ca(issuer) != 1:
            raise ConfigError("the CA's certificate is not that of a CA (basicConstraints, keyCertSign)")
        if (
            EVP_PKEY_get_base_id(self.issuer_key) != EVP_PKEY_EC
            or EVP_PKEY_get_group_name(self.issuer_key, group, sizeof(group), &group_size) != 1
            or group[:group_size] not in (b"prime256v1", b"P-256", b"secp384r1", b"P-384")
        ):
            raise ConfigError("the CA's key is not an ECDSA key on P-256 or P-384")
        push(self.chain, issuer)
        size = i2d_X509_NAME(X509_get_subject_name(issuer), &data)
        if size <= 0:
            raise ConfigError("the CA's subject cannot be encoded")
        self.issuer_name = PyBytes_FromStringAndSize(<char *>data, size)
        OPENSSL_free(data)
        key_id = X509_get0_subject_key_id(issuer)
        if key_id != NULL:
            data = <unsigned char *>ASN1_STRING_get0_data(key_id)
            identifier = PyBytes_FromStringAndSize(<const char *>data, ASN1_STRING_length(key_id))
        else:
            data = NULL
            size = <int>EVP_PKEY_get1_encoded_public_key(self.issuer_key, &data)
            if size <= 0:
                raise InternalError("the CA's public key cannot be encoded")
            identifier = key_identifier(data, size)
            OPENSSL_free(data)
        self.authority_key = der_extension("2.5.29.35", der(TAG_SEQUENCE, der(0x80, identifier)))
        return 0

    cdef int prepare_keys(self) except -1:
        self.signer = EVP_PKEY_CTX_new(self.issuer_key, NULL)
        self.group = EC_GROUP_new_by_curve_name(NID_X9_62_prime256v1)
        self.nothing = OSSL_LIB_CTX_new()
        if self.nothing == NULL:
            raise MemoryError
        self.null_provider = OSSL_PROVIDER_load(self.nothing, "null")
        if (
            self.signer == NULL or EVP_PKEY_sign_init(self.signer) != 1 or self.group == NULL
            or self.null_provider == NULL or LEAF_KEY_METHOD == NULL
        ):
            ERR_clear_error()
            raise InternalError("OpenSSL gives no ECDSA on P-256")
        return 0

    cdef int fresh_key(self, Identity identity, uint8_t *point) except -1:
        # EC_KEY from a kept group: 9 us. A provider's key would have to be encoded and decoded again to be put into an
        # X509 (120 us). An EC_KEY would be exported to a provider for the handshake's signature (22 us), but for
        # LEAF_KEY_METHOD.
        return generate_key(identity, self.group, LEAF_KEY_METHOD, point)

    cdef int bind(self, Identity identity) except -1:
        # libssl wants an X509 whose public key it can use. d2i_X509 decodes that key through the provider's decoders
        # (110 us), though we hold it already; under a library context that has none it gives up at once (the attempt is
        # opportunistic, crypto/x509/x_pubkey.c), and the key we hold is put in its place. The encoding stays the same:
        # DER has one form, and tests compare what a client receives with leaf_der.
        cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(identity.leaf_der)
        cdef int index
        identity.leaf = X509_d2i_under(&at, PyBytes_GET_SIZE(identity.leaf_der), self.nothing)
        if identity.leaf == NULL or X509_set_pubkey(identity.leaf, identity.key) != 1:
            ERR_clear_error()
            raise InternalError("a leaf cannot be bound to its key")
        for index in range(sk_X509_num(self.chain)):
            push(identity.chain, sk_X509_value(self.chain, index))
        return 0

    cdef bytes encode_extensions(self, extensions):
        seen = set(self.custom_oids)
        parts = []
        for oid, value in extensions:
            # RFC 5280 4.2: a certificate must not include more than one instance of an extension.
            if oid in seen or oid.startswith("2.5.29."):
                raise UsageError(f"extension {oid} is already there")
            seen.add(oid)
            parts.append(der_extension(oid, value))
        return b"".join(parts)

    def prepare(self, names):
        """Encode once what the leaves of each of these names have of their own, for `mint(name=...)`; forget others.

        Raises: UsageError: one is neither a DNS name nor an IP address.
        """
        self.prepared = {name: name_parts(name) for name in names}

    def encode(self, extensions):
        """The DER of (OID, raw content) pairs, for `mint` to take many times. Raises: UsageError: as `mint`."""
        return self.encode_extensions(extensions)

    def mint(self, int64_t not_before, int64_t lifetime_s, extensions=None, str name=None, bytes encoded not None=b"",
             evidence=None):
        """Make a fresh key and its certificate.

        Args:
            not_before: seconds since the Unix epoch; the caller cuts it to the minute where that is the contract.
            lifetime_s: seconds until NotAfter, 1 to `LIFETIME_S_MAX`.
            extensions: further (OID, raw content) pairs, after the prepared ones.
            name: a DNS name or IP address that replaces subject and subjectAltName, for a leaf of one app, whose
                `Identity.app` it is.
            encoded: what `encode` gave, between the prepared extensions and `extensions`.
            evidence: called with SHA-256 of the fresh key's SubjectPublicKeyInfo, returns the quote that the leaf
                carries before all the others (OID 1.2.840.113741.1.13.1.0). What it raises goes through.
        Returns:
            Identity: the new one, the issuer's certificate being its chain.
        Raises:
            UsageError: a time out of range, a name or OID that is none, an OID that is already there.
            InternalError: OpenSSL failed.
        """
        cdef bytes subject = self.subject
        cdef bytes names = self.names
        cdef bytes further = b""
        cdef bytes quote = b""
        cdef bytes tbs_room
        cdef uint8_t spki[SPKI_SIZE]
        cdef Identity identity
        cdef der_writer_t w
        cdef uint8_t point[POINT_SIZE]
        cdef uint8_t digest[32]
        cdef uint8_t serial[SERIAL_SIZE]
        cdef uint8_t signature[SIGNATURE_SIZE_MAX]
        cdef Py_ssize_t room
        cdef size_t signature_size = SIGNATURE_SIZE_MAX
        cdef uint8_t *validity_end
        if not 0 <= not_before <= 253402300799 - LIFETIME_S_MAX or not 1 <= lifetime_s <= LIFETIME_S_MAX:
            raise UsageError("a certificate's times are out of range")
        if name is not None:
            parts = self.prepared.get(name)
            subject, names = name_parts(name) if parts is None else parts
        if extensions:
            further = self.encode_extensions(extensions)
        identity = Identity.__new__(Identity)
        identity.app = name
        self.fresh_key(identity, point)
        memcpy(spki, PyBytes_AS_STRING(SPKI_PREFIX), SPKI_SIZE - POINT_SIZE)
        memcpy(spki + SPKI_SIZE - POINT_SIZE, point, POINT_SIZE)
        sha256(spki, SPKI_SIZE, identity.spki_digest)
        if evidence is not None:
            quote = der(TAG_SEQUENCE, QUOTE_OID + der(TAG_OCTET_STRING, evidence(identity.spki_sha256)))
        room = (
            TBS_FIXED_SIZE_MAX + len(self.issuer_name) + len(subject) + len(names) + len(self.authority_key)
            + len(self.custom) + len(encoded) + len(further) + len(quote)
        )
        tbs_room = PyBytes_FromStringAndSize(NULL, room + SIGNATURE_SIZE_MAX)
        w.start = <uint8_t *>PyBytes_AS_STRING(tbs_room)
        w.end = w.start + room
        w.at = w.end
        if RAND_bytes(serial, SERIAL_SIZE) != 1:
            raise InternalError("no randomness")
        # Positive, and of the same size always: the top bit is 0 and the next is 1.
        serial[0] = (serial[0] & 0x7F) | 0x40

        put_bytes(&w, further)
        put_bytes(&w, encoded)
        put_bytes(&w, self.custom)
        put_bytes(&w, quote)
        put_bytes(&w, names)
        put_bytes(&w, self.authority_key)
        sha256(point, POINT_SIZE, digest)
        put(&w, digest, KEY_ID_SIZE)
        put_bytes(&w, KEY_ID_PREFIX)
        put_bytes(&w, FIXED_EXTENSIONS)
        put_header(&w, TAG_SEQUENCE, w.end - w.at)
        put_header(&w, TAG_EXPLICIT_3, w.end - w.at)
        put(&w, spki, SPKI_SIZE)
        put_bytes(&w, subject)
        validity_end = w.at
        if put_time(&w, not_before + lifetime_s) != 0 or put_time(&w, not_before) != 0:
            raise InternalError("a time cannot be written")
        put_header(&w, TAG_SEQUENCE, validity_end - w.at)
        put_bytes(&w, self.issuer_name)
        put_bytes(&w, ECDSA_WITH_SHA256)
        put(&w, serial, SERIAL_SIZE)
        put_header(&w, TAG_INTEGER, SERIAL_SIZE)
        put_bytes(&w, VERSION_3)
        put_header(&w, TAG_SEQUENCE, w.end - w.at)
        if w.at < w.start:
            raise InternalError("a certificate outgrew its room")

        sha256(w.at, w.end - w.at, digest)
        if EVP_PKEY_sign(self.signer, signature, &signature_size, digest, sizeof(digest)) != 1:
            ERR_clear_error()
            raise InternalError("the CA's key does not sign")
        tbs = PyBytes_FromStringAndSize(<char *>w.at, w.end - w.at)
        identity.leaf_der = der(TAG_SEQUENCE, tbs + ECDSA_WITH_SHA256 + der(
            TAG_BIT_STRING, b"\0" + PyBytes_FromStringAndSize(<char *>signature, signature_size)))
        self.bind(identity)
        return identity
