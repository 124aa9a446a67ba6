"""Does one of several things, by its first argument."""

import argparse

parser = argparse.ArgumentParser()
commands = parser.add_subparsers(dest="command", required=True)
commands.add_parser("fit").add_argument("--name")
commands.add_parser("test").add_argument("--checkpoint")
options = parser.parse_args()
print(options.command, getattr(options, "name", ""), flush=True)
