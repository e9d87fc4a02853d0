package agentconfig

import "strings"

// predecessorKeys are keys and sections of the predecessor that users have in
// their files and that mean nothing to our agents. They deserve a better
// message than "unknown".
var predecessorKeys = setOf(
	// First generation.
	`analyzer_ip analyzer_port bandwidth_probe_interval capture_bpf capture_packet_size capture_socket_type
	collector_enabled collector_socket_type compressor_socket_type decap_type domains extra_netns_regex
	http_log_proxy_client http_log_span_id http_log_trace_id http_log_x_request_id if_mac_source
	inactive_ip_enabled inactive_server_port_enabled kubernetes_api_enabled l4_log_collect_nps_threshold
	l4_log_ignore_tap_sides l4_log_store_tap_types l4_log_tap_types l4_performance_enabled
	l7_log_collect_nps_threshold l7_log_ignore_tap_sides l7_log_packet_size l7_log_store_tap_types
	l7_metrics_enabled log_file_size log_level log_retention log_threshold max_collect_pps max_cpus
	max_escape_seconds max_memory max_millicpus max_npb_bps max_tx_bandwidth mtu npb_bps_threshold
	npb_dedup_enabled npb_socket_type npb_vlan_mode ntp_enabled output_vlan platform_enabled plugins
	pod_cluster_internal_ip process_threshold prometheus_http_api_addresses proxy_controller_ip
	proxy_controller_port region rsyslog_enabled so_plugins stats_interval sync_interval
	sys_free_memory_limit sys_free_memory_metric system_load_circuit_breaker_metric
	system_load_circuit_breaker_recover system_load_circuit_breaker_threshold tap_interface_regex tap_mode
	thread_threshold vm_xml_path vtap_flow_1s_enabled wasm_plugins yaml_config`,
	// Second generation, in sections that we share.
	`inputs.integration.prometheus_extra_labels inputs.integration.compression.profile
	inputs.integration.feature_control.profile_integration_disabled
	inputs.integration.feature_control.metric_integration_disabled
	inputs.integration.feature_control.log_integration_disabled`,
)

// predecessorSections are sections of the predecessor of which we have no key.
var predecessorSections = setOf(
	`static_config dev global plugins processors inputs.cbpf inputs.ebpf inputs.proc inputs.resources
	inputs.vector outputs.compression outputs.flow_log outputs.flow_metrics outputs.npb outputs.socket`,
)

func setOf(words ...string) map[string]bool {
	set := map[string]bool{}
	for _, w := range words {
		for word := range strings.FieldsSeq(w) {
			set[word] = true
		}
	}
	return set
}

// underPredecessor reports whether name is one of these sections or inside one.
func underPredecessor(name string) bool {
	for i, c := range name {
		if c == '.' && predecessorSections[name[:i]] {
			return true
		}
	}
	return predecessorSections[name]
}
