# AES-256-GCM and HKDF-SHA-256: what later natives call without the GIL.
cimport cython
from libc.stdint cimport uint8_t, uint64_t

from enclave_os._openssl cimport EVP_CIPHER_CTX

cdef enum:
    AEAD_KEY_SIZE = 32
    AEAD_NONCE_SIZE = 12        # SP 800-38D 5.2.1.1: the size that needs no hashing
    AEAD_TAG_SIZE = 16
    AEAD_SALT_SIZE = 32
    AEAD_SIZE_MAX = 1 << 26     # of one message and of its associated data: four times the largest value

cdef enum aead_result_t:
    AEAD_OK = 0
    AEAD_BROKEN = 1             # the tag does not match
    AEAD_FAILED = 2             # OpenSSL refused, which it does not

# One message of a batch. All memory is the caller's, private, and not shared with the host.
ctypedef struct aead_item_t:
    const uint8_t *nonce        # AEAD_NONCE_SIZE
    const uint8_t *aad          # may be NULL when aad_size is 0
    size_t aad_size
    const uint8_t *input        # plaintext; or ciphertext and tag
    size_t input_size           # of all of input
    uint8_t *output             # input_size + AEAD_TAG_SIZE when sealing, input_size - AEAD_TAG_SIZE when opening

@cython.final
cdef class AEADKey:
    cdef EVP_CIPHER_CTX *sealing    # owned: key schedule kept, one message at a time, one thread at a time
    cdef EVP_CIPHER_CTX *opening    # owned, the same
    cdef int _set(self, const uint8_t *key) except -1

@cython.final
cdef class Sealer:
    cdef readonly AEADKey key
    cdef readonly bytes salt
    cdef uint64_t count             # messages sealed: the next nonce

# Returns: AEAD_OK; AEAD_BROKEN (only opening): `output` is wiped. Sizes are at most AEAD_SIZE_MAX, by the caller's check.
cdef aead_result_t aead_seal(AEADKey key, const aead_item_t *item) noexcept nogil
cdef aead_result_t aead_open(AEADKey key, const aead_item_t *item) noexcept nogil

# One message opened in steps, for who wants its plaintext in several places: what a step gives is not authentic before
# `aead_open_end` said AEAD_OK; until then it is good for nothing but sizes that are held against what is there, and
# whoever gets another answer wipes all of it. `tag`: AEAD_TAG_SIZE. False: OpenSSL refused.
cdef bint aead_open_begin(
    AEADKey key, const uint8_t *nonce, const uint8_t *tag, const uint8_t *aad, size_t aad_size) noexcept nogil
cdef bint aead_open_step(AEADKey key, const uint8_t *input, size_t size, uint8_t *output) noexcept nogil
cdef aead_result_t aead_open_end(AEADKey key) noexcept nogil

# All of them, until one does not go: its index is in `stopped`. When opening, the outputs of all are wiped then.
cdef aead_result_t aead_seal_many(AEADKey key, const aead_item_t *items, size_t count, size_t *stopped) noexcept nogil
cdef aead_result_t aead_open_many(AEADKey key, const aead_item_t *items, size_t count, size_t *stopped) noexcept nogil

# The 12 bytes of a sealer's message: four zeros, then its number, big endian.
cdef void aead_nonce(uint64_t number, uint8_t *nonce) noexcept nogil
