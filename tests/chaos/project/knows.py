"""Says what it knows without giving it away, and waits."""

import hashlib
import os
import time

for name in ("TOKEN", "INLINE"):
    print(name, hashlib.sha256(os.environ[name].encode()).hexdigest())
time.sleep(600)
