"""Darkroom: develop your own Stable Diffusion from your own photos."""

__version__ = "0.1.0"

import sys

if sys.argv[0] == "-m" or sys.argv[0].endswith("/bin/darkroom"):  # this process is one of our commands, as in stages/__init__.py
    from darkroom.ending import end_in_one_line

    end_in_one_line()
