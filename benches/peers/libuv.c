/*
 * An echo server on libuv, in one thread.
 *
 *     libuv [--framed] [--timeout] 127.0.0.1:0
 *
 * All connections read into one buffer, and a reply is tried at once; what the socket does not take
 * is copied and queued, and until it has left no more is read. With --timeout each connection has a
 * timer that every read starts again.
 */

#define _GNU_SOURCE
#include "peer.h"

#include <uv.h>

struct conn {
    uv_tcp_t tcp;
    char *line; /* the front of a line whose end has not come, or NULL */
    size_t line_len;
    int handles; /* that libuv still has */
    uv_timer_t timer[]; /* one with --timeout */
};

/* The part of a reply that the socket has not taken yet. */
struct rest {
    uv_write_t request;
    char bytes[];
};

static struct peer_options options;
static uv_loop_t *loop;
static char buffer[BUFFER_BYTES];
static char replies[BUFFER_BYTES];

static void accept_one(uv_stream_t *listener, int status);
static void lend_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *lent);
static void serve(uv_stream_t *stream, ssize_t received, const uv_buf_t *lent);
static bool keep_line(struct conn *conn, const char *bytes, size_t len);
static void reply(struct conn *conn, char *bytes, size_t len);
static void resume_reading(uv_write_t *request, int status);
static void time_out(uv_timer_t *timer);
static void close_connection(struct conn *conn);
static void forget(uv_handle_t *handle);
static void check(int status, const char *what);

int main(int argc, char **argv)
{
    options = parse_peer_options(argc, argv, uv_version_string());
    exit_on_termination();
    raise_descriptor_limit();
    loop = uv_default_loop();

    uv_tcp_t listener;
    uv_os_fd_t fd;
    check(uv_tcp_init(loop, &listener), "uv_tcp_init");
    check(uv_tcp_bind(&listener, (struct sockaddr *)&options.address, 0), "uv_tcp_bind");
    /* Linux hands the option down to every accepted socket. */
    check(uv_tcp_nodelay(&listener, 1), "uv_tcp_nodelay");
    check(uv_listen((uv_stream_t *)&listener, SOMAXCONN, accept_one), "uv_listen");
    check(uv_fileno((uv_handle_t *)&listener, &fd), "uv_fileno");
    print_address(fd);
    return uv_run(loop, UV_RUN_DEFAULT);
}

/* libuv accepts until there is none left before it waits again. */
static void accept_one(uv_stream_t *listener, int status)
{
    if (status < 0)
        return;
    struct conn *conn = malloc(sizeof *conn + (options.timeout ? sizeof *conn->timer : 0));
    if (!conn)
        check(UV_ENOMEM, "malloc");
    conn->line = NULL;
    conn->handles = options.timeout ? 2 : 1;
    check(uv_tcp_init(loop, &conn->tcp), "uv_tcp_init");
    conn->tcp.data = conn;
    if (options.timeout) {
        check(uv_timer_init(loop, conn->timer), "uv_timer_init");
        uv_timer_start(conn->timer, time_out, TIMEOUT_S * 1000, TIMEOUT_S * 1000);
        conn->timer->data = conn;
    }
    if (uv_accept(listener, (uv_stream_t *)&conn->tcp) ||
        uv_read_start((uv_stream_t *)&conn->tcp, lend_buffer, serve))
        close_connection(conn);
}

static void lend_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *lent)
{
    (void)suggested;
    struct conn *conn = handle->data;
    size_t before = conn->line ? conn->line_len : 0;
    *lent = uv_buf_init(buffer + before, BUFFER_BYTES - before);
}

static void serve(uv_stream_t *stream, ssize_t received, const uv_buf_t *lent)
{
    struct conn *conn = stream->data;
    (void)lent;
    if (received <= 0) {
        if (received < 0)
            close_connection(conn);
        return;
    }
    if (options.timeout)
        uv_timer_again(conn->timer);
    if (!options.framed) {
        reply(conn, buffer, received);
        return;
    }
    size_t len = received;
    if (conn->line) {
        memcpy(buffer, conn->line, conn->line_len);
        len += conn->line_len;
    }
    ssize_t answered = answer_lines(buffer, len, replies);
    if (answered < 0 || !keep_line(conn, buffer + answered, len - answered))
        close_connection(conn);
    else if (answered > 0)
        reply(conn, replies, answered);
}

static bool keep_line(struct conn *conn, const char *bytes, size_t len)
{
    if (len == 0) {
        free(conn->line);
        conn->line = NULL;
        return true;
    }
    if (!conn->line && !(conn->line = malloc(LINE_BYTES_MAX)))
        return false;
    memcpy(conn->line, bytes, len);
    conn->line_len = len;
    return true;
}

static void reply(struct conn *conn, char *bytes, size_t len)
{
    uv_stream_t *stream = (uv_stream_t *)&conn->tcp;
    uv_buf_t whole = uv_buf_init(bytes, len);
    int sent = uv_try_write(stream, &whole, 1);
    if (sent == (ssize_t)len)
        return;
    if (sent < 0 && sent != UV_EAGAIN) {
        close_connection(conn);
        return;
    }
    if (sent > 0) {
        bytes += sent;
        len -= sent;
    }
    struct rest *rest = malloc(sizeof *rest + len);
    if (!rest) {
        close_connection(conn);
        return;
    }
    memcpy(rest->bytes, bytes, len);
    uv_buf_t owed = uv_buf_init(rest->bytes, len);
    uv_read_stop(stream);
    if (uv_write(&rest->request, stream, &owed, 1, resume_reading)) {
        free(rest);
        close_connection(conn);
    }
}

static void resume_reading(uv_write_t *request, int status)
{
    struct conn *conn = request->handle->data;
    free((struct rest *)request);
    if (uv_is_closing((uv_handle_t *)&conn->tcp))
        return;
    if (status < 0 || uv_read_start((uv_stream_t *)&conn->tcp, lend_buffer, serve))
        close_connection(conn);
}

static void time_out(uv_timer_t *timer)
{
    close_connection(timer->data);
}

static void close_connection(struct conn *conn)
{
    if (uv_is_closing((uv_handle_t *)&conn->tcp))
        return;
    if (options.timeout)
        uv_close((uv_handle_t *)conn->timer, forget);
    uv_close((uv_handle_t *)&conn->tcp, forget);
}

static void forget(uv_handle_t *handle)
{
    struct conn *conn = handle->data;
    if (--conn->handles > 0)
        return;
    free(conn->line);
    free(conn);
}

static void check(int status, const char *what)
{
    if (status < 0) {
        fprintf(stderr, "%s: %s\n", what, uv_strerror(status));
        exit(1);
    }
}
