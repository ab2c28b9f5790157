"""Twisted's loop in a thread that is not the first: `twisted_thread.py HOST PORT`.

A request's calls are made by functions that block, one turn of the loop after it
was read, and then it is answered. Nothing of that is in a context.

`/hold` keeps the loop where the request was read, with `held` on standard output,
until the process gets `SIGUSR1`.
"""

import http.client
import os
import signal
import sys
import threading
import urllib.parse

from twisted.internet import protocol, reactor

GO_ON = threading.Semaphore(0)
DOWNSTREAM = urllib.parse.urlsplit(os.environ["APP_DOWNSTREAM"])


def fetch(target):
    connection = http.client.HTTPConnection(DOWNSTREAM.hostname, DOWNSTREAM.port)
    connection.request("GET", target)
    connection.getresponse().read()
    connection.close()


class Connection(protocol.Protocol):
    def dataReceived(self, data):
        target = urllib.parse.urlsplit(data.split()[1].decode())
        reactor.callLater(0, self.answer, dict(urllib.parse.parse_qsl(target.query)))
        if target.path == "/hold":
            print("held", flush=True)
            GO_ON.acquire()

    def answer(self, query):
        for call in range(int(query.get("n", "0"))):
            fetch(f"/?id={query['id']}&call={call}")
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    factory = protocol.Factory.forProtocol(Connection)
    reactor.listenTCP(int(sys.argv[2]), factory, interface=sys.argv[1])
    run = lambda: reactor.run(installSignalHandlers=False)
    threading.Thread(target=run, daemon=True).start()
    while True:
        signal.sigwait([signal.SIGUSR1])
        GO_ON.release()


main()
