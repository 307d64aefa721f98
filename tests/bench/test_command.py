"""``llava bench`` from its command line to its files, on toys."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.bench import __main__ as module
from llava.bench import command, measure, pictures, results, subject, tables
from llava.bench.model_sizes import MODEL_SIZES
from llava.bench.report import ANSWER, DECODE, FIRST_TOKEN, Report, read_report
from llava.bench.stages import FIRST_TOKEN as STAGES
from llava.main import main
from tests.conftest import TINY_LLAVA
from tests.test_main import imported_by

TINY = ["bench", "--random", "tiny", "--device", "cpu"]
QUICK = ["--repeats", "2", "--new-tokens", "3"]


@pytest.fixture(scope="module", autouse=True)
def _small_products():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measure.PRODUCT_SIDES, "cpu", 128)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results")
    arguments = ["--reductions", "TRIM:-1", "TRIM:0.21", "Random:0.21", "--batch-sizes", "1", "2"]
    assert main([*TINY, *QUICK, *arguments, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    (path,) = folder.glob("*.json")
    return read_report(path)


def test_every_reduction_is_measured_at_every_batch_size_beside_the_baseline(report: Report):
    names = ["none", "TRIM:-1", "TRIM:0.21", "Random:0.21"]
    assert [(row.batch, row.reduction) for row in report.rows] == [
        (b, name) for b in (1, 2) for name in names
    ]
    for row in report.rows:
        assert set(STAGES) - set(row.milliseconds) == (set() if "TRIM" in row.reduction else {"text"})
        for spread in row.milliseconds.values():
            assert 0 < spread.low <= spread.median <= spread.high
        assert row.milliseconds[FIRST_TOKEN].low >= row.milliseconds["prefill"].low
        assert row.milliseconds[ANSWER].high > row.milliseconds[FIRST_TOKEN].low
        assert row.peak_mib is None or row.peak_mib > report.weights_mib


def test_counts_are_those_of_the_reductions(report: Report):
    config, clip = MODEL_SIZES["tiny"].language_model, MODEL_SIZES["tiny"].clip
    position = 2 * config["num_hidden_layers"] * config["hidden_size"] * 4  # keys and values in float32
    for row in report.rows:
        kept = {"none": 100, "TRIM:0.21": 22, "Random:0.21": 22}.get(row.reduction)
        assert kept is None or row.visual_tokens == kept
        if row.batch == 1:
            assert row.cache_mib * 2**20 == position * row.prompt_tokens
    text = {row.prompt_tokens - row.visual_tokens for row in report.rows if row.batch == 1}
    assert len(text) == 1
    assert report.tower_parameters == sum(expected_parameters(clip))


def expected_parameters(clip: dict) -> tuple[int, int]:
    """Count CLIP's vision encoder, without its last layer, and its text encoder, with their projections."""

    def layer(width: int, inner: int) -> int:
        return 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width

    vision, text, joint = clip["vision_config"], clip["text_config"], clip["projection_dim"]
    width, patches = vision["hidden_size"], (vision["image_size"] // vision["patch_size"]) ** 2
    seen = width + 3 * vision["patch_size"] ** 2 * width + (patches + 1) * width + 4 * width + width * joint
    seen += (vision["num_hidden_layers"] - 1) * layer(width, vision["intermediate_size"])
    width = text["hidden_size"]
    read = (text["vocab_size"] + 77) * width + 2 * width + width * joint
    read += text["num_hidden_layers"] * layer(width, text["intermediate_size"])
    return seen, read


def test_clip_is_held_once_at_the_size_of_llava_1_5():
    assert sum(expected_parameters(MODEL_SIZES["1b"].clip)) == 415_347_968
    assert sum(expected_parameters(MODEL_SIZES["1b"].clip)) <= 430e6


def test_flops_are_counted_and_set_against_the_rate_of_the_same_run(report: Report):
    unreduced, reduced = report.row("none", 1), report.row("TRIM:0.21", 1)
    assert unreduced is not None and reduced is not None
    assert reduced.flops["vision"] == unreduced.flops["vision"]
    assert reduced.flops["prefill"] < 0.6 * unreduced.flops["prefill"]
    for row in report.rows:
        stages = {stage: count for stage, count in row.flops.items() if stage in STAGES}
        assert row.flops[FIRST_TOKEN] == sum(stages.values())
        assert row.flops[ANSWER] == row.flops[FIRST_TOKEN] + 2 * row.flops[DECODE]
        for what, share in row.rate_shares.items():
            seconds = row.milliseconds[what].median / 1000
            assert share == pytest.approx(row.flops[what] / seconds / report.flops_per_s.median)


def test_json_tables_and_a_picture_are_written_and_the_command_is_in_them(folder: Path, report: Report):
    paths = sorted(folder.iterdir())
    assert {path.suffix for path in paths} == {".json", ".md", ".png"}
    assert len({path.stem for path in paths}) == 1
    assert paths[0].stem.startswith("tiny-random-weights-float32-cpu-")
    assert paths[1].read_text() == tables.render(report)
    with Image.open(paths[2]) as picture:
        assert picture.format == "PNG"
    assert report.command == (
        "llava bench --random tiny --reductions TRIM:-1 TRIM:0.21 Random:0.21 --batch-sizes 1 2 "
        "--new-tokens 3 --repeats 2 --device cpu"
    )
    assert (report.kind, report.model, report.dtype) == ("answers", "tiny, random weights", "float32")


def test_nothing_is_overwritten(tmp_path: Path, capsys):
    for _ in range(2):
        chosen = ["--batch-sizes", "1", "--reductions", "Pool:9", "--out", str(tmp_path)]
        assert main([*TINY, *QUICK, *chosen]) == 0
    assert len(list(tmp_path.glob("*.json"))) == 2
    output = capsys.readouterr()
    assert output.err.splitlines()[:3] == ["round to warm up ...", "round 1 of 2 ...", "round 2 of 2 ..."]
    assert " ..." not in output.out


def test_growth_is_measured_from_one_token_to_all(tmp_path: Path, capsys):
    grown = [*TINY, "--repeats", "1", "--new-tokens", "2", "--batch-sizes", "2", "--growth"]
    assert main([*grown, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("growth-tiny-*.json")
    found = read_report(path)
    tokens = [row.visual_tokens for row in found.rows if row.batch == 1 and row.reduction != "TRIM:0.21"]
    assert tokens == [1, 4, 9, 25, 49, 64, 100]
    assert path.with_suffix(".png").exists()
    line = "- KV cache, MiB: 0.0537 + 0.000977 for every visual token (R² 1.0000, measured 1 to 100)"
    assert line in capsys.readouterr().out


def test_a_checkpoint_is_asked_about_pictures_of_a_folder(tmp_path: Path, capsys):
    Image.linear_gradient("L").save(tmp_path / "picture.png")
    model = ["--model-path", str(TINY_LLAVA), "--device", "cpu", "--images", str(tmp_path)]
    chosen = ["--question", "What is it?", "--reductions", "TRIM:64", "--batch-sizes", "2"]
    assert main(["bench", *model, *chosen, *QUICK]) == 0
    text = capsys.readouterr().out
    assert text.startswith("## llava-v1.5-tiny, float32, ")
    assert "| visual tokens           | 576.0" in text and "| 65.0" in text


def test_two_results_are_compared(folder: Path, capsys):
    (path,) = folder.glob("*.json")
    assert module.main(["--compare", str(path), str(path)]) == 0
    text = capsys.readouterr().out
    assert text.count("(1.000)") > 8 * 9
    assert "only in" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--random", "3b"], "invalid choice: '3b' (choose from"),
        (["--random", "tiny", "--model-path", "x"], "--model-path is about a checkpoint"),
        (["--random", "tiny", "--load-4bit"], "--load-4bit is about a checkpoint"),
        (["--random", "tiny", "--reductions", "TRIM:0"], "'TRIM:0' is not a token reduction"),
        (["--random", "tiny", "--batch-sizes", "0"], "argument --batch-sizes: '0' is not a valid number"),
        (["--random", "tiny", "--new-tokens", "1"], "--new-tokens is 1; accepted: 2 or more"),
        (["--random", "tiny", "--growth", "--batch-sizes", "1"], "has no line to fit"),
        (["--random", "tiny", "--growth", "--reductions", "none"], "leave out --reductions or --growth"),
        (["--random", "tiny", "--images", "nowhere"], "no images in 'nowhere'"),
        (["--random", "tiny", "--dtype", "float8"], "'float8' is not a valid dtype"),
        (["--random", "tiny", "--device", "abacus"], "device 'abacus' is not on this machine"),
        (["--model-path", "nowhere/at/all"], "nowhere/at/all"),
        (["--compare", "a.json", "b.json"], "a.json cannot be read as results"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(arguments: list[str], sentence: str, capsys):
    assert main(["bench", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert sentence in output.err


def test_a_size_that_does_not_fit_is_refused_with_those_that_do(monkeypatch, capsys):
    monkeypatch.setattr(subject, "free_bytes", lambda device: 9 * 2**30)
    assert main(["bench", "--random", "7b", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--random 7b in float32 takes 26.7 GiB and 9.0 GiB of cpu memory are free" in error
    assert error.endswith("accepted in this dtype: tiny or 1b\n")


def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does(monkeypatch, capsys):
    monkeypatch.setattr(subject, "free_bytes", lambda device: 2**22)
    assert main([*TINY, "--batch-sizes", "1", "64"]) == 2
    error = capsys.readouterr().err
    assert "--batch-sizes 64 takes about" in error and "accepted: up to " in error


def test_memory_that_runs_out_is_one_sentence(monkeypatch, capsys):
    def run_out(*_):
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setattr(measure, "measure", run_out)
    assert main([*TINY, "--batch-sizes", "1"]) == 2
    assert "the device's memory does not suffice; try smaller --batch-sizes" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_sentence_before_anything_is_measured(
    tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "measured", lambda _: pytest.fail("it is measured"))
    (tmp_path / "file").touch()
    assert main([*TINY, "--out", str(tmp_path / "file" / "below")]) == 2
    error = capsys.readouterr().err
    assert f"error: the output folder '{tmp_path}/file/below' cannot be created: Not a directory" in error


def test_a_report_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(results, "free_path", lambda folder, name: folder / "file" / "below")
    chosen = ["--batch-sizes", "1", "--reductions", "Pool:1", "--out", str(tmp_path)]
    assert main([*TINY, "--repeats", "1", "--new-tokens", "2", *chosen]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_without_matplotlib_the_rest_is_written(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    chosen = ["--batch-sizes", "1", "--reductions", "Pool:1", "--out", str(tmp_path)]
    assert main([*TINY, "--repeats", "1", "--new-tokens", "2", *chosen]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md"}
    assert ".png" not in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["rows"]


def test_pictures_are_repeated_where_a_folder_has_too_few(tmp_path: Path):
    from llava.bench.command import pictures as chosen

    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (8, 4 if name == "b.png" else 6)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    assert [one.size for one in chosen(tmp_path, 3)] == [(8, 6), (8, 4), (8, 6)]
    noise = pictures.random_pictures(2)
    assert noise == chosen(None, 2) and noise[0] != noise[1]


def test_its_help_needs_no_torch():
    assert not imported_by("from llava.main import main; main(['bench', '--help'])") & {
        "torch",
        "transformers",
    }
