{{/* Names of objects begin with this. */}}
{{- define "woodfrog.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "woodfrog.operator" -}}{{ include "woodfrog.fullname" . }}-operator{{- end -}}
{{- define "woodfrog.agent" -}}{{ include "woodfrog.fullname" . }}-agent{{- end -}}
{{- define "woodfrog.uninstall" -}}{{ include "woodfrog.fullname" . }}-uninstall{{- end -}}

{{/* What never changes in a release: (list CONTEXT COMPONENT). */}}
{{- define "woodfrog.selector" -}}
app.kubernetes.io/name: woodfrog
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* (list CONTEXT COMPONENT) */}}
{{- define "woodfrog.labels" -}}
{{- $context := index . 0 -}}
{{ include "woodfrog.selector" . }}
app.kubernetes.io/version: {{ $context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $context.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $context.Chart.Name $context.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image's reference: (list CONTEXT IMAGE). */}}
{{- define "woodfrog.image" -}}
{{- $context := index . 0 -}}
{{- $image := index . 1 -}}
{{- $repository := printf "%s/%s" (trimSuffix "/" $context.Values.image.registry) $image.name -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (coalesce $image.tag $context.Values.image.tag $context.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Name of an agent as the API server knows it. */}}
{{- define "woodfrog.agentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "woodfrog.agent" . }}
{{- end -}}

{{/* A container that may change its node. */}}
{{- define "woodfrog.privileged" -}}
privileged: true
runAsUser: 0
runAsGroup: 0
{{- end -}}
