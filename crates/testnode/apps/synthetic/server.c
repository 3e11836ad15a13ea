/*
 * A server of a given size: server [MB] [THREADS]
 *
 * Its memory is filled with numbers that follow from each other, so a page that comes back wrong changes the checksum.
 * All threads but the first one only sleep; they are there to be counted.
 */
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static uint64_t *memory;
static size_t words;
static unsigned long count;

static uint64_t next(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	return x ^ (x << 17);
}

static uint64_t checksum(void)
{
	uint64_t sum = 14695981039346656037u;

	for (size_t i = 0; i < words; i++)
		sum = (sum ^ memory[i]) * 1099511628211u;
	return sum;
}

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void answer(int client)
{
	char request[4096], body[512], head[256];
	size_t have = 0;
	ssize_t length;

	do {
		length = read(client, request + have, sizeof(request) - 1 - have);
		if (length <= 0)
			return;
		have += length;
		request[have] = 0;
	} while (!strstr(request, "\r\n\r\n") && have < sizeof(request) - 1);

	const char *status = "200 OK";
	if (!strncmp(request, "GET /count ", 11))
		snprintf(body, sizeof(body), "%lu\n", ++count);
	else if (!strncmp(request, "GET /checksum ", 14))
		snprintf(body, sizeof(body), "%016llx\n", (unsigned long long)checksum());
	else if (!strncmp(request, "GET / ", 6))
		snprintf(body, sizeof(body), "<!doctype html><title>Synthetic</title><p>%zu MB, %lu requests\n",
			 words * 8 >> 20, count);
	else {
		status = "404 Not Found";
		snprintf(body, sizeof(body), "not found\n");
	}
	int size = snprintf(head, sizeof(head), "HTTP/1.1 %s\r\nContent-Type: text/html\r\nContent-Length: %zu\r\n"
			    "Connection: close\r\n\r\n", status, strlen(body));
	if (write(client, head, size) == size && write(client, body, strlen(body)) > 0)
		shutdown(client, SHUT_WR);
}

int main(int argc, char **argv)
{
	size_t megabytes = argc > 1 ? strtoul(argv[1], NULL, 10) : 32;
	size_t threads = argc > 2 ? strtoul(argv[2], NULL, 10) : 4;
	uint64_t number = 88172645463325252u;

	signal(SIGPIPE, SIG_IGN);
	words = megabytes << 17;
	memory = malloc(words ? words * 8 : 8);
	if (!memory)
		return perror("malloc"), 1;
	for (size_t i = 0; i < words; i++)
		memory[i] = number = next(number);
	for (size_t i = 1; i < threads; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, sleeper, NULL))
			return perror("pthread_create"), 1;
	}

	int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(8080) };
	setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	if (bind(server, (struct sockaddr *)&address, sizeof(address)) || listen(server, 128))
		return perror("port 8080"), 1;
	printf("serving %zu MB with %zu threads\n", megabytes, threads);
	fflush(stdout);
	for (;;) {
		int client = accept(server, NULL, NULL);
		if (client >= 0) {
			answer(client);
			close(client);
		}
	}
}
