"""Answers requests and tells where its own objects are.

Prints a line of JSON when it listens: its port, the addresses of code
objects, names and types, and the slots of variables. Each answer is JSON too:
the code objects of the frames that ran when something was sent, reset or
raised. A request is a line, `<port> <depth> <resets>`: where to ask somebody
else before answering, how many frames more to ask and answer with, and how
often to reset a variable before.

Runs with every CPython from 3.8 on and needs nothing else.
"""

import contextvars
import json
import socket
import sys

variable = contextvars.ContextVar("variable")


class Route:
    def __init__(self, path, number):
        self.path = path
        self.number = number


class Request:
    def __init__(self, route):
        self.method = "GET"
        self.route = route


class Slotted:
    __slots__ = ("route",)


class Crowded:
    """More attributes than an instance keeps without a dictionary."""

    def __init__(self):
        for number in range(50):
            setattr(self, "attribute%d" % number, number)


def codes():
    """The code objects of the frames that called, innermost first."""
    frame = sys._getframe(1)
    found = []
    while frame is not None:
        found.append(id(frame.f_code))
        frame = frame.f_back
    return found


def slots(function):
    """Where a function's frame has its variables."""
    code = function.__code__
    names = list(code.co_varnames)
    for name in code.co_cellvars:
        if sys.version_info < (3, 11) or name not in names:
            names.append(name)
    names.extend(code.co_freevars)
    return {name: slot for slot, name in enumerate(names)}


def entries(error):
    """The traceback of an exception, outermost first."""
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        found.append([id(traceback.tb_frame.f_code), traceback.tb_lasti, traceback.tb_lineno])
        traceback = traceback.tb_next
    return found


def answer(connection, told, path, request, scope, pair, slotted, resets):
    captured = "captured \u20ac"

    def peek():
        return captured

    for _ in range(resets):
        variable.reset(variable.set("value"))
    told["captured"] = peek()
    told["response"] = codes()
    connection.sendall(json.dumps(told).encode())


def descend(depth, call):
    """Calls through Python, through C and through a generator in turns."""
    if depth == 0:
        return call()
    if depth % 3 == 0:
        return list(map(lambda rest: descend(rest, call), [depth - 1]))
    if depth % 3 == 1:
        return next(descend(rest, call) for rest in [depth - 1])
    return descend(depth - 1, call)


def handle(connection, told, depth, resets):
    crowded = Crowded()
    opened = Route("/opened", 1)
    vars(opened)["later"] = 2
    mixed = {1: "one", ("a", 2): "two", "route": Route("/mixed", 3)}
    nothing = None
    slotted = Slotted()
    slotted.route = Route("/slotted", 4)
    route = Route("/items/{n\u00e9}", 7_000_000_000)
    descend(
        depth,
        lambda: answer(
            connection,
            told,
            "/plain",
            Request(route),
            {"type": "http", "route": route},
            ("first", [-1.5]),
            slotted,
            resets,
        ),
    )
    return crowded, opened, mixed, nothing


def fails(depth):
    if depth:
        return fails(depth - 1)
    try:
        return {}["kéy"]
    except KeyError as error:
        raise ValueError("d\u00e9tail", 42, -1.5, None, b"more") from error


def raised():
    try:
        return fails(3)
    except ValueError as error:
        return {
            "address": id(error),
            "entries": entries(error),
            "cause": id(error.__cause__),
            "cause_entries": entries(error.__cause__),
        }


def refused():
    """An exception that C code raises, which up to 3.11 is made late."""
    try:
        return int("twelve")
    except ValueError as error:
        return {"entries": entries(error), "message": str(error)}


def reset():
    token = variable.set("value")
    found = codes()
    variable.reset(token)
    return found


def ask(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        found = codes()
        connection.sendall(b"HELLO")
        connection.recv(16)
    return found


def serve(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            port, depth, resets = map(int, connection.recv(64).split())
            told = {"reset": reset(), "raised": raised(), "refused": refused()}
            descend(depth, lambda: told.update(request=ask(port)))
            handle(connection, told, depth, resets)


def main():
    functions = [answer, handle, serve, raised, refused, reset, ask]
    names = ["path", "number", "route", "attribute10", "missing"]
    listener = socket.create_server(("127.0.0.1", 0))
    told = {
        "port": listener.getsockname()[1],
        "variable": id(variable),
        "header": object.__basicsize__,
        "codes": {function.__name__: id(function.__code__) for function in functions},
        "slots": {function.__name__: slots(function) for function in functions},
        "names": {name: id(sys.intern(name)) for name in names},
        "types": {kind.__name__: id(kind) for kind in [Slotted, ValueError, KeyError, str]},
    }
    print(json.dumps(told), flush=True)
    serve(listener)


if __name__ == "__main__":
    main()
