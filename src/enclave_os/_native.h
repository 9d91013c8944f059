/* Atomics, the pause instruction and copies to and from shared memory, for _ring, _codec and the two hot loops.
 *
 * Every word that both processes can see is a naturally aligned u64 and is touched through this file only:
 *   - one C access per call (volatile), so a value cannot be fetched twice by the compiler (threat-model.md RG4);
 *   - stores are whole aligned 8-byte words (INTEL-SA-00615, RG6): shared memory outside the enclave may be MMIO
 *     in disguise, and a narrower or unaligned store to it can leave stale enclave data in the fill buffers.
 * With ENCLAVE_OS_DEBUG loads and stores are counted, so that tests can assert "read once", and alignment is checked.
 */
#ifndef ENCLAVE_OS_NATIVE_H
#define ENCLAVE_OS_NATIVE_H

#include <stdint.h>
#include <stddef.h>
#include <string.h>
#include <stdlib.h>
#include <time.h>

#ifndef ENCLAVE_OS_DEBUG
#define ENCLAVE_OS_DEBUG 0
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire is little endian and read by whole words: this host is not"
#endif

#if ENCLAVE_OS_DEBUG
/* One counter pair per extension module that includes this file, in words; _ring exposes its own for tests. */
static uint64_t eos_shared_loads, eos_shared_stores;
#define EOS_COUNT_LOADS(n) (eos_shared_loads += (n))
#define EOS_COUNT_STORES(n) (eos_shared_stores += (n))
#define EOS_ASSERT_ALIGNED(p) do { if (((uintptr_t)(p)) & 7u) abort(); } while (0)
#else
#define EOS_COUNT_LOADS(n) ((void)0)
#define EOS_COUNT_STORES(n) ((void)0)
#define EOS_ASSERT_ALIGNED(p) ((void)0)
#endif

/* For mistakes of our own caller, in the debug build only: a word of the peer's must never decide about abort(). */
static inline void eos_assert(int holds) {
#if ENCLAVE_OS_DEBUG
    if (!holds) abort();
#else
    (void)holds;
#endif
}

static inline uint64_t eos_debug_loads(void) {
#if ENCLAVE_OS_DEBUG
    return eos_shared_loads;
#else
    return 0;
#endif
}

static inline uint64_t eos_debug_stores(void) {
#if ENCLAVE_OS_DEBUG
    return eos_shared_stores;
#else
    return 0;
#endif
}

static inline uint64_t eos_load_acquire(const uint64_t *word) {
    EOS_ASSERT_ALIGNED(word);
    EOS_COUNT_LOADS(1);
    return __atomic_load_n((const volatile uint64_t *)word, __ATOMIC_ACQUIRE);
}

static inline uint64_t eos_load_relaxed(const uint64_t *word) {
    EOS_ASSERT_ALIGNED(word);
    EOS_COUNT_LOADS(1);
    return __atomic_load_n((const volatile uint64_t *)word, __ATOMIC_RELAXED);
}

static inline void eos_store_release(uint64_t *word, uint64_t value) {
    EOS_ASSERT_ALIGNED(word);
    EOS_COUNT_STORES(1);
    __atomic_store_n((volatile uint64_t *)word, value, __ATOMIC_RELEASE);
}

static inline void eos_store_relaxed(uint64_t *word, uint64_t value) {
    EOS_ASSERT_ALIGNED(word);
    EOS_COUNT_STORES(1);
    __atomic_store_n((volatile uint64_t *)word, value, __ATOMIC_RELAXED);
}

static inline uint64_t eos_exchange(uint64_t *word, uint64_t value) {
    EOS_ASSERT_ALIGNED(word);
    EOS_COUNT_LOADS(1);
    EOS_COUNT_STORES(1);
    return __atomic_exchange_n((volatile uint64_t *)word, value, __ATOMIC_SEQ_CST);
}

static inline void eos_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static inline void eos_cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static inline uint64_t eos_monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* rep movsq moves whole quadwords, as Gramine's own border copies do. Its stores may become visible in any order among
 * themselves, but not after a later ordinary store (SDM vol. 3A, "Fast-String Operation and Out-of-Order Stores": keep
 * the semaphore apart and write it with a discrete store), and the cursor is such a store. The direction flag is clear
 * by the ABI. Below 64 words the loop is faster (its start-up is some 30 cycles). AddressSanitizer does not see into asm,
 * so its build takes the loop, which it can check. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define EOS_REP_MOVSQ_WORDS_MIN 64
static inline void eos_rep_movsq(void *to, const void *from, size_t words) {
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
}
#else
#define EOS_REP_MOVSQ_WORDS_MIN SIZE_MAX
static inline void eos_rep_movsq(void *to, const void *from, size_t words) { (void)to, (void)from, (void)words; }
#endif

/* The last `rest` (1 to 7) of `size` bytes at `from`, zero-extended. Private memory only: bytes may be read twice. */
static inline uint64_t eos_tail_word(const uint8_t *from, size_t size, size_t rest) {
    uint64_t word = 0;
    size_t i;
    if (size >= 8) {
        memcpy(&word, from + size - 8, 8);
        return word >> (8 * (8 - rest));
    }
    for (i = 0; i < rest; i++) word |= (uint64_t)from[size - rest + i] << (8 * i);
    return word;
}

/* Copy `size` bytes from private memory to shared memory in aligned 8-byte stores; the last word is zero-padded, so
 * no byte of private memory that was not meant to leave does (RG5). `to` is 8-aligned and has room for the padding. */
static inline void eos_copy_out(uint8_t *to, const uint8_t *from, size_t size) {
    size_t words = size >> 3, rest = size & 7u;
    EOS_ASSERT_ALIGNED(to);
    EOS_COUNT_STORES(words + (rest != 0));
    if (words >= EOS_REP_MOVSQ_WORDS_MIN) {
        eos_rep_movsq(to, from, words);
    } else {
        size_t i;
        for (i = 0; i < words; i++) {
            uint64_t w;
            memcpy(&w, from + 8 * i, 8);
            ((volatile uint64_t *)to)[i] = w;
        }
    }
    if (rest) ((volatile uint64_t *)to)[words] = eos_tail_word(from, size, rest);
}

/* Copy `size` bytes from shared to private memory by aligned 8-byte loads, each shared word loaded once. `from` may
 * have any alignment (a TLS record read in pieces); words that straddle the ends are loaded whole and cut privately.
 * The aligned words around [from, from+size) must be inside the mapping: ring data starts and ends on 8. Whole aligned
 * loads also keep what an MMIO alias of that memory could return stale (INTEL-SA-00657) out of our bytes. */
static inline void eos_copy_in(uint8_t *to, const uint8_t *from, size_t size) {
    size_t skew = (size_t)((uintptr_t)from & 7u);
    size_t words, rest, i;
    if (skew && size) {
        uint64_t w = *(const volatile uint64_t *)(from - skew);
        size_t n = 8 - skew < size ? 8 - skew : size;
        EOS_COUNT_LOADS(1);
        for (i = 0, w >>= 8 * skew; i < n; i++, w >>= 8) to[i] = (uint8_t)w;
        to += n;
        from += n;
        size -= n;
    }
    words = size >> 3;
    rest = size & 7u;
    EOS_COUNT_LOADS(words + (rest != 0));
    if (words >= EOS_REP_MOVSQ_WORDS_MIN) {
        eos_rep_movsq(to, from, words);
    } else {
        for (i = 0; i < words; i++) {
            uint64_t w = ((const volatile uint64_t *)from)[i];
            memcpy(to + 8 * i, &w, 8);
        }
    }
    if (rest) {
        uint64_t w = ((const volatile uint64_t *)from)[words];
        for (i = 0; i < rest; i++, w >>= 8) to[8 * words + i] = (uint8_t)w;
    }
}

#endif
