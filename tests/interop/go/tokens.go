package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// token is what every client under tests/interop prints for a JWT-SVID or WIT-SVID.
type token struct {
	SPIFFEID  string   `json:"spiffe_id"`
	Token     string   `json:"token"`
	Audience  []string `json:"audience,omitempty"`
	ExpiresAt int64    `json:"expires_at"`
	Hint      string   `json:"hint"`
}

type tokens struct {
	Client  string         `json:"client"`
	Tokens  []token        `json:"tokens,omitempty"`
	Bundles map[string]int `json:"bundles"`
}

// fetchJWT gets JWT-SVIDs from a JWTSource and judges each twice: by go-spiffe with the source's own bundles, and by
// the Workload API's ValidateJWTSVID.
func fetchJWT(ctx context.Context, audience []string, id string) error {
	source, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	params := jwtsvid.Params{Audience: audience[0], ExtraAudiences: audience[1:]}
	if id != "" {
		if params.Subject, err = spiffeid.FromString(id); err != nil {
			return fmt.Errorf("-id: %w", err)
		}
	}
	svids, err := source.FetchJWTSVIDs(ctx, params)
	if err != nil {
		return err
	}
	seen := tokens{Client: "go-spiffe", Bundles: map[string]int{}}
	for _, one := range svids {
		if _, err := judgeJWT(ctx, source, one.Marshal(), audience[0]); err != nil {
			return err
		}
		seen.Tokens = append(seen.Tokens, describeJWT(one))
		domain := one.ID.TrustDomain()
		bundle, err := source.GetJWTBundleForTrustDomain(domain)
		if err != nil {
			return err
		}
		seen.Bundles[domain.Name()] = len(bundle.JWTAuthorities())
	}
	printJSON(seen)
	return nil
}

// validateJWT judges one token, of whatever trust domain.
func validateJWT(ctx context.Context, text, audience string) error {
	source, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	parsed, err := judgeJWT(ctx, source, text, audience)
	if err != nil {
		return err
	}
	printJSON(tokens{Client: "go-spiffe", Tokens: []token{describeJWT(parsed)}, Bundles: map[string]int{}})
	return nil
}

func judgeJWT(ctx context.Context, source *workloadapi.JWTSource, text, audience string) (*jwtsvid.SVID, error) {
	parsed, err := jwtsvid.ParseAndValidate(text, source, []string{audience})
	if err != nil {
		return nil, err
	}
	told, err := workloadapi.ValidateJWTSVID(ctx, text, audience)
	if err != nil {
		return nil, fmt.Errorf("go-spiffe accepts what ValidateJWTSVID refuses: %w", err)
	}
	if told.ID != parsed.ID {
		return nil, fmt.Errorf("ValidateJWTSVID says %s, the token %s", told.ID, parsed.ID)
	}
	return parsed, nil
}

func describeJWT(one *jwtsvid.SVID) token {
	return token{one.ID.String(), one.Marshal(), one.Audience, one.Expiry.Unix(), one.Hint}
}

// fetchWIT gets WIT-SVIDs, verifies each against the WIT bundles, and checks that the key beside it is its own.
func fetchWIT(ctx context.Context, id string) error {
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	bundles, err := client.FetchWITBundles(ctx)
	if err != nil {
		return err
	}
	svids, err := client.FetchWITSVIDs(ctx, id)
	if err != nil {
		return err
	}
	seen := tokens{Client: "go-spiffe", Bundles: map[string]int{}}
	for _, bundle := range bundles.Bundles() {
		seen.Bundles[bundle.TrustDomain().Name()] = len(bundle.WITAuthorities())
	}
	for _, one := range svids {
		verified, err := witsvid.ParseAndValidate(one.Marshal(), bundles)
		if err != nil {
			return err
		}
		if err := holds(one.PrivateKey, verified.PublicKey); err != nil {
			return fmt.Errorf("WIT-SVID %s: %w", one.ID, err)
		}
		seen.Tokens = append(seen.Tokens, token{one.ID.String(), one.Marshal(), nil, one.Expiry.Unix(), one.Hint})
	}
	printJSON(seen)
	return nil
}

// holds tells whether private is the other half of public.
func holds(private crypto.PrivateKey, public crypto.PublicKey) error {
	signer, ok := private.(crypto.Signer)
	if !ok {
		return errors.New("its private key does not sign")
	}
	own, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !own.Equal(public) {
		return errors.New("its private key is not that of cnf")
	}
	return nil
}

func (w *watcher) OnJWTBundlesUpdate(update *jwtbundle.Set) {
	counts := map[string]int{}
	for _, bundle := range update.Bundles() {
		counts[bundle.TrustDomain().Name()] = len(bundle.JWTAuthorities())
	}
	w.print(tokens{Client: "go-spiffe", Bundles: counts})
}

func (w *watcher) OnWITBundlesUpdate(update *witbundle.Set) {
	counts := map[string]int{}
	for _, bundle := range update.Bundles() {
		counts[bundle.TrustDomain().Name()] = len(bundle.WITAuthorities())
	}
	w.print(tokens{Client: "go-spiffe", Bundles: counts})
}

func (w *watcher) OnWITSVIDsUpdate(update []*witsvid.SVID) {
	seen := tokens{Client: "go-spiffe", Bundles: map[string]int{}}
	for _, one := range update {
		if err := holds(one.PrivateKey, one.PublicKey); err != nil {
			w.stop(fmt.Errorf("WIT-SVID %s: %w", one.ID, err))
			return
		}
		seen.Tokens = append(seen.Tokens, token{one.ID.String(), one.Marshal(), nil, one.Expiry.Unix(), one.Hint})
	}
	w.print(seen)
}

func (w *watcher) OnJWTBundlesWatchError(err error) { w.failed(err) }
func (w *watcher) OnWITBundlesWatchError(err error) { w.failed(err) }
func (w *watcher) OnWITSVIDsWatchError(err error)   { w.failed(err) }
