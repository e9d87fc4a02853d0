// Package broker runs Kafka inside this process: franz-go's kfake, which serves the
// protocol on a real port and stores its data in a directory.
//
// `metaflow-server standalone` and the tests use it in place of Apache Kafka. It is one
// node without replication. It does not create topics automatically.
//
// Acknowledged records and committed offsets survive a restart and a kill of the process.
// They survive a power loss only with Options.SyncWrites.
package broker

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Options are set by code.
type Options struct {
	// Listen is the host:port to listen on and to advertise to clients; port 0 picks a
	// free one. Empty means 127.0.0.1:9092.
	Listen string
	// Advertise is the host:port that clients are told to connect to, if they reach the
	// broker through a proxy. Empty means the address of the listener.
	Advertise string
	// DataDir stores the data and is created if missing. Empty keeps the data in memory.
	DataDir string
	// SyncWrites syncs every write to disk before it is acknowledged.
	SyncWrites bool
	// TLS enables TLS on the listener. Nil disables it.
	TLS *tls.Config
	// Users may log in by SASL, which is then required. If empty, no login is required.
	Users []User
	// Settings are broker settings under their Kafka names, such as message.max.bytes.
	Settings map[string]string
	// Logger receives the broker's warnings and errors. Nil discards.
	Logger *slog.Logger
}

// User is a login with all permissions.
type User struct {
	Mechanism string // PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
	Name      string
	Password  string
}

const defaultListen = "127.0.0.1:9092"

// Broker is a running broker. The caller must close it.
type Broker struct {
	cluster *kfake.Cluster
	addr    string
	lock    *os.File // of the data directory; nil without one
	close   sync.Once
}

// Start listens and serves until Close. Clients can connect when it returns.
func Start(opts Options) (*Broker, error) {
	if opts.Listen == "" {
		opts.Listen = defaultListen
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	ln, err := net.Listen("tcp", opts.Listen)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("start kafka on %s: the port is in use; choose another one: %w", opts.Listen, err)
		}
		return nil, fmt.Errorf("start kafka on %s: %w", opts.Listen, err)
	}
	b := &Broker{addr: ln.Addr().String()}
	if opts.DataDir != "" {
		if b.lock, err = lock(opts.DataDir); err != nil {
			return nil, errors.Join(fmt.Errorf("start kafka on %s: %w", opts.Listen, err), ln.Close())
		}
	}
	if opts.Advertise != "" {
		ln = advertised{ln, opts.Advertise}
	}
	if b.cluster, err = kfake.NewCluster(options(opts, ln)...); err != nil {
		return nil, errors.Join(fmt.Errorf("start kafka on %s with data in %q: %w", opts.Listen, opts.DataDir, err), ln.Close(), b.unlock())
	}
	return b, nil
}

func options(opts Options, ln net.Listener) []kfake.Opt {
	kopts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("metaflow"),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return ln, nil }),
		kfake.BrokerConfigs(opts.Settings),
		kfake.WithLogger(logger{opts.Logger}),
	}
	if opts.DataDir != "" {
		kopts = append(kopts, kfake.DataDir(opts.DataDir))
	}
	if opts.SyncWrites {
		kopts = append(kopts, kfake.SyncWrites())
	}
	if opts.TLS != nil {
		kopts = append(kopts, kfake.TLS(opts.TLS))
	}
	if len(opts.Users) > 0 {
		kopts = append(kopts, kfake.EnableSASL())
	}
	for _, u := range opts.Users {
		kopts = append(kopts, kfake.Superuser(u.Mechanism, u.Name, u.Password))
	}
	return kopts
}

// advertised is a listener that clients reach at another address; kfake tells them the
// listener's.
type advertised struct {
	net.Listener
	at string
}

func (a advertised) Addr() net.Addr { return advertisedAddr(a.at) }

type advertisedAddr string

func (advertisedAddr) Network() string  { return "tcp" }
func (a advertisedAddr) String() string { return string(a) }

// Addr returns the host:port that the broker listens on.
func (b *Broker) Addr() string { return b.addr }

// Cluster returns kfake's own interface, with which tests inject faults
// (Cluster.ControlKey).
func (b *Broker) Cluster() *kfake.Cluster { return b.cluster }

// Close flushes pending writes and stops serving. Further calls do nothing.
func (b *Broker) Close() error {
	var err error
	b.close.Do(func() {
		b.cluster.Close()
		err = b.unlock()
	})
	return err
}

// lock ensures that no other broker uses the directory: two brokers would destroy each
// other's data. The lock ends with the process, however it ends.
func lock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = fmt.Errorf("lock data directory %s: another process uses it: %w", dir, err)
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (b *Broker) unlock() error {
	if b.lock == nil {
		return nil
	}
	return b.lock.Close()
}

// logger passes the broker's log on.
type logger struct{ log *slog.Logger }

func (l logger) Logf(level kfake.LogLevel, msg string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("embedded kafka is in trouble", slog.String("error", fmt.Sprintf(msg, args...)))
	case kfake.LogLevelWarn:
		l.log.Warn("embedded kafka warns", slog.String("warning", fmt.Sprintf(msg, args...)))
	default: // what it calls information is about every request
	}
}
