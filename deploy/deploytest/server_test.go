package deploytest

import (
	"slices"
	"testing"

	core "k8s.io/api/core/v1"
)

// Replicas spread over nodes that have no label of a zone: the scheduler ignores soft
// constraints on nodes that lack one of their keys, so the only constraint is about nodes,
// and zones are a preference.
func TestServersSpread(t *testing.T) {
	keys := func(pod core.PodSpec) (constraints, preferences []string) {
		for _, c := range pod.TopologySpreadConstraints {
			constraints = append(constraints, c.TopologyKey+" "+string(c.WhenUnsatisfiable))
		}
		if pod.Affinity != nil && pod.Affinity.PodAntiAffinity != nil {
			for _, p := range pod.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
				preferences = append(preferences, p.PodAffinityTerm.TopologyKey)
			}
		}
		return constraints, preferences
	}
	const zone, host = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
	tests := map[string]struct {
		values                   string
		constraints, preferences []string
	}{
		"default": {"", []string{host + " ScheduleAnyway"}, []string{zone}},
		"hard":    {"server: {topologySpread: {whenUnsatisfiable: DoNotSchedule}}", []string{zone + " DoNotSchedule", host + " DoNotSchedule"}, nil},
		"off":     {"server: {topologySpread: {enabled: false}}", nil, nil},
		"their own preference": {
			"server: {affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: rack, labelSelector: {}}}]}}}",
			[]string{host + " ScheduleAnyway"},
			[]string{"rack"},
		},
		"beside an affinity": {
			"server: {affinity: {nodeAffinity: {}}}", []string{host + " ScheduleAnyway"}, []string{zone},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			constraints, preferences := keys(release{values: tc.values}.objects(t).template("metaflow-server").Spec)
			if !slices.Equal(constraints, tc.constraints) || !slices.Equal(preferences, tc.preferences) {
				t.Errorf("constraints %v and preferences %v, want %v and %v", constraints, preferences, tc.constraints, tc.preferences)
			}
		})
	}
}

// The readiness probe asks for what the roles of the pod need. /ready refuses the name of
// a check that a server of other roles does not have.
func TestServerReadiness(t *testing.T) {
	for values, want := range map[string]string{
		"": "/ready?check=kafka&check=access&check=port",
		"server: {config: {roles: [gateway, writer]}}": "/ready?check=kafka&check=access&check=port",
		"server: {config: {roles: [control]}}":         "/ready?check=kafka&check=access&check=port",
		"server: {config: {roles: [writer]}}":          "/ready?check=kafka&check=access",
	} {
		pod := release{values: values}.objects(t).template("metaflow-server").Spec
		if got := pod.Containers[0].ReadinessProbe.HTTPGet.Path; got != want {
			t.Errorf("with %q: probe %s, want %s", values, got, want)
		}
	}
}
