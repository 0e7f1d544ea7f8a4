/* Clients in closed loops on one HTTP/1.1 server: each asks, waits for its answer, and asks again.
 *
 * A crowd that is refused comes back at once, some 30,000 times a second, and a generator in Python would take a
 * processor for that from what it measures. This one takes two system calls for a request on a kept connection. It is one
 * thread and one epoll; what a client does next is decided where its answer is read. bench/crowding.py compiles it,
 * writes what is to be done to its standard input, and reads a line of JSON for each phase from its standard output.
 *
 * The input, a line each (requests are raw bytes, so that nothing here knows what is asked for):
 *
 *     server ADDRESS PORT
 *     patience SECONDS         a client that has no answer by then hangs up and asks again
 *     group PAUSE OBEY TIMES   clients that behave alike: mean pause in seconds between two requests (exponential; 0: none),
 *                              whether Retry-After is obeyed (1) or ignored (0), requests of each (0: no end)
 *     source ADDRESS           of the group: a local address that its clients come from in turn; may be repeated
 *     request WEIGHT BYTES     of the group: the whole request follows in so many bytes; may be repeated
 *     phase SECONDS CLIENTS... how many clients of each group there are; phases follow one another without a gap
 *
 * When a phase has fewer clients than the one before, those that are too many hang up at once. The last phase ends early
 * when everybody has had all its requests. An answer belongs to the phase in which it came. Its time counts from when the
 * client began, so it includes connecting where there was no connection. A refusal is a 429 or 503. A request with
 * "Connection: close" gets a connection of its own, since the server says the same in its answer.
 *
 * The output: the line {} when the first phase begins, then a line for each phase as it ends: {"seconds", "cpu",
 * "unanswered", "oldest", "answered", "refused", "kinds"}. "answered" and "refused" are counts for each tenth of a second. Each of
 * "kinds" is a request of the input, in order: "outcomes" by status (or "reset", "no answer", "no connection", "not HTTP");
 * "last_refusal" in seconds from the phase's begin (-1: none); "answered" and "refused" as pairs of microseconds (rounded up
 * by 1.6 % at most) and counts; "told": how many answered requests had been refused 0, 1, 2 ... times before.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum { GROUPS = 16, KINDS = 64, PHASES = 64, SOURCES = 1024, HEAD = 4096, BUCKETS = 2048, TOLD = 64, STATUSES = 600 };
enum { RESET, NO_ANSWER, NO_CONNECTION, NOT_HTTP, FAILURES }; /* recorded as statuses that HTTP does not have */
static const char *const FAILURE[FAILURES] = {"reset", "no answer", "no connection", "not HTTP"};

enum { TURN = 100000 };     /* microseconds that a number of the lists counts */
enum { LARGEST = 16384 };   /* bytes of a request: fits into an empty socket buffer, so a send is never partial */
enum { RECONNECT = 50000 }; /* microseconds that a client rests when its connection failed */
enum { SWEEP = 50000 };     /* microseconds between two looks for those whose patience is over */

struct kind {
    char *data;
    size_t size;
    double weight;
};

struct group {
    double pause;
    int obeys;
    long times;
    int first_kind, kinds;
    struct sockaddr_in sources[SOURCES];
    int source_count;
    int first_client, clients; /* the most of any phase */
};

struct phase {
    double seconds;
    int clients[GROUPS];
};

enum state { GONE, CONNECTING, WAITING, RESTING, DONE };

struct client {
    enum state state;
    int fd; /* -1: no connection */
    int group, number, kind;
    int told;  /* refusals since the last answer */
    long done; /* requests that came to an end */
    int64_t begun, due;
    int place; /* in the heap of those that rest */
    /* the answer that is being read */
    int head_size;
    int64_t missing; /* bytes of the body; -1: the head is not complete */
    int status, closing;
    double retry_after;
    char head[HEAD + 1];
};

struct record { /* of one kind in one phase */
    uint64_t outcomes[STATUSES], answered[BUCKETS], refused[BUCKETS], told[TOLD];
    int64_t last_refusal;
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static int64_t patience = 10000000;
static struct group groups[GROUPS];
static struct kind kinds[KINDS];
static struct phase phases[PHASES];
static int group_count, kind_count, phase_count;

static struct client *clients, **heap;
static int client_count, heap_size, polled;
static struct record records[KINDS];
static uint32_t *answered_turns, *refused_turns;
static int turn_count;
static int64_t phase_begun;

static void fail(const char *what) {
    fprintf(stderr, "closedloop: %s\n", what);
    exit(2);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000) + time.tv_nsec / 1000;
}

static double chance(void) { /* xorshift64*: 0 < chance <= 1, the same in every run */
    static uint64_t state = UINT64_C(0x9E3779B97F4A7C15);
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return ((state * UINT64_C(2685821657736338717) >> 11) + 1) * 0x1p-53;
}

/* A histogram of 64 buckets for each power of two: single microseconds up to 128, then within 1.6 %. */

static int bucket(int64_t value) {
    if (value < 128) return value < 0 ? 0 : (int)value;
    int shift = 63 - __builtin_clzll((uint64_t)value) - 6;
    int index = shift * 64 + (int)(value >> shift);
    return index < BUCKETS ? index : BUCKETS - 1;
}

static int64_t bucket_end(int index) { /* the largest value in it */
    if (index < 128) return index;
    int shift = index / 64 - 1;
    return ((int64_t)(index - shift * 64 + 1) << shift) - 1;
}

/* Those that rest, the next to go on first: a binary heap by `due`. */

static void put(int place, struct client *client) { (heap[place] = client)->place = place; }

static void sift(int place) {
    struct client *moved = heap[place];
    for (; place > 0 && moved->due < heap[(place - 1) / 2]->due; place = (place - 1) / 2) put(place, heap[(place - 1) / 2]);
    for (int child; (child = 2 * place + 1) < heap_size; place = child) {
        if (child + 1 < heap_size && heap[child + 1]->due < heap[child]->due) child++;
        if (moved->due <= heap[child]->due) break;
        put(place, heap[child]);
    }
    put(place, moved);
}

static void wake(struct client *client) { /* take it out of the heap */
    int place = client->place;
    struct client *last = heap[--heap_size];
    if (last == client) return;
    put(place, last);
    sift(place);
}

static void rest(struct client *client, int64_t until) {
    client->state = RESTING;
    client->due = until;
    put(heap_size++, client);
    sift(client->place);
}

/* One request of one client. */

static void begin(struct client *client);

static void hang_up(struct client *client) {
    if (client->fd >= 0) close(client->fd);
    client->fd = -1;
}

static void ended(struct client *client, int outcome) {
    struct group *group = &groups[client->group];
    struct record *record = &records[client->kind];
    int64_t at = now(), took = at - client->begun, pause = 0;
    int turn = (int)((at - phase_begun) / TURN);
    int refused = outcome == 429 || outcome == 503;
    int comes_back = refused && group->obeys && client->retry_after >= 0;
    record->outcomes[outcome]++;
    if (refused) {
        record->refused[bucket(took)]++;
        record->last_refusal = at - phase_begun;
        if (turn < turn_count) refused_turns[turn]++;
        client->told++;
    } else {
        if (outcome >= 200 && outcome < 300) {
            record->answered[bucket(took)]++;
            record->told[client->told < TOLD ? client->told : TOLD - 1]++;
            if (turn < turn_count) answered_turns[turn]++;
        }
        client->told = 0;
    }
    if (outcome < FAILURES || client->closing) hang_up(client);
    if (!comes_back && ++client->done == group->times) {
        hang_up(client);
        client->state = DONE;
        return;
    }
    if (comes_back) pause = (int64_t)(client->retry_after * 1e6);
    else if (outcome < FAILURES && outcome != NO_ANSWER) pause = RECONNECT;
    else if (group->pause > 0) pause = (int64_t)(-log(chance()) * group->pause * 1e6);
    if (pause > 0) rest(client, at + pause);
    else begin(client);
}

static void choose(struct client *client) { /* what to ask for; who obeys asks for the same again */
    struct group *group = &groups[client->group];
    if (group->kinds == 1 || (client->told && group->obeys)) return;
    double all = 0;
    for (int kind = 0; kind < group->kinds; kind++) all += kinds[group->first_kind + kind].weight;
    double left = all * chance();
    int chosen = 0;
    while (chosen < group->kinds - 1 && (left -= kinds[group->first_kind + chosen].weight) > 0) chosen++;
    client->kind = group->first_kind + chosen;
}

static void ask(struct client *client) {
    struct kind *kind = &kinds[client->kind];
    client->state = WAITING;
    client->head_size = 0;
    client->missing = -1;
    if (send(client->fd, kind->data, kind->size, MSG_NOSIGNAL) != (ssize_t)kind->size) ended(client, RESET);
}

static int connected(struct client *client) { /* 1: it is, 0: it will be, -1: it cannot */
    struct group *group = &groups[client->group];
    int on = 1;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0) return -1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (group->source_count) {
        struct sockaddr_in *source = &group->sources[client->number % group->source_count];
        /* The port is chosen when it connects, so that one is taken only from those that are in use to this server. */
        setsockopt(client->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(client->fd, (struct sockaddr *)source, sizeof *source) < 0) return -1;
    }
    int result = connect(client->fd, (struct sockaddr *)&server, sizeof server);
    if (result < 0 && errno != EINPROGRESS) return -1;
    /* Edge-triggered, so that no further call is needed when what is waited for changes. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = client};
    if (epoll_ctl(polled, EPOLL_CTL_ADD, client->fd, &event) < 0) return -1;
    return result == 0;
}

static void begin(struct client *client) {
    choose(client);
    client->begun = now();
    client->retry_after = -1;
    client->closing = 0;
    int ready = client->fd >= 0 ? 1 : connected(client);
    if (ready > 0) ask(client);
    else if (ready == 0) client->state = CONNECTING;
    else ended(client, NO_CONNECTION);
}

static const char *header(const char *head, const char *name) { /* its value, NULL: there is none */
    size_t size = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, size) && line[2 + size] == ':') return line + 3 + size + strspn(line + 3 + size, " ");
    return NULL;
}

static int understood(struct client *client) { /* the head: 1, or 0 if it is not HTTP as it is known here */
    const char *head = client->head, *value;
    if (strncmp(head, "HTTP/1.1 ", 9)) return 0;
    client->status = atoi(head + 9);
    if (client->status < 200 || client->status >= STATUSES) return 0;
    if ((value = header(head, "content-length"))) client->missing = atoll(value);
    else if (client->status == 204) client->missing = 0;
    else return 0;
    if ((value = header(head, "retry-after"))) client->retry_after = atof(value);
    if ((value = header(head, "connection"))) client->closing = !strncasecmp(value, "close", 5);
    return 1;
}

static void readable(struct client *client) {
    static char scrap[65536];
    for (;;) {
        int in_head = client->missing < 0;
        char *into = in_head ? client->head + client->head_size : scrap;
        size_t room = in_head ? (size_t)(HEAD - client->head_size) : sizeof scrap;
        ssize_t got = recv(client->fd, into, room, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) { /* the server closed it: it matters to those that wait for an answer */
            if (client->state == WAITING) ended(client, RESET);
            else hang_up(client);
            return;
        }
        if (client->state != WAITING) { /* an answer that nobody asked for */
            hang_up(client);
            return;
        }
        if (in_head) {
            client->head_size += (int)got;
            client->head[client->head_size] = 0;
            char *end = strstr(client->head, "\r\n\r\n");
            if (!end && client->head_size < HEAD) continue;
            int taken = end ? (int)(end + 4 - client->head) : 0;
            if (end) end[2] = 0;
            if (!end || !understood(client)) {
                ended(client, NOT_HTTP);
                return;
            }
            got = client->head_size - taken;
        }
        client->missing -= got;
        if (client->missing <= 0) {
            ended(client, client->status);
            return;
        }
    }
}

static void happened(struct client *client, uint32_t events) {
    if (client->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) ended(client, NO_CONNECTION);
        else if (events & EPOLLOUT) ask(client);
    } else if (client->fd >= 0 && events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        readable(client);
    }
}

/* Phases. */

static void enter(const struct phase *phase) {
    for (int index = 0; index < client_count; index++) {
        struct client *client = &clients[index];
        int wanted = client->number < phase->clients[client->group];
        if (!wanted && client->state != GONE) {
            if (client->state == RESTING) wake(client);
            hang_up(client);
            client->state = GONE;
        }
    }
    for (int index = 0; index < client_count; index++) /* after those that go, so that their room is free */
        if (clients[index].state == GONE && clients[index].number < phase->clients[clients[index].group]) {
            clients[index].told = 0;
            clients[index].done = 0;
            begin(&clients[index]);
        }
}

static int sweep(int64_t at) { /* ends what took too long; how many have not had all their requests */
    int left = 0;
    for (int index = 0; index < client_count; index++) {
        struct client *client = &clients[index];
        int pending = client->state == WAITING || client->state == CONNECTING;
        if (pending && at - client->begun > patience) ended(client, NO_ANSWER);
        left += client->state != DONE && client->state != GONE;
    }
    return left;
}

static void live(const struct phase *phase, int last) {
    struct epoll_event events[512];
    int64_t end = phase_begun + (int64_t)(phase->seconds * 1e6), swept = phase_begun, at;
    while ((at = now()) < end) {
        if (at - swept >= SWEEP) {
            swept = at;
            if (!sweep(at) && last) return;
        }
        while (heap_size && heap[0]->due <= at) {
            struct client *client = heap[0];
            wake(client);
            begin(client);
        }
        int64_t until = swept + SWEEP < end ? swept + SWEEP : end;
        if (heap_size && heap[0]->due < until) until = heap[0]->due;
        int64_t left = until - now();
        int count = epoll_wait(polled, events, 512, left > 0 ? (int)((left + 999) / 1000) : 0);
        for (int index = 0; index < count; index++) happened(events[index].data.ptr, events[index].events);
    }
}

static double cpu(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + 1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static void print_histogram(const char *name, const uint64_t *counts) {
    const char *comma = "";
    printf(",\"%s\":[", name);
    for (int index = 0; index < BUCKETS; index++)
        if (counts[index]) printf("%s[%lld,%llu]", comma, (long long)bucket_end(index), (unsigned long long)counts[index]), comma = ",";
    printf("]");
}

static void print_kind(const struct record *record) {
    const char *comma = "";
    printf("{\"outcomes\":{");
    for (int outcome = 0; outcome < STATUSES; outcome++) {
        if (!record->outcomes[outcome]) continue;
        if (outcome < FAILURES) printf("%s\"%s\"", comma, FAILURE[outcome]);
        else printf("%s\"%d\"", comma, outcome);
        printf(":%llu", (unsigned long long)record->outcomes[outcome]), comma = ",";
    }
    printf("},\"last_refusal\":%.6f", record->last_refusal < 0 ? -1.0 : 1e-6 * (double)record->last_refusal);
    print_histogram("answered", record->answered);
    print_histogram("refused", record->refused);
    int most = TOLD;
    while (most > 0 && !record->told[most - 1]) most--;
    printf(",\"told\":[");
    for (int times = 0; times < most; times++) printf("%s%llu", times ? "," : "", (unsigned long long)record->told[times]);
    printf("]}");
}

static void print_turns(const char *name, const uint32_t *turns) {
    printf(",\"%s\":[", name);
    for (int turn = 0; turn < turn_count; turn++) printf("%s%u", turn ? "," : "", turns[turn]);
    printf("]");
}

static void print_phase(double used) {
    int64_t at = now(), oldest = at;
    int unanswered = 0;
    for (int index = 0; index < client_count; index++)
        if (clients[index].state == WAITING || clients[index].state == CONNECTING) {
            unanswered++;
            if (clients[index].begun < oldest) oldest = clients[index].begun;
        }
    printf("{\"seconds\":%.6f,\"cpu\":%.6f,\"unanswered\":%d,\"oldest\":%.6f", 1e-6 * (double)(at - phase_begun), used, unanswered,
           1e-6 * (double)(at - oldest));
    print_turns("answered", answered_turns);
    print_turns("refused", refused_turns);
    printf(",\"kinds\":[");
    for (int kind = 0; kind < kind_count; kind++) {
        if (kind) printf(",");
        print_kind(&records[kind]);
    }
    printf("]}\n");
    fflush(stdout);
}

static void run(int number) {
    struct phase *phase = &phases[number];
    double used = cpu();
    memset(records, 0, sizeof records);
    for (int kind = 0; kind < kind_count; kind++) records[kind].last_refusal = -1;
    turn_count = (int)ceil(phase->seconds * 1e6 / TURN);
    answered_turns = calloc((size_t)turn_count + 1, sizeof *answered_turns);
    refused_turns = calloc((size_t)turn_count + 1, sizeof *refused_turns);
    if (!answered_turns || !refused_turns) fail("there is no memory");
    phase_begun = now();
    enter(phase);
    live(phase, number == phase_count - 1);
    print_phase(cpu() - used);
    free(answered_turns);
    free(refused_turns);
}

/* The input. */

static struct sockaddr_in *read_address(struct sockaddr_in *address, const char *text) {
    address->sin_family = AF_INET;
    if (inet_pton(AF_INET, text, &address->sin_addr) != 1) fail("an address must be an IPv4 address in numbers");
    return address;
}

static void read_request(struct group *group, double weight, size_t size) {
    struct kind *kind = &kinds[kind_count];
    if (!group || kind_count == KINDS || size > LARGEST) fail("a request must be one of 64 of 16 KiB at most, of a group");
    kind->data = malloc(size + 1);
    kind->size = size;
    kind->weight = weight;
    if (!kind->data || fread(kind->data, 1, size, stdin) != size) fail("a request is cut short");
    if (!group->kinds++) group->first_kind = kind_count;
    kind_count++;
}

static void read_phase(char *rest) {
    struct phase *phase = &phases[phase_count++];
    if (phase_count > PHASES - 1) fail("there are too many phases");
    phase->seconds = strtod(rest, &rest);
    for (int group = 0; group < group_count; group++) {
        phase->clients[group] = (int)strtol(rest, &rest, 10);
        if (phase->clients[group] > groups[group].clients) groups[group].clients = phase->clients[group];
    }
}

static void read_input(void) {
    char *line = NULL, word[64];
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        struct group *group = group_count ? &groups[group_count - 1] : NULL;
        double number;
        size_t size;
        int port;
        if (sscanf(line, "server %63s %d", word, &port) == 2) read_address(&server, word)->sin_port = htons((uint16_t)port);
        else if (sscanf(line, "patience %lf", &number) == 1) patience = (int64_t)(number * 1e6);
        else if (!strncmp(line, "group ", 6) && group_count < GROUPS) {
            group = &groups[group_count++];
            if (sscanf(line, "group %lf %d %ld", &group->pause, &group->obeys, &group->times) != 3) fail("a group takes three numbers");
        } else if (sscanf(line, "source %63s", word) == 1 && group && group->source_count < SOURCES)
            read_address(&group->sources[group->source_count++], word);
        else if (sscanf(line, "request %lf %zu", &number, &size) == 2) read_request(group, number, size);
        else if (!strncmp(line, "phase ", 6)) read_phase(line + 6);
        else if (line[0] != '\n') fail("a line of the input is not understood");
    }
    free(line);
}

int main(void) {
    read_input();
    for (int group = 0; group < group_count; group++) {
        if (!groups[group].kinds) fail("a group has no request");
        groups[group].first_client = client_count;
        client_count += groups[group].clients;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < (rlim_t)client_count + 16) fail("there are more clients than files may be open");
    clients = calloc((size_t)client_count + 1, sizeof *clients);
    heap = calloc((size_t)client_count + 1, sizeof *heap);
    polled = epoll_create1(EPOLL_CLOEXEC);
    if (!clients || !heap || polled < 0) fail("there is no memory");
    for (int group = 0; group < group_count; group++)
        for (int number = 0; number < groups[group].clients; number++) {
            struct client *client = &clients[groups[group].first_client + number];
            *client = (struct client){.fd = -1, .group = group, .number = number, .kind = groups[group].first_kind};
        }
    printf("{}\n");
    fflush(stdout);
    for (int number = 0; number < phase_count; number++) run(number);
    return 0;
}
