"""Ends by a fault in native code."""

import ctypes

print("calling the kernel", flush=True)
ctypes.string_at(0)
