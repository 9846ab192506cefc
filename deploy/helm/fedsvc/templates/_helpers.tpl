{{- define "fedsvc.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "fedsvc.fullname" -}}
{{- $name := include "fedsvc.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of a component: (list $ "server"). */}}
{{- define "fedsvc.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "fedsvc.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "fedsvc.labels" -}}
{{- $root := index . 0 -}}
{{ include "fedsvc.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: fedsvc
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fedsvc.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "fedsvc.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "fedsvc.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "fedsvc.secret" -}}
{{- default (include "fedsvc.fullname" .) .Values.secrets.existingSecret -}}
{{- end -}}

{{/* Numbers of values are floating-point: 3153600000 must not become 3.1536e+09. */}}
{{- define "fedsvc.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "fedsvc.settings" -}}
FEDSVC_KEY_ENCRYPTION_KEYS_FILE: /run/secrets/fedsvc/key-encryption-keys
FEDSVC_REDIS_URL_FILE: /run/secrets/fedsvc/redis-url
FEDSVC_DATABASE_URL_FILE: /run/secrets/fedsvc/database-url
FEDSVC_HTTP_LISTEN: {{ printf "%s:8080" .Values.listenAddress | quote }}
FEDSVC_DELIVERY_TIMEOUT: {{ .Values.worker.deliveryTimeoutSeconds | quote }}
{{- range $name, $value := merge (deepCopy .Values.settings) .Values.extraEnv }}
{{ $name }}: {{ include "fedsvc.text" $value | quote }}
{{- end }}
{{- end -}}

{{- define "fedsvc.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "fedsvc.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/*
What all pods have in common, beside containers. Service links are off: Kubernetes would set FEDSVC_... variables
for Services of these names, and fedsvc refuses variables that it does not know.
*/}}
{{- define "fedsvc.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "fedsvc.podSecurity" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "fedsvc.placement" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $values.topologySpread }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: {{ $values.topologySpread }}
    # Each version of the pods by itself, or a rolling update would end up uneven.
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "fedsvc.selector" (list $root $component) | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Secrets are files: (list $ "name of the Secret" (list keys)). */}}
{{- define "fedsvc.volumes" -}}
{{- $root := index . 0 -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
- name: secrets
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
    items:
      {{- range index . 2 }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- with $root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fedsvc.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: secrets, mountPath: /run/secrets/fedsvc, readOnly: true}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fedsvc.preStop" -}}
{{- if . }}
lifecycle:
  preStop:
    exec:
      command: [/bin/sleep, {{ . | quote }}]
{{- end }}
{{- end -}}

{{/* Rules of egress. */}}
{{- define "fedsvc.egressTo" -}}
- to:
    {{- toYaml .to | nindent 4 }}
  ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end -}}

{{- define "fedsvc.egressDns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns.to | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end -}}
