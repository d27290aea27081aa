// Judges a JWT-SVID with jose from nothing but the discovery URL (OpenID Connect Discovery 1.0), as a cloud would.
//
//     node discovery.mjs ISSUER AUDIENCE TOKEN
//
// The roots that the web server is known by are in NODE_EXTRA_CA_CERTS. Prints the claims.
import { createRemoteJWKSet, jwtVerify } from 'jose';

const [issuer, audience, token] = process.argv.slice(2);
const answer = await fetch(`${issuer}/.well-known/openid-configuration`);
if (!answer.ok) throw new Error(`discovery answered ${answer.status}`);
const found = await answer.json();
if (found.issuer !== issuer) throw new Error(`the issuer of ${issuer} says it is ${found.issuer}`);
const { payload } = await jwtVerify(token, createRemoteJWKSet(new URL(found.jwks_uri)), {
  issuer,
  audience,
  algorithms: found.id_token_signing_alg_values_supported,
  requiredClaims: ['exp', 'sub', 'aud', 'iss', 'iat'],
});
console.log(JSON.stringify(payload));
