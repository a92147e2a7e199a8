#!/usr/bin/env bash
# Installs grok-oauth-proxy into .venv beside this file. Safe to run again.
#   ./install.sh              install and print the next step
#   ./install.sh --demo       install, then try it against a simulated xAI
#   ./install.sh --headless [--enable-service]
#                             for a server: install, import xai-oauth.json if one lies beside this file, in the current
#                             folder or at home, start the service if wanted, and check everything; asks nothing
# Exit codes: 0 all is well · 1 something failed, or a check found something wrong · 2 unknown option
set -euo pipefail
started_in=$PWD
export HOME="${HOME:-$(unset HOME && echo ~)}" # cloud-init and cron may set none
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/environment.sh

usage="./install.sh, ./install.sh --demo or ./install.sh --headless [--enable-service]"
case "$*" in
    "" | --demo | --headless | "--headless --enable-service" | "--enable-service --headless") ;;
    -h | --help)
        printf '%s\n' "./install.sh            install grok-oauth-proxy into .venv and print the next step" \
            "./install.sh --demo     install it, then try it against a simulated xAI" \
            "./install.sh --headless [--enable-service]" \
            "                        for a server: install it, import xai-oauth.json if one lies here or at home," \
            "                        start the service if wanted, and check everything; asks nothing"
        exit 0
        ;;
    *)
        printf 'Unknown option: %s. Use %s.\n' "$*" "$usage" >&2
        exit 2
        ;;
esac

# import_export: takes over the first export that is found, and removes the file: a login has one place.
import_export() {
    local folder imported
    for folder in "$PWD" "$started_in" "$HOME"; do
        [ -e "$folder/xai-oauth.json" ] || [ -L "$folder/xai-oauth.json" ] || continue
        if [ -L "$folder/xai-oauth.json" ] || [ ! -f "$folder/xai-oauth.json" ]; then
            printf '✗ %s is not a file of its own, so it is not imported. Put the export itself there.\n' "$folder/xai-oauth.json"
            return 1
        fi
        printf 'Importing %s …\n' "$folder/xai-oauth.json"
        imported=$("$program" import --own "$folder/xai-oauth.json") || return 1
        printf '%s\n' "$imported" | grep -v '^Delete the export'
        code=$(printf '%s\n' "$imported" | grep '^Confirmation code: ')
        if ! rm -f "$folder/xai-oauth.json"; then
            printf '✗ The login was imported, but the export is still there, and holds it. Remove it: rm %s\n' "$folder/xai-oauth.json"
            return 1
        fi
        printf 'The export was removed: it held your login.\n'
        return
    done
    where=$started_in
    [ "$HOME" = "$started_in" ] || where="$started_in or in $HOME"
    printf 'No xai-oauth.json lies beside install.sh or in %s: no login is imported.\n' "$where"
}

# check_all: what `doctor` finds wrong, a line each with the next step; asks the API, by way of the proxy if one runs.
check_all() {
    "$program" doctor --online --json | .venv/bin/python -c '
import json, sys
report = json.load(sys.stdin)
for found in report["checks"]:
    if found["state"] == "wrong":
        print("✗ {}: {} → {}".format(found["name"], found["sentence"], found["fix"]))
print("{} checks, {}.".format(len(report["checks"]), "{} wrong".format(report["wrong"]) if report["wrong"] else "none wrong"))
'
}

if [[ $* == *--enable-service* && $EUID = 0 && ${SUDO_USER:-root} != root ]]; then
    fail "Behind sudo the login and the service would become root's. Run this again without sudo."
fi
make_environment .venv
install_into .venv --require-hashes -r requirements.lock
install_into .venv --no-deps .
program=$PWD/.venv/bin/grok-oauth-proxy

if [ "${1:-}" = --demo ]; then
    exec "$program" demo
fi
if [ $# -gt 0 ]; then
    result=0
    code=
    printf 'grok-oauth-proxy is installed: %s\n' "$program"
    import_export || result=1
    [ $# = 1 ] || "$program" service install || result=1
    check_all || result=1
    [ $# = 2 ] || [ $result = 1 ] || "$program" status >/dev/null 2>&1 || printf 'To start it: %s serve, or as a service: %s service install\n' "$program" "$program"
    # Once more, below a unit of ninety lines: somebody waits for it at the other end.
    [ -z "$code" ] || printf '%s (for the export that waits for it)\n' "$code"
    exit $result
fi
cat <<NEXT
grok-oauth-proxy is installed.
Next, sign in, here or with Hermes (\`hermes auth add xai-oauth\`):  $program login
Then:                                                              $program serve
Without an account, to see it work:                                $program demo
NEXT
