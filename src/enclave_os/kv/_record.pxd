# One row's value, sealed: a head of 64 bytes that the host may read and cannot change, then ciphertext and tag.
#
#    0  u8 format, u8 kind, u16 zero, u32 number, u64 version, u64 parts id, u32 part count or index, u32 size
#   32  salt: with the number, under which sealer's key and nonce the rest is sealed
#   64  ciphertext of: an entry (u16 name size, u64 expiry in ns or 0, name, value or digest of parts), or a part
#  end  tag
#
# Integers are big endian. The associated data are a domain, all of the head, the table's name and the name token, so a
# record opens in its own place only (threat-model.md KV1).
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from enclave_os._aead cimport AEADKey, Sealer
from enclave_os.kv._keyed cimport hmac_t

cdef enum:
    HEAD_SIZE = 64
    ENTRY_HEAD_SIZE = 10
    TABLE_SIZE = 16
    TOKEN_SIZE = 16
    TAG_SIZE = 16
    SALT_SIZE = 32
    NAME_MAX = 1024
    DOMAIN_SIZE = 21
    ASSOCIATED_SIZE = DOMAIN_SIZE + HEAD_SIZE + TABLE_SIZE + TOKEN_SIZE

# The readable part: an allegation until the record was opened.
cdef struct head_t:
    uint8_t kind
    uint32_t number
    uint64_t version
    uint64_t parts_id
    uint32_t count
    uint32_t size
    const uint8_t *salt         # SALT_SIZE, in the record

# The same for Python.
@cython.final
@cython.freelist(64)
cdef class Head:
    cdef readonly uint8_t kind
    cdef readonly uint32_t number
    cdef readonly uint64_t version
    cdef readonly uint64_t parts_id
    cdef readonly uint32_t count
    cdef readonly uint32_t size
    cdef readonly bytes salt

# What an opened record says.
@cython.final
@cython.freelist(64)
cdef class Entry:
    cdef readonly bytes name
    cdef readonly bytes value       # of a parted one, the digest of its parts' tags
    cdef readonly uint64_t version
    cdef readonly uint64_t expires_ns
    cdef readonly uint64_t parts_id
    cdef readonly uint32_t count

@cython.final
cdef class Records:
    cdef readonly bytes table
    cdef hmac_t _tokens             # secret
    cdef bytes _key                 # what sealers' keys are derived from: secret
    cdef Sealer _sealer
    cdef object _openers            # salt: AEADKey, the last used behind
    cdef bytes name_token(self, bytes name)
    cdef bytes seal_row(
        self, bytes token, uint64_t version, bytes name, uint64_t expires_ns, bytes value, uint64_t parts_id, uint32_t count)
    cdef AEADKey _opener(self, const uint8_t *salt)
    # `record`: a new one that nobody else has seen, with the plaintext behind its head; sealed in place.
    cdef bytes _seal(self, bytes token, uint8_t kind, uint64_t version, uint64_t parts_id, uint32_t count, bytes record)
    cdef bytes _open(self, bytes token, const uint8_t *record, const head_t *head)
    # The entry in `size` bytes of private memory. tag: of the latest record with `version`, NULL: any record of ours
    # that belongs here. name: which it must have, None: the one that makes this token. Raises: SealBroken: another one.
    cdef Entry open_row(
        self, bytes token, const uint8_t *record, size_t size, uint64_t version, const uint8_t *tag, bytes name)
