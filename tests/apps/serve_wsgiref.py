"""Serves the Flask application with `wsgiref`: `serve_wsgiref.py KIND HOST PORT`,
where `single` serves one request after the other and `threads` has a thread
for each connection.
"""

import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from flask_app import app


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


class Single(WSGIServer):
    request_queue_size = 256


class Threads(ThreadingMixIn, Single):
    daemon_threads = True


if __name__ == "__main__":
    kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    server = {"single": Single, "threads": Threads}[kind]
    make_server(host, port, app, server, Quiet).serve_forever()
