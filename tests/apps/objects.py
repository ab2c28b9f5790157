"""Objects of every kind, and what Python itself says of them.

Prints one line of JSON: the address of a dictionary that holds everything,
the lines that a reader from outside must come to, and then waits until its
input ends. Runs on Python 3.8 and newer and needs nothing else.
"""

import collections
import inspect
import json
import re
import sys
import types


class Point(collections.namedtuple("Point", "x y")):
    pass


class Text(str):
    def __init__(self, text):
        self.language = "en"


class Number(int):
    pass


class BigNumber(int):
    def __init__(self, value):
        self.unit = "m"


class Items(list):
    pass


class Pair(tuple):
    def __init__(self, items):
        self.label = "pair"


class Mapping(dict):
    pass


class Plain:
    kind = "class attribute"

    def __init__(self, first, second):
        self.first = first
        self.second = second

    def method(self):
        return self.first

    @property
    def total(self):
        return self.first + self.second


class Derived(Plain):
    other = "of the subclass"

    class Inner:
        pass


class Slotted:
    __slots__ = ("left", "right", "unset")
    shared = 7

    def __init__(self):
        self.left = "slot"
        self.right = 2


class SlottedAndMore(Slotted):
    def __init__(self):
        super().__init__()
        self.extra = "in a dictionary"


class Meta(type):
    of_meta = "metaclass"


class WithMeta(metaclass=Meta):
    of_class = "class"


class Failure(Exception):
    def __init__(self, message, code):
        super().__init__(message, code)
        self.code = code


def with_attributes():
    pass


with_attributes.route = "/items/<int:id>"


def wide():
    """An instance with more attributes than fit beside it."""
    instance = Plain(1, 2)
    for number in range(40):
        setattr(instance, "attribute_%d" % number, number)
    return instance


def materialised():
    """An instance whose dictionary was asked for."""
    instance = Plain("a", "b")
    instance.__dict__["third"] = "c"
    return instance


def reordered():
    """An instance whose attributes were not set in the usual order."""
    instance = Plain.__new__(Plain)
    instance.second = 2
    instance.first = 1
    return instance


def deleted():
    """A dictionary with holes."""
    table = {number: str(number) for number in range(12)}
    for number in (0, 3, 11):
        del table[number]
    return table


def cyclic_list():
    items = [1]
    items.append(items)
    items.append((items, {"self": items}))
    return items


def cyclic_dict():
    table = {"a": 1}
    table["self"] = table
    return table


def closure(number):
    def inner():
        return number, unbound

    if number < 0:
        unbound = None
    return inner


def emptied():
    items = {1, 2, 3}
    items.discard(2)
    return items


def values():
    return {
        "none": None,
        "true": True,
        "false": False,
        "ellipsis": ...,
        "not implemented": NotImplemented,
        "zero": 0,
        "small": 42,
        "negative": -1,
        "digit": 2**30 - 1,
        "two digits": 2**30,
        "sixty bits": -(2**60) + 1,
        "large": 2**100,
        "large negative": -(3**200),
        "ten to the ninth": 10**9,
        "ten to the thirtieth": 10**30,
        "floats": [0.0, -0.0, 1.5, 0.1, 1e16, 1e15, 1e-5, 1e-4, 1e22, 123456.789, 5e-324],
        "not numbers": (float("inf"), float("-inf"), float("nan")),
        "empty": "",
        "ascii": "plain text",
        "latin": "caf\xe9",
        "wide": "\u65e5\u672c\u8a9e",
        "widest": "snake \U0001f40d",
        "quotes": ["it's", 'say "so"', "it's \"both\"", "back\\slash"],
        "controls": "tab\t line\n return\r bell\x07 nul\0 del\x7f",
        "unprintable": "\xa0\xad\u200b\u2028\u3000\ufeff\ue000\U000e0001\U0010ffff",
        "combining": "e\u0301 \u0301",
        "surrogate": "\ud800x",
        "bytes": b"bytes\0\xff'",
        "bytes quotes": b"it's",
        "empty containers": [(), [], {}, set(), frozenset(), b""],
        "tuples": ((1,), (1, 2), ((),)),
        "list": [1, "two", 3.0, None],
        "dict": {"a": 1, "b": [2]},
        "general dict": {1: "one", (1, 2): "pair", "s": b""},
        "holes": deleted(),
        "split": Plain(1, 2).__dict__,
        "reordered": reordered().__dict__,
        "materialised": materialised().__dict__,
        "set": {7},
        "removed": emptied(),
        "frozenset": frozenset([3]),
        "cyclic list": cyclic_list(),
        "cyclic dict": cyclic_dict(),
        "named tuple": tuple(Point(1, 2)),
        "str subclass": Text("sub"),
        "wide str subclass": Text("sub \u65e5"),
        "int subclass": Number(7),
        "big int subclass": BigNumber(-(2**70)),
        "list subclass": Items([1, 2]),
        "tuple subclass": Pair((1, 2)),
        "dict subclass": Mapping(a=1),
        "function": with_attributes,
        "nested function": closure(1),
        "lambda": lambda: 0,
        "method": Plain(1, 2).method,
        "builtin": len,
        "builtin method": [].append,
        "builtin of a type": dict.fromkeys,
        "class": Plain,
        "nested class": Derived.Inner,
        "builtin class": dict,
        "class of a library": collections.OrderedDict,
        "instance": Plain(1, 2),
        "instance of a nested class": Derived.Inner(),
        "slotted": Slotted(),
        "object": object(),
        "exception": ValueError("wrong", 2),
        "exception without": KeyError(),
        "exception of one": KeyError("key"),
        "own exception": Failure("went wrong", 5),
        "generator": (item for item in ()),
    }


ATTRIBUTES = [
    (Plain("one", "two"), ["first", "second", "kind", "missing", "__init__", "total"]),
    (Derived("one", "two"), ["first", "other", "kind", "method", "Inner"]),
    (wide(), ["first", "attribute_0", "attribute_39", "attribute_40"]),
    (materialised(), ["first", "third", "kind"]),
    (reordered(), ["first", "second"]),
    (Slotted(), ["left", "right", "unset", "shared", "missing"]),
    (SlottedAndMore(), ["left", "extra", "shared", "missing"]),
    (Text("sub"), ["language", "missing"]),
    (Number(7), ["missing"]),
    (BigNumber(2**70), ["unit"]),
    (BigNumber(-1), ["unit"]),
    (BigNumber(0), ["unit"]),
    (Pair((1, 2, 3)), ["label"]),
    (Failure("m", 5), ["code", "missing"]),
    (with_attributes, ["route", "missing"]),
    (Plain, ["kind", "method", "missing"]),
    (Derived, ["other", "kind"]),
    (WithMeta, ["of_class", "of_meta"]),
    (collections, ["OrderedDict", "missing"]),
    (None, ["missing"]),
]

TYPES = [
    int,
    Plain,
    Derived.Inner,
    collections.OrderedDict,
    collections.deque,
    re.Pattern,
    types.FunctionType,
    Failure,
    ValueError,
    type(closure(1)),
    Meta,
    json.JSONDecodeError,
]


# === exceptions ===


def fail(depth):
    if depth:
        fail(depth - 1)
    raise Failure(
        "at the bottom",
        depth,
    )


def with_context():
    try:
        fail(2)
    except Failure:
        {}["missing"]


def with_cause():
    try:
        with_context()
    except KeyError as error:
        raise ValueError("from a cause") from error


def without_context():
    try:
        fail(0)
    except Failure:
        raise ValueError("alone") from None


def noted():
    error = ValueError("with notes")
    if hasattr(error, "add_note"):
        error.add_note("first note")
        error.add_note("second note")
    raise error


def cyclic():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__ = second
    second.__cause__ = first
    raise first


def caught(function):
    try:
        function()
    except Exception as error:
        return error


def exceptions():
    functions = [with_context, with_cause, without_context, noted, cyclic]
    return {function.__name__: caught(function) for function in functions}


# === generators ===


class Forever:
    def __await__(self):
        yield "forever"


def count():
    yield 1
    yield 2


def delegate():
    yield from count()


async def inner():
    await Forever()


async def outer():
    await inner()


async def produce():
    yield 1
    await inner()


async def consume():
    async for _ in produce():
        pass


def started(generator):
    generator.send(None)
    return generator


def finished(generator):
    for _ in generator:
        pass
    return generator


def generators():
    consumer = consume()
    consumer.send(None)
    return {
        "created": count(),
        "suspended": started(count()),
        "delegating": started(delegate()),
        "finished": finished(count()),
        "coroutine created": outer(),
        "coroutine": started(outer()),
        "consumer": consumer,
        "async generator": produce(),
    }


# === frames ===


def shared_parameter(shared, plain):
    """A parameter in a cell, a free variable, and one that is not bound."""
    own = "own"

    def innermost():
        local = [own, shared]
        report(
            sys._getframe(),
            local,
        )

    if plain is None:
        never = 1
    return innermost()


def many(*args, flag=True, **kwargs):
    for item in generate(args, flag):
        pass
    return kwargs


def generate(values, flag):
    key = lambda value: shared_parameter(value, flag)
    yield sorted([1], key=key)


class Service:
    def __init__(self):
        self.name = "service"

    def run(self):
        if self.name:
            text = "caf\xe9"
            return many(
                1,
                "two",
                flag=[
                    False
                ],
                option=text,
            )


def tidy(text):
    """Addresses differ in each run, and a module is told by its name alone."""
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return re.sub(r"<module ('[\w.]+') .*>", r"<module \1>", text)


def describe(value):
    return tidy(repr(value))


def static_attribute(instance, name):
    found = inspect.getattr_static(instance, name, None)
    if isinstance(found, types.MemberDescriptorType):
        found = getattr(instance, name, None)
    return found


def type_name(kind):
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return kind.__module__ + "." + kind.__qualname__


def told_exception(error):
    lines, seen, link = [], set(), "first"
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines.append("  %s: %s" % (link, describe(error)))
        entry = error.__traceback__
        while entry:
            name = entry.tb_frame.f_code.co_name
            lines.append("    %s %s" % (name, entry.tb_lineno))
            entry = entry.tb_next
        for note in getattr(error, "__notes__", ()):
            lines.append("    note: %r" % note)
        if error.__cause__ is not None:
            error, link = error.__cause__, "cause"
        elif not error.__suppress_context__:
            error, link = error.__context__, "context"
        else:
            error = None
    return lines


def told_generator(generator):
    prefix = {"g": "gi", "c": "cr", "a": "ag"}[type(generator).__name__[0]]
    frame = getattr(generator, prefix + "_frame")
    waits = getattr(generator, prefix + ("_yieldfrom" if prefix == "gi" else "_await"))
    state = "suspended"
    if frame is None:
        state = "finished"
    elif frame.f_lasti == created_lasti(generator):
        state = "created"
    line = frame.f_lineno if frame else None
    return "%s %s %s %s awaits %s" % (
        type(generator).__name__,
        generator.__qualname__,
        state,
        line,
        describe(waits),
    )


def created_lasti(generator):
    """`f_lasti` of a frame like this one's that has not begun."""
    fresh = {"count": count, "outer": outer, "produce": produce}.get(generator.__name__)
    if fresh is None:
        return None
    fresh = fresh()
    prefix = {"g": "gi", "c": "cr", "a": "ag"}[type(fresh).__name__[0]]
    lasti = getattr(fresh, prefix + "_frame").f_lasti
    if prefix == "cr":
        fresh.close()
    return lasti


def report(frame, argument):
    situation = {
        "values": values(),
        "attributes": ATTRIBUTES,
        "types": TYPES,
        "exceptions": exceptions(),
        "generators": generators(),
        "frame": frame,
    }
    lines = ["values"]
    for name, value in situation["values"].items():
        lines.append("  %s = %s" % (name, describe(value)))
    lines.append("attributes")
    for instance, names in ATTRIBUTES:
        lines.append("  " + describe(instance))
        for name in names:
            found = static_attribute(instance, name)
            lines.append("    %s = %s" % (name, describe(found)))
    lines.append("types")
    lines.extend("  " + type_name(kind) for kind in TYPES)
    lines.append("exceptions")
    for name, error in situation["exceptions"].items():
        lines.append("  " + name)
        lines.extend("  " + line for line in told_exception(error))
    lines.append("generators")
    for name, generator in situation["generators"].items():
        lines.append("  %s: %s" % (name, told_generator(generator)))
    lines.append("frames")
    while frame:
        lines.append("  %s %d" % (frame.f_code.co_name, frame.f_lineno))
        # What a module has are no local variables.
        variables = frame.f_locals if frame.f_code.co_flags & inspect.CO_NEWLOCALS else {}
        for name, value in dict(variables).items():
            lines.append("    %s = %s" % (name, describe(value)))
        frame = frame.f_back
    print(json.dumps({"root": id(situation), "lines": lines}))
    sys.stdout.flush()
    sys.stdin.read()


Service().run()
