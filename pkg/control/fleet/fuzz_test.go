package fleet_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Whatever stands in the control topic, every replica makes the same of it.
func FuzzCommand(f *testing.F) {
	for _, c := range []*agentv1.Command{
		{RequestId: "1", TimeUnixNano: 1, Change: &agentv1.Command_CreateGroup{CreateGroup: &agentv1.CreateGroup{GroupId: "g-0123456789", Name: "shop"}}},
		{RequestId: "2", Change: &agentv1.Command_DeleteGroup{DeleteGroup: &agentv1.DeleteGroup{}}},
		{RequestId: "3", Change: &agentv1.Command_UpdateConfiguration{UpdateConfiguration: &agentv1.UpdateConfiguration{}}},
	} {
		b, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var seen [2]string
		for i := range seen {
			state := fleet.New()
			for offset, b := range [][]byte{first, second} {
				c := new(agentv1.Command)
				if proto.Unmarshal(b, c) != nil {
					continue // skipped and counted
				}
				outcome := state.Apply(int64(offset), c)
				if outcome.Refused != nil {
					seen[i] += outcome.Refused.Error()
				}
			}
			for _, g := range state.Groups() {
				seen[i] += g.ID + g.Name
			}
		}
		if seen[0] != seen[1] {
			t.Errorf("two replicas differ: %q, %q", seen[0], seen[1])
		}
	})
}
