/* What the programs here that load a broker have in common: MQTT on the wire, sockets, time, and words.
 *
 * One file of C each, compiled with this one, and no library: a generator must be built in a second, anywhere. The
 * program says who it is by defining PROGRAM before it includes this.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECT = 1, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, SUBACK,
    PINGREQ = 12, PINGRESP, DISCONNECT
};

#define SECOND 1000000000ULL /* times are in nanoseconds of CLOCK_MONOTONIC */

struct packet {
    uint8_t type, flags;
    const uint8_t *body;
    size_t length, whole; /* of the body; with the fixed header */
};

/* -- words */

static inline _Noreturn __attribute__((format(printf, 2, 3))) void quit(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs(PROGRAM ": ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(code);
}

/* The value of an option that is a number. */
static inline double number(const char *name, const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != 0 || !(value >= least && value <= most))
        quit(2, "--%s takes a number from %g to %.0f, not `%s`", name, least, most, text);
    return value;
}

/* -- time */

static inline uint64_t clock_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static inline int compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static inline void sort(uint64_t *times, size_t count)
{
    qsort(times, count, sizeof *times, compare);
}

/* Of sorted times the one that a share of them does not exceed, in ms. */
static inline double quantile_ms(const uint64_t *times, size_t count, double share)
{
    return count > 0 ? (double)times[(size_t)(share * (double)(count - 1))] / 1e6 : 0;
}

/* -- sockets */

/* As many sockets as the system lets this process have. */
static inline void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* A socket that sends at once, with `flags` of socket(2), or -1. */
static inline int make_socket(int flags)
{
    int one = 1, descriptor = socket(AF_INET, SOCK_STREAM | flags, 0);
    if (descriptor >= 0)
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return descriptor;
}

/* Connect to a port of this machine; false and errno: it failed, or is under way. */
static inline bool connect_here(int descriptor, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return connect(descriptor, (struct sockaddr *)&address, sizeof address) == 0;
}

/* -- encoding: each put_ function writes at `to` and returns the end of what it wrote */

static inline uint8_t *put_u16(uint8_t *to, size_t value)
{
    to[0] = (uint8_t)(value >> 8);
    to[1] = (uint8_t)value;
    return to + 2;
}

static inline uint8_t *put_text(uint8_t *to, const char *text)
{
    size_t length = strlen(text);
    memcpy(put_u16(to, length), text, length);
    return to + 2 + length;
}

static inline uint8_t *put_header(uint8_t *to, int type, int flags, size_t remaining)
{
    *to++ = (uint8_t)(type << 4 | flags);
    do {
        *to++ = (uint8_t)((remaining & 0x7f) | (remaining > 0x7f ? 0x80 : 0));
        remaining >>= 7;
    } while (remaining > 0);
    return to;
}

static inline uint8_t *put_packet(uint8_t *to, int type, int flags, const uint8_t *body, const uint8_t *end)
{
    size_t length = (size_t)(end - body);
    to = put_header(to, type, flags, length);
    memcpy(to, body, length);
    return to + length;
}

/* -- decoding */

/* A variable byte integer, and `at` moved behind it. */
static inline uint64_t read_variable(const uint8_t **at, const uint8_t *end)
{
    uint64_t value = 0;
    for (int shift = 0; *at < end && shift <= 21; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            break;
    }
    return value;
}

/* The next whole packet of [at, end), of at most `largest` bytes; false: it is not whole yet. */
static inline bool next_packet(const uint8_t *at, const uint8_t *end, size_t largest, struct packet *packet)
{
    const uint8_t *start = at;
    int bytes = 1;
    if (end - at < 2)
        return false;
    while (bytes < 5 && at + bytes < end && at[bytes] >= 0x80)
        bytes++;
    if (bytes == 5)
        quit(1, "the broker sent a malformed Remaining Length");
    if (at + bytes >= end)
        return false;
    packet->type = at[0] >> 4;
    packet->flags = at[0] & 0x0f;
    at++;
    packet->length = read_variable(&at, end);
    packet->body = at;
    packet->whole = (size_t)(at - start) + packet->length;
    if (packet->whole > largest)
        quit(1, "the broker sent a packet of %zu bytes", packet->whole);
    return packet->whole <= (size_t)(end - start);
}

#endif
