/* Latencies in fixed memory: log-linear buckets, exact below 128 ns, then 64 to each power of two (1.6 %), up to 19 h. */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>

enum { SUB_BITS = 6, BUCKETS = 40 << SUB_BITS };

static unsigned bucket_of(uint64_t ns) {
    if (ns < (2u << SUB_BITS)) return (unsigned)ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - SUB_BITS;
    unsigned bucket = (shift << SUB_BITS) + (unsigned)(ns >> shift);
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

/* The middle of a bucket. */
static uint64_t bucket_ns(unsigned bucket) {
    if (bucket < (2u << SUB_BITS)) return bucket;
    unsigned shift = (bucket >> SUB_BITS) - 1;
    uint64_t low = (uint64_t)((bucket & ((1u << SUB_BITS) - 1)) | (1u << SUB_BITS)) << shift;
    return low + ((1ull << shift) >> 1);
}

/* The bucket that holds the given part (0 to 1) of all counts; 0 for an empty histogram. */
static uint64_t percentile(const uint32_t *histogram, double part) {
    uint64_t count = 0, seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) count += histogram[i];
    uint64_t wanted = (uint64_t)(part * (double)count + 0.999999);
    for (unsigned i = 0; i < BUCKETS; i++)
        if ((seen += histogram[i]) >= wanted && seen) return bucket_ns(i);
    return 0;
}

#endif
