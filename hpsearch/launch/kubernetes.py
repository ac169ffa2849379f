"""Kubernetes: an Indexed Job of workers and the dashboard, as YAML that a person reads and applies.

Everything is built as plain values and written by PyYAML, so that no name can break out of its place. Passwords and
tokens are never in it: containers take them from a Secret by reference.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from hpsearch.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, UsageError
from hpsearch.launch.templates import fill

SECRET = "hpsearch"  # noqa: S105 - its name
GRACE_SECONDS = 120  # between SIGTERM and SIGKILL; a worker needs the time of one step of training and of a checkpoint
MOST_FAILURES = 3  # of each worker, by its own fault; then Kubernetes starts it no more: it counts retries
USER = 10001  # the image's
HOME, TEMPORARY, CHECKPOINTS = "/var/lib/hpsearch", "/tmp", "/checkpoints"  # noqa: S108 - a volume of the pod's own
PORT = 8080
LONGEST_NAME = 57  # a pod's host name is the Job's and a dash and its index, 63 characters at most
S3_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,255}")
QUANTITY = re.compile(r"[1-9]\d{0,8}(Ki|Mi|Gi|Ti|k|M|G|T)?")

# A worker that starts while the database is away ends with exit code 2, which is to end the whole Job. So it starts
# only when the storage answers, or after five minutes, to say itself what is wrong.
WAIT = """\
trap 'exit 75' TERM
tries=0
until hpsearch status -- "$0" || [ $tries = 60 ]; do tries=$((tries + 1)); sleep 5; done
"""

HEADER = """\
# Workers of one study and the dashboard, by `hpsearch launch kubernetes`; nothing was applied. It needs a Secret, made
# from a file of the lines HPSEARCH_STORAGE=postgresql+psycopg://USER:PASSWORD@HOST/DATABASE and
# HPSEARCH_DASHBOARD_TOKEN=... (12 characters or more){s3}; as a file, so that no password is in a process list:
#     kubectl create secret generic {secret} --namespace {namespace} --from-env-file=hpsearch.env
#     kubectl apply -f THIS_FILE
#     kubectl port-forward --namespace {namespace} service/{secret}-dashboard 8080:80
"""


class Plain(yaml.SafeDumper):
    """Writes what occurs twice a second time, instead of pointing back to the first."""

    def ignore_aliases(self, _data: Any) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Pods:
    """Workers of one study, as pods.

    gpus, cpus, memory: of each worker; 0 GPUs: it trains on its cores. memory: as in 4Gi.
    artifacts: s3://BUCKET/PREFIX of the checkpoints; claim: instead, a volume claim that all pods can write.
    public_url: how browsers reach the dashboard; None: by kubectl port-forward alone.
    """

    study: str
    num_workers: int
    image: str
    namespace: str
    gpus: int
    cpus: int
    memory: str
    artifacts: str | None
    claim: str | None
    public_url: str | None = None

    def __post_init__(self) -> None:
        _check("--namespace", self.namespace, LABEL, "lower-case letters, digits and '-', 63 characters at most")
        _check("--image", self.image, IMAGE, "an image's name, as in registry.example.org/hpsearch:1.0")
        _check("--memory", self.memory, QUANTITY, "a quantity of Kubernetes's, as in 4Gi or 500Mi")
        if self.claim is not None:
            rule = "the name of a PersistentVolumeClaim: lower-case letters, digits, '-' and '.'"
            _check("--claim", self.claim, SUBDOMAIN, rule)
        elif self.artifacts is None:
            raise UsageError(
                "checkpoints: pods share no disk, and a worker that is pre-empted would lose its trials' work; set "
                "HPSEARCH_ARTIFACTS=s3://BUCKET/PREFIX, or give --claim NAME of a PersistentVolumeClaim"
            )

    def text(self, template: str | None = None, where: str = "") -> str:
        """The YAML: the built-in documents, or those of a site's template.

        Raises:
            UsageError: the template is no YAML, or has an unknown placeholder.
        """
        if template is None:
            documents = [self.job(), self.dashboard(), self.service()]
        else:
            documents = [_filled(document, self._values(), where) for document in _parsed(template, where)]
        s3 = f"\n# and {', '.join(S3_VARIABLES[:2])} for S3" if self.artifacts else ""
        head = HEADER.format(secret=SECRET, namespace=self.namespace, s3=s3)
        written: str = yaml.dump_all(documents, Dumper=Plain, explicit_start=True, sort_keys=False, width=120)
        return head + written

    def job(self) -> dict[str, Any]:
        """The workers. Exit code 75 or a disruption: again, uncounted; 2: the whole Job has failed; else: counted."""
        device = "cpu" if self.gpus == 0 else "cuda:0" if self.gpus == 1 else "all"
        resources: dict[str, Any] = {"cpu": str(self.cpus), "memory": self.memory}
        if self.gpus:
            resources["nvidia.com/gpu"] = str(self.gpus)
        container = self._container("worker", ["worker", "--device", device, "--", argument(self.study)])
        container["env"] += [{"name": "OMP_NUM_THREADS", "value": str(self.cpus)}]
        container["resources"] = {"requests": dict(resources), "limits": resources}
        rules = [
            {"action": "FailJob", "onExitCodes": _codes(EXIT_USAGE)},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": _codes(EXIT_INTERRUPTED)},
            {"action": "Count", "onExitCodes": _codes(EXIT_FAILED)},
        ]
        spec = {
            "completions": self.num_workers,
            "parallelism": self.num_workers,
            "completionMode": "Indexed",
            "backoffLimitPerIndex": MOST_FAILURES - 1,
            "podFailurePolicy": {"rules": rules},
            "template": self._pod(
                "worker", container, initContainers=[self._waiting(container)], restartPolicy="Never"
            ),
        }
        metadata = self._metadata(object_name(self.study), "worker")
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}

    def _waiting(self, worker: dict[str, Any]) -> dict[str, Any]:
        amount = {"cpu": str(self.cpus), "memory": self.memory}
        command = ["sh", "-c", argument(WAIT), argument(self.study)]
        resources = {"requests": dict(amount), "limits": amount}
        return {**worker, "name": "storage", "command": command, "resources": resources}

    def dashboard(self) -> dict[str, Any]:
        """The dashboard, of all studies of the storage; one pod, as it keeps sessions in memory."""
        arguments = ["dashboard", "--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104 - behind a token
        arguments += ["--public-url", argument(self.public_url)] if self.public_url else []
        container = self._container("dashboard", arguments)
        container["env"] += [_secret("HPSEARCH_DASHBOARD_TOKEN")]
        container["ports"] = [{"name": "http", "containerPort": PORT}]
        container["readinessProbe"] = {"tcpSocket": {"port": "http"}}
        container["livenessProbe"] = {"tcpSocket": {"port": "http"}, "periodSeconds": 30}
        resources = {"cpu": "1", "memory": "2Gi"}
        container["resources"] = {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": resources}
        spec = {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": _labels("dashboard")},
            "template": self._pod("dashboard", container),
        }
        metadata = self._metadata(f"{SECRET}-dashboard", "dashboard")
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}

    def service(self) -> dict[str, Any]:
        """The dashboard's address inside the cluster."""
        ports = [{"name": "http", "port": 80, "targetPort": "http"}]
        spec = {"type": "ClusterIP", "selector": _labels("dashboard"), "ports": ports}
        metadata = self._metadata(f"{SECRET}-dashboard", "dashboard")
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}

    def _metadata(self, name: str, component: str) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": name, "namespace": self.namespace, "labels": _labels(component)}
        if component == "worker":
            metadata["annotations"] = {"hpsearch/study": self.study}
        return metadata

    def _container(self, name: str, arguments: list[str]) -> dict[str, Any]:
        plain = {"HPSEARCH_HOME": HOME, "HPSEARCH_ARTIFACTS": self._checkpoints(), "HOME": TEMPORARY}
        mounts = {"home": HOME, "temporary": TEMPORARY} | ({"checkpoints": CHECKPOINTS} if self.claim else {})
        optional = [] if self.claim else [_secret(name, optional=True) for name in S3_VARIABLES]
        return {
            "name": name,
            "image": self.image,
            "command": ["hpsearch", *arguments],
            "env": [
                _secret("HPSEARCH_STORAGE"),
                *optional,
                *({"name": name, "value": value} for name, value in plain.items()),
            ],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
        }

    def _pod(self, component: str, container: dict[str, Any], **fields: Any) -> dict[str, Any]:
        volumes: list[dict[str, Any]] = [{"name": name, "emptyDir": {}} for name in ("home", "temporary")]
        if self.claim:
            volumes.append({"name": "checkpoints", "persistentVolumeClaim": {"claimName": self.claim}})
        context = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
        spec = {
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": context | {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": volumes,
            **fields,
        }
        return {"metadata": {"labels": _labels(component)}, "spec": spec}

    def _checkpoints(self) -> str:
        return CHECKPOINTS if self.claim else argument(self.artifacts or "")

    def _values(self) -> dict[str, str]:
        return {
            "study": argument(self.study),
            "name": object_name(self.study),
            "workers": str(self.num_workers),
            "image": self.image,
            "namespace": self.namespace,
            "gpus": str(self.gpus),
            "cpus": str(self.cpus),
            "memory": self.memory,
            "artifacts": self._checkpoints(),
            "claim": self.claim or "",
            "secret": SECRET,
            "public_url": argument(self.public_url or ""),
        }


def object_name(study: str) -> str:
    """A valid name for the study's Job: its own, or where that cannot be, a near one with a code of its own."""
    plain = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    name = f"hpsearch-{plain}"
    if plain == study and len(name) <= LONGEST_NAME:
        return name
    code = hashlib.sha256(study.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9].rstrip('-')}-{code}"


def argument(text: str) -> str:
    """The text for a container's command or environment, where Kubernetes would put a variable's value for $(NAME)."""
    return text.replace("$", "$$")


def _secret(name: str, optional: bool = False) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": SECRET, "key": name} | ({"optional": True} if optional else {})
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _labels(component: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "hpsearch", "app.kubernetes.io/component": component}


def _codes(code: int) -> dict[str, Any]:
    return {"containerName": "worker", "operator": "In", "values": [code]}


def _check(option: str, given: str, pattern: re.Pattern[str], rule: str) -> None:
    if not pattern.fullmatch(given):
        raise UsageError(f"{option} {given!r}: must be {rule}")


def _parsed(template: str, where: str) -> list[Any]:
    try:
        return [document for document in yaml.safe_load_all(template) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "it has characters that YAML does not allow"
        raise UsageError(f"--template {where}{place}: is no YAML: {reason}") from error


def _filled(value: Any, values: Mapping[str, str], where: str) -> Any:
    """Placeholders are replaced in the values of parsed YAML, so that no name can break out; $workers is a number."""
    if isinstance(value, dict):
        return {key: _filled(inner, values, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values, where) for inner in value]
    if not isinstance(value, str):
        return value
    filled = fill(value, values, where)
    return int(filled) if value in ("$workers", "${workers}") else filled
