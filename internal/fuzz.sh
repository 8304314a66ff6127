#!/usr/bin/env bash
# Fuzzes every fuzz target of the module, one after another, each for FUZZTIME
# (default 10m). What breaks one is written beside it, under testdata/fuzz, and
# is a case of every test run from then on.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=()
while read -r dir; do
  targets=$(go test -list '^Fuzz' "$dir")
  for target in $(grep '^Fuzz' <<<"$targets"); do
    echo "== $dir $target"
    # A server's other goroutines make coverage flicker: with the usual minute
    # for making an input smaller nothing else would be tried.
    go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10m}" -fuzzminimizetime 20x "$dir" || failed+=("$dir $target")
  done
done < <(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u)
if ((${#failed[@]} > 0)); then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
