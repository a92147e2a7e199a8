#!/usr/bin/env bash
# Installs grok-oauth-proxy into .venv beside this file. Safe to run again.
#   ./install.sh          install and print the next step
#   ./install.sh --demo   install, then try it against a simulated xAI
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/environment.sh

case "$*" in
    "" | --demo) ;;
    -h | --help)
        printf '%s\n' "./install.sh          install grok-oauth-proxy into .venv and print the next step" \
            "./install.sh --demo   install it, then try it against a simulated xAI"
        exit 0
        ;;
    *)
        printf 'Unknown option: %s. Use ./install.sh or ./install.sh --demo.\n' "$*" >&2
        exit 2
        ;;
esac

make_environment .venv
install_into .venv --require-hashes -r requirements.lock
install_into .venv --no-deps .

if [ "${1:-}" = --demo ]; then
    exec .venv/bin/grok-oauth-proxy demo
fi
cat <<NEXT
grok-oauth-proxy is installed.
Next, sign in, here or with Hermes (\`hermes auth add xai-oauth\`):  $PWD/.venv/bin/grok-oauth-proxy login
Then:                                                              $PWD/.venv/bin/grok-oauth-proxy serve
Without an account, to see it work:                                $PWD/.venv/bin/grok-oauth-proxy demo
NEXT
