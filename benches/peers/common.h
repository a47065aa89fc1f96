/* What the server and the load generator share: parsing an address, and the descriptor limit. */

#ifndef COMMON_H
#define COMMON_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* Parses "127.0.0.1:8080". IPv4 only: nothing measured here depends on the family. */
static bool parse_address(const char *text, struct sockaddr_in *address)
{
    const char *colon = strrchr(text, ':');
    char host[INET_ADDRSTRLEN];
    if (!colon || (size_t)(colon - text) >= sizeof host)
        return false;
    memcpy(host, text, colon - text);
    host[colon - text] = '\0';

    char *end;
    unsigned long port = strtoul(colon + 1, &end, 10);
    if (end == colon + 1 || *end || port > 65535)
        return false;

    *address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port) };
    return inet_pton(AF_INET, host, &address->sin_addr) == 1;
}

/* The usual soft limit of 1,024 descriptors is below what the scenarios open. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

#endif
