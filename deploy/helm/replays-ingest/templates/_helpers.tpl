{{/* Labels of every object and, if a component is given, of its selector. */}}
{{- define "replays.labels" -}}
app.kubernetes.io/name: replays-ingest
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "replays.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* An environment variable from the Secret: (list root name key) */}}
{{- define "replays.secret" -}}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ (index . 0).Values.secret }}, key: {{ index . 2 }}}}
{{- end }}

{{/* Secrets that every component needs. */}}
{{- define "replays.connections" -}}
{{ include "replays.secret" (list . "REPLAYS_REDIS_URL" "redis-url") }}
{{ include "replays.secret" (list . "REPLAYS_KAFKA_SASL_USERNAME" "kafka-username") }}
{{ include "replays.secret" (list . "REPLAYS_KAFKA_SASL_PASSWORD" "kafka-password") }}
{{- if .Values.sharedKey.enabled }}
{{ include "replays.secret" (list . "REPLAYS_SHARED_KEY" "shared-key") }}
- name: REPLAYS_SHARED_KEY_UNSEALED
  value: {{ .Values.sharedKey.unsealed }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "replays.agent" -}}
{{- if .Values.datadog.socketDirectory -}}
- name: REPLAYS_DATADOG_SOCKET
  value: {{ .Values.datadog.socketDirectory }}/dsd.socket
{{- else -}}
- name: REPLAYS_DATADOG_HOST
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
{{- end }}
{{- range $name, $value := .Values.telemetry }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* Fields of every pod before its containers. */}}
{{- define "replays.pod" -}}
serviceAccountName: {{ .Values.serviceAccount.name }}
automountServiceAccountToken: false
# Kubernetes would add variables such as REPLAYS_READER_SERVICE_HOST, which would be refused as unknown settings.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
volumes:
  - name: tmp
    emptyDir: {medium: Memory, sizeLimit: 64Mi}
{{- if .Values.datadog.socketDirectory }}
  - name: datadog
    hostPath: {path: {{ .Values.datadog.socketDirectory }}, type: Directory}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}

{{/* Fields of every container. */}}
{{- define "replays.container" -}}
image: {{ include "replays.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
{{- if .Values.datadog.socketDirectory }}
  - {name: datadog, mountPath: {{ .Values.datadog.socketDirectory }}, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}

{{/* Probes of a process with /livez and /readyz: the failures allowed at the start, two seconds each. */}}
{{- define "replays.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 2
  failureThreshold: {{ . }}
livenessProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end }}

{{/* Spreads pods over zones, then over nodes, where possible: the selector's labels. */}}
{{- define "replays.spread" -}}
topologySpreadConstraints:
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ $ | nindent 8 }}
{{- end }}
{{- end }}

{{/* Restarts a pod when its settings change. */}}
{{- define "replays.restart" -}}
checksum/settings: {{ toYaml .Values.settings | sha256sum | trunc 16 }}
{{- end }}
