"""A service that has no TLS until a request asks for it: `late_tls.py HOST
PORT`.

`/` answers, `/secure?...` imports `ssl`, calls `APP_DOWNSTREAM` with the same
query and answers with what that did. One thread for each connection; nothing
it imports imports `ssl`.
"""

import os
import socketserver
import sys
import socket

context = None


def secure(query):
    global context
    import ssl

    if context is None:
        context = ssl.create_default_context(cadata=os.environ["APP_AUTHORITY"])
    host, port = os.environ["APP_DOWNSTREAM"].split("/")[2].split(":")
    with socket.create_connection((host, int(port))) as plain:
        with context.wrap_socket(plain, server_hostname=host) as secured:
            head = "GET /?%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
            secured.sendall((head % (query, host)).encode())
            answer = b""
            while True:
                piece = secured.recv(65536)
                if not piece:
                    break
                answer += piece
    return answer.split(b"\r\n\r\n", 1)[1]


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while True:
            line = self.rfile.readline()
            if not line:
                return
            while self.rfile.readline().strip():
                pass
            path, _, query = line.split()[1].decode().partition("?")
            body = secure(query) if path == "/secure" else b"hello\n"
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.wfile.write(head + body)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    assert "ssl" not in sys.modules
    Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
