"""The first lines of a PostgreSQL process: become the right user, tie its life to the supervisor's, become the server.

Run by its path in an interpreter of its own, ``python -I -S exec.py PARENT UID GID SIGNAL COMMAND...``, so
that the supervisor, which has threads, never runs Python between fork and exec. Only the standard library is at hand
here.

The order matters: a change of user clears the signal that is asked for at the parent's death, so that comes last.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_GET_SECUREBITS = 27
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAP_SETPCAP = 8
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWUSER = 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    """``PARENT UID GID SIGNAL COMMAND...``; does not return."""
    parent, uid, gid, signal = (int(each) for each in arguments[:4])
    command = arguments[4:]
    os.umask(0o077)
    if uid != os.geteuid():
        become(uid, gid)
    if os.path.basename(command[0]) == "initdb":
        have_name(uid, gid)
    _call("prctl", _PR_SET_PDEATHSIG, signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(f"the process {parent} that asked for {command[0]} is gone")
    os.execv(command[0], command)  # noqa: S606 - there is no shell to want


def become(uid: int, gid: int) -> None:
    """Be this user, with the one capability that lets it walk through directories that are closed to it.

    A process without that capability stays without it; the directories may be open, and the server says if not.
    """
    permitted = _permitted()
    may = permitted >> _CAP_DAC_OVERRIDE & 1
    _call("prctl", _PR_SET_KEEPCAPS, may, 0, 0, 0)
    if permitted >> _CAP_SETPCAP & 1:
        # Else access(), by which the programs look for each other, would judge an ordinary user without capabilities.
        bits = _libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
        _call("prctl", _PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if may:
        _hold(1 << _CAP_DAC_OVERRIDE)
        # Ambient: kept by exec, and as nothing is gained by it the loader does not take the program for a setuid one.
        _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def have_name(uid: int, gid: int) -> None:
    """Have a user name, which initdb asks for and then makes no use of.

    Containers are often run as a user id that ``/etc/passwd`` does not know. Then we take another's name, in a user
    namespace of our own; the files stay those of our id. Where the host allows no namespaces initdb says what it lacks.
    """
    users = pwd.getpwall()
    if any(user.pw_uid == uid for user in users):
        return
    other = next((user for user in users if user.pw_uid != 0), None)
    if other is None or _libc.unshare(_CLONE_NEWUSER) != 0:
        return
    for name, text in (
        ("uid_map", b"%d %d 1" % (other.pw_uid, uid)),
        ("setgroups", b"deny"),
        ("gid_map", b"%d %d 1" % (other.pw_gid, gid)),
    ):
        with open(f"/proc/self/{name}", "wb", buffering=0) as file:
            file.write(text)


def _permitted() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1], 16) for line in status if line.startswith("CapPrm:")), 0)


def _hold(capabilities: int) -> None:
    """Make these (all below 32) the effective, permitted and inheritable capabilities, and give up all others."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(capabilities, capabilities, capabilities, 0, 0, 0)
    _call("capset", header, sets)


def _call(name: str, *arguments: object) -> None:
    words = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    if getattr(_libc, name)(*words) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


if __name__ == "__main__":
    main(sys.argv[1:])
