# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later

# On a node: in each of its addresses the last number, $1, becomes $2.
set -eu
sleep 1 # whoever starts this came in by an old one
for old in $(ip -oneline address show dev eth0 scope global | awk '{ print $4 }'); do
    new=$(echo "$old" | sed -E "s,([.:])$1/,\\1$2/,")
    ip address delete "$old" dev eth0
    ip address add "$new" dev eth0
done
ip route replace default dev eth0
# Who knew the address elsewhere learns where it is now.
ip neighbour flush dev eth0
ping -c 1 -w 5 "$(ip -oneline -4 address show dev eth0 | sed -E 's,.* ([0-9.]+)[.][0-9]+/.*,\1.1,')"
