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

// lookAgain is how long a reading is used before the files are checked again. A
// replacement takes effect that much later; a thousand agents that reconnect together
// cause one reading.
const lookAgain = 5 * time.Second

// files builds a configuration from the content of some files, again whenever it changes.
// It compares contents rather than times: replacing a mounted secret changes a link, and
// the times behind it are arbitrary.
type files struct {
	names []string // as configured, without empty ones
	build func(reading) (*tls.Config, error)
	log   *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	tried   [sha256.Size]byte // hash of the last reading
	trouble string            // why the last reading was rejected, empty if it was used
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

// first reads the files. Unlike later readings it fails if they cannot be used.
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

// now returns the current configuration. It is shared and must not be changed.
func (f *files) now() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.looked) >= lookAgain {
		f.looked = now
		f.look()
	}
	return f.current
}

// look requires f.mu.
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
			f.log.Warn("changed certificates cannot be used, keeping the previous ones", slog.Any("error", err))
		}
		return
	}
	f.current, f.trouble = cfg, ""
	f.log.Info("changed certificates are in use", slog.Any("files", f.names))
}

// reading is the content of the files at one time.
type reading struct {
	contents map[string]content // by name
	sum      [sha256.Size]byte  // hash of all contents
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

// pool returns nil if no file is configured.
func (r reading) pool(key, name string) (*x509.CertPool, error) {
	if name == "" {
		return nil, nil //nolint:nilnil // nil means the system's pool, or no pool
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

// pair returns nil if no file is configured.
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
