# What berth runs in a sandbox, as: sh -c THIS berth MARK look
#                                   sh -c THIS berth MARK logs LINES
#                                   sh -c THIS berth MARK start stay|leave PORT WORKDIR SUPERVISOR COMMAND...
#
# The output begins with a line "MARK STATE" and ends with a line "MARK end": what stands between them is the server's
# log, and what stands before them is a shell's greeting. MARK is new for every run, so that no log can forge a line.
#
# The server is the child of a shell that waits for it and notes its exit code. Files are kept in .berth:
#
#   lock   held while a start finds out whether there is a server already
#   pid    the process number and start time of that shell, and the server's port
#   exit   the exit code of the server that ended
#   log    what the server printed; log.before is that of the server before it
#
# The shell's own variables begin with berth_: a sandbox may have exported any other name, and the server inherits it.
# stay keeps this program running for as long as the server does, as its parent and in its process group, for clouds that
# end what a program leaves behind.
berth_umask=$(umask)
umask 077
berth_mark=$1
berth_act=$2
shift 2
for berth_home in "$HOME" "${TMPDIR:-/tmp}"; do
  berth_dir=$berth_home/.berth
  [ -n "$berth_home" ] && mkdir -p "$berth_dir" 2>/dev/null && [ -w "$berth_dir" ] && break
done

# berth_birth prints when a process started: it tells the process from a later one with the same number.
berth_birth() {
  if [ ! -r /proc/self/stat ]; then
    ps -o lstart= -p "$1" 2>/dev/null | tr -d ' '
    return
  fi
  berth_stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  set -- ${berth_stat##*) }
  [ "$1" != Z ] && [ "$1" != X ] || return 1
  shift 19
  echo "$1"
}

berth_runs() {
  berth_pid= berth_born= berth_port=
  { read -r berth_pid berth_born berth_port <"$berth_dir/pid"; } 2>/dev/null
  [ -n "$berth_born" ] && [ "$(berth_birth "$berth_pid")" = "$berth_born" ]
}

# berth_silence prints why a server that runs cannot be reached, if the kernel tells: nothing listens on its port, or only on
# ::1. Who looks has waited already.
berth_silence() {
  command -v grep >/dev/null 2>&1 && [ -r /proc/net/tcp ] && [ "$berth_act" = look ] || return
  berth_socket=":$(printf %04X "$berth_port") [0-9A-F:]* 0A "
  if grep -q "$berth_socket" /proc/net/tcp; then
    :
  elif ! grep -q "$berth_socket" /proc/net/tcp6 2>/dev/null; then
    echo nowhere
  elif ! grep "$berth_socket" /proc/net/tcp6 | grep -qv -e ' 0*1000000:' -e ' 0*1:'; then
    echo ipv6
  fi
}

berth_report() {
  if berth_runs; then
    echo "$berth_mark running $berth_port $(berth_silence)"
  elif [ -e "$berth_dir/pid" ]; then
    echo "$berth_mark exited $(cat "$berth_dir/exit" 2>/dev/null)"
    tail -n 20 "$berth_dir/log" 2>/dev/null | tail -c 8192
  else
    echo "$berth_mark none"
  fi
  echo
  echo "$berth_mark end"
}

case $berth_act in
look)
  berth_report
  ;;
logs)
  echo "$berth_mark log"
  cat "$berth_dir/log.before" "$berth_dir/log" 2>/dev/null | tail -n "$1" | tail -c 2000000
  echo
  echo "$berth_mark end"
  ;;
start)
  berth_stay=$1 berth_asked=$2 berth_workdir=$3 berth_supervisor=$4
  shift 4
  case $berth_workdir in
  '~') berth_workdir=$HOME ;;
  '~/'*) berth_workdir=$HOME/${berth_workdir#??} ;;
  esac
  exec 9>>"$berth_dir/lock" || exit 1
  if command -v flock >/dev/null 2>&1; then flock 9; fi
  trap '' HUP
  berth_server=
  if ! berth_runs; then
    [ ! -e "$berth_dir/log" ] || mv -f "$berth_dir/log" "$berth_dir/log.before"
    rm -f "$berth_dir/pid" "$berth_dir/exit"
    berth_detach=nohup
    ! command -v setsid >/dev/null 2>&1 || berth_detach=setsid
    [ "$berth_stay" = leave ] || berth_detach=
    $berth_detach sh -c "$berth_supervisor" berth-server "$berth_dir" "$berth_umask" "$berth_workdir" "$@" \
      >"$berth_dir/log" 2>&1 </dev/null 9>&- &
    berth_server=$!
    # A reader meanwhile sees the file whole, or not at all.
    echo "$berth_server $(berth_birth "$berth_server") $berth_asked" >"$berth_dir/pid.new"
    mv -f "$berth_dir/pid.new" "$berth_dir/pid"
  fi
  exec 9>&-
  berth_report
  if [ "$berth_stay" = stay ] && [ -n "$berth_server" ]; then
    exec >/dev/null 2>&1 </dev/null
    wait "$berth_server"
  fi
  ;;
esac
