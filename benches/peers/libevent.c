/*
 * An echo server on libevent's bufferevents, in one thread.
 *
 *     libevent [--framed] [--timeout] 127.0.0.1:0
 *
 * An echo moves the input to the output without a copy. With --timeout each bufferevent has a read
 * timeout, in libevent's queue for timeouts that are all as long. While a peer does not read its
 * replies, no more is read from it.
 */

#define _GNU_SOURCE
#include "peer.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

enum { OWED_MAX = BUFFER_BYTES };

static struct peer_options options;
static struct event_base *base;
static struct evconnlistener *listener;
static const struct timeval *timeout; /* NULL: none */
static bool accept_paused;

static void accept_one(struct evconnlistener *source, evutil_socket_t fd,
                       struct sockaddr *address, int len, void *context);
static void pause_accepting(struct evconnlistener *source, void *context);
static void echo(struct bufferevent *conn, void *context);
static void answer(struct bufferevent *conn, void *context);
static void resume_reading(struct bufferevent *conn, void *context);
static void end(struct bufferevent *conn, short events, void *context);
static void close_connection(struct bufferevent *conn);
static void die(const char *what);

int main(int argc, char **argv)
{
    options = parse_peer_options(argc, argv, event_get_version());
    exit_on_termination();
    raise_descriptor_limit();

    /* Nothing here is shared with a thread, and no descriptor is duplicated. */
    struct event_config *config = event_config_new();
    if (!config)
        die("event_config_new");
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST);
    base = event_base_new_with_config(config);
    if (!base)
        die("event_base_new_with_config");
    event_config_free(config);
    if (options.timeout) {
        const struct timeval each = { .tv_sec = TIMEOUT_S };
        timeout = event_base_init_common_timeout(base, &each);
    }

    const unsigned flags = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE;
    listener = evconnlistener_new_bind(base, accept_one, NULL, flags, SOMAXCONN,
                                       (struct sockaddr *)&options.address,
                                       sizeof options.address);
    if (!listener)
        die("evconnlistener_new_bind");
    evconnlistener_set_error_cb(listener, pause_accepting);
    /* Linux hands the option down to every accepted socket. */
    const int on = 1;
    if (setsockopt(evconnlistener_get_fd(listener), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
        die("TCP_NODELAY");
    print_address(evconnlistener_get_fd(listener));
    event_base_dispatch(base);
    die("event_base_dispatch");
}

/* libevent accepts until there is none left before it waits again. */
static void accept_one(struct evconnlistener *source, evutil_socket_t fd,
                       struct sockaddr *address, int len, void *context)
{
    (void)source, (void)address, (void)len, (void)context;
    struct bufferevent *conn = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!conn) {
        evutil_closesocket(fd);
        return;
    }
    bufferevent_setcb(conn, options.framed ? answer : echo, NULL, end, NULL);
    if (timeout)
        bufferevent_set_timeouts(conn, timeout, NULL);
    bufferevent_enable(conn, EV_READ | EV_WRITE);
}

static void pause_accepting(struct evconnlistener *source, void *context)
{
    (void)context;
    evconnlistener_disable(source);
    accept_paused = true;
}

static void pause_if_owing(struct bufferevent *conn, struct evbuffer *output)
{
    if (evbuffer_get_length(output) <= OWED_MAX)
        return;
    bufferevent_disable(conn, EV_READ);
    bufferevent_setcb(conn, NULL, resume_reading, end, NULL);
}

static void echo(struct bufferevent *conn, void *context)
{
    (void)context;
    struct evbuffer *output = bufferevent_get_output(conn);
    if (evbuffer_add_buffer(output, bufferevent_get_input(conn)))
        close_connection(conn);
    else
        pause_if_owing(conn, output);
}

static void answer(struct bufferevent *conn, void *context)
{
    (void)context;
    struct evbuffer *input = bufferevent_get_input(conn);
    struct evbuffer *output = bufferevent_get_output(conn);
    size_t len = evbuffer_get_length(input);
    struct evbuffer_iovec space;
    if (len == 0)
        return;
    /* The replies are written where the output has room for them. */
    const char *bytes = (const char *)evbuffer_pullup(input, -1);
    if (!bytes || evbuffer_reserve_space(output, len, &space, 1) != 1) {
        close_connection(conn);
        return;
    }
    ssize_t answered = answer_lines(bytes, len, space.iov_base);
    if (answered < 0) {
        close_connection(conn);
        return;
    }
    space.iov_len = answered;
    evbuffer_commit_space(output, &space, 1);
    evbuffer_drain(input, answered);
    pause_if_owing(conn, output);
}

/* All that was owed has left. */
static void resume_reading(struct bufferevent *conn, void *context)
{
    bufferevent_data_cb serve = options.framed ? answer : echo;
    bufferevent_setcb(conn, serve, NULL, end, NULL);
    bufferevent_enable(conn, EV_READ);
    serve(conn, context);
}

static void end(struct bufferevent *conn, short events, void *context)
{
    (void)events, (void)context;
    close_connection(conn);
}

static void close_connection(struct bufferevent *conn)
{
    bufferevent_free(conn);
    if (accept_paused) {
        accept_paused = false;
        evconnlistener_enable(listener);
    }
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}
