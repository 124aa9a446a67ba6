"""Says who it is and ends well, after argv[1] seconds."""

import os
import sys
import time

time.sleep(float(sys.argv[1]) if sys.argv[1:] else 0)
print("done", os.environ["JOB_ID"])
