"""The tree: every setting with its type, its default and what it is for."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
WebhookEvent = Literal["message", "assigned", "waiting", "closed", "offline"]
BODY_MAX = 262144
"""The largest body that can travel: it goes to the dispatcher for up to three receivers in one call of 1 MiB (customer,
agent, sender), and to a worker as one string of Perspective Broker, which takes 640 KiB."""


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
    http_connections: Annotated[Count, _doc("calls to them at a time, and kept-alive connections for each")] = 64
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
    messages_per_s: Annotated[Count, _doc("messages accepted per second and business server; more are 429")] = 2000
    messages_burst: Annotated[Count, _doc("... and how many may come at once")] = 5000
    words: Annotated[
        str, _doc("the word policy: channels naming the same one share its list; empty: the channel's own")
    ] = ""
    journal_length: Annotated[Count, _doc("entries kept of a `journal` uplink")] = 100000
    away_message: Annotated[
        str, _doc("told to a customer who has to wait because the shop is closed or no agent is there; empty: nothing")
    ] = ""
    opening_hours: Annotated[list[str], _doc('such as ["mon-fri 09:00-18:00", "sat 10:00-14:00"]; empty: always')] = (
        field(default_factory=list)
    )
    time_zone: Annotated[str, _doc("... in this time zone, such as Europe/Berlin")] = "UTC"
    webhook_url: Annotated[str, _doc("told by POST of what happens in this channel; empty: nobody is")] = ""
    webhook_secrets: Annotated[
        list[str],
        _doc(
            "sign what is posted there: `whsec_` and the base64 of at least 24 bytes;"
            " several while receivers change over"
        ),
    ] = field(default_factory=list)
    webhook_events: Annotated[
        list[WebhookEvent], _doc("what it is told of; `offline`: a receiver has nobody online")
    ] = field(default_factory=lambda: ["message", "assigned", "waiting", "closed", "offline"])


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
    body_max: Annotated[int, Meta(ge=1, le=BODY_MAX), _doc("bytes of one body")] = 65536


class Assignment(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which agent gets a customer."""

    strategy: Annotated[Literal["least_loaded", "round_robin"], _doc("among the agents that are free")] = "least_loaded"
    sticky: Annotated[bool, _doc("a returning customer gets the last agent, if online and not full")] = True
    answer_timeout_s: Annotated[
        int, Meta(ge=0), _doc("who has not answered for so long loses the customer, if another is free; 0: never")
    ] = 300
    offline_grace_s: Annotated[Seconds, _doc("who is gone for so long loses customers that wait for an answer")] = 20.0
    capacity: Annotated[Count, _doc("customers at a time of an agent who names no capacity")] = 5
    queue_max: Annotated[Count, _doc("customers waiting in one shop")] = 10000


class Moderation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An external word service beside the built-in word list."""

    url: Annotated[str, _doc("asked for every message; empty: none")] = ""
    timeout_s: Annotated[Seconds, _doc("deadline of one question")] = 0.5
    on_failure: Annotated[Literal["open", "closed"], _doc("no answer: let the message pass, or refuse it")] = "open"


class Webhooks(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How back offices are told of what happens ([channels.NAME] webhook_url says who)."""

    timeout_s: Annotated[Seconds, _doc("deadline of one POST")] = 10.0
    in_flight: Annotated[Count, _doc("POSTs of one channel and server at a time")] = 16
    retry_first_s: Annotated[
        Seconds, _doc("a failed one is tried again after so long, then after twice as long, ...")
    ] = 2.0
    retry_max_s: Annotated[Seconds, _doc("... up to this")] = 600.0
    give_up_s: Annotated[Seconds, _doc("what failed for so long goes to the list of the dead: imctl webhooks")] = (
        259200.0
    )
    length: Annotated[Count, _doc("events waiting in one channel; beyond it the oldest die")] = 100000
    dead_length: Annotated[Count, _doc("dead events kept of one channel")] = 10000
    poll_s: Annotated[Seconds, _doc("how often a server looks for events that are due")] = 0.5


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
    webhooks: Webhooks = field(default_factory=Webhooks)
    suspension: Suspension = field(default_factory=Suspension)
