/* A client of any TCP server, and a program that means ill: see tcp.wit. */
#include "../../c/tcp.h"

NET("tcp", "[method]tcp-socket.start-bind") void tcp_start_bind(
    uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t,
    uint32_t, uint32_t, uint32_t, net_done *);
NET("tcp", "[method]tcp-socket.start-listen") void tcp_start_listen(uint32_t, net_done *);
NET("tcp", "[method]tcp-socket.accept") void tcp_accept(uint32_t, net_handle *);
NET("tcp", "[method]tcp-socket.is-listening") uint32_t tcp_is_listening(uint32_t);
NET("tcp", "[method]tcp-socket.address-family") uint32_t tcp_family(uint32_t);
NET("tcp", "[method]tcp-socket.keep-alive-enabled") void tcp_keep_alive(uint32_t, net_done *);
NET("tcp", "[method]tcp-socket.set-keep-alive-enabled") void tcp_set_keep_alive(uint32_t, uint32_t, net_done *);
NET("tcp", "[method]tcp-socket.hop-limit") void tcp_hop_limit(uint32_t, net_done *);
NET("tcp", "[method]tcp-socket.set-hop-limit") void tcp_set_hop_limit(uint32_t, uint32_t, net_done *);
typedef struct { uint8_t is_err; struct { uint8_t ipv6; struct { uint16_t port; uint8_t v4[26]; } at __attribute__((aligned(4))); }
    value __attribute__((aligned(4))); } net_where;
NET("tcp", "[method]tcp-socket.remote-address") void tcp_remote(uint32_t, net_where *);
NET("tcp", "[method]tcp-socket.local-address") void tcp_local(uint32_t, net_where *);
NET("network", "network-error-code") void net_error_code(uint32_t, net_done *);
NET("udp-create-socket", "create-udp-socket") void udp_create(uint32_t, net_handle *);
IO("poll", "poll") void io_poll(const uint32_t *, uint32_t, bytes *);
IO("streams", "[method]input-stream.subscribe") uint32_t input_subscribe(uint32_t);
IO("streams", "[method]input-stream.read") void input_try_read(uint32_t, uint64_t, io_bytes *);
IO("streams", "[method]output-stream.check-write") void output_room(uint32_t, io_room *);
IO("streams", "[method]output-stream.write") void output_try_write(uint32_t, const uint8_t *, uint32_t, io_done *);

IMPORT("wasi:clocks/monotonic-clock@0.2.0", "subscribe-duration") uint32_t clock_subscribe(uint64_t);

enum { CONNECTIONS_MAX = 64 };
static uint8_t piece[TCP_READ_MAX];

/* Texts by hand: printf would bring the whole of WASI preview 1 with it. */
static char line[512];
static uint32_t length;
static void add(const char *text) {
    uint32_t size = strlen(text);
    if (length + size >= sizeof line) __builtin_trap();
    memcpy(line + length, text, size + 1);
    length += size;
}
static void add_number(uint32_t value) {
    char digits[11] = {0}, *at = digits + 10;
    do *--at = '0' + value % 10; while (value /= 10);
    add(at);
}
static void add_v4(const uint8_t *at) {
    for (int part = 0; part < 4; part++) {
        if (part) add(".");
        add_number(at[part]);
    }
}

static void *failed(int code) { return error_text(net_names[code]); }

static void *plain_text(const char *text) {
    static bytes answer;
    answer = (bytes){(uint8_t *)text, strlen(text)};
    return &answer;
}

static void *number(uint64_t value) {
    static result_u64 answer;
    answer.is_err = 0;
    answer.value.number = value;
    return &answer;
}

static void *no_number(const char *text) {
    static result_u64 answer;
    answer.is_err = 1;
    answer.value.error = (bytes){(uint8_t *)text, strlen(text)};
    return &answer;
}

EXPORT("exchange") void *exchange(uint8_t *host, uint32_t host_size, uint32_t port, uint8_t *data, uint32_t size) {
    tcp server;
    bytes got;
    uint8_t *all = NULL;
    uint32_t total = 0;
    int code = tcp_connect(host, host_size, port, &server), ended;
    if (code != NET_OK) return failed(code);
    if (tcp_write(&server, data, size) || tcp_end(&server)) return error_text("cut while writing");
    while (!(ended = tcp_read(&server, &got))) {
        all = realloc(all, total + got.size);
        memcpy(all + total, got.data, got.size);
        total += got.size;
        free(got.data);
    }
    tcp_close(&server);
    return ended == 1 ? ok_bytes(all, total) : error_text("cut while reading");
}

static struct { uint8_t is_err; union { uint32_t number; bytes error; } value; } which;
static void *ready_is(uint32_t number) {
    which.is_err = 0;
    which.value.number = number;
    return &which;
}
static void *none_is_ready(int code) {
    which.is_err = 1;
    which.value.error = (bytes){(uint8_t *)net_names[code], strlen(net_names[code])};
    return &which;
}

EXPORT("wait-until") void *wait_until(uint8_t *host, uint32_t host_size, uint32_t port, uint8_t *say, uint32_t say_size,
                                      uint32_t milliseconds) {
    tcp server;
    bytes ready;
    int code = tcp_connect(host, host_size, port, &server);
    if (code != NET_OK) return none_is_ready(code);
    if (tcp_write(&server, say, say_size)) return none_is_ready(NET_RESET);
    uint32_t waiting[] = {input_subscribe(server.input), clock_subscribe(milliseconds * 1000000ull)};
    io_poll(waiting, 2, &ready);
    uint32_t found = 0;
    for (uint32_t at = 0; at < ready.size; at++) found |= 1 << ((uint32_t *)ready.data)[at];
    return ready_is(found);
}

EXPORT("race") void *race(uint8_t *host, uint32_t host_size, uint16_t *ports, uint32_t count) {
    tcp servers[CONNECTIONS_MAX];
    uint32_t waiting[CONNECTIONS_MAX];
    bytes ready;
    io_bytes read;
    for (uint32_t i = 0; i < count; i++) {
        int code = tcp_connect(host, host_size, ports[i], &servers[i]);
        if (code != NET_OK) return none_is_ready(code);
        waiting[i] = input_subscribe(servers[i].input);
        input_try_read(servers[i].input, 1, &read);
        if (read.is_err || read.value.data.size) __builtin_trap(); /* nobody has said anything yet */
    }
    output_write(servers[count - 1].output, (const uint8_t *)"x", 1, &(io_done){0});
    io_poll(waiting, count, &ready);
    return ready_is(ready.size == 1 ? *(uint32_t *)ready.data : CONNECTIONS_MAX);
}

EXPORT("why") void *why(uint8_t *host, uint32_t size, uint32_t port) {
    tcp server;
    io_bytes read;
    net_done code;
    if (tcp_connect(host, size, port, &server) != NET_OK) return plain_text("not connected");
    tcp_write(&server, (const uint8_t *)"x", 1);
    do input_read(server.input, TCP_READ_MAX, &read); while (!read.is_err);
    if (read.value.error.closed) return plain_text("the end");
    net_error_code(read.value.error.error, &code);
    return plain_text(code.is_err ? net_names[code.code] : "no error of a socket");
}

EXPORT("lookup") void *lookup(uint8_t *name, uint32_t size) {
    net_address found;
    int code = net_lookup(name, size, &found);
    if (code != NET_OK) return failed(code);
    if (found.ipv6) return ok_text("ipv6");
    add_v4((uint8_t[]){found.part[0], found.part[1], found.part[2], found.part[3]});
    return ok_text(line);
}

static const char *said(net_done done) { return done.is_err ? net_names[done.code] : "ok"; }

EXPORT("describe") void *describe(uint8_t *host, uint32_t size, uint32_t port) {
    tcp server;
    net_done set, alive, hops_set, hops;
    net_where remote, local;
    int code = tcp_connect(host, size, port, &server);
    if (code != NET_OK) return failed(code);
    tcp_set_keep_alive(server.socket, 1, &set);
    tcp_keep_alive(server.socket, &alive);
    tcp_set_hop_limit(server.socket, 9, &hops_set);
    tcp_hop_limit(server.socket, &hops);
    tcp_remote(server.socket, &remote);
    tcp_local(server.socket, &local);
    add(tcp_family(server.socket) ? "ipv6" : "ipv4");
    add(tcp_is_listening(server.socket) ? ", listening" : "");
    add(", keep-alive ");
    add(said(set));
    add(alive.code ? " and on" : " and off");
    add(", hop-limit ");
    add(said(hops_set));
    add(" and ");
    add(said(hops));
    add(", remote ");
    add_v4(remote.value.at.v4);
    add(":");
    add_number(remote.value.at.port);
    add(", local port ");
    add_number(local.value.at.port);
    return ok_text(line);
}

EXPORT("hoard") uint32_t hoard(uint32_t count) {
    net_handle socket;
    for (uint32_t had = 0; had < count; had++) {
        tcp_create(0, &socket);
        if (socket.is_err) return had;
    }
    return count;
}

EXPORT("crowd") uint32_t crowd(uint8_t *host, uint32_t size, uint32_t port, uint32_t count) {
    tcp server;
    for (uint32_t had = 0; had < count; had++)
        if (tcp_connect(host, size, port, &server) != NET_OK) return had;
    return count;
}

EXPORT("churn") uint32_t churn(uint8_t *host, uint32_t size, uint32_t port, uint32_t count) {
    net_address address;
    net_handle socket;
    uint32_t had = 0;
    if (net_lookup(host, size, &address) != NET_OK) return 0;
    while (count--) {
        tcp_create(0, &socket);
        if (socket.is_err) continue;
        tcp_begin(socket.value.handle, &address, port);
        tcp_drop(socket.value.handle);
        had++;
    }
    return had;
}

EXPORT("drain") void *drain(uint8_t *host, uint32_t size, uint32_t port) {
    tcp server;
    bytes got;
    uint64_t total = 0;
    int code = tcp_connect(host, size, port, &server), ended;
    if (code != NET_OK) return no_number(net_names[code]);
    while (!(ended = tcp_read(&server, &got))) {
        total += got.size;
        free(got.data);
    }
    return ended == 1 ? number(total) : no_number("cut while reading");
}

EXPORT("flood") void *flood(uint8_t *host, uint32_t size, uint32_t port) {
    tcp server;
    int code = tcp_connect(host, size, port, &server);
    if (code != NET_OK) return no_number(net_names[code]);
    while (!tcp_write(&server, piece, sizeof piece)) continue;
    return no_number("cut while writing");
}

EXPORT("wait") void *wait(uint8_t *host, uint32_t size, uint32_t port) {
    tcp server;
    bytes got;
    int code = tcp_connect(host, size, port, &server);
    if (code != NET_OK) return no_number(net_names[code]);
    switch (tcp_read(&server, &got)) {
        case 0: return number(got.size);
        case 1: return number(0);
        default: return no_number("cut while reading");
    }
}

EXPORT("idle") void idle(uint8_t *host, uint32_t size, uint32_t port) {
    tcp server;
    if (tcp_connect(host, size, port, &server) != NET_OK) return;
    for (volatile uint32_t turn = 0;; turn++) continue;
}

EXPORT("crash") void crash(uint8_t *host, uint32_t host_size, uint32_t port, uint8_t *data, uint32_t size) {
    tcp server;
    if (tcp_connect(host, host_size, port, &server) != NET_OK) return;
    tcp_write(&server, data, size);
    __builtin_trap();
}

EXPORT("overrun") void overrun(uint8_t *host, uint32_t size, uint32_t port) {
    tcp server;
    io_room room;
    io_done done;
    if (tcp_connect(host, size, port, &server) != NET_OK) return;
    for (;;) { /* each write is within the first answer, all of them together are not */
        output_room(server.output, &room);
        if (room.is_err) return;
        output_try_write(server.output, piece, sizeof piece, &done);
    }
}

EXPORT("listen") void *listen(void) {
    net_handle socket, accepted;
    net_done bound, listening;
    tcp_create(0, &socket);
    if (socket.is_err) return plain_text(net_names[socket.value.code]);
    tcp_start_bind(socket.value.handle, net_handle_of(), 0, 8080, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, &bound);
    tcp_start_listen(socket.value.handle, &listening);
    tcp_accept(socket.value.handle, &accepted);
    add("bind ");
    add(said(bound));
    add(", listen ");
    add(said(listening));
    add(", accept ");
    add(net_names[accepted.value.code]);
    return plain_text(line);
}

EXPORT("udp") void *udp(void) {
    net_handle socket;
    udp_create(0, &socket);
    return plain_text(socket.is_err ? net_names[socket.value.code] : "ok");
}
