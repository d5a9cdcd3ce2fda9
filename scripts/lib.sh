# shellcheck shell=bash
# What the scripts share: where the checkout lies, messages, stages with progress, stamps.
# Sourced, never run. Everything a script says goes to standard error; standard output is for results.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
# shellcheck disable=SC2034  # Used by the scripts that source this file.
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/metal-rpc

say() { echo "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# room GB WHAT: ends the script unless the checkout's disk has so much room for WHAT.
room() {
  local free_gb
  free_gb=$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1000000) }')
  ((free_gb >= $1)) || die "$2 needs $1 GB of disk, $free_gb are free at $ROOT"
}

# stage TITLE COMMAND...: runs COMMAND with its output in a log; says every 15 s how far it is, at
# the end how long it took. When it fails, shows the end of the log and ends the script.
stage() {
  local title=$1 start=$SECONDS log status=0 watcher
  shift
  log=$(mktemp)
  say "$title ..."
  watch_log "$title" "$log" &
  watcher=$!
  "$@" >"$log" 2>&1 || status=$?
  kill "$watcher" 2>/dev/null || true
  wait "$watcher" 2>/dev/null || true
  if ((status != 0)); then
    tail -n 40 "$log" >&2
    rm -f "$log"
    die "$title failed after $((SECONDS - start)) s"
  fi
  rm -f "$log"
  say "$title: done in $((SECONDS - start)) s"
}

# watch_log TITLE LOG: repeats the log's last line while the script lives.
watch_log() {
  local start=$SECONDS last
  while kill -0 $$ 2>/dev/null; do
    sleep 1
    if (((SECONDS - start) % 15 == 14)); then
      last=$(tail -n 1 "$2" | tr '\r' '\n' | tail -n 1)
      say "  $1, $((SECONDS - start + 1)) s: ${last:0:90}"
    fi
  done
}

# fresh NAME INPUTS: whether stamp NAME was last written for exactly these inputs.
fresh() { [[ -f $VENV/.stamps/$1 && $(<"$VENV/.stamps/$1") == "$2" ]]; }

# stamp NAME INPUTS: remembers that NAME is up to date with these inputs.
stamp() {
  mkdir -p "$VENV/.stamps"
  echo "$2" >"$VENV/.stamps/$1"
}

# digest FILE...: one hash over the contents of the files.
digest() { cat "$@" | git hash-object --stdin; }
