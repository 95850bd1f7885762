"""The keeper: the small parent of every sandbox of a node, so that the agent may die and come back.

It executes no user code and reads no byte that comes out of a sandbox. docs/protocol/runner.md §5 is its protocol.
"""

import array
import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
from typing import Any, Callable, Dict, List, NoReturn, Optional

from . import system

VERSION = 1
MAX_MESSAGE = 1 << 20
MAX_DESCRIPTORS = 64
MAX_UNSENT = 1 << 20
SPAWN_FAILED = 127
# Programs that look at each descriptor in turn, or use select(2), suffer from more; they may raise it themselves.
USUAL_DESCRIPTORS = 1024


class Keeper:
    """One thread, one selector: connections of agents, and the deaths of children."""

    def __init__(self, listener: socket.socket, path: str, lock: int) -> None:
        self._listener = listener
        self._path = path
        self._lock = lock
        self._selector = selectors.DefaultSelector()
        self._connections = []  # type: List[_Connection]
        self._children = {}  # type: Dict[int, str]
        self._retired = False

    def serve(self) -> None:
        """Serve until retired and childless."""
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(wake_read, selectors.EVENT_READ, lambda _: _drain(wake_read))
        while not (self._retired and not self._children):
            for key, events in self._selector.select():
                key.data(events)
            self._reap()

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        peer = _Connection(connection)
        self._connections.append(peer)
        peer.on_ready = lambda events: self._on_ready(peer, events)
        self._selector.register(connection, selectors.EVENT_READ, peer.on_ready)

    def _on_ready(self, peer: "_Connection", events: int) -> None:
        if peer.closed:
            return
        if events & selectors.EVENT_WRITE:
            self._send(peer, b"")
        if events & selectors.EVENT_READ:
            self._receive(peer)

    def _receive(self, peer: "_Connection") -> None:
        # Whatever a peer sends: it may cost the connection, never the keeper.
        try:
            open_still = peer.receive()
            while not peer.closed:
                request = peer.next_request()
                if request is None:
                    break
                descriptors = peer.take_descriptors(len(request.get("fds", ())))
                try:
                    answer = self._answer(request, descriptors)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
                self._send(peer, _encode(answer))
        except Exception:
            open_still = False
        if not open_still:
            self._drop(peer)

    def _send(self, peer: "_Connection", data: bytes) -> None:
        """Send what the socket takes now, the rest when it has room; who does not read is let go."""
        if peer.closed:
            return
        try:
            peer.send(data)
        except (OSError, ValueError):
            self._drop(peer)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
        self._selector.modify(peer.socket, events, peer.on_ready)

    def _drop(self, peer: "_Connection") -> None:
        if peer.closed:
            return
        self._selector.unregister(peer.socket)
        self._connections.remove(peer)
        peer.close()

    def _answer(self, request: Dict[str, Any], descriptors: List[int]) -> Dict[str, Any]:
        answer = {"id": request.get("id")}  # type: Dict[str, Any]
        try:
            if request["op"] == "hello":
                answer.update(version=VERSION, pid=os.getpid(), children=sorted(self._children))
            elif request["op"] == "spawn":
                answer.update(self._spawn(request, descriptors))
            elif request["op"] == "retire":
                self._retire()
            else:
                answer["error"] = "unknown op {!r}".format(request["op"])
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        return answer

    def _retire(self) -> None:
        """Make room for the next keeper, which may start while our last children live."""
        if self._retired:
            return
        self._retired = True
        self._selector.unregister(self._listener)
        self._listener.close()
        os.unlink(self._path)
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _spawn(self, request: Dict[str, Any], descriptors: List[int]) -> Dict[str, Any]:
        if self._retired:
            raise ValueError("this keeper is retired")
        gate_read, gate_write = os.pipe()
        try:
            try:
                pid = os.fork()
                if pid == 0:
                    _child(request, descriptors, gate_read)
            finally:
                os.close(gate_read)
            self._children[pid] = request["dir"]
            for path in request["cgroups"]:
                with open(path, "w") as group:
                    group.write(str(pid))
            started = system.start_time(pid)
            _update(
                os.path.join(request["dir"], "sandbox.json"),
                {"pid": pid, "start_time": started, "boot_id": system.boot_id()},
            )
            os.write(gate_write, b"1")
        finally:
            os.close(gate_write)
        return {"pid": pid, "start_time": started}

    def _reap(self) -> None:
        """Take the status of every child that ended, orphans included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            folder = self._children.pop(pid, None)
            if folder is not None:
                self._report(pid, folder, status)

    def _report(self, pid: int, folder: str, status: int) -> None:
        ended = {"pid": pid, "exit_code": None, "signal": None}  # type: Dict[str, Any]
        if os.WIFSIGNALED(status):
            ended["signal"] = os.WTERMSIG(status)
        else:
            ended["exit_code"] = os.WEXITSTATUS(status)
        try:
            _write(os.path.join(folder, "exit.json"), ended)
        except OSError:
            pass  # the folder is swept already
        for peer in list(self._connections):
            self._send(peer, _encode(dict(ended, event="exited", dir=folder)))


class _Connection:
    """One agent's connection: messages, and the descriptors that travel with them."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.unsent = bytearray()
        self.closed = False
        self.on_ready: Callable[[int], None] = lambda _events: None
        self._buffer = b""
        self._descriptors = []  # type: List[int]

    def receive(self) -> bool:
        """Read once; False when the agent is gone."""
        size = array.array("i").itemsize
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(MAX_DESCRIPTORS * size))
        except BlockingIOError:
            return True
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % size])
                self._descriptors.extend(numbers)
        for descriptor in self._descriptors:
            os.set_inheritable(descriptor, False)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > MAX_DESCRIPTORS:
            raise ValueError("more descriptors than any request has")
        self._buffer += data
        return bool(data)

    def next_request(self) -> Optional[Dict[str, Any]]:
        """The next whole message that has arrived."""
        if len(self._buffer) < 4:
            return None
        length = struct.unpack(">I", self._buffer[:4])[0]
        if length > MAX_MESSAGE:
            raise ValueError(f"a message of {length} bytes")
        if len(self._buffer) < 4 + length:
            return None
        request = json.loads(self._buffer[4 : 4 + length].decode())
        if not isinstance(request, dict):
            raise ValueError("a message that is no object")
        self._buffer = self._buffer[4 + length :]
        return request

    def take_descriptors(self, count: int) -> List[int]:
        """The first of those that arrived."""
        taken = self._descriptors[:count]
        del self._descriptors[:count]
        return taken

    def send(self, data: bytes) -> None:
        """Send without blocking; what is left waits in `unsent`."""
        self.unsent += data
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            if len(self.unsent) > MAX_UNSENT:
                raise ValueError("a peer that does not read") from None

    def close(self) -> None:
        self.closed = True
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.socket.close()


def _encode(message: Dict[str, Any]) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def _child(request: Dict[str, Any], descriptors: List[int], gate: int) -> NoReturn:
    """Become what was asked for; never returns into the keeper."""
    try:
        # Signals caught or ignored by the keeper are the program's own again.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, USUAL_DESCRIPTORS), hard))
        for name, value in request["rlimits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        if request["uid"] is not None:
            os.setgroups([])
            os.setresgid(request["gid"], request["gid"], request["gid"])
            os.setresuid(request["uid"], request["uid"], request["uid"])
        gate = _place(dict(zip(request["fds"], descriptors)), gate)
        if os.read(gate, 1) == b"1":
            os.close(gate)
            os.execve(request["argv"][0], request["argv"], {})
    except BaseException as error:
        try:
            os.write(2, f"keeper: {error!r}\n".encode())
        except OSError:
            pass
    os._exit(SPAWN_FAILED)


def _place(wanted: Dict[int, int], gate: int) -> int:
    """Give the named descriptors their numbers, keep the gate, close the rest; 0, 1 and 2 are /dev/null."""
    highest = max([*wanted, 2]) + 1
    moved = {number: fcntl.fcntl(descriptor, fcntl.F_DUPFD, highest) for number, descriptor in wanted.items()}
    gate = fcntl.fcntl(gate, fcntl.F_DUPFD, highest)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(highest):
        source = moved.get(number, null if number <= 2 else None)
        if source is not None and source != number:
            os.dup2(source, number, inheritable=True)
    keep = highest
    while keep in wanted:
        keep += 1
    if gate != keep:
        os.dup2(gate, keep, inheritable=False)
    for number in range(highest):
        if number > 2 and number not in wanted:
            _close(number)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    return keep


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        pass


def _update(path: str, fields: Dict[str, Any]) -> None:
    with open(path) as file:
        content = json.load(file)
    content.update(fields)
    _write(path, content)


def _write(path: str, content: Dict[str, Any]) -> None:
    making = path + ".keeper"
    # Every uid can traverse the folder, and the record holds the session's environment.
    with open(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file)
    os.rename(making, path)


def _drain(wake: socket.socket) -> None:
    try:
        while wake.recv(4096):
            pass
    except BlockingIOError:
        pass


def start(run_dir: str, log_file: str) -> int:
    """Start a keeper in the background; returns once it listens, with 0, or 1 where another holds the lock."""
    lock = os.open(os.path.join(run_dir, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 1
    path = os.path.join(run_dir, "keeper.sock")
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o077)
    listener.bind(path)
    os.umask(mask)
    listener.listen(16)
    if os.fork() > 0:
        return 0
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    _detach(log_file)
    system.become_subreaper()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    Keeper(listener, path, lock).serve()
    sys.exit(0)


def _detach(log_file: str) -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, number in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, number)
    os.close(null)
    os.close(log)


def main(argv: Optional[List[str]] = None) -> int:
    """`keeper_main.py <run> <log file>`"""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2:
        sys.stderr.write("usage: keeper_main.py RUN_DIR LOG_FILE\n")
        return 2
    return start(arguments[0], arguments[1])
