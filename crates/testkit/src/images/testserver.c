/* A server for tests: HTTP/1.1 with behaviour set by its environment, or by NAME=VALUE arguments.
 *
 *   PORT (8080)          where it listens
 *   NAME                 what it calls itself in answers
 *   START_DELAY_MS       it listens only after this time
 *   HEALTHY_AFTER_MS     /health answers 503 until this time after the start
 *   EXIT_AFTER_MS        it exits by itself after this time, with EXIT_CODE (0)
 *   IGNORE_TERM=1        it does not end on SIGTERM
 *   FAIL_AFTER_MS        / answers 500 from this time after the start
 *
 *   /               host name and NAME           /health          200 "healthy" or 503 "unhealthy"
 *   /env            its environment              /health/up|down  sets what /health answers
 *   /bytes/N        N bytes                      /slow/MS         answers after MS milliseconds
 *   /exit/CODE      answers, then exits          /client          the address of the asker
 *   /headers        the request as received      /echo            the body of the request
 *   /drip/N/MS      N bytes, evenly over MS ms   /ws              WebSocket: each message comes back
 *   /events/N/MS    N server-sent events, one every MS ms         anything else    404
 *
 * `testserver health` asks the server in the same container and exits 0 if it is healthy.
 * Each request is a line on standard output. On SIGTERM it stops listening, closes WebSockets with code 1001, and ends once that is done.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static struct timespec start;
static volatile int forced_health = -1; /* -1: by time; 0, 1: as set by a request */
static volatile sig_atomic_t ending; /* SIGTERM has come */
static volatile int sockets; /* open WebSockets */

static long number(const char *name, long otherwise) {
	const char *value = getenv(name);
	return value && *value ? atol(value) : otherwise;
}

static long elapsed_ms(void) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000;
}

static void sleep_ms(long ms) {
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };
	while (nanosleep(&time, &time)) {
	}
}

static int send_all(int fd, const char *data, size_t size) {
	while (size > 0) {
		ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
		if (n <= 0)
			return -1;
		data += n;
		size -= n;
	}
	return 0;
}

static int reply_head(int fd, const char *status, size_t size) {
	char head[256];
	int n = snprintf(head, sizeof head,
		"HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\nServer: testserver\r\n\r\n", status, size);
	return send_all(fd, head, n);
}

static int reply(int fd, const char *status, const char *body) {
	return reply_head(fd, status, strlen(body)) || send_all(fd, body, strlen(body)) ? -1 : 0;
}

static int reply_bytes(int fd, long size) {
	static const char block[65536] = { 0 };
	if (reply_head(fd, "200 OK", size))
		return -1;
	for (; size > 0; size -= sizeof block)
		if (send_all(fd, block, size < (long)sizeof block ? (size_t)size : sizeof block))
			return -1;
	return 0;
}

static int reply_env(int fd) {
	char body[65536] = "";
	size_t used = 0;
	for (char **e = environ; *e && used + strlen(*e) + 2 < sizeof body; e++)
		used += sprintf(body + used, "%s\n", *e);
	return reply(fd, "200 OK", body);
}

/* Evenly over the time, 50 pieces a second. */
static int reply_slowly(int fd, long size, long ms) {
	static const char block[65536] = { 0 };
	long pieces = ms / 20 > 0 ? ms / 20 : 1, sent = 0;
	if (reply_head(fd, "200 OK", size))
		return -1;
	for (long piece = 1; piece <= pieces; piece++) {
		for (long until = size / pieces * piece + (piece == pieces ? size % pieces : 0); sent < until;) {
			long n = until - sent < (long)sizeof block ? until - sent : (long)sizeof block;
			if (send_all(fd, block, n))
				return -1;
			sent += n;
		}
		if (piece < pieces)
			sleep_ms(ms / pieces);
	}
	return 0;
}

static int reply_events(int fd, long count, long ms) {
	static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
	char event[64], chunk[96];
	if (send_all(fd, head, sizeof head - 1))
		return -1;
	for (long n = 1; n <= count; n++) {
		int size = snprintf(event, sizeof event, "id: %ld\ndata: event %ld\n\n", n, n);
		if (send_all(fd, chunk, snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", size, event)))
			return -1;
		sleep_ms(ms);
	}
	return send_all(fd, "0\r\n\r\n", 5);
}

static int is_healthy(void) {
	return forced_health >= 0 ? forced_health : elapsed_ms() >= number("HEALTHY_AFTER_MS", 0);
}

static int answer(int fd, const char *path, const char *request) {
	char body[512], host[128] = "";
	gethostname(host, sizeof host - 1);
	if (!strcmp(path, "/")) {
		snprintf(body, sizeof body, "hostname=%s name=%s\n", host, getenv("NAME") ? getenv("NAME") : "");
		int fails = getenv("FAIL_AFTER_MS") && elapsed_ms() >= number("FAIL_AFTER_MS", 0);
		return reply(fd, fails ? "500 Internal Server Error" : "200 OK", body);
	}
	if (!strcmp(path, "/health/up") || !strcmp(path, "/health/down")) {
		forced_health = !strcmp(path, "/health/up");
		return reply(fd, "200 OK", "set\n");
	}
	if (!strcmp(path, "/health"))
		return is_healthy() ? reply(fd, "200 OK", "healthy\n") : reply(fd, "503 Service Unavailable", "unhealthy\n");
	if (!strcmp(path, "/env"))
		return reply_env(fd);
	if (!strcmp(path, "/headers"))
		return reply(fd, "200 OK", request);
	if (!strcmp(path, "/client")) {
		struct sockaddr_in peer = { 0 };
		socklen_t size = sizeof peer;
		getpeername(fd, (struct sockaddr *)&peer, &size);
		snprintf(body, sizeof body, "%s\n", inet_ntoa(peer.sin_addr));
		return reply(fd, "200 OK", body);
	}
	if (!strncmp(path, "/bytes/", 7))
		return reply_bytes(fd, atol(path + 7));
	if (!strncmp(path, "/drip/", 6)) {
		const char *ms = strchr(path + 6, '/');
		return reply_slowly(fd, atol(path + 6), ms ? atol(ms + 1) : 1000);
	}
	if (!strncmp(path, "/events/", 8)) {
		const char *ms = strchr(path + 8, '/');
		return reply_events(fd, atol(path + 8), ms ? atol(ms + 1) : 100);
	}
	if (!strncmp(path, "/slow/", 6)) {
		sleep_ms(atol(path + 6));
		return reply(fd, "200 OK", "slow\n");
	}
	if (!strncmp(path, "/exit/", 6)) {
		reply(fd, "200 OK", "exiting\n");
		shutdown(fd, SHUT_WR);
		printf("exiting with %ld on request\n", atol(path + 6));
		exit(atoi(path + 6));
	}
	return reply(fd, "404 Not Found", "no such path\n");
}

/* SHA-1 (RFC 3174) of a text shorter than 120 bytes, which is all that WebSockets need (RFC 6455, 4.2.2). */
static void sha1(const char *text, unsigned char digest[20]) {
	uint32_t h[5] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 };
	unsigned char message[128] = { 0 };
	size_t size = strlen(text), blocks = (size + 8) / 64 + 1;
	memcpy(message, text, size);
	message[size] = 0x80;
	message[blocks * 64 - 2] = size * 8 >> 8;
	message[blocks * 64 - 1] = size * 8;
	for (size_t block = 0; block < blocks; block++) {
		uint32_t w[80];
		for (int i = 0; i < 16; i++) {
			const unsigned char *at = message + block * 64 + i * 4;
			w[i] = (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
		}
		for (int i = 16; i < 80; i++) {
			uint32_t x = w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16];
			w[i] = x << 1 | x >> 31;
		}
		uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
		for (int i = 0; i < 80; i++) {
			uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 || i >= 60 ? b ^ c ^ d : (b & c) | (b & d) | (c & d);
			uint32_t k = i < 20 ? 0x5a827999 : i < 40 ? 0x6ed9eba1 : i < 60 ? 0x8f1bbcdc : 0xca62c1d6;
			uint32_t next = (a << 5 | a >> 27) + f + e + k + w[i];
			e = d, d = c, c = b << 30 | b >> 2, b = a, a = next;
		}
		h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
	}
	for (int i = 0; i < 20; i++)
		digest[i] = h[i / 4] >> (24 - i % 4 * 8);
}

static int receive_all(int fd, unsigned char *data, size_t size) {
	while (size > 0) {
		ssize_t n = recv(fd, data, size, 0);
		if (n <= 0)
			return -1;
		data += n;
		size -= n;
	}
	return 0;
}

static int send_frame(int fd, unsigned char first, const unsigned char *data, size_t size) {
	unsigned char frame[65536 + 4] = { first };
	size_t head = size < 126 ? 2 : 4;
	frame[1] = size < 126 ? size : 126;
	if (head == 4)
		frame[2] = size >> 8, frame[3] = size;
	memcpy(frame + head, data, size);
	return send_all(fd, (char *)frame, head + size);
}

/* Sends every message back until the client closes, or SIGTERM comes: then the client is told to go. Messages of up to 65535 bytes. */
static void websocket(int fd, const char *request) {
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char text[120] = "", accept[32] = "", head[256];
	unsigned char digest[21] = { 0 };
	const char *key = strcasestr(request, "\r\nsec-websocket-key:");
	if (!key || sscanf(key + 20, " %60[^ \r]", text) != 1) {
		reply(fd, "400 Bad Request", "this path is for WebSockets\n");
		return;
	}
	strcat(text, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
	sha1(text, digest);
	for (int i = 0; i < 7; i++) {
		uint32_t three = digest[i * 3] << 16 | digest[i * 3 + 1] << 8 | digest[i * 3 + 2];
		for (int j = 0; j < 4; j++)
			accept[i * 4 + j] = letters[three >> (18 - 6 * j) & 63];
	}
	accept[27] = '=';
	int n = snprintf(head, sizeof head,
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept);
	if (send_all(fd, head, n))
		return;
	__sync_fetch_and_add(&sockets, 1);
	static const unsigned char going[] = { 0x03, 0xe9 }; /* 1001 */
	for (int told = 0;;) {
		struct pollfd wait = { .fd = fd, .events = POLLIN };
		int ready = poll(&wait, 1, 20);
		/* What has come already is answered before the client is told to go. */
		if (ready == 0 && ending && !told) {
			told = 1;
			if (send_frame(fd, 0x88, going, sizeof going))
				break;
		}
		if (ready <= 0)
			continue;
		unsigned char start[2], length[2], mask[4], data[65536];
		if (receive_all(fd, start, 2))
			break;
		size_t size = start[1] & 127;
		if (size == 127 || (size == 126 && receive_all(fd, length, 2)))
			break;
		if (size == 126)
			size = length[0] << 8 | length[1];
		if (receive_all(fd, mask, 4) || receive_all(fd, data, size))
			break;
		for (size_t i = 0; i < size; i++)
			data[i] ^= mask[i % 4];
		int code = start[0] & 15;
		if (code == 8) {
			if (!told)
				send_frame(fd, 0x88, data, size);
			break;
		}
		if (!told && code != 10 && send_frame(fd, 0x80 | (code == 9 ? 10 : code), data, size))
			break;
	}
	shutdown(fd, SHUT_WR);
	__sync_fetch_and_sub(&sockets, 1);
}

/* Serves one connection, request after request; bodies are read by their length, and dropped unless they are asked back. */
static void *serve(void *argument) {
	int fd = (int)(long)argument, one = 1;
	static __thread char buffer[65536];
	size_t have = 0;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	for (;;) {
		char *end;
		buffer[have] = 0;
		while (!(end = strstr(buffer, "\r\n\r\n"))) {
			ssize_t n = have < sizeof buffer - 1 ? recv(fd, buffer + have, sizeof buffer - 1 - have, 0) : 0;
			if (n <= 0)
				goto out;
			have += n;
			buffer[have] = 0;
		}
		size_t head = end + 4 - buffer;
		char saved = buffer[head], method[16] = "", path[1024] = "";
		buffer[head] = 0;
		const char *length = strcasestr(buffer, "\r\ncontent-length:");
		long body = length ? atol(length + 17) : 0;
		int is_last = strcasestr(buffer, "\r\nconnection: close") || strstr(buffer, " HTTP/1.0\r\n");
		sscanf(buffer, "%15s %1023[^ ?\r]", method, path);
		printf("%s %s\n", method, path);
		int echoes = !strcmp(path, "/echo");
		if (!strcmp(path, "/ws")) {
			websocket(fd, buffer);
			break;
		}
		if (strcasestr(buffer, "\r\nexpect: 100-continue"))
			send_all(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25);
		if ((echoes ? reply_head(fd, "200 OK", body) : answer(fd, path, buffer)) || (is_last && !echoes))
			break;
		buffer[head] = saved;
		have -= head;
		memmove(buffer, buffer + head, have);
		while (body > 0) {
			if (have == 0) {
				ssize_t n = recv(fd, buffer, sizeof buffer - 1, 0);
				if (n <= 0)
					goto out;
				have = n;
			}
			size_t drop = (size_t)body < have ? (size_t)body : have;
			if (echoes && send_all(fd, buffer, drop))
				goto out;
			body -= drop;
			have -= drop;
			memmove(buffer, buffer + drop, have);
		}
	}
out:
	close(fd);
	return NULL;
}

/* Only async-signal-safe calls: write and _exit. */
static void on_term(int signal) {
	(void)signal;
	static const char text[] = "terminated by request\n", no[] = "SIGTERM ignored\n";
	if (number("IGNORE_TERM", 0)) {
		(void)!write(1, no, sizeof no - 1);
		return;
	}
	(void)!write(1, text, sizeof text - 1);
	ending = 1;
	if (sockets == 0)
		_exit(0);
}

/* After SIGTERM: until every WebSocket was closed, for five seconds at most. */
static void *end_later(void *unused) {
	(void)unused;
	while (!ending)
		sleep_ms(20);
	for (int i = 0; i < 250 && sockets > 0; i++)
		sleep_ms(20);
	_exit(0);
}

static void *exit_later(void *unused) {
	(void)unused;
	sleep_ms(number("EXIT_AFTER_MS", 0));
	printf("exiting with %ld after %ld ms\n", number("EXIT_CODE", 0), elapsed_ms());
	exit((int)number("EXIT_CODE", 0));
}

static int ask_health(void) {
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(number("PORT", 8080)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	static const char request[] = "GET /health HTTP/1.0\r\n\r\n";
	char text[256] = "";
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&to, sizeof to)) {
		perror("health: connect");
		return 1;
	}
	send_all(fd, request, sizeof request - 1);
	recv(fd, text, sizeof text - 1, MSG_WAITALL);
	printf("%.*s\n", (int)strcspn(text, "\r\n"), text);
	return strstr(text, " 200 ") ? 0 : 1;
}

int main(int argc, char **argv) {
	clock_gettime(CLOCK_MONOTONIC, &start);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1 && !strcmp(argv[1], "health"))
		return ask_health();
	for (int i = 1; i < argc; i++)
		if (strchr(argv[i], '='))
			putenv(argv[i]);
	struct sigaction action = { .sa_handler = on_term, .sa_flags = SA_RESTART };
	sigaction(SIGTERM, &action, NULL);
	pthread_t thread;
	if (getenv("EXIT_AFTER_MS"))
		pthread_create(&thread, NULL, exit_later, NULL);
	if (!number("IGNORE_TERM", 0))
		pthread_create(&thread, NULL, end_later, NULL);
	sleep_ms(number("START_DELAY_MS", 0));
	int port = (int)number("PORT", 8080), one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 128)) {
		perror("listen");
		return 1;
	}
	printf("listening on %d\n", port);
	for (;;) {
		long fd = accept(listener, NULL, NULL);
		if (fd < 0)
			continue;
		if (pthread_create(&thread, NULL, serve, (void *)fd))
			close(fd);
		else
			pthread_detach(thread);
	}
}
