"""Threads that stand still in every kind of Python code, and say where.

Run as `stack_target.py [MODE]`; prints a line when all is in place, and obeys
one byte at a time on standard input:

    t   print the truth, one line of JSON: every thread's frames, as
        `sys._current_frames()` has them, with the locals of functions
    end of input: end

Modes: `parked` (the default), `interpreters` (sub-interpreters) and `busy N`
(so many threads that run; it prints which function may call which).

For Python 3.8 and newer, without anything but the standard library.
"""

import asyncio
import contextlib
import functools
import json
import os
import re
import sys
import threading
import types

READY, TELL_READY = os.pipe()
GATE, OPEN_GATE = os.pipe()

# Long enough for 200 frames of recursion inside everything else.
DEPTH = 200


def park():
    # One line, so that there is one line number from the moment it is told on.
    return os.write(TELL_READY, b"p") and os.read(GATE, 1)


# --- Where the threads stand ------------------------------------------------


def recursion(depth=DEPTH):
    if depth == 1:
        return park()
    below = depth - 1
    return recursion(below)


def generators():
    def inner(start):
        yield start
        yield park()

    def middle(count):
        own = "middle"
        yield from inner(count)

    def outer():
        for item in middle(7):
            yield item

    return list(outer())


def coroutines():
    async def leaf(value):
        local = [value, value * 2]
        park()
        return local

    async def branch(value):
        result = await leaf(value + 1)
        return result

    async def root():
        await asyncio.sleep(0)
        return await branch(1)

    return run(root())


def tasks():
    async def worker(number):
        await asyncio.sleep(0)
        if number == 2:
            park()
        return number

    async def gather():
        return await asyncio.gather(worker(1), worker(2))

    return run(gather())


def async_generators():
    async def numbers(limit):
        for number in range(limit):
            if number == 1:
                park()
            yield number

    async def consume():
        total = 0
        async for number in numbers(3):
            total += number
        return total

    return run(consume())


def async_comprehensions():
    async def letters():
        yield "a"
        park()

    async def collect():
        prefix = "-"
        return [prefix + letter async for letter in letters()]

    return run(collect())


def async_context():
    class Manager:
        async def __aenter__(self):
            park()

        async def __aexit__(self, *exception):
            return None

    async def enter():
        async with Manager():
            return None

    return run(enter())


def run(coroutine):
    loop = asyncio.new_event_loop()
    return loop.run_until_complete(coroutine)


def list_comprehension():
    factor = 3
    return [park() for item in range(5) if item == factor]


def dict_comprehension():
    outer = "o"
    return {outer + key: park() for key in "k"}


def nested_comprehension():
    return [[park() for inner in {outer}] for outer in (1, 2)]


def set_comprehension():
    captured = 5
    return {(lambda: (captured, item, park()))() for item in range(1)}


def generator_expression():
    return sum(len(park()) for item in (1, 2, 3))


def shadowed_in_comprehension():
    x = "outside"
    inside = [park() for x in ("inside",)]
    return x, inside


def decorated():
    def decorator(label):
        def wrap(function):
            @functools.wraps(function)
            def wrapper(*arguments, **keywords):
                return function(*arguments, label=label, **keywords)

            return wrapper

        return wrap

    @decorator("outer")
    @functools.lru_cache(maxsize=None)
    def decorated_function(first, *rest, label, **keywords):
        return park()

    return decorated_function(1, 2, 3, key="value")


def функция():
    π = 3.141592653589793
    имя = "Ольга"
    数 = "日本語"
    snake = "🐍 emoji"

    def naïve(été):
        return park()

    return naïve((π, имя, 数, snake))


def sort_key():
    return sorted([3, 1, 2], key=lambda number: (number, park()))


def mapped():
    return list(map(park_with, [1]))


def park_with(argument):
    return park()


def reduced():
    def combine(left, right):
        return left + right + len(park())

    return functools.reduce(combine, [1, 2, 3])


def substituted():
    def replacement(match):
        group = match.group(0)
        return group + str(park())

    return re.sub("b", replacement, "abc")


def compared():
    class Key:
        __slots__ = ("rank",)

        def __init__(self, rank):
            self.rank = rank

        def __lt__(self, other):
            return bool(park())

    return sorted([Key(1), Key(2)])


def closures():
    free = "free"
    cell = ["cell"]
    unbound_later = 1

    def middle(argument):
        nonlocal cell
        own_cell = argument

        def innermost():
            nonlocal own_cell
            own_cell = own_cell + 1
            return park(), free, cell

        return innermost()

    del unbound_later
    return middle(41)


def class_body():
    class Meta(type):
        def __new__(metaclass, name, bases, namespace):
            made = super().__new__(metaclass, name, bases, namespace)
            made.parked = park()
            return made

    class Made(metaclass=Meta):
        attribute = 1

        def method(self):
            return self


def class_statement():
    class Body:
        first = 1
        second = park()


def executed():
    source = "def inside():\n    text = 'executed'\n    return park()\n\n\ninside()\n"
    exec(compile(source, "<made up>", "exec"), {"park": park})


def evaluated():
    return eval("park()")


def lambdas():
    return (lambda first, second=2, *rest, **keywords: park())(1, 2, 3, four=4)


def exception_handlers():
    try:
        try:
            raise ValueError("first")
        except ValueError:
            raise KeyError("second")
    except KeyError as caught:
        kept = caught.args
        try:
            raise RuntimeError
        except RuntimeError:
            pass
        finally:
            park()
        del caught


def finally_after_return():
    try:
        return 1
    finally:
        park()


def context_managers():
    @contextlib.contextmanager
    def managed(name):
        try:
            yield name
        finally:
            park()

    with managed("resource") as name:
        inside = name.upper()


def properties():
    class Thing:
        @property
        def value(self):
            return park()

        def __getattr__(self, name):
            return self.value

        def __call__(self, *, keyword):
            return self.missing

        def __del__(self):
            pass

    return Thing()(keyword="only")


def long_expression():
    return (
        len("first")
        + len(
            str(
                park(),
            ),
        )
    )


def compiled(name, body):
    """A function that no one would write by hand."""
    source = "def %s():\n    value = 0\n%s    return value, park()\n" % (name, body)
    namespace = {"park": park}
    exec(compile(source, "<%s>" % name, "exec"), namespace)
    return namespace[name]


# Lines and instructions are told in bytes, and these do not fit one.
far_down = compiled("far_down", "\n" * 1000)
far_in = compiled("far_in", "    value = value + 1\n" * 400)
wide_line = compiled("wide_line", "    value = (%s)\n" % " + ".join(["value"] * 500))
many_variables = compiled(
    "many_variables", "".join("    variable_%d = %d\n" % (n, n) for n in range(300))
)
backwards = compiled("backwards", "    value = [\n\n\n\n        park(),\n    ][0]\n")


class Plain:
    def __init__(self):
        self.name = "plain"
        self.number = 7


class Wide:
    """More attributes than fit a table that instances share."""

    def __init__(self):
        for number in range(40):
            setattr(self, "attribute_%d" % number, number)


class Slotted:
    __slots__ = ("left", "right", "empty")

    def __init__(self):
        self.left = 1
        self.right = "right"


class Text(str):
    pass


class Whole(int):
    pass


class Mapping(dict):
    pass


class Sequence(list):
    pass


class Pair(tuple):
    pass


def numbers():
    zero, one, minus_one = 0, 1, -1
    true, false, none = True, False, None
    digit, two_digits, three_digits = 2**30 - 1, 2**30, 2**60
    smallest, largest = -(2**63), 2**63 - 1
    beyond, far_beyond, minus_far = 2**64, 10**40, -(10**40)
    ellipsis, not_implemented = ..., NotImplemented
    return park()


def floats():
    zero, minus_zero, one, tenth = 0.0, -0.0, 1.0, 0.1
    infinite, minus_infinite, no_number = float("inf"), float("-inf"), float("nan")
    large, huge, largest = 1e16, 1e22, 1.7976931348623157e308
    whole, below = 123456789012345.0, 9999999999999998.0
    tiny, small, smaller, denormal = 1e-4, 1e-5, 2.2250738585072014e-308, 5e-324
    third, sum_of = 1 / 3, 0.1 + 0.2
    return park()


def strings():
    empty, ascii_text, quoted = "", "plain ASCII", "it's \"quoted\""
    single, double = "it's", 'say "it"'
    escapes = "tab\tnewline\nreturn\rbackslash\\ bell\a escape\x1b[31m null\0 delete\x7f"
    latin, latin_control = "café ÿ", "é\x85\xa0\xad"
    two_bytes, four_bytes = "日本語 Ω", "🐍𝄞"
    surrogate, mixed = "\ud800", "a\udc80é"
    unassigned, private, separator = "\u0378", "\ue000", "\u2028\u3000"
    direction = "\u202eevil"
    return park()


def bytestrings():
    empty, plain, quoted = b"", b"bytes", b"it's"
    every = bytes(range(48))
    high = bytes(range(120, 136)) + b"\xff"
    return park()


def containers():
    empty_tuple, single, pair = (), (1,), (1, "two")
    empty_list, nested = [], [1, [2, [3, [4]]]]
    empty_dict, general = {}, {1: "one", "two": 2, None: 3.5}
    plain_keys = {"a": 1, "b": [2]}
    empty_set, numbers_set, frozen = set(), {5}, frozenset({"x"})
    items = {"a": 1, "b": 2, "c": 3, "d": 4}
    del items["b"]
    emptied = {"a": 1}
    emptied.clear()
    return park()


def instances():
    plain = Plain()
    materialised = Plain()
    materialised.__dict__["extra"] = 1
    deleted = Plain()
    del deleted.name
    wide, slotted = Wide(), Slotted()
    subclass_text, subclass_int = Text("text"), Whole(5)
    subclass_dict, subclass_list, subclass_tuple = Mapping(a=1), Sequence([1]), Pair((1, 2))
    function, method, builtin = park, plain.__init__, len
    class_itself, module, exception = Plain, os, ValueError("broken")
    return park()


def arguments_of_all_kinds(positional, default=2, *rest, only, other=4, **keywords):
    return park()


def too_large():
    numbers = list(range(10000))
    table = {number: "value" for number in range(10000)}
    text = "x" * 100000
    data = b"y" * 100000
    deep = []
    for _ in range(500):
        deep = [deep]
    circle = []
    circle.append(circle)
    huge = 10**4000
    return park()


def unbound():
    bound = 1
    deleted = 2
    del deleted
    park()
    never = 3
    return bound, never


SITUATIONS = [
    recursion,
    generators,
    coroutines,
    tasks,
    async_generators,
    async_comprehensions,
    async_context,
    list_comprehension,
    dict_comprehension,
    nested_comprehension,
    set_comprehension,
    generator_expression,
    shadowed_in_comprehension,
    decorated,
    функция,
    sort_key,
    mapped,
    reduced,
    substituted,
    compared,
    closures,
    class_body,
    class_statement,
    executed,
    evaluated,
    lambdas,
    exception_handlers,
    finally_after_return,
    context_managers,
    properties,
    long_expression,
    far_down,
    far_in,
    wide_line,
    many_variables,
    backwards,
    numbers,
    floats,
    strings,
    bytestrings,
    containers,
    instances,
    functools.partial(arguments_of_all_kinds, 1, only=3, extra="e"),
    too_large,
    unbound,
]


# --- What the interpreter itself says -----------------------------------------

# `CO_OPTIMIZED`: the code of a function, whose variables are in its frame.
OPTIMIZED = 1


def look(value):
    """What a value is shown as: `repr`, but without addresses, and without
    asking classes that have a `__repr__` of their own."""
    for kind in (int, float, str, bytes):
        if isinstance(value, kind):
            return (type(value) if kind is int and type(value) is bool else kind).__repr__(value)
    if isinstance(value, list):
        return "[%s]" % ", ".join(map(look, value))
    if isinstance(value, tuple):
        return "(%s)" % (look(value[0]) + "," if len(value) == 1 else ", ".join(map(look, value)))
    if isinstance(value, dict):
        return "{%s}" % ", ".join("%s: %s" % (look(k), look(v)) for k, v in dict.items(value))
    if isinstance(value, types.ModuleType):
        return "<module %r>" % value.__name__
    if isinstance(value, types.MethodType):
        return "<bound method %s of %s>" % (value.__func__.__qualname__, look(value.__self__))
    if isinstance(value, types.CellType):
        return "<cell: %s>" % look(value.cell_contents)
    if isinstance(value, AS_PYTHON_DOES):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    name, module = type(value).__qualname__, type(value).__module__
    return "<%s object>" % (name if module == "builtins" else module + "." + name)


AS_PYTHON_DOES = (
    type,
    type(None),
    type(...),
    type(NotImplemented),
    set,
    frozenset,
    BaseException,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.GeneratorType,
    types.CoroutineType,
    types.AsyncGeneratorType,
)


def frames_from(frame):
    told = []
    while frame is not None:
        code = frame.f_code
        variables = dict(frame.f_locals) if code.co_flags & OPTIMIZED else {}
        if code.co_name == "too_large":
            variables = dict.fromkeys(variables)
        told.append(
            {
                "name": code.co_name,
                "qualname": getattr(code, "co_qualname", None),
                "file": code.co_filename,
                "line": frame.f_lineno,
                "locals": {name: look(value) for name, value in variables.items()},
            }
        )
        frame = frame.f_back
    return told


def tell(main_frame):
    frames = sys._current_frames()
    threads = []
    for thread in threading.enumerate():
        is_main = thread is threading.main_thread()
        innermost = main_frame if is_main else frames[thread.ident]
        threads.append(
            {
                "name": thread.name,
                "native_id": thread.native_id,
                "ident": thread.ident,
                "frames": frames_from(innermost),
            }
        )
    say({"version": list(sys.version_info[:3]), "pid": os.getpid(), "threads": threads})


def say(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def obey():
    # One line, so that the main thread is on it whatever it does.
    while os.read(0, 1) == b"t": tell(sys._getframe())  # fmt: skip


# --- Threads that run ---------------------------------------------------------


def busy_root():
    while True:
        busy_left(12)
        busy_right(9)
        for _ in busy_generator(5):
            pass


def busy_left(depth):
    if depth:
        busy_right(depth - 1)
        busy_leaf()


def busy_right(depth):
    if depth:
        busy_left(depth - 1)
    else:
        busy_other_leaf(depth)


def busy_leaf():
    number = 3
    return number * 2


def busy_other_leaf(argument):
    return sorted([argument, 1], key=busy_key)


def busy_key(number):
    return -number


def busy_generator(count):
    for number in range(count):
        busy_leaf()
        yield number


# Which function may be called by which.
EDGES = {
    "busy_left": ["busy_root", "busy_right"],
    "busy_right": ["busy_root", "busy_left"],
    "busy_leaf": ["busy_left", "busy_generator"],
    "busy_other_leaf": ["busy_right"],
    "busy_key": ["busy_other_leaf"],
    "busy_generator": ["busy_root"],
    "busy_root": ["run"],
    "run": ["_bootstrap_inner"],
    "_bootstrap_inner": ["_bootstrap"],
    "_bootstrap": [],
}


# --- Sub-interpreters ---------------------------------------------------------

INSIDE = """
import os

def inside(depth):
    if depth:
        return inside(depth - 1)
    return os.write({ready}, b"p") and os.read({gate}, 1)

inside(3)
"""


def in_an_interpreter():
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    script = INSIDE.format(ready=TELL_READY, gate=GATE)
    interpreters.run_string(interpreters.create(), script)


def start(function, name):
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()


def main():
    mode = sys.argv[1] if len(sys.argv) > 1 else "parked"
    if mode == "busy":
        for number in range(int(sys.argv[2])):
            start(busy_root, "busy-%d" % number)
        say(EDGES)
    else:
        if mode == "interpreters":
            SITUATIONS[:] = [in_an_interpreter] * 2
        for situation in SITUATIONS:
            start(situation, getattr(situation, "__name__", "partial"))
            os.read(READY, 1)
        say("parked")
    obey()
    os._exit(0)


if __name__ == "__main__":
    main()
