# Turns a fresh set of namespaces into a running node. Runs as the node's pid 1 and ends as its init.
# Expects: NODE_DIR (the node's directory on the host), NODE_NAME, NODE_RESOLVER, NODE_HOSTS.
set -eu
# Still the host's /proc: it tells our pid as the host sees it.
read -r outer _ </proc/self/stat
hostname "$NODE_NAME"

# The network namespaces of others are none of the node's business, and it must not keep them alive.
umount -l /run/netns 2>/dev/null || true

# The node's directory stays reachable as /run/testbed, whatever is covered below.
cd "$NODE_DIR"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/testbed /run/cgroup
chmod 1777 /run/lock
mount --bind . /run/testbed
cd /run/testbed

# A fresh sysfs shows this network namespace's devices; it hides the cgroup mounts, so carry them over.
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -l /run/cgroup
rmdir /run/cgroup
mount -t proc proc /proc
# A new network namespace inherits forwarding from the machine; a fresh host has it off, and the
# engine sets its FORWARD policy to DROP only when it turned forwarding on itself.
echo 0 >/proc/sys/net/ipv4/ip_forward

# The disk: a fresh /var and /root of its own, and copies-on-write of /etc and /usr/local.
mkdir -p disk/var disk/root disk/etc disk/etc.work disk/usr-local disk/usr-local.work
mount -t overlay overlay -o lowerdir=/etc,upperdir=disk/etc,workdir=disk/etc.work /etc
mount -t overlay overlay -o lowerdir=/usr/local,upperdir=disk/usr-local,workdir=disk/usr-local.work /usr/local
if [ ! -e disk/installed ]; then
  (cd disk/var && mkdir -p cache lib/docker lib/wharf log spool tmp && chmod 1777 tmp && ln -sfn /run run && ln -sfn /run/lock lock)
  # What the machine itself has of these is not the node's.
  rm -rf /etc/docker /etc/wharf /etc/resolv.conf /etc/hosts /etc/machine-id /usr/local/bin/wharf
  mkdir -p /etc/docker /etc/wharf /usr/local/bin
  printf 'nameserver %s\noptions timeout:1 attempts:2\n' "$NODE_RESOLVER" >/etc/resolv.conf
  printf '127.0.0.1\tlocalhost\n%s' "$NODE_HOSTS" >/etc/hosts
  echo "$NODE_NAME" >/etc/hostname
  tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
  touch disk/installed
fi
mount --bind disk/var /var
mount --bind disk/root /root
chmod 700 /root
if [ -e bin/wharf ]; then
  touch /usr/local/bin/wharf
  mount --bind bin/wharf /usr/local/bin/wharf
fi
# As on a host with systemd: containers may ask for shared or slave propagation.
mount --make-rshared /

echo "$outer" >pid.new
mv pid.new pid
cd /
exec tini -s -- sleep infinity
