/*
 * A closed-loop load generator for echo servers.
 *
 * Each of N connections keeps K messages in flight and begins the next one when a reply is
 * complete, so the server sets the pace. Every byte that comes back is compared with what was
 * sent. The result is one line of JSON; the exit status is 1 if the server misbehaved (lost,
 * changed or invented bytes, closed or reset a connection, or fell silent), 2 for a usage error.
 *
 * --churn opens a connection for each message instead: connect, one echo, close. The close is a
 * reset (SO_LINGER with a timeout of zero), made only after the whole reply has arrived: an
 * orderly close would leave each of tens of thousands of connections a second in TIME_WAIT on
 * this side, and the ephemeral ports would run out within a second or two.
 */

#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    EVENTS_PER_TURN = 1024,
    SILENCE_MAX_S = 10,            /* a server that answers nothing for this long has failed */
    IN_FLIGHT_BYTES_MAX = 1 << 26, /* per connection; bounds the two buffers */
    SUB_BUCKET_BITS = 6,           /* latencies are kept to one part in 64 */
    SUB_BUCKETS = 1 << SUB_BUCKET_BITS,
    BUCKETS = (64 - SUB_BUCKET_BITS + 1) * SUB_BUCKETS,
};

static const char USAGE[] =
    "usage: load --addr IPV4:PORT --conns N --size BYTES [options]\n"
    "  --pipeline K      messages in flight on each connection (default 1)\n"
    "  --messages TOTAL  stop after exactly this many messages\n"
    "  --seconds S       stop beginning messages after this long (default 2)\n"
    "  --framed          messages are lines, PING and a text, answered by PONG and the text\n"
    "  --churn           one connection per message, N at a time\n"
    "  --hold            print `connected` and wait for a line on stdin before the first\n"
    "                    message; keep the connections after the last until stdin ends\n";

struct options {
    struct sockaddr_in address;
    uint64_t conns;
    uint64_t size;
    uint64_t pipeline;
    uint64_t messages; /* 0: bounded by time */
    double seconds;
    bool framed;
    bool churn;
    bool hold;
};

/* Byte counts are cumulative: message m of a connection is bytes [m * size, (m + 1) * size). */
struct conn {
    int fd;
    bool wants_out; /* registered for EPOLLOUT as well */
    uint64_t begun;
    uint64_t sent;
    uint64_t received;
    uint64_t *begun_at_ns; /* ring: message m at index m % pipeline */
};

static struct options options = { .pipeline = 1, .seconds = 2 };
static int epoll;
static struct conn *conns;
static char *payload; /* the message, repeated pipeline + 1 times */
static char *expected; /* the reply, likewise */
static char *scratch; /* room for all that may be in flight, and one byte that may not */
static uint64_t start_ns;
static uint64_t stop_ns;
static uint64_t last_reply_ns;
static uint64_t begun;
static uint64_t completed;
static uint64_t histogram[BUCKETS];
static uint64_t latency_max_ns;

static void parse_options(int argc, char **argv);
static uint64_t parse_count(const char *text, uint64_t max);
static void allocate(void);
static void frame(void);
static void run(void);
static void open_connection(struct conn *conn);
static void begin_messages(struct conn *conn, uint64_t now_ns);
static bool may_begin(uint64_t now_ns);
static void handle_event(struct conn *conn, uint32_t events);
static void flush(struct conn *conn);
static void receive(struct conn *conn);
static void reset_connection(struct conn *conn);
static void control(int operation, struct conn *conn, uint32_t events);
static void expect_silence(void);
static void print_result(void);
static void record_latency(uint64_t latency_ns);
static double percentile_us(double share);
static uint64_t clock_ns(void);
static void *zeroed(size_t count, size_t bytes);
static void usage(void) __attribute__((noreturn));
static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    raise_descriptor_limit();
    allocate();
    if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
        fail("epoll_create1: %s", strerror(errno));
    if (!options.churn)
        for (uint64_t i = 0; i < options.conns; i++)
            open_connection(&conns[i]);
    if (options.hold) {
        puts("connected");
        fflush(stdout);
        while (getchar() != '\n' && !feof(stdin))
            ;
    }
    run();
    if (!options.churn)
        expect_silence();
    print_result();
    if (options.hold)
        while (getchar() != EOF)
            ;
    return 0;
}

static void parse_options(int argc, char **argv)
{
    static const struct option known[] = {
        { "addr", required_argument, NULL, 'a' },
        { "churn", no_argument, NULL, 'x' },
        { "conns", required_argument, NULL, 'c' },
        { "framed", no_argument, NULL, 'f' },
        { "hold", no_argument, NULL, 'h' },
        { "messages", required_argument, NULL, 'm' },
        { "pipeline", required_argument, NULL, 'k' },
        { "seconds", required_argument, NULL, 's' },
        { "size", required_argument, NULL, 'b' },
        { NULL, 0, NULL, 0 },
    };
    bool has_address = false;
    bool has_seconds = false;
    char *end;
    for (int option; (option = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (option) {
        case 'a':
            has_address = parse_address(optarg, &options.address);
            break;
        case 'b':
            options.size = parse_count(optarg, IN_FLIGHT_BYTES_MAX);
            break;
        case 'c':
            options.conns = parse_count(optarg, 1 << 20);
            break;
        case 'f':
            options.framed = true;
            break;
        case 'h':
            options.hold = true;
            break;
        case 'k':
            options.pipeline = parse_count(optarg, IN_FLIGHT_BYTES_MAX);
            break;
        case 'm':
            options.messages = parse_count(optarg, UINT64_MAX);
            break;
        case 's':
            options.seconds = strtod(optarg, &end);
            if (end == optarg || *end || !(options.seconds > 0 && options.seconds <= 86400))
                usage();
            has_seconds = true;
            break;
        case 'x':
            options.churn = true;
            break;
        default:
            usage();
        }
    }
    if (optind != argc || !has_address || !options.conns || !options.size)
        usage();
    if (options.size * options.pipeline > IN_FLIGHT_BYTES_MAX)
        usage();
    if (options.framed && options.size < sizeof "PING \n" - 1)
        usage();
    if ((options.messages && has_seconds) || (options.churn && options.pipeline != 1))
        usage();
}

static uint64_t parse_count(const char *text, uint64_t max)
{
    char *end;
    errno = 0;
    unsigned long long count = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || count == 0 || count > max)
        usage();
    return count;
}

static void allocate(void)
{
    conns = zeroed(options.conns, sizeof *conns);
    for (uint64_t i = 0; i < options.conns; i++)
        conns[i].begun_at_ns = zeroed(options.pipeline, sizeof(uint64_t));

    scratch = zeroed(options.pipeline * options.size + 1, 1);
    payload = zeroed(options.pipeline + 1, options.size);
    for (uint64_t i = 0; i < (options.pipeline + 1) * options.size; i++)
        payload[i] = (i % options.size) * 31 + 7;
    expected = payload;
    if (options.framed)
        frame();
}

/* Makes lines of the messages. A reply is as long as its request. */
static void frame(void)
{
    uint64_t len = (options.pipeline + 1) * options.size;
    expected = zeroed(len, 1);
    for (uint64_t i = 0; i < len; i += options.size) {
        char *line = payload + i;
        memset(line, 'x', options.size);
        memcpy(line, "PING ", 5);
        line[options.size - 1] = '\n';
        memcpy(expected + i, line, options.size);
        expected[i + 1] = 'O';
    }
}

static void run(void)
{
    start_ns = last_reply_ns = clock_ns();
    stop_ns = start_ns + (uint64_t)(options.seconds * 1e9);
    for (uint64_t i = 0; i < options.conns && may_begin(start_ns); i++) {
        uint64_t now_ns = clock_ns();
        if (options.churn)
            open_connection(&conns[i]);
        begin_messages(&conns[i], now_ns);
    }

    static struct epoll_event events[EVENTS_PER_TURN];
    while (completed < begun) {
        int ready = epoll_wait(epoll, events, EVENTS_PER_TURN, SILENCE_MAX_S * 1000);
        if (ready < 0 && errno != EINTR)
            fail("epoll_wait: %s", strerror(errno));
        if (ready == 0)
            fail("%d s without a byte, %llu of %llu messages unanswered", SILENCE_MAX_S,
                 (unsigned long long)(begun - completed), (unsigned long long)begun);
        for (int i = 0; i < ready; i++)
            handle_event(events[i].data.ptr, events[i].events);
    }
}

/*
 * Connecting blocks, and all else says MSG_DONTWAIT: the kernel completes a handshake on loopback
 * without the server's help, so there is nothing to overlap with unless the backlog is full.
 */
static void open_connection(struct conn *conn)
{
    const int on = 1;
    const struct timeval patience = { .tv_sec = SILENCE_MAX_S };
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (conn->fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(conn->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(conn->fd, (struct sockaddr *)&options.address, sizeof options.address))
        fail("connect: %s", strerror(errno));
    control(EPOLL_CTL_ADD, conn, EPOLLIN);
}

static void begin_messages(struct conn *conn, uint64_t now_ns)
{
    while (conn->begun - conn->received / options.size < options.pipeline && may_begin(now_ns)) {
        conn->begun_at_ns[conn->begun % options.pipeline] = now_ns;
        conn->begun++;
        begun++;
    }
    flush(conn);
}

static bool may_begin(uint64_t now_ns)
{
    return options.messages ? begun < options.messages : now_ns < stop_ns;
}

static void handle_event(struct conn *conn, uint32_t events)
{
    if (events & EPOLLOUT)
        flush(conn);
    /* Errors and hang-ups are told by recv. */
    if (events & ~EPOLLOUT)
        receive(conn);
}

static void flush(struct conn *conn)
{
    uint64_t target = conn->begun * options.size;
    while (conn->sent < target) {
        ssize_t sent = send(conn->fd, payload + conn->sent % options.size, target - conn->sent,
                            MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            break;
        if (sent < 0)
            fail("send: %s", strerror(errno));
        conn->sent += sent;
    }
    bool wants_out = conn->sent < target;
    if (wants_out != conn->wants_out) {
        conn->wants_out = wants_out;
        control(EPOLL_CTL_MOD, conn, wants_out ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
}

static void receive(struct conn *conn)
{
    ssize_t received = recv(conn->fd, scratch, options.pipeline * options.size + 1, MSG_DONTWAIT);
    if (received < 0 && errno == EAGAIN)
        return;
    if (received < 0)
        fail("recv: %s", strerror(errno));
    if (received == 0)
        fail("the server closed a connection that was owed %llu bytes",
             (unsigned long long)(conn->begun * options.size - conn->received));
    if ((uint64_t)received > conn->sent - conn->received)
        fail("%llu bytes more came back than were sent",
             (unsigned long long)(received - (conn->sent - conn->received)));
    if (memcmp(scratch, expected + conn->received % options.size, received))
        fail("other bytes came back than were sent");

    uint64_t now_ns = clock_ns();
    uint64_t message = conn->received / options.size;
    conn->received += received;
    for (; message < conn->received / options.size; message++) {
        record_latency(now_ns - conn->begun_at_ns[message % options.pipeline]);
        last_reply_ns = now_ns;
        completed++;
    }
    if (options.churn && conn->received == options.size) {
        reset_connection(conn);
        if (!may_begin(now_ns))
            return;
        open_connection(conn);
    }
    begin_messages(conn, now_ns);
}

static void reset_connection(struct conn *conn)
{
    const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
    if (setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once))
        fail("SO_LINGER: %s", strerror(errno));
    close(conn->fd);
    *conn = (struct conn){ .fd = -1, .begun_at_ns = conn->begun_at_ns };
}

static void control(int operation, struct conn *conn, uint32_t events)
{
    struct epoll_event event = { .events = events, .data.ptr = conn };
    if (epoll_ctl(epoll, operation, conn->fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
}

/* Every reply is in: a connection that still has something to say is wrong. */
static void expect_silence(void)
{
    for (uint64_t i = 0; i < options.conns; i++) {
        ssize_t received = recv(conns[i].fd, scratch, 1, MSG_DONTWAIT);
        if (received > 0)
            fail("bytes came back after the last reply");
        if (received == 0)
            fail("the server closed a connection after its last reply");
        if (errno != EAGAIN)
            fail("recv after the last reply: %s", strerror(errno));
    }
}

static void print_result(void)
{
    double seconds = (last_reply_ns - start_ns) / 1e9;
    printf("{\"messages\": %llu, \"seconds\": %.6f, \"rate\": %.1f, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}\n",
           (unsigned long long)completed, seconds, seconds > 0 ? completed / seconds : 0,
           percentile_us(0.50), percentile_us(0.99), latency_max_ns / 1e3);
    fflush(stdout);
}

/* Bucket i below SUB_BUCKETS holds i ns; above, each power of two is cut into SUB_BUCKETS. */
static void record_latency(uint64_t latency_ns)
{
    uint64_t bucket = latency_ns;
    if (latency_ns >= SUB_BUCKETS) {
        int shift = 63 - __builtin_clzll(latency_ns) - SUB_BUCKET_BITS;
        bucket = (shift + 1) * SUB_BUCKETS + (latency_ns >> shift) % SUB_BUCKETS;
    }
    histogram[bucket]++;
    if (latency_ns > latency_max_ns)
        latency_max_ns = latency_ns;
}

static double percentile_us(double share)
{
    uint64_t passed = 0;
    for (uint64_t bucket = 0; bucket < BUCKETS; bucket++) {
        passed += histogram[bucket];
        if (passed == 0 || passed < share * completed)
            continue;
        if (bucket < SUB_BUCKETS)
            return bucket / 1e3;
        int shift = bucket / SUB_BUCKETS - 1;
        return ((SUB_BUCKETS + bucket % SUB_BUCKETS) << shift) / 1e3;
    }
    return 0;
}

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void *zeroed(size_t count, size_t bytes)
{
    void *memory = calloc(count, bytes);
    if (!memory)
        fail("out of memory");
    return memory;
}

static void usage(void)
{
    fputs(USAGE, stderr);
    exit(2);
}

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}
