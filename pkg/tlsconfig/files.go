package tlsconfig

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookAgain is how long what was read is used without another look. A
// replacement takes effect that much later; an agent that comes back with a
// thousand others is not a thousand times three files.
const lookAgain = 5 * time.Second

// files turns the content of some files into a configuration, anew whenever it has
// changed. Contents are compared, not times: a mounted secret is replaced by
// changing a link, and the times behind it may be anything.
type files struct {
	names []string // as configured, empty ones left out
	build func(reading) (*tls.Config, error)
	log   *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	tried   [sha256.Size]byte // what the last look saw
	trouble string            // why the last look changed nothing, empty when it did
	current *tls.Config
}

func newFiles(log *slog.Logger, names ...string) *files {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &files{log: log}
	for _, name := range names {
		if name != "" {
			f.names = append(f.names, name)
		}
	}
	return f
}

// first fails where later looks would keep what was there before.
func (f *files) first() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked = time.Now()
	r := f.read()
	f.tried = r.sum
	var err error
	f.current, err = f.build(r)
	return err
}

// now returns the configuration to use. It is shared: nobody may change it.
func (f *files) now() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.looked) >= lookAgain {
		f.looked = now
		f.look()
	}
	return f.current
}

// look needs f.mu.
func (f *files) look() {
	r := f.read()
	if r.sum == f.tried {
		return
	}
	f.tried = r.sum
	cfg, err := f.build(r)
	if err != nil {
		if text := err.Error(); text != f.trouble {
			f.trouble = text
			f.log.Warn("changed certificates cannot be used, those before stay in force", slog.Any("error", err))
		}
		return
	}
	f.current, f.trouble = cfg, ""
	f.log.Info("changed certificates are in force", slog.Any("files", f.names))
}

// reading is what was found in the files at one time.
type reading struct {
	contents map[string]content // by name
	sum      [sha256.Size]byte  // differs when any content does
}

type content struct {
	data []byte
	err  error
}

func (f *files) read() reading {
	r := reading{contents: make(map[string]content, len(f.names))}
	hash := sha256.New()
	for _, name := range f.names {
		var c content
		c.data, c.err = os.ReadFile(name)
		r.contents[name] = c
		hash.Write(fmt.Appendf(nil, "%v %d ", c.err, len(c.data)))
		hash.Write(c.data)
	}
	hash.Sum(r.sum[:0])
	return r
}

// pool returns nil when no file is configured.
func (r reading) pool(key, name string) (*x509.CertPool, error) {
	if name == "" {
		return nil, nil //nolint:nilnil // nil is the system's pool, or no pool
	}
	c := r.contents[name]
	if c.err != nil {
		return nil, fmt.Errorf("read %s: %w", key, c.err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.data) {
		return nil, fmt.Errorf("read %s: %s holds no PEM certificate", key, name)
	}
	return pool, nil
}

// pair returns nil when no file is configured.
func (r reading) pair(key, certFile, keyFile string) ([]tls.Certificate, error) {
	if certFile == "" {
		return nil, nil
	}
	cert, private := r.contents[certFile], r.contents[keyFile]
	if cert.err != nil {
		return nil, fmt.Errorf("read %s.cert_file: %w", key, cert.err)
	}
	if private.err != nil {
		return nil, fmt.Errorf("read %s.key_file: %w", key, private.err)
	}
	pair, err := tls.X509KeyPair(cert.data, private.data)
	if err != nil {
		return nil, fmt.Errorf("read %s.cert_file and %s.key_file: %s and %s: %w", key, key, certFile, keyFile, err)
	}
	return []tls.Certificate{pair}, nil
}
