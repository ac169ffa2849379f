"""Manifests for Kubernetes: valid by its published schemas, without secrets, whatever a study is called."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpsearch.launch.kubernetes import WAIT, object_name
from tests.cli.inside import hpsearch
from tests.postgres import PostgresServer
from tests.studies import TINY, create_as

kubernetes_validate = pytest.importorskip("kubernetes_validate")
yaml = pytest.importorskip("yaml")

VERSIONS = ("1.31", "1.33", kubernetes_validate.latest_version())
PASSWORD = "s3cret-of-the-tests"
TOKEN = "token-of-the-tests"
ODD = "Ärger: $(HPSEARCH_STORAGE)\n- {x: y} # '\""


@pytest.fixture
def variables(tmp_path: Path, postgres: PostgresServer) -> dict[str, str]:
    """A PostgreSQL with two studies, one of them of an odd name."""
    (tmp_path / "tiny.toml").write_text(TINY)
    found = {
        "HPSEARCH_STORAGE": postgres.new_database().replace("hpsearch@", f"hpsearch:{PASSWORD}@"),
        "HPSEARCH_DASHBOARD_TOKEN": TOKEN,
        "HPSEARCH_ARTIFACTS": "s3://bucket/prefix",
    }
    for name in ("tiny", ODD):
        create_as(name, found["HPSEARCH_STORAGE"], tmp_path / "tiny.toml")
    return found


def printed(folder: Path, *arguments: str, **variables: str) -> list[dict[str, Any]]:
    """The documents that are printed, valid in every version and without a secret."""
    text = hpsearch(folder, "launch", "kubernetes", *arguments, **variables).stdout
    assert PASSWORD not in text
    assert TOKEN not in text
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    return documents


def container(document: dict[str, Any]) -> dict[str, Any]:
    found = document["spec"]["template"]["spec"]["containers"]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("gpus", [0, 1, 4])
@pytest.mark.parametrize("place", [(), ("--claim", "checkpoints.lab-2")], ids=["s3", "claim"])
def test_valid_by_the_published_schemas(
    tmp_path: Path, variables: dict[str, str], gpus: int, place: tuple[str, ...]
) -> None:
    options = ("--workers", "3", "--gpus-per-worker", str(gpus), "--namespace", "lab", "--image", "registry/hpsearch:1")
    public = ("--public-url", "https://search.example.org")
    job, dashboard, service = printed(tmp_path, "tiny", *options, *place, *public, **variables)
    assert [document["kind"] for document in (job, dashboard, service)] == ["Job", "Deployment", "Service"]
    assert {document["metadata"]["namespace"] for document in (job, dashboard, service)} == {"lab"}
    assert job["metadata"]["name"] == "hpsearch-tiny"
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (3, 3, "Indexed")
    worker = container(job)
    device = {0: "cpu", 1: "cuda:0", 4: "all"}[gpus]
    assert worker["command"] == ["hpsearch", "worker", "--device", device, "--", "tiny"]
    assert worker["resources"]["limits"].get("nvidia.com/gpu") == (str(gpus) if gpus else None)
    values = {variable["name"]: variable.get("value") for variable in worker["env"]}
    assert values["HPSEARCH_ARTIFACTS"] == ("/checkpoints" if place else "s3://bucket/prefix")
    assert ("AWS_SECRET_ACCESS_KEY" in values) == (not place)
    assert container(dashboard)["command"][-2:] == list(public)
    assert service["spec"]["selector"] == dashboard["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] != job["spec"]["template"]["metadata"]["labels"]


def test_what_pods_may_and_how_they_end(tmp_path: Path, variables: dict[str, str]) -> None:
    job, dashboard, _ = printed(tmp_path, "tiny", "--workers", "2", **variables)
    rules = job["spec"]["podFailurePolicy"]["rules"]
    actions = [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in rules]
    assert actions == [("FailJob", [2]), ("Ignore", None), ("Ignore", [75]), ("Count", [1])]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # a failure policy wants it
    for document in (job, dashboard):
        pod = document["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] == 120
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for each in [*pod["containers"], *pod.get("initContainers", [])]:
            assert each["securityContext"]["readOnlyRootFilesystem"] is True
            assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {mount["name"] for mount in each["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
            storage = next(variable for variable in each["env"] if variable["name"] == "HPSEARCH_STORAGE")
            reference = {"name": "hpsearch", "key": "HPSEARCH_STORAGE"}
            assert storage == {"name": "HPSEARCH_STORAGE", "valueFrom": {"secretKeyRef": reference}}


def test_a_name_cannot_break_out(tmp_path: Path, variables: dict[str, str]) -> None:
    job, _, _ = printed(tmp_path, ODD, "--workers", "2", **variables)
    assert container(job)["command"][-1] == ODD.replace("$", "$$")  # Kubernetes makes $ of it, and puts nothing in
    assert job["metadata"]["annotations"] == {"hpsearch/study": ODD}
    assert job["metadata"]["name"].startswith("hpsearch-rger-hpsearch-storage-x-y-")


def test_names_of_jobs() -> None:
    studies = ["lenet", "Lenet", "LENET", "le.net", "le_net", "le-net", "-", "é", "x" * 500, "x" * 499 + "y", "a--b"]
    names = [object_name(study) for study in studies]
    assert names == [object_name(study) for study in studies]
    assert len(set(names)) == len(names)
    for name in names:
        metadata = {"name": name, "labels": {"x": name}}
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}, VERSIONS[-1])
        assert len(f"{name}-9999") <= 63
        assert name == name.lower()
        assert name.replace("-", "").isalnum()
        assert name.isascii()
        assert not name.endswith("-")


def test_waiting_for_the_storage(tmp_path: Path, variables: dict[str, str]) -> None:
    program = tmp_path / "bin" / "hpsearch"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >> calls\n[ $(wc -l < calls) = 3 ]\n')
    program.chmod(0o755)
    (tmp_path / "bin" / "sleep").symlink_to("/bin/true")
    path = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", WAIT, "a study"], cwd=tmp_path, env=path, check=True)
    assert (tmp_path / "calls").read_text() == "status -- a study\n" * 3


def test_a_site_template(tmp_path: Path, variables: dict[str, str]) -> None:
    (tmp_path / "site.yaml").write_text("""
apiVersion: batch/v1
kind: Job
metadata: {name: $name, namespace: $namespace}
spec:
  completions: $workers
  parallelism: $workers
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      nodeSelector: {gpu: a100}
      containers:
      - name: worker
        image: $image
        command: [hpsearch, worker, --, $study]
        env:
        - {name: WHERE, value: "$$(HOSTNAME) $artifacts"}
""")
    (job,) = printed(tmp_path, ODD, "--workers", "2", "--template", "site.yaml", **variables)
    assert job["spec"]["completions"] == 2
    assert container(job)["command"][-1] == ODD.replace("$", "$$")
    assert container(job)["env"][0]["value"] == "$(HOSTNAME) s3://bucket/prefix"
