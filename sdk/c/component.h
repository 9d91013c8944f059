/* The canonical ABI by hand, as far as C programs here need it: no bindings generator is involved.
 *
 * A string or list is a pointer and a size. What a function returns goes into memory that stays until the next call of
 * the instance; an app's instance lives for one call, so nothing is ever freed.
 */
#ifndef COMPONENT_H
#define COMPONENT_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))

typedef struct { uint8_t *data; uint32_t size; } bytes;

/* result<list<u8>, string>, result<string, string>, result<_, string>: one layout. */
typedef struct { uint8_t is_err; bytes value; } result_bytes;
typedef struct { uint8_t is_err; union { uint8_t boolean; bytes error; } value; } result_bool;
typedef struct { uint8_t is_err; union { uint64_t number; bytes error; } value; } result_u64;

EXPORT("cabi_realloc") void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size; (void)align;
    return realloc(old, size);
}

static result_bytes returned;

static void *ok_bytes(const void *data, uint32_t size) {
    returned = (result_bytes){0, {(uint8_t *)data, size}};
    return &returned;
}
static void *ok_text(const char *text) { return ok_bytes(text, strlen(text)); }
static void *error_text(const char *text) {
    returned = (result_bytes){1, {(uint8_t *)text, strlen(text)}};
    return &returned;
}

/* A C string of a WIT string. */
__attribute__((unused)) static char *text_of(const uint8_t *data, uint32_t size) {
    char *text = malloc(size + 1);
    memcpy(text, data, size);
    text[size] = 0;
    return text;
}

#endif
