# Sourced by install.sh and the scripts: finds a Python and makes virtual environments.
# Every failure is one line that says what to do.

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# find_python: sets $python to an interpreter of version 3.11 or newer; $PYTHON names one to use.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            python=$(command -v "$candidate")
            return
        fi
    done
    fail "Python 3.11 or newer is needed and was not found${PYTHON:+ as $PYTHON}. Install it (Debian: apt install python3 python3-venv; macOS: brew install python), then run this again."
}

# make_environment DIR: a virtual environment in DIR, kept when it is there and works.
make_environment() {
    if "$1/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 &&
        { command -v uv || "$1/bin/python" -m pip --version; } >/dev/null 2>&1; then
        return
    fi
    find_python
    rm -rf "$1"
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python "$python" "$1" || fail "uv could not make $1. Its message is above."
    elif ! "$python" -m venv "$1" >/dev/null 2>&1; then
        rm -rf "$1"
        fail "$python cannot make virtual environments. Install its venv module (Debian: apt install python3-venv), then run this again."
    fi
}

# install_into DIR ARGUMENT...: like pip install, by uv when present. Bytecode is made here, once: a service that may
# not write where it is installed would otherwise compile everything at each start.
install_into() {
    local directory=$1
    shift
    if command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --compile-bytecode --python "$directory/bin/python" "$@"
    else
        "$directory/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi || fail "Installing failed. Check the network and the message above, then run this again."
}
