package chengine

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	listenHost = "127.0.0.1"
	configFile = "engine.xml"
)

// ports are the ports of one attempt.
type ports struct{ native, http int }

// command builds the child's command line and writes its configuration into dir, which
// must be absolute and locked. name is the server's display name.
func command(p program, o Options, dir, name string, at ports) (*exec.Cmd, error) {
	config := filepath.Join(dir, configFile)
	if err := os.WriteFile(config, renderConfig(o, dir, name, at), 0o600); err != nil {
		return nil, err
	}
	if p.binary != "" {
		return serverCommand(p.binary, dir, config), nil
	}
	return libraryCommand(p.library, dir, config, at)
}

// libraryCommand runs this executable again as clickhouse-local. Its last query reads
// standard input to the end, which keeps the listeners open until the input is closed.
func libraryCommand(library, dir, config string, at ports) (*exec.Cmd, error) {
	if !hooked {
		return nil, errors.New("this program does not call chengine.MaybeRunChild first")
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	library, err = filepath.Abs(library)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self) //nolint:gosec // our own executable
	cmd.Args = []string{
		"clickhouse",
		"--path=" + dir,
		"--config-file=" + config,
		"--listen_host=" + listenHost,
		"--tcp_port=" + strconv.Itoa(at.native),
		"--http_port=" + strconv.Itoa(at.http),
		"--input-format=LineAsString",
		"--query=SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; SELECT count() FROM table",
	}
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), childVariable+"="+library)
	return cmd, nil
}

func serverCommand(binary, dir, config string) *exec.Cmd {
	cmd := exec.Command(binary, "server", "--config-file="+config) //nolint:gosec // the operator's PATH names it
	cmd.Dir = dir
	return cmd
}

// renderConfig returns the configuration for both kinds of engine. The caches default to
// many gigabytes, more than the memory limit allows.
func renderConfig(o Options, dir, name string, at ports) []byte {
	memory := o.MaxMemoryBytes
	if memory == 0 {
		memory = defaultMaxMemoryBytes
	}
	var b bytes.Buffer
	element := func(name string, value any) {
		fmt.Fprintf(&b, "  <%s>", name)
		_ = xml.EscapeText(&b, fmt.Append(nil, value)) // a bytes.Buffer never fails
		fmt.Fprintf(&b, "</%s>\n", name)
	}
	b.WriteString("<clickhouse>\n  <logger><level>error</level><console>1</console></logger>\n")
	element("log-level", "error") // clickhouse-local reads this instead; its default, trace, is expensive
	element("display_name", name)
	element("path", dir+"/")
	element("tmp_path", dir+"/tmp/")
	element("listen_host", listenHost)
	element("tcp_port", at.native)
	element("http_port", at.http)
	element("max_server_memory_usage", memory)
	element("mark_cache_size", memory/8)
	element("primary_index_cache_size", memory/8)
	// An idle connection checks for a server shutdown only every poll_interval seconds,
	// default 10, and delays the shutdown that long. Through a view, a filter on an
	// attribute's value uses its index only if map keys are not read as subcolumns.
	b.WriteString("  <profiles><default><poll_interval>1</poll_interval>" +
		"<optimize_functions_to_subcolumns>0</optimize_functions_to_subcolumns></default></profiles>\n")
	element("user_files_path", dir+"/user_files/") // only a full server reads this
	// A user without a password, from this machine. The library has no place for users made
	// by SQL.
	fmt.Fprintf(&b, "  <user_directories><users_xml><path>%s</path></users_xml></user_directories>\n", configFile)
	b.WriteString("  <users><default><password></password><networks><ip>127.0.0.1</ip><ip>::1</ip></networks>" +
		"<profile>default</profile><quota>default</quota><access_management>1</access_management></default></users>\n")
	b.WriteString("  <quotas><default></default></quotas>\n")
	if extra := strings.TrimSpace(o.ExtraConfig); extra != "" {
		b.WriteString(extra + "\n")
	}
	b.WriteString("</clickhouse>\n")
	return b.Bytes()
}
