"""JobSet's own fields, as its API reference lists them for jobset.x-k8s.io/v1alpha2.

The job template inside is Kubernetes' own: `kubernetes_validate` knows it. Fields that
Kubernetes or JobSet fill in themselves (`status`) have no place in a manifest.
"""

NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
COUNT = {"type": "integer", "minimum": 0}
NAMES = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}


def fields(required=(), **properties):
    """An object that has these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


RULE = fields(
    required=("name", "action"),
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={
        "enum": [
            "FailJobSet",
            "RestartJobSet",
            "RestartJobSetAndIgnoreMaxRestarts",
            "RestartJob",
            "RestartJobAndIgnoreMaxRestarts",
        ]
    },
    # The reasons for which Kubernetes fails a job.
    onJobFailureReasons={
        "type": "array",
        "items": {
            "enum": [
                "BackoffLimitExceeded",
                "DeadlineExceeded",
                "FailedIndexes",
                "MaxFailedIndexesExceeded",
                "PodFailurePolicy",
            ]
        },
        "uniqueItems": True,
    },
    onJobFailureMessagePatterns=NAMES,
    targetReplicatedJobs=NAMES,
)

REPLICATED_JOB = fields(
    required=("name", "template"),
    name=NAME,
    groupName=NAME,
    replicas=COUNT,
    template=fields(
        required=("spec",), metadata={"type": "object"}, spec={"type": "object"}
    ),
    dependsOn={
        "type": "array",
        "items": fields(
            required=("name", "status"),
            name=NAME,
            status={"enum": ["Ready", "Complete"]},
        ),
    },
)

JOBSET = fields(
    required=("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=fields(
        required=("name",),
        name=NAME,
        namespace=NAME,
        labels={"type": "object", "additionalProperties": {"type": "string"}},
        annotations={"type": "object", "additionalProperties": {"type": "string"}},
    ),
    spec=fields(
        required=("replicatedJobs",),
        replicatedJobs={"type": "array", "items": REPLICATED_JOB, "minItems": 1},
        network=fields(
            enableDNSHostnames={"type": "boolean"},
            subdomain=NAME,
            publishNotReadyAddresses={"type": "boolean"},
        ),
        successPolicy=fields(
            required=("operator",),
            operator={"enum": ["All", "Any"]},
            targetReplicatedJobs=NAMES,
        ),
        failurePolicy=fields(
            maxRestarts=COUNT,
            restartStrategy={
                "enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]
            },
            rules={"type": "array", "items": RULE},
        ),
        startupPolicy=fields(startupPolicyOrder={"enum": ["AnyOrder", "InOrder"]}),
        suspend={"type": "boolean"},
        coordinator=fields(
            required=("replicatedJob",),
            replicatedJob=NAME,
            jobIndex=COUNT,
            podIndex=COUNT,
        ),
        managedBy={"type": "string", "maxLength": 63},
        ttlSecondsAfterFinished=COUNT,
        volumeClaimPolicies={"type": "array", "maxItems": 50},
    ),
)
