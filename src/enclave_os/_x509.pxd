# Leaf certificates: a key, its certificate and the chain above it, made fresh or read from DER.
cimport cython
from libc.stdint cimport uint8_t, uint64_t

from enclave_os._openssl cimport EC_GROUP, EVP_PKEY, EVP_PKEY_CTX, OSSL_LIB_CTX, OSSL_PROVIDER, STACK_OF_X509, X509

@cython.final
cdef class Identity:
    cdef X509 *leaf                 # owned
    cdef EVP_PKEY *key              # owned, private; never leaves this object
    cdef STACK_OF_X509 *chain       # owned, issuers from the leaf's upwards; may be empty, never NULL
    cdef uint8_t spki_digest[32]    # SHA-256 over the leaf's SubjectPublicKeyInfo, DER
    cdef readonly bytes leaf_der
    cdef public uint64_t generation # of the configuration under which it was made; the maker writes it
    cdef readonly str app           # host name of the app that the leaf speaks for; None: the enclave as a whole

cdef bytes certificate_der(X509 *certificate)
cdef bytes subject_public_key_info(EVP_PKEY *key)   # DER
cdef void sha256(const uint8_t *data, size_t size, uint8_t *digest) noexcept nogil

# An identity without names or issuer, of the kind that leaves are of, for where OpenSSL wants one that nobody will see.
cdef Identity placeholder_identity()

@cython.final
cdef class LeafMinter:
    cdef STACK_OF_X509 *chain       # owned: the issuer's certificate, sent after each leaf
    cdef EVP_PKEY *issuer_key       # owned
    cdef EVP_PKEY_CTX *signer       # owned, initialised once: no fetch per signature
    cdef EC_GROUP *group            # owned: P-256 with its tables, built once
    cdef OSSL_LIB_CTX *nothing      # owned: a library context without algorithms, see decode_under_nothing
    cdef OSSL_PROVIDER *null_provider
    cdef bytes issuer_name          # DER of the issuer's subject
    cdef bytes authority_key        # DER of the authorityKeyIdentifier extension
    cdef bytes subject              # DER of the default subject
    cdef bytes names                # DER of the default subjectAltName extension
    cdef dict prepared              # name -> (subject, subjectAltName extension), DER, of leaves of one app each
    cdef bytes custom               # DER of the prepared extensions, one after the other
    cdef frozenset custom_oids
    cdef int take_issuer(self, X509 *issuer) except -1
    cdef int prepare_keys(self) except -1
    cdef int fresh_key(self, Identity identity, uint8_t *point) except -1
    cdef int bind(self, Identity identity) except -1
    cdef bytes encode_extensions(self, extensions)
