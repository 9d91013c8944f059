/* The part of wasmtime's C API that this project calls: structures by their documented layout, functions by pointer.
 *
 * wasmtime comes as a shared library inside a Python wheel, without headers and at a path that only the installation
 * knows. So nothing links to it: wasmtime-py loads it, and `_component` looks the functions up there and checks the
 * sizes below against wasmtime-py's own declarations before anything is called.
 */
#ifndef ENCLAVE_OS_WASMTIME_H
#define ENCLAVE_OS_WASMTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct { size_t size; char *data; } wt_bytes;

typedef struct wt_val wt_val;
typedef struct wt_field wt_field;
typedef struct { size_t size; wt_val *data; } wt_vals;
typedef struct { size_t size; wt_field *data; } wt_fields;
typedef struct { size_t size; wt_bytes *data; } wt_names;
typedef struct { wt_bytes discriminant; wt_val *val; } wt_variant;
typedef struct { bool is_ok; wt_val *val; } wt_result;

typedef union {
    bool boolean;
    int8_t s8;
    uint8_t u8;
    int16_t s16;
    uint16_t u16;
    int32_t s32;
    uint32_t u32;
    int64_t s64;
    uint64_t u64;
    float f32;
    double f64;
    uint32_t character;
    wt_bytes string;
    wt_vals list;      /* a tuple has the same form */
    wt_fields record;
    wt_variant variant;
    wt_bytes enumeration;
    wt_val *option;
    wt_result result;
    wt_names flags;
    void *resource;
} wt_of;

/* One value that crosses: a kind, and what belongs to it. 32 bytes, also for one byte of a list<u8>. */
struct wt_val { uint8_t kind; wt_of of; };
struct wt_field { wt_bytes name; wt_val val; };

typedef struct { struct { uint64_t store_id; uint32_t a; } of; uint32_t b; void *c; } wt_func;
typedef struct { uint64_t store_id; uint32_t a; } wt_instance;

_Static_assert(sizeof(wt_val) == 32 && offsetof(wt_val, of) == 8, "wasmtime_component_val_t");

typedef void *(*wt_host_call)(void *data, void *context, void *type, wt_val *args, size_t nargs, wt_val *results,
                              size_t nresults);
typedef void *(*wt_host_drop)(void *data, void *context, uint32_t rep);
typedef void *(*wt_on_epoch)(void *context, void *data, uint64_t *delta, uint8_t *kind);
typedef void (*wt_finalizer)(void *data);

typedef struct {
    void (*byte_vec_new_uninitialized)(wt_bytes *, size_t);
    void (*byte_vec_delete)(wt_bytes *);
    void *(*error_new)(const char *);
    void (*error_delete)(void *error);
    void (*error_message)(const void *error, wt_bytes *);
    void *(*store_new)(void *engine, void *data, wt_finalizer);
    void *(*store_context)(void *store);
    void (*store_limiter)(void *store, int64_t memory, int64_t table, int64_t instances, int64_t tables,
                          int64_t memories);
    void (*store_delete)(void *store);
    void (*store_epoch_deadline_callback)(void *store, wt_on_epoch, void *data, wt_finalizer);
    void *(*context_get_data)(const void *context);
    void *(*context_set_fuel)(void *context, uint64_t);
    void *(*context_get_fuel)(const void *context, uint64_t *);
    void (*context_set_epoch_deadline)(void *context, uint64_t ticks);
    void *(*linker_instantiate)(const void *linker, void *context, const void *component, wt_instance *);
    bool (*instance_get_func)(const wt_instance *, void *context, const void *export_index, wt_func *);
    void *(*func_call)(const wt_func *, void *context, const wt_val *args, size_t, wt_val *results, size_t);
    void *(*linker_instance_add_func)(void *instance, const char *name, size_t, wt_host_call, void *data,
                                      wt_finalizer);
    void *(*linker_instance_add_resource)(void *instance, const char *name, size_t, const void *type, wt_host_drop,
                                          void *data, wt_finalizer);
    void *(*resource_type_new_host)(uint32_t);
    void (*resource_type_delete)(void *);
    void *(*resource_host_new)(bool owned, uint32_t rep, uint32_t type);
    uint32_t (*resource_host_rep)(const void *host);
    void (*resource_host_delete)(void *host);
    void *(*resource_any_to_host)(void *context, const void *any, void **host);
    void *(*resource_host_to_any)(void *context, const void *host, void **any);
    void (*vallist_new_uninit)(wt_vals *, size_t);
    void (*valtuple_new_uninit)(wt_vals *, size_t);
    void (*valrecord_new_uninit)(wt_fields *, size_t);
    void (*valflags_new_uninit)(wt_names *, size_t);
    wt_val *(*val_new)(wt_val *);
    void (*val_delete)(wt_val *);
} wt_api;

/* 1 MiB of list<u8> is 32 MiB of values: these two loops are most of what such a call costs on our side. */
static inline void wt_spread_bytes(wt_val *to, const uint8_t *from, size_t size, uint8_t kind) {
    for (size_t i = 0; i < size; i++) {
        to[i].kind = kind;
        to[i].of.u8 = from[i];
    }
}

/* Whether every value was of `kind`; gathers what was before the first that is not. */
static inline bool wt_gather_bytes(uint8_t *to, const wt_val *from, size_t size, uint8_t kind) {
    for (size_t i = 0; i < size; i++) {
        if (from[i].kind != kind) return false;
        to[i] = from[i].of.u8;
    }
    return true;
}

#endif
