/* A server for tests: HTTP/1.1 with behaviour set by its environment, or by NAME=VALUE arguments.
 *
 *   PORT (8080)          where it listens
 *   NAME                 what it calls itself in answers
 *   START_DELAY_MS       it listens only after this time
 *   HEALTHY_AFTER_MS     /health answers 503 until this time after the start
 *   EXIT_AFTER_MS        it exits by itself after this time, with EXIT_CODE (0)
 *   IGNORE_TERM=1        it does not end on SIGTERM
 *
 *   /               host name and NAME           /health          200 "healthy" or 503 "unhealthy"
 *   /env            its environment              /health/up|down  sets what /health answers
 *   /bytes/N        N bytes                      /slow/MS         answers after MS milliseconds
 *   /exit/CODE      answers, then exits          /client          the address of the asker
 *   /headers        the request as received      anything else    404
 *
 * `testserver health` asks the server in the same container and exits 0 if it is healthy.
 * Each request is a line on standard output.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
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

static int is_healthy(void) {
	return forced_health >= 0 ? forced_health : elapsed_ms() >= number("HEALTHY_AFTER_MS", 0);
}

static int answer(int fd, const char *path, const char *request) {
	char body[512], host[128] = "";
	gethostname(host, sizeof host - 1);
	if (!strcmp(path, "/")) {
		snprintf(body, sizeof body, "hostname=%s name=%s\n", host, getenv("NAME") ? getenv("NAME") : "");
		return reply(fd, "200 OK", body);
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

/* Serves one connection, request after request; bodies are read and dropped by their length. */
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
		if (answer(fd, path, buffer) || is_last)
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
