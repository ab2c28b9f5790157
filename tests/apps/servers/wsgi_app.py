"""A WSGI application for any server: `waitress-serve servers.wsgi_app:app`.

`/after` makes its calls when the response has been sent, as the server closes
what was returned.
"""

from client import BlockingClients
from servers.work import calls

clients = BlockingClients()


class Body(list):
    """A response that has something left to do."""

    def __init__(self, query):
        super().__init__([b"ok"])
        self.query = query

    def close(self):
        call(self.query)


def call(query):
    library, urls = calls(query)
    for url in urls:
        clients.get(library, url)


def app(environ, start_response):
    query = environ.get("QUERY_STRING", "")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    if environ["PATH_INFO"] == "/after":
        return Body(query)
    call(query)
    return [b"ok"]
