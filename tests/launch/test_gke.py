"""gke.sh: its manifests against Kubernetes' and JobSet's schemas, and its calls."""

import copy
import json
import re
import shlex
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.jobset_schema import JOBSET
from tests.launch.launchers import (
    AWKWARD,
    assert_one_clear_line,
    environment,
    run_launcher,
)

BASE = ("--name=digits", "--image=us-docker.pkg.dev/p/images/dresnet")
TPU = (*BASE, "--accelerator=tpu:v5litepod-16")
GPU = (*BASE, "--accelerator=gpu:h100:8", "--nodes=2")
ARGUMENTS = (*AWKWARD, "--two=\nlines\tand ü", "--workdir=gs://bucket/run")


@pytest.fixture
def stubs(tmp_path):
    """A kubectl that notes how it was called; calls() reads it."""
    stub = tmp_path / "kubectl"
    stub.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "text = sys.stdin.read() if '--filename=-' in sys.argv else None\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a') as file:\n"
        "    print(json.dumps([['kubectl', *sys.argv[1:]], text]), file=file)\n"
        "sys.exit('fails' in str(sys.argv))\n"
    )
    stub.chmod(0o755)

    def calls():
        file = tmp_path / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    return environment(tmp_path), calls


def dry_run(*flags, arguments=ARGUMENTS):
    code, output, errors = run_launcher("gke.sh", *flags, "--dry-run", "--", *arguments)
    assert (code, errors) == (0, "")
    return output


def manifest(*flags, arguments=ARGUMENTS):
    lines = dry_run(*flags, arguments=arguments).splitlines()
    assert lines[0].endswith("<<'MANIFEST'")
    assert lines[-1] == "MANIFEST"
    return yaml.safe_load("\n".join(lines[1:-1]))


def validate(jobset):
    """Raises where a field is unknown to JobSet and Kubernetes, or of another type."""
    jsonschema.validate(jobset, JOBSET)
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "job"},
            "spec": replicated["template"]["spec"],
        }
        kubernetes_validate.validate(job, "1.33", strict=True)


def job_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(jobset):
    return job_of(jobset)["template"]["spec"]


def expanded(arguments, env):
    """Arguments as the kubelet hands them to a container."""

    def value(match):
        return "$" if match[0] == "$$" else env.get(match[1], match[0])

    return [re.sub(r"\$\$|\$\(([A-Za-z_]\w*)\)", value, a) for a in arguments]


def restarts(jobset, code):
    """Whether JobSet starts all again where a pod ends with a code."""
    job = job_of(jobset)
    assert job["backoffLimit"] == 0
    assert pod_of(jobset)["restartPolicy"] == "Never"
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        assert rule["onExitCodes"]["containerName"] == "train"
        assert rule["onExitCodes"]["operator"] == "In"
        if code in rule["onExitCodes"]["values"]:
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"] != "FailJobSet"
    return True


@pytest.mark.parametrize(
    "flags", [TPU, GPU, (*TPU, "--slices=2"), (*BASE, "--accelerator=tpu:v6e-1")]
)
@pytest.mark.parametrize(
    "more", [(), ("--spot", "--namespace=n", "--service_account=s", "--grace=60")]
)
def test_manifests_are_valid(flags, more):
    jobset = manifest(*flags, *more)
    validate(jobset)
    assert job_of(jobset)["completionMode"] == "Indexed"
    if more:
        pod = pod_of(jobset)
        assert jobset["metadata"]["namespace"] == "n"
        assert pod["serviceAccountName"] == "s"
        assert pod["terminationGracePeriodSeconds"] == 60
        assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "maxRestarts"), 1),
        (("spec", "failurePolicy", "maxRestarts"), "100"),
        (("spec", "failurePolicy", "rules", 0, "action"), "Fail"),
        (("spec", "replicatedJobs", 0, "completions"), 1),
        (("spec", "replicatedJobs", 0, "template", "spec", "backoffLimt"), 0),
        (("spec", "replicatedJobs", 0, "template", "spec", "parallelism"), "4"),
        (
            ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec",
             "containers", 0, "resources", "limit"),
            {},
        ),
    ],
)  # fmt: skip
def test_the_validation_finds_mistakes(path, value):
    jobset = copy.deepcopy(manifest(*TPU))
    node = jobset
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(
        (jsonschema.ValidationError, kubernetes_validate.ValidationError)
    ):
        validate(jobset)


@pytest.mark.parametrize("flags", [TPU, GPU])
def test_a_wrong_value_ends_it_and_all_else_restarts(flags):
    jobset = manifest(*flags, "--max_restarts=7")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert not restarts(jobset, 2)
    for code in (75, 124, 1, 137, 143):
        assert restarts(jobset, code), code


def test_arguments_reach_the_container_as_they_are():
    (container,) = pod_of(manifest(*TPU))["containers"]
    assert container["command"] == ["python", "-m", "dresnet_jax.train"]
    env = {"HOME": "elsewhere", "whoami": "x"}
    assert tuple(expanded(container["args"], env)) == ARGUMENTS


def test_gpu_processes_find_each_other():
    jobset = manifest(*GPU)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    (container,) = pod_of(jobset)["containers"]
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True}
    assert job_of(jobset)["parallelism"] == job_of(jobset)["completions"] == 2
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod_of(jobset)["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb"
    }
    arguments = expanded(container["args"], {"JOB_COMPLETION_INDEX": "1"})
    assert tuple(arguments[:-3]) == ARGUMENTS
    # <JobSet>-<replicated job>-<job>-<pod>.<subdomain>, which is the JobSet's name.
    host = f"{jobset['metadata']['name']}-{replicated['name']}-0-0.digits"
    port = container["ports"][0]["containerPort"]
    assert arguments[-3:] == [
        f"--coordinator={host}:{port}",
        "--num_processes=2",
        "--process_id=1",
    ]


@pytest.mark.parametrize(
    ("kind", "topology", "pods", "chips"),
    [
        ("v5litepod-1", "1x1", 1, 1),
        ("v5litepod-4", "2x2", 1, 4),
        ("v5litepod-16", "4x4", 4, 4),
        ("v5litepod-256", "16x16", 64, 4),
        ("v6e-8", "2x4", 2, 4),
        ("v6e-32", "4x8", 8, 4),
        ("v4-8", "2x2x1", 1, 4),
        ("v4-32", "2x2x4", 4, 4),
        ("v5p-128", "4x4x4", 16, 4),
        ("v5p-2048", "8x8x16", 256, 4),
    ],
)
def test_tpu_slices_have_their_topology_and_hosts(kind, topology, pods, chips):
    jobset = manifest(*BASE, f"--accelerator=tpu:{kind}", "--slices=3")
    selector = pod_of(jobset)["nodeSelector"]
    accelerator = {
        "v4": "tpu-v4-podslice",
        "v5litepod": "tpu-v5-lite-podslice",
        "v5p": "tpu-v5p-slice",
        "v6e": "tpu-v6e-slice",
    }[kind.split("-")[0]]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert selector["cloud.google.com/gke-tpu-topology"] == topology
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert job_of(jobset)["parallelism"] == job_of(jobset)["completions"] == pods
    limits = pod_of(jobset)["containers"][0]["resources"]["limits"]
    assert limits == {"google.com/tpu": chips}
    # One slice, one node pool.
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }


def test_kubectl_gets_the_manifest_of_the_dry_run(stubs):
    env, calls = stubs
    where = ("--context=cx", "--namespace=n")
    result = run_launcher("gke.sh", *TPU, *where, "--", *ARGUMENTS, env=env)
    assert result == (0, "", "")
    ((command, text),) = calls()
    assert command == ["kubectl", *where, "apply", "--filename=-"]
    assert yaml.safe_load(text) == manifest(*TPU, *where)

    selector = "--selector=jobset.sigs.k8s.io/jobset-name=digits"
    expected = {
        "--status": [["get", "jobset", "digits"],
                     ["get", "pods", selector, "--output=wide"]],
        "--logs": [["logs", selector, "--prefix", "--tail=1000",
                    "--max-log-requests=10000"]],
        "--stop": [["delete", "jobset", "digits"]],
    }  # fmt: skip
    for action, commands in expected.items():
        flags = ("--name=digits", *where, action)
        assert run_launcher("gke.sh", *flags, env=env)[0] == 0
        called = [command for command, _ in calls()]
        assert called == [["kubectl", *where, *command] for command in commands]
        _, output, _ = run_launcher("gke.sh", *flags, "--dry-run", env=env)
        assert [shlex.split(line) for line in output.splitlines()] == called


def test_where_kubectl_fails_so_does_the_launcher(stubs):
    env, _ = stubs
    result = run_launcher("gke.sh", *TPU, "--context=fails", "--", "--a", env=env)
    assert result[0] == 1


@pytest.mark.parametrize("option", ["namespace", "service_account"])
@pytest.mark.parametrize(
    "value", ["Sa", "a_b", "-a", "a\n  hostPID: true", "a: b", "a" * 64, "{a}"]
)
def test_values_that_would_be_more_than_a_name_are_refused(option, value):
    flags = (*TPU, f"--{option}={value}", "--dry-run", "--", *ARGUMENTS)
    result = run_launcher("gke.sh", *flags)
    assert_one_clear_line(result, f"--{option}=")


def test_a_name_of_digits_is_a_string():
    jobset = manifest(*TPU, "--namespace=123", "--service_account=7")
    assert jobset["metadata"]["namespace"] == "123"
