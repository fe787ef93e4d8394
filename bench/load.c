/* Load for an MQTT broker on this machine: publishers and subscribers, all in one thread.
 *
 * The rules:
 *
 * 1. The generator must never be what is measured. A publisher's frame is encoded once, and then only its packet
 *    identifier and its time stamp change; a read or a write moves up to CHUNK bytes; the acknowledgements of all that
 *    one read brought leave in one write.
 * 2. Nothing is published before every client is connected and subscribed.
 * 3. At QoS 1 and 2 a publisher has at most `window` messages unacknowledged. At QoS 0 the socket's back-pressure is
 *    the only bound.
 * 4. Standard output is one JSON object on one line, and only after a run that counts. Whatever prevents one is a line
 *    on standard error and exit code 1; wrong options are exit code 2.
 * 5. SIGTERM ends the publishing, as the end of its time does.
 *
 * Sizes are in bytes.
 */
#define _GNU_SOURCE
#define PROGRAM "load"
#include "wire.h"
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <sys/epoll.h>

#define CHUNK ((size_t)256 * 1024)
#define OUTPUT (2 * CHUNK) /* room for a full write that waits and for the answers to one full read */
#define SAMPLES ((size_t)1 << 18)
#define STAMP sizeof(uint64_t)
#define SETUP_SECONDS 30
#define SILENCE_SECONDS 1

struct options {
    int port, pubs, subs, qos, size, window;
    bool pairs, v5;
    double seconds, rate, drain;
    uint64_t messages; /* 0: publish for `seconds` */
};

struct client {
    int fd; /* -1 once closed */
    int index;
    bool publisher;
    uint32_t interest; /* what epoll watches for */
    uint8_t *in, *out;
    size_t in_length, out_start, out_end;
    uint8_t *frame; /* a publisher's PUBLISH */
    size_t frame_length, id_at, stamp_at;
    uint16_t next_id;
    uint32_t in_flight, window;
    uint64_t sent;
};

struct totals {
    uint64_t sent, acked, refused, received, duplicates, closed;
    uint64_t first, last; /* the first publish; what arrived last */
};

struct latencies {
    uint64_t samples[SAMPLES];
    size_t count;
    uint64_t stride, seen, max; /* every stride-th message is kept */
};

static struct options options = {
    .pubs = 1, .subs = 1, .qos = 0, .size = 64, .window = 100, .seconds = 3, .drain = 10
};
static struct client *clients;
static int client_count, ready_count, open_publishers;
static int poller;
static bool publishing;
static volatile sig_atomic_t told_to_stop;
static uint64_t now;
static struct totals totals;
static struct latencies latencies = {.stride = 1};

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL)
        quit(1, "out of memory");
    return memory;
}

static const char *describe(const struct client *c)
{
    static char text[64];
    snprintf(text, sizeof text, "%s %d", c->publisher ? "publisher" : "subscriber", c->index);
    return text;
}

static uint8_t *put_connect(uint8_t *to, const struct client *c)
{
    uint8_t body[128], *end;
    char id[64];
    snprintf(id, sizeof id, "load-%d-%c%d", (int)getpid(), c->publisher ? 'p' : 's', c->index);
    end = put_text(body, "MQTT");
    *end++ = options.v5 ? 5 : 4;
    *end++ = 0x02; /* clean start */
    end = put_u16(end, 0); /* no keep alive */
    if (options.v5)
        *end++ = 0; /* no properties */
    end = put_text(end, id);
    return put_packet(to, CONNECT, 0, body, end);
}

static uint8_t *put_subscribe(uint8_t *to, const struct client *c)
{
    uint8_t body[128], *end;
    char filter[64];
    if (options.pairs)
        snprintf(filter, sizeof filter, "bench/%d/#", c->index);
    else
        snprintf(filter, sizeof filter, "bench/#");
    end = put_u16(body, 1);
    if (options.v5)
        *end++ = 0;
    end = put_text(end, filter);
    *end++ = (uint8_t)options.qos;
    return put_packet(to, SUBSCRIBE, 2, body, end);
}

/* The one frame of this publisher, and where in it the packet identifier and the time stamp are. */
static void encode_frame(struct client *c)
{
    char topic[64];
    uint8_t *end;
    size_t remaining;
    snprintf(topic, sizeof topic, "bench/%d/load", c->index);
    remaining = 2 + strlen(topic) + (options.qos ? 2 : 0) + (options.v5 ? 1 : 0) + (size_t)options.size;
    c->frame = allocate(remaining + 5, 1);
    end = put_header(c->frame, PUBLISH, options.qos << 1, remaining);
    end = put_text(end, topic);
    c->id_at = (size_t)(end - c->frame);
    if (options.qos)
        end = put_u16(end, 0);
    if (options.v5)
        *end++ = 0;
    c->stamp_at = (size_t)(end - c->frame);
    memset(end, 'x', (size_t)options.size);
    c->frame_length = c->stamp_at + (size_t)options.size;
}

static size_t pending(const struct client *c)
{
    return c->out_end - c->out_start;
}

/* Room for `length` more bytes. CHUNK bounds what may wait before a read, so that it never lacks. */
static uint8_t *reserve(struct client *c, size_t length)
{
    if (c->out_end + length > OUTPUT) {
        memmove(c->out, c->out + c->out_start, pending(c));
        c->out_end -= c->out_start;
        c->out_start = 0;
    }
    if (c->out_end + length > OUTPUT)
        quit(1, "%s: the broker sends more than can be answered", describe(c));
    return c->out + c->out_end;
}

static void answer(struct client *c, int type, const uint8_t *id)
{
    uint8_t *to = reserve(c, 4);
    to[0] = (uint8_t)(type << 4 | (type == PUBREL ? 2 : 0));
    to[1] = 2;
    to[2] = id[0];
    to[3] = id[1];
    c->out_end += 4;
}

static void close_client(struct client *c, const char *why)
{
    if (ready_count < client_count)
        quit(1, "the broker closed the connection of %s before all clients were ready: %s", describe(c), why);
    close(c->fd);
    c->fd = -1;
    totals.closed++;
    if (c->publisher)
        open_publishers--;
}

static void flush(struct client *c)
{
    ssize_t written;
    if (c->fd < 0 || pending(c) == 0)
        return;
    written = send(c->fd, c->out + c->out_start, pending(c), MSG_NOSIGNAL);
    if (written < 0) {
        if (errno != EAGAIN && errno != EINTR)
            close_client(c, strerror(errno));
        return;
    }
    c->out_start += (size_t)written;
    if (c->out_start == c->out_end)
        c->out_start = c->out_end = 0;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* How many messages this publisher may add to its output now. */
static uint64_t allowance(const struct client *c)
{
    uint64_t count;
    if (!publishing || pending(c) >= CHUNK)
        return 0;
    count = (CHUNK - pending(c) + c->frame_length - 1) / c->frame_length;
    if (options.qos > 0)
        count = smaller(count, c->window - c->in_flight);
    if (options.messages > 0)
        count = smaller(count, options.messages - totals.sent);
    if (options.rate > 0) {
        uint64_t due = 1 + (uint64_t)((double)(now - totals.first) / SECOND * options.rate);
        count = smaller(count, due > c->sent ? due - c->sent : 0);
    }
    return count;
}

static void publish(struct client *c)
{
    uint64_t count = allowance(c);
    uint8_t *to;
    if (count == 0)
        return;
    to = reserve(c, count * c->frame_length);
    memcpy(c->frame + c->stamp_at, &now, STAMP);
    for (uint64_t i = 0; i < count; i++) {
        memcpy(to, c->frame, c->frame_length);
        if (options.qos > 0) {
            put_u16(to + c->id_at, c->next_id);
            c->next_id = c->next_id == UINT16_MAX ? 1 : c->next_id + 1;
        }
        to += c->frame_length;
    }
    c->out_end += count * c->frame_length;
    c->sent += count;
    totals.sent += count;
    if (options.qos > 0)
        c->in_flight += (uint32_t)count;
}

/* Publish what may be published, write what can be written, and watch for what is worth waking for. */
static void pump(struct client *c)
{
    bool free_running = c->publisher && publishing && options.qos == 0 && options.rate == 0;
    struct epoll_event event = {.data.ptr = c};
    if (c->publisher)
        publish(c);
    flush(c);
    if (c->fd < 0)
        return;
    event.events = (pending(c) <= CHUNK ? EPOLLIN : 0u) | (pending(c) > 0 || free_running ? EPOLLOUT : 0u);
    if (event.events == c->interest)
        return;
    c->interest = event.events;
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event) < 0)
        quit(1, "cannot watch the socket of %s: %s", describe(c), strerror(errno));
}

static void keep_latency(uint64_t latency)
{
    if (latency > latencies.max)
        latencies.max = latency;
    if (latencies.seen++ % latencies.stride != 0)
        return;
    if (latencies.count == SAMPLES) {
        for (size_t i = 0; i < SAMPLES / 2; i++)
            latencies.samples[i] = latencies.samples[2 * i];
        latencies.count = SAMPLES / 2;
        latencies.stride *= 2;
    }
    latencies.samples[latencies.count++] = latency;
}

static void on_publish(struct client *c, const struct packet *p)
{
    const uint8_t *at = p->body, *end = p->body + p->length, *id;
    int qos = p->flags >> 1 & 3;
    uint64_t stamp;
    if (p->length < 2)
        quit(1, "the broker sent a PUBLISH without a topic");
    at += 2 + (at[0] << 8 | at[1]);
    id = at;
    at += qos > 0 ? 2 : 0;
    if (options.v5 && at < end) {
        uint64_t properties = read_variable(&at, end);
        at += properties;
    }
    if (at > end || (size_t)(end - at) != (size_t)options.size)
        return; /* not one of ours: a broker's own topics */
    totals.received++;
    if (p->flags & 8)
        totals.duplicates++;
    totals.last = now;
    memcpy(&stamp, at, STAMP);
    keep_latency(now - stamp);
    if (qos > 0)
        answer(c, qos == 1 ? PUBACK : PUBREC, id);
}

static void release(struct client *c, bool refused)
{
    if (c->in_flight == 0)
        quit(1, "%s: the broker acknowledged what was not sent", describe(c));
    c->in_flight--;
    if (refused)
        totals.refused++;
    else
        totals.acked++;
    if (options.subs == 0)
        totals.last = now;
}

/* PUBACK, PUBREC, PUBREL and PUBCOMP. */
static void on_acknowledgement(struct client *c, const struct packet *p)
{
    bool refused = p->length > 2 && p->body[2] >= 0x80;
    if (p->length < 2)
        quit(1, "the broker sent an acknowledgement without a packet identifier");
    if (p->type == PUBREL)
        answer(c, PUBCOMP, p->body);
    else if (p->type == PUBREC && !refused)
        answer(c, PUBREL, p->body);
    else
        release(c, refused);
}

/* The Receive Maximum among the properties of a CONNACK; 65535 where there is none. */
static uint32_t receive_maximum(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        switch (*at++) {
        case 0x21: /* Receive Maximum */
            return at + 2 <= end ? (uint32_t)(at[0] << 8 | at[1]) : UINT16_MAX;
        case 0x13: case 0x22: /* two bytes */
            at += 2;
            break;
        case 0x11: case 0x27: /* four bytes */
            at += 4;
            break;
        case 0x24: case 0x25: case 0x28: case 0x29: case 0x2a: /* one byte */
            at += 1;
            break;
        case 0x26: /* a pair of texts */
            if (end - at < 2)
                return UINT16_MAX;
            at += 2 + (at[0] << 8 | at[1]);
            /* fall through */
        default: /* a text */
            if (end - at < 2)
                return UINT16_MAX;
            at += 2 + (at[0] << 8 | at[1]);
        }
    }
    return UINT16_MAX;
}

static void on_connack(struct client *c, const struct packet *p)
{
    if (p->length < 2 || p->body[1] != 0)
        quit(1, "the broker refused %s: CONNACK with code 0x%02x", describe(c), p->length < 2 ? 0 : p->body[1]);
    if (options.v5 && p->length > 3) {
        const uint8_t *at = p->body + 2, *end = p->body + p->length;
        read_variable(&at, end);
        c->window = (uint32_t)smaller(c->window, receive_maximum(at, end));
    }
    if (c->publisher) {
        ready_count++;
        return;
    }
    c->out_end = (size_t)(put_subscribe(reserve(c, 256), c) - c->out);
}

static void on_suback(struct client *c, const struct packet *p)
{
    uint8_t code = p->length > 0 ? p->body[p->length - 1] : 0xff;
    if (code != options.qos)
        quit(1, "the broker refused the subscription of %s: SUBACK with code 0x%02x", describe(c), code);
    ready_count++;
}

static void take_packet(struct client *c, const struct packet *p)
{
    switch (p->type) {
    case PUBLISH:
        on_publish(c, p);
        break;
    case PUBACK: case PUBREC: case PUBREL: case PUBCOMP:
        on_acknowledgement(c, p);
        break;
    case CONNACK:
        on_connack(c, p);
        break;
    case SUBACK:
        on_suback(c, p);
        break;
    case DISCONNECT: /* the end of the stream follows */
        break;
    default:
        quit(1, "the broker sent %s a packet of type %d", describe(c), p->type);
    }
}

/* One read, and every whole packet in it. */
static void take_input(struct client *c)
{
    struct packet packet;
    const uint8_t *at = c->in, *end;
    ssize_t length = recv(c->fd, c->in + c->in_length, CHUNK - c->in_length, 0);
    if (length <= 0) {
        if (length == 0 || (errno != EAGAIN && errno != EINTR))
            close_client(c, length == 0 ? "end of stream" : strerror(errno));
        return;
    }
    now = clock_ns();
    end = c->in + c->in_length + length;
    while (next_packet(at, end, CHUNK, &packet)) {
        take_packet(c, &packet);
        at += packet.whole;
    }
    c->in_length = (size_t)(end - at);
    if (at != c->in)
        memmove(c->in, at, c->in_length);
}

/* Wait at most `milliseconds`, then serve every client that has something to read or room to write. */
static void turn(int milliseconds)
{
    struct epoll_event events[256];
    int count = epoll_wait(poller, events, 256, milliseconds);
    now = clock_ns();
    for (int i = 0; i < count; i++) {
        struct client *c = events[i].data.ptr;
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            take_input(c);
        if (c->fd >= 0)
            pump(c);
    }
}

static void pump_publishers(void)
{
    for (int i = 0; i < client_count; i++)
        if (clients[i].publisher && clients[i].fd >= 0)
            pump(&clients[i]);
}

static void open_client(struct client *c, bool publisher, int index)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    int buffer = CHUNK;
    *c = (struct client){.publisher = publisher, .index = index, .next_id = 1, .interest = EPOLLIN};
    c->window = (uint32_t)options.window;
    c->in = allocate(CHUNK, 1);
    c->out = allocate(OUTPUT, 1);
    if (publisher)
        encode_frame(c);
    c->fd = make_socket(0);
    if (c->fd < 0)
        quit(1, "cannot open a socket for %s: %s", describe(c), strerror(errno));
    if (publisher) /* little waits in the kernel when publishing stops */
        setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    if (!connect_here(c->fd, options.port))
        quit(1, "cannot connect %s to 127.0.0.1:%d: %s", describe(c), options.port, strerror(errno));
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->out_end = (size_t)(put_connect(c->out, c) - c->out);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) < 0)
        quit(1, "cannot watch the socket of %s: %s", describe(c), strerror(errno));
    pump(c);
}

/* Connect and subscribe all clients. */
static void set_up(void)
{
    uint64_t deadline = clock_ns() + SETUP_SECONDS * SECOND;
    client_count = options.subs + options.pubs;
    open_publishers = options.pubs;
    clients = allocate((size_t)client_count, sizeof *clients);
    for (int i = 0; i < client_count; i++)
        open_client(&clients[i], i >= options.subs, i >= options.subs ? i - options.subs : i);
    while (ready_count < client_count) {
        turn(100);
        if (now > deadline)
            quit(1, "%d of %d clients were ready after %d s", ready_count, client_count, SETUP_SECONDS);
    }
}

static bool may_go_on(void)
{
    if (open_publishers == 0 || told_to_stop)
        return false;
    if (options.messages > 0)
        return totals.sent < options.messages;
    return (double)(now - totals.first) < options.seconds * SECOND;
}

/* How many messages the subscribers should get in all. */
static uint64_t expected(void)
{
    uint64_t readers = options.pairs ? 1 : (uint64_t)options.subs;
    return (totals.sent - totals.refused) * readers;
}

static bool settled(void)
{
    for (int i = 0; i < client_count; i++)
        if (clients[i].fd >= 0 && pending(&clients[i]) > 0)
            return false;
    if (options.qos > 0 && totals.acked + totals.refused < totals.sent)
        return false;
    return totals.received - totals.duplicates >= expected();
}

/* QoS 0 promises nothing: what has not come after a time of silence was dropped. */
static bool silent(uint64_t since)
{
    return options.qos == 0 && now - (totals.last > since ? totals.last : since) > SILENCE_SECONDS * SECOND;
}

static void run(void)
{
    uint64_t deadline, ended;
    now = totals.first = totals.last = clock_ns();
    publishing = true;
    pump_publishers();
    while (may_go_on()) {
        turn(options.rate > 0 ? 1 : 10);
        if (options.rate > 0)
            pump_publishers();
    }
    publishing = false;
    if (options.subs == 0 && options.qos == 0)
        totals.last = now;
    ended = now;
    deadline = ended + (uint64_t)(options.drain * SECOND);
    while (!settled() && !silent(ended) && now < deadline)
        turn(10);
}

static void take_leave(void)
{
    static const uint8_t disconnect[] = {DISCONNECT << 4, 0};
    for (int i = 0; i < client_count; i++) {
        if (clients[i].fd < 0)
            continue;
        if (pending(&clients[i]) == 0)
            send(clients[i].fd, disconnect, sizeof disconnect, MSG_NOSIGNAL);
        close(clients[i].fd);
    }
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
        + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double latency_ms(double share)
{
    return quantile_ms(latencies.samples, latencies.count, share);
}

static void report(double cpu)
{
    double seconds = (double)(totals.last - totals.first) / SECOND;
    double per_second = seconds > 0 ? 1 / seconds : 0;
    sort(latencies.samples, latencies.count);
    printf("{\"sent\": %lu, \"acked\": %lu, \"refused\": %lu, \"expected\": %lu, \"received\": %lu, ",
           totals.sent, totals.acked, totals.refused, options.subs ? expected() : 0, totals.received);
    printf("\"duplicates\": %lu, \"closed\": %lu, \"seconds\": %.6f, ", totals.duplicates, totals.closed, seconds);
    printf("\"sent_per_s\": %.1f, \"acked_per_s\": %.1f, \"received_per_s\": %.1f, ",
           (double)totals.sent * per_second, (double)totals.acked * per_second, (double)totals.received * per_second);
    printf("\"latency_ms\": {\"p50\": %.3f, \"p99\": %.3f, \"p999\": %.3f, \"max\": %.3f}, ",
           latency_ms(0.5), latency_ms(0.99), latency_ms(0.999), (double)latencies.max / 1e6);
    printf("\"cpu_seconds\": %.3f}\n", cpu);
}

static bool is_pairs(const char *text)
{
    if (strcmp(text, "fan") != 0 && strcmp(text, "pairs") != 0)
        quit(2, "--shape is fan or pairs, not `%s`", text);
    return strcmp(text, "pairs") == 0;
}

static void read_options(int argc, char **argv)
{
    enum { PORT, PUBS, SUBS, QOS, SIZE, WINDOW, SHAPE, SECONDS, MESSAGES, V5, RATE, DRAIN };
    static const struct option names[] = {
        {"port", 1, NULL, PORT}, {"pubs", 1, NULL, PUBS}, {"subs", 1, NULL, SUBS}, {"qos", 1, NULL, QOS},
        {"size", 1, NULL, SIZE}, {"window", 1, NULL, WINDOW}, {"shape", 1, NULL, SHAPE},
        {"seconds", 1, NULL, SECONDS}, {"messages", 1, NULL, MESSAGES}, {"v5", 0, NULL, V5}, {"rate", 1, NULL, RATE},
        {"drain", 1, NULL, DRAIN}, {NULL, 0, NULL, 0}
    };
    int which, index;
    while ((which = getopt_long(argc, argv, "", names, &index)) != -1) {
        const char *name = which == '?' ? "" : names[index].name;
        switch (which) {
        case PORT: options.port = (int)number(name, optarg, 1, 65535); break;
        case PUBS: options.pubs = (int)number(name, optarg, 1, 100000); break;
        case SUBS: options.subs = (int)number(name, optarg, 0, 100000); break;
        case QOS: options.qos = (int)number(name, optarg, 0, 2); break;
        case SIZE: options.size = (int)number(name, optarg, STAMP, CHUNK / 2); break;
        case WINDOW: options.window = (int)number(name, optarg, 1, 60000); break;
        case SHAPE: options.pairs = is_pairs(optarg); break;
        case SECONDS: options.seconds = number(name, optarg, 0, 1e6); break;
        case MESSAGES: options.messages = (uint64_t)number(name, optarg, 0, 1e12); break;
        case V5: options.v5 = true; break;
        case RATE: options.rate = number(name, optarg, 0, 1e9); break;
        case DRAIN: options.drain = number(name, optarg, 0, 1e6); break;
        default: exit(2); /* getopt has said why */
        }
    }
    if (optind < argc)
        quit(2, "`%s` is not an option", argv[optind]);
    if (options.port == 0)
        quit(2, "--port is needed");
    if (options.pairs && options.pubs != options.subs)
        quit(2, "--shape pairs takes as many --pubs as --subs");
}

static void on_signal(int number)
{
    told_to_stop = number;
}

int main(int argc, char **argv)
{
    double cpu;
    read_options(argc, argv);
    signal(SIGTERM, on_signal);
    raise_file_limit();
    poller = epoll_create1(0);
    if (poller < 0)
        quit(1, "cannot open an epoll instance: %s", strerror(errno));
    set_up();
    cpu = cpu_seconds();
    run();
    cpu = cpu_seconds() - cpu;
    take_leave();
    report(cpu);
    return 0;
}
