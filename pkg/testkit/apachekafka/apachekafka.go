// Package apachekafka gives tests an Apache Kafka of their own: one node that is
// broker and controller, in a Java process. The other tests use pkg/embedded/broker, which
// is faster and everywhere; this one shows that the real thing says the same.
//
// A test is skipped where there is no Java, or `make kafka` has not fetched the
// jars into .cache/kafka.
package apachekafka

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// startTimeout is generous: a start takes three seconds on two idle processors.
const startTimeout = time.Minute

// Broker is a broker that a test may kill and start again.
type Broker struct {
	t    testing.TB
	jars string
	dir  string
	addr string

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	said *output
}

// Start starts a broker with data of its own, until the test ends. settings are lines of
// server.properties.
func Start(t testing.TB, settings ...string) *Broker {
	t.Helper()
	b := &Broker{t: t, jars: locate(t), dir: t.TempDir(), addr: freeAddr(t)}
	controller := freeAddr(t)
	properties := append([]string{
		"process.roles=broker,controller",
		"node.id=1",
		"controller.quorum.voters=1@" + controller,
		"listeners=PLAINTEXT://" + b.addr + ",CONTROLLER://" + controller,
		"advertised.listeners=PLAINTEXT://" + b.addr,
		"controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"log.dirs=" + filepath.Join(b.dir, "data"),
		"offsets.topic.replication.factor=1",
		"offsets.topic.num.partitions=1",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"share.coordinator.state.topic.replication.factor=1",
		"share.coordinator.state.topic.min.isr=1",
		"group.initial.rebalance.delay.ms=100",
		"auto.create.topics.enable=false",
	}, settings...)
	if err := os.WriteFile(b.properties(), []byte(strings.Join(properties, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	format := b.java("kafka.tools.StorageTool", "format", "--cluster-id", "bWV0YWZsb3ctdGVzdHMhIQ", "--config", b.properties())
	if text, err := format.CombinedOutput(); err != nil {
		t.Fatalf("format the data of kafka: %v\n%s", err, text)
	}
	t.Cleanup(func() {
		b.Kill()
		if t.Failed() {
			t.Logf("kafka said:\n%s", b.said)
		}
	})
	b.Restart()
	return b
}

// Addr is host:port of the broker, also after a restart.
func (b *Broker) Addr() string { return b.addr }

// Kill ends the broker as kill -9 does.
func (b *Broker) Kill() {
	if b.cmd != nil {
		_ = b.cmd.Process.Kill()
		<-b.done
		b.cmd = nil
	}
}

// Restart starts the broker after a Kill, with the data that it had, and waits
// until it serves.
func (b *Broker) Restart() {
	b.t.Helper()
	b.said = &output{mark: []byte("Kafka Server started"), seen: make(chan struct{})}
	b.cmd = b.java("kafka.Kafka", b.properties())
	b.cmd.Stdout, b.cmd.Stderr = b.said, b.said
	done := make(chan struct{})
	b.done = done
	if err := b.cmd.Start(); err != nil {
		b.cmd = nil
		b.t.Fatalf("start kafka: %v", err)
	}
	cmd := b.cmd
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	select {
	case <-b.said.seen:
	case <-done:
		b.t.Fatalf("kafka ended: %v", cmd.ProcessState)
	case <-time.After(startTimeout):
		b.t.Fatalf("kafka did not start within %s", startTimeout)
	}
}

// LogDir is where a partition's files are.
func (b *Broker) LogDir(topic string, partition int) string {
	return filepath.Join(b.dir, "data", topic+"-"+strconv.Itoa(partition))
}

func (b *Broker) properties() string { return filepath.Join(b.dir, "server.properties") }

// java returns a program out of the jars. It must start fast rather than run fast.
func (b *Broker) java(class string, args ...string) *exec.Cmd {
	cmd := exec.Command("java", append([]string{ //nolint:gosec // a test runs what `make kafka` has fetched
		"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-cp", filepath.Join(b.jars, "*"), class,
	}, args...)...)
	cmd.Dir, cmd.SysProcAttr = b.dir, attributes()
	return cmd
}

// locate returns where the jars are, and skips the test when they are not.
func locate(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("java"); err != nil {
		t.Skip("there is no java on the PATH")
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		jars := filepath.Join(dir, ".cache", "kafka")
		if _, err := os.Stat(jars); err == nil {
			return jars
		}
	}
	t.Skip("there is no Apache Kafka in .cache/kafka: make kafka fetches it")
	return ""
}

// freeAddr returns an address that nobody listens on, below the ports that the
// kernel gives to outgoing connections: one of those could take it before the broker does,
// or while it is killed.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(10_000+rand.IntN(20_000))) //nolint:gosec // a port is no secret
		if err == nil {
			_ = l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port was found")
	return ""
}

// output keeps what a process says, and tells when it has said mark.
type output struct {
	mark []byte
	seen chan struct{}

	mu    sync.Mutex
	said  bytes.Buffer
	found bool
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said.Write(p)
	if !o.found && bytes.Contains(o.said.Bytes(), o.mark) {
		o.found = true
		close(o.seen)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return fmt.Sprintf("%d bytes, the last of which are\n%s", o.said.Len(), o.said.Bytes()[max(0, o.said.Len()-1<<16):])
}
