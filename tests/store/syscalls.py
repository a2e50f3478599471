"""Run a function in a forked child and strike at its N-th mutating system call: kill, fail, or cut a write short.

    done = run(save)                                   # how many mutating calls are there, and which?
    for at in range(1, len(done.calls) + 1):
        run(save, Fault(at, "kill"))                   # … and look at what each death leaves on the disk

The child installs a seccomp filter that hands its mutating calls to this process (“user notification”, Linux 5.5),
which lets each one run, answers in its stead, or kills the child while the call has not begun. Threads and processes
that the child starts are under the same filter. What is *not* seen: stores through mmap, io_uring, openat2, chmod and
the like, and files opened without O_CREAT or O_TRUNC. Writes count where they go to a regular file that is not the
standard output or error; pipes and sockets do not count, so a function may report progress through one.

A kill is the death of the process, not of the machine: what it wrote stays in the page cache, so a missing fsync
shows in `Outcome.calls` only, never in the files.
"""

import array  # noqa: F401  (socket.send_fds imports it: here once, rather than in each child)
import contextlib
import ctypes
import errno
import functools
import gc
import os
import platform
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

if sys.platform == "linux":  # elsewhere the module can still be imported, to read SUPPORTED
    import fcntl

# name: (number on x86_64, number on aarch64, operands). An operand is a letter and the index of an argument:
# f a descriptor, p a path, a a directory’s descriptor with the path in the next argument, t a text.
_CALLS: dict[str, tuple[int | None, int | None, str]] = {
    "write": (1, 64, "f0"), "pwrite64": (18, 68, "f0"), "writev": (20, 66, "f0"), "pwritev": (296, 70, "f0"),
    "pwritev2": (328, 287, "f0"), "sendfile": (40, 71, "f0"), "copy_file_range": (326, 285, "f2"),
    "fsync": (74, 82, "f0"), "fdatasync": (75, 83, "f0"), "fallocate": (285, 47, "f0"),
    "truncate": (76, 45, "p0"), "ftruncate": (77, 46, "f0"),
    "rename": (82, None, "p0 p1"), "renameat": (264, 38, "a0 a2"), "renameat2": (316, 276, "a0 a2"),
    "unlink": (87, None, "p0"), "unlinkat": (263, 35, "a0"), "rmdir": (84, None, "p0"),
    "mkdir": (83, None, "p0"), "mkdirat": (258, 34, "a0"),
    "link": (86, None, "p0 p1"), "linkat": (265, 37, "a0 a2"),
    "symlink": (88, None, "t0 p1"), "symlinkat": (266, 36, "t0 a1"),
    "open": (2, None, "p0"), "openat": (257, 56, "a0"), "creat": (85, None, "p0"),
}  # fmt: skip
_WRITES = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"})
_OPEN_FLAGS = {"open": 1, "openat": 2}  # which argument holds the flags
_SHORTENED = frozenset({"write", "pwrite64"})  # (descriptor, buffer, length[, offset])
_TAKES_SPACE = _WRITES | {"fallocate", "mkdir", "mkdirat", "symlink", "symlinkat"}  # and opening a new file
_SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})

_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}  # column, AUDIT_ARCH_*, number of seccomp
_PIDFD_GETFD = 438  # the same everywhere
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER = 1
_NEW_LISTENER = 8
_TSYNC = 1 | 16  # TSYNC and TSYNC_ESRCH (5.7): threads that at-fork hooks started come under the filter as well
_WAIT_KILLABLE_RECV = 32  # (5.19): no signal interrupts a call under decision, to restart it and have it counted twice
_FILTER_FLAGS = (_NEW_LISTENER | _TSYNC | _WAIT_KILLABLE_RECV, _NEW_LISTENER | _TSYNC, _NEW_LISTENER)
_NOTIF_RECV, _NOTIF_SEND, _NOTIF_ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_NOTIF = struct.Struct("=QIIiIQ6Q")  # id, pid of the thread, flags; number, architecture, instruction pointer, args
_RESPONSE = struct.Struct("=QqiI")  # id, value, error, flags
_FLAG_CONTINUE = 1
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_BPF_LOAD, _BPF_EQUAL, _BPF_GREATER, _BPF_ANY_BIT, _BPF_RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_OFFSET_NR, _OFFSET_ARCH, _OFFSET_ARGS = 0, 4, 16  # in struct seccomp_data; both machines are little-endian
_AT_FDCWD = -100
_PATH_MAX = 4096
_REPORT_MAX = 1 + 64 * 1024


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    at: the mutating call that is struck, counted from 1; with `only`, counted among the calls of those names (which
        differ: os.rename is “rename” on x86_64 and “renameat” on aarch64).
    kind: “kill”: SIGKILL instead of the call. “error”: the call does nothing and fails with `errno`. “short”: a write
        or pwrite64 writes the first half of its bytes and says so; where call `at` is another one, or of less than
        two bytes, the next write that can be cut is struck, whatever `only` says.
    lasting: after an error, later calls fail too. With ENOSPC or EDQUOT those that take space: the write family,
        fallocate, mkdir, symlink and opening a file that does not exist yet. Other calls never fail that way (a file
        may be removed from a full disk), so where call `at` is one of those, the next that takes space is struck.
        With any other errno: every later mutating call.
    """

    at: int
    kind: Literal["kill", "error", "short"]
    errno: int = errno.ENOSPC
    lasting: bool = True
    only: frozenset[str] | None = None

    def __post_init__(self) -> None:
        unknown = sorted((self.only or frozenset()) - _CALLS.keys())
        if self.at < 1 or self.kind not in ("kill", "error", "short") or unknown:
            raise ValueError(f"no such fault: {self}" + f" (unknown calls: {', '.join(unknown)})" * bool(unknown))


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    calls: each mutating call in order, the struck ones included: its name, then its paths where they could be read,
        as in "rename /d/a -> /d/b".
    struck: whether the fault met a call (with "error": at least one).
    status: “killed” also where the child died of something else; `error` then says of what, and is "" after the kill
        that was asked for.
    error: "TypeName: message" of the exception that left the function.
    value: what the function returned.
    """

    calls: list[str]
    struck: bool
    status: Literal["returned", "raised", "killed"]
    error: str
    value: bytes

    @property
    def names(self) -> list[str]:
        """The calls without their paths."""
        return [call.partition(" ")[0] for call in self.calls]


def run(function: Callable[[], bytes | None], fault: Fault | None = None, timeout: float = 60.0) -> Outcome:
    """Run the function in a forked child, strike it with the fault, and say what came of it.

    The child is a process group of its own, and all of it is dead when this returns. It leaves through os._exit: no
    exit handlers run, and a thread that is still running when the function returns is cut off. As after any fork, the
    threads of this process are missing in it, and SQLite connections opened before must not be used in it.
    TimeoutError (with the calls so far) where it takes longer than `timeout` seconds; RuntimeError where SUPPORTED
    is not "".
    """
    if SUPPORTED:
        raise RuntimeError(SUPPORTED)
    return _run(function, fault, timeout)


def _run(function: Callable[[], bytes | None], fault: Fault | None, timeout: float) -> Outcome:
    deadline = time.monotonic() + timeout
    program, numbers, seccomp = _program()
    streams = _flush()
    with contextlib.ExitStack() as stack:
        # Datagrams: a report arrives whole. Sends are not filtered, so reporting is no mutating call.
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        ours.settimeout(timeout)
        pid = os.fork()
        if pid == 0:
            _child(function, program, seccomp, ours, theirs)
        stack.callback(os.waitpid, pid, 0)
        stack.callback(_kill, pid)
        theirs.close()
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        message, listeners, _, _ = socket.recv_fds(ours, _REPORT_MAX, 1)
        if not listeners:
            raise RuntimeError(message.decode(errors="replace") or "the child died before it had its filter")
        # With the listener gone, the child’s calls would fail with ENOSYS and it would go on: the kill comes first.
        stack.callback(os.close, listeners[0])
        stack.callback(_kill, pid)
        supervisor = _Supervisor(listeners[0], numbers, fault, streams)
        poll = select.poll()
        poll.register(listeners[0], select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if pidfd in ready:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"still running after {timeout} s and the calls {supervisor.calls}")
            if ready.get(listeners[0], 0) & select.POLLIN and not supervisor.answer():
                _kill(pid)
                poll.unregister(listeners[0])
        _kill(pid)  # what the child started; the unreaped child keeps the number of the group from being reused
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        ours.setblocking(False)
        try:
            report = ours.recv(_REPORT_MAX)
        except BlockingIOError:  # a process the child started, now dying, holds the other end
            report = b""
    error, value = "", b""
    status: Literal["returned", "raised", "killed"] = "killed"
    if ended is None or ended.si_code != os.CLD_EXITED:
        if not (fault and fault.kind == "kill" and supervisor.struck):
            error = f"died of signal {ended.si_status if ended else '?'}"
    elif report[:1] == b"=":
        status, value = "returned", report[1:]
    elif report[:1] == b"!":
        status, error = "raised", report[1:].decode(errors="replace")
    else:
        error = f"left with exit status {ended.si_status}, neither returning nor raising"
    return Outcome(supervisor.calls, supervisor.struck, status, error, value)


class _Supervisor:
    """Answers the calls of one child."""

    def __init__(self, listener: int, numbers: dict[int, str], fault: Fault | None, streams: frozenset[int]) -> None:
        self.listener, self.numbers, self.fault, self.streams = listener, numbers, fault, streams
        self.calls: list[str] = []
        self.struck = False
        self._counted = 0

    def answer(self) -> bool:
        """Take one call and answer it; False where the child is to be killed instead."""
        notification = bytearray(_NOTIF.size)
        if not self._ioctl(_NOTIF_RECV, notification):
            return True  # its thread died meanwhile
        ident, pid, _, number, _, _, *args = _NOTIF.unpack(notification)
        name = self.numbers[number]
        value, error, flags = 0, 0, _FLAG_CONTINUE
        if name not in _WRITES or self._is_file(pid, args[_descriptor(name)]):
            paths = list(_paths(pid, name, args))
            self.calls.append(" ".join([name, " -> ".join(paths)]).rstrip())
            if self.fault and self._strikes(self.fault, name, args, paths):
                self.struck = True
                if self.fault.kind == "kill":
                    return False
                if self.fault.kind == "error":
                    error, flags = -self.fault.errno, 0
                else:
                    value, flags = self._write_half(ident, pid, name, args), 0
        self._ioctl(_NOTIF_SEND, bytearray(_RESPONSE.pack(ident, value, error, flags)))
        return True

    def _strikes(self, fault: Fault, name: str, args: list[int], paths: list[str]) -> bool:
        if self._counted < fault.at:
            self._counted += fault.only is None or name in fault.only
            if self._counted < fault.at:
                return False
        if self.struck and not (fault.kind == "error" and fault.lasting):
            return False
        if fault.kind == "short":
            return name in _SHORTENED and args[2] >= 2
        if fault.kind == "error" and fault.errno in _SPACE_ERRORS:
            creates = name == "creat" or (name in _OPEN_FLAGS and args[_OPEN_FLAGS[name]] & os.O_CREAT)
            return name in _TAKES_SPACE or bool(creates and not (paths and os.path.exists(paths[0])))
        return True

    def _write_half(self, ident: int, pid: int, name: str, args: list[int]) -> int:
        """Write the first half of the bytes through the child’s own open file, so that its position moves along."""
        with contextlib.ExitStack() as stack:
            with open(f"/proc/{pid}/status") as lines:  # a pidfd wants the process, the notification names the thread
                process = next(int(line.split()[1]) for line in lines if line.startswith("Tgid:"))
            pidfd = os.pidfd_open(process)
            stack.callback(os.close, pidfd)
            memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
            stack.callback(os.close, memory)
            copy = _libc("syscall", _PIDFD_GETFD, pidfd, args[0] & 0xFFFFFFFF, 0)
            stack.callback(os.close, copy)
            if not self._ioctl(_NOTIF_ID_VALID, bytearray(ident.to_bytes(8, sys.byteorder))):
                return 0  # the thread is gone, and its number may be another’s by now
            half = os.pread(memory, args[2] // 2, args[1])
            return os.pwrite(copy, half, args[3]) if name == "pwrite64" else os.write(copy, half)

    def _is_file(self, pid: int, descriptor: int) -> bool:
        descriptor &= 0xFFFFFFFF
        if descriptor in self.streams:
            return False
        try:
            return stat.S_ISREG(os.stat(f"/proc/{pid}/fd/{descriptor}").st_mode)
        except OSError:  # not open: the call will fail by itself
            return False

    def _ioctl(self, request: int, buffer: bytearray) -> bool:
        while True:
            try:
                fcntl.ioctl(self.listener, request, buffer)
            except InterruptedError:
                continue
            except FileNotFoundError:  # the caller was killed meanwhile
                return False
            return True


def _child(
    function: Callable[[], bytes | None], program: bytes, seccomp: int, ours: socket.socket, theirs: socket.socket
) -> NoReturn:
    try:
        ours.close()
        os.setpgid(0, 0)
        gc.freeze()  # garbage of the parent must not be finalized, and files of it flushed, amid the function
        sys.dont_write_bytecode = True  # an import in the function is no change to the store
        try:
            _libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            listener = _install(program, seccomp)
        except OSError as refusal:
            theirs.send(f"the kernel refuses a seccomp listener: {refusal}".encode())
            raise  # to the exit below
        socket.send_fds(theirs, [b"listener"], [listener])
        os.close(listener)
        try:
            value = function()
            report = b"=" + (b"" if value is None else value)
            if len(report) > _REPORT_MAX:
                raise ValueError(f"the function returned more than {_REPORT_MAX - 1} bytes")
        except BaseException as exception:
            report = f"!{type(exception).__name__}: {exception}".encode(errors="replace")[:_REPORT_MAX]
        # Past the except block, the frames of the exception and the files in them are gone: no write comes later.
        theirs.send(report)
        _flush()
    finally:
        os._exit(0)


def _flush() -> frozenset[int]:
    """Flush the standard streams, lest a child inherit, or die with, what they hold; their descriptors.

    Under pytest the streams are regular files with descriptors above 2.
    """
    descriptors = set()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):  # None, closed, replaced by something without a descriptor
            stream.flush()  # type: ignore[union-attr]
            descriptors.add(stream.fileno())  # type: ignore[union-attr]
    return frozenset(descriptors)


def _kill(pid: int) -> None:
    """Kill the unreaped child and its group, if it has come to have one."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _paths(pid: int, name: str, args: list[int]) -> Iterator[str]:
    """The files a call is about, as far as they can be read from outside."""
    with contextlib.suppress(OSError):
        for operand in _CALLS[name][2].split():
            kind, position = operand[0], int(operand[1:])
            if kind == "f":
                yield os.readlink(f"/proc/{pid}/fd/{args[position] & 0xFFFFFFFF}")
                continue
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                text = os.pread(memory.fileno(), _PATH_MAX, args[position + (kind == "a")])
            path = os.fsdecode(text.partition(b"\0")[0])
            directory = ctypes.c_int(args[position] & 0xFFFFFFFF).value if kind == "a" else _AT_FDCWD
            base = "cwd" if directory == _AT_FDCWD else f"fd/{directory}"
            yield path if kind == "t" else os.path.join(os.readlink(f"/proc/{pid}/{base}"), path)


def _descriptor(name: str) -> int:
    """Which argument of a call of the write family is the descriptor it writes to."""
    return int(_CALLS[name][2][1:])


@functools.cache
def _program() -> tuple[bytes, dict[int, str], int]:
    """The filter for this machine, the calls by number, and the number of seccomp itself."""
    column, architecture, seccomp = _MACHINES[platform.machine()]
    numbers = {number: name for name, row in _CALLS.items() if (number := row[:2][column]) is not None}
    notify, allow = (_BPF_RETURN, 0, 0, _RET_USER_NOTIF), (_BPF_RETURN, 0, 0, _RET_ALLOW)
    code = [(_BPF_LOAD, 0, 0, _OFFSET_ARCH), (_BPF_EQUAL, 1, 0, architecture), allow, (_BPF_LOAD, 0, 0, _OFFSET_NR)]
    for number, name in numbers.items():
        block = [notify]
        if name in _WRITES:  # not to the standard streams
            block = [(_BPF_LOAD, 0, 0, _OFFSET_ARGS + 8 * _descriptor(name)), (_BPF_GREATER, 1, 0, 2), allow, notify]
        elif name in _OPEN_FLAGS:
            test = (_BPF_ANY_BIT, 1, 0, os.O_CREAT | os.O_TRUNC)
            block = [(_BPF_LOAD, 0, 0, _OFFSET_ARGS + 8 * _OPEN_FLAGS[name]), test, allow, notify]
        code += [(_BPF_EQUAL, 0, len(block), number), *block]
    return b"".join(struct.pack("=HBBI", *step) for step in [*code, allow]), numbers, seccomp


def _install(program: bytes, seccomp: int) -> int:
    """Put this process under the filter; the descriptor of its listener."""
    steps = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(steps)))
    for flags in _FILTER_FLAGS:
        try:
            return _libc("syscall", seccomp, _SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(header))
        except OSError as refusal:
            if refusal.errno != errno.EINVAL or flags == _FILTER_FLAGS[-1]:
                raise
    raise AssertionError


def _libc(name: str, *args: int) -> int:
    result = int(getattr(_LIBC, name)(*map(ctypes.c_ulong, args)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _probe() -> str:
    if sys.platform != "linux":
        return "seccomp is of Linux"
    if platform.machine() not in _MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return f"no table of system calls for {platform.machine()}"
    try:
        outcome = _run(lambda: os.rmdir(""), None, 10.0)  # a mutating call that changes nothing
    except (OSError, RuntimeError) as refusal:
        return str(refusal)
    if len(outcome.calls) != 1 or not outcome.error.startswith("FileNotFoundError"):
        return f"seccomp does not work as expected: {outcome}"
    return ""


if sys.platform == "linux":
    _LIBC = ctypes.CDLL(None, use_errno=True)
    _LIBC.syscall.restype = ctypes.c_long

#: "", or why `run` cannot work here.
SUPPORTED: str = _probe()
