# Removes one cluster: processes, namespaces, links, loop devices, mounts, cgroups, files.
# May run twice, at any moment of a cluster's life; copies of it for one cluster wait for each other.
# Arguments: NAME ID DIR REGISTRY_ENTRY HOST_LINK [guard]
# As a guard it waits until its standard input ends, which is when the owner closes it or dies.
name=$1 id=$2 dir=$3 entry=$4 link=$5
# Whatever ends the owner must not end the one that cleans up behind it.
trap '' INT TERM HUP QUIT PIPE
if [ "${6:-}" = guard ]; then while read -r _; do :; done; fi
command exec 9<"$entry" || exit 0
flock 9
# Another copy may have removed the cluster meanwhile, and a new one may have got its name.
grep -qF "$id" "$entry/cluster.json" 2>/dev/null || exit 0

cgroups() { for g in /sys/fs/cgroup/wharf-testbed."$name" /sys/fs/cgroup/*/wharf-testbed."$name"; do [ -d "$g" ] && echo "$g"; done; }

# Every process of a cluster is in one of its cgroups; pids in files are never trusted for killing.
# The parents that wait outside a node's namespaces end with what they wait for, and reap it; they are
# killed only if they do not.
kill_all() {
  n=0
  while [ $n -lt 500 ]; do
    pids=$(cgroups | while read -r g; do find "$g" -name cgroup.procs -exec cat {} + 2>/dev/null; done | sort -un)
    [ -z "$pids" ] && return 0
    for p in $pids; do
      comm=
      read -r comm 2>/dev/null <"/proc/$p/comm"
      case $comm in unshare | nsenter) [ $n -lt 25 ] && continue ;; esac
      kill -9 "$p" 2>/dev/null
    done
    n=$((n + 1))
    sleep 0.02
  done
  return 1
}

kill_all
for n in /run/netns/wb."$name".*; do [ -e "$n" ] && ip netns del "${n##*/}" 2>/dev/null; done
# A process that was on its way into the cluster while its owner died has arrived or failed by now.
kill_all
[ -e "/sys/class/net/$link" ] && ip link del "$link" 2>/dev/null
for b in /sys/block/loop*/loop/backing_file; do
  [ -e "$b" ] || continue
  d=${b#/sys/block/}
  case $(cat "$b" 2>/dev/null) in "$dir"/*) losetup -d "/dev/${d%%/*}" ;; esac
done
while read -r _ _ _ _ point _; do
  case $point in "$dir"/*) umount -l "$point" 2>/dev/null ;; esac
done </proc/self/mountinfo
n=0
while [ -n "$(cgroups)" ] && [ $n -lt 250 ]; do
  cgroups | while read -r g; do find "$g" -depth -type d -exec rmdir {} \; 2>/dev/null; done
  n=$((n + 1))
  [ -z "$(cgroups)" ] || sleep 0.02
done
# Only a directory that carries our mark is removed.
[ -e "$dir/.wharf-testbed" ] && rm -rf "$dir"
rest=$(cgroups; ls -d /run/netns/wb."$name".* "$dir" 2>/dev/null)
# The entry goes last: as long as anything is left, it can be found and tried again.
[ -z "$rest" ] || { echo "left behind:" $rest >&2; exit 1; }
rm -rf "$entry"
