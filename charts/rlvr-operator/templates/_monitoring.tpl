{{/* Queries for this release: OPERATOR and JOBS become label matchers. A list of the context and the text. */}}
{{- define "rlvr-operator.queries" -}}
{{- $service := printf "service=%q" (include "rlvr-operator.fullname" (index . 0)) }}
{{- $operator := printf "namespace=%q,%s" (index . 0).Release.Namespace $service }}
{{- index . 1 | replace "OPERATOR" $operator | replace "JOBS" $service }}
{{- end }}

{{/* Namespaces that monitors look into, as their namespaceSelector. */}}
{{- define "rlvr-operator.jobNamespaces" -}}
{{- if .Values.watchNamespaces }}
matchNames: {{ toJson .Values.watchNamespaces }}
{{- else }}
any: true
{{- end }}
{{- end }}

{{/* The dashboard as Grafana reads it, from files/dashboard.yaml: rows of panels, two beside each other. */}}
{{- define "rlvr-operator.dashboard" -}}
{{- $source := dict "type" "prometheus" "uid" "${datasource}" }}
{{- $panels := list }}
{{- $y := 0 }}
{{- range include "rlvr-operator.queries" (list . (.Files.Get "files/dashboard.yaml")) | fromYamlArray }}
{{- $panels = append $panels (dict "id" (add 1 (len $panels)) "type" "row" "title" .row "gridPos" (dict "h" 1 "w" 24 "x" 0 "y" $y) "panels" list) }}
{{- $y = add 1 $y }}
{{- range $index, $panel := .panels }}
{{- $place := dict "h" 8 "w" 12 "x" (mul 12 (mod $index 2)) "y" (add $y (mul 8 (div $index 2))) }}
{{- $custom := dict "fillOpacity" (ternary 30 0 (hasKey $panel "stack")) "stacking" (dict "mode" (ternary "normal" "none" (hasKey $panel "stack"))) }}
{{- $defaults := dict "unit" $panel.unit "min" 0 "custom" $custom }}
{{- $targets := list }}
{{- range $number, $query := $panel.queries }}
{{- $targets = append $targets (dict "refId" (printf "Q%d" $number) "datasource" $source "expr" (index $query 0) "legendFormat" (index $query 1)) }}
{{- end }}
{{- $panels = append $panels (dict "id" (add 1 (len $panels)) "type" ($panel.kind | default "timeseries") "title" $panel.title "gridPos" $place "datasource" $source "fieldConfig" (dict "defaults" $defaults "overrides" list) "targets" $targets) }}
{{- end }}
{{- $y = add $y (mul 8 (div (add 1 (len .panels)) 2)) }}
{{- end }}
{{- $choices := list (dict "name" "datasource" "type" "datasource" "query" "prometheus" "label" "Data source") }}
{{- range list (list "namespace" "Namespace" "label_values(rlvr_jobs, namespace)") (list "job" "Job" "label_values(rlvr_step{namespace=~\"$namespace\"}, rlvr_dev_job)") }}
{{- $choices = append $choices (dict "name" (index . 0) "label" (index . 1) "type" "query" "datasource" $source "query" (index . 2) "definition" (index . 2) "includeAll" true "multi" true "allValue" ".*" "refresh" 2 "current" (dict "text" "All" "value" "$__all")) }}
{{- end }}
{{- $uid := printf "%s/%s" .Release.Namespace .Release.Name | sha256sum | trunc 12 | printf "rlvr-%s" }}
{{- dict "uid" $uid "title" (printf "RLVR (%s)" .Release.Name) "tags" (list "rlvr") "schemaVersion" 39 "version" 1 "editable" true "refresh" "30s" "time" (dict "from" "now-6h" "to" "now") "templating" (dict "list" $choices) "panels" $panels | toPrettyJson }}
{{- end }}
