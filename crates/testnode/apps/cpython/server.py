"""A server with a good part of its memory in Python objects: server.py [MB]"""

import html
import itertools
import json
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = "wood frog freezes solid in winter and hops away when it thaws".split()


def catalogue(megabytes):
    """Objects of many kinds and sizes that take about this much memory, the same in each run."""
    records = {}
    # A record takes about 1.6 KB: its dict, strings, numbers and list.
    for number in range(megabytes * 600):
        records[f"item-{number:07}"] = {
            "name": f"{WORDS[number % len(WORDS)]} {number}",
            "price": number * 1.25,
            "tags": [f"{word}-{number}" for word in WORDS[: 3 + number % 5]],
            "text": "".join(f"{WORDS[(number + i) % len(WORDS)]}{number} " for i in range(60)),
        }
    return records


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        if self.path == "/count":
            with server.lock:
                server.count += 1
                body = f"{server.count}\n"
        elif self.path == "/checksum":
            body = f"{server.checksum():08x}\n"
        elif self.path == "/":
            rows = "".join(
                f"<tr><td>{html.escape(key)}<td>{html.escape(record['name'])}<td>{record['price']:.2f}"
                for key, record in itertools.islice(server.records.items(), 50)
            )
            body = f"<!doctype html><title>Catalogue</title><h1>{len(server.records)} items</h1><table>{rows}</table>\n"
        elif self.path == "/item":
            body = json.dumps(server.records["item-0000001"]) + "\n"
        else:
            self.send_error(404)
            return
        data = body.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8" if self.path == "/" else "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *arguments):
        print(self.address_string(), format % arguments, flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, megabytes):
        self.records = catalogue(megabytes)
        self.count = 0
        self.lock = threading.Lock()
        super().__init__(("0.0.0.0", 8080), Handler)

    def checksum(self):
        value = 0
        for key, record in self.records.items():
            value = zlib.crc32(f"{key}{record['name']}{record['price']}{record['tags']}{record['text']}".encode(), value)
        return value


if __name__ == "__main__":
    server = Server(int(sys.argv[1]) if len(sys.argv) > 1 else 195)
    print(f"serving {len(server.records)} records", flush=True)
    server.serve_forever()
