"""Jobs on a cluster, without one: ids, what is sent, and a log that breaks off."""

import io
import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.jobs import api
from cluster.jobs.config import SubmitConfig
from data_pipeline.errors import ClusterError, ConfigError, JobError, Stopped
from ray_jobs import jobs, submit


def job(name: str, status: str = "SUCCEEDED", **about: Any) -> SimpleNamespace:
    given = {
        "metadata": None,
        "message": None,
        "driver_exit_code": None,
        "runtime_env": None,
        "start_time": 1,
        "end_time": None,
    }
    return SimpleNamespace(submission_id=name, status=JobStatus(status), **given | about)


class Client:
    """A cluster that says in turn what it is given: details of a job or an error; and logs, of which each connection ends."""

    def __init__(self, says: list[Any], logs: list[str] = []) -> None:  # noqa: B006
        self.says, self.logs, self.stopped = says, logs, 0

    def get_job_info(self, name: str) -> Any:
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, Exception):
            raise said
        return said

    def stop_job(self, name: str) -> None:
        self.stopped += 1

    async def tail_job_logs(self, name: str) -> Any:
        log = self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]
        whole = log.removesuffix("!")
        for start in range(0, len(whole), 4):
            yield whole[start : start + 4]
        if log.endswith("!"):
            raise RuntimeError("the connection broke")


@pytest.fixture(autouse=True)
def _does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.time, "sleep", lambda seconds: None)


def test_a_log_that_breaks_off_is_passed_on_once_and_whole() -> None:
    running, pending = job("a", "RUNNING"), job("a", "PENDING", message="no room")
    says = [pending, pending, running, running, RuntimeError("502"), running, job("a", "FAILED", driver_exit_code=3)]
    written, said = [], []
    client = Client(says, ["first!", "", "first and sec!", "first and second\nlast\n"])
    details = api.follow(client, "a", written.append, said.append)
    assert "".join(written) == "first and second\nlast\n"
    assert said[0] == "no room"
    assert said.count("no room") == 1
    assert "trying again" in said[1]
    assert details.driver_exit_code == 3


def test_a_cluster_that_is_gone_for_long_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(api.time, "monotonic", lambda: next(clock))
    client = Client([job("a", "RUNNING"), RuntimeError("502")], [""])
    with pytest.raises(ClusterError, match="no proper answer"):
        api.follow(client, "a", print, lambda text: None)


@pytest.mark.parametrize(
    ("details", "error", "code"),
    [
        (job("a", "FAILED", driver_exit_code=2), JobError, 2),
        (job("a", "FAILED", driver_exit_code=None, message="no such node\nmore"), JobError, 1),
        (job("a", "FAILED", driver_exit_code=-9), JobError, 137),
        (job("a", "FAILED", driver_exit_code=75), Stopped, 75),
        (job("a", "STOPPED"), Stopped, 75),
    ],
)
def test_a_command_ends_as_its_job_does(
    details: Any, error: type[Exception], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    with pytest.raises(error) as caught:
        submit.follow(Client([details], ["the log\n"]), "a", Console())
    assert caught.value.exit_code == code
    assert "the log" in capsys.readouterr().out


def test_a_job_is_stopped_once_and_waited_for_as_long_as_it_may_take() -> None:
    environment = {"env_vars": {api.STOP_SECONDS: "700"}}
    client = Client([job("a", "RUNNING", runtime_env=environment)] * 3 + [job("a", "STOPPED")])
    said: list[str] = []
    assert api.stop(client, "a", said.append).status == JobStatus.STOPPED
    assert client.stopped == 1
    assert "700 s" in said[0]
    assert api.stop(Client([job("a")]), "a", said.append).status == JobStatus.SUCCEEDED
    assert len(said) == 1


def test_attempts_are_counted_and_none_is_doubled() -> None:
    about = {submit.JOB_OF: "embed", submit.OUTPUT_OF: "s3://b/el"}
    others = [job("el-embed-2", metadata=about), job("el-embed-10"), job("el-embed-x"), job("other-3", "RUNNING")]
    assert submit.next_name(others, "el-embed", "embed", "s3://b/el") == "el-embed-11"
    assert submit.next_name([], "el-embed", "embed", "s3://b/el") == "el-embed-1"
    running = job("named-1", "PENDING", metadata=about)
    with pytest.raises(ClusterError, match="embed is PENDING already for output=s3://b/el"):
        submit.next_name([*others, running], "el-embed", "embed", "s3://b/el")
    assert submit.next_name([running], "el-embed", "embed", "s3://b/tr") == "el-embed-1"
    assert submit.next_name([running], "el-mine", "mine", "s3://b/el") == "el-mine-1"


def test_the_users_environment_is_kept() -> None:
    given = SubmitConfig(
        runtime_env={"pip": ["s3fs"], "env_vars": {"A": "b", api.STOP_SECONDS: "5"}}, excludes=("data/",), working_dir="/tmp"
    )
    found = submit.runtime_env(given)
    assert found["pip"] == ["s3fs"]
    assert found["env_vars"] == {"A": "b", api.STOP_SECONDS: "5", "SCION_DRIVER_CPUS": "1"}
    assert found["working_dir"] == "/tmp"
    assert "data/" in found["excludes"]
    assert {path.rpartition("/")[2] for path in found["py_modules"]} == set(submit.CODE)
    assert "py_modules" not in submit.runtime_env(SubmitConfig())  # the tests run in a checkout
    with pytest.raises(ConfigError, match=r"submit\.working_dir"):
        submit.runtime_env(SubmitConfig(runtime_env={"working_dir": "."}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pipeline"], "the job or its configuration is missing"),
        (["pipelin", "ray_jobs/conf/demo.yaml"], "Did you mean 'pipeline'"),
        (["pipeline", "ray_jobs/conf/demo.yaml"], "output: runs/demo would lie in a copy of this folder"),
        (["pipeline", "ray_jobs/conf/demo.yaml", "output=/x", "shards=y"], "shards: y would lie"),
        (["pipeline", "ray_jobs/conf/demo.yaml", "output=/x", "submit.working_dir=tests"], "it is not in .*tests, the folder"),
        (["pipeline", "ray_jobs/conf/demo.yaml", "output=/x", "submit.working_dir=nowhere"], "there is no such folder"),
        (["pipeline", "ray_jobs/conf/demo.yaml", "output=/x", "submit.name=a/b"], "cannot begin a submission id"),
        (["pipeline", "ray_jobs/conf/demo.yaml", "output=/x", "submit.runtime_env={env_vars: {A: 1}}"], "map of text to text"),
        (["pipeline", "ray_jobs/conf/demo.yaml", "output=/x", "submit.address=http://127.0.0.1:9"], "no answer from there"),
    ],
)
def test_a_mistake_is_named_before_anything_is_sent(arguments: list[str], message: str) -> None:
    from rich.console import Console

    with pytest.raises((ConfigError, ClusterError), match=message):
        submit.command(arguments, Console())


def test_names_come_from_the_output(tmp_path: Any) -> None:
    config = SimpleNamespace(output="s3://bucket/ελ runs v1.2/")
    assert submit.default_name("embed", config) == "runs-v1.2-embed"


def test_jobs_are_listed_with_what_they_say() -> None:
    from rich.console import Console

    about = {submit.JOB_OF: "embed", submit.OUTPUT_OF: "s3://b/[el]"}
    rows = [
        job("el-embed-1", "RUNNING", metadata=about, start_time=1_000),
        job("raysubmit_x", "FAILED", message="Job entrypoint command\nfailed", start_time=1_000, end_time=62_000),
    ]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(jobs.table(rows, now=3_671.0))
    text = captured.get()
    assert "s3://b/[el]" in text
    assert "1:01:10" in text
    assert "0:01:01" in text
    assert "Job entrypoint command failed" in text


@pytest.mark.parametrize("arguments", [["follow"], ["end", "x"], ["stop", "a", "b"], ["address=a", "address=b"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="the arguments are not right"):
        jobs.command(arguments, None)


def test_a_job_that_the_cluster_has_forgotten_ends_the_following_at_once() -> None:
    """After a restart the cluster knows no earlier job."""
    gone = RuntimeError("Request failed with status code 404: Job a does not exist.")
    client, said = Client([job("a", "RUNNING"), gone], [""]), []
    with pytest.raises(ClusterError, match="there is no such job"):
        api.follow(client, "a", print, said.append)
    assert said == []


def test_a_cluster_without_an_answer_is_waited_for_also_before_the_start_and_named_once() -> None:
    away = [RuntimeError("502")] * 5
    says = [job("a", "PENDING"), *away, job("a", "PENDING"), job("a", "RUNNING"), *away, job("a")]
    said: list[str] = []
    assert api.follow(Client(says, ["log\n"]), "a", lambda text: None, said.append).status == JobStatus.SUCCEEDED
    assert said == ["the cluster gives no answer; trying again"] * 2
    client = Client([job("a", "RUNNING"), *away, job("a", "STOPPED")])
    assert api.stop(client, "a", said.append).status == JobStatus.STOPPED


def test_a_reader_that_has_gone_ends_the_following() -> None:
    """As in `scion jobs follow ID | head`: once the log was sent again each second until the job ended."""

    def closed(text: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        api.follow(Client([job("a", "RUNNING")] * 9 + [job("a")], ["log\n"]), "a", closed, print)


def test_what_a_terminal_cannot_show_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    bytes_ = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(bytes_, "ascii"))
    submit.follow(Client([job("a")], ["α\nβ\nthe end\n"]), "a", Console(stderr=True))
    assert bytes_.getvalue() == b"?\n?\nthe end\n"


def test_a_job_that_waits_is_stopped_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 100))
    monkeypatch.setattr(api.time, "monotonic", lambda: next(clock))
    odd = {"env_vars": {api.STOP_SECONDS: "soon"}}
    client, said = Client([job("a", "PENDING", runtime_env=odd)] * 20 + [job("a", "STOPPED")]), []
    assert api.stop(client, "a", said.append).status == JobStatus.STOPPED
    assert "has not started" in said[0]


class Server(BaseHTTPRequestHandler):
    """Says that it is Ray, and never lists its jobs."""

    def do_GET(self) -> None:
        if self.path == "/api/version":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"version": "4", "ray_version": "2.60.0"}).encode())
        else:
            threading.Event().wait(5)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def silent_cluster() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_cluster_that_takes_connections_but_does_not_answer_is_named(
    silent_cluster: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_ANSWER_SECONDS", 0.5)
    client = api.connect(f"http://me:secret@127.0.0.1:{silent_cluster}/")
    with pytest.raises(ClusterError, match="no proper answer"):
        api.submitted(client)


def test_a_traceback_of_the_cluster_is_told_by_its_last_line() -> None:
    text = (
        "Request failed with status code 500: Traceback (most recent call last):\n  File\n"
        + "x\n" * 999
        + "ValueError: the reason\n"
    )
    with pytest.raises(ClusterError, match=r"status code 500: ValueError: the reason"), api.answers("a"):
        raise RuntimeError(text)
    with pytest.raises(ClusterError, match="no proper answer"), api.answers("a"):
        raise RuntimeError("Module: htpp does not exist.")
    with pytest.raises(ClusterError, match="no proper answer"), api.answers("a"):
        raise ConnectionError("Failed to connect to Ray at address")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside of a checkout, with a configuration."""
    (tmp_path / "mine.yaml").write_text("text: s3://b/t.parquet\nsource_model: m\noutput: s3://b/run/\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Cluster:
    """A cluster that holds jobs, and in which others submit first as often as `rivals` says."""

    def __init__(self, rivals: int = 0, output: str = "s3://other/run") -> None:
        self.jobs: list[Any] = []
        self.rivals, self.output, self.sent = rivals, output, dict[str, Any]()

    def list_jobs(self) -> list[Any]:
        return list(self.jobs)

    def submit_job(self, **about: Any) -> None:
        if self.rivals:
            self.rivals -= 1
            self.jobs.append(
                job(about["submission_id"], "RUNNING", metadata={"scion_job": "shard", "scion_output": self.output})
            )
            trace = "Traceback (most recent call last):\n" + 50 * "  File in a long folder\n"
            raise RuntimeError(
                f"Request failed with status code 500: {trace}ValueError: Job with ... already exists. Please\n."
            )
        self.sent = about

    def _upload_package_if_needed(self, path: str, **about: Any) -> str:
        return f"gcs://{Path(path).name}.zip"


def sent(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, *overrides: str, path: str = "mine.yaml") -> dict[str, Any]:
    from rich.console import Console

    monkeypatch.setattr(api, "connect", lambda address: cluster)
    submit.command(["shard", path, "submit.wait=false", *overrides], Console())
    return cluster.sent


def test_of_two_submissions_at_once_the_second_takes_the_next_id(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(monkeypatch, Cluster(rivals=2))["submission_id"] == "run-shard-3"
    with pytest.raises(ClusterError, match="shard is RUNNING already"):
        sent(monkeypatch, Cluster(rivals=1, output="s3://b/run"))


def test_a_cluster_that_still_starts_is_asked_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starting = ["No available agent to submit job, please try again later."] * 2

    class Starting(Cluster):
        def submit_job(self, **about: Any) -> None:
            if starting:
                raise RuntimeError(f"Request failed with status code 500: {starting.pop()}.")
            super().submit_job(**about)

    assert sent(monkeypatch, Starting())["submission_id"] == "run-shard-1"
    starting[:] = ["No available agent"] * 9
    with pytest.raises(ClusterError, match="several Rays on a machine"):
        sent(monkeypatch, Starting())


def test_a_slash_at_the_end_is_the_same_output(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    cluster.jobs = [job("x", "RUNNING", metadata={"scion_job": "shard", "scion_output": "s3://b/run"})]
    with pytest.raises(ClusterError, match="shard is RUNNING already"):
        sent(monkeypatch, cluster)
    cluster.jobs = [job("x", "RUNNING", metadata={"scion_job": "shard", "scion_output": "/nfs/run"})]
    with pytest.raises(ClusterError, match="shard is RUNNING already"):
        sent(monkeypatch, cluster, "output=/nfs//x/../run/")


def test_endpoints_without_an_output_do_not_hinder_each_other() -> None:
    other = job("serve-1", "RUNNING", metadata={"scion_job": "serve", "scion_output": ""})
    assert submit.next_name([other], "serve", "serve", "") == "serve-2"


def test_no_secret_of_the_submission_reaches_the_jobs_of_the_cluster(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sent(
        monkeypatch, Cluster(), "output=s3://me:secret1@b/run", "submit={runtime_env: {env_vars: {KEY: secret2}}, wait: false}"
    )
    assert "secret1" not in str(found["metadata"])
    assert "secret2" not in found["entrypoint"]
    assert found["runtime_env"]["env_vars"]["KEY"] == "secret2"


def test_hints_name_the_address(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sent(monkeypatch, Cluster(), "submit.address=http://127.0.0.1:9")
    assert "scion jobs follow run-shard-1 address=http://127.0.0.1:9" in capsys.readouterr().out


def test_a_configuration_that_would_not_be_sent_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "runs" / "a").mkdir(parents=True)
    (project / "runs" / "a" / "config.yaml").write_text((project / "mine.yaml").read_text())
    with pytest.raises(ConfigError, match=r"config\.yaml: it is among the files that are not sent"):
        sent(monkeypatch, Cluster(), path="runs/a/config.yaml")
    (project / ".gitignore").write_text("mine.*\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: it is among the files that are not sent"):
        sent(monkeypatch, Cluster())


def test_a_link_to_a_configuration_is_sent(project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "shared.yaml"
    (project / "mine.yaml").rename(elsewhere)
    (project / "my link.yaml").symlink_to(elsewhere)
    found = sent(monkeypatch, Cluster(), "method=[aligned, focus]", "shard.tokenizer.vocab_size=999", path="my link.yaml")
    assert shlex.split(found["entrypoint"])[3:] == [
        "shard",
        "my link.yaml",
        "method=[aligned, focus]",
        "shard.tokenizer.vocab_size=999",
    ]


def test_a_folder_that_no_cluster_takes_is_refused_before_it_is_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (project / "weights.bin").open("wb") as file:
        file.truncate(50 << 30)  # takes no room
    (project / "ignored.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"it is too large to be sent.*weights.bin \(53687 MB\)"):
        sent(monkeypatch, Cluster())
    sent(monkeypatch, Cluster(), "submit.excludes=[weights.bin]")


@pytest.mark.parametrize("name", ["trainer.py", "cluster/__init__.py"])
def test_modules_that_would_hide_ours_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (project / "trainer").mkdir()  # without an __init__.py it hides nothing
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).write_text("")
    with pytest.raises(ConfigError, match="there would hide Scion's own"):
        sent(monkeypatch, Cluster())


def test_excludes_leave_scions_own_code_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`checkpoints/` is also a part of Scion."""
    found = sent(monkeypatch, Cluster(), "submit.excludes=[checkpoints/]", "submit.runtime_env={py_modules: [s3://b/own.zip]}")
    ours = [f"gcs://{name}.zip" for name in submit.CODE]
    assert found["runtime_env"]["py_modules"] == [*ours, "s3://b/own.zip"]


@pytest.mark.parametrize("given", ["{pip: 3}", "{py_modules: 3}", "{pip: [a], conda: b}", "{env_vars: {1: a}}"])
def test_an_environment_that_ray_refuses_is_named(project: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    with pytest.raises(ConfigError, match=r"submit\.runtime_env"):
        sent(monkeypatch, Cluster(), f"submit.runtime_env={given}")


@pytest.mark.parametrize("name", ["", "a/b", "#", ".."])
def test_what_cannot_be_an_id_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no id of a job"):
        jobs.command(["follow", name, "address=http://127.0.0.1:9"], None)


def test_ids_are_listed_whole_in_a_pipe() -> None:
    from rich.console import Console

    console = Console(width=80)
    long = "a-rather-long-name-of-a-run-with-a-version-v1.2-pipeline-12"
    with console.capture() as captured:
        console.print(
            jobs.table([job(long, metadata={"scion_output": "s3://bucket/a/rather/long/path/of/an/output"})], now=1.0)
        )
    lines = captured.get().splitlines()
    assert any(long in line for line in lines)
    assert (
        "".join(line.split("│")[3].strip() for line in lines if line.startswith("│"))
        == "s3://bucket/a/rather/long/path/of/an/output"
    )


def test_a_dashboard_is_found_without_its_scheme(silent_cluster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for 40 s for a head that speaks another protocol."""
    assert api.connect(f"127.0.0.1:{silent_cluster}").get_address() == f"http://127.0.0.1:{silent_cluster}"
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9: no answer from there"):
        api.connect("")
