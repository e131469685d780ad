"""The private broker: a Mosquitto child with mutual TLS, kept alive, that ends when the fleet's server ends.

Who may say what is decided by the certificate alone: the common name is the user name and the client id. A device
writes only below `rg/d/{id}/up/` and reads only `rg/d/{id}/dn/` and `rg/b/`; `regatta-server` may do everything.

Invariants:
- the child gets SIGTERM when this process dies in whatever way (PR_SET_PDEATHSIG);
- a child that dies is started again on the same port with full-jitter back-off; `on_restart` hears of it;
- the child's log goes through a pipe into ours, so it never fills a disk.

Mosquitto 2.0 started as root becomes the user `mosquitto` before it reads keys, and then cannot read the fleet's
folder (0700). As root the configuration therefore says `user root`; run the server as a user of its own to avoid it.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Misuse, Retryable
from regatta_protocol.ids import SERVER_IDENTITY
from regatta_protocol.parent import die_with_parent

__all__ = ["Broker", "BrokerConfig", "access_list", "find_mosquitto", "mosquitto_settings"]

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 5.0  # it writes its database first
_PROBE_TIMEOUT_S = 2.0
_POLL_S = 0.05
_PORT_TRIES = 5
_RESTART_BASE_S = 0.2
_RESTART_CAP_S = 30.0
_STABLE_S = 60.0  # a child that lived this long is started again without delay
_LOG_LINE_BYTES = 4096
_LOG_TAIL_LINES = 20


@dataclass(frozen=True)
class BrokerConfig:
    """Where the broker lives and listens, and who it is."""

    folder: Path  # its configuration and database
    host: str  # address to listen on
    port: int | None  # None: a free one, chosen at the first start
    ca_path: Path  # whose devices may connect
    cert_path: Path
    key_path: Path
    crl_path: Path | None = None


def find_mosquitto() -> str:
    """Return the path of the Mosquitto program.

    Raises:
        Misuse: when it is not installed.
    """
    # Debian puts it into /usr/sbin, which is not in every user's PATH.
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
    if found is None:
        raise Misuse("Mosquitto is not installed: install it (Debian: sudo apt-get install mosquitto) and start again")
    return found


def access_list() -> str:
    """Return the text of Mosquitto's ACL file. `%u` is the common name of the client's certificate."""
    return (
        f"user {SERVER_IDENTITY}\n"
        "topic readwrite #\n"
        "topic read $SYS/#\n"
        "\n"
        "pattern write rg/d/%u/up/#\n"
        "pattern read rg/d/%u/dn/#\n"
        "pattern read rg/b/#\n"
    )


def mosquitto_settings(config: BrokerConfig, port: int, *, as_root: bool) -> str:
    """Return the text of Mosquitto's configuration file.

    Raises:
        Misuse: when a path cannot stand in it.
    """
    settings = {
        "per_listener_settings": "false",
        "allow_anonymous": "false",
        "acl_file": str(config.folder / "acl"),
        "persistence": "true",
        "persistence_location": f"{config.folder / 'data'}/",
        # These held in the measurements: bounded memory with stalled readers and lost devices.
        "autosave_interval": "30",
        "persistent_client_expiration": "30d",
        "max_inflight_messages": "20",
        "max_queued_messages": "1000",
        "max_packet_size": str(256 * 1024),
        "set_tcp_nodelay": "true",
        "log_dest": "stderr",
        "listener": f"{port} {config.host}",
        "cafile": str(config.ca_path),
        "certfile": str(config.cert_path),
        "keyfile": str(config.key_path),
        "tls_version": "tlsv1.2",  # and above
        "require_certificate": "true",
        "use_identity_as_username": "true",
        "use_username_as_clientid": "true",  # without it a device evicts another by taking its client id
    }
    if _has_crl(config):
        settings["crlfile"] = str(config.crl_path)
    lines = [f"{key} {value}" for key, value in settings.items()]
    lines[:0] = [f"log_type {kind}" for kind in ("error", "warning", "notice")]
    if as_root:
        lines.insert(0, "user root")
    for line in lines:
        if "\n" in line or "\r" in line:
            raise Misuse(f"a path with a line break cannot stand in Mosquitto's configuration: {line!r}")
    return "\n".join(lines) + "\n"


def _has_crl(config: BrokerConfig) -> bool:
    return config.crl_path is not None and config.crl_path.exists()


class Broker:
    """The child and the thread that keeps it alive. May be started again after `stop`, on the same port."""

    def __init__(self, config: BrokerConfig, on_restart: Callable[[str], None] | None = None) -> None:
        """
        Args:
            on_restart: called on the broker's own thread with the reason each time the child has to be started again.
        """
        self._config = config
        self._on_restart = on_restart
        self._port = config.port
        self._chance = random.Random()  # noqa: S311 - jitter, not secrets
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._crl_in_use = False
        self._stopping = threading.Event()
        self._log_tail: deque[str] = deque(maxlen=_LOG_TAIL_LINES)
        self._thread: threading.Thread | None = None
        self._first_exit = threading.Event()  # the child of this start has ended once

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            Misuse: before the first start, when none was given.
        """
        if self._port is None:
            raise Misuse("the broker has no port before its first start")
        return self._port

    @property
    def pid(self) -> int | None:
        """The process id of the child, or None while there is none."""
        child = self._child
        return None if child is None or child.poll() is not None else child.pid

    def alive(self) -> bool:
        """Say whether the child runs and answers on its port."""
        return self.pid is not None and self._answers()

    def start(self) -> None:
        """Start the broker and return when it answers.

        Raises:
            Misuse: when Mosquitto is not installed, a file is missing, the port is taken, or it will not start;
                the text has the last lines of its log.
        """
        program = find_mosquitto()
        for path in (self._config.ca_path, self._config.cert_path, self._config.key_path):
            if not path.is_file():
                raise Misuse(f"the broker needs {path}, which is not there")
        (self._config.folder / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
        chosen = self._port  # devices know the port by now, so a second start takes it again
        for _ in range(1 if chosen is not None else _PORT_TRIES):
            self._port = _free_port(self._config.host) if chosen is None else chosen
            self._stopping.clear()
            # The child gets its signal when the thread that started it ends, so that thread must live as long.
            self._thread = threading.Thread(target=self._keep_alive, args=(program,), name="broker", daemon=True)
            self._first_exit = threading.Event()
            self._thread.start()
            if self._wait_until_it_answers():
                logger.info("event=broker_started port=%s pid=%s", self._port, self.pid)
                return
            self.stop()
        tail = "\n".join(self._log_tail) or "(it wrote no log)"
        raise Misuse(f"Mosquitto did not start on {self._config.host}:{self._port}; it said:\n{tail}")

    def reload(self) -> None:
        """Have the broker read its access list and revocation list again.

        Revoked devices cannot connect again; who is connected stays so. When the first revocation list has
        appeared since the start, the child is restarted, because Mosquitto takes up no new setting otherwise.

        Raises:
            Retryable: when there is no child at the moment.
        """
        with self._lock:
            child = self._child
            if child is None or child.poll() is not None:
                raise Retryable("the broker is not running at the moment: reload it when it is back")
            child.send_signal(signal.SIGTERM if _has_crl(self._config) != self._crl_in_use else signal.SIGHUP)

    def stop(self) -> None:
        """End the child, cleanly if it lets us. May be called twice."""
        with self._lock:
            self._stopping.set()
            child = self._child
            if child is not None and child.poll() is None:
                child.terminate()
        if child is not None:
            try:
                child.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_STOP_TIMEOUT_S)

    def _keep_alive(self, program: str) -> None:
        attempt = 0
        while not self._stopping.is_set():
            born_s = time.monotonic()
            reason = self._run_once(program)
            self._first_exit.set()
            if self._stopping.is_set():
                return
            attempt = 0 if time.monotonic() - born_s > _STABLE_S else attempt + 1
            delay_s = self._chance.uniform(0, min(_RESTART_CAP_S, _RESTART_BASE_S * 2 ** min(attempt, 20)))
            logger.warning("event=broker_died reason=%s restart_in_s=%.2f", reason, delay_s)
            if self._on_restart is not None:
                self._on_restart(reason)
            self._stopping.wait(delay_s)

    def _run_once(self, program: str) -> str:
        """Run a child until it ends; return why it ended."""
        settings_path = self._config.folder / "mosquitto.conf"
        with self._lock:
            if self._stopping.is_set():
                return "stopped"
            self._crl_in_use = _has_crl(self._config)
            try:
                write_durably(self._config.folder / "acl", access_list().encode())
                text = mosquitto_settings(self._config, self.port, as_root=os.geteuid() == 0)
                write_durably(settings_path, text.encode())
                child = subprocess.Popen(
                    [program, "-c", str(settings_path)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for us: the broker ends after our goodbyes
                    preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),
                )
            except (OSError, Retryable) as err:
                self._log_tail.append(str(err))
                return str(err)
            self._child = child
        assert child.stderr is not None
        with child.stderr as log:
            while line := log.readline(_LOG_LINE_BYTES):
                self._take_log(line.decode(errors="replace").rstrip())
        status = child.wait()
        return f"it ended with status {status}" if status >= 0 else f"it was ended by signal {-status}"

    def _take_log(self, line: str) -> None:
        self._log_tail.append(line)
        logger.log(logging.WARNING if "Error:" in line else logging.DEBUG, "event=broker_log text=%s", line)

    def _wait_until_it_answers(self) -> bool:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and not self._first_exit.is_set():
            if self.pid is not None and self._answers():
                return True
            self._first_exit.wait(_POLL_S)
        return False

    def _answers(self) -> bool:
        """Say whether a server with a certificate of our CA answers: a stranger on the port is not our broker."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # its certificate may be for a public name; the CA tells it apart
        try:
            context.load_verify_locations(self._config.ca_path)
            address = (_reachable(self._config.host), self.port)
            with (
                socket.create_connection(address, timeout=_PROBE_TIMEOUT_S) as plain,
                context.wrap_socket(plain),
            ):
                return True
        except OSError:
            return False


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - only compared


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
