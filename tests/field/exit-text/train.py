"""Ends with a sentence."""

import sys

sys.exit("no data in /data: run prepare.py first")
