#!/usr/bin/env bash
# Trains on a GKE cluster, on TPU slices or GPU nodes: a JobSet, by kubectl.
#
#     launch/gke.sh --name=NAME --accelerator=ACCELERATOR --image=IMAGE [FLAGS] [--dry-run] -- TRAIN'S ARGUMENTS
#     launch/gke.sh --status | --logs | --stop [--dry-run] --name=NAME
#
# for example
#
#     launch/gke.sh --name=digits --accelerator=tpu:v5litepod-16 --slices=2 \
#         --image=us-docker.pkg.dev/my-project/my-images/dresnet -- \
#         --config=configs/digits.py --workdir=gs://my-bucket/digits
#     launch/gke.sh --name=digits --accelerator=gpu:h100:8 --nodes=2 ...
#
# launch/Containerfile makes the image. The workdir must be seen by all pods: a bucket. A
# pod that is pre-empted, or ends with a code other than 0 and 2, restarts all pods,
# and they resume. Code 2, a wrong value, ends the JobSet at once.
#
#   --name=NAME           name of the JobSet
#   --accelerator=A       tpu:TYPE, such as tpu:v5litepod-16, tpu:v5p-32 or tpu:v6e-16, or
#                         gpu:KIND:GPUS with the GPUs of a node, such as gpu:h100:8; the kinds
#                         are l4, a100, a100-80gb, h100, h100-mega, h200 and b200
#   --slices=N            TPU slices (default: 1)
#   --nodes=N             GPU nodes (default: 1)
#   --image=IMAGE         container image
#   --spot                only on spot nodes
#   --max_restarts=N      how often it restarts (default: 100)
#   --grace=S             seconds that a pod has to save before SIGKILL (default: 120)
#   --service_account=N   Kubernetes service account of the pods
#   --namespace=NAME      namespace (default: that of the context)
#   --context=NAME        kubectl's context (default: the current one)
#   --status              says how the pods are
#   --logs                prints the last 1,000 lines of each pod
#   --stop                deletes the JobSet: the pods save and are gone; the same line resumes
#   --dry-run             prints what would run, the manifest too
#   --help                prints this

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

OPTION=([name]="" [accelerator]="" [slices]="" [nodes]="" [image]="" [max_restarts]=100
  [grace]=120 [service_account]="" [namespace]="" [context]="")
SWITCH=([spot]=0)

PORT=8476 # Of the coordinator, on GPU nodes.

# Topologies by the number of chips: of v5e and v6e, and of v4 and v5p, whose types count
# two cores a chip.
declare -A FLAT=([1]=1x1 [4]=2x2 [8]=2x4 [16]=4x4 [32]=4x8 [64]=8x8 [128]=8x16 [256]=16x16)
declare -A CUBE=([4]=2x2x1 [8]=2x2x2 [16]=2x2x4 [32]=2x4x4 [64]=4x4x4 [128]=4x4x8
  [256]=4x8x8 [512]=8x8x8 [1024]=8x8x16 [2048]=8x16x16)

# GKE's name of a GPU.
declare -A GPU=([l4]=nvidia-l4 [a100]=nvidia-tesla-a100 [a100-80gb]=nvidia-a100-80gb
  [h100]=nvidia-h100-80gb [h100-mega]=nvidia-h100-mega-80gb [h200]=nvidia-h200-141gb
  [b200]=nvidia-b200)

# From --accelerator: KIND is tpu or gpu; PODS of each of SLICES, with CHIPS each.
find_accelerator() {
  local type=${OPTION[accelerator]#*:} chips
  case ${OPTION[accelerator]} in
    tpu:?*) find_tpu "$type" ;;
    gpu:?*:?*)
      KIND=gpu
      CHIPS=${type#*:}
      [[ -v GPU[${type%%:*}] ]] ||
        fail "gpu:${type%%:*} is not known; the kinds are $(sorted "${!GPU[@]}")."
      [[ $CHIPS =~ ^[1-9][0-9]*$ ]] ||
        fail "--accelerator=${OPTION[accelerator]}: '$CHIPS' must be the GPUs of a node."
      [[ -z ${OPTION[slices]} ]] || fail "--slices is for TPUs: give --nodes."
      GKE_NAME=${GPU[${type%%:*}]}
      SLICES=1
      PODS=${OPTION[nodes]:-1}
      ;;
    *) fail "--accelerator=${OPTION[accelerator]} must be like tpu:v5litepod-16 or gpu:h100:8." ;;
  esac
}

find_tpu() {
  local type=$1 chips
  KIND=tpu
  local -A known=()
  case $type in
    v4-* | v5p-*)
      GKE_NAME=tpu-${type%-*}-podslice
      [[ $type == v4-* ]] || GKE_NAME=tpu-v5p-slice
      for chips in "${!CUBE[@]}"; do known[$((2 * chips))]=${CUBE[$chips]}; done
      ;;
    v5litepod-*)
      GKE_NAME=tpu-v5-lite-podslice
      for chips in "${!FLAT[@]}"; do known[$chips]=${FLAT[$chips]}; done
      ;;
    v6e-*)
      GKE_NAME=tpu-v6e-slice
      for chips in "${!FLAT[@]}"; do known[$chips]=${FLAT[$chips]}; done
      ;;
    *) fail "tpu:$type is not known; the families are v4, v5litepod, v5p and v6e." ;;
  esac
  [[ -n ${type##*-} && -v known[${type##*-}] ]] ||
    fail "tpu:$type is not known; sizes of ${type%-*} are $(sorted "${!known[@]}")."
  [[ -z ${OPTION[nodes]} ]] || fail "--nodes is for GPUs: give --slices."
  TOPOLOGY=${known[${type##*-}]}
  chips=$((${TOPOLOGY//x/*}))
  CHIPS=$((chips < 4 ? chips : 4))
  PODS=$((chips / CHIPS))
  SLICES=${OPTION[slices]:-1}
}

sorted() {
  printf '%s\n' "$@" | sort -V | paste -sd ' '
}

# A text as YAML. JSON's strings are YAML's.
yaml() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  [[ $text != *[[:cntrl:]]* ]] || fail "A value holds a control character."
  echo "\"$text\""
}

# An argument for a container, whose $ Kubernetes would expand.
container_argument() {
  yaml "${1//\$/\$\$}"
}

manifest() {
  local argument image resource=google.com/tpu
  image=$(yaml "${OPTION[image]}")
  [[ $KIND == tpu ]] || resource=nvidia.com/gpu
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${OPTION[name]}
YAML
  [[ -z ${OPTION[namespace]} ]] || echo "  namespace: $(yaml "${OPTION[namespace]}")"
  if [[ $KIND == tpu ]]; then
    cat <<YAML
  annotations:
    # One slice, one node pool.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
YAML
  fi
  cat <<YAML
spec:
  # The pods find each other by name; JobSet makes the headless service.
  network:
    enableDNSHostnames: true
  failurePolicy:
    maxRestarts: ${OPTION[max_restarts]}
    # What the pods' own policy fails would fail again. All else restarts, and resumes.
    rules:
      - name: wrongValue
        action: FailJobSet
        onJobFailureReasons:
          - PodFailurePolicy
  replicatedJobs:
    - name: train
      replicas: $SLICES
      template:
        spec:
          parallelism: $PODS
          completions: $PODS
          completionMode: Indexed
          # The first pod that fails ends its job, and so restarts all.
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: ${OPTION[grace]}
YAML
  [[ -z ${OPTION[service_account]} ]] ||
    echo "              serviceAccountName: $(yaml "${OPTION[service_account]}")"
  echo "              nodeSelector:"
  if [[ $KIND == tpu ]]; then
    echo "                cloud.google.com/gke-tpu-accelerator: $GKE_NAME"
    echo "                cloud.google.com/gke-tpu-topology: $TOPOLOGY"
  else
    echo "                cloud.google.com/gke-accelerator: $GKE_NAME"
  fi
  if ((SWITCH[spot])); then
    echo '                cloud.google.com/gke-spot: "true"'
  fi
  cat <<YAML
              tolerations:
                - key: $resource
                  operator: Exists
YAML
  if ((SWITCH[spot])); then
    cat <<YAML
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
YAML
  fi
  if [[ $KIND == tpu ]]; then
    cat <<YAML
              # The chips of a slice, and the slices, talk over the nodes' own network.
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
YAML
  fi
  cat <<YAML
              containers:
                - name: train
                  image: $image
                  command: ["python", "-m", "dresnet_jax.train"]
                  args:
YAML
  for argument in "${COMMAND[@]}"; do
    argument=$(container_argument "$argument")
    echo "                    - $argument"
  done
  if [[ $KIND == gpu ]]; then
    cat <<YAML
                    - "--coordinator=${OPTION[name]}-train-0-0.${OPTION[name]}:$PORT"
                    - "--num_processes=$PODS"
                    - "--process_id=\$(JOB_COMPLETION_INDEX)"
                  ports:
                    - containerPort: $PORT
YAML
  else
    cat <<YAML
                  securityContext:
                    privileged: true
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
YAML
  fi
  cat <<YAML
                  resources:
                    limits:
                      $resource: $CHIPS
                  volumeMounts:
                    - name: shm
                      mountPath: /dev/shm
              volumes:
                - name: shm
                  emptyDir:
                    medium: Memory
YAML
}

apply_manifest() {
  local text
  text=$(manifest)
  if ((DRY_RUN)); then
    echo "$(quote kubectl "${WHERE[@]}" apply --filename=-) <<'MANIFEST'"
    echo "$text"
    echo MANIFEST
  else
    kubectl "${WHERE[@]}" apply --filename=- <<<"$text"
  fi
}

start() {
  local name
  needs_option accelerator "give it as tpu:v5litepod-16 or gpu:h100:8"
  needs_option image "give the container image that launch/Containerfile made"
  for name in slices nodes max_restarts grace; do is_number "$name"; done
  needs_command
  find_accelerator
  apply_manifest
}

status() {
  run kubectl "${WHERE[@]}" get jobset "${OPTION[name]}"
  run kubectl "${WHERE[@]}" get pods "--selector=$LABEL" --output=wide
}

logs() {
  run kubectl "${WHERE[@]}" logs "--selector=$LABEL" --prefix --tail=1000 \
    --max-log-requests=10000
}

stop() {
  run kubectl "${WHERE[@]}" delete jobset "${OPTION[name]}"
}

parse "$@"
no_words
needs_option name "give the name of the JobSet"
[[ ${OPTION[name]} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "--name=${OPTION[name]} must be of at most 40 lower-case letters, digits and -, from a letter on."
for name in namespace service_account; do
  [[ -z ${OPTION[$name]} || ${OPTION[$name]} =~ ^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail "--$name=${OPTION[$name]@Q} must be of at most 63 lower-case letters, digits and -."
done
# The flags that name the cluster.
WHERE=()
for name in context namespace; do
  [[ -z ${OPTION[$name]} ]] || WHERE+=("--$name=${OPTION[$name]}")
done
needs_program kubectl "see https://kubernetes.io/docs/tasks/tools"
LABEL=jobset.sigs.k8s.io/jobset-name=${OPTION[name]}
"$ACTION"
