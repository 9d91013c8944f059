# The table of what is the latest, and the set hash; the drawing is in _freshness.pxd, the reasons in docs/kv.md.
#
# Invariant: for each table and token that ever was changed, `find` returns what `change` was given last; the sum is that
# of the elements of all rows, each SHA-256 keyed by (key, table) over token, version and tag, as a 256-bit number. Sums
# of steps that wait build on one another; since none of their places comes twice, each is what it will be.
#
# Cost: find 0.1 us; step and change together about 0.6 us a row; 52 bytes of memory a row (bench/bench_freshness.py).
#
# It does not: know what a row holds, ask anybody, or bound itself: `SealedKV` counts before it writes.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memmove, memset

from enclave_os._openssl cimport ERR_clear_error, OPENSSL_cleanse, RAND_bytes, SHA256_CTX
from enclave_os.kv._keyed cimport (
    KEYED_DIGEST_SIZE, KEYED_KEY_SIZE, cascade_digest, cascade_set, hmac_digest, hmac_set,
)

from enclave_os.errors import InternalError
from enclave_os.wire.errors import UsageError

ROOT_SIZE = 32
EMPTY_ROOT = bytes(32)

cdef extern from *:
    """
    static inline uint64_t eos_folded(uint64_t one, uint64_t other) {
        unsigned __int128 product = (unsigned __int128)one * other;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    static inline uint32_t eos_scaled(uint32_t number, uint32_t to) {  /* 0 <= result < to, evenly */
        return (uint32_t)(((uint64_t)number * to) >> 32);
    }
    static inline void eos_add(uint64_t *sum, const uint64_t *number) {
        unsigned __int128 carry = 0;
        for (int i = 0; i < 4; i++) { carry += (unsigned __int128)sum[i] + number[i]; sum[i] = (uint64_t)carry; carry >>= 64; }
    }
    static inline void eos_subtract(uint64_t *sum, const uint64_t *number) {
        uint64_t borrow = 0;
        for (int i = 0; i < 4; i++) {
            uint64_t before = sum[i], rest = before - number[i];
            uint64_t next = (before < number[i]) | (rest < borrow);
            sum[i] = rest - borrow; borrow = next;
        }
    }
    static inline uint64_t eos_big(uint64_t word) { return __builtin_bswap64(word); }
    """
    uint64_t eos_folded(uint64_t one, uint64_t other) noexcept nogil
    uint32_t eos_scaled(uint32_t number, uint32_t to) noexcept nogil
    void eos_add(uint64_t *total, const uint64_t *number) noexcept nogil
    void eos_subtract(uint64_t *total, const uint64_t *number) noexcept nogil
    uint64_t eos_big(uint64_t word) noexcept nogil


# -- segments ---------------------------------------------------------------------------------------------------------

cdef inline bint _same(const uint8_t *one, const uint8_t *other) noexcept nogil:
    return memcmp(one, other, TOKEN_SIZE) == 0


cdef slot_t *segment_slot(const segment_t *segment, const uint8_t *token, uint64_t place) noexcept nogil:
    """The token's slot, or the free one where it belongs: there always is a free one."""
    cdef uint32_t index = eos_scaled(<uint32_t>place, segment.room)
    cdef slot_t *slot = &segment.slots[index]
    while slot.version and not _same(slot.token, token):
        index = index + 1 if index + 1 < segment.room else 0
        slot = &segment.slots[index]
    return slot


@cython.final
cdef class Table:
    """One table's rows. `Freshness` makes and holds them."""

    def __cinit__(self, bytes name not None, bytes key not None):
        self.name = name
        self.depth = 0
        if PyBytes_GET_SIZE(name) != 16 or PyBytes_GET_SIZE(key) != KEYED_KEY_SIZE:
            raise UsageError("a table's name has 16 bytes, and its key 32")
        cascade_set(&self.elements, <const uint8_t *>PyBytes_AS_STRING(key), <const uint8_t *>PyBytes_AS_STRING(name))
        if RAND_bytes(<unsigned char *>self.mix, sizeof(self.mix)) != 1:
            ERR_clear_error()
            raise InternalError("OpenSSL has no randomness")
        self.directory = <segment_t **>calloc(1, sizeof(segment_t *))
        if self.directory == NULL:
            raise MemoryError
        self.directory[0] = segment_new(0, SEGMENT_ROWS_MIN)
        if self.directory[0] == NULL:
            raise MemoryError
        self.memory = sizeof(segment_t *) + sizeof(segment_t) + SEGMENT_ROWS_MIN * SLOT_SIZE

    def __dealloc__(self):
        cdef uint64_t index, end
        cdef segment_t *segment
        OPENSSL_cleanse(&self.elements, sizeof(self.elements))
        if self.directory == NULL:
            return
        index, end = 0, <uint64_t>1 << self.depth
        while index < end and self.directory[index] != NULL:
            segment = self.directory[index]
            index += <uint64_t>1 << (self.depth - segment.depth)
            free(segment.slots)
            free(segment)
        free(self.directory)

    cdef uint64_t _place(self, const uint8_t *token) noexcept nogil:
        # Top bits choose the segment, the lower half the slot.
        cdef uint64_t halves[2]
        memcpy(halves, token, TOKEN_SIZE)
        return eos_folded(halves[0] ^ self.mix[0], halves[1] ^ self.mix[1])

    cdef slot_t *find(self, const uint8_t *token) noexcept nogil:
        """The token's slot; NULL: there is none."""
        cdef uint64_t place = self._place(token)
        cdef segment_t *segment = self.directory[place >> (64 - self.depth) if self.depth else 0]
        cdef slot_t *slot = segment_slot(segment, token, place)
        return slot if slot.version else NULL

    cdef int put(self, const uint8_t *token, uint64_t version, const uint8_t *tag) except -1 nogil:
        """Enter a row, or its new version (not 0)."""
        cdef uint64_t place = self._place(token)
        cdef segment_t *segment
        cdef slot_t *slot
        cdef uint32_t before
        while True:
            segment = self.directory[place >> (64 - self.depth) if self.depth else 0]
            slot = segment_slot(segment, token, place)
            if slot.version:
                break
            if segment.count >= SEGMENT_ROWS_MAX and segment.depth < DEPTH_MAX:
                self._split(segment)
                continue
            if (<uint64_t>segment.count + 1) * 5 > <uint64_t>segment.room * 4:
                before = segment.room
                if not segment_resize(self, segment, before + before // 4 + 1):
                    with gil:
                        raise MemoryError
                self.memory += <uint64_t>(segment.room - before) * SLOT_SIZE
                continue
            memcpy(slot.token, token, TOKEN_SIZE)
            segment.count += 1
            self.count += 1
            break
        slot.version = version
        memcpy(slot.tag, tag, TAG_SIZE)
        return 0

    cdef bint remove(self, const uint8_t *token) noexcept nogil:
        """Take a row out; whether it was there. Those behind it move up, so no grave is left (Knuth 6.4, R)."""
        cdef uint64_t place = self._place(token)
        cdef segment_t *segment = self.directory[place >> (64 - self.depth) if self.depth else 0]
        cdef slot_t *hole = segment_slot(segment, token, place)
        cdef uint32_t empty, index, home
        if not hole.version:
            return False
        empty = index = <uint32_t>(hole - segment.slots)
        while True:
            index = index + 1 if index + 1 < segment.room else 0
            if not segment.slots[index].version:
                break
            home = eos_scaled(<uint32_t>self._place(segment.slots[index].token), segment.room)
            # It may move unless its home lies behind the hole, on the way from there to where it is.
            if (empty < home <= index) if empty < index else (home > empty or home <= index):
                continue
            segment.slots[empty] = segment.slots[index]
            empty = index
        memset(&segment.slots[empty], 0, sizeof(slot_t))
        segment.count -= 1
        self.count -= 1
        return True

    cdef int _split(self, segment_t *segment) except -1 nogil:
        """Two of half the rows each; the directory doubles when it must."""
        cdef uint32_t index = 0, room
        cdef uint64_t first, span, place, bit
        cdef segment_t *other
        cdef slot_t *old
        cdef slot_t *fresh
        if segment.depth == self.depth:
            self._double()
        old, room = segment.slots, segment.room
        # Room for what each gets and some more; the mix is even, so halves differ by little, and either may still grow.
        fresh = <slot_t *>calloc(room // 2 + room // 8, sizeof(slot_t))
        other = segment_new(segment.depth + 1, room // 2 + room // 8) if fresh != NULL else NULL
        if other == NULL:
            free(fresh)
            with gil:
                raise MemoryError
        bit = <uint64_t>1 << (63 - segment.depth)
        # Where it stands in the directory: all entries that share its bits, found by any of its rows.
        for index in range(room):
            if old[index].version:
                break
        span = <uint64_t>1 << (self.depth - segment.depth)
        first = (self._place(old[index].token) >> (64 - self.depth)) & ~(span - 1)
        segment.slots, segment.room, segment.count = fresh, room // 2 + room // 8, 0
        segment.depth += 1
        self.memory += sizeof(segment_t) + <uint64_t>segment.room * 2 * SLOT_SIZE - <uint64_t>room * SLOT_SIZE
        for index in range(room):
            if old[index].version:
                place = self._place(old[index].token)
                if not segment_enter(self, other if place & bit else segment, &old[index], place):
                    with gil:
                        raise MemoryError
        free(old)
        for place in range(first + span // 2, first + span):
            self.directory[place] = other
        return 0

    cdef int _double(self) except -1 nogil:
        cdef uint64_t index, size = <uint64_t>1 << self.depth
        cdef segment_t **larger = <segment_t **>malloc(2 * size * sizeof(segment_t *))
        if larger == NULL:
            with gil:
                raise MemoryError
        for index in range(size):
            larger[2 * index] = larger[2 * index + 1] = self.directory[index]
        free(self.directory)
        self.directory = larger
        self.depth += 1
        self.memory += size * sizeof(segment_t *)
        return 0

    cdef void _element(self, const slot_t *slot, uint64_t *to) noexcept nogil:
        """The row's element of the set hash, as a number of four words, least first."""
        cdef uint8_t data[SLOT_SIZE]
        cdef uint64_t digest[4]
        cdef uint64_t version = eos_big(slot.version)
        cdef int index
        memcpy(data, slot.token, TOKEN_SIZE)
        memcpy(data + TOKEN_SIZE, &version, 8)
        memcpy(data + TOKEN_SIZE + 8, slot.tag, TAG_SIZE)
        cascade_digest(&self.elements, data, SLOT_SIZE, <uint8_t *>digest)
        for index in range(4):
            to[index] = eos_big(digest[3 - index])


cdef segment_t *segment_new(uint32_t depth, uint32_t room) noexcept nogil:
    cdef segment_t *segment = <segment_t *>calloc(1, sizeof(segment_t))
    if segment == NULL:
        return NULL
    segment.slots = <slot_t *>calloc(room, sizeof(slot_t))
    if segment.slots == NULL:
        free(segment)
        return NULL
    segment.room, segment.depth = room, depth
    return segment


cdef bint segment_enter(Table table, segment_t *segment, const slot_t *row, uint64_t place) noexcept nogil:
    """Copy a row that is not there yet; False: no memory to grow."""
    cdef uint32_t before = segment.room
    if (<uint64_t>segment.count + 1) * 5 > <uint64_t>before * 4:
        if not segment_resize(table, segment, before + before // 4 + 1):
            return False
        table.memory += <uint64_t>(segment.room - before) * SLOT_SIZE
    segment_slot(segment, row.token, place)[0] = row[0]
    segment.count += 1
    return True


cdef bint segment_resize(Table table, segment_t *segment, uint32_t room) noexcept nogil:
    cdef slot_t *old = segment.slots
    cdef uint32_t index, before = segment.room
    cdef slot_t *larger = <slot_t *>calloc(room, sizeof(slot_t))
    if larger == NULL:
        return False
    segment.slots, segment.room = larger, room
    for index in range(before):
        if old[index].version:
            segment_slot(segment, old[index].token, table._place(old[index].token))[0] = old[index]
    free(old)
    return True


# -- all tables -------------------------------------------------------------------------------------------------------

@cython.final
cdef class Freshness:
    """Versions and tags of all rows, and their set hash. Not for threads.

    A place is a table's name and a token, 16 bytes each; what is the latest there is a version, 1 to 2**64 - 1, and a
    tag of 16 bytes. Args: two keys of 32 bytes.
    """

    def __cinit__(self, bytes element_key not None, bytes root_key not None):
        if PyBytes_GET_SIZE(element_key) != KEYED_KEY_SIZE or PyBytes_GET_SIZE(root_key) != KEYED_KEY_SIZE:
            raise UsageError(f"the keys of the set hash have {KEYED_KEY_SIZE} bytes")
        self._tables = {}
        self._element_key = element_key
        hmac_set(&self._root, <const uint8_t *>PyBytes_AS_STRING(root_key))
        self._steps = []

    def __dealloc__(self):
        OPENSSL_cleanse(&self._root, sizeof(self._root))
        OPENSSL_cleanse(&self._now, sizeof(self._now))
        OPENSSL_cleanse(self._ahead, sizeof(self._ahead))

    def __len__(self):
        return self._now.count

    @property
    def memory(self):
        """Bytes that the tables take now."""
        return sum((<Table>table).memory for table in self._tables.values())

    def find(self, tuple place not None):
        """Version and tag of the latest record; None: there is none, whatever the host says."""
        cdef slot_t *slot = self.slot(place[0], place[1])
        if slot == NULL:
            return None
        return slot.version, PyBytes_FromStringAndSize(<const char *>slot.tag, TAG_SIZE)

    cdef slot_t *slot(self, bytes table, bytes token) except? NULL:
        cdef Table found = self._tables.get(table)
        self._check()
        return NULL if found is None else found.find(_token(token))

    def tokens(self, bytes name not None):
        """All that are in a table now, in no order, one after the other: a list of them would take four times as much."""
        cdef Table table = self._tables.get(name)
        cdef bytes found
        cdef char *to
        cdef uint64_t index, end
        cdef uint32_t slot
        cdef segment_t *segment
        self._check()
        if table is None:
            return b""
        found = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>table.count * TOKEN_SIZE)
        to = found
        index, end = 0, <uint64_t>1 << table.depth
        while index < end:
            segment = table.directory[index]
            index += <uint64_t>1 << (table.depth - segment.depth)
            for slot in range(segment.room):
                if segment.slots[slot].version:
                    memcpy(to, segment.slots[slot].token, TOKEN_SIZE)
                    to += TOKEN_SIZE
        return found

    def step(self, version, dict changes not None):
        """The root that these changes lead to, on top of those of the steps that wait: they are not made before `change`.

        Args: changes: kept, and not to be altered; of places that no step that waits has.
        Raises: UsageError: a place has a step already, or STEPS_MAX wait.
        """
        cdef size_t count = len(self._steps)
        self._check()
        if count >= STEPS_MAX:
            raise UsageError(f"{STEPS_MAX} steps wait already")
        for earlier in self._steps:
            if not (<dict>earlier).keys().isdisjoint(changes):
                raise UsageError("a place that has a step already")
        self._ahead[count] = self._ahead[count - 1] if count else self._now
        self._after(changes, &self._ahead[count])
        root = self._stands_for(version, &self._ahead[count])
        self._steps.append(changes)
        return root

    def change(self, dict changes not None):
        """These are the latest records now; None: there is none any more. Where steps wait: the first of them.

        Raises: MemoryError: some of the changes may be there and some not, and every later call is an InternalError:
            what is the latest is not known any more, so nothing is. UsageError: another step is the first.
        """
        cdef Table table
        cdef sum_t after
        self._check()
        if not self._steps:
            after = self._now
            self._after(changes, &after)
        elif self._steps[0] is changes:
            after = self._ahead[0]
        else:
            raise UsageError("steps are made in their order")
        self._broken = True  # until all of it is there
        for place, latest in changes.items():
            table = self._table(place[0])
            if latest is None:
                table.remove(_token(place[1]))
            else:
                table.put(_token(place[1]), _version(latest[0]), _tag(latest[1]))
        self._now = after
        OPENSSL_cleanse(&after, sizeof(after))
        if self._steps:
            del self._steps[0]
            memmove(self._ahead, &self._ahead[1], (STEPS_MAX - 1) * sizeof(sum_t))
        self._broken = False

    def root(self, version):
        """Stands for all rows at this version of the store, without the steps that wait."""
        self._check()
        return EMPTY_ROOT if version == 0 else self._stands_for(version, &self._now)

    cdef int _check(self) except -1:
        if self._broken:
            raise InternalError("memory ran out while the table of what is latest changed: start the server anew")
        return 0

    cdef Table _table(self, bytes name):
        cdef Table table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = Table(name, self._element_key)
        return table

    cdef bytes _stands_for(self, object version, const sum_t *of):
        cdef uint8_t data[48]
        cdef uint8_t digest[KEYED_DIGEST_SIZE]
        cdef uint64_t word = eos_big(_version(version))
        cdef int index
        memcpy(data, &word, 8)
        word = eos_big(of.count)
        memcpy(data + 8, &word, 8)
        for index in range(4):
            word = eos_big(of.total[3 - index])
            memcpy(data + 16 + 8 * index, &word, 8)
        hmac_digest(&self._root, data, 48, digest)
        OPENSSL_cleanse(data, 48)
        return PyBytes_FromStringAndSize(<const char *>digest, KEYED_DIGEST_SIZE)

    cdef int _after(self, dict changes, sum_t *to) except -1:
        """Take count and sum to what the changes would make of them; nothing else is changed yet."""
        cdef Table table
        cdef slot_t *known
        cdef slot_t row
        cdef uint64_t element[4]
        for place, latest in changes.items():
            table = self._table(place[0])
            known = table.find(_token(place[1]))
            if known != NULL:
                table._element(known, element)
                eos_subtract(to.total, element)
                to.count -= 1
            if latest is not None:
                memcpy(row.token, _token(place[1]), TOKEN_SIZE)
                row.version = _version(latest[0])
                memcpy(row.tag, _tag(latest[1]), TAG_SIZE)
                table._element(&row, element)
                eos_add(to.total, element)
                to.count += 1
        return 0


cdef const uint8_t *_token(bytes token) except NULL:
    if token is None or PyBytes_GET_SIZE(token) != TOKEN_SIZE:
        raise UsageError(f"a token has {TOKEN_SIZE} bytes")
    return <const uint8_t *>PyBytes_AS_STRING(token)


cdef const uint8_t *_tag(bytes tag) except NULL:
    if tag is None or PyBytes_GET_SIZE(tag) != TAG_SIZE:
        raise UsageError(f"a tag has {TAG_SIZE} bytes")
    return <const uint8_t *>PyBytes_AS_STRING(tag)


cdef uint64_t _version(object version) except 0:
    if not 1 <= version < 1 << 64:
        raise UsageError(f"no record has version {version}")
    return version
