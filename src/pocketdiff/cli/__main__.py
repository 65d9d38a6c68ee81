"""``python -m pocketdiff.cli``: the command line where the program itself is not on the path."""

from pocketdiff.cli import main

main()
