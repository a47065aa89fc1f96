/*
 * Both ends of what a proxy passes on: an upstream that sends so many bytes to each connection and
 * then its FIN, and clients that read them, one connection after the other.
 *
 *     flow serve 127.0.0.1:0 BYTES
 *
 * prints "listening on ADDR" once it accepts, and exits 0 on SIGTERM. A connection gets its bytes
 * when the first ones have come from it.
 *
 *     flow fetch 127.0.0.1:7000 CONNS SECONDS BYTES
 *
 * keeps CONNS connections going for SECONDS: each sends 64 bytes, reads to the FIN, and closes. Then
 * it prints the connections that ended within that time and the bytes that came, as JSON. A
 * connection that has had other than BYTES bytes before its FIN is a failure, and so is a reset.
 */

#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 256 * 1024,
    REQUEST_BYTES = 64,
    EVENTS_PER_TURN = 256,
    DESCRIPTORS_MAX = 1 << 20,
};

static char buffer[BUFFER_BYTES];
/* What is left to send, or what has come. */
static uint64_t bytes_of[DESCRIPTORS_MAX];
static int epoll;

static void die(const char *what)
{
    fprintf(stderr, "flow: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void handle_termination(int signal)
{
    (void)signal;
    _exit(0);
}

static void watch(int operation, int fd, uint32_t events)
{
    struct epoll_event event = { .events = events, .data.fd = fd };
    if (epoll_ctl(epoll, operation, fd, &event))
        die("epoll_ctl");
}

static void end(int fd)
{
    close(fd);
}

static void send_some(int fd)
{
    while (bytes_of[fd]) {
        size_t len = bytes_of[fd] < BUFFER_BYTES ? bytes_of[fd] : BUFFER_BYTES;
        ssize_t sent = send(fd, buffer, len, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN)
                return;
            end(fd);
            return;
        }
        bytes_of[fd] -= sent;
    }
    end(fd);
}

static void serve(struct sockaddr_in address, uint64_t bytes)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    socklen_t len = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, len) || listen(listener, 4096))
        die("listen");
    getsockname(listener, (struct sockaddr *)&address, &len);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[EVENTS_PER_TURN];
        int count = epoll_wait(epoll, events, EVENTS_PER_TURN, -1);
        for (int at = 0; at < count; at++) {
            int fd = events[at].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    bytes_of[fd] = 0;
                    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
                }
            } else if (events[at].events & EPOLLIN) {
                char request[REQUEST_BYTES];
                if (recv(fd, request, sizeof request, 0) <= 0) {
                    end(fd);
                    continue;
                }
                bytes_of[fd] = bytes;
                watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
            } else {
                send_some(fd);
            }
        }
    }
}

static void begin(struct sockaddr_in address)
{
    static const char request[REQUEST_BYTES];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        die("connect");
    if (send(fd, request, sizeof request, MSG_NOSIGNAL) != sizeof request)
        die("send");
    bytes_of[fd] = 0;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int fetch(struct sockaddr_in address, int conns, double seconds, uint64_t bytes)
{
    uint64_t connections = 0, total = 0;
    double began = now();
    for (int at = 0; at < conns; at++)
        begin(address);
    while (now() - began < seconds) {
        struct epoll_event events[EVENTS_PER_TURN];
        int count = epoll_wait(epoll, events, EVENTS_PER_TURN, 100);
        for (int at = 0; at < count; at++) {
            int fd = events[at].data.fd;
            ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN)
                continue;
            if (got < 0)
                die("recv");
            bytes_of[fd] += got;
            total += got;
            if (got > 0)
                continue;
            if (bytes_of[fd] != bytes) {
                fprintf(stderr, "flow: %llu bytes\n", (unsigned long long)bytes_of[fd]);
                return 1;
            }
            end(fd);
            connections++;
            begin(address);
        }
    }
    printf("{\"connections\": %llu, \"bytes\": %llu, \"seconds\": %f}\n",
           (unsigned long long)connections, (unsigned long long)total, now() - began);
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address;
    signal(SIGTERM, handle_termination);
    raise_descriptor_limit();
    epoll = epoll_create1(0);
    if (argc == 4 && !strcmp(argv[1], "serve") && parse_address(argv[2], &address))
        serve(address, strtoull(argv[3], NULL, 10));
    if (argc == 6 && !strcmp(argv[1], "fetch") && parse_address(argv[2], &address))
        return fetch(address, atoi(argv[3]), atof(argv[4]), strtoull(argv[5], NULL, 10));
    fprintf(stderr, "usage: flow serve ADDR BYTES, or flow fetch ADDR CONNS SECONDS BYTES\n");
    return 2;
}
