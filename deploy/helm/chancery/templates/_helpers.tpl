{{- define "chancery.server" -}}{{ .Release.Name }}-server{{- end }}
{{- define "chancery.agent" -}}{{ .Release.Name }}-agent{{- end }}

{{- /* Labels by which a part is selected: never changed, so that an upgrade can be applied. */}}
{{- define "chancery.selector" -}}
app.kubernetes.io/name: chancery
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "chancery.labels" -}}
{{ include "chancery.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{- define "chancery.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{- /* What every container of ours is held to; agents differ in the user. */}}
{{- define "chancery.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- end }}

{{- /* The namespaces in which the bundle is published, for RBAC: our own is covered by a Role, others by a ClusterRole. */}}
{{- define "chancery.publishes-everywhere" -}}
{{- if ne .Values.publish.namespaces "own" }}yes{{ end }}
{{- end }}

{{- define "chancery.config-maps" -}}
{{- $names := list .Values.publish.configMap -}}
{{- if .Values.publish.istio }}{{ $names = append $names "istio-ca-root-cert" }}{{ end -}}
{{ $names | toJson }}
{{- end }}

{{- define "chancery.agent-accounts" -}}
{{- .Values.agent.serviceAccounts | default (list (printf "%s:%s" .Release.Namespace (include "chancery.agent" .))) | toJson | replace "/" ":" }}
{{- end }}
