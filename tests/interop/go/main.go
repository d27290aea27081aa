// Command interop-go judges Chancery from outside with go-spiffe v2, the client library that most Go programs use.
// It prints one JSON line per thing that it saw, and what went wrong on stderr. See ../README.md.
package main

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const usage = `usage: interop-go <mode> [flags]; the socket is named by SPIFFE_ENDPOINT_SOCKET
  watch          [--updates N] [--patient]                    X.509 contexts, one JSON line each
  watch-bundles  [--updates N] [--patient]                    X.509 bundles, one JSON line each
  serve          [--listen HOST:PORT] --peer ID [--accepts N] mTLS server: prints its address, then each peer
  dial           --address HOST:PORT --peer ID                mTLS client: prints the peer
  jwt            --audience A,B [--id ID]                     JWT-SVIDs, validated here and by the Workload API
  validate-jwt   --audience A --token TOKEN                   the same for one token
  watch-jwt-bundles, watch-wit-bundles, watch-wit [--id ID]   [--updates N] [--patient]
  wit            [--id ID]                                    WIT-SVIDs, verified with the WIT bundles
  bundle         --trust-domain T --url U --known FILE [--id ID]
                 from a bundle endpoint: with --id by https_spiffe (FILE: a SPIFFE bundle), else https_web (FILE: PEM)
flag of all: --timeout SECONDS (60; 0: never)`

// line is what every client under tests/interop prints for an update.
type line struct {
	Client  string         `json:"client"`
	SVIDs   []svid         `json:"svids,omitempty"`
	Bundles map[string]int `json:"bundles,omitempty"`
}

type svid struct {
	SPIFFEID string `json:"spiffe_id"`
	Serial   string `json:"serial"`
	NotAfter int64  `json:"not_after"`
	Hint     string `json:"hint"`
}

// encounter is what serve and dial print for a connection.
type encounter struct {
	Client     string `json:"client"`
	Local      string `json:"local"`
	Peer       string `json:"peer"`
	PeerSerial string `json:"peer_serial"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "interop-go: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	updates := flags.Int("updates", 1, "exit after this many updates")
	patient := flags.Bool("patient", false, "report errors of the stream and keep watching")
	seconds := flags.Int("timeout", 60, "give up after this many seconds (0: never)")
	listen := flags.String("listen", "127.0.0.1:0", "address to serve on")
	address := flags.String("address", "", "address to dial")
	peer := flags.String("peer", "", "the only SPIFFE ID accepted from the other side")
	audience := flags.String("audience", "", "whom tokens are for, with commas between them")
	id := flags.String("id", "", "a SPIFFE ID")
	text := flags.String("token", "", "a token")
	domain := flags.String("trust-domain", "", "whose bundle is fetched")
	url := flags.String("url", "", "where it is")
	known := flags.String("known", "", "a file with what the endpoint is known by")
	accepts := flags.Int("accepts", 1, "serve this many connections, then exit")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	ctx := context.Background()
	if *seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*seconds)*time.Second)
		defer cancel()
	}

	switch args[0] {
	case "watch", "watch-bundles", "watch-jwt-bundles", "watch-wit-bundles", "watch-wit":
		ctx, stop := context.WithCancelCause(ctx)
		watcher := &watcher{left: *updates, patient: *patient, stop: stop}
		return reason(ctx, watch(ctx, args[0], watcher, *id))
	case "jwt":
		return fetchJWT(ctx, strings.Split(*audience, ","), *id)
	case "validate-jwt":
		return validateJWT(ctx, *text, *audience)
	case "wit":
		return fetchWIT(ctx, *id)
	case "bundle":
		return fetchBundle(ctx, *domain, *url, *id, *known)
	case "serve":
		return serve(ctx, *listen, *peer, *accepts)
	case "dial":
		return dial(ctx, *address, *peer)
	}
	return fmt.Errorf("unknown mode %q\n%s", args[0], usage)
}

func watch(ctx context.Context, what string, watcher *watcher, id string) error {
	switch what {
	case "watch":
		return workloadapi.WatchX509Context(ctx, watcher)
	case "watch-bundles":
		return workloadapi.WatchX509Bundles(ctx, watcher)
	case "watch-jwt-bundles":
		return workloadapi.WatchJWTBundles(ctx, watcher)
	}
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if what == "watch-wit" {
		return client.WatchWITSVIDs(ctx, watcher, id)
	}
	return client.WatchWITBundles(ctx, watcher)
}

var errDone = errors.New("all updates seen")

// reason prefers why the watch was stopped over the "context canceled" that stopping makes of it.
func reason(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errDone):
		return nil
	case cause != nil:
		return cause
	}
	return err
}

type watcher struct {
	left    int
	patient bool
	stop    context.CancelCauseFunc
}

// OnX509ContextUpdate has go-spiffe's parsing behind it (profile, key and certificate match) and adds path validation.
func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	seen := line{Client: "go-spiffe", Bundles: counts(update.Bundles)}
	for _, one := range update.SVIDs {
		if _, _, err := x509svid.Verify(one.Certificates, update.Bundles); err != nil {
			w.stop(fmt.Errorf("SVID %s does not verify against the bundles beside it: %w", one.ID, err))
			return
		}
		leaf := one.Certificates[0]
		seen.SVIDs = append(seen.SVIDs, svid{
			SPIFFEID: one.ID.String(),
			Serial:   hex.EncodeToString(leaf.SerialNumber.Bytes()),
			NotAfter: leaf.NotAfter.Unix(),
			Hint:     one.Hint,
		})
	}
	w.print(seen)
}

func (w *watcher) OnX509BundlesUpdate(update *x509bundle.Set) {
	w.print(line{Client: "go-spiffe", Bundles: counts(update)})
}

func (w *watcher) OnX509ContextWatchError(err error) { w.failed(err) }
func (w *watcher) OnX509BundlesWatchError(err error) { w.failed(err) }

func (w *watcher) print(seen any) {
	if w.left <= 0 {
		return
	}
	printJSON(seen)
	if w.left--; w.left == 0 {
		w.stop(errDone)
	}
}

func (w *watcher) failed(err error) {
	if w.left == 0 {
		return
	}
	if w.patient {
		fmt.Fprintf(os.Stderr, "interop-go: still watching after: %v\n", err)
		return
	}
	w.stop(err)
}

func counts(bundles *x509bundle.Set) map[string]int {
	counts := map[string]int{}
	for _, bundle := range bundles.Bundles() {
		counts[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	return counts
}

func serve(ctx context.Context, listen, peer string, accepts int) error {
	allowed, err := spiffeid.FromString(peer)
	if err != nil {
		return fmt.Errorf("-peer: %w", err)
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(allowed))
	listener, err := tls.Listen("tcp", listen, config)
	if err != nil {
		return err
	}
	defer listener.Close()
	context.AfterFunc(ctx, func() { listener.Close() })
	printJSON(map[string]string{"client": "go-spiffe", "listening": listener.Addr().String()})
	for range accepts {
		connection, err := listener.Accept()
		if err != nil {
			return errors.Join(err, ctx.Err())
		}
		// A refused peer is a result, not the end: it is reported, and it counts.
		if err := greet(ctx, source, connection.(*tls.Conn), "hello from the server\n"); err != nil {
			fmt.Fprintf(os.Stderr, "interop-go: refused: %v\n", err)
		}
	}
	return nil
}

func dial(ctx context.Context, address, peer string) error {
	allowed, err := spiffeid.FromString(peer)
	if err != nil {
		return fmt.Errorf("-peer: %w", err)
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	dialer := net.Dialer{}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(allowed))
	return greet(ctx, source, tls.Client(raw, config), "hello from the client\n")
}

// greet says one line and hears one line, for in TLS 1.3 a client learns of a refusal only when it reads.
func greet(ctx context.Context, source *workloadapi.X509Source, connection *tls.Conn, greeting string) error {
	defer connection.Close()
	if deadline, set := ctx.Deadline(); set {
		if err := connection.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if err := connection.HandshakeContext(ctx); err != nil {
		return err
	}
	if _, err := io.WriteString(connection, greeting); err != nil {
		return err
	}
	heard := make([]byte, 64)
	if _, err := connection.Read(heard); err != nil {
		return err
	}
	own, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	leaf := connection.ConnectionState().PeerCertificates[0]
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return err
	}
	printJSON(encounter{"go-spiffe", own.ID.String(), id.String(), hex.EncodeToString(leaf.SerialNumber.Bytes())})
	return nil
}

func printJSON(value any) {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	fmt.Println(string(text))
}
