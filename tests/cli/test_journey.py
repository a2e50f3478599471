"""From a folder of images to answers by the command line, with the fields that programs rely on."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.cli.extract import _showing
from featcache.extraction import ExtractReport


@pytest.fixture
def run(capsys):
    """Run a command with ``--json``; return its exit code and its one object."""

    def run(*words):
        code = main([*map(str, words), "--json"])
        out, _ = capsys.readouterr()
        assert out.count("\n") == 1
        return code, json.loads(out)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, draw_images):
    """A folder with ``photos``, ``pets.fcache`` and ``pets.fch``."""
    folder = tmp_path_factory.mktemp("trained")
    draw_images(folder / "photos")
    assert main(["extract", str(folder / "photos"), "-o", str(folder / "pets.fcache")]) == 0
    assert main(["train", str(folder / "pets.fcache"), "-o", str(folder / "pets.fch")]) == 0
    return folder


def test_extract_computes_once(photos, tmp_path, run):
    code, first = run("extract", photos, "-o", tmp_path / "s.fcache")
    assert code == 0
    assert {"store", "space", "backbone", "images_per_second", "seconds"} <= first.keys()
    assert (first["items"], first["computed"], first["reused"], first["quarantined"]) == (24, 24, 0, 0)
    _, second = run("extract", photos, "-o", tmp_path / "s.fcache")
    assert (second["computed"], second["reused"]) == (0, 24)


def test_several_layers_may_follow_one_option(photos, tmp_path, run, small_network):
    store = tmp_path / "s.fcache"
    run(
        "extract", photos, "-o", store, "--backbone", small_network, "--layers", "pooled", "blocks.4:mean", "--limit", 4
    )
    _, status = run("status", store)
    assert status["spaces"][0]["layers"] == ["blocks.4:mean", "pooled"]


def test_a_time_out_for_images(photos, tmp_path, run, small_network):
    words = ["--backbone", small_network, "--image-timeout", 0.5]
    code, report = run("extract", photos, "-o", tmp_path / "s.fcache", *words)
    assert (code, report["computed"] + report["quarantined"]) == (0, 24)
    assert run("extract", photos, "-o", tmp_path / "t.fcache", "--image-timeout", 0)[0] == 2
    assert not (tmp_path / "t.fcache").exists()


def test_a_bad_image_is_told_and_the_rest_goes_on(photos, tmp_path, capsys, small_network):
    (photos / "cats" / "text.jpg").write_text("no image")
    assert main(["extract", str(photos), "-o", str(tmp_path / "s.fcache"), "--backbone", small_network]) == 0
    assert "cats/text.jpg: " in capsys.readouterr().out
    assert main(["status", str(tmp_path / "s.fcache")]) == 0
    assert "cats/text.jpg: " in capsys.readouterr().out
    assert main(["status", str(tmp_path / "s.fcache"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (bad,) = found["quarantine"]
    assert (found["quarantined"], bad["source"], bad["uri"]) == (1, "photos", "cats/text.jpg")
    assert "not an image" in bad["reason"]


def words_of_next(out):
    """The command that a verb's output proposes, as words."""
    (line,) = [line for line in out.splitlines() if line.startswith("Next:")]
    return shlex.split(line.removeprefix("Next:"))[1:]


def test_the_next_command_chooses_where_there_are_several(photos, tmp_path, capsys, monkeypatch, small_network):
    monkeypatch.chdir(tmp_path)
    fc.extract(photos, "s.fcache", backbone=tiny_backbone(), progress=False)
    words = ["extract", "photos", "-o", "s.fcache", "--backbone", small_network, "--limit", "16", "--name", "some"]
    assert main([*words, "--layers", "blocks.?:mean"]) == 0
    words = words_of_next(capsys.readouterr().out)
    assert {"--space", "--source", "--layers"} < set(words)
    assert main(words) == 0
    assert (tmp_path / "s.fch").is_file()


def test_without_labels_the_next_command_needs_none(photos, tmp_path, capsys):
    assert main(["extract", str(photos / "cats"), "-o", str(tmp_path / "s.fcache"), "--limit", "3"]) == 0
    out = capsys.readouterr().out
    words = [str(photos / "cats" / "cat-00.jpg") if word == "IMAGE" else word for word in words_of_next(out)]
    assert words[0] == "similar"
    assert main(words) == 0
    assert "--labels FILE" in out


def test_a_renamed_class_is_told_by_evaluate(trained, tmp_path, capsys):
    photos, store = tmp_path / "photos", tmp_path / "s.fcache"
    shutil.copytree(trained / "photos", photos)
    (photos / "cats").rename(photos / "felines")
    assert main(["extract", str(photos), "-o", str(store)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(trained / "pets.fch"), str(store)]) == 0
    out = capsys.readouterr().out
    assert "does not know their labels: 'felines'" in out
    assert "train again" in out


def test_a_calibration_error_on_few_items_is_said_to_be_unreliable(trained, tmp_path, capsys, draw_images):
    head, many = str(trained / "pets.fch"), str(tmp_path / "many.fcache")
    assert main(["extract", str(draw_images(tmp_path / "many", each=40)), "-o", many]) == 0
    lines = []
    for words in (
        ["train", str(trained / "pets.fcache"), "-o", str(tmp_path / "a.fch")],
        ["evaluate", head, str(trained / "pets.fcache")],
        ["evaluate", head, many],
    ):
        capsys.readouterr()
        assert main(words) == 0
        lines += [line for line in capsys.readouterr().out.splitlines() if line.startswith("Calibration error:")]
    assert [line.partition("; unreliable, as it rests on ")[2] for line in lines] == [
        "7 items only",
        "7 items only",
        "",
    ]


def test_images_whose_vectors_were_lost_are_told(trained, tmp_path, capsys, run, small_network):
    shutil.copytree(trained / "photos", tmp_path / "photos")
    store = tmp_path / "s.fcache"
    words = ["extract", str(tmp_path / "photos"), "-o", str(store), "--backbone", small_network]
    assert main([*words, "--limit", "16"]) == 0
    assert main(words) == 0
    smaller = min(store.glob("shards/*/*.h5"), key=lambda shard: shard.stat().st_size)
    smaller.unlink()
    assert main(["repair", str(store)]) == 0
    capsys.readouterr()
    told = "8 of 24 labeled images without vectors of 'pooled' left out"
    assert main(["train", str(store), "-o", str(tmp_path / "a.fch")]) == 0
    shown = capsys.readouterr()
    assert f"{told}, so the score is not that of all" in " ".join(shown.err.split())
    assert told in shown.out
    report = run("train", store, "-o", tmp_path / "a.fch", "--force")[1]
    assert (report["without_vectors"], report["score"]["protocol"].endswith(f"; {told}")) == (8, True)
    assert run("evaluate", tmp_path / "a.fch", store)[1]["protocol"].endswith(f"; {told}")


def test_what_is_mistaken_for_a_store_or_an_image_is_named(trained, capsys):
    assert main(["train", str(trained / "pets.fch"), "-o", str(trained / "a.fch")]) == 2
    assert "is a head" in capsys.readouterr().err
    assert main(["similar", str(trained / "pets.fcache"), str(trained / "photos")]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_views_from_the_folder_to_the_head(photos, tmp_path, run, capsys, small_network):
    store, head = tmp_path / "s.fcache", tmp_path / "s.fch"
    words = ["extract", str(photos), "-o", str(store), "--backbone", small_network]
    assert run(*words, "--views", "3", "--seed", "5", "--limit", "16")[1]["computed"] == 48
    (space,) = run("status", store)[1]["spaces"]
    assert (len(space["views"]), space["views"][0], space["rows"]) == (3, "0", 48)
    assert run("train", store, "-o", head)[1]["views"] == space["views"]
    assert run("train", store, "-o", head, "--views", "first")[1]["views"] == ["0"]
    assert main([*words, "--views", "0"]) == 2
    capsys.readouterr()
    assert main([*words, "--views", "3", "--seed", "5"]) == 0
    assert "24 views of images computed at" in capsys.readouterr().out


def test_one_is_no_plural(capsys):
    _showing(ExtractReport("s.fcache", "f" * 64, "bundled:x", items=2, views=2, computed=1, reused=1), None)()
    out = capsys.readouterr().out
    assert "  1 view of images computed at" in out
    assert ", 1 image already in the store, or duplicates\n" in out


def test_views_of_several_seeds_are_told(photos, tmp_path, run, capsys, small_network):
    store = tmp_path / "s.fcache"
    for seed in ("5", "12"):
        run("extract", photos, "-o", store, "--backbone", small_network, "--views", "2", "--seed", seed)
    assert run("status", store)[1]["spaces"][0]["seeds"] == [5, 12]
    assert main(["status", str(store)]) == 0
    assert "seeds 5, 12" in capsys.readouterr().out
    _, report = run("train", store, "-o", tmp_path / "s.fch")
    assert report["score"]["protocol"].endswith("trained on 3 views (seeds 5, 12) of each image, scored on view 0")
    assert main(["export", str(store), "-o", str(tmp_path / "s.h5")]) == 0
    assert "of view 0 alone; 2 other views stay in the store" in capsys.readouterr().out


def test_spaces_of_one_backbone_are_told_apart(photos, tmp_path, run, capsys, small_network):
    store = tmp_path / "s.fcache"
    words = ["extract", photos, "-o", store, "--backbone", small_network, "--limit", 4]
    run(*words)
    assert run("status", store)[1]["spaces"][0]["differs"] == ""
    run(*words, "--scaled")
    _, status = run("status", store)
    assert [space["differs"] for space in status["spaces"]] == ["without scaled", "scaled dct/1"]
    assert main(["train", str(store), "-o", str(tmp_path / "s.fch")]) == 2
    said = capsys.readouterr().err
    assert f"({small_network}, without scaled); " in said
    assert f"({small_network}, scaled dct/1). Choose one with --space" in said
    assert main(["status", str(store)]) == 0
    shown = capsys.readouterr().out
    assert "without scaled" in shown
    assert "scaled dct/1" in shown


def test_after_ctrl_c_what_is_left_is_told(capsys):
    done = ExtractReport("s.fcache", "f" * 64, "bundled:x", items=480, computed=96, reused=10, quarantined=2, left=372)
    _showing(done, None)()
    out = capsys.readouterr().out
    assert "  372 left to do\n" in out
    assert "Next:" not in out


def test_strict_fails_on_a_bad_image(photos, tmp_path, run):
    (photos / "cats" / "text.jpg").write_text("no image")
    code, answer = run("extract", photos, "-o", tmp_path / "s.fcache", "--strict")
    assert code == 1
    assert "text.jpg" in answer["error"]


def test_train_scores_and_saves(trained, run):
    code, made = run("train", trained / "pets.fcache", "-o", trained / "again.fch", "--seed", 1)
    assert code == 0
    assert made["classes"] == ["cats", "dogs"]
    assert {"head", "n", "chosen", "fit_seconds", "seconds"} <= made.keys()
    assert {"accuracy", "low", "high", "protocol"} <= made["score"].keys()
    assert (trained / "again.fch").is_file()


def test_evaluate(trained, run):
    code, score = run("evaluate", trained / "pets.fch", trained / "pets.fcache")
    assert code == 0
    assert score["overlap"] == 0
    assert score["low"] <= score["accuracy"] <= score["high"]
    assert {"n", "balanced_accuracy", "macro_f1", "log_loss"} <= score.keys()


def test_evaluate_draws_the_confusion_matrix_and_compares(trained, tmp_path, run, capsys):
    store, head = trained / "pets.fcache", trained / "pets.fch"
    _, trained_more = run("train", store, "-o", tmp_path / "b.fch", "--class-weight", "balanced")
    told = {"pairs", "across", "left_out", "threshold", "examples", "note", "grouped"}
    assert trained_more["near_duplicates"].keys() == told
    words = ["evaluate", head, store, "--against", tmp_path / "b.fch", "--confusion", tmp_path / "c.png"]
    code, report = run(*words)
    assert code == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert report["confusion"] == str(tmp_path / "c.png")
    assert [c["label"] for c in report["per_class"]] == ["cats", "dogs"]
    assert report["against"]["path"] == str(tmp_path / "b.fch")
    assert report["against"]["n"] == report["n"]
    for name in ("accuracy", "log_loss"):
        assert {"a", "b", "difference", "low", "high", "better"} == report["against"][name].keys()
    assert report["against"]["accuracy"]["a"] == report["accuracy"]
    assert main([str(word) for word in words]) == 0
    shown = capsys.readouterr().out
    assert "precision" in shown
    assert "Equal; no interval: equal on all items." in shown  # classes of one size weigh the same anyway
    assert run("evaluate", head, store, "--confusion", tmp_path / "c.jpg")[0] == 2
    assert run("train", store, "-o", tmp_path / "d.fch", "--class-weight", "heavy")[0] == 2
    assert not (tmp_path / "d.fch").exists()


@pytest.mark.slow
def test_hidden_layers_are_for_the_head_that_has_them(trained, tmp_path, run, capsys):
    store, head = trained / "pets.fcache", tmp_path / "m.fch"
    code, report = run("train", store, "-o", head, "--head", "mlp", "--hidden", "8,4", "--dropout", "0.1")
    assert (code, report["head"]) == (0, "mlp")
    assert report["chosen"].keys() == {"weight_decay", "epochs"}
    assert [weight.shape for weight in fc.load(head).predictor.weights] == [(8, 1280), (4, 8), (2, 4)]
    assert run("evaluate", head, store)[1]["accuracy"] == report["score"]["accuracy"]
    capsys.readouterr()
    assert main(["train", str(store), "-o", str(tmp_path / "n.fch"), "--hidden", "8"]) == 2
    assert "for --head mlp; the head softmax has no hidden layers" in " ".join(capsys.readouterr().err.split())
    assert run("train", store, "-o", tmp_path / "n.fch", "--head", "mlp", "--hidden", "wide")[0] == 2
    assert run("train", store, "-o", tmp_path / "n.fch", "--head", "mlp", "--dropout", "1")[0] == 2
    assert not (tmp_path / "n.fch").exists()


def test_which_head_is_better_is_said_in_words(capsys):
    from featcache.cli.evaluate import _show_against

    _show_against(
        {
            "path": "b.fch",
            "n": 1,
            "protocol": "p",
            "accuracy": {"a": 0.5, "b": 0.6, "difference": -0.1, "low": -0.2, "high": 0.05, "better": 0.1},
            "log_loss": {"a": 0.7, "b": 0.5, "difference": 0.2, "low": 0.01, "high": 0.3, "better": 0.01},
        },
        Path("a.fch"),
    )
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "Against b.fch, on 1 item: p",
        "  Accuracy: a.fch 50.0 %, b.fch 60.0 %",
        "    They cannot be told apart on 1 item: a.fch is 10.0 points worse"
        " (95 % interval: 20.0 points worse to 5.0 points better).",
        "  Log-loss: a.fch 0.700, b.fch 0.500",
        "    a.fch is 0.200 worse (95 % interval: 0.300 worse to 0.010 worse), and better in 1.0 % of the resamples.",
    ]


def test_a_score_on_next_to_nothing_is_told(tmp_path, capsys):
    labels = np.array(["a", "b", "b", "b", "b"])
    np.savez(tmp_path / "x.npz", features=np.random.default_rng(0).normal(size=(5, 4)), labels=labels)
    assert main(["train", str(tmp_path / "x.npz"), "-o", str(tmp_path / "a.fch"), "--head", "ridge"]) == 0
    shown = capsys.readouterr().out
    assert "hold-out of 1 of 5 items (" in shown
    assert "no scored item has the label 'a'." in shown
    assert "a score on 1 item is unreliable" in shown
    assert fc.load(tmp_path / "a.fch").report["unscored"] == ["a"]
    (chosen,) = [line for line in shown.splitlines() if line.startswith("Chosen: alpha")]
    alpha = float(chosen.split()[3])
    assert alpha == pytest.approx(fc.load(tmp_path / "a.fch").chosen["alpha"], rel=5e-4)
    assert len(chosen.split()[3]) < 11


def test_near_duplicates_are_told(tmp_path, capsys):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 6))
    np.savez(tmp_path / "x.npz", features=np.concatenate([X, X + 1e-4]), labels=np.arange(200) % 2)
    words = ["train", str(tmp_path / "x.npz"), "-o", str(tmp_path / "x.fch")]
    assert main(words) == 0
    protocol, first = [line for line in capsys.readouterr().out.splitlines() if "near-duplicates" in line]
    count = re.search(r"; (\d+) near-duplicates of held-out items left out", protocol)
    assert count is not None
    assert first.startswith(f"Left out: {count[1]} near-duplicates of held-out items (first: ")
    assert main([*words, "--cv", "3"]) == 0
    (across,) = [line for line in capsys.readouterr().out.splitlines() if "near-duplicates" in line]
    assert across.startswith("Warning: ")
    assert main([*words, "--cv", "3", "--group-near-duplicates"]) == 0
    assert "near-duplicates" not in capsys.readouterr().out


def test_predict_files_and_folders(trained, run):
    one = trained / "photos" / "cats" / "cat-01.jpg"
    code, answer = run("predict", trained / "pets.fch", one, trained / "photos" / "dogs", "--top", 1)
    assert code == 0
    assert [p["labels"][0]["label"] for p in answer["predictions"]] == ["cats"] + ["dogs"] * 12
    assert all(0.5 < p["labels"][0]["probability"] <= 1 for p in answer["predictions"])


def test_predict_writes_a_table(trained, tmp_path):
    table = tmp_path / "answers.csv"
    photos = trained / "photos" / "cats"
    assert main(["predict", str(trained / "pets.fch"), str(photos), "--csv", str(table)]) == 0
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["uri", "rank", "label", "probability", "problem"]
    assert len(rows) == 12 * 2
    assert rows[0]["label"] == "cats"
    assert float(rows[0]["probability"]) + float(rows[1]["probability"]) == pytest.approx(1, abs=2e-6)


def test_similar_finds_the_nearest_and_leaves_the_image_itself_out(trained, run):
    code, answer = run("similar", trained / "pets.fcache", trained / "photos" / "dogs" / "dog-05.jpg", "-k", 3)
    assert code == 0
    found = answer["similar"]
    assert [f["label"] for f in found] == ["dogs", "dogs", "dogs"]
    assert "dogs/dog-05.jpg" not in [f["uri"] for f in found]
    assert found[0]["cosine"] >= found[1]["cosine"] >= found[2]["cosine"]


def test_export_is_read_with_h5py(trained, tmp_path, run):
    code, made = run("export", trained / "pets.fcache", "-o", tmp_path / "pets.h5")
    assert (code, made["n"], made["d"]) == (0, 24, 1280)
    with h5py.File(tmp_path / "pets.h5") as file:
        assert file["features"].shape == (24, 1280)


def test_verify_ends_with_1_on_damage(trained, tmp_path, run):
    store = shutil.copytree(trained / "pets.fcache", tmp_path / "copy.fcache")
    assert run("verify", store)[1]["ok"]
    (shard,) = store.glob("shards/*/*.h5")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    code, report = run("verify", store)
    assert code == 1
    assert shard.stem in report["damaged"][0]["shard"]


def test_paths_are_not_broken_over_lines(photos, tmp_path, capsys, monkeypatch, small_network):
    monkeypatch.setenv("COLUMNS", "40")
    deep = tmp_path / ("long name " * 8).strip() / "Bücher.fcache"
    assert main(["extract", str(photos), "-o", str(deep), "--backbone", small_network, "--limit", "2"]) == 0
    assert f"Store: {deep}\n" in capsys.readouterr().out


def test_what_cannot_be_written_is_told_before_the_training(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("a file where a folder should be")
    assert main(["train", str(trained / "pets.fcache"), "-o", str(tmp_path / "file" / "a.fch")]) == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert "items" not in said
