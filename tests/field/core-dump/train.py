"""Ends by a fault in native code, and may leave the memory of the process behind."""

import ctypes
import resource

resource.setrlimit(resource.RLIMIT_CORE, (2**20, 2**20))
print("calling the kernel", flush=True)
ctypes.string_at(0)
