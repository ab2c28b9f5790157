"""Every code object of some large modules, and what Python says of them.

Prints one line of JSON for each: its address, its names and counts, and the
place of every instruction. Then a line that says "end", and waits until its
input ends. Runs on Python 3.8 and newer and needs nothing else.
"""

import argparse
import dataclasses
import dis
import json
import sys
import types

MODULES = [argparse, dataclasses]


def many_lines():
    """A function with jumps of many lines, backwards too, and no last line."""
    source = "def f(a, *b, c=1, **d):\n    x = [\n" + "\n" * 300
    source += "        a,\n" + "\n" * 500 + "        b]\n"
    source += "".join("    x = a + %d\n" % number for number in range(400))
    source += "    while a(\n\n        b,\n        c):\n"
    source += "        try:\n            a\n        finally:\n            with a: pass\n"
    source += "    class C:\n        def g(self): return a, __class__, [e for e in b]\n"
    return compile(source, "generated.py", "exec")


def codes_in(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)


def positions(code):
    """Line, end line, column and end column of each instruction."""
    n_instructions = len(code.co_code) // 2
    if hasattr(code, "co_positions"):
        return [list(position) for position in code.co_positions()]
    lines = [None] * n_instructions
    if hasattr(code, "co_lines"):
        for start, end, line in code.co_lines():
            lines[start // 2 : end // 2] = [line] * (end // 2 - start // 2)
    else:
        for start, line in dis.findlinestarts(code):
            lines[start // 2 :] = [line] * (n_instructions - start // 2)
    return [[line, None, None, None] for line in lines]


def variables(code):
    """Name and kind of the variable in each slot."""
    together = sys.version_info >= (3, 11)
    for name in code.co_varnames:
        yield name, "Cell" if together and name in code.co_cellvars else "Local"
    for name in code.co_cellvars:
        if not together or name not in code.co_varnames:
            yield name, "Cell"
    for name in code.co_freevars:
        yield name, "Free"


def main():
    codes = list(codes_in(many_lines()))
    for module in MODULES:
        with open(module.__file__) as source:
            codes.extend(codes_in(compile(source.read(), module.__file__, "exec")))
    for code in codes:
        told = {
            "address": id(code),
            "name": code.co_name,
            "qualname": getattr(code, "co_qualname", None),
            "filename": code.co_filename,
            "numbers": [
                code.co_flags,
                code.co_firstlineno,
                code.co_argcount,
                code.co_posonlyargcount,
                code.co_kwonlyargcount,
                code.co_nlocals,
            ],
            "variables": list(variables(code)),
            "positions": positions(code),
        }
        print(json.dumps(told))
    print(json.dumps("end"))
    sys.stdout.flush()
    sys.stdin.read()


main()
