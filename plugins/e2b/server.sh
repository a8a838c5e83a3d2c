# What berth runs in a sandbox, as: bash -c THIS berth start PORT COMMAND... | look | logs LINES
#
# The server is a child of the shell that started it, which waits for its end and writes the exit code down: a later
# look finds it, also from another process and long after envd has forgotten. Files are kept in /tmp/.berth:
#
#   lock   held while a start decides whether there is a server already
#   pid    the shell's process number, its start time and the server's port
#   log    what the server printed; log.1 is that of the server before
#   exit   the exit code of the server that ended
umask 077
dir=/tmp/.berth

# The start time of a process tells it from a later one with the same number. A zombie has ended.
since() {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  set -- ${stat##*) }
  [ "$1" != Z ] && echo "${20}"
}

running() {
  local began
  { read -r pid began port <"$dir/pid"; } 2>/dev/null && [ "$(since "$pid")" = "$began" ]
}

case $1 in
start)
  asked=$2
  shift 2
  mkdir -p "$dir" || exit
  exec 9>>"$dir/lock"
  if command -v flock >/dev/null; then flock -w 20 9; fi
  if running; then
    echo "running $port"
    exit 0
  fi
  [ -e "$dir/log" ] && mv -f "$dir/log" "$dir/log.1"
  : >"$dir/log"
  # Whoever looks meanwhile sees the server before or this one, whole.
  echo "$$ $(since $$) $asked" >"$dir/pid.new" && mv -f "$dir/pid.new" "$dir/pid" || exit
  rm -f "$dir/exit"
  exec 9>&-
  echo "started $asked"
  (
    for berth_look in {1..20}; do
      sleep 0.01
      if grep -q "$(printf ':%04X' "$asked") [0-9A-F]*:0000 0A" /proc/net/tcp /proc/net/tcp6; then
        echo listening
        break
      fi
    done
  ) 2>/dev/null &
  umask 022
  (
    exec >"$dir/log" 2>&1 </dev/null
    # The variables come under other names, so that neither the login profile nor this script is disturbed by them.
    for berth_name in ${!BERTH_ENV_@}; do
      export "${berth_name#BERTH_ENV_}=${!berth_name}"
      unset "$berth_name"
    done
    exec "$@"
  )
  code=$?
  echo "$code" >"$dir/exit"
  exit "$code"
  ;;
look)
  if running; then
    echo running
  elif [ -e "$dir/pid" ]; then
    { read -r code <"$dir/exit"; } 2>/dev/null
    echo "exited $code"
    tail -n 20 "$dir/log"
  else
    echo none
  fi
  ;;
logs)
  [ ! -e "$dir/log" ] || tail -n "$2" "$dir/log"
  ;;
esac
