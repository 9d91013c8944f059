/* Atomics, the pause instruction and copies to and from shared memory, for _ring, _codec and the two hot loops.
 *
 * Every word that both processes can see is a naturally aligned u64 and is touched through this file only:
 *   - one C access per call (volatile), so a value cannot be fetched twice by the compiler (threats.md RG4);
 *   - stores are whole aligned 8-byte words (INTEL-SA-00615, RG6): shared memory outside the enclave may be MMIO
 *     in disguise, and a narrower or unaligned store to it can leave stale enclave data in the fill buffers.
 * With ENCLAVE_OS_DEBUG the loads and stores are counted, so that tests can assert "read once", and alignment is checked.
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
/* One counter pair per extension module that includes this file; _ring exposes its own for tests. */
static uint64_t eos_shared_loads, eos_shared_stores;
#define EOS_COUNT_LOAD() (eos_shared_loads++)
#define EOS_COUNT_STORE() (eos_shared_stores++)
#define EOS_ASSERT_ALIGNED(p) do { if (((uintptr_t)(p)) & 7u) abort(); } while (0)
#else
#define EOS_COUNT_LOAD() ((void)0)
#define EOS_COUNT_STORE() ((void)0)
#define EOS_ASSERT_ALIGNED(p) ((void)0)
#endif

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
    EOS_COUNT_LOAD();
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline uint64_t eos_load_relaxed(const uint64_t *word) {
    EOS_ASSERT_ALIGNED(word);
    EOS_COUNT_LOAD();
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void eos_store_release(uint64_t *word, uint64_t value) {
    EOS_ASSERT_ALIGNED(word);
    EOS_COUNT_STORE();
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline void eos_store_relaxed(uint64_t *word, uint64_t value) {
    EOS_ASSERT_ALIGNED(word);
    EOS_COUNT_STORE();
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static inline uint64_t eos_exchange(uint64_t *word, uint64_t value) {
    EOS_ASSERT_ALIGNED(word);
    EOS_COUNT_LOAD();
    EOS_COUNT_STORE();
    return __atomic_exchange_n(word, value, __ATOMIC_SEQ_CST);
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

/* Copy `size` bytes from private memory to shared memory in aligned 8-byte stores; the last word is zero-padded, so
 * no byte of private memory that was not meant to leave does (RG5). `to` is 8-aligned and has room for the padding.
 * rep movsq moves whole quadwords, as Gramine's own border copies do. */
static inline void eos_copy_out(uint8_t *to, const uint8_t *from, size_t size) {
    size_t words = size >> 3, rest = size & 7u;
    uint64_t last = 0;
    EOS_ASSERT_ALIGNED(to);
    EOS_COUNT_STORE();
#if defined(__x86_64__)
    if (words >= 32) {
        void *d = to;
        const void *s = from;
        size_t n = words;
        __asm__ volatile("rep movsq" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    } else
#endif
    {
        size_t i;
        for (i = 0; i < words; i++) {
            uint64_t w;
            memcpy(&w, from + 8 * i, 8);
            ((volatile uint64_t *)to)[i] = w;
        }
    }
    if (rest) {
        memcpy(&last, from + 8 * words, rest);
        ((volatile uint64_t *)to)[words] = last;
    }
}

/* Copy `size` bytes from shared to private memory by aligned 8-byte loads, each shared word loaded once. `from` may
 * have any alignment (a TLS record read in pieces); words that straddle the ends are loaded whole and cut privately.
 * The aligned words around [from, from+size) must be inside the mapping: ring data starts and ends on 8. */
static inline void eos_copy_in(uint8_t *to, const uint8_t *from, size_t size) {
    size_t skew = (size_t)((uintptr_t)from & 7u);
    EOS_COUNT_LOAD();
    if (skew && size) {
        uint64_t w = *(const volatile uint64_t *)(from - skew);
        size_t n = 8 - skew < size ? 8 - skew : size;
        memcpy(to, (const uint8_t *)&w + skew, n);
        to += n;
        from += n;
        size -= n;
    }
    {
        size_t words = size >> 3, rest = size & 7u;
#if defined(__x86_64__)
        if (words >= 32) {
            void *d = to;
            const void *s = from;
            size_t n = words;
            __asm__ volatile("rep movsq" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
        } else
#endif
        {
            size_t i;
            for (i = 0; i < words; i++) {
                uint64_t w = ((const volatile uint64_t *)from)[i];
                memcpy(to + 8 * i, &w, 8);
            }
        }
        if (rest) {
            uint64_t w = ((const volatile uint64_t *)from)[words];
            memcpy(to + 8 * words, &w, rest);
        }
    }
}

#endif
