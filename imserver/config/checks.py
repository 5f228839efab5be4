"""What has to hold beyond the type of each setting: secrets that are there, addresses that can be, names that agree."""

from __future__ import annotations

import binascii
import typing
from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.internet import endpoints

from imserver.config.hours import OpeningHours
from imserver.config.tree import Channel, Config, Tokens

SECRET_MIN = 16
WEBHOOK_SECRET_MIN = 24
"""Bytes of a webhook's secret (Standard Webhooks)."""


def inconsistencies(config: Config) -> list[str]:
    """Every mistake of a typed tree, each with its key and what would do."""
    found: list[str] = []
    if len(config.cluster.secret) < 2 * SECRET_MIN:
        found.append(
            f"cluster.secret: needs at least {2 * SECRET_MIN} characters, the same on every server, "
            "for example from `openssl rand -hex 32`"
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
    try:
        OpeningHours([], channel.time_zone)
    except ValueError as error:
        found.append(f"{path}.time_zone: {error}")
    for index, text in enumerate(channel.opening_hours):
        try:
            OpeningHours([text], "UTC")
        except ValueError as error:
            found.append(f"{path}.opening_hours[{index}]: {error}")
    return found + _webhook_mistakes(path, channel)


def _webhook_mistakes(path: str, channel: Channel) -> list[str]:
    found = []
    if urlsplit(channel.webhook_url).scheme not in ("", "http", "https"):
        found.append(f"{path}.webhook_url: is not a URL with http:// or https://")
    if channel.webhook_url and not channel.webhook_secrets:
        found.append(f'{path}.webhook_secrets: needs at least one, "whsec_" and what `openssl rand -base64 32` prints')
    for index, secret in enumerate(channel.webhook_secrets):
        try:
            size = len(b64decode(secret.removeprefix("whsec_"), validate=True))
        except binascii.Error:
            size = 0
        if not secret.startswith("whsec_") or size < WEBHOOK_SECRET_MIN:
            found.append(
                f"{path}.webhook_secrets[{index}]: is not whsec_ and the base64 of at least {WEBHOOK_SECRET_MIN} bytes"
            )
    return found


def _endpoint_mistakes(path: str, text: str) -> list[str]:
    try:
        endpoints.serverFromString(typing.cast(Any, None), text)
    except Exception as error:  # whatever an endpoint plugin raises for a text it does not like
        return [f"{path}: is not a Twisted endpoint such as tcp:8090 or ssl:443:privateKey=key.pem: {text!r} ({error})"]
    return []
