package main

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// admitting is a server that admits agents of one group.
type admitting struct {
	agentv1.UnimplementedControlServiceServer
}

func (admitting) Check(_ context.Context, r *agentv1.CheckRequest) (*agentv1.CheckResponse, error) {
	if r.GetRegistration().GetGroup() != "shop" {
		return &agentv1.CheckResponse{}, nil
	}
	return &agentv1.CheckResponse{GroupId: "g-1", GroupName: "shop"}, nil
}

func TestCheckCommand(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	agentv1.RegisterControlServiceServer(server, admitting{})
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	defer running.Wait()
	defer server.Stop()

	address := listener.Addr().String()
	for name, tc := range map[string]struct {
		address, group string
		code           int
		want           []string
	}{
		"ready":         {address, "shop", program.ExitOK, []string{"group " + address + " ok shop (g-1)", "does not exist yet"}},
		"unknown group": {address, "shpo", program.ExitFailed, []string{`no agent group "shpo"`, "1 check failed"}},
		"no server":     {ports.FreeAddress(t), "", program.ExitFailed, []string{"connection refused", "1 check failed"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := execute(t, "check", "--no-flow", "--server", tc.address, "--group", tc.group, "--spool-dir", t.TempDir()+"/new")
			out = strings.Join(strings.Fields(out), " ")
			for _, want := range tc.want {
				if !strings.Contains(out+errOut, want) {
					t.Errorf("lacks %q", want)
				}
			}
			if code != tc.code || t.Failed() {
				t.Errorf("exit status %d, want %d\n%s%s", code, tc.code, out, errOut)
			}
		})
	}
}
