/*
 * The baseline: the least an echo server can do and still be correct.
 *
 * One thread, level-triggered epoll, one recv and one send per message, no deadlines and no
 * limits. A reply the socket does not take whole is kept, and nothing more is read from that
 * connection until it is gone, so a peer that never reads costs at most one buffer. With --framed
 * the replies to all the lines that one recv brought leave in one send.
 *
 *     epoll [--framed] 127.0.0.1:0
 *
 * prints "listening on ADDR" once it accepts, and exits 0 on SIGTERM or SIGINT.
 */

#define _GNU_SOURCE
#include "peer.h"

#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>

enum {
    EVENTS_PER_TURN = 1024,
    DESCRIPTORS_MAX = 1 << 20, /* indexes `rests` and `lines`; pages never touched take no memory */
};

/* The part of a reply that the socket has not taken yet. */
struct rest {
    char *bytes; /* NULL: nothing is owed, the connection waits for input */
    size_t sent;
    size_t len;
};

/* The front of a line whose end has not come. */
struct line {
    char *bytes; /* NULL: none */
    size_t len;
};

static char buffer[BUFFER_BYTES];
static char replies[BUFFER_BYTES];
static struct rest rests[DESCRIPTORS_MAX];
static struct line lines[DESCRIPTORS_MAX];
static bool framed;
static int epoll;
static int listener;
static bool accept_paused;

static void listen_on(struct sockaddr_in address);
static void accept_all(void);
static void echo(int fd);
static void answer(int fd);
static bool keep_line(int fd, const char *bytes, size_t len);
static inline void reply(int fd, const char *bytes, size_t len);
static void keep_rest(int fd, const char *bytes, size_t len);
static void send_rest(int fd);
static void close_connection(int fd);
static void control(int operation, int fd, uint32_t events);
static void die(const char *what);

int main(int argc, char **argv)
{
    struct peer_options options = parse_peer_options(argc, argv, NULL);
    framed = options.framed;
    exit_on_termination();
    raise_descriptor_limit();
    if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die("epoll_create1");
    listen_on(options.address);

    static struct epoll_event events[EVENTS_PER_TURN];
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS_PER_TURN, -1);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_all();
            else if (rests[fd].bytes)
                send_rest(fd);
            else if (framed)
                answer(fd);
            else
                echo(fd);
        }
    }
}

static void listen_on(struct sockaddr_in address)
{
    const int on = 1;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0)
        die("socket");
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on))
        die("SO_REUSEADDR");
    /* Linux hands the option down to every accepted socket: one call instead of one each. */
    if (setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
        die("TCP_NODELAY");
    if (bind(listener, (struct sockaddr *)&address, sizeof address))
        die("bind");
    if (listen(listener, SOMAXCONN))
        die("listen");
    control(EPOLL_CTL_ADD, listener, EPOLLIN);
    print_address(listener);
}

static void accept_all(void)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= DESCRIPTORS_MAX) {
            close(fd);
        } else if (fd >= 0) {
            control(EPOLL_CTL_ADD, fd, EPOLLIN);
        } else if (errno == EAGAIN) {
            return;
        } else if (errno == EMFILE) {
            /* The listener would wake every turn, being level-triggered; a close resumes it. */
            control(EPOLL_CTL_MOD, listener, 0);
            accept_paused = true;
            return;
        } else if (errno != ECONNABORTED && errno != EINTR) {
            die("accept4");
        }
    }
}

static void echo(int fd)
{
    ssize_t received = recv(fd, buffer, BUFFER_BYTES, 0);
    if (received > 0)
        reply(fd, buffer, received);
    else if (received == 0 || (errno != EAGAIN && errno != EINTR))
        close_connection(fd);
}

static void answer(int fd)
{
    size_t len = lines[fd].bytes ? lines[fd].len : 0;
    if (len)
        memcpy(buffer, lines[fd].bytes, len);
    ssize_t received = recv(fd, buffer + len, BUFFER_BYTES - len, 0);
    if (received <= 0) {
        if (received == 0 || (errno != EAGAIN && errno != EINTR))
            close_connection(fd);
        return;
    }
    len += received;
    ssize_t answered = answer_lines(buffer, len, replies);
    if (answered < 0 || !keep_line(fd, buffer + answered, len - answered))
        close_connection(fd);
    else if (answered > 0)
        reply(fd, replies, answered);
}

static bool keep_line(int fd, const char *bytes, size_t len)
{
    struct line *line = &lines[fd];
    if (len == 0) {
        free(line->bytes);
        line->bytes = NULL;
        return true;
    }
    if (!line->bytes && !(line->bytes = malloc(LINE_BYTES_MAX)))
        return false;
    memcpy(line->bytes, bytes, len);
    line->len = len;
    return true;
}

static inline void reply(int fd, const char *bytes, size_t len)
{
    ssize_t sent = send(fd, bytes, len, MSG_NOSIGNAL);
    if (sent == (ssize_t)len)
        return;
    if (sent >= 0)
        keep_rest(fd, bytes + sent, len - sent);
    else if (errno == EAGAIN || errno == EINTR)
        keep_rest(fd, bytes, len);
    else
        close_connection(fd);
}

static void keep_rest(int fd, const char *bytes, size_t len)
{
    char *copy = malloc(len);
    if (!copy) {
        close_connection(fd);
        return;
    }
    memcpy(copy, bytes, len);
    rests[fd] = (struct rest){ .bytes = copy, .len = len };
    control(EPOLL_CTL_MOD, fd, EPOLLOUT);
}

static void send_rest(int fd)
{
    struct rest *rest = &rests[fd];
    ssize_t sent = send(fd, rest->bytes + rest->sent, rest->len - rest->sent, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            close_connection(fd);
        return;
    }
    rest->sent += sent;
    if (rest->sent == rest->len) {
        free(rest->bytes);
        rest->bytes = NULL;
        control(EPOLL_CTL_MOD, fd, EPOLLIN);
    }
}

static void close_connection(int fd)
{
    free(rests[fd].bytes);
    rests[fd].bytes = NULL;
    if (framed) {
        free(lines[fd].bytes);
        lines[fd].bytes = NULL;
    }
    close(fd);
    if (accept_paused) {
        accept_paused = false;
        control(EPOLL_CTL_MOD, listener, EPOLLIN);
    }
}

static void control(int operation, int fd, uint32_t events)
{
    struct epoll_event event = { .events = events, .data.fd = fd };
    if (epoll_ctl(epoll, operation, fd, &event))
        die("epoll_ctl");
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}
