"""The stages, one page each."""

import sys

if sys.argv[0] == "-m":  # Python is finding the module that it will run: this process is a command, and not a program that imports us
    from darkroom.ending import end_in_one_line

    end_in_one_line()
