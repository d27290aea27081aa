package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// fetched is what is printed for a bundle that came from a bundle endpoint.
type fetched struct {
	Client      string `json:"client"`
	TrustDomain string `json:"trust_domain"`
	X509        int    `json:"x509"`
	JWT         int    `json:"jwt"`
	WIT         int    `json:"wit"`
	Sequence    uint64 `json:"sequence"`
	RefreshHint int64  `json:"refresh_hint"`
}

// fetchBundle gets a bundle by the profile https_spiffe when id is set (with the bundle in the file known), else by
// https_web (with the roots in the file known).
func fetchBundle(ctx context.Context, domain, url, id, known string) error {
	name, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return fmt.Errorf("-trust-domain: %w", err)
	}
	option, err := authenticatedBy(name, id, known)
	if err != nil {
		return err
	}
	bundle, err := federation.FetchBundle(ctx, name, url, option)
	if err != nil {
		return err
	}
	sequence, _ := bundle.SequenceNumber()
	hint, _ := bundle.RefreshHint()
	printJSON(fetched{"go-spiffe", domain, len(bundle.X509Authorities()), len(bundle.JWTAuthorities()),
		len(bundle.WITAuthorities()), sequence, int64(hint.Seconds())})
	return nil
}

func authenticatedBy(domain spiffeid.TrustDomain, id, known string) (federation.FetchOption, error) {
	if id == "" {
		pem, err := os.ReadFile(known)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, errors.New("no certificate in " + known)
		}
		return federation.WithWebPKIRoots(roots), nil
	}
	endpoint, err := spiffeid.FromString(id)
	if err != nil {
		return nil, fmt.Errorf("-id: %w", err)
	}
	bundle, err := spiffebundle.Load(domain, known)
	if err != nil {
		return nil, err
	}
	return federation.WithSPIFFEAuth(bundle, endpoint), nil
}
