/* Everything an app can use, from C: files, clocks and random numbers by way of the C library, keys, HTTPS and the
 * sealed table by way of the platform's interfaces. The paths, keys and texts come from the caller. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../../c/component.h"

#define CRYPTO "privasys:enclave-os/crypto@0.1.0"
#define KEYSTORE "privasys:enclave-os/keystore@0.1.0"
#define HTTPS "privasys:enclave-os/https@0.1.0"
#define KV "privasys:enclave-os/kv@0.1.0"
enum { SHA256 = 0, ECDSA_P256 = 0, GET = 0 };

IMPORT(CRYPTO, "digest") void crypto_digest(uint32_t algorithm, const uint8_t *, uint32_t, result_bytes *);
IMPORT(CRYPTO, "sign") void crypto_sign(const uint8_t *, uint32_t, uint32_t, const uint8_t *, uint32_t, result_bytes *);
IMPORT(CRYPTO, "verify") void crypto_verify(const uint8_t *, uint32_t, uint32_t, const uint8_t *, uint32_t,
                                            const uint8_t *, uint32_t, result_bool *);
IMPORT(KEYSTORE, "generate-signing-key") void make_signing_key(const uint8_t *, uint32_t, uint32_t, result_bytes *);
IMPORT(KEYSTORE, "persist-key") void persist_key(const uint8_t *, uint32_t, result_bytes *);
IMPORT(KEYSTORE, "export-public-key") void export_public_key(const uint8_t *, uint32_t, result_bytes *);

typedef struct { uint8_t some; bytes value; } option_bytes;
typedef struct {
    uint8_t method;
    bytes url;
    bytes headers;
    option_bytes body;
    struct { uint8_t some; uint32_t policy[17]; } ratls;
    option_bytes roots;
} request;
typedef struct { uint8_t is_err; union { struct { uint16_t status; bytes headers, body; } ok; bytes error; } value; } reply;
IMPORT(HTTPS, "fetch") void https_fetch(const request *, reply *);

typedef struct { uint8_t is_err; union { uint64_t version; struct { uint8_t kind; bytes text; } error; } value; } put_reply;
typedef struct {
    uint8_t is_err;
    union {
        struct { uint8_t some; struct { bytes key, value; uint64_t version; } entry; } ok;
        struct { uint8_t kind; bytes text; } error;
    } value;
} get_reply;
IMPORT(KV, "put") void kv_put(const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint32_t, uint64_t, put_reply *);
IMPORT(KV, "get") void kv_get(const uint8_t *, uint32_t, get_reply *);

static void *failed(void) { return error_text(strerror(errno)); }
static void *done(void) { return ok_bytes(NULL, 0); }

EXPORT("hello") void *hello(void) {
    static bytes text = {(uint8_t *)"hello from C", 12};
    return &text;
}

static void *put_text(const char *how, uint8_t *path, uint32_t path_size, uint8_t *text, uint32_t size) {
    FILE *file = fopen(text_of(path, path_size), how);
    if (!file) return failed();
    size_t written = fwrite(text, 1, size, file);
    if (fclose(file) || written != size) return failed();
    return done();
}
EXPORT("write") void *write_(uint8_t *p, uint32_t n, uint8_t *t, uint32_t m) { return put_text("w", p, n, t, m); }
EXPORT("append") void *append(uint8_t *p, uint32_t n, uint8_t *t, uint32_t m) { return put_text("a", p, n, t, m); }

EXPORT("read") void *read_(uint8_t *path, uint32_t size) {
    FILE *file = fopen(text_of(path, size), "r");
    if (!file) return failed();
    char *text = NULL;
    size_t length = 0, got;
    do {
        text = realloc(text, length + 65536);
        got = fread(text + length, 1, 65536, file);
        length += got;
    } while (got);
    if (ferror(file)) return failed();
    fclose(file);
    return ok_bytes(text, length);
}

EXPORT("make-directory") void *make_directory(uint8_t *path, uint32_t size) {
    return mkdir(text_of(path, size), 0700) ? failed() : done();
}

EXPORT("entries") void *entries(uint8_t *path, uint32_t size) {
    static char text[65536];
    DIR *directory = opendir(text_of(path, size));
    if (!directory) return failed();
    size_t length = 0;
    for (struct dirent *entry; (entry = readdir(directory)) && length < sizeof text - 300;)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            length += sprintf(text + length, "%s%s\n", entry->d_name, entry->d_type == DT_DIR ? "/" : "");
    closedir(directory);
    return ok_bytes(text, length);
}

EXPORT("rename") void *rename_(uint8_t *old, uint32_t old_size, uint8_t *new, uint32_t new_size) {
    return rename(text_of(old, old_size), text_of(new, new_size)) ? failed() : done();
}
EXPORT("remove") void *remove_(uint8_t *path, uint32_t size) { return remove(text_of(path, size)) ? failed() : done(); }

EXPORT("size") void *size_(uint8_t *path, uint32_t size) {
    static result_u64 answer;
    struct stat found;
    if (stat(text_of(path, size), &found)) {
        const char *text = strerror(errno);
        answer.is_err = 1;
        answer.value.error = (bytes){(uint8_t *)text, strlen(text)};
    } else {
        answer.is_err = 0;
        answer.value.number = found.st_size;
    }
    return &answer;
}

EXPORT("random") void *random_(void) {
    static uint8_t made[16];
    static bytes answer = {made, sizeof made};
    if (getentropy(made, sizeof made)) abort();
    return &answer;
}

static uint64_t nanoseconds(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now)) abort();
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}
EXPORT("now") uint64_t now(void) { return nanoseconds(CLOCK_REALTIME); }
EXPORT("ticks") uint64_t ticks(void) { return nanoseconds(CLOCK_MONOTONIC); }
EXPORT("nap") uint64_t nap(uint32_t milliseconds) {
    uint64_t before = ticks();
    struct timespec span = {milliseconds / 1000, milliseconds % 1000 * 1000000l};
    nanosleep(&span, NULL);
    return ticks() - before;
}

EXPORT("variable") void *variable(uint8_t *name, uint32_t size) {
    const char *found = getenv(text_of(name, size));
    return found ? ok_text(found) : error_text("not set");
}
EXPORT("print") void print(uint8_t *text, uint32_t size) {
    fwrite(text, 1, size, stdout);
    fflush(stdout);
}
EXPORT("leave") void leave(uint32_t code) { exit(code); }

EXPORT("write-and-crash") void write_and_crash(uint8_t *p, uint32_t n, uint8_t *t, uint32_t m, uint32_t sync) {
    FILE *file = fopen(text_of(p, n), "w");
    fwrite(t, 1, m, file);
    fflush(file);
    if (sync) fsync(fileno(file));
    __builtin_trap();
}

EXPORT("digest") void *digest(uint8_t *data, uint32_t size) {
    crypto_digest(SHA256, data, size, &returned);
    return &returned;
}
EXPORT("make-key") void *make_key(uint8_t *name, uint32_t size) {
    make_signing_key(name, size, ECDSA_P256, &returned);
    if (!returned.is_err) persist_key(name, size, &returned);
    return &returned;
}
EXPORT("public-key") void *public_key(uint8_t *name, uint32_t size) {
    export_public_key(name, size, &returned);
    return &returned;
}
EXPORT("sign") void *sign(uint8_t *name, uint32_t name_size, uint8_t *data, uint32_t size) {
    crypto_sign(name, name_size, ECDSA_P256, data, size, &returned);
    return &returned;
}
EXPORT("verify") void *verify(uint8_t *name, uint32_t name_size, uint8_t *data, uint32_t size, uint8_t *signature,
                              uint32_t signature_size) {
    static result_bool answer;
    crypto_verify(name, name_size, ECDSA_P256, data, size, signature, signature_size, &answer);
    return &answer;
}

EXPORT("fetch") void *fetch(uint8_t *url, uint32_t size) {
    request asked = {.method = GET, .url = {url, size}};
    reply answer;
    https_fetch(&asked, &answer);
    if (answer.value.ok.status == 0 || answer.is_err) {
        returned = (result_bytes){1, answer.value.error};
        return &returned;
    }
    return ok_bytes(answer.value.ok.body.data, answer.value.ok.body.size);
}

EXPORT("put") void *put(uint8_t *key, uint32_t key_size, uint8_t *value, uint32_t size) {
    static result_u64 answer;
    put_reply reply;
    kv_put(key, key_size, value, size, 0, 0, &reply);
    answer.is_err = reply.is_err;
    if (reply.is_err) answer.value.error = (bytes){(uint8_t *)"not stored", 10};
    else answer.value.number = reply.value.version;
    return &answer;
}
EXPORT("get") void *get(uint8_t *key, uint32_t size) {
    get_reply reply;
    kv_get(key, size, &reply);
    if (reply.is_err) return error_text("not read");
    if (!reply.value.ok.some) return error_text("nothing there");
    return ok_bytes(reply.value.ok.entry.value.data, reply.value.ok.entry.value.size);
}
