"""From archives as their providers make them to folders that train, and what is said about the rest."""

import io
import json
import os
import shlex
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from llava.data.downloads.parts import PARTS, STAGES, recognize
from llava.data.prepare_data import main

ROOT = Path(__file__).parents[2]


def picture(kind: str = "JPEG", color: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(data, kind)
    return data.getvalue()


def write_zip(path: Path, *names: str, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, picture() if content is None else content)
    return path


def write_files(folder: Path, **contents: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_bytes(content)
    return folder


def write_records(path: Path, *images: str) -> None:
    """A data file that names these images, and has one record without an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*({"image": image, "conversations": []} for image in images), {}]))


CAPTIONED = ("00000/000000001.jpg", "00659/006599999.jpg")
TALKED_ABOUT = (
    *("coco/train2017/000000000009.jpg", "coco/train2017/000000000009.jpg"),
    *("gqa/images/2350304.jpg", "gqa/images/n161313.jpg"),
    *("ocr_vqa/images/039332169X.jpg", "ocr_vqa/images/2005018.jpg", "ocr_vqa/images/B00O80WC6I.jpg"),
    *("textvqa/train_images/0123456789abcdef.jpg", "vg/VG_100K/1.jpg", "vg/VG_100K_2/2.jpg"),
)


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Everything, as its providers give it, with the three images.zip in folders of any name."""
    folder = tmp_path / "downloads"
    write_records(folder / "hub" / "blip_laion_cc_sbu_558k.json", *CAPTIONED)
    write_records(folder / "llava_v1_5_mix665k.json", *TALKED_ABOUT)
    write_zip(folder / "hub" / "images.zip", *CAPTIONED)
    write_zip(folder / "train2017.zip", "train2017/000000000009.jpg")
    write_zip(folder / "1" / "images.zip", "images/2350304.jpg", "images/n161313.jpg")
    write_zip(folder / "2" / "images.zip", "VG_100K/1.jpg")
    write_zip(folder / "images2.zip", "VG_100K_2/2.jpg")
    write_zip(folder / "train_val_images.zip", "train_images/0123456789abcdef.jpg", "LICENSE.txt")
    write_files(
        folder / "OCR-VQA" / "images",
        **{"039332169X_jpg": picture(), "2005018_gif": picture("GIF"), "B00O80WC6I_png": picture("PNG")},
    )
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def prepare(
    downloads: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command and returns its exit code, what it printed, and its errors."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["--downloads", str(downloads), "--data", str(data), *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


Prepare = Callable[..., tuple[int, str, str]]


def cells(printed: str, part: str) -> list[str]:
    """Records, needed, present and missing of a row of the table."""
    (line,) = [line for line in printed.split("\npart ")[1].splitlines() if line.startswith(f"{part}  ")]
    return line.removeprefix(part).split()


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_all_archives_are_found_and_unpacked(prepare: Prepare, data: Path):
    code, printed, errors = prepare()
    assert (code, errors) == (0, "")
    assert files_below(data) == sorted(
        [stage.records for stage in STAGES.values()]
        + [f"LLaVA-Pretrain/images/{name}" for name in CAPTIONED]
        + list(set(TALKED_ABOUT))
    )
    assert cells(printed, "blip_laion_cc_sbu_558k.json") == ["3", "1", "1", "0"]
    assert cells(printed, "LCS-558K") == ["2", "2", "2", "0"]
    assert cells(printed, "COCO train2017") == ["2", "1", "1", "0"]
    assert cells(printed, "OCR-VQA") == ["3", "3", "3", "0"]


def test_it_says_which_archive_is_taken_for_what(prepare: Prepare, downloads: Path, data: Path):
    _, printed, _ = prepare()
    for path, part in [
        ("hub/images.zip", "LCS-558K, images: 2, to be written: 2"),
        ("1/images.zip", "GQA, images: 2, to be written: 2"),
        ("2/images.zip", "Visual Genome 1, images: 1, to be written: 1"),
        ("OCR-VQA/images", "OCR-VQA, images: 3, to be written: 3"),
    ]:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{downloads / path} -> {data}/")]
        assert line.endswith(part)


def test_the_next_commands_name_what_is_there(prepare: Prepare, data: Path):
    _, printed, _ = prepare()
    commands = [shlex.split(line, comments=True) for line in printed.split("Next:\n")[1].splitlines()]
    words = [word.split("=")[-1] for command in commands for word in command]
    named = [ROOT / word if word.startswith("scripts/") else Path(word) for word in words if "/" in word]
    assert len(named) == 10  # a data file, an image folder, these again and a script, for both stages
    assert [str(path) for path in named if not path.exists()] == []


def test_what_is_in_place_is_not_written_again(prepare: Prepare, data: Path):
    prepare()
    before = {path: (data / path).lstat().st_mtime_ns for path in files_below(data)}
    code, printed, _ = prepare()
    assert code == 0
    assert "to be copied" not in printed
    assert printed.count("to be written: 0") == printed.count(" -> ") == 7
    assert {path: (data / path).lstat().st_mtime_ns for path in files_below(data)} == before


def test_a_file_of_another_size_is_written_again(prepare: Prepare, data: Path):
    prepare()
    short = data / "gqa" / "images" / "n161313.jpg"
    short.write_bytes(b"half")
    (data / "llava_v1_5_mix665k.json").write_text("[")
    code, printed, _ = prepare()
    assert (code, printed.count("to be written: 1"), printed.count("to be copied")) == (0, 1, 1)
    assert short.read_bytes() == picture()


def test_covers_of_books_become_jpegs_without_being_copied_needlessly(
    prepare: Prepare, downloads: Path, data: Path
):
    prepare()
    covers = data / "ocr_vqa" / "images"
    assert (covers / "039332169X.jpg").readlink() == downloads / "OCR-VQA" / "images" / "039332169X.jpg"
    for name in ("2005018.jpg", "B00O80WC6I.jpg"):
        with Image.open(covers / name) as image:
            assert (image.format, image.mode, (covers / name).is_symlink()) == ("JPEG", "RGB", False)


def test_covers_of_books_in_an_archive_become_jpegs(prepare: Prepare, downloads: Path, data: Path):
    shutil.rmtree(downloads / "OCR-VQA")
    write_zip(downloads / "covers.zip", "images/039332169X.jpg")
    write_zip(
        downloads / "others.zip",
        "ocr_vqa/images/2005018.gif",
        "ocr_vqa/images/B00O80WC6I.png",
        content=picture("GIF"),
    )
    assert prepare()[0] == 0
    with Image.open(data / "ocr_vqa" / "images" / "2005018.jpg") as image:
        assert image.format == "JPEG"


def test_a_damaged_cover_is_told_and_missing(prepare: Prepare, downloads: Path, data: Path, tmp_path: Path):
    (downloads / "OCR-VQA" / "images" / "2005018.gif").write_bytes(b"<html>not found</html>")
    code, printed, _ = prepare("--report", tmp_path / "report.json")
    assert code == 1
    assert f"Damaged images, left out: 1; the first: {data}/ocr_vqa/images/2005018.jpg is not an" in printed
    assert cells(printed, "OCR-VQA") == ["3", "3", "2", "1"]
    assert "--on_bad_image skip" in printed
    assert len(json.loads((tmp_path / "report.json").read_text())["damaged"]) == 1


def test_a_folder_that_is_unpacked_already_is_linked(prepare: Prepare, downloads: Path, data: Path):
    for name in ("train2017", "hub/images"):
        with zipfile.ZipFile(downloads / f"{name}.zip") as archive:
            archive.extractall(downloads / Path(name).parent)
        (downloads / f"{name}.zip").unlink()
    code, printed, _ = prepare()
    assert (code, printed.count("to be linked")) == (0, 2)
    assert (data / "coco" / "train2017").readlink() == downloads / "train2017"
    assert (data / "LLaVA-Pretrain" / "images").readlink() == downloads / "hub"
    code, printed, _ = prepare()
    assert (code, printed.count("train2017")) == (0, 1)  # in the table only: it is in place


def test_a_place_that_is_taken_is_not_linked_over(prepare: Prepare, downloads: Path, data: Path):
    (data / "coco" / "train2017").mkdir(parents=True)
    shutil.rmtree(downloads / "1")
    (downloads / "train2017.zip").unlink()
    write_files(downloads / "train2017", **{"000000000009_jpg": picture()})
    code, printed, _ = prepare()
    assert (code, "COCO train2017, images: 1, left alone, since something is there" in printed) == (1, True)
    assert files_below(data / "coco") == []


def test_downloads_may_be_the_data_folder_itself(downloads: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        assert main(["--downloads", str(downloads), "--data", str(downloads)]) == 0
    assert "to be written: 0" in capsys.readouterr().out


def test_missing_images_are_counted_shown_and_reported(prepare: Prepare, downloads: Path, tmp_path: Path):
    lost = [f"vg/VG_100K/{number}.jpg" for number in range(1000, 1005)]
    write_records(downloads / "llava_v1_5_mix665k.json", *TALKED_ABOUT, *lost, *lost[:2], "mine/a.jpg")
    code, printed, errors = prepare("--report", tmp_path / "report.json")
    assert (code, errors) == (1, "")
    assert cells(printed, "Visual Genome 1") == ["8", "6", "1", "5"]
    assert cells(printed, "other images") == ["1", "1", "0", "1"]
    assert f"Visual Genome 1 lacks 5: {', '.join(lost[:3])}, ...\n" in printed
    assert "VG_100K_2/images.zip" in printed and "Next:" not in printed
    parts = {part["name"]: part for part in json.loads((tmp_path / "report.json").read_text())["parts"]}
    assert parts["Visual Genome 1"]["missing"] == lost
    assert parts["GQA"] == {**parts["GQA"], "records": 2, "needed": 2, "missing": []}


def test_images_are_looked_for_by_one_listing_per_folder(
    prepare: Prepare, data: Path, monkeypatch: pytest.MonkeyPatch
):
    prepare()
    listed, list_folder = [], os.scandir

    def listing(folder: Path) -> object:
        listed.append(folder)
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", listing)
    assert main(["--check", "--data", str(data)]) == 0
    assert sorted(listed) == sorted(
        {(data / image).parent for image in TALKED_ABOUT}
        | {(data / "LLaVA-Pretrain" / "images" / image).parent for image in CAPTIONED}
    )


def test_one_stage_needs_only_its_own_part(prepare: Prepare, data: Path):
    code, printed, _ = prepare("--stage", "pretrain")
    assert code == 0
    assert [path.name for path in data.iterdir()] == ["LLaVA-Pretrain"]
    assert printed.count("not of this stage, left alone") == 6
    assert "pretrain.sh" in printed and "finetune" not in printed.split("Next:")[1]


def test_checking_writes_nothing_and_says_what_would_be_written(prepare: Prepare, data: Path):
    code, printed, _ = prepare("--check")
    assert (code, data.exists()) == (1, False)
    assert (printed.count("to be written"), printed.count("to be copied")) == (7, 2)
    assert "llava_v1_5_mix665k.json lacks 1" in printed and "liuhaotian/LLaVA-Instruct-150K" in printed
    assert "on_bad_image" not in printed  # that is about images


def test_an_unclear_archive_is_left_alone_and_named(prepare: Prepare, downloads: Path, data: Path):
    unclear = write_zip(downloads / "images (1).zip", "a/39332169.jpg", "cat.jpg")
    foreign = write_zip(downloads / "site.zip", "images/logo.png", "images/1.jpg")
    code, printed, _ = prepare()
    assert code == 0
    for archive in (unclear, foreign):
        assert f"{archive}: none of the parts by the names in it, left alone" in printed
    assert not any("cat" in path or "logo" in path for path in files_below(data))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda folder: write_zip(folder / "gqa.zip", "images/2350304.jpg", "images/5.jpg"),
            "FOLDER/gqa.zip and FOLDER/1/images.zip both hold images of GQA, such as 2350304.jpg",
        ),
        (
            lambda folder: write_files(folder / "train2017", **{"000000000009_jpg": b"x"}),
            "FOLDER/train2017 and FOLDER/train2017.zip both hold images of COCO train2017",
        ),
        (
            lambda folder: write_zip(folder / "a.zip", "images/6.jpg", "../images/7.jpg"),
            "a.zip is not unpacked: '../images/7.jpg' is a link or leads out of the archive",
        ),
        (
            lambda folder: write_link(folder / "a.tar.gz", "images/7.jpg"),
            "a.tar.gz is not unpacked: 'link' is a link or leads out of the archive",
        ),
        (
            lambda folder: write_zip_link(folder / "a.zip"),
            "a.zip is not unpacked: 'images/7.jpg' is a link or leads out of the archive",
        ),
        (
            lambda folder: (folder / "b.zip").write_bytes(b"version https://git-lfs"),
            "b.zip is not a complete",
        ),
        (lambda folder: (folder / "b.tar.gz").write_bytes(b""), "b.tar.gz is not a complete"),
        (
            lambda folder: write_records(folder / "old" / "llava_v1_5_mix665k.json", "a.jpg"),
            "llava_v1_5_mix665k.json are the same data file; take one of the two away",
        ),
        (lambda folder: (folder / "llava_v1_5_mix665k.json").write_text("[{"), "mix665k.json is not JSON"),
        (
            lambda folder: write_records(folder / "llava_v1_5_mix665k.json", "../secret.jpg"),
            "record 0: the image path '../secret.jpg' leads out of the image folder",
        ),
    ],
    ids=[
        *("two archives", "an archive and its folder", "a path out of a zip file", "a link in a tar file"),
        *("a link in a zip file", "no zip file", "an empty tar file", "two data files", "no JSON"),
        "an image elsewhere",
    ],
)
def test_what_is_wrong_with_the_downloads_is_one_sentence(
    make: Callable[[Path], object], sentence: str, prepare: Prepare, downloads: Path
):
    make(downloads)
    code, _, errors = prepare()
    assert (code, errors.count("\n")) == (2, 1)
    assert errors.startswith("error: ") and sentence.replace("FOLDER", str(downloads)) in errors, errors
    assert not (downloads.parent / "images").exists()


def write_link(path: Path, name: str) -> None:
    """A tar file of a picture and a link."""
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)


def write_zip_link(path: Path) -> None:
    """A zip file of a link that is called like a picture."""
    link = zipfile.ZipInfo("images/7.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")


def test_an_unsafe_archive_that_is_no_part_of_the_data_does_not_matter(prepare: Prepare, downloads: Path):
    write_link(downloads / "linux.tar.gz", "Makefile")
    assert prepare()[0] == 0


def test_unpacking_does_not_begin_if_the_disk_is_too_small(
    prepare: Prepare, data: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, errors = prepare()
    assert (code, data.exists()) == (2, False)
    assert "unpacking needs 0.0 GB or more on the disk of" in errors and "0.0 GB are free" in errors


def test_a_place_that_cannot_be_written_is_one_sentence(prepare: Prepare, data: Path):
    data.mkdir()
    (data / "gqa").write_text("a file where a folder should be")
    code, _, errors = prepare()
    assert (code, errors.count("\n")) == (2, 1)
    assert f"'{data}/gqa/images'" in errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--downloads is needed, or --check to say only what is there"),
        (["--downloads", "nowhere"], "there is no folder 'nowhere'; --downloads names one"),
        (["--downloads", __file__], f"there is no folder '{__file__}'"),
        (
            ["--check", "--stage", "three"],
            "invalid choice: 'three' (choose from 'pretrain', 'finetune', 'all')",
        ),
        (["--check", "--workers", "0"], "'0' is not a valid number"),
        (["--check", "--report", "/nowhere/report.json"], "could not be written to /nowhere/report.json"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and sentence in errors


def test_a_folder_is_told_by_all_its_names():
    def parts(*paths: str) -> dict[str, str]:
        return {part.name: folder for part, folder in recognize(f"/home/me/{path}" for path in paths)}

    assert parts("images/2005018.jpg") == {"GQA": "/home/me/images/"}
    assert parts("images/2005018.jpg", "images/039332169X.png") == {"OCR-VQA": "/home/me/images/"}
    assert parts("images/2005018.jpg", "images/holiday.jpg") == {}
    assert parts("gqa/images/2005018.jpg", "gqa/images/holiday.jpg") == {"GQA": "/home/me/gqa/images/"}
    assert parts("ocr_vqa/images/2005018.jpg") == {"OCR-VQA": "/home/me/ocr_vqa/images/"}
    assert parts("val2017/000000000009.jpg", "notes/1.txt", "VG_100K/readme.txt") == {}
    assert parts("VG_100K/._1.jpg", "__MACOSX/VG_100K/._1.jpg", "VG_100K/1.jpg") == {
        "Visual Genome 1": "/home/me/VG_100K/"
    }


def test_no_two_parts_share_a_place():
    places = [part.folder for part in PARTS]
    assert len(set(places)) == len(places) == 7
