# The C floor under ring and codec: see _native.h for what each promises.
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "_native.h" nogil:
    const int ENCLAVE_OS_DEBUG
    void eos_assert(bint holds)
    uint64_t eos_debug_loads()
    uint64_t eos_debug_stores()
    uint64_t eos_load_acquire(const uint64_t *word)
    uint64_t eos_load_relaxed(const uint64_t *word)
    void eos_store_release(uint64_t *word, uint64_t value)
    void eos_store_relaxed(uint64_t *word, uint64_t value)
    uint64_t eos_exchange(uint64_t *word, uint64_t value)
    void eos_fence()
    void eos_cpu_pause()
    uint64_t eos_monotonic_ns()
    void eos_copy_out(uint8_t *to, const uint8_t *from_, size_t size)
    void eos_copy_in(uint8_t *to, const uint8_t *from_, size_t size)
