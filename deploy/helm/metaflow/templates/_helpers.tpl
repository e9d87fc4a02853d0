{{/*
The prefix of all names of a release. Names of objects and labels have at most 63 characters. A longer name is
rejected, not cut: two releases could end up with the same cut name.
*/}}
{{- define "metaflow.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- if gt (len $full) 40 -}}
{{- fail (printf "fullnameOverride: give one of at most 40 characters, %q is too long for the names made of it" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/* Names of cluster-scoped objects contain the release's namespace: releases in different namespaces may share a name. */}}
{{- define "metaflow.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "metaflow.fullname" .) -}}
{{- end -}}

{{/* Selector of a component's pods: (list . "server"). */}}
{{- define "metaflow.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: {{ default $top.Chart.Name $top.Values.nameOverride | trunc 63 }}
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of pods: none that changes with the chart's version alone, so that a new chart does not replace pods. */}}
{{- define "metaflow.podLabels" -}}
{{ include "metaflow.selector" . }}
app.kubernetes.io/part-of: metaflow
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "metaflow.labels" -}}
{{- $top := index . 0 -}}
{{ include "metaflow.selector" . }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
app.kubernetes.io/part-of: metaflow
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version | replace "+" "_" }}
{{- with $top.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* (list . .Values.server.image) */}}
{{- define "metaflow.image" -}}
{{- $top := index . 0 -}}{{- $image := index . 1 -}}
{{- $repository := $image.repository -}}
{{- with $top.Values.imageRegistry -}}{{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default $top.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Names of the service accounts. */}}
{{- define "metaflow.server.account" -}}
{{- .Values.server.serviceAccount.name | default (ternary (printf "%s-server" (include "metaflow.fullname" .)) "default" .Values.server.serviceAccount.create) -}}
{{- end -}}
{{- define "metaflow.agent.account" -}}
{{- .Values.agent.serviceAccount.name | default (ternary (printf "%s-agent" (include "metaflow.fullname" .)) "default" .Values.agent.serviceAccount.create) -}}
{{- end -}}

{{/* Keys of the server's configuration that name token files, by the value in server.tokenFiles. */}}
{{- define "metaflow.server.tokenFiles" -}}
{{- $config := dict -}}
{{- $keys := dict "control" (list "control" "token_file") "read" (list "control" "read_tokens_file") "agents" (list "control" "agent_tokens_file")
      "groups" (list "control" "group_tokens_file") "otlp" (list "gateway" "bearer_tokens_file") -}}
{{- range $name, $path := $keys -}}
{{- with index $.Values.server.tokenFiles $name -}}
{{- $config = mergeOverwrite $config (dict (index $path 0) (dict (index $path 1) (printf "/etc/metaflow/tokens/%s" .))) -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* The port of host:port. */}}
{{- define "metaflow.port" -}}
{{- splitList ":" . | last -}}
{{- end -}}

{{/* The host of a probe: none if the program listens on every address. */}}
{{- define "metaflow.probeHost" -}}
{{- $host := regexReplaceAll ":[0-9]+$" . "" | trimPrefix "[" | trimSuffix "]" -}}
{{- if not (has $host (list "" "0.0.0.0" "::")) }}{{ $host }}{{ end -}}
{{- end -}}

{{/* The scheme of the server's HTTP port, from its configuration: HTTP or HTTPS. */}}
{{- define "metaflow.server.scheme" -}}
{{- if dig "http" "tls" "cert_file" "" . }}HTTPS{{ else }}HTTP{{ end -}}
{{- end -}}

{{/* What a server's readiness depends on, by its roles. */}}
{{- define "metaflow.server.readyPath" -}}
{{- $roles := . -}}
/ready?check=kafka&check=access{{ if or (has "gateway" $roles) (has "control" $roles) }}&check=port{{ end }}
{{- end -}}

{{/*
(list . component): the server's affinity: server.affinity and, unless it has podAntiAffinity, a preference for zones without a replica. Nodes
without the label of a zone are neither preferred nor avoided.
*/}}
{{- define "metaflow.server.affinity" -}}
{{- $top := index . 0 -}}{{- $selector := include "metaflow.selector" . | fromYaml -}}
{{- $zones := dict -}}
{{- with $top.Values.server.topologySpread -}}
{{- if and .enabled (eq .whenUnsatisfiable "ScheduleAnyway") -}}
{{- $term := dict "topologyKey" "topology.kubernetes.io/zone" "labelSelector" (dict "matchLabels" $selector) -}}
{{- $zones = dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term))) -}}
{{- end -}}
{{- end -}}
{{- toYaml (merge (deepCopy $top.Values.server.affinity) (ternary dict $zones (hasKey $top.Values.server.affinity "podAntiAffinity"))) -}}
{{- end -}}

{{/* The server's configuration: the chart's, overridden by server.config. */}}
{{- define "metaflow.server.config" -}}
{{- $name := include "metaflow.fullname" . -}}
{{- $config := dict
      "grpc" (dict "listen" "0.0.0.0:20035")
      "http" (dict "listen" "0.0.0.0:20417")
      "shutdown_grace" "30s"
      "migrate_at_start" (eq .Values.server.migration.mode "start") -}}
{{- if .Values.kafka.enabled -}}
{{- $_ := set $config "kafka" (dict "brokers" (list (printf "%s-kafka.%s.svc:9092" $name .Release.Namespace))) -}}
{{- end -}}
{{- if .Values.clickhouse.enabled -}}
{{- $_ := set $config "clickhouse" (dict
      "addresses" (list (printf "%s-clickhouse.%s.svc:9000" $name .Release.Namespace)) "username" "metaflow") -}}
{{- end -}}
{{- with .Values.server.tls.grpc -}}
{{- if .secretName -}}
{{- $tls := dict "cert_file" "/etc/metaflow/tls/grpc/tls.crt" "key_file" "/etc/metaflow/tls/grpc/tls.key" -}}
{{- if .clientCertificates -}}{{- $_ := set $tls "client_ca_file" "/etc/metaflow/tls/grpc/ca.crt" -}}{{- end -}}
{{- $config = mergeOverwrite $config (dict "grpc" (dict "tls" $tls)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.server.tls.http.secretName -}}
{{- $config = mergeOverwrite $config (dict "http" (dict "tls" (dict
      "cert_file" "/etc/metaflow/tls/http/tls.crt" "key_file" "/etc/metaflow/tls/http/tls.key"))) -}}
{{- end -}}
{{- if .Values.server.query.enabled -}}
{{- $query := dict "http_listen" "0.0.0.0:20419" "grpc_listen" "0.0.0.0:20036" -}}
{{- if .Values.server.tls.http.secretName -}}
{{- $_ := set $query "tls" (dict "cert_file" "/etc/metaflow/tls/http/tls.crt" "key_file" "/etc/metaflow/tls/http/tls.key") -}}
{{- else if .Values.insecure -}}
{{- $_ := set $query "insecure" true -}}
{{- end -}}
{{- $config = mergeOverwrite $config (dict "query" $query) -}}
{{- end -}}
{{- if .Values.insecure -}}
{{- if not .Values.server.tls.grpc.secretName -}}
{{- $config = mergeOverwrite $config (dict "grpc" (dict "insecure" true)) -}}
{{- if dig "gateway" "http_listen" "" .Values.server.config -}}
{{- $config = mergeOverwrite $config (dict "gateway" (dict "http_insecure" true)) -}}
{{- end -}}
{{- end -}}
{{- if not .Values.server.tls.http.secretName -}}
{{- $config = mergeOverwrite $config (dict "http" (dict "insecure" true)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.server.tokenFiles.existingSecret -}}
{{- $config = mergeOverwrite $config (include "metaflow.server.tokenFiles" . | fromYaml) -}}
{{- end -}}
{{- range $section := list "kafka" "clickhouse" -}}
{{- with index $.Values.server.tls $section -}}
{{- if .secretName -}}
{{- $config = mergeOverwrite $config (dict $section (dict "tls" (include "metaflow.clientTLS" (list $section .) | fromYaml))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.server.config)) -}}
{{- end -}}

{{/* The tls section of a client whose Secret is mounted: (list "kafka" values). */}}
{{- define "metaflow.clientTLS" -}}
{{- $dir := printf "/etc/metaflow/tls/%s" (index . 0) -}}
enabled: true
ca_file: {{ $dir }}/ca.crt
{{- if (index . 1).clientCertificate }}
cert_file: {{ $dir }}/tls.crt
key_file: {{ $dir }}/tls.key
{{- end }}
{{- end -}}

{{/* The agent's configuration: the chart's, overridden by agent.config. */}}
{{- define "metaflow.agent.config" -}}
{{- $server := include "metaflow.server.config" . | fromYaml -}}
{{- $config := dict
      "server" (dict "addresses" (list (printf "%s-server-headless.%s.svc:%s"
        (include "metaflow.fullname" .) .Release.Namespace (include "metaflow.port" $server.grpc.listen))))
      "http" (dict "listen" "0.0.0.0:38087")
      "spool" (dict "dir" "/var/lib/metaflow-agent")
      "kubernetes" (dict "enabled" (toString .Values.agent.kubernetes.enabled) "lease" (printf "%s-agent" (include "metaflow.fullname" .)))
      -}}
{{- with .Values.clusterName -}}{{- $_ := set $config "cluster" . -}}{{- end -}}
{{- if .Values.insecure -}}
{{- $config = mergeOverwrite $config (dict "http" (dict "insecure" true) "otlp" (dict "insecure" true)) -}}
{{- end -}}
{{- with .Values.agent.tls -}}
{{- if .secretName -}}
{{- $config = mergeOverwrite $config (dict "server" (dict "tls" (include "metaflow.clientTLS" (list "server" .) | fromYaml))) -}}
{{- end -}}
{{- end -}}
{{- with .Values.agent.tokenFiles -}}
{{- if and .existingSecret .server -}}
{{- $config = mergeOverwrite $config (dict "server" (dict "token_file" (printf "/etc/metaflow/tokens/%s" .server))) -}}
{{- end -}}
{{- if and .existingSecret .otlp -}}
{{- $config = mergeOverwrite $config (dict "otlp" (dict "bearer_tokens_file" (printf "/etc/metaflow/tokens/%s" .otlp))) -}}
{{- end -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.agent.config)) -}}
{{- end -}}

{{/* Seconds of a duration such as 30s, 2m or 1m30s, rounded up. */}}
{{- define "metaflow.seconds" -}}
{{- $total := 0.0 -}}
{{- range regexFindAll "[0-9]+([.][0-9]+)?(ms|us|ns|h|m|s)" . -1 -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" . | float64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $total = addf $total (mulf $number (get (dict "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 0.001 "us" 0.000001 "ns" 0.000000001) $unit)) -}}
{{- end -}}
{{- ceil $total | int64 -}}
{{- end -}}

{{/* The name of a credential's Secret, or nothing: (list . credential "server"). */}}
{{- define "metaflow.credentialSecret" -}}
{{- $credential := index . 1 -}}
{{- if $credential.existingSecret -}}
{{- $credential.existingSecret -}}
{{- else if $credential.value -}}
{{- printf "%s-%s" (include "metaflow.fullname" (index . 0)) (index . 2) -}}
{{- end -}}
{{- end -}}

{{/* Passwords of the server, as environment variables. */}}
{{- define "metaflow.server.env" -}}
{{- with include "metaflow.credentialSecret" (list . .Values.server.credentials.kafkaPassword "server") }}
- name: METAFLOW_KAFKA_SASL_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ ternary $.Values.server.credentials.kafkaPassword.key "kafka-password" (ne $.Values.server.credentials.kafkaPassword.existingSecret "") }}
{{- end }}
{{- with include "metaflow.clickhouse.env" . | trim }}
{{ . }}
{{- end }}
{{- end -}}

{{/* ClickHouse's password. */}}
{{- define "metaflow.clickhouse.env" -}}
{{- if .Values.clickhouse.enabled }}
- name: METAFLOW_CLICKHOUSE_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "metaflow.clickhouse.secret" . }}
      key: {{ .Values.clickhouse.password.key }}
{{- else }}
{{- with include "metaflow.credentialSecret" (list . .Values.server.credentials.clickhousePassword "server") }}
- name: METAFLOW_CLICKHOUSE_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ ternary $.Values.server.credentials.clickhousePassword.key "clickhouse-password" (ne $.Values.server.credentials.clickhousePassword.existingSecret "") }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The control API's token as a variable of the given name: (list . "METAFLOW_CTL_TOKEN"). */}}
{{- define "metaflow.controlToken" -}}
{{- $top := index . 0 -}}
{{- $token := $top.Values.server.credentials.controlToken -}}
- name: {{ index . 1 }}
  valueFrom:
    secretKeyRef:
      name: {{ default (printf "%s-server" (include "metaflow.fullname" $top)) $token.existingSecret }}
      key: {{ ternary $token.key "control-token" (ne $token.existingSecret "") }}
{{- end -}}

{{- define "metaflow.clickhouse.secret" -}}
{{- default (printf "%s-clickhouse" (include "metaflow.fullname" .)) .Values.clickhouse.password.existingSecret -}}
{{- end -}}

{{/* Volumes with the server's configuration and certificates, and their mounts. */}}
{{- define "metaflow.server.volumes" -}}
- name: config
  configMap:
    name: {{ include "metaflow.fullname" . }}-server
{{- range $section := list "grpc" "http" "kafka" "clickhouse" }}
{{- with (index $.Values.server.tls $section).secretName }}
- name: tls-{{ $section }}
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- with .Values.server.tokenFiles.existingSecret }}
- name: tokens
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.server.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "metaflow.server.volumeMounts" -}}
- name: config
  mountPath: /etc/metaflow/metaflow-server.yaml
  subPath: metaflow-server.yaml
  readOnly: true
{{- range $section := list "grpc" "http" "kafka" "clickhouse" }}
{{- if (index $.Values.server.tls $section).secretName }}
- name: tls-{{ $section }}
  mountPath: /etc/metaflow/tls/{{ $section }}
  readOnly: true
{{- end }}
{{- end }}
{{- if .Values.server.tokenFiles.existingSecret }}
- name: tokens
  mountPath: /etc/metaflow/tokens
  readOnly: true
{{- end }}
{{- with .Values.server.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The claim "data" of a StatefulSet, or an emptyDir: (list . persistence). */}}
{{- define "metaflow.claims" -}}
{{- $top := index . 0 -}}
{{- with index . 1 }}
{{- if .enabled -}}
persistentVolumeClaimRetentionPolicy:
  whenDeleted: {{ ternary "Delete" "Retain" .deleteOnUninstall }}
  whenScaled: Retain
volumeClaimTemplates:
  - apiVersion: v1
    kind: PersistentVolumeClaim
    metadata:
      name: data
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .storageClass }}
      storageClassName: {{ . }}
      {{- end }}
      resources:
        requests:
          storage: {{ .size }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Scheduling of pods: nodeSelector, affinity and tolerations. */}}
{{- define "metaflow.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* GOMEMLIMIT in bytes, four fifths of a container's memory limit, or nothing; the argument is its resources. */}}
{{- define "metaflow.goMemoryLimit" -}}
{{- $limit := dig "limits" "memory" "" . -}}
{{- $limit = ternary (int64 $limit | toString) (toString $limit) (kindIs "float64" $limit) -}}
{{- if $limit -}}
{{- $units := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
      "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{- mulf (regexFind "^[0-9]+([.][0-9]+)?" $limit | float64) (get $units (regexFind "[a-zA-Z]*$" $limit)) 0.8 | floor | int64 -}}
{{- end -}}
{{- end -}}

{{/* Contradictions that the schema cannot express. */}}
{{- define "metaflow.check" -}}
{{- $v := .Values -}}
{{- if and $v.agent.token.existingSecret $v.agent.tokenFiles.existingSecret $v.agent.tokenFiles.server -}}
{{- fail "agent.tokenFiles.server: agent.token.existingSecret is set too; use only one" -}}
{{- end -}}
{{- if and $v.server.writers.enabled (hasKey $v.server.config "roles") -}}
{{- fail "server.config.roles: server.writers.enabled chooses the roles; set only one of them" -}}
{{- end -}}
{{- if and $v.server.writers.keda.enabled (not $v.server.writers.enabled) -}}
{{- fail "server.writers.keda.enabled: needs server.writers.enabled" -}}
{{- end -}}
{{- if and $v.server.ingress.enabled (not (dig "gateway" "http_listen" "" $v.server.config)) (eq $v.server.ingress.port "otlp-http") -}}
{{- fail "server.ingress.port: is otlp-http, which needs server.config.gateway.http_listen, for example 0.0.0.0:4318" -}}
{{- end -}}
{{- if and $v.agent.enabled $v.agent.flow.enabled (not $v.agent.hostNetwork) -}}
{{- fail "agent.hostNetwork: flow data needs the node's network; set it to true, or agent.flow.enabled to false" -}}
{{- end -}}
{{- if and $v.agent.enabled $v.server.tls.grpc.secretName (not $v.agent.tls.secretName) (not (dig "server" "tls" "enabled" false $v.agent.config)) -}}
{{- fail "agent.tls.secretName: required, because server.tls.grpc enables TLS; or set agent.config.server.tls.enabled to trust the system's authorities" -}}
{{- end -}}
{{- if not (or $v.server.enabled $v.agent.enabled) -}}
{{- fail "server.enabled: is false, and so is agent.enabled; nothing to install" -}}
{{- end -}}
{{- if and (not $v.server.enabled) (not (dig "server" "addresses" nil $v.agent.config)) -}}
{{- fail "agent.config.server.addresses: required, because server.enabled is false" -}}
{{- end -}}
{{- range $engine := ternary (list "kafka" "clickhouse") list $v.server.enabled -}}
{{- $key := get (dict "kafka" "brokers" "clickhouse" "addresses") $engine -}}
{{- $given := dig $engine $key nil $v.server.config -}}
{{- if and (index $v $engine).enabled $given -}}
{{- fail (printf "%s.enabled: is true, but server.config.%s.%s is set too; use only one" $engine $engine $key) -}}
{{- else if and (not (index $v $engine).enabled) (not $given) -}}
{{- fail (printf "server.config.%s.%s: required, because %s.enabled is false" $engine $key $engine) -}}
{{- end -}}
{{- end -}}
{{- $password := "METAFLOW_KAFKA_SASL_PASSWORD" -}}
{{- range $v.server.extraEnv -}}{{- if eq .name $password -}}{{- $password = "" -}}{{- end -}}{{- end -}}
{{- with $v.server.credentials.kafkaPassword -}}
{{- if and $v.server.enabled (dig "kafka" "sasl" "mechanism" "" $v.server.config) (not .value) (not .existingSecret) $password -}}
{{- fail "server.credentials.kafkaPassword: required, because server.config.kafka.sasl.mechanism is set; give existingSecret or value" -}}
{{- end -}}
{{- end -}}
{{- if and $v.server.autoscaling.enabled (gt (int $v.server.autoscaling.minReplicas) (int $v.server.autoscaling.maxReplicas)) -}}
{{- fail "server.autoscaling.minReplicas: is greater than maxReplicas" -}}
{{- end -}}
{{- end -}}
