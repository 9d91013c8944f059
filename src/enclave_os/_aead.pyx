# Sealing and opening: AES-256-GCM (NIST SP 800-38D) and HKDF-SHA-256 (RFC 5869), on OpenSSL's EVP.
#
# A key is expanded once and kept in two contexts, one each way; a message costs setting the nonce and the work itself.
# Input and output are private memory of the enclave: OpenSSL is never given a pointer into what the host shares, since
# in there it could change bytes between the check of a tag and their use, and would see plaintext.
#
# Invariant: plaintext leaves only after its tag was checked; where the check fails, what was decrypted is wiped.
#
# A context serves one thread at a time. The methods hold the GIL, so threads that share a key take turns; who calls the
# C functions without it gives each thread a key of its own.
#
# Cost: 1 KiB in about 0.5 us, of which 0.2 are EVP's calls (bench/bench_aead.py).
#
# It does not: choose nonces (but Sealer, which counts), store keys, or wipe the `bytes` that Python holds: those are
# copies that only the interpreter's allocator reuses. Keep keys in AEADKey and Sealer, and derive inside.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from enclave_os._openssl cimport (
    CRYPTO_memcmp, ERR_clear_error, EVP_aes_256_gcm, EVP_CIPHER_CTX_ctrl, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new,
    EVP_CTRL_AEAD_GET_TAG, EVP_CTRL_AEAD_SET_TAG, EVP_DecryptFinal_ex, EVP_DecryptInit_ex, EVP_DecryptUpdate,
    EVP_EncryptFinal_ex, EVP_EncryptInit_ex, EVP_EncryptUpdate, EVP_KDF, EVP_KDF_CTX, EVP_KDF_CTX_free,
    EVP_KDF_CTX_new, EVP_KDF_derive, EVP_KDF_fetch, OPENSSL_cleanse, OSSL_PARAM,
    OSSL_PARAM_construct_end, OSSL_PARAM_construct_octet_string, OSSL_PARAM_construct_utf8_string, RAND_bytes,
)

from enclave_os.errors import InternalError, SealBroken
from enclave_os.wire.errors import UsageError

KEY_SIZE = AEAD_KEY_SIZE
NONCE_SIZE = AEAD_NONCE_SIZE
TAG_SIZE = AEAD_TAG_SIZE
SALT_SIZE = AEAD_SALT_SIZE
MESSAGE_SIZE_MAX = AEAD_SIZE_MAX

MESSAGES_MAX = 1 << 32
"""Messages under one key of a Sealer: system-wide bound for a counter as for random nonces (SP 800-38D 8.3)."""

cdef uint64_t COUNT_MAX = <uint64_t>1 << 32
cdef enum:
    HKDF_SIZE_MAX = 255 * 32    # RFC 5869 2.3
    HKDF_INPUT_SIZE_MAX = 1024  # each of key, salt and info: far above what we derive from


# -- one message ------------------------------------------------------------------------------------------------------

cdef aead_result_t aead_seal(AEADKey key, const aead_item_t *item) noexcept nogil:
    cdef EVP_CIPHER_CTX *context = key.sealing
    cdef int size = 0
    if (
        EVP_EncryptInit_ex(context, NULL, NULL, NULL, item.nonce) != 1
        or (item.aad_size and EVP_EncryptUpdate(context, NULL, &size, item.aad, <int>item.aad_size) != 1)
        or (item.input_size
            and EVP_EncryptUpdate(context, item.output, &size, item.input, <int>item.input_size) != 1)
        or EVP_EncryptFinal_ex(context, item.output + item.input_size, &size) != 1
        or EVP_CIPHER_CTX_ctrl(
            context, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG_SIZE, item.output + item.input_size) != 1
    ):
        ERR_clear_error()
        OPENSSL_cleanse(item.output, item.input_size + AEAD_TAG_SIZE)
        return AEAD_FAILED
    return AEAD_OK


cdef aead_result_t aead_open(AEADKey key, const aead_item_t *item) noexcept nogil:
    cdef size_t plain_size
    cdef aead_result_t result
    if item.input_size < AEAD_TAG_SIZE:
        return AEAD_BROKEN
    plain_size = item.input_size - AEAD_TAG_SIZE
    if (
        not aead_open_begin(key, item.nonce, item.input + plain_size, item.aad, item.aad_size)
        or not aead_open_step(key, item.input, plain_size, item.output)
    ):
        result = AEAD_FAILED
    else:
        result = aead_open_end(key)
    if result != AEAD_OK:
        OPENSSL_cleanse(item.output, plain_size)
    return result


cdef bint aead_open_begin(
        AEADKey key, const uint8_t *nonce, const uint8_t *tag, const uint8_t *aad, size_t aad_size) noexcept nogil:
    cdef EVP_CIPHER_CTX *context = key.opening
    cdef int size = 0
    if (
        EVP_DecryptInit_ex(context, NULL, NULL, NULL, nonce) != 1
        or EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG_SIZE, <void *>tag) != 1
        or (aad_size and EVP_DecryptUpdate(context, NULL, &size, aad, <int>aad_size) != 1)
    ):
        ERR_clear_error()
        return False
    return True


cdef bint aead_open_step(AEADKey key, const uint8_t *input, size_t size, uint8_t *output) noexcept nogil:
    cdef int written = 0
    if size and EVP_DecryptUpdate(key.opening, output, &written, input, <int>size) != 1:
        ERR_clear_error()
        return False
    return True


cdef aead_result_t aead_open_end(AEADKey key) noexcept nogil:
    cdef uint8_t nothing[AEAD_TAG_SIZE]
    cdef int size = 0
    # Only this compares the tag, in constant time.
    if EVP_DecryptFinal_ex(key.opening, nothing, &size) != 1:
        ERR_clear_error()
        return AEAD_BROKEN
    return AEAD_OK


cdef aead_result_t aead_seal_many(AEADKey key, const aead_item_t *items, size_t count, size_t *stopped) noexcept nogil:
    cdef size_t index
    cdef aead_result_t result
    for index in range(count):
        result = aead_seal(key, &items[index])
        if result != AEAD_OK:
            stopped[0] = index
            return result
    return AEAD_OK


cdef aead_result_t aead_open_many(AEADKey key, const aead_item_t *items, size_t count, size_t *stopped) noexcept nogil:
    cdef size_t index, done
    cdef aead_result_t result
    for index in range(count):
        result = aead_open(key, &items[index])
        if result != AEAD_OK:
            stopped[0] = index
            for done in range(index):
                OPENSSL_cleanse(items[done].output, items[done].input_size - AEAD_TAG_SIZE)
            return result
    return AEAD_OK


cdef void aead_nonce(uint64_t number, uint8_t *nonce) noexcept nogil:
    cdef int index
    memset(nonce, 0, 4)
    for index in range(8):
        nonce[4 + index] = <uint8_t>(number >> (56 - 8 * index))


# -- from Python ------------------------------------------------------------------------------------------------------

@cython.final
cdef class AEADKey:
    """An AES-256-GCM key, expanded once. The nonce is the caller's: the same one twice under one key gives both away.

    Args: key: KEY_SIZE bytes.
    Raises, in every method: UsageError: a size out of range.
    """

    def __cinit__(self, bytes key not None):
        if PyBytes_GET_SIZE(key) != AEAD_KEY_SIZE:
            raise UsageError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
        self._set(<const uint8_t *>PyBytes_AS_STRING(key))

    def __dealloc__(self):
        EVP_CIPHER_CTX_free(self.sealing)  # which wipes them
        EVP_CIPHER_CTX_free(self.opening)

    cdef int _set(self, const uint8_t *key) except -1:
        if self.sealing == NULL:
            self.sealing = EVP_CIPHER_CTX_new()
        if self.opening == NULL:
            self.opening = EVP_CIPHER_CTX_new()
        if (
            self.sealing == NULL or self.opening == NULL
            or EVP_EncryptInit_ex(self.sealing, EVP_aes_256_gcm(), NULL, key, NULL) != 1
            or EVP_DecryptInit_ex(self.opening, EVP_aes_256_gcm(), NULL, key, NULL) != 1
        ):
            ERR_clear_error()
            raise InternalError("OpenSSL has no AES-256-GCM")
        return 0

    @staticmethod
    def derive(bytes key not None, bytes salt not None, bytes info not None):
        """The key HKDF-SHA-256(key, salt, info), which never becomes a Python object."""
        cdef uint8_t derived[AEAD_KEY_SIZE]
        cdef AEADKey made
        _hkdf(key, salt, info, derived, AEAD_KEY_SIZE)
        try:
            made = AEADKey(bytes(AEAD_KEY_SIZE))  # zeros, until the next line
            made._set(derived)
        finally:
            OPENSSL_cleanse(derived, AEAD_KEY_SIZE)
        return made

    def seal(self, bytes nonce not None, bytes plaintext not None, bytes aad not None=b""):
        """Ciphertext, as long as the plaintext, and tag."""
        cdef aead_item_t item
        cdef bytes out = _sealing(&item, nonce, plaintext, aad)
        if aead_seal(self, &item) != AEAD_OK:
            raise InternalError("OpenSSL refused to seal")
        return out

    def open(self, bytes nonce not None, bytes sealed not None, bytes aad not None=b""):
        """The plaintext. Raises: SealBroken: key, nonce, `sealed` or `aad` is not what was sealed."""
        cdef aead_item_t item
        cdef bytes out = _opening(&item, nonce, sealed, aad)
        _check(aead_open(self, &item))
        return out

    def seal_many(self, messages not None):
        """`seal` for each (nonce, plaintext, aad), in their order."""
        return _many(self, messages, True)

    def open_many(self, messages not None):
        """`open` for each (nonce, sealed, aad), in their order: all of them, or SealBroken, which names the first."""
        return _many(self, messages, False)

    def __repr__(self):
        return "<AEADKey>"


@cython.final
cdef class Sealer:
    """A key of this moment, and its counter: no nonce ever comes twice, whatever was restored, cloned or rolled back.

    A fresh random salt makes the key, and nonces count from 0 (`nonce_of`). Nobody can give it a salt, so two sealers
    never share a key. Whoever keeps (salt, number, sealed) opens it with `AEADKey.derive(key, salt, info)`.

    Args:
        key: what the sealer's key is derived from; at least KEY_SIZE bytes.
        info: says what for.
        skip: messages that count as sealed already: only shortens its life.
    """

    def __cinit__(self, bytes key not None, bytes info not None, *, skip=0):
        cdef uint8_t salt[AEAD_SALT_SIZE]
        if PyBytes_GET_SIZE(key) < AEAD_KEY_SIZE:
            raise UsageError(f"a key to derive from has at least {KEY_SIZE} bytes, not {len(key)}")
        if not 0 <= skip <= MESSAGES_MAX:
            raise UsageError(f"a sealer cannot skip {skip} messages")
        if RAND_bytes(salt, AEAD_SALT_SIZE) != 1:
            ERR_clear_error()
            raise InternalError("OpenSSL has no randomness")
        self.salt = PyBytes_FromStringAndSize(<const char *>salt, AEAD_SALT_SIZE)
        self.key = AEADKey.derive(key, self.salt, info)
        self.count = skip

    @property
    def left(self):
        """Messages that it still takes; at 0 a new sealer is due."""
        return COUNT_MAX - self.count

    def seal(self, bytes plaintext not None, bytes aad not None=b""):
        """One message: its number, and ciphertext with tag. Raises: UsageError: none is left."""
        cdef aead_item_t item
        cdef uint8_t nonce[AEAD_NONCE_SIZE]
        cdef uint64_t number = self.count
        if number >= COUNT_MAX:
            raise UsageError("this sealer's numbers are used up: make a new one")
        cdef bytes out = _sealing(&item, None, plaintext, aad)
        # Before the work: a number is spent whatever comes of it.
        self.count = number + 1
        aead_nonce(number, nonce)
        item.nonce = nonce
        if aead_seal(self.key, &item) != AEAD_OK:
            raise InternalError("OpenSSL refused to seal")
        return number, out

    def seal_many(self, messages not None):
        """`seal` for each (plaintext, aad): the first one's number, the others follow; and what was sealed, in order.

        Raises: UsageError: fewer are left, and none was sealed.
        """
        cdef list pairs = list(messages)
        cdef uint64_t first = self.count
        if <uint64_t>len(pairs) > COUNT_MAX - first:
            raise UsageError("this sealer's numbers are used up: make a new one")
        self.count = first + <uint64_t>len(pairs)
        numbered = [(nonce_of(first + index), plaintext, aad) for index, (plaintext, aad) in enumerate(pairs)]
        return first, _many(self.key, numbered, True)

    def __repr__(self):
        return f"<Sealer {self.count} of {MESSAGES_MAX}>"


def nonce_of(number):
    """The nonce of a Sealer's message: four zeros, then its number, big endian."""
    if not 0 <= number < MESSAGES_MAX:
        raise UsageError(f"no message has the number {number}")
    cdef uint8_t nonce[AEAD_NONCE_SIZE]
    aead_nonce(number, nonce)
    return PyBytes_FromStringAndSize(<const char *>nonce, AEAD_NONCE_SIZE)


def hkdf_sha256(bytes key not None, bytes salt not None, bytes info not None, Py_ssize_t size):
    """HKDF with SHA-256, both steps (RFC 5869). Prefer `AEADKey.derive` where an AEAD key is wanted.

    Args:
        key: 1 to 1024 bytes. salt, info: up to 1024; an empty salt stands for 32 zeros.
        size: 1 to 8160 bytes of output.
    """
    if not 1 <= size <= HKDF_SIZE_MAX:
        raise UsageError(f"HKDF gives 1 to {HKDF_SIZE_MAX} bytes, not {size}")
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
    _hkdf(key, salt, info, <uint8_t *>PyBytes_AS_STRING(out), size)
    return out


def equal(bytes one not None, bytes other not None):
    """Whether both are the same, in a time that depends on their sizes alone."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(one)
    return size == PyBytes_GET_SIZE(other) and CRYPTO_memcmp(
        PyBytes_AS_STRING(one), PyBytes_AS_STRING(other), size) == 0


def wipe(unsigned char[::1] memory not None):
    """Overwrite writable memory (a bytearray) with zeros, in a way that no compiler leaves out."""
    if memory.shape[0]:
        OPENSSL_cleanse(&memory[0], memory.shape[0])


# -- within -----------------------------------------------------------------------------------------------------------

cdef EVP_KDF *HKDF = NULL


cdef int _hkdf(bytes key, bytes salt, bytes info, uint8_t *to, size_t size) except -1:
    global HKDF
    cdef OSSL_PARAM parameters[5]
    cdef EVP_KDF_CTX *context
    cdef int count = 2, result
    for name, value in (("key", key), ("salt", salt), ("info", info)):
        if len(value) > HKDF_INPUT_SIZE_MAX:
            raise UsageError(f"HKDF takes at most {HKDF_INPUT_SIZE_MAX} bytes of {name}, not {len(value)}")
    if not key:
        raise UsageError("HKDF needs a key")
    if HKDF == NULL:
        HKDF = EVP_KDF_fetch(NULL, b"HKDF", NULL)  # kept for good: a fetch costs more than the derivation
    context = EVP_KDF_CTX_new(HKDF) if HKDF != NULL else NULL
    if context == NULL:
        ERR_clear_error()
        raise InternalError("OpenSSL has no HKDF")
    parameters[0] = OSSL_PARAM_construct_utf8_string(b"digest", <char *>b"SHA256", 0)
    parameters[1] = OSSL_PARAM_construct_octet_string(b"key", PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    # An empty one is left out, which means the same (RFC 5869 2.2).
    if salt:
        parameters[count] = OSSL_PARAM_construct_octet_string(b"salt", PyBytes_AS_STRING(salt), PyBytes_GET_SIZE(salt))
        count += 1
    if info:
        parameters[count] = OSSL_PARAM_construct_octet_string(b"info", PyBytes_AS_STRING(info), PyBytes_GET_SIZE(info))
        count += 1
    parameters[count] = OSSL_PARAM_construct_end()
    result = EVP_KDF_derive(context, to, size, parameters)
    EVP_KDF_CTX_free(context)  # which wipes the key
    if result != 1:
        ERR_clear_error()
        raise InternalError("OpenSSL refused to derive a key")
    return 0


cdef bytes _sealing(aead_item_t *item, bytes nonce, bytes plaintext, bytes aad):
    """Fill an item to seal; returns the bytes object that takes the output. A nonce of None is filled in later."""
    _fill(item, nonce, plaintext, aad)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, item.input_size + AEAD_TAG_SIZE)
    item.output = <uint8_t *>PyBytes_AS_STRING(out)
    return out


cdef bytes _opening(aead_item_t *item, bytes nonce, bytes sealed, bytes aad):
    """Fill an item to open; returns the bytes object that takes the output."""
    _fill(item, nonce, sealed, aad)
    if item.input_size < AEAD_TAG_SIZE:
        raise SealBroken("sealed bytes that are shorter than their tag")
    cdef bytes out = PyBytes_FromStringAndSize(NULL, item.input_size - AEAD_TAG_SIZE)
    item.output = <uint8_t *>PyBytes_AS_STRING(out)
    return out


cdef int _fill(aead_item_t *item, bytes nonce, bytes data, bytes aad) except -1:
    if data is None or aad is None:
        raise UsageError("a message is bytes, and so is its associated data")
    if nonce is not None and PyBytes_GET_SIZE(nonce) != AEAD_NONCE_SIZE:
        raise UsageError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
    if PyBytes_GET_SIZE(data) > AEAD_SIZE_MAX or PyBytes_GET_SIZE(aad) > AEAD_SIZE_MAX:
        raise UsageError(f"a message, and its associated data, have at most {MESSAGE_SIZE_MAX} bytes")
    item.nonce = NULL
    if nonce is not None:
        item.nonce = <const uint8_t *>PyBytes_AS_STRING(nonce)
    item.aad = <const uint8_t *>PyBytes_AS_STRING(aad)
    item.aad_size = PyBytes_GET_SIZE(aad)
    item.input = <const uint8_t *>PyBytes_AS_STRING(data)
    item.input_size = PyBytes_GET_SIZE(data)
    return 0


cdef int _check(aead_result_t result) except -1:
    if result == AEAD_BROKEN:
        raise SealBroken("an authentication tag that does not match")
    if result != AEAD_OK:
        raise InternalError("OpenSSL refused to open")
    return 0


cdef list _many(AEADKey key, object messages, bint seal):
    """Seal or open (nonce, data, aad) for each; `held` keeps every object that an item points into."""
    cdef list held = list(messages)
    cdef list outputs = []
    cdef size_t count = <size_t>len(held), index, stopped = 0
    cdef bytes nonce, data, aad
    cdef aead_result_t result
    cdef aead_item_t *items = <aead_item_t *>malloc((count or 1) * sizeof(aead_item_t))
    if items == NULL:
        raise MemoryError
    try:
        for index in range(count):
            nonce, data, aad = held[index]
            if nonce is None:
                raise UsageError("a message has a nonce")
            outputs.append(
                _sealing(&items[index], nonce, data, aad) if seal else _opening(&items[index], nonce, data, aad))
        result = aead_seal_many(key, items, count, &stopped) if seal else aead_open_many(key, items, count, &stopped)
        if result == AEAD_BROKEN:
            raise SealBroken(f"message {stopped} of {count}: an authentication tag that does not match")
        if result != AEAD_OK:
            raise InternalError("OpenSSL refused to seal or open")
    finally:
        free(items)
    return outputs
