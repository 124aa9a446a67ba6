# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
r"""The agent: everything Thunderhead does *on* a node while jobs run.

It is never installed. With every request the controller sends the modules that this request needs on standard input
(``plugins/plugin_utils/program.py``), so it is never out of date; only the standard library of Python 3.9 or newer is
needed. One request, one reply:

    standard input   a line with the length of the program in bytes; the program, which takes the modules from what
                     follows it and calls ``protocol.answer`` once; the modules, compiled and as text; the payload
    standard output  a line ``MARK <length> <length>``; a Python literal and a payload of that many bytes, both within
                     ``limits``

``launching`` leaves one process behind, the supervisor (``supervising``): it holds the node for the job, waits for the
word to start, is the parent of the job's processes until the last has ended, and watches over the job together with the
other nodes' supervisors (``watching``). It is a fork of the agent, so nothing is written to the node and no second
interpreter has to start.

Imports that only some requests need stand inside the functions, and nothing on the way to a start needs collections,
contextlib, json, re, signal, socket or subprocess: with 16 nodes on two cores every millisecond is paid 16 times, and
each of these takes a quarter to all of the time that the interpreter takes to start. For the same reason the agent is
many small modules: what is not needed is not sent.

ansible-test of core 2.20 and later wants a module's ``run_command`` for every process. There is no module here, and no
Ansible: where the agent starts one, pylint is told so.
"""
