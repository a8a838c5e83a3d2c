# The server's parent: sh -c THIS berth-server DIR UMASK WORKDIR COMMAND...
#
# The environment comes as BERTH_ENV_0="NAME=value", BERTH_ENV_1 and so on. Not this shell but a program that is none
# makes it the server's: shells keep names of their own (UID, PPID, RANDOM) and lose others.
berth_dir=$1 berth_umask=$2 berth_workdir=$3
shift 3

berth_end() {
  echo "$1" >"$berth_dir/exit"
  exit "$1"
}

if [ -n "$berth_workdir" ]; then
  mkdir -p -- "$berth_workdir" && cd -- "$berth_workdir" || berth_end 126
fi

# berth_export is for an image with neither perl nor python3. It refuses the names that this shell cannot pass on.
berth_export() {
  berth_i=0
  while eval "berth_pair=\${BERTH_ENV_$berth_i-}" && [ -n "$berth_pair" ]; do
    berth_name=${berth_pair%%=*}
    if ! (export "$berth_pair" && eval "[ \"\$$berth_name\" = \"\${berth_pair#*=}\" ]") 2>/dev/null; then
      echo "berth: the shell of this image cannot pass on the variable $berth_name: install perl or python3" >&2
      exit 126
    fi
    export "$berth_pair"
    unset "BERTH_ENV_$berth_i"
    berth_i=$((berth_i + 1))
  done
}

(
  umask "$berth_umask"
  if command -v perl >/dev/null 2>&1; then
    PERL_BADLANG=0 exec perl -e '
      my %given;
      for (my $i = 0; defined(my $pair = delete $ENV{"BERTH_ENV_$i"}); $i++) {
        my ($name, $value) = split /=/, $pair, 2;
        $given{$name} = $value;
      }
      delete $ENV{PERL_BADLANG};
      $ENV{$_} = $given{$_} for keys %given;
      $SIG{$_} = "DEFAULT" for qw(INT QUIT);
      exec { $ARGV[0] } @ARGV;
      print STDERR "$ARGV[0]: $!\n";
      exit($! + 0 == 2 ? 127 : 126);
    ' -- "$@"
  elif command -v python3 >/dev/null 2>&1; then
    exec python3 -I -S -c '
import os, signal, sys
env, i = dict(os.environb), 0
pairs = []
while b"BERTH_ENV_%d" % i in env:
    pairs.append(env.pop(b"BERTH_ENV_%d" % i).split(b"=", 1))
    i += 1
env.update(pairs)
for s in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
    signal.signal(s, signal.SIG_DFL)
try:
    os.execvpe(sys.argv[1], sys.argv[1:], env)
except OSError as e:
    print("%s: %s" % (sys.argv[1], e.strerror), file=sys.stderr)
    sys.exit(127 if isinstance(e, FileNotFoundError) else 126)
' "$@"
  fi
  berth_export
  exec "$@"
)
berth_end $?
