"""``featcache faces …``: exit codes, and the fields that programs rely on."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from featcache import faces
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.training.bundle import Bundle
from tests.faces.drawing import draw_face
from tests.faces.identities import uri, write_people

pytestmark = pytest.mark.faces


@pytest.fixture
def run(capsys):
    """Run a command with ``--json``; return its exit code, its one object, and the error or what went to stderr."""

    def run(*words):
        code = main(["faces", *map(str, words), "--json"])
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert ("error" in found) == (code != 0)
        assert found.get("exit_code", 0) == code
        return code, found, found.get("error", err)

    return run


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder of 18 people with three images each, and what was made of it: ``people.fcache``, ``people.fch``."""
    folder = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    for person in range(18):
        (folder / "people" / f"p{person:02}").mkdir(parents=True)
        skin, around = (tuple(int(v) for v in rng.integers(60, 230, 3)) for _ in range(2))
        for number in range(3):
            face = draw_face(150 + 8 * number + int(rng.integers(8)), skin=skin, around=around)
            face.save(folder / "people" / uri(person, number).replace(".jpg", ".png"))
    Image.new("RGB", (120, 90), (200, 30, 30)).save(folder / "people" / "p00" / "red.png")
    assert main(["faces", "extract", str(folder / "people"), "-o", str(folder / "people.fcache")]) == 0
    words = ["faces", "train", str(folder / "people.fcache"), "-o", str(folder / "people.fch"), "--far", "0.1"]
    assert main(words) == 0
    return folder


def test_extract_counts_what_was_found(people, run):
    words = ("extract", people / "people", "-o", people / "people.fcache", "--batch-size", 4, "--image-timeout", 20)
    code, found, _ = run(*words, "--device", "cpu")
    assert code == 0
    assert found["backbone"] == "dlib:face_resnet"
    assert (found["items"], found["computed"], found["reused"], found["quarantined"]) == (55, 0, 54, 1)
    assert (found["first_pass"], found["no_face"]) == (54, 1)
    assert {"store", "space", "detection", "images_per_second", "seconds"} <= found.keys()
    code, _, err = run(*words, "--strict")
    assert code == 1
    assert "red.png" in err


def test_extract_takes_the_options_of_the_network(people, tmp_path, run):
    (tmp_path / "no.dat").write_bytes(b"nothing")
    words = ("extract", people / "people", "-o", tmp_path / "s.fcache")
    code, _, err = run(*words, "--weights", tmp_path / "no.dat")
    assert code == 1
    assert "no.dat" in err
    code, _, err = run(*words, "--device", "nowhere")
    assert code == 2
    assert "nowhere" in err
    assert run(*words, "--batch-size", 0)[0] == 2
    code, _, err = run(*words, "--image-timeout", 0)
    assert code == 2
    assert "seconds above 0" in err


def test_train_reports_and_saves(people, tmp_path, run):
    code, found, _ = run("train", people / "people.fcache", "-o", tmp_path / "a.fch", "--far", 0.1)
    assert code == 0
    assert {"head", "n", "people", "left_out", "calibrated_on", "warning", "chosen", "score", "seconds"} <= found.keys()
    assert {"eer", "auc", "cllr", "far", "tar", "far_target", "people", "pairs", "protocol"} <= found["score"].keys()
    assert {"value", "low", "high"} == found["score"]["far"].keys()
    assert found["path"] == str(tmp_path / "a.fch")
    assert len(Bundle.load(tmp_path / "a.fch").classes) == found["people"] == 10
    code, found, err = run("train", people / "people.fcache", "-o", tmp_path / "b.fch", "--far", 0.02)
    assert code == 0
    assert "45 couples" in err
    assert "45 couples" in found["warning"]


def test_a_head_on_labels_of_faces_says_what_makes_its_vectors(people, tmp_path, capsys):
    words = ["train", str(people / "people.fcache"), "-o", str(tmp_path / "a.fch"), "--head", "ridge"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "It predicts from the vectors of aligned faces: in Python featcache.faces.embed_faces makes them" in told
    assert "no recipe" not in told


def test_where_the_head_goes_is_looked_at_first(people, tmp_path, run):
    (tmp_path / "a.txt").write_text("a list of something else")
    code, _, err = run("train", tmp_path / "no.fcache", "-o", tmp_path / "a.txt")
    assert code == 2
    assert "a.txt" in err
    assert "no.fcache" not in err
    code, _, err = run("train", people / "people.fcache", "-o", tmp_path / "a.fch", "--far", 1.5)
    assert code == 2
    assert "between 0 and 1" in err
    assert not (tmp_path / "a.fch").exists()


def test_verify_says_a_word(people, run):
    a, b = (people / "people" / "p03" / f"p03_{k:04}.png" for k in (1, 2))
    code, found, _ = run("verify", a, b)
    assert code == 0
    assert (found["calibrated"], found["decision"], found["probability"]) == (False, "uncalibrated", None)
    code, found, _ = run("verify", a, a, "--head", people / "people.fch", "--prior", 0.2)
    assert code == 0
    assert (found["calibrated"], found["decision"]) == (True, "same")
    assert found["distance"] == pytest.approx(0, abs=1e-6)
    assert found["probability"] > 0.2
    assert (found["prior"], found["far_target"]) == (0.2, 0.1)
    threshold = found["threshold"]
    for other in range(18):
        _, found, _ = run(
            "verify", a, people / "people" / f"p{other:02}" / f"p{other:02}_0003.png", "--head", people / "people.fch"
        )
        assert found["decision"] == ("same" if found["distance"] <= threshold else "different")
        if found["decision"] == "different":
            break
    else:
        pytest.fail("all decisions are the same")


def test_verify_fails_where_there_is_no_face(people, tmp_path, run):
    a = people / "people" / "p03" / "p03_0001.png"
    code, _, err = run("verify", a, people / "people" / "p00" / "red.png")
    assert code == 1
    assert "red.png" in err
    assert run("verify", a, a, "--prior", 1.0)[0] == 2
    assert run("verify", a, a, "--head", tmp_path / "no.fch")[0] != 0


def test_evaluate_has_the_fields_that_others_rely_on(people, tmp_path, run):
    lines = [f"p00\t1\t{k}" for k in (2, 3)] + [f"p00\t{k}\tp01\t1" for k in (1, 2)]
    lines += [f"p02\t1\t{k}" for k in (2, 3)] + ["p02\t1\tp00\tp00/red.png", "p02\t2\tp03\t1"]
    (tmp_path / "pairs.txt").write_text("\n".join(["2\t2", *lines]) + "\n")
    words = ("evaluate", people / "people.fcache", "--pairs", tmp_path / "pairs.txt")
    code, found, _ = run(*words, "--roc", tmp_path / "roc.png")
    assert code == 0
    asked = {"pairs", "failed", "accuracy", "standard_error", "auc", "eer", "tar_at_far", "found"}
    assert asked <= found.keys()
    assert (found["pairs"], found["failed"]) == (8, 1)
    assert {"first_pass", "second_pass", "centre_box"} <= found["found"].keys()
    assert found["found"]["without_vector"] == 1
    assert found["calibrated"] is None
    assert found["roc"] == str(tmp_path / "roc.png")
    known = min(set(Bundle.load(people / "people.fch").classes) - {"p00", "p01", "p03"})
    (tmp_path / "pairs.txt").write_text("\n".join(["2\t2", *lines]).replace("p02", known).replace("p03", "p00") + "\n")
    code, _, err = run(*words, "--head", people / "people.fch")
    assert code == 2
    assert "trained on" in err
    code, found, _ = run("evaluate", people / "people.fcache", "--head", people / "people.fch")
    assert code == 0
    assert {"far_target", "far", "tar", "cllr", "minimal_cllr"} == found["calibrated"].keys()
    code, _, err = run("evaluate", people / "people.fcache", "--head", people / "people.fch", "--layer", "pooled")
    assert code == 2
    assert "'pooled'" in err
    (tmp_path / "pairs.txt").write_text("1\t1\nnobody\t1\t2\np00\t1\tp01\t1\n")
    code, _, err = run(*words)
    assert code != 0
    assert "line 2" in err


def test_the_screen_says_what_intervals_suppose(tmp_path, capsys):
    write_people(tmp_path / "s.fcache", people=60)
    head = tmp_path / "a.fch"
    assert main(["faces", "train", str(tmp_path / "s.fcache"), "-o", str(head), "--far", "0.05"]) == 0
    assert "intervals over people" in capsys.readouterr().out
    assert main(["faces", "evaluate", str(tmp_path / "s.fcache"), "--head", str(head)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "if pairs were independent)" in output
    assert "intervals over people" in output


def test_gc_and_compact_leave_nothing_of_a_person(tmp_path, capsys):
    folder, store = tmp_path / "people", tmp_path / "s.fcache"
    for name, skin in (("zelda_secret", (224, 180, 150)), ("bob", (150, 105, 80)), ("ann", (100, 90, 80))):
        (folder / name).mkdir(parents=True)
        for k in range(2):
            draw_face(150 + 20 * k, skin=skin).save(folder / name / f"{k}.png")
    faces.extract(folder, store, backbone=tiny_backbone(), progress=False)
    contents = [hashlib.sha256(path.read_bytes()).digest() for path in (folder / "zelda_secret").iterdir()]
    kept = hashlib.sha256((folder / "bob" / "0.png").read_bytes()).digest()

    def files_with(text: bytes) -> list[str]:
        return [path.name for path in store.rglob("*") if path.is_file() and text in path.read_bytes()]

    assert all(len(files_with(content)) >= 3 for content in contents)
    shutil.rmtree(folder / "zelda_secret")
    faces.extract(folder, store, backbone=tiny_backbone(), progress=False)
    assert main(["gc", str(store), "--yes"]) == 0
    assert main(["compact", str(store)]) == 0
    assert [files_with(content) for content in contents] == [[], []]
    assert files_with(b"zelda_secret") == []
    assert len(files_with(kept)) >= 3
    capsys.readouterr()
