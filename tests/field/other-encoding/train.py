"""Prints what is no UTF-8, as a German or a Chinese program on an old locale does."""

import sys

sys.stdout.buffer.write("Verlust: gr\xf6\xdfer\n".encode("latin-1"))
sys.stdout.buffer.write("损失\n".encode("gb18030"))
sys.stdout.buffer.write("损失 in UTF-8\n".encode())
sys.stdout.flush()
