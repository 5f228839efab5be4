"""The configuration: one typed tree, read once from a TOML file and the environment.

`load` gives a `Config` or raises `ConfigError`, which names every mistake at once, each with its key and what would
do.  The environment overrides the file: ``IM_REDIS__URL`` sets ``[redis] url``.  There are no default secrets: what
has to be secret has no default, and its absence is a mistake.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, field
from twisted.internet import endpoints

PREFIX = "IM_"
SECRET_MIN = 16

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
S = TypeVar("S", bound=msgspec.Struct)


class ConfigError(Exception):
    """What is wrong with a configuration: `mistakes`, one sentence each, every one of them."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


def _doc(text: str) -> Meta:
    return Meta(description=text)


class Redis(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Redis or Valkey: who is connected where, inboxes, journals. Keep its append-only file on."""

    url: Annotated[str, _doc("redis://[:password@]host[:port][/db], or unix:///path/to/socket[?db=N]")] = (
        "redis://127.0.0.1:6379/0"
    )
    startup_wait_s: Annotated[Seconds, _doc("how long a server retries at start before it gives up")] = 30.0
    command_timeout_s: Annotated[Seconds, _doc("deadline of one command")] = 2.0
    connections: Annotated[Count, _doc("connections of one process for ordinary commands")] = 2
    in_flight_max: Annotated[Count, _doc("commands waiting for an answer; more are refused at once")] = 20000


class Database(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The archive of messages, used by the business server alone."""

    url: Annotated[str, _doc("an SQLAlchemy URL: sqlite:///FILE or postgresql+psycopg://user:password@host/name")] = (
        "sqlite:///imserver.sqlite"
    )
    threads: Annotated[Count, _doc("threads (and connections) of one business server")] = 4
    timeout_s: Annotated[Seconds, _doc("deadline of one statement")] = 10.0


class Cluster(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What our own servers share."""

    secret: Annotated[
        str,
        _doc(
            "at least 32 characters, the same on every server: it signs the servers' calls to each other"
            " and makes message ids"
        ),
    ] = ""
    rpc_timeout_s: Annotated[Seconds, _doc("deadline of one Perspective Broker call")] = 3.0
    rpc_batch_bytes: Annotated[Count, Meta(le=500_000), _doc("one call carries at most so many bytes of frames")] = (
        262144
    )
    rpc_queue_bytes: Annotated[Count, _doc("bytes waiting for one worker; beyond it messages wait in the inbox")] = (
        16777216
    )
    http_timeout_s: Annotated[Seconds, _doc("deadline of one HTTP call to a dispatcher or business server")] = 5.0
    http_connections: Annotated[Count, _doc("kept-alive connections for each of them")] = 16
    http_queue: Annotated[Count, _doc("calls waiting for one of those connections; more are refused at once")] = 5000


class Key(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One key for user tokens; its name in the file is the `kid`."""

    alg: Annotated[Literal["HS256", "RS256", "ES256", "EdDSA"], _doc("the only algorithm this key is good for")] = (
        "HS256"
    )
    secret: Annotated[str, _doc("HS256: at least 32 characters")] = ""
    public_key_file: Annotated[str, _doc("the others: PEM file that verifies")] = ""
    private_key_file: Annotated[str, _doc("the others: PEM file that signs, where tokens are issued")] = ""


class Tokens(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """User tokens (JWT). Several keys may be valid at once, so that they can be rotated."""

    signing: Annotated[
        str, _doc("the kid that POST /v1/tokens and imctl token sign with; empty: the first of the keys")
    ] = ""
    ttl_max_s: Annotated[Count, _doc("the longest life of a token issued here")] = 31_622_400
    keys: dict[str, Key] = field(default_factory=dict)


class Channel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A business line: its keys, limits and policies."""

    api_keys: Annotated[list[str], _doc("the keys its backends call with, each at least 16 characters")] = field(
        default_factory=list
    )
    uplink: Annotated[Literal["business", "direct", "journal"], _doc("what becomes of a client's send")] = "business"
    send_to: Annotated[Literal["any", "agents", "none"], _doc("which uids a client may name in `to`")] = "any"
    push_per_s: Annotated[Count, _doc("pushed receivers per second and dispatcher; more are 429")] = 20000
    push_burst: Annotated[Count, _doc("... and how many may come at once")] = 50000
    words: Annotated[
        str, _doc("the word policy: channels naming the same one share its list; empty: the channel's own")
    ] = ""
    journal_length: Annotated[Count, _doc("entries kept of a `journal` uplink")] = 100000
    webhook_url: Annotated[str, _doc("where its back office hears of events; empty: nowhere")] = ""
    webhook_secret: Annotated[str, _doc("signs them; at least 16 characters")] = ""
    away_message: Annotated[str, _doc("told to a customer when no agent is connected; empty: nothing")] = ""


class Worker(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """im-worker: holds the WebSocket connections."""

    listen: Annotated[str, _doc("WebSocket; a Twisted endpoint string")] = "tcp:8090"
    http_listen: Annotated[str, _doc("HTTP: /v1/stream, /healthz, /metrics")] = "tcp:8091:interface=127.0.0.1"
    rpc_listen: Annotated[str, _doc("Perspective Broker, from dispatchers and workers")] = "tcp:0:interface=127.0.0.1"
    url: Annotated[str, _doc("what clients connect to; empty: ws://HOST:PORT/ws of `listen`")] = ""
    http_url: Annotated[str, _doc("the public address of `http_listen`; empty: made from it")] = ""
    rpc_address: Annotated[
        str, _doc("client endpoint string of `rpc_listen` for other machines; empty: made from it")
    ] = ""
    connections_max: Annotated[Count, _doc("more are refused with 1013")] = 15000
    lease_ttl_s: Annotated[Seconds, _doc("a worker that is silent for so long is dead to the others")] = 10.0
    lease_renew_s: Annotated[Seconds, _doc("how often it says that it lives")] = 3.0
    drain_s: Annotated[Seconds, _doc("time over which clients are sent away at SIGTERM")] = 3.0
    trusted_proxies: Annotated[list[str], _doc("addresses of proxies whose X-Forwarded-For is believed")] = field(
        default_factory=list
    )
    allowed_origins: Annotated[
        list[str], _doc("browser origins that may connect, such as https://shop.example; * = any")
    ] = field(default_factory=lambda: ["*"])


class Connection(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Limits of one client connection."""

    hello_timeout_s: Annotated[Seconds, _doc("the first frame has to come within")] = 10.0
    heartbeat_s: Annotated[Seconds, _doc("nothing read for so long: ping; for as long again: close")] = 60.0
    max_frame: Annotated[int, Meta(ge=1024, le=1048576), _doc("bytes of one frame from a client; over it 1009")] = 65536
    write_budget: Annotated[int, Meta(ge=65536), _doc("bytes waiting for a slow reader; over it 4413")] = 1048576
    frames_per_s: Annotated[Count, _doc("frames a second from a client; over it 4429")] = 100
    frames_burst: Annotated[Count, _doc("... and how many may come at once")] = 500
    bad_frames: Annotated[Count, _doc("invalid frames in a row until 4400")] = 10
    requests_max: Annotated[Count, _doc("requests of one client being answered at a time; more wait unread")] = 64


class Delivery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Acknowledgement, retransmission and the inbox."""

    ack_timeout_s: Annotated[Seconds, _doc("unacknowledged for so long: sent again")] = 18.0
    retransmissions: Annotated[int, Meta(ge=0), _doc("... so often; then 4408")] = 3
    inbox_length: Annotated[Count, _doc("messages kept for one uid")] = 1000
    inbox_ttl_s: Annotated[Count, _doc("... for so long after the last one")] = 604800
    cursors_ttl_s: Annotated[Count, _doc("how long a silent user's acknowledged cursors are kept")] = 2592000
    unacked_max: Annotated[Count, _doc("messages in flight on one connection; the rest waits in the inbox")] = 1000
    cid_ttl_s: Annotated[Count, _doc("how long a sender's cid gives the same message id")] = 86400
    ack_flush_s: Annotated[Seconds, _doc("acknowledged cursors go to Redis every so often")] = 0.5


class Dispatcher(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """im-dispatcher: HTTP API for backends."""

    listen: Annotated[str, _doc("a Twisted endpoint string")] = "tcp:8081:interface=127.0.0.1"
    url: Annotated[str, _doc("where business servers reach it")] = "http://127.0.0.1:8081"
    allowed_origins: Annotated[list[str], _doc("browser origins that may call; * = any")] = field(default_factory=list)
    deliveries_max: Annotated[Count, _doc("deliveries under way at a time; more wait")] = 8000
    calls_waiting: Annotated[Count, _doc("calls that wait for that; more are 503")] = 1000
    journal_waits: Annotated[Count, _doc("GET /v1/journal calls that wait for an entry at a time; more are 429")] = 200


class Business(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """im-business: conversations, agents, words, archive."""

    listen: Annotated[str, _doc("a Twisted endpoint string")] = "tcp:8082:interface=127.0.0.1"
    url: Annotated[str, _doc("where workers reach it")] = "http://127.0.0.1:8082"
    allowed_origins: Annotated[list[str], _doc("browser origins that may call; * = any")] = field(
        default_factory=lambda: ["*"]
    )
    archive_batch: Annotated[Count, _doc("messages archived in one transaction")] = 500
    archive_wait_s: Annotated[Seconds, _doc("an archiver looks for new entries at least so often")] = 0.5
    claim_after_s: Annotated[Seconds, _doc("entries of an archiver silent for so long are taken over")] = 15.0
    sweep_s: Annotated[Seconds, _doc("how often undispatched messages and waiting customers are looked for")] = 2.0
    sweep_after_s: Annotated[Seconds, _doc("a message is the sweeper's when it has been undispatched for so long")] = (
        4.0
    )
    dispatch_lease_s: Annotated[
        Seconds,
        _doc("one server at a time dispatches a conversation, for so long if it dies; over cluster.http_timeout_s"),
    ] = 15.0
    dispatch_in_flight: Annotated[Count, _doc("messages being dispatched at a time; the sweeper does the rest")] = 1000


class Messages(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Limits of one message."""

    recall_s: Annotated[int, Meta(ge=0), _doc("how long a sender may take a message back")] = 120
    body_max: Annotated[Count, _doc("bytes of one body")] = 65536


class Assignment(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which agent gets a customer."""

    strategy: Annotated[Literal["least_loaded", "round_robin"], _doc("among the agents that are free")] = "least_loaded"
    sticky: Annotated[bool, _doc("a returning customer gets the last agent, if online and not full")] = True
    answer_timeout_s: Annotated[int, Meta(ge=0), _doc("an agent silent for so long loses the customer; 0: never")] = 0
    offline_grace_s: Annotated[Seconds, _doc("an agent gone for so long loses the waiting customers")] = 60.0
    capacity: Annotated[Count, _doc("customers at a time of an agent who names no capacity")] = 5
    queue_max: Annotated[Count, _doc("customers waiting in one shop")] = 10000


class Moderation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An external word service beside the built-in word list."""

    url: Annotated[str, _doc("asked for every message; empty: none")] = ""
    timeout_s: Annotated[Seconds, _doc("deadline of one question")] = 0.5
    on_failure: Annotated[Literal["open", "closed"], _doc("no answer: let the message pass, or refuse it")] = "open"


class Suspension(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who connects too often is suspended for a while."""

    attempts: Annotated[int, Meta(ge=0), _doc("connections of one uid in a window; 0: no limit")] = 600
    ip_attempts: Annotated[int, Meta(ge=0), _doc("connections of one address in a window; 0: no limit")] = 0
    window_s: Annotated[Count, _doc("the window")] = 60
    suspend_s: Annotated[Count, _doc("suspended for so long; each try while suspended adds as much")] = 60
    suspend_max_s: Annotated[Count, _doc("... up to this")] = 3600


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole tree."""

    redis: Redis = field(default_factory=Redis)
    database: Database = field(default_factory=Database)
    cluster: Cluster = field(default_factory=Cluster)
    tokens: Tokens = field(default_factory=Tokens)
    channels: dict[str, Channel] = field(default_factory=dict)
    worker: Worker = field(default_factory=Worker)
    connection: Connection = field(default_factory=Connection)
    delivery: Delivery = field(default_factory=Delivery)
    dispatcher: Dispatcher = field(default_factory=Dispatcher)
    business: Business = field(default_factory=Business)
    messages: Messages = field(default_factory=Messages)
    assignment: Assignment = field(default_factory=Assignment)
    moderation: Moderation = field(default_factory=Moderation)
    suspension: Suspension = field(default_factory=Suspension)


def load(path: str | Path, environ: Mapping[str, str]) -> Config:
    """The checked configuration of `path`, overridden by `environ`; `ConfigError` names every mistake."""
    return parse(read(path), environ)


def read(path: str | Path) -> dict[str, Any]:
    """The TOML file as plain dictionaries; `ConfigError` if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            [f"{path}: cannot be read: {error.strerror}; imctl genconfig prints a configuration"]
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from None


def parse(tree: dict[str, Any], environ: Mapping[str, str]) -> Config:
    """`tree` (as from TOML) with `environ` over it, typed and checked."""
    mistakes: list[str] = []
    config = _struct(Config, _override(tree, environ, mistakes), "", mistakes)
    mistakes.extend(_inconsistencies(config))
    if mistakes:
        raise ConfigError(mistakes)
    return config


def _override(tree: dict[str, Any], environ: Mapping[str, str], mistakes: list[str]) -> dict[str, Any]:
    merged = _copy(tree)
    sections = {f.name for f in msgspec.structs.fields(Config)}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        *parents, leaf = name[len(PREFIX) :].lower().split("__")
        if not parents or parents[0] not in sections:
            mistakes.append(f"{name}: there is no [{parents[0] if parents else ''}]; it is IM_SECTION__KEY")
            continue
        if parents[0] == "channels" and len(parents) > 1:
            parents[1] = parents[1].replace(
                "_", "-"
            )  # a channel's name has no underscore, an environment name no hyphen
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                mistakes.append(f"{name}: {parent} is a value, not a section")
                break
        else:
            node[leaf] = _FromEnvironment(environ[name])
    return merged


def _copy(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in tree.items()}


class _FromEnvironment(str):
    """A text that may have to become a number, a boolean or a list."""


def _struct(kind: type[S], data: Any, path: str, mistakes: list[str]) -> S:
    if not isinstance(data, dict):
        mistakes.append(f"{path}: is a section, not a value: write [{path}]")
        return kind()
    known = {f.name: f for f in msgspec.structs.fields(kind)}
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            mistakes.append(f"{_join(path, key)}: unknown key; {hint}")
    values: dict[str, Any] = {}
    for name, described in known.items():
        if name in data:
            values[name] = _value(described.type, data[name], _join(path, name), mistakes)
    return kind(**{name: value for name, value in values.items() if value is not None})


def _value(kind: Any, value: Any, path: str, mistakes: list[str]) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(kind, value, path, mistakes)
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            mistakes.append(f"{path}: is a section, not a value: write [{path}.NAME]")
            return None
        return {
            name: _struct(typing.get_args(kind)[1], item, _join(path, name), mistakes) for name, item in value.items()
        }
    if isinstance(value, _FromEnvironment):
        value = _untext(kind, value)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        mistakes.append(f"{path}: {str(error)[0].lower()}{str(error)[1:]}, got {value!r}")
        return None


def _untext(kind: Any, text: str) -> Any:
    plain = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    if plain is str or typing.get_origin(plain) in (Literal, types.UnionType):
        return str(text)
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [item.strip() for item in text.split(",")] if typing.get_origin(plain) is list else str(text)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def _inconsistencies(config: Config) -> list[str]:
    found: list[str] = []
    if len(config.cluster.secret) < 2 * SECRET_MIN:
        found.append(
            f"cluster.secret: needs at least {2 * SECRET_MIN} characters, the same on every server, for example from `openssl rand -hex 32`"
        )
    found.extend(_key_mistakes(config.tokens))
    if not config.channels:
        found.append('channels: no channel is configured; write [channels.NAME] with api_keys = ["..."]')
    owners: dict[str, str] = {}
    for name, channel in config.channels.items():
        found.extend(_channel_mistakes(name, channel, owners))
    for path, text in (
        ("worker.listen", config.worker.listen),
        ("worker.http_listen", config.worker.http_listen),
        ("worker.rpc_listen", config.worker.rpc_listen),
        ("dispatcher.listen", config.dispatcher.listen),
        ("business.listen", config.business.listen),
    ):
        found.extend(_endpoint_mistakes(path, text))
    for path, url, schemes in (
        ("redis.url", config.redis.url, ("redis", "unix")),
        ("dispatcher.url", config.dispatcher.url, ("http", "https")),
        ("business.url", config.business.url, ("http", "https")),
        ("moderation.url", config.moderation.url, ("", "http", "https")),
        ("worker.url", config.worker.url, ("", "ws", "wss")),
        ("worker.http_url", config.worker.http_url, ("", "http", "https")),
    ):
        if urlsplit(url).scheme not in schemes:
            found.append(f"{path}: is not a URL with {' or '.join(s + '://' for s in schemes if s)}, got {url!r}")
    if config.worker.lease_renew_s * 2 > config.worker.lease_ttl_s:
        found.append(
            "worker.lease_renew_s: has to be at most half of worker.lease_ttl_s, so that one lost renewal does no harm"
        )
    return found


def _key_mistakes(tokens: Tokens) -> list[str]:
    found: list[str] = []
    if not tokens.keys:
        found.append(
            'tokens.keys: no key is configured; write [tokens.keys.main] with secret = "..." of at least 32 characters'
        )
    if tokens.signing and tokens.signing not in tokens.keys:
        found.append(f"tokens.signing: there is no [tokens.keys.{tokens.signing}]")
    for kid, key in tokens.keys.items():
        path = f"tokens.keys.{kid}"
        if kid == "cluster":
            found.append(f"{path}: this name is taken by the servers' own tokens; use another")
        if key.alg == "HS256" and len(key.secret) < 2 * SECRET_MIN:
            found.append(f"{path}.secret: HS256 needs at least {2 * SECRET_MIN} characters")
        if key.alg != "HS256" and not key.public_key_file:
            found.append(f"{path}.public_key_file: {key.alg} needs the PEM file that verifies")
        for name in ("public_key_file", "private_key_file"):
            file = getattr(key, name)
            if file and not Path(file).is_file():
                found.append(f"{path}.{name}: there is no file {file}")
    return found


def _channel_mistakes(name: str, channel: Channel, owners: dict[str, str]) -> list[str]:
    found: list[str] = []
    path = f"channels.{name}"
    if not 1 <= len(name) <= 32 or set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-"):
        found.append(f"{path}: a channel's name has 1-32 characters of a-z0-9-")
    if not channel.api_keys:
        found.append(f"{path}.api_keys: needs at least one key, for example from `openssl rand -hex 16`")
    for index, key in enumerate(channel.api_keys):
        if len(key) < SECRET_MIN:
            found.append(f"{path}.api_keys[{index}]: needs at least {SECRET_MIN} characters")
        if owners.setdefault(key, name) != name:
            found.append(f"{path}.api_keys[{index}]: is the key of channel {owners[key]} too")
    if channel.webhook_url and len(channel.webhook_secret) < SECRET_MIN:
        found.append(f"{path}.webhook_secret: needs at least {SECRET_MIN} characters")
    return found


def _endpoint_mistakes(path: str, text: str) -> list[str]:
    try:
        endpoints.serverFromString(typing.cast(Any, None), text)
    except Exception as error:  # whatever an endpoint plugin raises for a text it does not like
        return [f"{path}: is not a Twisted endpoint such as tcp:8090 or ssl:443:privateKey=key.pem: {text!r} ({error})"]
    return []


def default_toml() -> str:
    """A commented configuration with every key: what `imctl genconfig` prints and `etc/imserver.toml` holds."""
    lines = [
        "# imserver: every key with its default. Only the lines that say FILL IN have to be filled in.",
        "# The environment overrides this file: IM_REDIS__URL sets [redis] url.",
        "",
    ]
    for section in msgspec.structs.fields(Config):
        kind = section.type
        if typing.get_origin(kind) is dict:
            lines += _section("channels.custom-tour", Channel)
        else:
            lines += _section(section.name, kind)
            if kind is Tokens:
                lines += _section("tokens.keys.main", Key)
    return "\n".join(lines)


_FILL_IN = {"cluster.secret", "tokens.keys.main.secret", "channels.custom-tour.api_keys"}


def _section(name: str, kind: type[msgspec.Struct]) -> list[str]:
    lines = [f"# {line.strip()}" for line in (kind.__doc__ or "").strip().splitlines()]
    lines.append(f"[{name}]")
    for described in msgspec.structs.fields(kind):
        if typing.get_origin(described.type) is dict:
            continue
        default = described.default if described.default is not msgspec.NODEFAULT else described.default_factory()
        text = _description(described.type)
        lines.append(f"# {text}" if text else "#")
        path = f"{name}.{described.name}"
        if path in _FILL_IN:
            example = ["..."] if isinstance(default, list) else "..."
            lines.append(f"# FILL IN: {described.name} = {_toml(example)}")
        else:
            lines.append(f"{described.name} = {_toml(default)}")
    return [*lines, ""]


def _description(kind: Any) -> str:
    found = [m.description for m in getattr(kind, "__metadata__", ()) if isinstance(m, Meta) and m.description]
    text = str(found[-1]) if found else ""
    plain = kind
    while typing.get_origin(plain) is Annotated:
        plain = typing.get_args(plain)[0]
    if typing.get_origin(plain) is Literal:
        text += f" ({', '.join(map(str, typing.get_args(plain)))})"
    return text


def _toml(value: Any) -> str:
    """A value as TOML; JSON writes strings, numbers, booleans and lists the same way."""
    return msgspec.json.encode(value).decode()
