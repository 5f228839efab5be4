"""User tokens and the cluster's own (contract: Tokens)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from twisted.trial.unittest import SynchronousTestCase

from imserver.protocol.tokens import TokenError, Tokens
from tests.servers import settings

NOW = 1_700_000_000.0
SECRET = "a test's own token secret, 32 or more"


def signed(key: Any = SECRET, alg: str = "HS256", kid: str | None = "test", **changes: Any) -> str:
    """A token, good but for the changes; None leaves a claim out."""
    claims = {"sub": "u", "role": "customer", "channel": "demo", "exp": int(NOW) + 60} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=alg, headers={"kid": kid} if kid else None)


class TokenTests(SynchronousTestCase):
    """What is accepted, and what is not."""

    def setUp(self) -> None:
        """The test's keys."""
        self.tokens = Tokens(settings())

    def refused(self, token: str) -> str:
        """Why it is refused."""
        return str(self.assertRaises(TokenError, self.tokens.verify, token, NOW))

    def test_good(self) -> None:
        """With and without kid, one channel or several, with info."""
        for token in (
            signed(),
            signed(kid=None),
            signed(channel=["demo", "unknown"], info={"name": "Ann"}, platform="ios"),
        ):
            claims = self.tokens.verify(token, NOW)
            self.assertEqual((claims.uid, claims.channels, claims.cluster), ("u", ("demo",), False))

    def test_refused(self) -> None:
        """Missing, expired, not yet valid, badly signed, badly made."""
        for token, reason in (
            ("", "missing"),
            ("nonsense", "invalid"),
            (signed(exp=int(NOW)), "expired"),
            (signed(nbf=int(NOW) + 5), "not valid yet"),
            (signed(key="another secret, just as long as it has to be"), "signature"),
            (signed(kid="other"), "unknown key"),
            (signed(channel="unknown"), "no channel"),
            (signed(channel=[]), "no channel"),
            (signed(sub="not valid"), "invalid"),
            (signed(role="king"), "invalid"),
            (signed(exp=None), "invalid"),
            (signed(info={"x": "y" * 1024}), "1024"),
            (signed(info="text"), "invalid"),
        ):
            self.assertIn(reason, self.refused(token))

    def test_none_is_no_algorithm(self) -> None:
        """`alg: none` is never accepted, whatever the kid."""
        for header in ({"alg": "none"}, {"alg": "none", "kid": "test"}, {"alg": "NONE", "kid": "cluster"}):
            parts = [header, {"sub": "u", "role": "customer", "channel": "demo", "exp": int(NOW) + 60}]
            encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
            self.refused(".".join([*encoded, ""]))

    def test_public_keys(self) -> None:
        """RS256, ES256 and EdDSA by configuration; a public key is never taken for an HS256 secret."""
        for alg, private in (
            ("RS256", rsa.generate_private_key(65537, 2048)),
            ("ES256", ec.generate_private_key(ec.SECP256R1())),
            ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
        ):
            public = private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            path = Path(self.mktemp())
            path.write_bytes(public)
            keys = {"test": {"alg": alg, "public_key_file": str(path)}}
            tokens = Tokens(settings(tokens={"keys": keys}))
            self.assertEqual(tokens.verify(signed(private, alg), NOW).uid, "u")
            header = {"alg": "HS256", "kid": "test"}
            forged = jwt.api_jws.PyJWS()
            forged._algorithms["HS256"].prepare_key = lambda key: key  # type: ignore[method-assign, attr-defined]
            token = forged.encode(b'{"sub":"u"}', public, algorithm="HS256", headers=header)
            self.assertRaises(TokenError, tokens.verify, token, NOW)
            self.assertRaises(TokenError, tokens.issue, "u", "customer", ["demo"], 60, NOW)

    def test_rotation(self) -> None:
        """Several keys verify at once; one signs."""
        keys = {"old": {"secret": "old" * 12}, "new": {"secret": "new" * 12}}
        tokens = Tokens(settings(tokens={"keys": keys, "signing": "new"}))
        self.assertEqual(tokens.verify(signed("old" * 12, kid="old"), NOW).uid, "u")
        token, exp = tokens.issue("u", "merchant", ["demo"], 60, NOW, {"name": "Ann"})
        self.assertEqual(jwt.get_unverified_header(token)["kid"], "new")
        claims = tokens.verify(token, NOW)
        self.assertEqual((claims.role, claims.info, claims.exp), ("merchant", {"name": "Ann"}, exp))

    def test_cluster(self) -> None:
        """A server acts for a user's connection for a minute; a user cannot make such a token, nor say `conn`."""
        claims = self.tokens.verify(signed(info={"n": 1}), NOW)
        acting = self.tokens.verify(self.tokens.act_for(claims, "w.1", NOW), NOW)
        self.assertEqual((acting.uid, acting.conn, acting.cluster, acting.info), ("u", "w.1", True, {"n": 1}))
        self.assertRaises(TokenError, self.tokens.verify, self.tokens.act_for(claims, "w.1", NOW), NOW + 61)
        self.assertEqual(self.tokens.verify(signed(conn="w.1"), NOW).conn, "")
        self.refused(signed(kid="cluster"))
