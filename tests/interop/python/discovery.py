#!/usr/bin/env python3
"""Judges a JWT-SVID with PyJWT from nothing but the discovery URL (OpenID Connect Discovery 1.0), as a cloud would.

    discovery.py ISSUER AUDIENCE TOKEN

The roots that the web server is known by are in SSL_CERT_FILE. Prints the claims.
"""

import json
import ssl
import sys
import urllib.request

import jwt

issuer, audience, token = sys.argv[1:]
context = ssl.create_default_context()
with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", context=context, timeout=20) as answer:
    found = json.load(answer)
if found["issuer"] != issuer:
    sys.exit(f"discovery.py: the issuer of {issuer} says it is {found['issuer']}")
keys = jwt.PyJWKClient(found["jwks_uri"], ssl_context=context)
claims = jwt.decode(
    token,
    keys.get_signing_key_from_jwt(token),
    algorithms=found["id_token_signing_alg_values_supported"],
    audience=audience,
    issuer=issuer,
    options={"require": ["exp", "sub", "aud", "iss", "iat"]},
)
print(json.dumps(claims))
