# cython: language_level=3
# What else could know which record is the latest, as small as it can honestly be made: for docs/kv.md's table. Not part
# of the package.
#
# Tree: a binary trie over the bits of tokens with its hashes, all of it inside. Path: the same tree on the host, of
# which the enclave keeps the root and checks and changes one path. Bucket: keys in buckets that lie on the host, a hash
# of each inside.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

from enclave_os._openssl cimport SHA256_CTX, SHA256_Final, SHA256_Init, SHA256_Update

import time

cdef enum:
    DEPTH_MAX = 128

cdef struct node_t:     # 48 bytes: child[i] < 0 is leaf ~child[i]
    uint8_t hash[32]
    int child[2]
    uint32_t bit        # the first in which the tokens below differ
    uint32_t unused

cdef struct leaf_t:     # 72 bytes
    uint8_t token[16]
    uint64_t version
    uint8_t tag[16]
    uint8_t hash[32]


cdef void sha256(const uint8_t *one, size_t size, const uint8_t *other, size_t other_size, uint8_t *to) noexcept nogil:
    cdef SHA256_CTX state
    SHA256_Init(&state)
    SHA256_Update(&state, one, size)
    if other_size:
        SHA256_Update(&state, other, other_size)
    SHA256_Final(to, &state)


cdef inline uint32_t bit_of(const uint8_t *token, uint32_t bit) noexcept nogil:
    return (token[bit >> 3] >> (7 - (bit & 7))) & 1


cdef class Tree:
    """A compressed binary Merkle tree in memory."""

    cdef node_t *nodes
    cdef leaf_t *leaves
    cdef readonly uint64_t count, room, hashes, depths
    cdef int root

    def __dealloc__(self):
        free(self.nodes)
        free(self.leaves)

    @property
    def memory(self):
        return self.room * (sizeof(node_t) + sizeof(leaf_t))

    cdef void _hash_node(self, int index) noexcept nogil:
        cdef node_t *node = &self.nodes[index]
        cdef const uint8_t *sides[2]
        cdef int side, child
        for side in range(2):
            child = node.child[side]
            sides[side] = &self.nodes[child].hash[0] if child >= 0 else &self.leaves[~child].hash[0]
        sha256(sides[0], 32, sides[1], 32, node.hash)
        self.hashes += 1

    cdef int _put(self, const uint8_t *token, uint64_t version, const uint8_t *tag) except -1 nogil:
        cdef int path[DEPTH_MAX]
        cdef int steps = 0, at = self.root, new, parent
        cdef uint32_t bit
        cdef leaf_t *leaf
        if self.count == self.room:
            self.room = self.room * 5 // 4 + 64
            self.nodes = <node_t *>realloc(self.nodes, self.room * sizeof(node_t))
            self.leaves = <leaf_t *>realloc(self.leaves, self.room * sizeof(leaf_t))
        if self.count == 0:
            self.root = ~0
        else:
            while at >= 0:
                at = self.nodes[at].child[bit_of(token, self.nodes[at].bit)]
        if self.count == 0 or memcmp(self.leaves[~at].token, token, 16):
            new = <int>self.count
            self.count += 1
            memcpy(self.leaves[new].token, token, 16)
            if new:
                bit = 0
                while bit_of(self.leaves[~at].token, bit) == bit_of(token, bit):
                    bit += 1
                at, parent = self.root, -1
                while at >= 0 and self.nodes[at].bit < bit:
                    parent, at = at, self.nodes[at].child[bit_of(token, self.nodes[at].bit)]
                self.nodes[new].bit = bit
                self.nodes[new].child[bit_of(token, bit)] = ~new
                self.nodes[new].child[1 - bit_of(token, bit)] = at
                if parent < 0:
                    self.root = new
                else:
                    self.nodes[parent].child[bit_of(token, self.nodes[parent].bit)] = new
        at = self.root
        while at >= 0:
            path[steps] = at
            steps += 1
            at = self.nodes[at].child[bit_of(token, self.nodes[at].bit)]
        leaf = &self.leaves[~at]
        leaf.version = version
        memcpy(leaf.tag, tag, 16)
        sha256(leaf.token, 40, NULL, 0, leaf.hash)
        self.hashes += 1
        self.depths += steps
        while steps:
            steps -= 1
            self._hash_node(path[steps])
        return 0

    def put_all(self, bytes tokens not None, uint64_t version):
        """Nanoseconds for each of these tokens, one after the other."""
        cdef const uint8_t *data = tokens
        cdef size_t index, count = len(tokens) // 16
        began = time.process_time_ns()
        with nogil:
            for index in range(count):
                self._put(data + 16 * index, version, data + 16 * index)
        return (time.process_time_ns() - began) / count

    def find_all(self, bytes tokens not None):
        """Nanoseconds to find each."""
        cdef const uint8_t *data = tokens
        cdef size_t index, count = len(tokens) // 16
        cdef uint64_t found = 0
        cdef int at
        began = time.process_time_ns()
        with nogil:
            for index in range(count):
                at = self.root
                while at >= 0:
                    at = self.nodes[at].child[bit_of(data + 16 * index, self.nodes[at].bit)]
                found += memcmp(self.leaves[~at].token, data + 16 * index, 16) == 0
        took = time.process_time_ns() - began
        assert found == count
        return took / count


def path(int depth, int count):
    """Nanoseconds to check a path of so many siblings against a root, and to make the new one."""
    cdef uint8_t siblings[DEPTH_MAX * 32]
    cdef uint8_t old[32]
    cdef uint8_t new[32]
    cdef int index, level
    memset(siblings, 7, sizeof(siblings))
    memset(old, 1, 32)
    memset(new, 2, 32)
    began = time.process_time_ns()
    with nogil:
        for index in range(count):
            for level in range(depth):
                sha256(old, 32, siblings + 32 * level, 32, old)
                sha256(new, 32, siblings + 32 * level, 32, new)
    took = time.process_time_ns() - began
    assert memcmp(old, new, 32)
    return took / count


def bucket(int rows, int count):
    """Nanoseconds to check one bucket of so many rows of 40 bytes, and to hash it again with one changed."""
    cdef uint8_t *data = <uint8_t *>calloc(rows, 40)
    cdef uint8_t digest[32]
    cdef int index
    began = time.process_time_ns()
    with nogil:
        for index in range(count):
            sha256(data, rows * 40, NULL, 0, digest)
            data[index % rows * 40] += 1
            sha256(data, rows * 40, NULL, 0, digest)
    took = time.process_time_ns() - began
    free(data)
    return took / count
