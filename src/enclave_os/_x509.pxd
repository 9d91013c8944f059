# Leaf certificates: a key, its certificate and the chain above it, made fresh or read from DER.
from libc.stdint cimport uint8_t

from enclave_os._openssl cimport EVP_PKEY, EVP_PKEY_CTX, STACK_OF_X509, X509

cdef class Identity:
    cdef X509 *leaf                 # owned
    cdef EVP_PKEY *key              # owned, private; never leaves this object
    cdef STACK_OF_X509 *chain       # owned, issuers from the leaf's upwards; may be empty, never NULL
    cdef uint8_t spki_digest[32]    # SHA-256 over the leaf's SubjectPublicKeyInfo, DER
    cdef readonly bytes leaf_der

cdef class LeafMinter:
    cdef STACK_OF_X509 *chain       # owned: the issuer's certificate, sent after each leaf
    cdef EVP_PKEY *issuer_key       # owned
    cdef EVP_PKEY_CTX *signer       # owned, initialised once: no fetch per signature
    cdef EVP_PKEY_CTX *generator    # owned, likewise
    cdef bytes issuer_name          # DER of the issuer's subject
    cdef bytes authority_key        # DER of the authorityKeyIdentifier extension
    cdef bytes subject              # DER of the default subject
    cdef bytes names                # DER of the default subjectAltName extension
    cdef bytes custom               # DER of the prepared extensions, one after the other
    cdef frozenset custom_oids
    cdef int take_issuer(self, X509 *issuer) except -1
    cdef bytes encode_extensions(self, extensions)
