/* A crowd of MQTT clients on this machine, in one thread: thousands of connections that do little, each in its own time.
 *
 * The rules:
 *
 * 1. Commands come on standard input, one on a line; the answer to each is one JSON object on one line. Between commands
 *    the crowd goes on: it pings, reads and acknowledges. The end of standard input is the end of the crowd.
 * 2. A client sends so little at a time that its socket always has room for it. One that hasn't is an error.
 * 3. Pings are spread evenly over the interval: each turn sends those that have become due since the last.
 * 4. A connection that ends unasked is counted. A client stays away then; a nuisance is back at once.
 * 5. What prevents a command is a line on standard error and exit code 1; wrong options are exit code 2.
 *
 * Sizes are in bytes.
 */
#define _GNU_SOURCE
#define PROGRAM "crowd"
#include "wire.h"
#include <getopt.h>
#include <sys/epoll.h>

enum kind { CLIENT, SILENT, HALF, DRIP_CONNECT, DRIP_PUBLISH };
enum stage { AWAY, GREETING, CONNECTED, SUBSCRIBING, LEAVING };

#define READ_BYTES 65536
#define LARGEST 8192 /* packet that the broker may send */
#define MOST_CLIENTS 100000
#define PATIENCE (60 * SECOND)
#define DRIPPED 200000 /* bytes that the PUBLISH of a dripping client announces */

struct options {
    int port, keep_alive, expiry, width;
    double ping;
    enum kind kind;
    const char *prefix, *user, *password;
};

struct client {
    int fd, index;
    enum stage stage;
    bool deaf;
    uint32_t dripped; /* bytes of its CONNECT that it has sent */
    uint8_t *kept; /* the beginning of a packet; NULL: none */
    size_t kept_length;
    uint64_t began, pinged; /* when it asked for a connection; for an answer to a ping, 0: it has one */
};

struct samples {
    uint64_t *values;
    size_t count, room;
};

static struct options options = {.keep_alive = 30, .ping = 10, .width = 200, .prefix = "crowd"};
static struct client clients[MOST_CLIENTS];
static struct samples latencies;
static int client_count, opened, under_way, ready;
static int poller, subscribed;
static bool pinging, churning, ended;
static char commands[4096];
static size_t commands_length;
static uint64_t now, last_drip;
static double pings_due;
static uint64_t pings, pongs, closed, refused, connects, received;

/* Latencies: kept all, until they are told. */

static void keep(uint64_t latency)
{
    if (latencies.count == latencies.room) {
        latencies.room = latencies.room ? 2 * latencies.room : 65536;
        latencies.values = realloc(latencies.values, latencies.room * sizeof *latencies.values);
        if (latencies.values == NULL)
            quit(1, "out of memory");
    }
    latencies.values[latencies.count++] = latency;
}

static double latency_ms(double share)
{
    return quantile_ms(latencies.values, latencies.count, share);
}

/* The answer to a command: what it took, what was counted since the one before, and the latencies kept meanwhile. */
static void tell(uint64_t since)
{
    sort(latencies.values, latencies.count);
    printf("{\"seconds\": %.6f, \"ready\": %d, \"connects\": %lu, \"refused\": %lu, \"closed\": %lu, \"pings\": %lu, "
           "\"pongs\": %lu, \"received\": %lu, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}\n",
           (double)(now - since) / SECOND, ready, connects, refused, closed, pings, pongs, received, latency_ms(0.5),
           latency_ms(0.99), latency_ms(1));
    fflush(stdout);
    connects = refused = closed = pings = pongs = received = 0;
    latencies.count = 0;
}

/* MQTT 3.1.1 with a clean session, or with --expiry MQTT 5 and a session that outlives its connection. */
static uint8_t *put_connect(uint8_t *to, const struct client *c)
{
    uint8_t body[1024], *end;
    char id[300];
    snprintf(id, sizeof id, "%s-%d", options.prefix, c->index);
    end = put_text(body, "MQTT");
    *end++ = options.expiry ? 5 : 4;
    *end++ = (uint8_t)((options.expiry ? 0 : 0x02) | (options.user ? 0x80 : 0) | (options.password ? 0x40 : 0));
    end = put_u16(end, (size_t)options.keep_alive);
    if (options.expiry) {
        *end++ = 5;
        *end++ = 0x11; /* Session Expiry Interval */
        end = put_u16(put_u16(end, (size_t)options.expiry >> 16), (size_t)options.expiry & 0xffff);
    }
    end = put_text(end, id);
    if (options.user)
        end = put_text(end, options.user);
    if (options.password)
        end = put_text(end, options.password);
    return put_packet(to, CONNECT, 0, body, end);
}

static uint8_t *put_subscribe(uint8_t *to)
{
    uint8_t body[512], *end = put_u16(body, 1);
    char filter[300];
    if (options.expiry)
        *end++ = 0;
    snprintf(filter, sizeof filter, "%s/#", options.prefix);
    end = put_text(end, filter);
    *end++ = 1;
    return put_packet(to, SUBSCRIBE, 2, body, end);
}

static uint8_t *put_publish(uint8_t *to, uint16_t id, size_t size)
{
    static uint8_t body[LARGEST];
    uint8_t *end;
    char topic[300];
    snprintf(topic, sizeof topic, "%s/all", options.prefix);
    end = put_u16(put_text(body, topic), id);
    if (options.expiry)
        *end++ = 0;
    memset(end, 'x', size);
    return put_packet(to, PUBLISH, 2, body, end + size);
}

/* Connections */

static void watch(struct client *c, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0)
        quit(1, "cannot watch the socket of client %d: %s", c->index, strerror(errno));
}

/* Close, so that the broker sees a peer that is gone, and not one that takes its leave. */
static void drop(struct client *c)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    if (c->stage == AWAY)
        return;
    if (c->stage == GREETING)
        under_way--;
    else if (c->stage != LEAVING)
        ready--;
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(c->fd);
    free(c->kept);
    *c = (struct client){.fd = -1, .index = c->index};
    opened--;
}

static void put_out(struct client *c, const uint8_t *data, const uint8_t *end)
{
    ssize_t length = end - data, written = send(c->fd, data, (size_t)length, MSG_NOSIGNAL);
    if (written == length)
        return;
    if (written >= 0 || errno == EAGAIN)
        quit(1, "the broker does not read what client %d sends", c->index);
    closed++;
    drop(c);
}

static void open_connection(struct client *c)
{
    c->fd = make_socket(SOCK_NONBLOCK);
    if (c->fd < 0)
        quit(1, "cannot open a socket for client %d: %s (see `ulimit -n`)", c->index, strerror(errno));
    c->stage = GREETING;
    c->began = clock_ns();
    opened++;
    under_way++;
    if (!connect_here(c->fd, options.port) && errno != EINPROGRESS)
        quit(1, "cannot connect client %d to 127.0.0.1:%d: %s", c->index, options.port, strerror(errno));
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

/* The connection is there. */
static void greet(struct client *c)
{
    uint8_t packet[1024], *end = put_connect(packet, c);
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error)
        quit(1, "cannot connect client %d to 127.0.0.1:%d: %s", c->index, options.port, strerror(error));
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    if (options.kind == SILENT)
        end = packet;
    else if (options.kind == HALF)
        end = packet + (end - packet) / 2;
    else if (options.kind == DRIP_CONNECT)
        end = packet + 1;
    c->dripped = 1;
    if (options.kind == SILENT || options.kind == HALF || options.kind == DRIP_CONNECT) {
        c->stage = CONNECTED; /* as far as it will ever be */
        under_way--;
        ready++;
        connects++;
    }
    if (end > packet)
        put_out(c, packet, end);
}

static void on_packet(struct client *c, const struct packet *p)
{
    const uint8_t *body = p->body;
    uint8_t packet[512];
    switch (p->type) {
    case CONNACK:
        if (p->length < 2 || body[1] != 0) {
            refused++;
            drop(c);
            return;
        }
        keep(now - c->began);
        connects++;
        under_way--;
        if (churning) {
            static const uint8_t disconnect[] = {DISCONNECT << 4, 0};
            c->stage = LEAVING;
            put_out(c, disconnect, disconnect + sizeof disconnect);
            return;
        }
        ready++;
        c->stage = CONNECTED;
        if (options.kind == DRIP_PUBLISH) {
            static const uint8_t begun[] = {PUBLISH << 4, (DRIPPED & 0x7f) | 0x80, (DRIPPED >> 7 & 0x7f) | 0x80, DRIPPED >> 14,
                                            0, 4, 's', 'l', 'o', 'w'};
            put_out(c, begun, begun + sizeof begun);
        }
        break;
    case SUBACK:
        if (p->length < 3 || body[p->length - 1] != 1)
            quit(1, "the broker refused the subscription of client %d", c->index);
        c->stage = CONNECTED;
        subscribed++;
        break;
    case PUBLISH:
        received++;
        keep(now - clients[0].began);
        if (p->flags & 0x06) {
            const uint8_t *id = body + 2 + (body[0] << 8 | body[1]);
            packet[0] = PUBACK << 4;
            packet[1] = 2;
            memcpy(packet + 2, id, 2);
            put_out(c, packet, packet + 4);
        }
        break;
    case PINGRESP:
        pongs++;
        if (c->pinged)
            keep(now - c->pinged);
        c->pinged = 0;
        break;
    default: /* a PUBACK; a DISCONNECT, after which the stream ends */
        break;
    }
}

static void keep_rest(struct client *c, const uint8_t *rest, size_t length)
{
    free(c->kept);
    c->kept = length > 0 ? malloc(length) : NULL;
    c->kept_length = length;
    if (length > 0 && c->kept == NULL)
        quit(1, "out of memory");
    if (length > 0)
        memcpy(c->kept, rest, length);
}

static void take_input(struct client *c)
{
    static uint8_t buffer[LARGEST + READ_BYTES];
    const uint8_t *at = buffer, *end;
    struct packet packet;
    ssize_t count;
    if (c->kept != NULL)
        memcpy(buffer, c->kept, c->kept_length);
    count = recv(c->fd, buffer + c->kept_length, READ_BYTES, 0);
    if (count < 0 && errno == EAGAIN)
        return;
    if (count <= 0) {
        if (c->stage != LEAVING)
            closed++;
        drop(c);
        return;
    }
    now = clock_ns();
    end = buffer + c->kept_length + count;
    while (next_packet(at, end, LARGEST, &packet)) {
        on_packet(c, &packet);
        if (c->stage == AWAY)
            return;
        at += packet.whole;
    }
    keep_rest(c, at, (size_t)(end - at));
}

static void ping(void)
{
    static const uint8_t packet[] = {PINGREQ << 4, 0};
    static uint64_t before;
    static int next;
    uint64_t gone = before ? now - before : 0;
    before = now;
    if (!pinging || ready == 0)
        return;
    for (pings_due += (double)gone / SECOND * client_count / options.ping; pings_due >= 1; pings_due--) {
        struct client *c = &clients[next++ % client_count];
        if (c->stage != CONNECTED || c->deaf || c->pinged)
            continue;
        c->pinged = now;
        pings++;
        put_out(c, packet, packet + sizeof packet);
    }
}

/* One byte a second of what dripping clients have to say. */
static void drip(void)
{
    if ((options.kind != DRIP_CONNECT && options.kind != DRIP_PUBLISH) || now < last_drip + SECOND)
        return;
    last_drip = now;
    for (int i = 0; i < client_count; i++) {
        struct client *c = &clients[i];
        uint8_t packet[1024] = {0}, *byte = packet;
        if (c->stage != CONNECTED)
            continue;
        if (options.kind == DRIP_CONNECT) {
            put_connect(packet, c);
            byte += c->dripped++;
        }
        put_out(c, byte, byte + 1);
    }
}

static void take_commands(void)
{
    ssize_t count = read(STDIN_FILENO, commands + commands_length, sizeof commands - commands_length - 1);
    ended = count <= 0;
    if (count > 0)
        commands_length += (size_t)count;
}

/* Wait at most `milliseconds`, and let every client do what is due. */
static void turn(int milliseconds)
{
    struct epoll_event events[512];
    int count = epoll_wait(poller, events, 512, milliseconds);
    now = clock_ns();
    for (int i = 0; i < count; i++) {
        struct client *c = events[i].data.ptr;
        if (c == NULL)
            take_commands();
        else if (c->stage == GREETING && events[i].events & EPOLLOUT)
            greet(c);
        else if (c->stage != AWAY)
            take_input(c);
    }
    now = clock_ns();
    ping();
    drip();
    if (options.kind != CLIENT)
        for (int i = 0; i < client_count && opened < client_count; i++)
            if (clients[i].stage == AWAY)
                open_connection(&clients[i]);
}

/* Commands */

static void check_time(uint64_t since, const char *what)
{
    if (now > since + PATIENCE)
        quit(1, "still waiting after %llu s: %s; %d are connected, %d on their way, %lu were closed", PATIENCE / SECOND,
             what, ready, under_way, closed);
    if (ended)
        exit(0);
}

/* Have all clients connected, with at most `width` of them on their way at a time. Who is closed before its CONNACK, tries
 * again. */
static void connect_all(int count, int width)
{
    uint64_t since = clock_ns();
    int next = 0;
    client_count = count;
    while (ready + (int)refused < count) {
        for (; next < count && under_way < width; next++)
            if (clients[next].stage == AWAY)
                open_connection(&clients[next]);
        if (next == count && ready + under_way + (int)refused < count)
            next = 0;
        turn(10);
        check_time(since, "every client is connected");
    }
    pinging = options.kind == CLIENT;
    tell(since);
}

static void subscribe_all(void)
{
    uint64_t since = clock_ns();
    int next = 0, sent = 0;
    subscribed = 0;
    while (subscribed < sent || next < client_count) {
        for (; next < client_count && sent - subscribed < options.width; next++) {
            uint8_t packet[512];
            if (clients[next].stage != CONNECTED)
                continue;
            clients[next].stage = SUBSCRIBING;
            sent++;
            put_out(&clients[next], packet, put_subscribe(packet));
        }
        turn(10);
        check_time(since, "every client is subscribed");
    }
    tell(since);
}

static void stay(double seconds)
{
    uint64_t since = clock_ns();
    latencies.count = 0;
    do {
        turn(10);
        check_time(now, "");
    } while ((double)(now - since) < seconds * SECOND);
    tell(since);
}

/* The first client publishes, and every client that reads gets it. Pings are left out, for their latencies. */
static void fan(void)
{
    static uint16_t id;
    uint8_t packet[1024];
    uint64_t since = clock_ns();
    bool pinged = pinging;
    pinging = false;
    latencies.count = 0;
    clients[0].began = since;
    put_out(&clients[0], packet, put_publish(packet, ++id ? id : ++id, 64));
    while (received < (uint64_t)ready) {
        turn(10);
        check_time(since, "every client has the message");
    }
    pinging = pinged;
    tell(since);
}

/* Publish to all, so many messages a second, for so long. */
static void feed(double seconds, double rate, size_t size)
{
    static uint8_t packet[LARGEST];
    uint64_t since = clock_ns(), sent = 0;
    now = since;
    do {
        while ((double)sent < (double)(now - since) / SECOND * rate) {
            clients[0].began = now;
            put_out(&clients[0], packet, put_publish(packet, (uint16_t)(sent++ % UINT16_MAX + 1), size));
        }
        turn(5);
        check_time(now, "");
    } while ((double)(now - since) < seconds * SECOND);
    tell(since);
}

/* Clients but the first read no more. */
static void deafen(void)
{
    int little = 4096;
    for (int i = 1; i < client_count; i++) {
        if (clients[i].stage != CONNECTED)
            continue;
        clients[i].deaf = true;
        setsockopt(clients[i].fd, SOL_SOCKET, SO_RCVBUF, &little, sizeof little);
        watch(&clients[i], EPOLL_CTL_MOD, 0);
    }
    tell(clock_ns());
}

/* Connect, and take leave at the CONNACK, again and again; `rate` a second, or 0: as often as it goes. */
static void churn(double seconds, double rate)
{
    uint64_t since = clock_ns(), begun = 0;
    bool open = true;
    latencies.count = 0;
    churning = true;
    now = since;
    while (open || opened > 0) {
        double elapsed = (double)(now - since) / SECOND;
        open = elapsed < seconds;
        while (open && under_way < options.width && (rate == 0 || (double)begun < elapsed * rate)) {
            struct client *c = &clients[begun++ % MOST_CLIENTS];
            if (c->stage == AWAY)
                open_connection(c);
        }
        turn(rate > 0 ? 1 : 10);
        check_time(open ? now : since + (uint64_t)(seconds * SECOND), "every client has left");
    }
    churning = false;
    tell(since);
}

static void storm(void)
{
    int count = client_count;
    for (int i = 0; i < count; i++)
        drop(&clients[i]);
    connect_all(count, count);
}

static void obey(const char *line)
{
    double seconds, rate;
    int count;
    if (sscanf(line, "connect %d", &count) == 1 && count > 0 && count <= MOST_CLIENTS)
        connect_all(count, options.width);
    else if (strcmp(line, "subscribe") == 0)
        subscribe_all();
    else if (sscanf(line, "stay %lf", &seconds) == 1)
        stay(seconds);
    else if (strcmp(line, "fan") == 0)
        fan();
    else if (sscanf(line, "feed %lf %lf %d", &seconds, &rate, &count) == 3 && count > 0 && count < LARGEST / 2)
        feed(seconds, rate, (size_t)count);
    else if (strcmp(line, "deafen") == 0)
        deafen();
    else if (sscanf(line, "churn %lf %lf", &seconds, &rate) == 2)
        churn(seconds, rate);
    else if (strcmp(line, "storm") == 0)
        storm();
    else
        quit(1, "`%s` is not a command", line);
}

static enum kind kind(const char *text)
{
    static const char *const names[] = {"client", "silent", "half", "drip-connect", "drip-publish"};
    for (int i = 0; i < 5; i++)
        if (strcmp(text, names[i]) == 0)
            return (enum kind)i;
    quit(2, "--kind is client, silent, half, drip-connect or drip-publish, not `%s`", text);
}

static const char *text(const char *name, const char *value)
{
    if (strlen(value) > 200)
        quit(2, "--%s takes at most 200 bytes", name);
    return value;
}

static void read_options(int argc, char **argv)
{
    enum { PORT, KIND, KEEP_ALIVE, PING, EXPIRY, WIDTH, PREFIX, USER, PASSWORD };
    static const struct option names[] = {
        {"port", 1, NULL, PORT}, {"kind", 1, NULL, KIND}, {"keep-alive", 1, NULL, KEEP_ALIVE}, {"ping", 1, NULL, PING},
        {"expiry", 1, NULL, EXPIRY}, {"width", 1, NULL, WIDTH}, {"prefix", 1, NULL, PREFIX}, {"user", 1, NULL, USER},
        {"password", 1, NULL, PASSWORD}, {NULL, 0, NULL, 0}
    };
    int which, index;
    while ((which = getopt_long(argc, argv, "", names, &index)) != -1) {
        const char *name = which == '?' ? "" : names[index].name;
        switch (which) {
        case PORT: options.port = (int)number(name, optarg, 1, 65535); break;
        case KIND: options.kind = kind(optarg); break;
        case KEEP_ALIVE: options.keep_alive = (int)number(name, optarg, 0, 65535); break;
        case PING: options.ping = number(name, optarg, 0.1, 65535); break;
        case EXPIRY: options.expiry = (int)number(name, optarg, 0, 1e9); break;
        case WIDTH: options.width = (int)number(name, optarg, 1, MOST_CLIENTS); break;
        case PREFIX: options.prefix = text(name, optarg); break;
        case USER: options.user = text(name, optarg); break;
        case PASSWORD: options.password = text(name, optarg); break;
        default: exit(2); /* getopt has said why */
        }
    }
    if (optind < argc)
        quit(2, "`%s` is not an option", argv[optind]);
    if (options.port == 0)
        quit(2, "--port is needed");
}

int main(int argc, char **argv)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    read_options(argc, argv);
    raise_file_limit();
    for (int i = 0; i < MOST_CLIENTS; i++)
        clients[i] = (struct client){.fd = -1, .index = i};
    poller = epoll_create1(0);
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        quit(1, "cannot watch standard input: %s", strerror(errno));
    while (!ended) {
        char *end = memchr(commands, '\n', commands_length);
        if (end == NULL) {
            turn(10);
            continue;
        }
        *end++ = 0;
        obey(commands);
        commands_length -= (size_t)(end - commands);
        memmove(commands, end, commands_length);
    }
    return 0;
}
