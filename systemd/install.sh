#!/bin/sh
# Install Penstock as a service of this host, or remove it again: `make install`, `make uninstall`.
#
# From the environment: PYTHON (python3.11; one that every user can run), PREFIX (/opt/penstock), DSN (of an existing
# PostgreSQL; without one the agents have no database), DESTDIR (for packagers: only the files go there, no program, no
# user, no systemctl).
set -eu
umask 022

python=${PYTHON:-python3.11}
prefix=${PREFIX:-/opt/penstock}
dest=${DESTDIR:-}
units=/etc/systemd/system
source=$(cd "$(dirname "$0")/.." && pwd)

say() { echo "penstock: $*"; }
fail() { echo "penstock: $*" >&2; exit 1; }
put() { install -D -m "$1" "$source/$2" "$dest$3"; }
has_systemd() { [ -z "$dest" ] && [ -d /run/systemd/system ]; }

# Only systemd makes a directory under /run for us.
socket=/var/lib/penstock/control.sock
if has_systemd || [ -n "$dest" ]; then socket=/run/penstock/control.sock; fi

# The service runs as its own user, and sees no home (ProtectHome=): a Python that lies in one would not start there.
check_python() {
    home=$("$python" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')
    case "$home/" in
        /root/* | /home/* | /run/user/*)
            fail "$python lies in $home, where the service cannot see it; name another: make install PYTHON=..." ;;
    esac
}

# DSN as a string of TOML, in the form that the right side of sed's s||| takes.
quoted_dsn() {
    "$python" -c 'import json, sys; print(json.dumps(sys.argv[1]))' "${DSN:-off}" | sed 's/[\\&|]/\\&/g'
}

install_program() {
    "$python" -m venv "$prefix/venv"
    "$prefix/venv/bin/pip" install --quiet --disable-pip-version-check --upgrade "$source"
    ln -sf "$prefix/venv/bin/penstock" /usr/local/bin/penstock
}

# What is there stays: it is the administrator's.
install_configuration() {
    if [ ! -e "$dest/etc/penstock/penstock.toml" ]; then
        put 640 etc/penstock.toml /etc/penstock/penstock.toml
        sed -i -e 's|^state_dir = ""  |state_dir = "/var/lib/penstock"  |' -e "s|^dsn = \"\"  |dsn = $(quoted_dsn)  |" \
            -e "s|^socket = \"\"  |socket = \"$socket\"  |" "$dest/etc/penstock/penstock.toml"
    elif [ -n "${DSN:-}" ]; then
        say "$dest/etc/penstock/penstock.toml exists and is kept; set database.dsn in it yourself"
    fi
    [ -e "$dest/etc/penstock/environment" ] || install -D -m 640 /dev/null "$dest/etc/penstock/environment"
    # May come to hold a password.
    if [ ! -e "$dest/etc/penstock/supervisorctl.conf" ]; then
        put 640 etc/supervisorctl.conf /etc/penstock/supervisorctl.conf
        sed -i "s|/run/penstock/control.sock|$socket|" "$dest/etc/penstock/supervisorctl.conf"
    fi
}

install_units() {
    for unit in penstock.service penstock.socket penstock.slice; do
        install -D -m 644 "$source/systemd/$unit" "$dest$units/$unit"
        sed -i "s|/opt/penstock/|$prefix/|" "$dest$units/$unit"
    done
    put 644 systemd/sysusers.conf /etc/sysusers.d/penstock.conf
    put 644 systemd/tmpfiles.conf /etc/tmpfiles.d/penstock.conf
    version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    if [ "${version:-0}" -ge 253 ]; then
        put 644 systemd/notify-reload.conf "$units/penstock.service.d/notify-reload.conf"
    fi
}

install_user() {
    if command -v systemd-sysusers > /dev/null; then
        systemd-sysusers /etc/sysusers.d/penstock.conf
    elif ! id penstock > /dev/null 2>&1; then
        useradd --system --user-group --home-dir /var/lib/penstock --shell /usr/sbin/nologin penstock
    fi
    chown -R root:penstock /etc/penstock
    chmod 750 /etc/penstock
    install -d -m 700 -o penstock -g penstock /var/lib/penstock
}

do_install() {
    [ -n "$dest" ] || { check_python; install_program; }
    install_configuration
    install_units
    [ -z "$dest" ] || return 0
    install_user
    runuser -u penstock -- "$prefix/venv/bin/python" -c '' \
        || fail "the user penstock cannot run $prefix/venv/bin/python: see who may read $prefix and the Python it links to"
    install -m 644 "$source/README.rst" "$source/REFERENCE.rst" "$source/OPERATIONS.rst" "$prefix"
    if has_systemd; then
        systemctl daemon-reload
        say "installed. Look at /etc/penstock/penstock.toml, then: systemctl enable --now penstock.socket penstock.service"
    else
        if [ ! -e /etc/penstock/supervisord.conf ]; then
            put 644 etc/supervisord.conf /etc/penstock/supervisord.conf
            sed -i "s|/opt/penstock/|$prefix/|" /etc/penstock/supervisord.conf
        fi
        say "installed. There is no systemd here: /etc/penstock/supervisord.conf has an entry for supervisord."
    fi
}

# The configuration and the data stay; what they are is said.
do_uninstall() {
    if has_systemd; then
        systemctl disable --now penstock.service penstock.socket || say "it was not running"
    fi
    rm -f "$dest$units/penstock.service" "$dest$units/penstock.socket" "$dest$units/penstock.slice" \
        "$dest$units/penstock.service.d/notify-reload.conf" \
        "$dest/etc/sysusers.d/penstock.conf" "$dest/etc/tmpfiles.d/penstock.conf"
    rmdir "$dest$units/penstock.service.d" 2>/dev/null || true
    if has_systemd; then systemctl daemon-reload; fi
    [ -z "$dest" ] || return 0
    [ "$(readlink /usr/local/bin/penstock || true)" != "$prefix/venv/bin/penstock" ] || rm -f /usr/local/bin/penstock
    rm -rf "$prefix/venv" "$prefix/README.rst" "$prefix/REFERENCE.rst" "$prefix/OPERATIONS.rst"
    rmdir "$prefix" 2>/dev/null || true
    say "uninstalled. Left in place: /etc/penstock, /var/lib/penstock, the user penstock."
}

case "${1:-}" in
    install) do_install ;;
    uninstall) do_uninstall ;;
    *) echo "usage: $0 install | uninstall" >&2; exit 2 ;;
esac
