"""What the stand-in for the Weights & Biases server holds of runs and artifacts, and its answers to the client's GraphQL."""

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USER = "tester"
CREATED = "2026-01-01T00:00:00"
STREAMS = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "events", "output.log": "log"}
Json = dict[str, Any]


@dataclass
class Run:
    """One run. Streams are lines by offset, so that lines sent twice to one place count once."""

    id: str
    project: str
    entity: str
    attributes: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=lambda: {name: {} for name in STREAMS.values()})
    files: dict[str, int] = field(default_factory=dict)
    artifacts: list[Json] = field(default_factory=list)
    state: str = "running"
    exit_code: int | None = None

    def lines(self, stream: str) -> list[str]:
        return [line for _, line in sorted(self.streams[stream].items())]

    def view(self) -> Json:
        """Return the run as tests read it, without the client's own entries."""
        attributes = {"group": "groupName", "job_type": "jobType", "display_name": "displayName", "sweep": "sweep"}
        attributes |= {name: name for name in ("tags", "notes", "program", "host", "commit")}
        return {
            "history": [json.loads(line) for line in self.lines("history")],
            "offsets": sorted(self.streams["history"]),
            "events": [json.loads(line) for line in self.lines("events")],
            "log": self.lines("log"),
            "config": {key: value["value"] for key, value in self.config.items() if key != "_wandb"},
            "summary": {key: value for key, value in self.summary.items() if not key.startswith("_")},
            **{name: self.attributes.get(key) for name, key in attributes.items()},
            **{key: getattr(self, key) for key in ("project", "entity", "files", "artifacts", "state", "exit_code")},
        }

    def fields(self) -> Json:
        """Return every field that a query of the client asks for; tails are JSON lists of JSON lines."""
        sent, history = self.attributes, self.lines("history")
        # Without telemetry in its configuration a run counts as not started, and isn't resumed.
        telemetry = {key: value for key, value in self.config["_wandb"]["value"].items() if key == "t"}
        return {
            **{key: sent.get(key) for key in ("displayName", "notes", "jobType", "commit", "description", "sweepName")},
            **{f"{name}LineCount": len(lines) for name, lines in self.streams.items()},
            **{"id": f"storage-{self.id}", "name": self.id, "projectId": "1", "state": self.state},
            "project": {"id": "1", "name": self.project, "entity": {"id": "1", "name": self.entity}},
            "config": json.dumps(self.config),
            "wandbConfig": json.dumps(telemetry),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(self.lines("events")[-1:]),
            "historyKeys": {"lastStep": json.loads(history[-1])["_step"] if history else -1, "keys": {}},
            "tags": sent.get("tags") or [],
            "group": sent.get("groupName"),
            "user": {"name": USER, "username": USER},
            **{"readOnly": False, "createdAt": CREATED, "heartbeatAt": CREATED},
        }


class Store:
    """All runs and artifacts; a method for each GraphQL operation of the client (`UpsertBucket` is `upsert_bucket`)."""

    def __init__(self, log: Path) -> None:
        self.log, self.url, self.outage, self.stopped = log, "", "", False
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Json] = []

    def record(self, what: str, **content: Any) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps({"time": time.time(), "what": what, **content}) + "\n")

    def execute(self, query: str, variables: Json) -> Json:
        operation = re.findall(r"(?:query|mutation)\s+(\w+)", query)[0]
        method = getattr(self, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).lower(), None)
        if method is not None:
            answer: Json = method(variables.get("input", variables))
            return answer
        if "run(name:" in query:
            run = self.runs.get(variables.get("name") or variables["run"])
            return {"project": {"run": run and run.fields()}}
        self.record("unknown", operation=operation, query=query, variables=variables)
        return {}

    def viewer(self, _: Json) -> Json:
        teams = {"edges": [{"node": {"name": USER}}]}
        return {"viewer": {"id": "1", "entity": USER, "username": USER, "email": "", "flags": "{}", "teams": teams}}

    get_default_entity = viewer

    def server_features_query(self, _: Json) -> Json:
        return {"serverInfo": {"features": []}}

    def organization_core_weave_organization_id(self, _: Json) -> Json:
        return {"entity": None}

    def run_resume_status(self, sent: Json) -> Json:
        run = self.runs.get(sent["name"])
        self.record("RunResumeStatus", run=sent["name"], found=run is not None)
        entity = {"id": "1", "name": sent.get("entity") or USER}
        return {"model": {"id": "1", "name": sent["project"], "entity": entity, "bucket": run and run.fields()}}

    def upsert_bucket(self, sent: Json) -> Json:
        sent = {key: value for key, value in sent.items() if value is not None}
        inserted = sent["name"] not in self.runs
        if inserted:
            self.runs[sent["name"]] = Run(sent["name"], sent["project"], sent.get("entity") or USER)
        run = self.runs[sent["name"]]
        run.config = json.loads(sent.pop("config")) if "config" in sent else run.config
        run.attributes |= sent
        self.record("UpsertBucket", run=run.id, inserted=inserted, config=run.config, **sent)
        return {"upsertBucket": {"bucket": run.fields(), "inserted": inserted}}

    def create_run_files(self, sent: Json) -> Json:
        files = [{"name": name, "uploadUrl": f"{self.url}/runs/{sent['run']}/{name}"} for name in sent["files"]]
        return {"createRunFiles": {"runID": sent["run"], "uploadHeaders": [], "files": files}}

    def artifact_type(self, _: Json) -> Json:
        return {"project": {"artifact": None}}

    def create_artifact(self, sent: Json) -> Json:
        aliases = [alias["alias"] for alias in sent.get("aliases") or []]
        names = {"name": sent["artifactCollectionName"], "type": sent["artifactTypeName"], "aliases": aliases}
        self.artifacts.append({"run": sent["runName"], "digest": sent["digest"], **names, "files": {}})
        artifact = {
            "id": str(len(self.artifacts) - 1),
            "state": "PENDING",
            "artifactSequence": {"latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def create_artifact_manifest(self, sent: Json) -> Json:
        url = f"{self.url}/artifacts/{sent['artifactID']}/{sent['name']}"
        manifest = {"id": sent["artifactID"], "file": {"id": "1", "uploadUrl": url, "uploadHeaders": []}}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def create_artifact_files(self, sent: Json) -> Json:
        nodes = []
        for file in sent["artifactFiles"]:
            url = f"{self.url}/artifacts/{file['artifactID']}/{file['name']}"
            upload: Json = {"uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            nodes.append({"node": {"storagePath": file["name"], "artifact": {"id": file["artifactID"]}, **upload}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def commit_artifact(self, sent: Json) -> Json:
        artifact = self.artifacts[int(sent["artifactID"])]
        self.runs[artifact["run"]].artifacts.append(artifact)
        self.record("CommitArtifact", **artifact)
        return {"commitArtifact": {"artifact": {"id": sent["artifactID"], "digest": artifact["digest"]}}}

    def artifact_by_id(self, sent: Json) -> Json:
        """Answer what `Artifact.wait` asks for."""
        artifact = self.artifacts[int(sent["id"])]
        run = self.runs[artifact["run"]]
        project = {"id": "1", "internalId": "1", "name": run.project, "entity": {"name": run.entity}}
        collection = {"__typename": "ArtifactSequence", "name": artifact["name"], "project": project}
        nothing = dict.fromkeys(("description", "metadata", "historyStep", "updatedAt", "commitHash"))
        fields = {
            **{"__typename": "Artifact", "id": sent["id"], "state": "COMMITTED", "digest": artifact["digest"]},
            **{"artifactSequence": collection, "artifactType": {"name": artifact["type"]}, "versionIndex": 0},
            **{"size": sum(artifact["files"].values()), "fileCount": len(artifact["files"]), "createdAt": CREATED},
            **{"ttlIsInherited": True, "ttlDurationSeconds": -2, "tags": [], "aliases": [], **nothing},
        }
        return {"artifact": fields}

    def file_stream(self, name: str, sent: Json) -> None:
        run = self.runs[name]
        for path, chunk in sent.get("files", {}).items():
            if path == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
            else:
                run.streams[STREAMS[path]] |= dict(enumerate(chunk["content"], chunk["offset"]))
        run.state, run.exit_code = "preempting" if sent.get("preempting") else "running", sent.get("exitcode")
        if sent.get("complete"):
            run.state = "failed" if run.exit_code else "finished"
        self.record("file_stream", run=name, **sent)

    def upload(self, path: str, size: int) -> None:
        _, kind, key, name = path.split("/", 3)
        (self.runs[key].files if kind == "runs" else self.artifacts[int(key)]["files"])[name] = size
        self.record("upload", to=f"{kind}/{key}", path=name, bytes=size)
