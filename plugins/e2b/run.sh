# How berth runs a program in a sandbox of E2B: bash -c THIS berth look|launch PROGRAM ARGUMENT...
#
# A launch gets its environment on standard input, as NAME=value pairs that each end with a zero byte, and one more such
# byte at the end: envd logs the whole request that starts a process. It starts in a login shell, so that it has the PATH,
# and whatever else, that the template's profile gives to its users.
#
# After a crash, envd starts commands as root until E2B has set it up again. So the first launch notes its user, and
# nothing runs as another one.
berth_note=/tmp/.berth-user
[ "$1" = look ] || (umask 022 && set -C && echo "$EUID" >"$berth_note") 2>/dev/null
if [ -e "$berth_note" ]; then
  read -r berth_user <"$berth_note"
  if [ "$berth_user" != "$EUID" ]; then
    echo "its commands run as the user $EUID, its first server as $berth_user" >&2
    exit 125
  fi
fi
if [ "$1" = look ]; then
  shift
  exec "$@"
fi
shift
while IFS= read -r -d '' berth_pair || { echo "the environment did not arrive whole" >&2 && exit 124; }; [ -n "$berth_pair" ]; do
  export "$berth_pair"
done
exec /bin/bash -l -c 'exec "$0" "$@"' "$@" </dev/null
