package control_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
)

// answers is everything that a replica returns to operators.
type answers struct {
	Agents         []api.Agent
	Groups         []api.Group
	Configurations []api.Configuration
}

func ask(t *testing.T, r *replica) answers {
	t.Helper()
	return answers{
		must[[]api.Agent](t)(r.Agents(t.Context())),
		must[[]api.Group](t)(r.Groups(t.Context())),
		must[[]api.Configuration](t)(r.Configurations(t.Context())),
	}
}

// Whichever replica made a change, all replicas return the same as soon as it is
// acknowledged, and so does one that starts later.
func TestReplicasAgree(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	replicas := []*replica{st.start(t, "a"), st.start(t, "b"), st.start(t, "c")}
	group := must[api.Group](t)(replicas[0].CreateGroup(t.Context(), "edge", ""))
	update(t, replicas[1], "edge", "external_agent_http_proxy_enabled: 1\nexternal_agent_http_proxy_port: 4318\n")
	update(t, replicas[2], fleet.DefaultGroupID, "inputs: {flow: {enabled: false}}")
	for i, r := range replicas {
		reg := registration(fmt.Sprint("agent-", i), "i")
		if i > 0 {
			reg.Group = "edge"
		}
		a := connect(t, r, reg)
		a.confirm(must[api.Configuration](t)(r.Configuration(t.Context(), group.ID)))
	}
	for _, r := range replicas {
		await(t, r, "three agents, two of them running", func(list []api.Agent) bool {
			states := ""
			for _, a := range list {
				states += a.State + " "
			}
			return states == "pending running running "
		})
	}
	replicas = append(replicas, st.start(t, "late"))
	want := ask(t, replicas[0])
	if n := len(want.Agents); n != 3 || len(want.Groups) != 2 || want.Groups[1].Agents != 2 || want.Groups[1].ID != group.ID {
		t.Errorf("agents %+v, groups %+v", want.Agents, want.Groups)
	}
	for _, r := range replicas[1:] {
		if diff := cmp.Diff(want, ask(t, r)); diff != "" {
			t.Errorf("%s differs (-%s +%s):\n%s", r.name, replicas[0].name, r.name, diff)
		}
	}
}

// Two operators change different keys at two replicas at the same time: both changes
// survive, and the revisions show their order.
func TestConcurrentUpdatesBothSurvive(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	replicas := []*replica{st.start(t, "a"), st.start(t, "b")}
	agent := connect(t, replicas[1], registration("one", "i"))
	for round := range 10 {
		texts := []string{
			fmt.Sprintf("inputs: {integration: {listen_port: %d}}", 4000+round),
			fmt.Sprintf("inputs: {flow: {dump_interval: %ds}}", 20+round),
		}
		var wg sync.WaitGroup
		updates := make([]api.Update, len(replicas))
		for i, r := range replicas {
			wg.Go(func() {
				var err error
				updates[i], err = r.UpdateConfiguration(t.Context(), "default", []byte(texts[i]), api.UpdateOptions{})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if updates[0].Revision == updates[1].Revision || len(updates[0].Changes) != 1 || len(updates[1].Changes) != 1 {
			t.Fatalf("updates %+v", updates)
		}
		for _, r := range replicas {
			yaml := yamlOf(t, r, "default")
			for _, word := range []string{fmt.Sprintf("listen_port: %d", 4000+round), fmt.Sprintf("dump_interval: %ds", 20+round)} {
				if !strings.Contains(yaml, word) {
					t.Fatalf("round %d: %s lost %q:\n%s", round, r.name, word, yaml)
				}
			}
		}
		for last := max(updates[0].Revision, updates[1].Revision); agent.configuration().Revision != last; {
		}
	}
}

// An acknowledged update survives the end of the replica that acknowledged it, and the
// end of all replicas.
func TestAcknowledgedUpdateSurvives(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	first, second := st.start(t, "first"), st.start(t, "second")
	done := update(t, first, "default", "inputs: {integration: {enabled: true}}")
	first.kill()
	want := must[api.Configuration](t)(second.Configuration(t.Context(), "default"))
	if want.Revision != done.Revision || !strings.Contains(want.YAML, "enabled: true") {
		t.Errorf("the other replica has %+v", want)
	}
	second.kill()
	third := st.start(t, "third")
	if diff := cmp.Diff(want, must[api.Configuration](t)(third.Configuration(t.Context(), "default"))); diff != "" {
		t.Errorf("replayed from the start (-want +got):\n%s", diff)
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	r := newSetting(t).start(t, "a")
	ctx := t.Context()
	edge := must[api.Group](t)(r.CreateGroup(ctx, "edge", "g-0123456789"))
	if fleet.CheckID(must[api.Group](t)(r.CreateGroup(ctx, "core", "")).ID) != nil || edge.ID != "g-0123456789" || edge.Created.IsZero() {
		t.Errorf("groups %+v", edge)
	}
	for what, tc := range map[string]struct {
		err  error
		want string
	}{
		"name twice":       {second(r.CreateGroup(ctx, "edge", "")), `conflict: an agent group named "edge" already exists`},
		"id twice":         {second(r.CreateGroup(ctx, "x", edge.ID)), "conflict: an agent group with the id g-0123456789 already exists"},
		"no name":          {second(r.CreateGroup(ctx, "", "")), "invalid: an agent group needs a name"},
		"no id":            {second(r.CreateGroup(ctx, "x", "nonsense")), `invalid: "nonsense" is not an id`},
		"default":          {r.DeleteGroup(ctx, "default"), `conflict: the agent group "default" cannot be deleted`},
		"unknown":          {r.DeleteGroup(ctx, "moon"), `not_found: there is no agent group "moon"`},
		"unknown, read":    {second(r.Configuration(ctx, "moon")), `not_found: there is no agent group "moon"`},
		"deleted by name":  {r.DeleteGroup(ctx, "core"), "<nil>"},
		"unknown, cleared": {second(r.DeleteConfiguration(ctx, "moon")), "not_found"},
		"unknown agent":    {second(r.Agent(ctx, "nobody")), `not_found: there is no agent "nobody"`},
		"no such agent":    {r.DeleteAgent(ctx, "nobody"), `not_found: there is no agent "nobody"`},
	} {
		if got := problemOf(tc.err); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: %s, want %s", what, got, tc.want)
		}
	}
	if err := r.DeleteGroup(ctx, edge.ID); err != nil {
		t.Error(err)
	}
	if groups := must[[]api.Group](t)(r.Groups(ctx)); len(groups) != 1 {
		t.Errorf("groups left: %+v", groups)
	}
}

func second[T any](_ T, err error) error { return err }

func TestUpdates(t *testing.T) {
	t.Parallel()
	r := newSetting(t).start(t, "a")
	ctx := t.Context()
	set := func(group, text string, opts api.UpdateOptions) string {
		u, err := r.UpdateConfiguration(ctx, group, []byte(text), opts)
		if err != nil {
			return problemOf(err)
		}
		return fmt.Sprint(u.GroupName, u.Changes, u.Revision, u.DryRun)
	}
	const on = "inputs: {integration: {enabled: true}}"
	for i, step := range []struct {
		group, text string
		opts        api.UpdateOptions
		want        string
	}{
		{"default", on, api.UpdateOptions{DryRun: true}, "default[{inputs.integration.enabled false true}] 2 true"},
		{"default", on, api.UpdateOptions{Create: true}, "default[{inputs.integration.enabled false true}] 2 false"},
		{"default", on, api.UpdateOptions{}, "default[] 2 false"},
		{"default", on, api.UpdateOptions{Create: true}, `conflict: the agent group "default" already has a configuration`},
		{"default", "inputs: {integration: {enabld: true}}", api.UpdateOptions{}, "invalid: invalid configuration, nothing was changed"},
		{"default", "vtap_group_id: g-other00000\n" + on, api.UpdateOptions{}, "invalid: invalid configuration, nothing was changed\n"},
		{"", "vtap_group_id: default\nexternal_agent_http_proxy_port: 4318", api.UpdateOptions{}, "default[{inputs.integration.listen_port 38086 4318}] 3 false"},
		{fleet.DefaultGroupID, "external_agent_http_proxy_port: 4318", api.UpdateOptions{Replace: true}, "default[{inputs.integration.enabled true false}] 4 false"},
		{"moon", on, api.UpdateOptions{}, `not_found: there is no agent group "moon"`},
	} {
		if got := set(step.group, step.text, step.opts); !strings.HasPrefix(got, step.want) {
			t.Errorf("step %d: %s\nwant %s", i, got, step.want)
		}
	}
	u := must[api.Update](t)(r.DeleteConfiguration(ctx, "default"))
	if len(u.Changes) != 1 || yamlOf(t, r, "default") != "agent_group_id: g-default000\n" {
		t.Errorf("after deleting it: %+v, %q", u, yamlOf(t, r, "default"))
	}
}
