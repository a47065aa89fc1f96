/*
 * What the echo servers in C share: their options, the line they print, and the line protocol.
 *
 *     NAME [--framed] [--timeout] IPV4:PORT
 *     NAME --version
 *
 * With --framed a server answers each line `PING text` by a line `PONG text`, of as many bytes.
 */

#ifndef PEER_H
#define PEER_H

#include "common.h"

#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 64 * 1024,
    LINE_BYTES_MAX = 1024, /* its end included */
    TIMEOUT_S = 60,
};

struct peer_options {
    struct sockaddr_in address;
    bool framed;
    bool timeout;
};

/* `version` is that of the library; the server without one knows no timeout. */
static struct peer_options parse_peer_options(int argc, char **argv, const char *version)
{
    struct peer_options options = { 0 };
    bool has_address = false;
    for (int i = 1; i < argc; i++) {
        if (version && strcmp(argv[i], "--version") == 0) {
            puts(version);
            exit(0);
        } else if (version && strcmp(argv[i], "--timeout") == 0) {
            options.timeout = true;
        } else if (strcmp(argv[i], "--framed") == 0) {
            options.framed = true;
        } else if (has_address || !parse_address(argv[i], &options.address)) {
            has_address = false;
            break;
        } else {
            has_address = true;
        }
    }
    if (!has_address) {
        fprintf(stderr, "usage: %s [--framed]%s IPV4:PORT\n", argv[0],
                version ? " [--timeout]" : "");
        exit(2);
    }
    return options;
}

static void exit_at_once(int signal)
{
    (void)signal;
    _exit(0);
}

static void exit_on_termination(void)
{
    signal(SIGTERM, exit_at_once);
    signal(SIGINT, exit_at_once);
    signal(SIGPIPE, SIG_IGN);
}

static void print_address(int listener)
{
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    char host[INET_ADDRSTRLEN];
    if (getsockname(listener, (struct sockaddr *)&address, &len)) {
        perror("getsockname");
        exit(1);
    }
    inet_ntop(AF_INET, &address.sin_addr, host, sizeof host);
    printf("listening on %s:%d\n", host, ntohs(address.sin_port));
    fflush(stdout);
}

/*
 * Answers the whole lines of `in` into `out`, which has room for as many bytes. Returns how many
 * they were, or -1 if a line is too long or no ping.
 */
static ssize_t answer_lines(const char *in, size_t len, char *out)
{
    size_t answered = 0;
    for (const char *end; (end = memchr(in + answered, '\n', len - answered));) {
        const char *line = in + answered;
        size_t size = end + 1 - line;
        if (size > LINE_BYTES_MAX || size < sizeof "PING" || memcmp(line, "PING", 4) ||
            (line[4] != ' ' && line[4] != '\n'))
            return -1;
        memcpy(out + answered, "PONG", 4);
        memcpy(out + answered + 4, line + 4, size - 4);
        answered += size;
    }
    return len - answered < LINE_BYTES_MAX ? (ssize_t)answered : -1;
}

#endif
