#!/bin/sh
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later

# Makes the new Debian below $1 a node that systemd boots in a second and that one can log in to. mmdebstrap calls it.
set -eu
root=$1

chroot "$root" useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/admin"
chmod 0440 "$root/etc/sudoers.d/admin"

# /etc/node is a mount: the image holds no key, so that every checkout can share it. The files belong to whoever runs the
# tests, hence StrictModes.
rm -f "$root"/etc/ssh/ssh_host_*
cat >"$root/etc/ssh/sshd_config.d/node.conf" <<'END'
HostKey /etc/node/host_key
AuthorizedKeysFile /etc/node/authorized_keys
StrictModes no
PasswordAuthentication no
END

# sshd answers before systemd takes /run/nologin away; whoever came early would be sent off.
ln -s /dev/null "$root/etc/tmpfiles.d/systemd-nologin.conf"

# A machine has a default route; what an engine gives a network that leads nowhere differs between its versions.
cat >"$root/etc/systemd/system/default-route.service" <<'END'
[Unit]
Before=ssh.service
[Service]
Type=oneshot
ExecStart=-/usr/sbin/ip route add default dev eth0
[Install]
WantedBy=multi-user.target
END
chroot "$root" systemctl enable default-route.service

# Which firewall a node has its scenario decides. ufw and netfilter-persistent exclude each other: the one is installed,
# the other lies ready.
chroot "$root" systemctl disable firewalld.service ufw.service nftables.service
mkdir "$root/opt/netfilter-persistent"
(
    cd "$root/opt/netfilter-persistent"
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get download netfilter-persistent iptables-persistent
)

# What a container has no hardware, no console or no need for.
chroot "$root" systemctl set-default multi-user.target
chroot "$root" systemctl mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    getty.target console-getty.service systemd-logind.service systemd-udevd.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    systemd-remount-fs.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
