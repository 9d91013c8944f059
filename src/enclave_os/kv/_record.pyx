# Sealing and opening of one namespace's rows: the layout is in _record.pxd.
#
# Invariant: an entry is returned only if it was sealed under this namespace's keys, for this table and token, and its
# own name makes that token. Each sealer draws its salt and counts, so nothing that the host can put back feeds a nonce.
#
# Cost: a token 0.3 us, an entry of 64 bytes sealed in 0.6 us, opened in 0.7 (bench/bench_kv.py).
#
# It does not: know which version is the latest (`Freshness` does), talk to the host, or wipe what Python holds.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from enclave_os._aead cimport (
    AEAD_BROKEN, AEAD_FAILED, AEAD_NONCE_SIZE, AEAD_OK, AEADKey, Sealer, aead_item_t, aead_nonce, aead_open,
    aead_open_begin, aead_open_end, aead_open_step, aead_result_t, aead_seal,
)
from enclave_os._openssl cimport CRYPTO_memcmp, OPENSSL_cleanse
from enclave_os.kv._keyed cimport KEYED_DIGEST_SIZE, KEYED_KEY_SIZE, hmac_digest, hmac_set

from collections import OrderedDict

from enclave_os.errors import InternalError, SealBroken
from enclave_os.wire.errors import UsageError

cdef extern from *:
    """
    static inline uint16_t eos_swap16(uint16_t word) { return __builtin_bswap16(word); }
    static inline uint32_t eos_swap32(uint32_t word) { return __builtin_bswap32(word); }
    static inline uint64_t eos_swap64(uint64_t word) { return __builtin_bswap64(word); }
    """
    uint16_t eos_swap16(uint16_t word) noexcept nogil
    uint32_t eos_swap32(uint32_t word) noexcept nogil
    uint64_t eos_swap64(uint64_t word) noexcept nogil

INFO = b"enclave-os kv records"
SALTS_MAX = 256
"""Keys of former starts that are kept: one start rarely reads records of more."""

cdef enum:
    FORMAT = 1
    KIND_INLINE = 1         # an entry with its value
    KIND_PARTED = 2         # an entry whose value stands in parts
    KIND_PART = 3
    DIGEST_SIZE = 32        # of the tags of parts
    PARTS_MAX = 1024
    RECORD_MIN = HEAD_SIZE + TAG_SIZE
    RECORD_MAX = 31 * 1024
    FIRST_SIZE = 65 * 16        # whole blocks of AES that hold an entry's head and any name

cdef uint64_t NUMBERS = <uint64_t>1 << 32
cdef const char *DOMAIN = b"enclave-os kv record\0"


def limits():
    """The numbers that the C code was compiled with, by their names in `kv.record` and `wire.kv`."""
    return {
        "HEAD_SIZE": HEAD_SIZE, "NAME_SIZE_MAX": NAME_MAX, "PART_COUNT_MAX": PARTS_MAX,
        "KV_VALUE_SIZE_MAX": RECORD_MAX, "RECORD_SIZE_MIN": RECORD_MIN,
    }


@cython.final
@cython.freelist(64)
cdef class Head:
    """The readable part of a record: an allegation until it was opened."""

    def __repr__(self):
        return f"<Head kind {self.kind} version {self.version}>"


@cython.final
@cython.freelist(64)
cdef class Entry:
    """An opened entry. `value`: of one with parts, the digest of their tags, until they were read too.

    `expires_ns`: trusted time from which on it counts as absent; 0: never. `count`: of parts, 0: the value is here.
    """

    def __repr__(self):
        return f"<Entry version {self.version}, {len(self.value)} bytes>"  # what is in it is nobody's business


def read_head(bytes record not None):
    """The head of a row's value. Raises: SealBroken: these are not a record's bytes."""
    cdef head_t read
    cdef Head head
    _read_head(<const uint8_t *>PyBytes_AS_STRING(record), PyBytes_GET_SIZE(record), &read)
    head = Head.__new__(Head)
    head.kind, head.number, head.version = read.kind, read.number, read.version
    head.parts_id, head.count, head.size = read.parts_id, read.count, read.size
    head.salt = PyBytes_FromStringAndSize(<const char *>read.salt, SALT_SIZE)
    return head


cdef int _read_head(const uint8_t *data, size_t size, head_t *head) except -1:
    cdef uint16_t zero
    cdef uint32_t word
    cdef uint64_t long_word
    if not RECORD_MIN <= size <= RECORD_MAX:
        raise SealBroken("a stored record has a size that none has")
    head.kind = data[1]
    memcpy(&zero, data + 2, 2)
    memcpy(&word, data + 4, 4)
    head.number = eos_swap32(word)
    memcpy(&long_word, data + 8, 8)
    head.version = eos_swap64(long_word)
    memcpy(&long_word, data + 16, 8)
    head.parts_id = eos_swap64(long_word)
    memcpy(&word, data + 24, 4)
    head.count = eos_swap32(word)
    memcpy(&word, data + 28, 4)
    head.size = eos_swap32(word)
    head.salt = data + HEAD_SIZE - SALT_SIZE
    if data[0] != FORMAT or not KIND_INLINE <= head.kind <= KIND_PART or zero or head.size != size - RECORD_MIN:
        raise SealBroken("a stored record is not one that we wrote")
    if (
        (head.kind == KIND_INLINE) != (head.parts_id == 0)
        or (head.kind == KIND_PART) != (head.version == 0)
        or head.count > PARTS_MAX
        or (head.kind == KIND_INLINE and head.count)
        or (head.kind == KIND_PARTED and not head.count)
    ):
        raise SealBroken("a stored record contradicts itself")
    return 0


def tag_of(bytes record not None):
    """The last bytes: they stand for the whole record, since nobody else can make one with the same."""
    if PyBytes_GET_SIZE(record) < TAG_SIZE:
        raise SealBroken("a stored record has a size that none has")
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(record) + PyBytes_GET_SIZE(record) - TAG_SIZE, TAG_SIZE)


@cython.final
cdef class Records:
    """Makes and reads the rows of one table.

    Args:
        table: its name at the host, 16 bytes.
        tokens: the key that makes name tokens, 32 bytes.
        records: what sealers' keys are derived from.
    Raises, in every method: UsageError: a size out of range.
    """

    def __cinit__(self, bytes table not None, bytes tokens not None, bytes records not None):
        if PyBytes_GET_SIZE(table) != TABLE_SIZE or PyBytes_GET_SIZE(tokens) != KEYED_KEY_SIZE:
            raise UsageError("a table has a name of 16 bytes and a key of 32")
        self.table = table
        hmac_set(&self._tokens, <const uint8_t *>PyBytes_AS_STRING(tokens))
        self._key = records
        self._sealer = Sealer(records, INFO)
        self._openers = OrderedDict()

    def __dealloc__(self):
        OPENSSL_cleanse(&self._tokens, sizeof(self._tokens))

    def token(self, bytes name not None):
        """What the host sees of a name: 16 bytes, the same for the same name in this namespace, and nothing else."""
        return self.name_token(name)

    cdef bytes name_token(self, bytes name):
        cdef uint8_t digest[KEYED_DIGEST_SIZE]
        hmac_digest(&self._tokens, <const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), digest)
        return PyBytes_FromStringAndSize(<const char *>digest, TOKEN_SIZE)

    def seal_entry(self, bytes token not None, uint64_t version, bytes name not None, uint64_t expires_ns,
                   bytes value not None, uint64_t parts_id=0, uint32_t count=0):
        """The record of an entry. Where it has parts, their id and count, and `value` is the digest of their tags."""
        return self.seal_row(token, version, name, expires_ns, value, parts_id, count)

    cdef bytes seal_row(
            self, bytes token, uint64_t version, bytes name, uint64_t expires_ns, bytes value, uint64_t parts_id,
            uint32_t count):
        cdef Py_ssize_t name_size = PyBytes_GET_SIZE(name), value_size = PyBytes_GET_SIZE(value)
        cdef Py_ssize_t size = RECORD_MIN + ENTRY_HEAD_SIZE + name_size + value_size
        cdef uint16_t swapped_size
        cdef uint64_t swapped_expiry = eos_swap64(expires_ns)
        cdef uint8_t *plain
        cdef bytes record
        if not 1 <= name_size <= NAME_MAX or size > RECORD_MAX or not version:
            raise UsageError(f"no entry has {name_size} bytes of name, {value_size} of value, and version {version}")
        if count > PARTS_MAX or (parts_id != 0) != (count != 0) or (count and value_size != DIGEST_SIZE):
            raise UsageError("an entry has parts with an id, a count and a digest, or none of them")
        swapped_size = eos_swap16(<uint16_t>name_size)
        record = PyBytes_FromStringAndSize(NULL, size)
        plain = <uint8_t *>PyBytes_AS_STRING(record) + HEAD_SIZE
        memcpy(plain, &swapped_size, 2)
        memcpy(plain + 2, &swapped_expiry, 8)
        memcpy(plain + ENTRY_HEAD_SIZE, PyBytes_AS_STRING(name), name_size)
        memcpy(plain + ENTRY_HEAD_SIZE + name_size, PyBytes_AS_STRING(value), value_size)
        return self._seal(token, KIND_PARTED if count else KIND_INLINE, version, parts_id, count, record)

    def seal_part(self, bytes token not None, uint64_t parts_id, uint32_t index, bytes value not None):
        """The record of one part of a value."""
        cdef Py_ssize_t size = RECORD_MIN + PyBytes_GET_SIZE(value)
        cdef bytes record
        if size > RECORD_MAX or not parts_id or index >= PARTS_MAX:
            raise UsageError(f"no value has a part {index} of {PyBytes_GET_SIZE(value)} bytes under id {parts_id}")
        record = PyBytes_FromStringAndSize(NULL, size)
        memcpy(PyBytes_AS_STRING(record) + HEAD_SIZE, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        return self._seal(token, KIND_PART, 0, parts_id, index, record)

    def open_entry(self, bytes token not None, bytes record not None, uint64_t version=0, bytes tag=None):
        """The entry. Args: version, tag: of the latest record, where they are known: no other one is opened.

        Raises: SealBroken: not a record of ours for this place, or another than the latest, or of another name.
        """
        cdef const uint8_t *latest = NULL
        if tag is not None:
            if PyBytes_GET_SIZE(tag) != TAG_SIZE:
                raise UsageError(f"a tag has {TAG_SIZE} bytes")
            latest = <const uint8_t *>PyBytes_AS_STRING(tag)
        return self.open_row(
            token, <const uint8_t *>PyBytes_AS_STRING(record), PyBytes_GET_SIZE(record), version, latest, None)

    cdef Entry open_row(
            self, bytes token, const uint8_t *record, size_t size, uint64_t version, const uint8_t *tag, bytes name):
        cdef head_t head
        cdef Entry entry
        cdef uint8_t first[FIRST_SIZE]
        cdef uint8_t aad[ASSOCIATED_SIZE]
        cdef uint8_t nonce[AEAD_NONCE_SIZE]
        cdef uint8_t digest[KEYED_DIGEST_SIZE]
        cdef AEADKey key
        cdef aead_result_t result
        cdef const uint8_t *sealed = record + HEAD_SIZE
        cdef uint8_t *to
        cdef size_t first_size, here, value_size = 0
        cdef uint16_t name_size
        cdef uint64_t expires
        cdef bytes value = None
        _read_head(record, size, &head)
        if head.kind == KIND_PART:
            raise SealBroken("a part of a value lies where an entry belongs")
        if tag != NULL and (head.version != version or memcmp(tag, record + size - TAG_SIZE, TAG_SIZE)):
            raise SealBroken("the host shows another record than the latest")
        _associate(aad, record, self.table, token)
        aead_nonce(head.number, nonce)
        key = self._opener(head.salt)
        # Its beginning, which has the name, and then the value where it stays: nothing large is copied. What the name's
        # size is read from is not authentic yet: it says how the rest is cut, within what is there, and no more.
        first_size = min(<size_t>head.size, <size_t>FIRST_SIZE)
        name_size, expires = 0, 0
        if not aead_open_begin(key, nonce, sealed + head.size, aad, ASSOCIATED_SIZE) or not aead_open_step(
                key, sealed, first_size, first):
            result = AEAD_FAILED
        elif head.size < ENTRY_HEAD_SIZE:
            result = aead_open_end(key)
        else:
            memcpy(&name_size, first, 2)
            memcpy(&expires, first + 2, 8)
            name_size, expires = eos_swap16(name_size), eos_swap64(expires)
            if name_size <= NAME_MAX and ENTRY_HEAD_SIZE + name_size <= head.size:
                value_size = head.size - ENTRY_HEAD_SIZE - name_size
            value = PyBytes_FromStringAndSize(NULL, max(value_size, head.size - first_size))
            to = <uint8_t *>PyBytes_AS_STRING(value)
            here = 0
            if value_size:
                here = first_size - ENTRY_HEAD_SIZE - name_size
                memcpy(to, first + ENTRY_HEAD_SIZE + name_size, here)
            result = aead_open_end(key) if aead_open_step(
                key, sealed + first_size, head.size - first_size, to + here) else AEAD_FAILED
            if result != AEAD_OK:
                OPENSSL_cleanse(to, PyBytes_GET_SIZE(value))
        if result != AEAD_OK:
            OPENSSL_cleanse(first, first_size)
            if result == AEAD_BROKEN:
                raise SealBroken("an authentication tag that does not match")
            raise InternalError("OpenSSL refused to open")
        # Authentic, and still not ours where it fails: written by another version, or a bug.
        if head.size < ENTRY_HEAD_SIZE:
            raise SealBroken("a stored entry is too short")
        if (name_size > NAME_MAX or ENTRY_HEAD_SIZE + name_size + value_size != head.size
                or (head.count and value_size != DIGEST_SIZE)):
            raise SealBroken("a stored entry is not complete")
        if name is None:
            hmac_digest(&self._tokens, first + ENTRY_HEAD_SIZE, name_size, digest)
            if CRYPTO_memcmp(digest, PyBytes_AS_STRING(token), TOKEN_SIZE):
                raise SealBroken("a stored entry has another name")
            name = PyBytes_FromStringAndSize(<const char *>first + ENTRY_HEAD_SIZE, name_size)
        elif PyBytes_GET_SIZE(name) != name_size or memcmp(
                first + ENTRY_HEAD_SIZE, PyBytes_AS_STRING(name), name_size):
            raise SealBroken("a stored entry has another name")
        entry = Entry.__new__(Entry)
        entry.name, entry.value = name, value
        entry.version, entry.expires_ns = head.version, expires
        entry.parts_id, entry.count = head.parts_id, head.count
        return entry

    def open_part(self, bytes token not None, bytes record not None, uint64_t parts_id, uint32_t index):
        """One part of a value. Raises: SealBroken: not this part."""
        cdef head_t head
        _read_head(<const uint8_t *>PyBytes_AS_STRING(record), PyBytes_GET_SIZE(record), &head)
        if head.kind != KIND_PART or head.parts_id != parts_id or head.count != index:
            raise SealBroken("a part of a stored value is another's")
        return self._open(token, <const uint8_t *>PyBytes_AS_STRING(record), &head)

    cdef bytes _seal(self, bytes token, uint8_t kind, uint64_t version, uint64_t parts_id, uint32_t count, bytes record):
        """Seal in place what stands behind the head of a new record, and write the head."""
        cdef uint8_t *data = <uint8_t *>PyBytes_AS_STRING(record)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(record) - RECORD_MIN
        cdef uint8_t aad[ASSOCIATED_SIZE]
        cdef uint8_t nonce[AEAD_NONCE_SIZE]
        cdef aead_item_t item
        cdef uint64_t number, long_word
        cdef uint32_t word
        if self._sealer.count >= NUMBERS:
            self._sealer = Sealer(self._key, INFO)
        # Before the work: a number is spent whatever comes of it.
        number = self._sealer.count
        self._sealer.count = number + 1
        memset(data, 0, 4)
        data[0], data[1] = FORMAT, kind
        word = eos_swap32(<uint32_t>number)
        memcpy(data + 4, &word, 4)
        long_word = eos_swap64(version)
        memcpy(data + 8, &long_word, 8)
        long_word = eos_swap64(parts_id)
        memcpy(data + 16, &long_word, 8)
        word = eos_swap32(count)
        memcpy(data + 24, &word, 4)
        word = eos_swap32(<uint32_t>size)
        memcpy(data + 28, &word, 4)
        memcpy(data + HEAD_SIZE - SALT_SIZE, PyBytes_AS_STRING(self._sealer.salt), SALT_SIZE)
        aead_nonce(number, nonce)
        _associate(aad, data, self.table, token)
        item.nonce, item.aad, item.aad_size = nonce, aad, ASSOCIATED_SIZE
        item.input, item.input_size, item.output = data + HEAD_SIZE, size, data + HEAD_SIZE
        if aead_seal(self._sealer.key, &item) != AEAD_OK:
            raise InternalError("OpenSSL refused to seal")
        return record

    cdef bytes _open(self, bytes token, const uint8_t *record, const head_t *head):
        """The plaintext of a record whose head was read."""
        cdef uint8_t aad[ASSOCIATED_SIZE]
        cdef uint8_t nonce[AEAD_NONCE_SIZE]
        cdef aead_item_t item
        cdef bytes plaintext = PyBytes_FromStringAndSize(NULL, head.size)
        aead_nonce(head.number, nonce)
        _associate(aad, record, self.table, token)
        item.nonce, item.aad, item.aad_size = nonce, aad, ASSOCIATED_SIZE
        item.input, item.input_size = record + HEAD_SIZE, <size_t>head.size + TAG_SIZE
        item.output = <uint8_t *>PyBytes_AS_STRING(plaintext)
        result = aead_open(self._opener(head.salt), &item)
        if result == AEAD_BROKEN:
            raise SealBroken("an authentication tag that does not match")
        if result != AEAD_OK:
            raise InternalError("OpenSSL refused to open")
        return plaintext

    cdef AEADKey _opener(self, const uint8_t *at):
        cdef AEADKey key
        cdef bytes salt
        if memcmp(at, PyBytes_AS_STRING(self._sealer.salt), SALT_SIZE) == 0:
            return self._sealer.key
        salt = PyBytes_FromStringAndSize(<const char *>at, SALT_SIZE)
        key = self._openers.get(salt)
        if key is None:
            key = self._openers[salt] = AEADKey.derive(self._key, salt, INFO)
            if len(self._openers) > SALTS_MAX:
                self._openers.popitem(last=False)
        else:
            self._openers.move_to_end(salt)
        return key


cdef int _associate(uint8_t *to, const uint8_t *head, bytes table, bytes token) except -1:
    if PyBytes_GET_SIZE(token) != TOKEN_SIZE:
        raise UsageError(f"a token has {TOKEN_SIZE} bytes")
    memcpy(to, DOMAIN, DOMAIN_SIZE)
    memcpy(to + DOMAIN_SIZE, head, HEAD_SIZE)
    memcpy(to + DOMAIN_SIZE + HEAD_SIZE, PyBytes_AS_STRING(table), TABLE_SIZE)
    memcpy(to + DOMAIN_SIZE + HEAD_SIZE + TABLE_SIZE, PyBytes_AS_STRING(token), TOKEN_SIZE)
    return 0
