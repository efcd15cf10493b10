#!/usr/bin/env bash
# Real PostgreSQL and Redis for the tests: from Debian's packages, on private ports of this machine, with data that is
# thrown away.
#
#   scripts/services.sh start FOLDER [postgres] [redis]   starts them (both unless named) and prints their URLs as
#                                                         AUTH_POOL_TEST_POSTGRES=... and AUTH_POOL_TEST_REDIS=...
#   scripts/services.sh stop FOLDER                       stops what was started with that folder, and removes it
#   scripts/services.sh halt FOLDER                       PostgreSQL ends as if its machine had failed; its data stays
#   scripts/services.sh again FOLDER                      and starts again, where it was
#
# In a shell:  export $(scripts/services.sh start /tmp/services); cargo test; scripts/services.sh stop /tmp/services
# What is missing is installed with apt-get where that is possible (as root).

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  die "usage: scripts/services.sh start FOLDER [postgres] [redis] | stop FOLDER | halt FOLDER | again FOLDER"
}

# package NAME: installs a Debian package.
package() {
  [[ $EUID == 0 ]] && command -v apt-get >/dev/null || die "$1 is missing (Debian: apt-get install $1)"
  say "installing $1"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get install -yq --no-install-recommends "$1" ||
    { apt-get update -q && apt-get install -yq --no-install-recommends "$1"; }; } >&2 || die "apt-get could not install $1"
}

# free_port: a port that nothing listens on. Somebody may take it before it is used; then the start is tried again.
free_port() {
  local port
  for _ in {1..100}; do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      printf '%s\n' "$port"
      return
    fi
  done
  die "no free port"
}

postgres_programs() {
  local found
  found=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
  [[ -n $found ]] || found=$(dirname "$(command -v initdb 2>/dev/null || echo /nowhere/initdb)")
  [[ -x $found/initdb ]] && printf '%s\n' "$found"
}

# as_owner COMMAND...: PostgreSQL refuses to run as root.
as_owner() {
  if [[ $EUID == 0 ]]; then runuser -u postgres -- "$@"; else "$@"; fi
}

start_postgres() {
  local programs data=$folder/postgres password port
  programs=$(postgres_programs) || { package postgresql && programs=$(postgres_programs); } || die "there is no PostgreSQL"
  mkdir -p "$data"
  password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  printf '%s' "$password" >"$data/password"
  if [[ $EUID == 0 ]]; then chown -R postgres "$data"; fi
  chmod 700 "$data"
  as_owner "$programs/initdb" --pgdata="$data/data" --username=auth_pool --pwfile="$data/password" --auth=scram-sha-256 \
    --encoding=UTF8 --no-locale --no-sync >"$folder/initdb.log" 2>&1 || die "initdb failed: $(tail -3 "$folder/initdb.log")"
  for _ in {1..5}; do
    port=$(free_port)
    # fsync is for power cuts, which nobody tests here.
    as_owner tee "$data/data/postgresql.auto.conf" >/dev/null <<CONF
port = $port
listen_addresses = '127.0.0.1'
unix_socket_directories = '$data'
max_connections = 200
fsync = off
CONF
    if start_server; then
      printf 'AUTH_POOL_TEST_POSTGRES=postgres://auth_pool:%s@127.0.0.1:%s/postgres\n' "$password" "$port"
      return
    fi
  done
  die "PostgreSQL does not start: $(tail -3 "$data/log")"
}

start_server() {
  as_owner "$(postgres_programs)/pg_ctl" --pgdata="$folder/postgres/data" --log="$folder/postgres/log" --wait --silent start >&2
}

halt_server() {
  # One that a test has stopped in its tracks has to go on before it can end.
  kill -CONT "$(head -1 "$folder/postgres/data/postmaster.pid")" 2>/dev/null || true
  as_owner "$(postgres_programs)/pg_ctl" --pgdata="$folder/postgres/data" --mode=immediate --wait --silent stop >&2
}

start_redis() {
  local data=$folder/redis port
  command -v redis-server >/dev/null || package redis-server
  mkdir -p "$data"
  for _ in {1..5}; do
    port=$(free_port)
    redis-server --bind 127.0.0.1 --port "$port" --save "" --appendonly no --dir "$data" --daemonize yes \
      --pidfile "$data/pid" --logfile "$data/log" >&2
    for _ in {1..100}; do
      if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && [[ -s $data/pid ]]; then
        printf 'AUTH_POOL_TEST_REDIS=redis://127.0.0.1:%s/\n' "$port"
        return
      fi
      sleep 0.1
    done
  done
  die "Redis does not start: $(tail -3 "$data/log")"
}

stop() {
  if [[ -f $folder/postgres/data/postmaster.pid ]]; then halt_server || true; fi
  local redis
  if [[ -s $folder/redis/pid ]]; then
    redis=$(<"$folder/redis/pid")
    kill -CONT "$redis" 2>/dev/null || true
    kill "$redis" 2>/dev/null || true
    # It writes its log until it is gone.
    for _ in {1..100}; do
      kill -0 "$redis" 2>/dev/null || break
      sleep 0.1
    done
  fi
  rm -rf "$folder"
}

command=${1:-}
folder=${2:-}
[[ -n $folder ]] || usage
# Both servers go elsewhere before they look at it.
[[ $folder == /* ]] || folder=$PWD/$folder
shift 2
case $command in
  start)
    wanted=("${@:-}")
    [[ -n ${wanted[0]} ]] || wanted=(postgres redis)
    [[ ! -e $folder ]] || die "$folder is there already"
    mkdir -p "$folder"
    for service in "${wanted[@]}"; do
      case $service in
        postgres) start_postgres ;;
        redis) start_redis ;;
        *) usage ;;
      esac
    done
    ;;
  stop) stop ;;
  halt) halt_server ;;
  again) start_server ;;
  *) usage ;;
esac
