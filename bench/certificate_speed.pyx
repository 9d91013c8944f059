# cython: language_level=3
# The two primitives that a fresh leaf cannot do without, bare: a P-256 key and an ECDSA signature over 32 bytes, each in
# both ways that OpenSSL has. EVP is what a program calls that asks for nothing more; with the group and the signing
# context kept, as LeafMinter keeps them, is the least that OpenSSL can do.
from libc.stdint cimport uint8_t

from enclave_os._openssl cimport (
    EC_GROUP, EC_GROUP_free, EC_GROUP_new_by_curve_name, EC_KEY, EC_KEY_free, EC_KEY_generate_key, EC_KEY_new,
    EC_KEY_set_group, EVP_PKEY, EVP_PKEY_assign, EVP_PKEY_CTX, EVP_PKEY_CTX_free, EVP_PKEY_CTX_new, EVP_PKEY_EC,
    EVP_PKEY_free, EVP_PKEY_new, EVP_PKEY_sign, EVP_PKEY_sign_init, NID_X9_62_prime256v1,
)

import time

cdef extern from "openssl/ec.h" nogil:
    EVP_PKEY *EVP_EC_gen(const char *curve)


cdef class Primitives:
    """A kept group and a kept key."""

    cdef EC_GROUP *group
    cdef EVP_PKEY *key
    cdef EVP_PKEY_CTX *signer

    def __cinit__(self):
        cdef EC_KEY *inner = EC_KEY_new()
        self.group = EC_GROUP_new_by_curve_name(NID_X9_62_prime256v1)
        self.key = EVP_PKEY_new()
        if EC_KEY_set_group(inner, self.group) != 1 or EC_KEY_generate_key(inner) != 1:
            raise RuntimeError("no key")
        if EVP_PKEY_assign(self.key, EVP_PKEY_EC, inner) != 1:
            raise RuntimeError("no key")
        self.signer = EVP_PKEY_CTX_new(self.key, NULL)
        if self.signer == NULL or EVP_PKEY_sign_init(self.signer) != 1:
            raise RuntimeError("no signer")

    def __dealloc__(self):
        EVP_PKEY_CTX_free(self.signer)
        EVP_PKEY_free(self.key)
        EC_GROUP_free(self.group)

    def keygen(self, int count, bint kept):
        """Nanoseconds for one key."""
        cdef EC_KEY *key
        cdef EVP_PKEY *whole
        cdef int index
        began = time.thread_time_ns()
        for index in range(count):
            if kept:
                key = EC_KEY_new()
                if EC_KEY_set_group(key, self.group) != 1 or EC_KEY_generate_key(key) != 1:
                    raise RuntimeError("no key")
                EC_KEY_free(key)
            else:
                whole = EVP_EC_gen(b"P-256")
                if whole == NULL:
                    raise RuntimeError("no key")
                EVP_PKEY_free(whole)
        return (time.thread_time_ns() - began) / count

    def sign(self, int count, bint kept):
        """Nanoseconds for one signature."""
        cdef uint8_t digest[32]
        cdef uint8_t signature[160]
        cdef size_t size
        cdef EVP_PKEY_CTX *signer = self.signer
        cdef int index
        for index in range(32):
            digest[index] = <uint8_t>index
        began = time.thread_time_ns()
        for index in range(count):
            size = sizeof(signature)
            if not kept:
                signer = EVP_PKEY_CTX_new(self.key, NULL)
                if signer == NULL or EVP_PKEY_sign_init(signer) != 1:
                    raise RuntimeError("no signer")
            if EVP_PKEY_sign(signer, signature, &size, digest, sizeof(digest)) != 1:
                raise RuntimeError("no signature")
            if not kept:
                EVP_PKEY_CTX_free(signer)
        return (time.thread_time_ns() - began) / count
