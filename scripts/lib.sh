# Shared by the scripts beside it; sourced, not run.
# shellcheck shell=bash

set -euo pipefail

# The project's top folder, wherever the script was called from.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() {
  printf '==> %s\n' "$*" >&2
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# need COMMAND WHY: stops with advice when a program is missing.
need() {
  command -v "$1" >/dev/null 2>&1 || die "'$1' is missing: $2"
}

# claude_cli VERSION: prints the path of that pinned build of the official CLI and installs it first when it is not
# there. It lives in the working folder and nowhere else; `npm ci` holds it to the lock file.
claude_cli() {
  local version=$1
  local folder=$root/tests/cli/$version
  local binary=$folder/node_modules/.bin/claude
  [[ -f $folder/package-lock.json ]] || die "no such pinned CLI: $version (there are: $(pinned_versions))"
  if [[ $("$binary" --version 2>/dev/null || true) != "$version "* ]] || ! follows_lock "$folder"; then
    need npm "the official Claude CLI is installed with it (https://nodejs.org)"
    say "installing the official Claude CLI $version into tests/cli/$version (a few hundred MB, once)"
    # Progress belongs on stderr: stdout is the path. npm does not run packages' scripts everywhere, so none is left to
    # it: the one that is needed, the package's own installer, is run by name.
    (cd "$folder" && npm ci --ignore-scripts --loglevel=http --no-progress) >&2 || die "npm could not install the CLI"
    node "$folder/node_modules/@anthropic-ai/claude-code/install.cjs" >&2 || die "the CLI's installer failed"
    [[ $("$binary" --version) == "$version "* ]] || die "$binary does not run"
  fi
  printf '%s\n' "$binary"
}

# follows_lock FOLDER: whether what is installed there is what its lock file says, by the packages' checksums.
follows_lock() {
  local installed=$1/node_modules/.package-lock.json
  [[ -f $installed && -z $(comm -23 <(checksums "$installed") <(checksums "$1/package-lock.json")) ]]
}

checksums() {
  grep -oE '"integrity": "[^"]+"' "$1" | sort -u
}

pinned_versions() {
  local folder
  for folder in "$root"/tests/cli/*/; do
    printf '%s ' "$(basename "$folder")"
  done
}

# build_release: builds the program and prints its path.
build_release() {
  need cargo "the program is written in Rust (https://rustup.rs)"
  say "building auth-pool"
  (cd "$root" && cargo build --release --locked) >&2
  local target=${CARGO_TARGET_DIR:-target}
  [[ $target == /* ]] || target=$root/$target
  printf '%s/release/auth-pool\n' "$target"
}
