"""Becomes uWSGI, of the environment that runs this: `python serve_uwsgi.py
ARGUMENTS...`.
"""

import os
import sys

program = os.path.join(sys.prefix, "bin", "uwsgi")
os.execv(program, [program, "--virtualenv", sys.prefix, *sys.argv[1:]])
