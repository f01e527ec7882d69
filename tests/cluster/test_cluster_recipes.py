"""Job files, manifests and the container's recipe: well written, and of one mind with the program."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import click
import factories
import kubernetes_validate
import pytest
import sqlalchemy as sa
import yaml
from factories import utc

from marcod.cli import cli
from marcod.cli.common.lazy import loaded
from marcod.database.engine import Database
from marcod.database.schema import job
from marcod.settings import loading
from marcod.store import campaigns
from marcod.store.campaigns import Archive, Owed
from marcod.store.versions import Version

ROOT: Final = Path(__file__).parents[2]
CLUSTER: Final = ROOT / "cluster"
SCRIPTS: Final = sorted(CLUSTER.glob("*.sbatch"))
MANIFESTS: Final = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
VERSIONS: Final = ("1.31", kubernetes_validate.latest_version())
"""Oldest and newest Kubernetes that the manifests are checked for."""

KILL_WAIT_S: Final = 30
"""Seconds that Slurm and Kubernetes wait between their first signal and the last, by default."""


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


MADE: Final = [(path.name, one) for path in MANIFESTS for one in documents(path)]


def of_kind(kind: str) -> dict[str, Any]:
    [found] = [one for _, one in MADE if one["kind"] == kind]
    return found


def container(kind: str) -> dict[str, Any]:
    [found] = of_kind(kind)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def accepts(words: list[str]) -> None:
    """Parse a command line as marcod does, without calling anything."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        command, words = loaded(command.commands[words[0]]), words[1:]
    command.make_context("marcod", list(words), **cli.context_settings)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_job_files_are_sound_shell(script: Path) -> None:
    program = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([program, "--severity=style", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_job_files_give_signals_to_a_command_that_exists(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    program = "${MARCOD:-/opt/marcod/bin/marcod}"
    [line] = [line for line in text.splitlines() if program in line]
    words = shlex.split(line.partition("&&")[0])
    steps = words[0] == "srun"
    before = ["srun", "--kill-on-bad-exit=1"] if steps else ["exec"]
    assert words[: len(before) + 1] == [*before, program]
    accepts(words[len(before) + 1 :])
    # Only steps hear a signal that is not for the batch script, which must outlive one that is for all.
    assert f"#SBATCH --signal={'' if steps else 'B:'}TERM@120" in text
    assert not steps or "trap : TERM" in text
    assert "#SBATCH --requeue" in text
    assert "password" not in re.sub(r"(?m)^# .*$", "", text).lower()


@pytest.mark.parametrize(("said", "code"), [(0, 0), (1, 1), (3, 0), (75, 75)])
def test_a_training_that_came_to_a_result_is_a_job_that_completed(tmp_path: Path, said: int, code: int) -> None:
    step = tmp_path / "srun"
    step.write_text(f"#!/bin/sh\nexit {said}\n")
    step.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["bash", CLUSTER / "train.sbatch"], env={**os.environ, "PATH": path}, check=False)
    assert done.returncode == code


def test_the_time_of_a_worker_ends_before_that_of_its_job() -> None:
    text = (CLUSTER / "score.sbatch").read_text(encoding="utf-8")
    hours, minutes, _ = map(int, re.findall(r"--time=(\d+):(\d+):(\d+)", text)[0])
    [own] = map(int, re.findall(r"--max-minutes (\d+)", text))
    assert own < 60 * hours + minutes - 120 / 60


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "document"), MADE, ids=lambda value: value if isinstance(value, str) else value["kind"]
)
def test_manifests_have_kubernetes_schema(name: str, document: dict[str, Any], version: str) -> None:
    """Strictly: no key that the schema does not know. KEDA's kinds are not Kubernetes' own."""
    if document["apiVersion"].startswith("keda.sh/"):
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    else:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("kind", ["Job", "Deployment"])
def test_pods_call_commands_that_exist_and_may_do_little(kind: str) -> None:
    made = container(kind)
    accepts([str(word) for word in made["args"]])
    pod = of_kind(kind)["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > KILL_WAIT_S
    assert pod["securityContext"]["runAsNonRoot"]
    assert made["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    volumes = {one["name"] for one in pod["volumes"]}
    assert {one["name"] for one in made["volumeMounts"]} == volumes


def test_a_pod_that_ends_with_work_left_is_started_again_and_a_wrong_configuration_is_not() -> None:
    rules = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in of_kind("Job")["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert rules == {"Ignore": [75], "FailJob": [2]}
    assert of_kind("Job")["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_configuration_and_the_credential_of_pods_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, credentials = tmp_path / "marcod.toml", tmp_path / "credentials"
    config.write_text(of_kind("ConfigMap")["data"]["marcod.toml"])
    credentials.mkdir()
    [secret] = [one for _, one in MADE if one["kind"] == "Secret" and one["metadata"]["name"] == "marcod"]
    for name, text in secret["stringData"].items():
        (credentials / name).write_text(text)
    for variable in container("Job")["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "pod"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    settings = loading.load(config)
    assert settings.store.url.get_secret_value() == secret["stringData"]["MARCOD_STORE__URL"]
    assert settings.score.threads == int(container("Job")["resources"]["requests"]["cpu"])
    mounts = {one["mountPath"] for one in container("Job")["volumeMounts"]}
    assert str(settings.models.folder) in mounts
    assert {str(source.root.parent) for source in settings.sources.values()} <= mounts


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_keda_counts_what_is_left_to_score(db: Database, source_id: int, champion: Version) -> None:
    """Waiting and leased images, not those that wait for another try or are given up, and campaigns that run."""
    scaled = of_kind("ScaledObject")["spec"]
    [trigger] = scaled["triggers"]
    query = str(trigger["metadata"]["query"])

    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert " ".join(re.findall(r"```sql\n(.*?)```", page, re.DOTALL)[0].split()) == " ".join(query.split())

    def asked() -> int:
        return int(db.read(lambda c: c.execute(sa.text(query)).scalar_one()))

    assert asked() == 0
    now = db.now()
    factories.record(db, source_id, factories.sightings(10), now)
    assert asked() == 10
    ids = [row.id for row in factories.rows(db, sa.select(job.c.id).order_by(job.c.id))]

    def change(number: int, **values: object) -> None:
        db.write(lambda c: c.execute(sa.update(job).where(job.c.id == ids[number]).values(**values)))

    later = now.replace(year=now.year + 1)
    change(0, lease="w/1", available_at=later)
    assert asked() == 10
    change(1, available_at=later)
    change(2, failed_at=now)
    assert asked() == 8
    number = db.write(campaigns.begin, champion.id, Archive(), [Owed(1, 7_000)], "test", utc())
    assert asked() == 7_008
    db.write(lambda c: c.execute(sa.text("update campaign_range set done = 6000")))
    assert asked() == 1_008
    db.write(lambda c: c.execute(sa.text("update campaign_range set done = 7001")))
    assert asked() == 9, "more images came than were counted"
    db.write(lambda c: c.execute(sa.text("update campaign set state = 'paused' where id = :id"), {"id": number}))
    assert asked() == 8
    assert scaled["scaleTargetRef"]["name"] == of_kind("Deployment")["metadata"]["name"]
    assert int(trigger["metadata"]["activationTargetQueryValue"]) == 0


def test_the_container_is_made_as_the_makefile_and_the_units_have_it() -> None:
    text = (CLUSTER / "Containerfile").read_text(encoding="utf-8")
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^RUN make (\S+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", made, re.MULTILINE)
    [entry] = re.findall(r'^ENTRYPOINT \["(.*)"\]', text, re.MULTILINE)
    assert f"ExecStart={entry} " in (ROOT / "systemd" / "marcod-score@.service").read_text(encoding="utf-8")
    [words] = re.findall(r"^CMD (\[.*\])", text, re.MULTILINE)
    accepts(yaml.safe_load(words))
    [user] = set(re.findall(r"^USER (\d+):\1", text, re.MULTILINE))
    assert int(user) == of_kind("Job")["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert "python3 -m venv /opt/marcod" in (ROOT / "docs" / "systemd.md").read_text(encoding="utf-8")
    assert "python3 -m venv /opt/marcod" in text
