# Keyed SHA-256 with the key's part done once: HMAC (RFC 2104), and a cascade for one short input of fixed size.
#
# A kept state is copied and goes on, so a message costs its own blocks only. EVP would take 0.3 us to copy a context,
# which is more than the work; these calls are deprecated in OpenSSL 3.0 and are what its EVP runs in the end.
#
# Memory: a state is as secret as its key. Whoever holds one in an object wipes it in __dealloc__.
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from enclave_os._openssl cimport OPENSSL_cleanse, SHA256_CTX, SHA256_Final, SHA256_Init, SHA256_Update

cdef enum:
    KEYED_KEY_SIZE = 32
    KEYED_BLOCK_SIZE = 64
    KEYED_DIGEST_SIZE = 32

cdef struct hmac_t:
    SHA256_CTX inner        # after the key's inner block
    SHA256_CTX outer        # after the key's outer block

cdef inline void hmac_set(hmac_t *h, const uint8_t *key) noexcept nogil:
    """Take a key of KEYED_KEY_SIZE bytes."""
    cdef uint8_t block[KEYED_BLOCK_SIZE]
    cdef size_t index
    memset(block, 0x36, KEYED_BLOCK_SIZE)
    for index in range(KEYED_KEY_SIZE):
        block[index] ^= key[index]
    SHA256_Init(&h.inner)
    SHA256_Update(&h.inner, block, KEYED_BLOCK_SIZE)
    for index in range(KEYED_BLOCK_SIZE):
        block[index] ^= 0x36 ^ 0x5C
    SHA256_Init(&h.outer)
    SHA256_Update(&h.outer, block, KEYED_BLOCK_SIZE)
    OPENSSL_cleanse(block, KEYED_BLOCK_SIZE)

cdef inline void hmac_digest(const hmac_t *h, const uint8_t *data, size_t size, uint8_t *digest) noexcept nogil:
    """HMAC-SHA-256 of the data: KEYED_DIGEST_SIZE bytes."""
    cdef SHA256_CTX state = h.inner
    SHA256_Update(&state, data, size)
    SHA256_Final(digest, &state)
    state = h.outer
    SHA256_Update(&state, digest, KEYED_DIGEST_SIZE)
    SHA256_Final(digest, &state)

cdef inline void cascade_set(SHA256_CTX *state, const uint8_t *key, const uint8_t *label) noexcept nogil:
    """The state after one block: a key of KEYED_KEY_SIZE bytes, a label of 16, zeros."""
    cdef uint8_t block[KEYED_BLOCK_SIZE]
    memset(block, 0, KEYED_BLOCK_SIZE)
    memcpy(block, key, KEYED_KEY_SIZE)
    memcpy(block + KEYED_KEY_SIZE, label, 16)
    SHA256_Init(state)
    SHA256_Update(state, block, KEYED_BLOCK_SIZE)
    OPENSSL_cleanse(block, KEYED_BLOCK_SIZE)

cdef inline void cascade_digest(const SHA256_CTX *kept, const uint8_t *data, size_t size, uint8_t *digest) noexcept nogil:
    """SHA-256 from a kept state. A PRF as long as every input has the same size (Bellare, Canetti, Krawczyk, 1996)."""
    cdef SHA256_CTX state = kept[0]
    SHA256_Update(&state, data, size)
    SHA256_Final(digest, &state)
