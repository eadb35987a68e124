"""A UR controller: RTDE, the script port, and an arm that does what the uploaded script says; and a Robotiq gripper."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

from emulators import urscript

TYPES = {
    "timestamp": "DOUBLE", "actual_q": "VECTOR6D", "actual_qd": "VECTOR6D", "actual_current": "VECTOR6D",
    "robot_mode": "INT32", "safety_mode": "INT32", "runtime_state": "UINT32", "robot_status_bits": "UINT32",
    "safety_status_bits": "UINT32", "target_q": "VECTOR6D", "speed_scaling": "DOUBLE",
}  # fmt: skip
FORMATS = {"DOUBLE": "d", "VECTOR6D": "6d", "INT32": "i", "UINT32": "I"}


class Killed(Exception):
    """The script's thread has to end."""


class TcpServer:
    """Accepts connections and serves each in a thread; nothing outlives `close`."""

    def __init__(self, serve, host: str, port: int) -> None:
        self._serve, self._connections, self._threads = serve, set(), []
        self._listener = socket.create_server((host, port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            thread = threading.Thread(target=self._one, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _one(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error):
            self._serve(connection)
        self._connections.discard(connection)
        connection.close()

    def hang_up(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in [self._thread, *self._threads]:
            thread.join(5.0)
            assert not thread.is_alive()


def read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data


class UREmulator:
    """`with UREmulator() as device: UR("127.0.0.1", **device.ports)`.

    Attributes:
        goals: Every target that servoj was given and that differs from the one before: (monotonic time, six joints).
        followed: Every target that arrived over RTDE to be followed, equal ones too.
        stops: Times at which the arm was told to stop.
        remote: False: scripts are ignored.
        frozen: True: the controller sends nothing.
    """

    STEP = 0.008

    def __init__(self, host: str = "127.0.0.1", ports: tuple[int, int] = (0, 0), speed: float = 3.0) -> None:
        self.q, self.target, self.speed = [0.0, -1.5, 0.3, -1.0, 0.2, 0.1], None, speed
        self.goals, self.followed, self.stops, self.scripts = [], [], [], []
        self.outputs = {"robot_mode": 7, "safety_mode": 1, "runtime_state": 1}
        self.registers: dict[str, float] = {}
        self.remote, self.frozen, self.in_use, self.errors = True, False, set(), []
        self.lock = threading.Lock()
        self._ended = threading.Event()
        self._run = 0
        self._then = time.monotonic()
        self._script_threads: list[threading.Thread] = []
        self._rtde = TcpServer(self._serve_rtde, host, ports[0])
        self._script = TcpServer(self._serve_script, host, ports[1])
        self.ports = {"rtde_port": self._rtde.port, "script_port": self._script.port}

    # ---- the arm ------------------------------------------------------------------------------------------------
    def move(self) -> None:
        now = time.monotonic()
        dt, self._then = now - self._then, now
        if self.target is not None:
            for k in range(6):
                step = self.target[k] - self.q[k]
                self.q[k] += max(-self.speed * dt, min(self.speed * dt, step))

    def functions(self, run: int) -> dict:
        def alive() -> None:
            if self._ended.is_set() or self._run != run or self.outputs["safety_mode"] not in (1, 2):
                raise Killed

        def servoj(q, a=0.0, v=0.0, t=0.002, lookahead_time=0.1, gain=300.0):
            assert 0.03 <= lookahead_time <= 0.2 and 100 <= gain <= 2000 and len(q) == 6
            alive()
            with self.lock:
                self.move()
                if self.target != list(q):
                    self.goals.append((time.monotonic(), list(q)))
                self.target = list(q)
            time.sleep(t)

        def stopj(a):
            assert a > 0
            with self.lock:
                self.move()
                self.target = None
                self.stops.append(time.monotonic())
            alive()

        def sync():
            alive()
            time.sleep(self.STEP)

        def get(name, default):
            return lambda index: self.registers.get(f"{name}_{index}", default)

        def put(index, value):
            with self.lock:  # a package shows all registers at one instant
                alive()
                self.registers[f"output_int_register_{index}"] = value

        return {
            "servoj": servoj, "stopj": stopj, "sync": sync, "get_steptime": lambda: self.STEP,
            "get_actual_joint_positions": lambda: list(self.q), "write_output_integer_register": put,
            "read_input_integer_register": get("input_int_register", 0),
            "read_input_float_register": get("input_double_register", 0.0),
        }  # fmt: skip

    def _serve_script(self, connection: socket.socket) -> None:
        text = b""
        connection.settimeout(0.05)
        while not text.endswith(b"\nend\n"):
            try:
                part = connection.recv(65536)
            except TimeoutError:
                continue
            if not part:
                break
            text += part
        self.scripts.append(text.decode())
        if self.remote:
            self._run += 1
            thread = threading.Thread(target=self._execute, args=(text.decode(), self._run), daemon=True)
            self._script_threads.append(thread)
            thread.start()

    def _execute(self, text: str, run: int) -> None:
        self.outputs["runtime_state"] = 2
        try:
            urscript.run(text, self.functions(run))
        except Killed:
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            if self._run == run:
                self.outputs["runtime_state"] = 1
                with self.lock:
                    self.target = None

    # ---- RTDE -----------------------------------------------------------------------------------------------------
    def _serve_rtde(self, connection: socket.socket) -> None:
        outputs, inputs, started = [], [], threading.Event()
        hz, sender = 125.0, None
        closed = threading.Event()
        try:
            while True:
                length, kind = struct.unpack(">HB", read(connection, 3))
                content = read(connection, length - 3)
                answer = b""
                if kind == ord("V"):
                    answer = bytes([content == b"\x00\x02"])
                elif kind == ord("v"):
                    answer = struct.pack(">4I", 5, 11, 0, 1)
                elif kind == ord("O"):
                    (hz,) = struct.unpack(">d", content[:8])
                    outputs = [name for name in content[8:].decode().split(",") if name]
                    answer = b"\x01" + ",".join(self._type(name) for name in outputs).encode()
                elif kind == ord("I"):
                    names = [name for name in content.decode().split(",") if name]
                    inputs.append(names)
                    types = ["IN_USE" if name in self.in_use else self._type(name) for name in names]
                    answer = bytes([len(inputs)]) + ",".join(types).encode()
                elif kind == ord("S"):
                    answer = b"\x01"
                elif kind == ord("P"):
                    started.clear()
                    answer = b"\x01"
                elif kind == ord("U"):
                    self._input(inputs[content[0] - 1], content[1:])
                    continue
                connection.sendall(struct.pack(">HB", 3 + len(answer), kind) + answer)
                if kind == ord("S"):
                    started.set()
                    if sender is None:
                        sender = threading.Thread(
                            target=self._send, args=(connection, outputs, hz, started, closed), daemon=True
                        )
                        sender.start()
        finally:
            closed.set()
            if sender is not None:
                sender.join(5.0)

    @staticmethod
    def _type(name: str) -> str:
        if "int_register" in name:
            return "INT32"
        return "DOUBLE" if "double_register" in name else TYPES.get(name, "NOT_FOUND")

    def _input(self, names: list[str], content: bytes) -> None:
        values = struct.unpack(">" + "".join(FORMATS[self._type(name)] for name in names), content)
        self.registers.update(zip(names, values, strict=True))
        if self.registers.get("input_int_register_24") == 1:
            self.followed.append([self.registers[f"input_double_register_{24 + k}"] for k in range(6)])

    def _send(self, connection, names, hz, started, closed) -> None:
        pattern = struct.Struct(">B" + "".join(FORMATS[self._type(name)] for name in names))
        while not closed.wait(1.0 / hz) and not self._ended.is_set():
            if self.frozen or not started.is_set():
                continue
            with self.lock:
                self.move()
                values = []
                for name in names:
                    value = self._value(name)
                    values.extend(value if isinstance(value, list) else [value])
            data = pattern.pack(1, *values)
            try:
                connection.sendall(struct.pack(">HB", 3 + len(data), ord("U")) + data)
            except OSError:
                return

    def _value(self, name: str):
        if name == "timestamp":
            return time.monotonic() + 1000.0  # a clock of its own
        if name == "actual_q":
            return list(self.q)
        if name in ("actual_current", "actual_qd", "target_q"):
            return [0.5] * 6
        if name == "robot_status_bits":
            return 1 | (2 if self.outputs["runtime_state"] == 2 else 0)
        if name in self.outputs:
            return self.outputs[name]
        return self.registers.get(name, 0 if self._type(name) != "DOUBLE" else 0.0)

    def hang_up(self) -> None:
        self._rtde.hang_up()

    def close(self) -> None:
        self._ended.set()
        self._rtde.close()
        self._script.close()
        for thread in self._script_threads:
            thread.join(5.0)
            assert not thread.is_alive()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RobotiqEmulator:
    """The gripper's URCap: GET and SET of its variables. `variables["POS"]` moves towards the goal."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, active: bool = True) -> None:
        self.variables = {"STA": 3 if active else 0, "POS": 0, "COU": 10, "ACT": int(active)}
        self.goals, self.goal, self.silent, self.settings = [], 0, False, {}
        self._server = TcpServer(self._serve, host, port)
        self.port = self._server.port

    def _serve(self, connection: socket.socket) -> None:
        while True:
            line = connection.recv(256)
            if not line:
                return
            words = line.decode().split()
            if self.silent:
                continue
            if words[0] == "GET":
                step = self.goal - self.variables["POS"]
                self.variables["POS"] += max(-40, min(40, step))
                if words[1] == "STA" and self.variables["ACT"] and self.variables["STA"] != 3:
                    self.variables["STA"] = 3
                connection.sendall(f"{words[1]} {self.variables.get(words[1], 0)}\n".encode())
                continue
            if words[1] == "POS":
                self.goal = int(words[2])
                self.goals.append((time.monotonic(), self.goal))
            elif words[1] == "ACT":
                self.variables["ACT"], self.variables["STA"] = int(words[2]), 0
            self.settings[words[1]] = int(words[2])
            connection.sendall(b"ack")

    def close(self) -> None:
        self._server.close()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
