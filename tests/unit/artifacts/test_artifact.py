"""A folder is an artefact once it holds `artifact.json`, and never before."""

import os
import pickle
import time
from pathlib import Path

import pytest

from data_pipeline import errors
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import ResumePolicy, Spec
from data_pipeline.errors import ArtifactError


def spec(uri: str, **config: object) -> Spec:
    return Spec(uri=uri, kind="thing", config={"part": config}, inputs={"text": "abc"})


def test_a_finished_folder_is_found_again(uri: str) -> None:
    with artifact.writing(spec(uri, size=1)) as draft:
        storage.write_bytes(storage.join(draft.uri, "data"), b"x")
        draft.metrics = {"rows": 3}
    finished = artifact.find(spec(uri, size=1))
    assert finished is not None
    assert finished.metrics == {"rows": 3}
    assert not storage.exists(storage.join(uri, artifact.UNFINISHED))


def test_another_config_is_refused_with_the_changed_setting_and_the_folder_stays(uri: str) -> None:
    with artifact.writing(spec(uri, size=1)):
        pass
    with pytest.raises(ArtifactError, match=r"part\.size \(1 -> 2\)"):
        artifact.find(spec(uri, size=2))
    with pytest.raises(ArtifactError), artifact.writing(spec(uri, size=2)):
        raise AssertionError("must not begin")
    assert artifact.find(spec(uri, size=1)) is not None


def test_an_error_leaves_no_files(uri: str) -> None:
    def interrupted() -> None:
        with artifact.writing(spec(uri)) as draft:
            storage.write_bytes(storage.join(draft.uri, "half"), b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert storage.files(uri) == []


def test_the_files_of_a_killed_run_are_removed_unless_it_can_resume(uri: str) -> None:
    def leave_killed_run(size: int) -> None:
        """Leaves what a SIGKILL does: a mark and half the files."""
        storage.remove(uri)
        with artifact.writing(spec(uri, size=size), resumable=True) as draft:
            storage.write_bytes(storage.join(draft.uri, "half"), b"x")
        mark = storage.read_bytes(storage.join(uri, artifact.FINISHED))
        storage.write_bytes(storage.join(uri, artifact.UNFINISHED), mark)
        storage.remove(storage.join(uri, artifact.FINISHED))

    leave_killed_run(1)
    with artifact.writing(spec(uri, size=1), resumable=True):
        assert storage.exists(storage.join(uri, "half"))
    leave_killed_run(1)
    with artifact.writing(spec(uri, size=2), resumable=True):
        assert not storage.exists(storage.join(uri, "half"))
    leave_killed_run(1)
    with artifact.writing(spec(uri, size=1)):
        assert not storage.exists(storage.join(uri, "half"))


def test_the_folder_of_somebody_else_is_never_cleared(uri: str) -> None:
    storage.write_bytes(storage.join(uri, "thesis.tex"), b"years of work")
    with pytest.raises(ArtifactError, match="not Scion's"), artifact.writing(spec(uri)):
        raise AssertionError("must not begin")
    assert storage.read_bytes(storage.join(uri, "thesis.tex")) == b"years of work"


def test_reading_a_missing_artefact_names_the_command_that_makes_it(uri: str) -> None:
    with pytest.raises(ArtifactError, match="scion transfer"):
        artifact.read(uri, "model", "transfer")


def test_an_id_does_not_depend_on_the_path() -> None:
    assert spec("/a", x=1).id == spec("/b", x=1).id != spec("/a", x=2).id


def test_every_error_survives_the_trip_between_processes() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ScionError)]
    assert len(kinds) > 5
    for kind in kinds:
        error = kind("what", "where", "do this")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert str(again) == str(error) == "where: what do this"


def test_working_folders_are_removed_only_once_the_artefact_is_finished(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the last step of a training and its artefact must not cost the checkpoints."""
    checkpoint, write = storage.join(uri, "checkpoints", "a"), storage.write_bytes

    def watched(path: str, content: bytes) -> None:
        if path.endswith(artifact.FINISHED):
            assert storage.exists(checkpoint)
        write(path, content)

    monkeypatch.setattr(storage, "write_bytes", watched)
    with artifact.writing(spec(uri), resumable=True) as draft:
        storage.write_bytes(checkpoint, b"weights")
        draft.working_folders.append(storage.join(uri, "checkpoints"))
    assert storage.files(uri) == [artifact.FINISHED]


def test_the_check_of_storage_that_does_not_answer_times_out(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "filesystem", lambda uri: time.sleep(20))
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer in 0 s"):
        storage.check_writable(str(tmp_path), seconds=0.2)
    assert time.monotonic() - began < 10


RESUME_POLICY = ResumePolicy(settings=("part.steps", "part.tail"), length="part.steps", state="state", keep="part.keep")


def resumable_spec(uri: str, **config: object) -> Spec:
    return Spec(uri=uri, kind="thing", config={"part": config}, inputs={"text": "abc"}, resume_policy=RESUME_POLICY)


def test_a_finished_run_is_extended_from_the_state_that_it_kept(uri: str) -> None:
    with artifact.writing(resumable_spec(uri, steps=4), resumable=True, precious=lambda: True):
        storage.write_bytes(storage.join(uri, "state", "a"), b"weights")
    longer = resumable_spec(uri, steps=6, tail=2)
    assert artifact.find(longer) is None
    with pytest.raises(ArtifactError, match=r"another run; it differs in part\.steps \(4 -> 3\)"):
        artifact.find(resumable_spec(uri, steps=3))
    with pytest.raises(ArtifactError, match=r"part\.tail"):
        artifact.find(resumable_spec(uri, steps=4, tail=2))
    with pytest.raises(ArtifactError, match=r"part\.rate"):
        artifact.find(resumable_spec(uri, steps=6, rate=2))
    with artifact.writing(longer, resumable=True, precious=lambda: True):
        assert storage.read_bytes(storage.join(uri, "state", "a")) == b"weights"
        assert not storage.exists(storage.join(uri, artifact.FINISHED))
    assert artifact.find(longer) is not None


def test_extending_a_run_without_state_says_how_to_keep_it(uri: str) -> None:
    with artifact.writing(resumable_spec(uri, steps=4), resumable=True, precious=lambda: True):
        pass
    with pytest.raises(ArtifactError, match=r"kept no state to extend it from; .*steps \(4 -> 6\).*part\.keep=true"):
        artifact.find(resumable_spec(uri, steps=6))
    assert artifact.find(resumable_spec(uri, steps=4)) is not None


def test_an_unfinished_run_resumes_if_only_adjustable_settings_changed(uri: str) -> None:
    def begin(spec: Spec) -> None:
        with artifact.writing(spec, resumable=True, precious=lambda: True):
            storage.write_bytes(storage.join(uri, "half"), b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin(resumable_spec(uri, steps=4))
    with pytest.raises(ArtifactError, match=r"unfinished run is here that differs in part\.rate \(None -> 1\), part\.steps"):
        begin(resumable_spec(uri, steps=6, rate=1))
    with artifact.writing(resumable_spec(uri, steps=3), resumable=True, precious=lambda: True):
        assert storage.exists(storage.join(uri, "half"))
    assert (
        resumable_spec(uri, steps=4).run_id
        == resumable_spec(uri, steps=6, tail=3).run_id
        != resumable_spec(uri, steps=4, rate=1).run_id
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b'{"id": 1}', "{'é'}".encode("latin1")])
@pytest.mark.parametrize("name", [artifact.FINISHED, artifact.UNFINISHED])
def test_a_mark_that_cannot_be_read_is_an_error_and_no_file_is_removed(tmp_path: Path, content: bytes, name: str) -> None:
    uri = str(tmp_path / "out")
    storage.write_bytes(f"{uri}/{name}", content)
    storage.write_bytes(f"{uri}/checkpoint", b"precious")
    with pytest.raises(ArtifactError, match=f"{name}: cannot be read"), artifact.writing(spec(uri)):
        pass
    assert storage.exists(f"{uri}/checkpoint")


def test_an_interrupted_removal_leaves_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the mark went first, and the next command refused the folder."""
    spec = Spec(uri=str(tmp_path / "transfer"), kind="model", config={}, inputs={})
    real, removed = storage.os.unlink, []

    def unlink(path: object, **options: object) -> None:
        if len(removed) == 3:
            raise KeyboardInterrupt
        removed.append(path)
        real(path, **options)  # type: ignore[arg-type]

    def interrupted() -> None:
        with artifact.writing(spec):
            for name in ("a", "b", "model.safetensors", "x", "y", "z"):
                (tmp_path / "transfer" / name).write_text("")
            monkeypatch.setattr(storage.os, "unlink", unlink)
            monkeypatch.setattr(storage.os, "remove", unlink)
            raise RuntimeError

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    monkeypatch.undo()
    assert (tmp_path / "transfer" / artifact.UNFINISHED).exists()
    with artifact.writing(spec):
        pass
    assert sorted(path.name for path in (tmp_path / "transfer").iterdir()) == [artifact.FINISHED]


def test_all_files_are_flushed_before_artifact_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a machine that lost power kept artifact.json and a truncated model."""
    synced = []
    real = storage.os.fsync
    monkeypatch.setattr(
        storage.os, "fsync", lambda number: (synced.append(os.readlink(f"/proc/self/fd/{number}")), real(number))
    )
    with artifact.writing(Spec(uri=str(tmp_path / "a"), kind="model", config={}, inputs={})):
        (tmp_path / "a" / "deep").mkdir()
        (tmp_path / "a" / "deep" / "model.safetensors").write_text("weights")
    finished = next(place for place, path in enumerate(synced) if "artifact.json" in path)
    for path in ("a/deep/model.safetensors", "a/deep", "a"):
        assert str(tmp_path / path) in synced[:finished]


def test_a_file_in_the_place_of_a_folder_is_not_replaced(tmp_path: Path) -> None:
    """Once `shards=corpus.parquet` and `scion export RUN output=FILE` replaced it."""
    (tmp_path / "corpus.parquet").write_text("precious")
    spec = Spec(uri=str(tmp_path / "corpus.parquet"), kind="shards", config={}, inputs={})
    with pytest.raises(ArtifactError, match="a file is here, not a folder"), artifact.writing(spec):
        pass
    assert (tmp_path / "corpus.parquet").read_text() == "precious"


def test_a_link_to_another_disk_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "pretrain").symlink_to(tmp_path / "scratch")
    spec = Spec(uri=str(tmp_path / "pretrain"), kind="model", config={}, inputs={})
    for _ in range(2):
        with pytest.raises(RuntimeError), artifact.writing(spec):
            raise RuntimeError
    with artifact.writing(spec):
        pass
    assert (tmp_path / "pretrain").is_symlink()
    assert (tmp_path / "scratch" / artifact.FINISHED).exists()


def test_an_unfinished_artefact_of_another_kind_is_not_removed(tmp_path: Path) -> None:
    """Once `shards=RUNS/a/pretrain` removed the checkpoints there."""
    training = Spec(uri=str(tmp_path / "pretrain"), kind="model", config={}, inputs={})

    def leave_killed_run() -> None:
        with artifact.writing(training, resumable=True):
            (tmp_path / "pretrain" / "checkpoint").write_text("weeks")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        leave_killed_run()
    shards = Spec(uri=str(tmp_path / "pretrain"), kind="shards", config={}, inputs={})
    with pytest.raises(ArtifactError, match="an unfinished model artefact is here"), artifact.writing(shards):
        pass
    assert (tmp_path / "pretrain" / "checkpoint").exists()


def test_a_password_is_not_stored_and_does_not_change_the_artefact(uri: str) -> None:
    """A model folder is published with its artifact.json."""
    with artifact.writing(spec(uri, model="sftp://me:geheim@host/model")):
        pass
    assert b"geheim" not in storage.read_bytes(storage.join(uri, artifact.FINISHED))
    assert artifact.find(spec(uri, model="sftp://me:anders@host/model")) is not None


def test_links_pipes_and_files_that_vanish_do_not_stop_an_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases links its log, `wandb sync --clean` removes what the link names; marks of readers come and go."""
    spec = Spec(uri=str(tmp_path / "a"), kind="model", config={}, inputs={})
    walk = storage.os.walk

    def walk_and_lose(path: str) -> list[tuple[str, list[str], list[str]]]:
        entries = list(walk(path))
        (tmp_path / "a" / "mark.json").unlink()
        return entries

    monkeypatch.setattr(storage.os, "walk", walk_and_lose)
    with artifact.writing(spec):
        (tmp_path / "a" / "debug.log").symlink_to("run/logs/debug.log")
        (tmp_path / "a" / "mark.json").write_text("{}")
        os.mkfifo(tmp_path / "a" / "pipe")
    assert artifact.read(spec.uri, "model", "pretrain").id == spec.id
