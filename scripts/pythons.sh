# shellcheck shell=bash
# Which Pythons the project runs on, and where to find them; scripts/setup, scripts/test and .ci/run source this.
#
# This is the one place that says so: a test holds README, pyproject.toml and kaas/__init__.py to it.

# Those with which all of it is tested, and those for which numba-cuda and what it needs have wheels.
# shellcheck disable=SC2034 # for those that source this
pythons='3.11 3.12 3.13 3.14 3.15'
# shellcheck disable=SC2034
pythons_for_gpus='3.11 3.12 3.13 3.14'

# Say as major.minor which Python this is; fail if it is older than the oldest.
version_of() {
    "$1" -c "import sys; print('%d.%d' % sys.version_info[:2]); sys.exit(sys.version_info < (${pythons%%.*}, ${pythons:2:2}))" 2>/dev/null
}

# Can it make environments? Debian has the modules in a package of their own.
makes_environments() {
    "$1" -c 'import venv, ensurepip' 2>/dev/null
}

# Print where the Python of a version is that can make environments: on PATH, or one of pyenv's.
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/"python$1"; do
        if [[ $(version_of "$candidate") == "$1" ]] && makes_environments "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Print a list of versions from the newest to the oldest.
newest_first() {
    tr ' ' '\n' <<<"$1" | sort -t . -k 1,1nr -k 2,2nr
}
