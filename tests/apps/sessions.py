"""Calls over TLS sessions with memory buffers that take turns: what all of them
received is there before any of it is put into a buffer.
"""

import socket
import ssl
from urllib.parse import urlsplit

TIMEOUT = 30


class Session:
    """A connection, a session, and the buffers between them."""

    def __init__(self, url, context):
        self.url = urlsplit(url)
        address = (self.url.hostname, self.url.port)
        self.socket = socket.create_connection(address, timeout=TIMEOUT)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        host = self.url.hostname
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)
        self.answer = b""

    def handshake(self):
        self.session.do_handshake()

    def ask(self):
        target = f"{self.url.path}?{self.url.query}"
        head = f"GET {target} HTTP/1.1\r\nHost: {self.url.netloc}\r\n\r\n"
        self.session.write(head.encode())

    def listen(self):
        """Reads the answer, whose body is what was asked for."""
        while self.url.query.encode() not in self.answer:
            self.answer += self.session.read(65536)

    def flush(self):
        self.socket.sendall(self.outgoing.read())

    def close(self):
        self.socket.close()


def together(sessions, step):
    """Has each of them take a step, over and over until none waits."""
    waiting = [session for session in sessions if waits(session, step)]
    while waiting:
        received = [(session, session.socket.recv(65536)) for session in waiting]
        waiting = []
        for session, piece in received:
            assert piece, "the other side has closed"
            session.incoming.write(piece)
            if waits(session, step):
                waiting.append(session)


def waits(session, step):
    """Has it take a step; whether it must receive something to go on."""
    try:
        step(session)
        return False
    except ssl.SSLWantReadError:
        return True
    finally:
        session.flush()


def handshakes(urls):
    """The handshakes are made together, the calls one after the other."""
    sessions = opened(urls)
    together(sessions, Session.handshake)
    for session in sessions:
        together([session], Session.ask)
        together([session], Session.listen)
        session.close()


def everything(urls):
    """The calls are made together, too."""
    sessions = opened(urls)
    for step in Session.handshake, Session.ask, Session.listen:
        together(sessions, step)
    for session in sessions:
        session.close()


def opened(urls):
    context = ssl.create_default_context()
    return [Session(url, context) for url in urls]


WAYS = {"handshakes": handshakes, "everything": everything}
