package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/deploy/demo/internal/process"
)

// database is the service that stores the others' data. It reports no spans.
const database = "db-demo"

// entrance is the service that visitors use.
const entrance = "web-shop"

// services are the traced services, in the order in which they are stopped:
// callers first.
var services = []string{entrance, "svc-order", "svc-user", "svc-item", "svc-stock"}

// exporter is where the Java agents send spans.
type exporter struct{ protocol, endpoint string }

// shop is the set of running services.
type shop struct {
	children  []*process.Process // services in order, then the database
	addresses map[string]string
}

// startShop starts the services on free ports, with the database's files in
// dir.
func startShop(o options, dir string, to exporter) (_ *shop, err error) {
	s := &shop{addresses: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	password := rand.Text()
	for i, name := range append(services[:len(services):len(services)], database) {
		// Use one address per service where the system has them: it identifies
		// the service, and no outgoing connection takes such a port before the
		// JVM does.
		if s.addresses[name], err = freeAddress(fmt.Sprintf("127.0.2.%d", i+1)); err != nil {
			s.addresses[name], err = freeAddress("127.0.0.1")
		}
		if err != nil {
			return nil, err
		}
	}
	for _, name := range services {
		if err := s.start(o, name, dir, environment(name, password, to), "-javaagent:"+filepath.Join(o.build, agentJar)); err != nil {
			return nil, err
		}
	}
	return s, s.start(o, database, dir, environment(database, password, to))
}

func (s *shop) start(o options, name, dir string, env []string, flags ...string) error {
	host, port, err := net.SplitHostPort(s.addresses[name])
	if err != nil {
		return err
	}
	// A JVM that lives for a minute never recovers the cost of optimized code.
	args := append([]string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m", "-Xss512k"}, flags...)
	args = append(args, "-jar", filepath.Join(o.build, shopJar),
		"--server.address="+host, "--server.port="+port,
		"--shop.db-demo="+s.addresses[database],
		"--shop.db-directory="+filepath.Join(dir, database),
	)
	if name == database {
		args = append(args, "--shop.db-address="+host, "--shop.db-port="+port)
	}
	for _, callee := range services {
		args = append(args, "--shop."+callee+"=http://"+s.addresses[callee])
	}
	c, err := process.Start(name, env, "java", args...)
	if err == nil {
		s.children = append(s.children, c)
	}
	return err
}

// environment is the environment of this process, without variables that
// configure the Java agent or Spring, and with the variables of
// deploy/demo/spring-boot/manifests.
func environment(name, password string, to exporter) []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "OTEL_") && !strings.HasPrefix(e, "SPRING_") && !strings.HasPrefix(e, "SHOP_") &&
			!strings.HasPrefix(e, "SERVER_") && !strings.HasPrefix(e, "JAVA_TOOL_OPTIONS=") && !strings.HasPrefix(e, "JDK_JAVA_OPTIONS=") {
			env = append(env, e)
		}
	}
	return append(env,
		"SPRING_PROFILES_ACTIVE="+name,
		"SHOP_DBPASSWORD="+password,
		"OTEL_SERVICE_NAME="+name,
		"OTEL_RESOURCE_ATTRIBUTES=service.namespace=springboot-otel-demo",
		"OTEL_EXPORTER_OTLP_PROTOCOL="+to.protocol,
		"OTEL_EXPORTER_OTLP_ENDPOINT="+to.endpoint,
		"OTEL_METRICS_EXPORTER=none",
		"OTEL_LOGS_EXPORTER=none",
		"OTEL_SEMCONV_STABILITY_OPT_IN=database",
		"OTEL_BSP_MAX_QUEUE_SIZE=16384", // the demo must not drop spans, so the queue holds more than a minute of them
		"OTEL_BSP_SCHEDULE_DELAY=1000",
	)
}

// stillInterval is how often a step that takes long says that it goes on.
const stillInterval = 10 * time.Second

// awaitReady waits until all services listen, and tells of each that does.
func (s *shop) awaitReady(ctx context.Context, progress func(string, ...any)) error {
	g, waiting := errgroup.WithContext(ctx)
	ready := make(chan string, len(s.children))
	for _, c := range s.children {
		g.Go(func() error {
			err := c.Await(waiting, process.Listening(s.addresses[c.Name]))
			if err == nil {
				ready <- c.Name
			}
			return err
		})
	}
	still := time.NewTicker(stillInterval)
	defer still.Stop()
	for up := 0; up < len(s.children); {
		select {
		case name := <-ready:
			up++
			progress("%s is up, %d of %d", name, up, len(s.children))
		case <-still.C:
			progress("%d of %d are up; a JVM with the Java agent starts in ten seconds to a minute", up, len(s.children))
		case <-waiting.Done():
			return g.Wait()
		}
	}
	return g.Wait()
}

// watch calls gone if a service ends before ctx does.
func (s *shop) watch(ctx context.Context, gone func(error)) {
	for _, c := range s.children {
		go func() {
			select {
			case <-c.Done():
				gone(c.EarlyExit())
			case <-ctx.Done():
			}
		}()
	}
}

// stop stops the services, whose Java agents then send what they have, and then
// the database.
func (s *shop) stop() error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	end := func(c *process.Process) {
		err := c.Stop()
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	for _, c := range s.children {
		if c.Name == database {
			wg.Wait()
			end(c)
			continue
		}
		wg.Go(func() { end(c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// freeAddress returns host with a port that was free a moment ago.
func freeAddress(host string) (string, error) {
	port, err := process.FreePort(host)
	return net.JoinHostPort(host, port), err
}
