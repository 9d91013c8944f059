/* Linear memories of our own making, so that what each call uses is known and not only bounded.
 *
 * wasmtime asks for a memory, grows it and gives it back; here each of that is counted for the call on whose thread it
 * happens. A memory never shrinks and lives as long as its call, so the count at the call's end is the most it had.
 *
 * Bytes come from the allocator, zeroed, as wasmtime's own do in this configuration: mapping pages for each call would
 * cost 8 us of 13. Nothing is reserved and nothing guarded: what lies behind a memory is checked by instructions
 * (engine.SETTINGS).
 */
#ifndef ENCLAVE_OS_WASM_MEMORY_H
#define ENCLAVE_OS_WASM_MEMORY_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void *(*wt_make_error)(const char *text);

typedef struct {
    void *env;
    uint8_t *(*get)(void *env, size_t *size, size_t *capacity);
    void *(*grow)(void *env, size_t size);
    void (*finalizer)(void *env);
} wt_linear_memory;

typedef struct {
    void *env;
    void *(*make)(void *env, const void *type, size_t minimum, size_t maximum, size_t reserved, size_t guard,
                  wt_linear_memory *made);
    void (*finalizer)(void *env);
} wt_memory_creator;

typedef struct {
    uint8_t *data;
    size_t size, capacity; /* bytes; capacity >= size, and what lies between is zero */
    size_t *counted;       /* of the call; it outlives its memories */
    wt_make_error make_error;
} wt_memory;

enum { WT_GROWTH = 1 << 20 }; /* room that a growing memory gets ahead, so that not each step copies it */

/* Where the memories that this thread makes are counted; NULL: nowhere. */
static __thread size_t *wt_counted;

static uint8_t *wt_memory_get(void *env, size_t *size, size_t *capacity) {
    wt_memory *memory = env;
    *size = memory->size;
    *capacity = memory->capacity;
    return memory->data;
}

static void *wt_memory_grow(void *env, size_t size) {
    wt_memory *memory = env;
    if (size > memory->capacity) {
        size_t capacity = size > SIZE_MAX - WT_GROWTH ? 0 : size + WT_GROWTH;
        uint8_t *data = capacity == 0 ? NULL : realloc(memory->data, capacity);
        if (data == NULL) return memory->make_error("no memory");
        memset(data + memory->capacity, 0, capacity - memory->capacity);
        memory->data = data;
        memory->capacity = capacity;
    }
    if (memory->counted != NULL) *memory->counted += size - memory->size;
    memory->size = size;
    return NULL;
}

static void wt_memory_free(void *env) {
    wt_memory *memory = env;
    free(memory->data);
    free(memory);
}

static void *wt_memory_make(void *env, const void *type, size_t minimum, size_t maximum, size_t reserved, size_t guard,
                            wt_linear_memory *made) {
    wt_make_error make_error = (wt_make_error)env;
    wt_memory *memory = calloc(1, sizeof *memory);
    (void)type, (void)maximum;
    if (reserved != 0 || guard != 0) { /* not as engine.SETTINGS says: what is asked for here is not given */
        free(memory);
        return make_error("memories are neither reserved nor guarded");
    }
    if (memory == NULL) return make_error("no memory");
    memory->capacity = minimum != 0 ? minimum : 65536;
    memory->data = calloc(1, memory->capacity);
    if (memory->data == NULL) {
        free(memory);
        return make_error("no memory");
    }
    memory->size = minimum;
    memory->counted = wt_counted;
    memory->make_error = make_error;
    if (wt_counted != NULL) *wt_counted += minimum;
    *made = (wt_linear_memory){memory, wt_memory_get, wt_memory_grow, wt_memory_free};
    return NULL;
}

#endif
