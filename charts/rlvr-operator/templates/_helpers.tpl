{{/* Name of the release's objects. */}}
{{- define "rlvr-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Name of what lies outside of the release's namespace, where releases of the same name may meet. */}}
{{- define "rlvr-operator.outsideName" -}}
{{- printf "%s:%s" .Release.Namespace (include "rlvr-operator.fullname" .) }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "rlvr-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: rlvr
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels that select the operator's pods, and nothing else. */}}
{{- define "rlvr-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Reference of an image: list of the context and the image's values. */}}
{{- define "rlvr-operator.image" -}}
{{- $context := index . 0 }}
{{- $image := index . 1 }}
{{- with $context.Values.images.registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $context.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What Pod Security "restricted" asks of a pod, and of a container. */}}
{{- define "rlvr-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "rlvr-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end }}

{{/* Ports of the API server, as JSON: those written down, or those that the cluster names, where Helm can ask it. */}}
{{- define "rlvr-operator.apiServerPorts" -}}
{{- $ports := .Values.networkPolicy.apiServerPorts }}
{{- if not $ports }}
{{- $ports = list 443 6443 }}
{{- range (lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes").ports }}
{{- $ports = append $ports .port }}
{{- end }}
{{- end }}
{{- range $ports | uniq }}
- {protocol: TCP, port: {{ int . }}}
{{- end }}
{{- end }}

{{/* Port of a URL. */}}
{{- define "rlvr-operator.port" -}}
{{- $url := urlParse . }}
{{- if contains ":" $url.host }}{{ splitList ":" $url.host | last }}{{ else if eq $url.scheme "https" }}443{{ else }}80{{ end }}
{{- end }}

{{/* Settings of the operator (rlvr_operator.settings reads them). */}}
{{- define "rlvr-operator.env" -}}
- name: RLVR_POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: RLVR_POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- {name: RLVR_WATCH_NAMESPACES, value: {{ join "," .Values.watchNamespaces | quote }}}
- {name: RLVR_LEASE_NAME, value: {{ include "rlvr-operator.fullname" . | quote }}}
{{- range $role := list "rollout" "learner" "verifier" }}
- {name: RLVR_{{ upper $role }}_IMAGE, value: {{ include "rlvr-operator.image" (list $ (get $.Values.images $role)) | quote }}}
{{- end }}
- {name: RLVR_IMAGE_PULL_POLICY, value: {{ .Values.images.pullPolicy | quote }}}
{{- $secrets := list }}
{{- range .Values.imagePullSecrets }}{{ $secrets = append $secrets .name }}{{ end }}
- {name: RLVR_IMAGE_PULL_SECRETS, value: {{ join "," $secrets | quote }}}
- {name: RLVR_OPERATOR_SELECTOR, value: {{ include "rlvr-operator.selector" . | fromYaml | toJson | quote }}}
{{- with .Values.podMonitor.metricsFrom }}
- {name: RLVR_METRICS_FROM, value: {{ toJson . | quote }}}
{{- end }}
- {name: RLVR_SANDBOX_USER_NAMESPACES, value: {{ .Values.sandbox.userNamespaces | quote }}}
- {name: RLVR_SANDBOX_SECCOMP_PROFILE, value: {{ .Values.sandbox.seccompProfile | quote }}}
- {name: RLVR_LOG_LEVEL, value: {{ .Values.logLevel | quote }}}
- {name: RLVR_WORKERS, value: {{ .Values.workers | quote }}}
- {name: RLVR_RESYNC_SECONDS, value: {{ .Values.resyncSeconds | quote }}}
- {name: RLVR_KUEUE, value: {{ .Values.kueue.enabled | quote }}}
{{- with .Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{/* What the operator may do where jobs are: a test compares it with what the API server logs. */}}
{{- define "rlvr-operator.rules" -}}
- apiGroups: [rlvr.dev]
  resources: [rlvrjobs]
  verbs: [get, list, watch]
- apiGroups: [rlvr.dev]
  resources: [rlvrjobs/status]
  verbs: [patch]
# Owner references that block deletion need it, where the cluster enforces that.
- apiGroups: [rlvr.dev]
  resources: [rlvrjobs/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# What a job has for as long as it exists goes with it, by its owner references.
- apiGroups: [""]
  resources: [configmaps, serviceaccounts, services]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
# A job's seal key is made, and never read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create, patch]
{{- if .Values.kueue.enabled }}
# A job's claim to quota. Kueue leaves to its owner to say that pods are ready, that quota goes back, and that all is over.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads/status]
  verbs: [patch]
{{- end }}
{{- end }}
