"""What a framework itself says of the requests it served: a JSON line for
each, in the file that `APP_TRUTH` names.

The applications call `tell` from where their framework shows most: a
middleware, a hook or a signal. Without the variable nothing is written.
"""

import inspect
import json
import os
import traceback

FILE = os.environ.get("APP_TRUTH")


def tell(method, path, status, route=None, handler=None, error=None):
    """Writes a line; it is appended at once, so that workers may share a file."""
    if FILE is None:
        return
    line = {
        "method": method,
        "path": path,
        "status": status,
        "route": route,
        "handler": handler and function(handler),
        "error": error and exception(error),
    }
    with open(FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def function(handler):
    """Where a function is written, beneath what binds and decorates it."""
    while hasattr(handler, "func"):
        handler = handler.func
    handler = inspect.unwrap(getattr(handler, "__func__", handler))
    code = handler.__code__
    return {
        "name": f"{handler.__module__}.{handler.__qualname__}",
        "file": code.co_filename,
        "line": code.co_firstlineno,
    }


def exception(error):
    """As Python prints it, from the frame where it was caught inwards."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else kind.__module__ + "."
    return {
        "type": module + kind.__qualname__,
        "message": str(error),
        "stacktrace": "".join(traceback.format_exception(error)),
    }
