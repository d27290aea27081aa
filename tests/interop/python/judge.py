#!/usr/bin/env python3
"""Judges Chancery from outside with PyPI's `spiffe`: watches X.509 contexts and JWT bundles, fetches and validates
JWT-SVIDs, and prints one JSON line for each.

Of X.509 the library parses and checks the profile; that key and certificate belong together, and that each chain ends at a
root beside it, is checked here with `cryptography`, since the library leaves both to its user. See ../README.md.
"""

import argparse
import json
import queue
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import JwtSource, JwtSvid, SpiffeId, WorkloadApiClient


def public_bytes(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def ends_at(chain, roots):
    """Whether each certificate of `chain` is signed by the next one, and the last by one of `roots`."""

    def issued_by(certificate, issuer):
        try:
            certificate.verify_directly_issued_by(issuer)
            return True
        except (ValueError, TypeError, InvalidSignature):
            return False

    linked = all(issued_by(lower, upper) for lower, upper in zip(chain, chain[1:]))
    return linked and any(issued_by(chain[-1], root) for root in roots)


def described(context):
    bundles = {bundle.trust_domain.name: bundle.x509_authorities for bundle in context.x509_bundle_set.bundles}
    svids = []
    for svid in context.x509_svids:
        if public_bytes(svid.leaf.public_key()) != public_bytes(svid.private_key.public_key()):
            raise ValueError(f"the key of {svid.spiffe_id} is not the key in its certificate")
        if not ends_at(svid.cert_chain, bundles[svid.spiffe_id.trust_domain.name]):
            raise ValueError(f"the chain of {svid.spiffe_id} does not end at a root of its bundle")
        serial = svid.leaf.serial_number
        svids.append(
            {
                "spiffe_id": str(svid.spiffe_id),
                "serial": serial.to_bytes((serial.bit_length() + 7) // 8, "big").hex(),
                "not_after": int(svid.leaf.not_valid_after_utc.timestamp()),
                "hint": "",  # not offered by this library
            }
        )
    return {
        "client": "spiffe-python",
        "svids": svids,
        "bundles": {name: len(roots) for name, roots in bundles.items()},
    }


def counted(bundle_set):
    return {bundle.trust_domain.name: len(bundle.jwt_authorities) for bundle in bundle_set}


def tokens(audience, subject):
    """JWT-SVIDs from a JwtSource, each judged twice: by the library with the source's bundle, and by ValidateJWTSVID."""
    with JwtSource(timeout_in_seconds=30) as source, WorkloadApiClient() as client:
        svids = source.fetch_svids(audience, subject) if subject is None else [source.fetch_svid(audience, subject)]
        seen = []
        for svid in svids:
            bundle = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
            own = JwtSvid.parse_and_validate(svid.token, bundle, {min(audience)})
            told = client.validate_jwt_svid(svid.token, min(audience))
            if not own.spiffe_id == told.spiffe_id == svid.spiffe_id:
                raise ValueError(f"{svid.spiffe_id} is validated as another")
            seen.append(
                {
                    "spiffe_id": str(svid.spiffe_id),
                    "token": svid.token,
                    "audience": sorted(svid.audience),
                    "expires_at": int(svid.expiry),
                    "hint": "",  # not offered by this library
                }
            )
        return {"client": "spiffe-python", "tokens": seen, "bundles": counted(source.bundles)}


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("mode", choices=["watch", "watch-bundles", "watch-jwt-bundles", "jwt"])
    arguments.add_argument("--audience", default="", help="whom tokens are for, with commas between them")
    arguments.add_argument("--id", help="the SPIFFE ID of the token")
    arguments.add_argument("--updates", type=int, default=1, help="exit after this many updates")
    arguments.add_argument("--patient", action="store_true", help="connect again when the stream fails")
    arguments.add_argument("--timeout", type=float, default=60, help="seconds without an update; 0: for ever")
    arguments = arguments.parse_args()

    if arguments.mode == "jwt":
        subject = SpiffeId(arguments.id) if arguments.id else None
        print(json.dumps(tokens(set(arguments.audience.split(",")), subject)), flush=True)
        return

    if arguments.mode == "watch-bundles":
        # The library knows no stream of these: the one answer that it asks for.
        with WorkloadApiClient() as client:
            bundles = client.fetch_x509_bundles().bundles
        counts = {bundle.trust_domain.name: len(bundle.x509_authorities) for bundle in bundles}
        print(json.dumps({"client": "spiffe-python", "bundles": counts}), flush=True)
        return

    # The library calls back from a thread of its own; everything is decided in this one.
    arrived = queue.Queue()
    with WorkloadApiClient() as client:
        if arguments.mode == "watch":
            stream, show = client.stream_x509_contexts, described
        else:
            stream, show = client.stream_jwt_bundles, lambda update: {
                "client": "spiffe-python",
                "bundles": counted(update.bundles),
            }
        stream = stream(arrived.put, arrived.put, retry_connect=arguments.patient)
        try:
            for _ in range(arguments.updates):
                update = arrived.get(timeout=arguments.timeout or None)
                if isinstance(update, Exception):
                    raise update
                print(json.dumps(show(update)), flush=True)
        finally:
            stream.cancel()


if __name__ == "__main__":
    try:
        main()
    except queue.Empty:
        sys.exit("spiffe-python: no update in time")
    except Exception as error:  # whatever it was, the harness wants one line and a status
        sys.exit(f"spiffe-python: {type(error).__name__}: {error}")
