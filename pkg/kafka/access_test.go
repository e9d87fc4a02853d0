package kafka_test

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// A user that can log in may still have no rights, which the broker's versions do not
// show.
func TestCheckAccess(t *testing.T) {
	allow := func(resource kmsg.ACLResourceType, name string, operation kmsg.ACLOperation) kfake.ACL {
		return kfake.ACL{Resource: resource, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: operation, Allow: true}
	}
	onTopic := func(operation kmsg.ACLOperation) kfake.ACL { return allow(kmsg.ACLResourceTypeTopic, topic, operation) }
	onGroup := allow(kmsg.ACLResourceTypeGroup, "writers", kmsg.ACLOperationRead)
	everything := kafka.Access{Topic: topic, Read: true, Write: true, Group: "writers"}
	tests := map[string]struct {
		acls []kfake.ACL
		need kafka.Access
		want string // in the error; empty for none
	}{
		"all rights":       {[]kfake.ACL{onTopic(kmsg.ACLOperationRead), onTopic(kmsg.ACLOperationWrite), onGroup}, everything, ""},
		"no rights":        {nil, everything, "topic metaflow.test"},
		"may only read":    {[]kfake.ACL{onTopic(kmsg.ACLOperationRead), onGroup}, everything, `the user "metaflow" (kafka.sasl.username) lacks the right Write`},
		"may only write":   {[]kfake.ACL{onTopic(kmsg.ACLOperationWrite), onGroup}, everything, "lacks the right Read"},
		"needs to write":   {[]kfake.ACL{onTopic(kmsg.ACLOperationWrite)}, kafka.Access{Topic: topic, Write: true}, ""},
		"not in the group": {[]kfake.ACL{onTopic(kmsg.ACLOperationRead), onTopic(kmsg.ACLOperationWrite)}, everything, "consumer group writers: the user"},
		"no such topic":    {[]kfake.ACL{allow(kmsg.ACLResourceTypeTopic, "absent", kmsg.ACLOperationRead)}, kafka.Access{Topic: "absent", Read: true}, "topic absent does not exist"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cluster := startCluster(t, kfake.EnableSASL(), kfake.EnableACLs(),
				kfake.Superuser("PLAIN", "admin", "secret"), kfake.User("PLAIN", "metaflow", "secret", tc.acls...))
			login := func(user string) *kafka.Client {
				return newClient(t, cluster, func(c *kafka.Config) {
					c.SASL = kafka.SASL{Mechanism: "plain", Username: user, Password: "secret"}
				})
			}
			createTopic(t, login("admin"), 1)
			client := login("metaflow")
			if err := client.Ping(t.Context()); err != nil {
				t.Fatalf("Ping = %v", err)
			}
			err := client.CheckAccess(t.Context(), tc.need)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("CheckAccess = %v, want %q in it", err, tc.want)
			}
		})
	}
}

// A broker without authorization allows everything.
func TestCheckAccessWithoutRights(t *testing.T) {
	client := newClient(t, startCluster(t), nil)
	need := kafka.Access{Topic: topic, Read: true, Write: true, Group: "writers"}
	if err := client.CheckAccess(t.Context(), need); err == nil || !strings.Contains(err.Error(), "topic "+topic+" does not exist") {
		t.Errorf("CheckAccess before the topic exists = %v", err)
	}
	createTopic(t, client, 1)
	if err := client.CheckAccess(t.Context(), need); err != nil {
		t.Errorf("CheckAccess = %v", err)
	}
}
