/* A TLS 1.3 load generator for one machine: cheap, single-threaded, never resuming a session.
 *
 *   load keepalive  N connections, a request on each as soon as its last one is answered (or --rate a second in all)
 *   load connect    N at a time: connect, full handshake, one request, close; then the next
 *   load idle       open N, one request on each, say so, hold them until stdin ends
 *
 * Prints one JSON object. CPU time of the processes named by --pid is read here, at both edges of the measured window,
 * from their CPU clocks (clock_getcpuclockid(3), nanoseconds, all threads), so start-up and handshakes stay outside it.
 * wrk does neither full handshakes (it resumes) nor latency per connection, which is why this exists.
 *
 * Not a general HTTP client: it wants status 200 and a Content-Length, and calls everything else an error.
 * Times are nanoseconds of CLOCK_MONOTONIC. Invariant: every connection is in exactly one state of `enum state`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "histogram.h"

enum {
    PIDS_MAX = 64,
    EVENTS_MAX = 512,
    HEAD_SIZE_MAX = 16384,
    CHUNK_SIZE = 65536,
    CONNECTIONS_MAX = 60000,
    IDLE_OPENING_MAX = 64, /* handshakes under way at once while `idle` builds up: stays below any backlog */
};
#define STALL_NS 35000000ull  /* a delayed ACK costs 40 ms on Linux (TCP_DELACK_MIN); nothing else here takes as long */
#define GRACE_NS 10000000000ull /* no response for this long is an error, not a latency */

enum state { CLOSED, CONNECTING, HANDSHAKE, WRITING, READING, WAITING, HELD };
enum mode { KEEPALIVE, CONNECT, IDLE };

typedef struct {
    SSL *ssl;
    int fd;
    enum state state;
    uint32_t index;
    uint64_t opened, started, due; /* connect() called; request began; request is to begin (with --rate) */
    size_t written, head_size, body_left;
    char *head;
    uint32_t *histogram; /* BUCKETS counts; keepalive only */
    uint64_t requests;
} Connection;

static struct {
    enum mode mode;
    const char *path;
    int port, count, pids;
    double seconds, warmup, rate;
    size_t upload;
    bool nodelay, split;
    pid_t pid[PIDS_MAX];
} options = {.path = "/", .count = 1, .seconds = 3, .warmup = 0.3, .nodelay = true};

static SSL_CTX *context;
static Connection *connections;
static int epoll_fd, timer_fd = -1;
static char *request;
static size_t request_size, request_head_size;
static uint32_t total[BUCKETS], handshakes[BUCKETS];
static uint64_t window_begin, window_end, cpu_begin[PIDS_MAX], responses, body_bytes, stalls, errors, ready, slowest;
static bool measuring, building;
static char first_error[256];
static unsigned char chunk[CHUNK_SIZE];

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static uint64_t process_cpu_ns(pid_t pid) {
    clockid_t clock;
    struct timespec at;
    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &at) != 0) die("process %d is gone", (int)pid);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static void set_timer(uint64_t at) {
    struct itimerspec value = {.it_value = {.tv_sec = (time_t)(at / 1000000000u), .tv_nsec = (long)(at % 1000000000u)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &value, NULL);
}

static void open_connection(Connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->opened = now_ns();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket: %s", strerror(errno));
    if (options.nodelay) setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) != 0 && errno != EINPROGRESS)
        die("connect to port %d: %s", options.port, strerror(errno));
    c->ssl = SSL_new(context);
    if (!c->ssl || !SSL_set_fd(c->ssl, c->fd)) die("SSL_new failed");
    SSL_set_tlsext_host_name(c->ssl, "localhost");
    SSL_set_connect_state(c->ssl);
    c->state = CONNECTING;
    c->requests = 0;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) != 0) die("epoll_ctl: %s", strerror(errno));
}

static void close_connection(Connection *c) {
    SSL_free(c->ssl);
    close(c->fd);
    c->ssl = NULL;
    c->fd = -1;
    c->state = CLOSED;
}

static void fail(Connection *c, const char *what) {
    unsigned long code = ERR_peek_error();
    if (!errors)
        snprintf(first_error, sizeof first_error, "%s in state %d after %" PRIu64 " requests: %s", what, (int)c->state,
                 c->requests, code ? ERR_reason_error_string(code) : strerror(errno));
    ERR_clear_error();
    errors++;
    if (c->state == HELD) ready--;
    close_connection(c);
}

/* 1 done, 0 would block, -1 failed (the connection is closed). */
static int outcome(Connection *c, int result, const char *what) {
    if (result > 0) return 1;
    int error = SSL_get_error(c->ssl, result);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return 0;
    fail(c, error == SSL_ERROR_ZERO_RETURN ? "the server closed" : what);
    return -1;
}

static void begin_request(Connection *c, uint64_t at) {
    c->started = at;
    c->written = c->head_size = 0;
    c->body_left = SIZE_MAX; /* unknown until the head is whole */
    c->state = WRITING;
}

/* The head is in c->head; returns the bytes after it, -1 while it is not whole, -2 when it is not what we want. */
static ssize_t parse_head(Connection *c) {
    char *end = memmem(c->head, c->head_size, "\r\n\r\n", 4);
    if (!end) return c->head_size < HEAD_SIZE_MAX ? -1 : -2;
    if (memcmp(c->head, "HTTP/1.1 200", 12) != 0) return -2;
    *end = 0;
    char *field = strcasestr(c->head, "\r\ncontent-length:");
    if (!field) return -2;
    c->body_left = strtoull(field + 17, NULL, 10);
    return (ssize_t)(c->head_size - (size_t)(end + 4 - c->head));
}

static void record(Connection *c, uint64_t at) {
    uint64_t took = at - c->started;
    if (!measuring) return;
    responses++;
    total[bucket_of(took)]++;
    if (took > slowest) slowest = took;
    if (took > STALL_NS) stalls++;
    if (c->histogram) c->histogram[bucket_of(took)]++;
}

static void pace(Connection *c, uint64_t at) {
    if (options.rate <= 0) {
        begin_request(c, at);
    } else {
        c->due += (uint64_t)(1e9 * options.count / options.rate);
        if (c->due <= at) {
            begin_request(c, c->due); /* late: the wait counts, as it would for a client that did not wait for us */
        } else {
            c->state = WAITING;
        }
    }
}

static void finish_response(Connection *c) {
    uint64_t at = now_ns();
    c->requests++;
    record(c, at);
    if (options.mode == KEEPALIVE) {
        pace(c, at);
    } else if (options.mode == CONNECT) {
        SSL_shutdown(c->ssl);
        close_connection(c);
        ERR_clear_error();
        open_connection(c);
    } else {
        c->state = HELD;
        ready++;
    }
}

static bool do_write(Connection *c) {
    while (c->written < request_size) {
        /* --split: head and body in two writes, as naive clients do it. */
        size_t end = options.split && c->written < request_head_size ? request_head_size : request_size;
        size_t size = end - c->written < CHUNK_SIZE ? end - c->written : CHUNK_SIZE;
        int result = SSL_write(c->ssl, request + c->written, (int)size);
        if (outcome(c, result, "write") <= 0) return false;
        c->written += (size_t)result;
    }
    c->state = READING;
    return true;
}

static bool do_read(Connection *c) {
    for (;;) {
        bool in_head = c->body_left == SIZE_MAX;
        void *into = in_head ? (void *)(c->head + c->head_size) : (void *)chunk;
        size_t room = in_head ? HEAD_SIZE_MAX - c->head_size : CHUNK_SIZE;
        int result = SSL_read(c->ssl, into, (int)room);
        if (outcome(c, result, "read") <= 0) return false;
        size_t body = (size_t)result;
        if (in_head) {
            c->head_size += (size_t)result;
            ssize_t rest = parse_head(c);
            if (rest == -1) continue;
            if (rest == -2) {
                fail(c, "no 200 with a Content-Length");
                return false;
            }
            body = (size_t)rest;
        }
        if (body > c->body_left) {
            fail(c, "more bytes than the response has");
            return false;
        }
        c->body_left -= body;
        if (measuring) body_bytes += body;
        if (c->body_left == 0) {
            finish_response(c);
            return c->state == WRITING;
        }
    }
}

static void advance(Connection *c, uint32_t events) {
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) return;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            errno = error;
            fail(c, "connect");
            return;
        }
        c->state = HANDSHAKE;
    }
    if (c->state == HANDSHAKE) {
        if (outcome(c, SSL_do_handshake(c->ssl), "handshake") <= 0) return;
        uint64_t at = now_ns();
        if (measuring) handshakes[bucket_of(at - c->opened)]++;
        begin_request(c, options.mode == KEEPALIVE ? at : c->opened);
        if (options.mode == KEEPALIVE && building) {
            ready++;
            c->state = HELD; /* nobody starts before all are connected */
            return;
        }
    }
    while (c->state == WRITING && do_write(c)) {}
    if (c->state == READING && do_read(c))
        while (c->state == WRITING && do_write(c)) {}
    if (c->state == HELD || c->state == WAITING) {
        /* Session tickets may come now; a close may too, and is an error: nobody asked for it. */
        int result = SSL_read(c->ssl, chunk, CHUNK_SIZE);
        if (result > 0) fail(c, "bytes nobody asked for");
        else (void)outcome(c, result, "idle");
    }
}

static void start_waiting(uint64_t at) {
    uint64_t next = UINT64_MAX;
    for (int i = 0; i < options.count; i++) {
        Connection *c = &connections[i];
        if (c->state != WAITING) continue;
        if (c->due <= at) {
            begin_request(c, c->due);
            while (c->state == WRITING && do_write(c)) {}
        } else if (c->due < next) {
            next = c->due;
        }
    }
    if (next != UINT64_MAX) set_timer(next);
}

/* Serve events until `until`; with `wanted`, until that many connections are ready. */
static void run_until(uint64_t until, uint64_t wanted) {
    struct epoll_event events[EVENTS_MAX];
    for (uint64_t at = now_ns(); at < until && (!wanted || ready < wanted); at = now_ns()) {
        if (options.rate > 0 && !building) start_waiting(at);
        int wait_ms = (int)((until - at) / 1000000u) + 1;
        int count = epoll_wait(epoll_fd, events, EVENTS_MAX, wait_ms);
        if (count < 0 && errno != EINTR) die("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < count; i++) {
            Connection *c = events[i].data.ptr;
            if (!c) {
                uint64_t expirations;
                if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timer");
            } else if (c->state != CLOSED) {
                advance(c, events[i].events);
            }
        }
        if (errors && (building || options.mode == CONNECT)) die("load: %s", first_error);
    }
}

static void begin_window(void) {
    for (int i = 0; i < options.pids; i++) cpu_begin[i] = process_cpu_ns(options.pid[i]);
    measuring = true;
    window_begin = now_ns();
}

static void print_result(void) {
    uint64_t worst_p99 = 0, elapsed = window_end - window_begin;
    struct rusage own;
    getrusage(RUSAGE_SELF, &own);
    for (int i = 0; i < options.count; i++) {
        const uint32_t *histogram = connections[i].histogram;
        uint64_t p99 = histogram ? percentile(histogram, 0.99) : 0;
        if (p99 > worst_p99) worst_p99 = p99;
    }
    printf("{\"responses\":%" PRIu64 ",\"body_bytes\":%" PRIu64 ",\"elapsed_ns\":%" PRIu64 ",\"errors\":%" PRIu64
           ",\"first_error\":\"%s\",\"stalls\":%" PRIu64 ",\"p50_ns\":%" PRIu64 ",\"p99_ns\":%" PRIu64
           ",\"p999_ns\":%" PRIu64 ",\"max_ns\":%" PRIu64 ",\"worst_connection_p99_ns\":%" PRIu64
           ",\"handshake_p50_ns\":%" PRIu64 ",\"handshake_p99_ns\":%" PRIu64 ",\"held\":%" PRIu64
           ",\"own_cpu_ns\":%" PRIu64 ",\"cpu_ns\":[",
           responses, body_bytes, elapsed, errors, first_error, stalls, percentile(total, 0.5), percentile(total, 0.99),
           percentile(total, 0.999), slowest, worst_p99, percentile(handshakes, 0.5), percentile(handshakes, 0.99), ready,
           (uint64_t)(own.ru_utime.tv_sec + own.ru_stime.tv_sec) * 1000000000u +
               (uint64_t)(own.ru_utime.tv_usec + own.ru_stime.tv_usec) * 1000u);
    for (int i = 0; i < options.pids; i++) printf("%s%" PRIu64, i ? "," : "", cpu_begin[i]);
    printf("]}\n");
    fflush(stdout);
}

static void end_window(void) {
    window_end = now_ns();
    measuring = false;
    for (int i = 0; i < options.pids; i++) cpu_begin[i] = process_cpu_ns(options.pid[i]) - cpu_begin[i];
}

static void build_up(void) {
    uint64_t deadline = now_ns() + GRACE_NS + (uint64_t)options.count * 20000000u;
    building = true;
    for (int opened = 0; opened < options.count;) {
        int next = opened + IDLE_OPENING_MAX < options.count ? opened + IDLE_OPENING_MAX : options.count;
        while (opened < next) open_connection(&connections[opened++]);
        run_until(deadline, (uint64_t)opened);
        if (ready < (uint64_t)opened) die("load: only %" PRIu64 " of %d connections in time", ready, opened);
    }
    building = false;
}

static void run_keepalive(void) {
    build_up();
    uint64_t at = now_ns();
    for (int i = 0; i < options.count; i++) {
        Connection *c = &connections[i];
        if (options.rate > 0) {
            c->due = at + (uint64_t)(1e9 * i / options.rate);
            c->state = WAITING;
        } else {
            begin_request(c, now_ns());
            do_write(c);
        }
    }
    run_until(now_ns() + (uint64_t)(options.warmup * 1e9), 0);
    begin_window();
    run_until(window_begin + (uint64_t)(options.seconds * 1e9), 0);
    end_window();
    uint64_t late = now_ns();
    for (int i = 0; i < options.count; i++) {
        Connection *c = &connections[i];
        if ((c->state == WRITING || c->state == READING) && late - c->started > GRACE_NS) fail(c, "no response");
    }
    print_result();
}

static void run_connect(void) {
    for (int i = 0; i < options.count; i++) open_connection(&connections[i]);
    run_until(now_ns() + (uint64_t)(options.warmup * 1e9), 0);
    begin_window();
    run_until(window_begin + (uint64_t)(options.seconds * 1e9), 0);
    end_window();
    print_result();
}

static void run_idle(void) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char byte;
    build_up();
    printf("ready\n");
    fflush(stdout);
    /* Wake four times a second to see closes; the servers are what is measured, not we. */
    for (;;) {
        run_until(now_ns() + 1000000u, 0);
        if (poll(&input, 1, 250) > 0 && read(STDIN_FILENO, &byte, 1) <= 0) break;
    }
    begin_window();
    end_window();
    print_result();
}

static void make_request(void) {
    char head[1024];
    const char *last = options.mode == CONNECT ? "Connection: close\r\n" : "";
    int size = options.upload
                   ? snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: load\r\nAccept: */*\r\n%s"
                              "Content-Type: application/octet-stream\r\nContent-Length: %zu\r\n\r\n",
                              options.path, last, options.upload)
                   : snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: load\r\nAccept: */*\r\n%s\r\n",
                              options.path, last);
    if (size <= 0 || (size_t)size >= sizeof head) die("--path is too long");
    request_head_size = (size_t)size;
    request_size = request_head_size + options.upload;
    request = malloc(request_size);
    if (!request) die("out of memory");
    memcpy(request, head, request_head_size);
    memset(request + request_head_size, 'x', options.upload);
}

static double number(const char *text, double low, double high) {
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= low && value <= high)) die("'%s' is not a number from %g to %g", text, low, high);
    return value;
}

static void parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"port", 1, 0, 'p'},   {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'}, {"warmup", 1, 0, 'w'},
        {"path", 1, 0, 'u'},   {"upload", 1, 0, 'b'},      {"rate", 1, 0, 'r'},    {"pid", 1, 0, 'i'},
        {"nagle", 0, 0, 'n'},  {"split", 0, 0, 'x'},       {0, 0, 0, 0},
    };
    if (argc < 2) die("usage: load keepalive|connect|idle --port N [options]");
    if (!strcmp(argv[1], "keepalive")) options.mode = KEEPALIVE;
    else if (!strcmp(argv[1], "connect")) options.mode = CONNECT;
    else if (!strcmp(argv[1], "idle")) options.mode = IDLE;
    else die("unknown mode '%s'", argv[1]);
    for (int option; (option = getopt_long(argc - 1, argv + 1, "", names, NULL)) != -1;) {
        switch (option) {
        case 'p': options.port = (int)number(optarg, 1, 65535); break;
        case 'c': options.count = (int)number(optarg, 1, CONNECTIONS_MAX); break;
        case 's': options.seconds = number(optarg, 0.01, 3600); break;
        case 'w': options.warmup = number(optarg, 0, 60); break;
        case 'u': options.path = optarg; break;
        case 'b': options.upload = (size_t)number(optarg, 0, 1 << 30); break;
        case 'r': options.rate = number(optarg, 0, 1e7); break;
        case 'n': options.nodelay = false; break;
        case 'x': options.split = true; break;
        case 'i':
            if (options.pids == PIDS_MAX) die("more than %d --pid", PIDS_MAX);
            options.pid[options.pids++] = (pid_t)number(optarg, 1, 1 << 30);
            break;
        default: exit(2);
        }
    }
    if (!options.port) die("--port is missing");
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < (rlim_t)options.count + 64) die("the descriptor limit is %lu", (unsigned long)files.rlim_cur);
    make_request();
    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) || !SSL_CTX_set1_groups_list(context, "X25519:P-256"))
        die("no TLS 1.3 in this OpenSSL");
    /* The servers are measured, not checked: verifying their chain would only load the cores that they run on. */
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  (options.mode == IDLE ? SSL_MODE_RELEASE_BUFFERS : 0));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc((size_t)options.count, sizeof *connections);
    if (epoll_fd < 0 || !connections) die("no epoll or no memory");
    if (options.rate > 0) {
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        if (timer_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event) != 0) die("no timer");
    }
    for (int i = 0; i < options.count; i++) {
        Connection *c = &connections[i];
        c->index = (uint32_t)i;
        c->head = malloc(HEAD_SIZE_MAX);
        if (options.mode == KEEPALIVE && options.count <= 1024) c->histogram = calloc(BUCKETS, sizeof *c->histogram);
        if (!c->head || (options.mode == KEEPALIVE && options.count <= 1024 && !c->histogram)) die("out of memory");
    }
    if (options.mode == KEEPALIVE) run_keepalive();
    else if (options.mode == CONNECT) run_connect();
    else run_idle();
    return errors ? 1 : 0;
}
